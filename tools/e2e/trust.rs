//! Who may talk, and what an attacker on the path can do: each is a typed refusal and a counter.
//!
//! After every refusal no page of the sink has changed, nobody has crashed, and where the daemons
//! may trust each other a good session still works.

use crate::harness::client::CallError;
use crate::harness::lab::{Lab, SINK, SOURCE};
use crate::harness::memory::{MIB, Memory};
use crate::harness::pki::Pki;
use crate::harness::records::Tamper;
use crate::harness::stranger::Stranger;
use crate::harness::{SOON, wait_until};
use dwcp_proto::wire::hello::{Hello, HostName};
use dwcp_proto::wire::preface::{PREFACE_BYTES, PREFACE_MAGIC};
use serde_json::json;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

/// Makes the certificates of source and sink in a folder.
type MakePki = fn(&Path) -> (Option<PathBuf>, Option<PathBuf>);

/// Both daemons' certificates come from `make`; the session must not open, the source says why
/// under one of `ours`, the sink counts one of `theirs`.
fn refused(make: MakePki, code: &str, ours: &str, theirs: &[&str]) {
    let folder = tempfile::tempdir().expect("a folder");
    let (source, sink) = make(folder.path());
    let mut lab = Lab::start_in(folder, (source, &[]), (sink, &[]));
    let transfer = lab.register("vm", Memory::filled(1, MIB, false));
    let error = lab.open(&transfer).expect_err("they must not trust each other");
    assert_eq!((error.code(), error.detail("peer_code").as_str()), (code, ours), "{error:?}");
    lab.sink.wait_counted("dwcp_peer_refused_total", theirs);
    lab.source.wait_counted("dwcp_peer_refused_total", &[ours]);
    transfer.assert_sink_untouched();
    transfer.assert_source_intact();
    assert!(lab.source.runs() && lab.sink.runs());
    assert!(lab.sink.sessions_of("vm").is_empty());
    let regions = lab.source.must("region.list", json!({}));
    assert!(regions[0]["session"].is_null(), "the source's region is free again: {regions}");
}

#[test]
fn a_sink_of_another_authority_is_refused() {
    refused(
        |folder| {
            let (ours, other) = (Pki::init(folder.join("ca")), Pki::init(folder.join("other")));
            (Some(ours.host(SOURCE)), Some(other.host(SINK)))
        },
        "peer_identity",
        "certificate_untrusted",
        &["our_certificate_untrusted", "our_certificate_refused", "tls_alert"],
    );
}

#[test]
fn a_source_of_another_authority_is_refused() {
    refused(
        |folder| {
            let (ours, other) = (Pki::init(folder.join("ca")), Pki::init(folder.join("other")));
            let (sink, source) = (ours.host(SINK), other.host(SOURCE));
            // It believes the sink; the sink must not believe it.
            std::fs::copy(sink.join("ca.pem"), source.join("ca.pem")).expect("a copy");
            std::fs::copy(sink.join("revoked.pem"), source.join("revoked.pem")).expect("a copy");
            (Some(source), Some(sink))
        },
        "peer_identity",
        "our_certificate_untrusted",
        &["certificate_untrusted"],
    );
}

#[test]
fn an_expired_sink_is_refused() {
    refused(
        |folder| {
            let pki = Pki::init(folder.join("ca"));
            (Some(pki.host(SOURCE)), Some(pki.expired_host(SINK)))
        },
        "peer_identity",
        "certificate_expired",
        &["our_certificate_expired"],
    );
}

#[test]
fn an_expired_source_is_refused() {
    refused(
        |folder| {
            let pki = Pki::init(folder.join("ca"));
            (Some(pki.expired_host(SOURCE)), Some(pki.host(SINK)))
        },
        "peer_identity",
        "our_certificate_expired",
        &["certificate_expired"],
    );
}

#[test]
fn a_revocation_of_the_sink_holds_from_the_next_connection_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let pki = Pki::init(folder.path().join("ca"));
    let (source, sink) = (pki.host(SOURCE), pki.host(SINK));
    let told = source.clone();
    let lab = Lab::start_in(folder, (Some(source), &[]), (Some(sink), &[]));
    lab.good_session("before");
    pki.revoke(SINK, &told);
    cut_and_refuse(&lab, "certificate_revoked", "our_certificate_revoked");
}

#[test]
fn a_revocation_of_the_source_holds_from_the_next_connection_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let pki = Pki::init(folder.path().join("ca"));
    let (source, sink) = (pki.host(SOURCE), pki.host(SINK));
    let told = sink.clone();
    let lab = Lab::start_in(folder, (Some(source), &[]), (Some(sink), &[]));
    lab.good_session("before");
    pki.revoke(SOURCE, &told);
    cut_and_refuse(&lab, "our_certificate_revoked", "certificate_revoked");
}

/// Ends the link; the next one must be refused.
fn cut_and_refuse(lab: &Lab, ours: &str, theirs: &str) {
    lab.proxy.cut();
    wait_until("the link is gone", SOON, || {
        lab.source.must("net.show", json!({})).as_array().is_some_and(Vec::is_empty)
    });
    let transfer = lab.register("vm", Memory::filled(1, MIB, false));
    let error = lab.open(&transfer).expect_err("one of them is revoked");
    assert_eq!(error.code(), "peer_identity", "{error:?}");
    assert_eq!(error.detail("peer_code"), ours, "{error:?}");
    lab.sink.wait_counted("dwcp_peer_refused_total", &[theirs]);
    transfer.assert_sink_untouched();
}

#[test]
fn a_peer_that_is_not_the_named_one_is_refused() {
    let lab = Lab::start(&[]);
    let transfer = lab.register("vm", Memory::filled(1, MIB, false));
    let open = |name: &str| {
        let peer = format!("{name}@{}", lab.peer());
        lab.source.call("session.open", json!({"region": "vm", "peer": peer}))
    };
    let error = open("host-c").expect_err("this is another host");
    assert_eq!(error.code(), "peer_identity", "{error:?}");
    assert_eq!(error.detail("peer_code"), "certificate_wrong_name", "{error:?}");
    lab.source.wait_counted("dwcp_peer_refused_total", &["certificate_wrong_name"]);
    transfer.assert_sink_untouched();
    open(SINK).expect("this is the host that was meant");
}

#[test]
fn a_host_that_the_region_does_not_accept_is_refused_and_learns_nothing() {
    let lab = Lab::start(&[]);
    let transfer = lab.register("vm", Memory::filled(1, MIB, false));
    let sink = Memory::empty(MIB);
    let params = json!({"name": "theirs", "role": "sink", "accept_from": ["host-c"]});
    let registered =
        lab.sink.client().call_with_fds("region.register", params, &sink.descriptors());
    registered.expect("a region for another host");
    let open = |sink_region: &str| {
        let params = json!({"region": "vm", "peer": lab.peer(), "sink_region": sink_region});
        lab.source.call("session.open", params).expect_err("not for this host")
    };
    let text = |error: &CallError, name: &str| format!("{error:?}").replace(name, "NAME");
    let (theirs, none) = (open("theirs"), open("absent"));
    assert_eq!(theirs.code(), "peer_refused", "{theirs:?}");
    let strip = |text: String| text.split("session\"").next().unwrap_or_default().to_owned();
    assert_eq!(
        strip(text(&theirs, "theirs")),
        strip(text(&none, "absent")),
        "whether a region exists is told to nobody else"
    );
    assert!(sink.written_pages().is_empty());
    let mut session = lab.must_open(&transfer);
    session.finish_committed();
    transfer.assert_equal();
}

#[test]
fn plaintext_and_tls_daemons_refuse_each_other() {
    let pki = |folder: &Path, name| Some(Pki::init(folder.join("ca")).host(name));
    for (plain_source, theirs) in [(true, "plaintext_refused"), (false, "tls_refused")] {
        let folder = tempfile::tempdir().expect("a folder");
        let (source, sink) = if plain_source {
            (None, pki(folder.path(), SINK))
        } else {
            (pki(folder.path(), SOURCE), None)
        };
        let mut lab = Lab::start_in(folder, (source, &[]), (sink, &[]));
        let transfer = lab.register("vm", Memory::filled(1, MIB, false));
        let error = lab.open(&transfer).expect_err("they speak different languages");
        let codes = ["peer_identity", "peer_unreachable"];
        assert!(codes.contains(&error.code()), "{error:?}");
        lab.sink.wait_counted("dwcp_peer_refused_total", &[theirs]);
        transfer.assert_sink_untouched();
        assert!(lab.source.runs() && lab.sink.runs());
    }
}

#[test]
fn plaintext_daemons_work_with_each_other() {
    let folder = tempfile::tempdir().expect("a folder");
    let lab = Lab::start_in(folder, (None, &[]), (None, &[]));
    let info = lab.source.must("daemon.info", json!({}));
    assert_eq!(info["secure"], false);
    let sink = Memory::empty(MIB);
    let params = json!({"name": "vm", "role": "sink"});
    lab.sink
        .client()
        .call_with_fds("region.register", params, &sink.descriptors())
        .expect("a plaintext daemon accepts from anybody");
    let source = Memory::filled(3, MIB, false);
    let params = json!({"name": "vm", "role": "source"});
    lab.source
        .client()
        .call_with_fds("region.register", params, &source.descriptors())
        .expect("a region");
    let opened = lab.source.must("session.open", json!({"region": "vm", "peer": lab.peer()}));
    let end = lab.source.must("session.finish", json!({"session": opened["session"]}));
    assert_eq!(end["state"], "committed");
    assert!(source.differing_pages(&sink).is_empty());
}

#[test]
fn a_record_that_was_tampered_with_ends_its_stream_and_touches_no_page() {
    let lab = Lab::start(&["--streams", "1"]);
    for (index, (how, reasons)) in Tamper::ALL.into_iter().enumerate() {
        println!("{how:?}");
        let transfer = lab.register(&format!("vm-{how:?}"), Memory::filled(1, 2 * MIB, false));
        let mut session = lab.must_open(&transfer);
        lab.proxy.tamper(how);
        let error = session.round().expect_err("the only stream is gone");
        assert!(["session_failed", "link_lost"].contains(&error.code()), "{how:?}: {error:?}");
        assert_eq!(lab.proxy.tampered(), index as u64 + 1, "{how:?}");
        lab.sink.wait_counted("dwcp_streams_ended_total", reasons);
        // A record that comes twice was good the first time.
        if matches!(how, Tamper::Replayed) {
            let written = transfer.sink.written_pages();
            let differing = transfer.source.differing_pages(&transfer.sink);
            assert!(written.iter().all(|page| !differing.contains(page)), "{written:?}");
        } else {
            transfer.assert_sink_untouched();
        }
        transfer.assert_source_intact();
        wait_until("the session's end", SOON, || lab.source.state_of(&session.id) == "failed");
    }
    lab.good_session("after");
}

#[test]
fn with_a_second_stream_an_altered_record_costs_no_session() {
    let lab = Lab::start(&[]);
    let transfer = lab.register("vm", Memory::filled(1, 8 * MIB, false));
    let mut session = lab.must_open(&transfer);
    lab.proxy.tamper(Tamper::Altered);
    session.round().expect("the other stream carries on");
    assert_eq!(lab.proxy.tampered(), 1);
    assert!(session.counter("requeued_pages") > 0, "what was lost goes out again");
    session.finish_committed();
    transfer.assert_equal();
    lab.sink.wait_counted("dwcp_streams_ended_total", &["record_altered"]);
}

#[test]
fn strangers_on_the_peer_port_are_refused_and_counted() {
    let lab = Lab::start(&["--accept-timeout", "1s"]);
    let knock = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(lab.sink.listen).expect("the port is open");
        stream.set_read_timeout(Some(SOON)).expect("a bound");
        stream.write_all(bytes).expect("bytes leave");
        // The daemon ends it, with or without a word.
        let _ = stream.read_to_end(&mut Vec::new());
    };
    let preface = |version: u16| {
        let mut preface = vec![0; PREFACE_BYTES];
        preface[..4].copy_from_slice(&PREFACE_MAGIC);
        preface[4..6].copy_from_slice(&version.to_be_bytes());
        preface[12..28].fill(7);
        preface
    };
    let cases: [(Vec<u8>, &str); 7] = [
        (preface(1), "stream_unknown"),
        (preface(999), "wire_bad_version"),
        (b"DWCX and more, so that a whole preface is there".to_vec(), "wire_bad_magic"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "first_byte_unknown"),
        (b"P".to_vec(), "plaintext_refused"),
        (vec![0x16; 600], "tls_failed"),
        (Vec::new(), "peer_timeout"),
    ];
    for (bytes, reason) in cases {
        println!("{reason}");
        knock(&bytes);
        lab.sink.wait_counted("dwcp_peer_refused_total", &[reason]);
    }
    lab.good_session("after");
}

#[test]
fn a_peer_of_unknown_versions_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let pki = Pki::init(folder.path().join("ca"));
    let keys = pki.host("host-c");
    let (source, sink) = (pki.host(SOURCE), pki.host(SINK));
    let lab = Lab::start_in(folder, (Some(source), &[]), (Some(sink), &[]));
    let good = Hello::ours(HostName::cut("host-c"), [9; 16]);
    let future = Hello { version_lowest: 7, version_highest: 9, ..good.clone() };
    let mut required = good.clone();
    required.features_offered |= 1 << 60;
    required.features_required |= 1 << 60;
    let cases = [
        (future.encode(), "refused_version"),
        (required.encode(), "refused_we_lack_features"),
        (Hello { page_bytes: 65_536, ..good.clone() }.encode(), "refused_page_bytes"),
        (vec![b'X'; 200], "wire_bad_magic"),
    ];
    for (hello, reason) in cases {
        println!("{reason}");
        Stranger::connect(lab.sink.listen, &keys, &hello).wait_end();
        lab.sink.wait_counted("dwcp_peer_refused_total", &[reason]);
    }
    // A good HELLO, then a message that no phase allows.
    let mut late = good.encode();
    late.extend(100_000_000_u32.to_be_bytes());
    Stranger::connect(lab.sink.listen, &keys, &late).wait_end();
    wait_until("the channel's end", SOON, || {
        let metrics = lab.sink.metrics();
        metrics.sum("dwcp_links_ended_total", &[]) >= 1.0 && metrics.sum("dwcp_links", &[]) < 1.0
    });
    lab.good_session("after");
}

#[test]
fn a_flood_of_connections_that_say_nothing_is_bounded_and_others_are_served() {
    let lab = Lab::start(&["--accept-timeout", "1min"]);
    let before = lab.sink.descriptors();
    let knock = || TcpStream::connect(lab.sink.listen).expect("the port is open");
    let mut silent: Vec<TcpStream> = (0..1000).map(|_| knock()).collect();
    lab.sink.wait_counted("dwcp_peer_refused_total", &["pending_too_many"]);
    wait_until("all but 64 are closed", SOON, || lab.sink.descriptors() <= before + 64);
    lab.good_session("beside");
    // It goes on: whoever comes pushes out those that say nothing.
    silent.extend((0..1000).map(|_| knock()));
    lab.good_session("again");
    drop(silent);
}
