//! Peers that keep silent, replay, or say what is not theirs to say, and limits that are reached:
//! each is a typed error and a counter, and everybody else is served.

use crate::harness::daemon::{Daemon, DaemonSpec};
use crate::harness::lab::{Lab, SINK, SOURCE};
use crate::harness::memory::{MIB, Memory};
use crate::harness::pki::Pki;
use crate::harness::proxy::{Channel, Proxy};
use crate::harness::records::first_with_pages;
use crate::harness::stranger::Stranger;
use crate::harness::{SOON, wait_for, wait_until};
use dwcp_proto::ids::{LinkEpoch, SessionId, SessionNumber};
use dwcp_proto::wire::hello::{Hello, HostName};
use dwcp_proto::wire::peer::{PeerCoding, PeerMessage, RegionName};
use dwcp_proto::wire::preface::PREFACE_BYTES;
use dwcp_proto::wire::token::ResumeToken;
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;

/// A lab, and the keys of one more host.
fn lab_and_keys(flags: &[&str]) -> (Lab, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let pki = Pki::init(folder.path().join("ca"));
    let (source, sink, other) = (pki.host(SOURCE), pki.host(SINK), pki.host("host-c"));
    (Lab::start_in(folder, (Some(source), flags), (Some(sink), flags)), other)
}

fn hello(host: &str) -> Vec<u8> {
    Hello::ours(HostName::cut(host), [9; 16]).encode()
}

#[test]
fn a_peer_that_takes_the_connection_and_never_reads_costs_a_timeout() {
    let lab = Lab::start(&["--accept-timeout", "1s"]);
    let mute = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let transfer = lab.register("vm", Memory::filled(1, MIB, false));
    let peer = mute.local_addr().expect("an address").to_string();
    let open = lab.source.pending("session.open", json!({"region": "vm", "peer": peer}));
    let _held = mute.accept().expect("the source connects");
    let error = open.finish().expect_err("nobody answers");
    assert_eq!(error.code(), "peer_unreachable", "{error:?}");
    assert_eq!(error.detail("peer_code"), "peer_timeout", "{error:?}");
    lab.source.wait_counted("dwcp_peer_refused_total", &["peer_timeout"]);
    transfer.assert_source_intact();
    lab.good_session("after");
}

#[test]
fn a_peer_that_proves_its_name_and_falls_silent_is_given_up() {
    let (lab, keys) = lab_and_keys(&["--keepalive", "200ms", "--dead-after", "1s"]);
    let silent = Stranger::connect(lab.sink.listen, &keys, &hello("host-c"));
    lab.sink.wait_counted("dwcp_links_ended_total", &["peer_silent"]);
    assert_eq!(lab.sink.metrics().sum("dwcp_links", &[]), 0.0);
    lab.good_session("after");
    drop(silent);
}

/// More than all buffers between a daemon and a peer hold.
const MESSAGES: u32 = 2_000_000;

#[test]
fn a_peer_that_speaks_and_never_reads_falls_silent() {
    let (lab, keys) = lab_and_keys(&["--keepalive", "200ms", "--dead-after", "1s"]);
    let mut deaf = Stranger::connect(lab.sink.listen, &keys, &hello("host-c"));
    let mut ping = |stamp| deaf.say(&PeerMessage::Ping { stamp });
    let ended = (0..u64::from(MESSAGES)).any(|stamp| ping(stamp).is_err());
    assert!(ended, "the sink answers into a void");
    lab.sink.wait_counted("dwcp_links_ended_total", &["peer_silent"]);
    lab.good_session("after");
}

#[test]
fn a_peer_that_asks_and_never_reads_is_given_up() {
    let (lab, keys) = lab_and_keys(&["--keepalive", "200ms", "--dead-after", "1s"]);
    let mut deaf = Stranger::connect(lab.sink.listen, &keys, &hello("host-c"));
    let open = PeerMessage::LinkOpen { epoch: LinkEpoch(7), lanes: 1, streams: 1 };
    deaf.say(&open).expect("it leaves");
    let ended = (1..MESSAGES).any(|number| {
        let mut id = [0; 16];
        id[..4].copy_from_slice(&number.to_be_bytes());
        let question = PeerMessage::SessionOpen {
            session: SessionId(id),
            number: SessionNumber(number),
            region: RegionName::cut("absent"),
            pages: 1,
            coding: PeerCoding::Full,
        };
        deaf.say(&question).is_err()
    });
    assert!(ended, "the sink answers into a void");
    lab.sink.wait_counted("dwcp_links_ended_total", &["peer_does_not_read"]);
    lab.sink.wait_counted("dwcp_sessions_refused_total", &["not_allowed"]);
    lab.good_session("after");
}

#[test]
fn names_that_are_proven_but_too_many_are_refused() {
    let (lab, keys) = lab_and_keys(&["--links-max", "2"]);
    let connect = || Stranger::connect(lab.sink.listen, &keys, &hello("host-c"));
    let mut held = vec![connect(), connect()];
    wait_until("both links", SOON, || lab.sink.metrics().sum("dwcp_links", &[]) == 2.0);
    held.push(connect());
    lab.sink.wait_counted("dwcp_peer_refused_total", &["links_too_many"]);
    held.clear();
    wait_until("their end", SOON, || lab.sink.metrics().sum("dwcp_links", &[]) == 0.0);
    lab.good_session("after");
}

#[test]
fn a_record_of_another_link_ends_the_stream_that_brings_it() {
    let flags = ["--streams", "1"];
    let (lab, keys) = lab_and_keys(&flags);
    let folder = tempfile::tempdir().expect("a folder");
    let other = DaemonSpec::new(folder.path(), Some(keys)).with(&flags);
    let other = Daemon::start(other);
    let way = Proxy::start(lab.sink.listen);
    lab.proxy.record();
    let transfer = lab.register("vm", Memory::filled(1, 2 * MIB, false));
    let mut session = lab.must_open(&transfer);
    session.round().expect("a good round");
    let record = first_with_pages(&lab.proxy.recorded(Channel::Data)).expect("pages were sent");

    let (near, far) = (Memory::filled(2, 2 * MIB, false), Memory::empty(2 * MIB));
    let register = |daemon: &Daemon, params: Value, memory: &Memory| {
        let registered =
            daemon.client().call_with_fds("region.register", params, &memory.descriptors());
        registered.expect("a region");
    };
    register(&other, json!({"name": "other", "role": "source"}), &near);
    let params = json!({"name": "other", "role": "sink", "accept_from": ["host-c"]});
    register(&lab.sink, params, &far);
    let params = json!({"region": "other", "peer": way.address().to_string()});
    let opened = other.must("session.open", params);
    way.inject(record);
    let round = other.call("session.round", json!({"session": opened["session"]}));
    let error = round.expect_err("the only stream is gone");
    assert!(["session_failed", "link_lost"].contains(&error.code()), "{error:?}");
    // By its counter, or by its seal, which is of other keys.
    let reasons = ["record_altered", "record_replayed", "record_out_of_place"];
    lab.sink.wait_counted("dwcp_streams_ended_total", &reasons);
    assert!(far.written_pages().is_empty(), "nothing of it is written");
    session.finish_committed();
    transfer.assert_equal();
}

#[test]
fn what_was_recorded_of_a_session_is_of_no_use_to_anybody() {
    let (lab, _) = lab_and_keys(&["--streams", "1"]);
    lab.proxy.record();
    lab.good_session("first");
    let recorded = |channel| lab.proxy.recorded(channel);
    let (data, control) = (recorded(Channel::Data), recorded(Channel::Control));
    let play = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(lab.sink.listen).expect("the port is open");
        stream.set_read_timeout(Some(SOON)).expect("a bound");
        // The daemon may end it before all was said.
        let _ = stream.write_all(bytes);
        let _ = stream.read_to_end(&mut Vec::new());
    };
    let sessions = |lab: &Lab| lab.sink.must("session.list", json!({}));
    let before = sessions(&lab);
    let refusals = || lab.sink.metrics().sum("dwcp_peer_refused_total", &[]);
    assert_eq!(refusals(), 0.0);
    // The same opening of the stream again, and a later one, which has keys of its own.
    play(&data);
    lab.sink.wait_counted("dwcp_peer_refused_total", &["stream_unknown"]);
    let mut later = data.clone();
    later[PREFACE_BYTES - 24..PREFACE_BYTES - 20].copy_from_slice(&9_u32.to_be_bytes());
    play(&later);
    wait_until("the later opening's end", SOON, || refusals() >= 2.0);
    play(&control);
    lab.sink.wait_counted("dwcp_peer_refused_total", &["tls_failed", "tls_alert"]);
    // The link that they are of goes on; when it is over, they belong to nobody.
    lab.good_session("second");
    lab.proxy.cut();
    wait_until("the link's end", SOON, || lab.sink.metrics().sum("dwcp_links", &[]) == 0.0);
    let refused = refusals();
    play(&data);
    wait_until("the refusal", SOON, || refusals() > refused);
    let after = sessions(&lab);
    let ids = |list: &Value| list.as_array().expect("a list").len();
    assert_eq!(ids(&after), ids(&before) + 1, "the second session alone came");
    lab.good_session("third");
}

#[test]
fn nobody_resumes_a_link_without_its_token() {
    let folder = tempfile::tempdir().expect("a folder");
    let pki = Pki::init(folder.path().join("ca"));
    let (source, sink, other) = (pki.host(SOURCE), pki.host(SINK), pki.host("host-c"));
    let stolen = source.clone();
    let lab = Lab::start_in(folder, (Some(source), &[]), (Some(sink), &[]));
    let transfer = lab.register("vm", Memory::filled(1, MIB, false));
    let mut session = lab.must_open(&transfer);
    let epoch = lab.source.must("net.show", json!({}))[0]["epoch"].as_u64().expect("an epoch");
    let id = SessionId([1; 16]);
    let cases = [
        ("host-c", &other, epoch, "resume_unknown"),
        (SOURCE, &stolen, epoch + 1, "resume_unknown"),
        (SOURCE, &stolen, epoch, "resume_token_wrong"),
    ];
    for (name, keys, epoch, refusal) in cases {
        let mut peer = Stranger::connect(lab.sink.listen, keys, &hello(name));
        peer.hear_hello();
        let (epoch, token) = (LinkEpoch(epoch), ResumeToken([7; 16]));
        let resume = PeerMessage::LinkResume { epoch, token, sessions: vec![id] };
        peer.say(&resume).expect("it leaves");
        let answer = wait_for("the refusal", SOON, || match peer.hear() {
            PeerMessage::LinkRefuse { code, .. } => Some(code.as_str().to_owned()),
            PeerMessage::Ping { .. } => None,
            other => panic!("{name}: {other:?}"),
        });
        assert_eq!(answer, refusal, "{name}");
        lab.sink.wait_counted("dwcp_peer_refused_total", &[refusal]);
    }
    session.round().expect("the link is untouched");
    session.finish_committed();
    transfer.assert_equal();
}

#[test]
fn a_daemon_without_a_descriptor_left_says_so_and_goes_on_when_it_has_some() {
    const ENOUGH: u64 = 1024;
    let lab = Lab::start(&["--accept-timeout", "1s"]);
    let transfer = lab.register("vm", Memory::filled(1, MIB, false));
    // No number is below three, so that nothing can be opened.
    lab.sink.bound_descriptors(3);
    let error = lab.open(&transfer).expect_err("the sink can't take the connection");
    assert_eq!(error.code(), "peer_unreachable", "{error:?}");
    lab.source.wait_counted("dwcp_peer_refused_total", &["peer_timeout", "peer_closed"]);
    lab.sink.bound_descriptors(ENOUGH);
    lab.sink.wait_counted("dwcp_accept_failures_total", &["peer_port"]);

    let mut client = lab.source.client();
    client.must("status", json!({}));
    lab.source.bound_descriptors(3);
    let error = client.call("session.open", lab.open_params(&transfer)).expect_err("no socket");
    assert_eq!(error.code(), "peer_unreachable", "{error:?}");
    lab.source.bound_descriptors(ENOUGH);
    transfer.assert_source_intact();
    let mut session = lab.must_open(&transfer);
    session.finish_committed();
    transfer.assert_equal();
}

#[test]
fn a_session_beyond_the_memory_of_either_end_is_refused_and_counted() {
    const REGION_BYTES: u64 = 32 << 30;
    let lab = Lab::start_with(&["--memory", "4GiB"], &[]);
    // Nothing of it is ever touched, so that it takes no memory of this machine.
    let transfer = lab.register("large", Memory::empty(REGION_BYTES));
    let error = lab.open(&transfer).expect_err("the sink has no room for its tables");
    assert_eq!(error.code(), "peer_refused", "{error:?}");
    assert!(format!("{error:?}").contains("(memory_budget)"), "{error:?}");
    lab.sink.wait_counted("dwcp_sessions_refused_total", &["memory_budget"]);
    lab.good_session("beside");

    let lab = Lab::start(&[]);
    let transfer = lab.register("large", Memory::empty(REGION_BYTES));
    let error = lab.open(&transfer).expect_err("the source has no room for its tables");
    assert_eq!(error.code(), "memory_budget", "{error:?}");
    lab.source.wait_counted("dwcp_api_errors_total", &["memory_budget"]);
    lab.good_session("beside");
}
