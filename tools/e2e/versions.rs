//! Both ends of a link are of different wire versions: each way everything moves as it did in the
//! version of the older one, and what only the newer one has is off on the link.
//!
//! The older binary is built by `cargo xtask previous`; passed over visibly without it.

use crate::harness::binary::{previous, today};
use crate::harness::carrier::Carriers;
use crate::harness::daemon::Daemon;
use crate::harness::lab::{Lab, SINK, SOURCE};
use crate::harness::memory::{MIB, Memory};
use crate::harness::pki::Pki;
use crate::harness::{SOON, wait_until};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::path::PathBuf;

/// The features of wire version 1, of hosts with certificates.
pub(crate) const FIRST: [&str; 4] = ["pages_delta", "pages_zstd", "stream", "resume"];

/// Long enough to be met by a writer, short enough to be quick.
const REGION: u64 = 24 * MIB;

/// Source and sink: the older and today's, each way.
fn mixed() -> Option<[[PathBuf; 2]; 2]> {
    let old = previous()?;
    Some([[old.clone(), today()], [today(), old]])
}

/// The end of today's binary shows what both ends have.
fn assert_first_version(daemon: &Daemon) {
    let links = daemon.must("net.show", json!({}));
    let link = &links.as_array().expect("a list")[0];
    // The older binary's page has no word of it.
    if link["wire_version"] != Value::Null {
        assert_eq!((&link["wire_version"], &link["features"]), (&json!(1), &json!(FIRST)));
    }
}

#[test]
fn two_of_today_have_version_2_and_all_its_features() {
    let lab = Lab::start(&[]);
    let transfer = lab.register("vm", Memory::filled(1, 2 * MIB, false));
    let _session = lab.must_open(&transfer);
    for daemon in [&lab.source, &lab.sink] {
        let link = &daemon.must("net.show", json!({}))[0];
        assert_eq!(link["wire_version"], 2, "{link}");
        let features = link["features"].as_array().expect("a list").clone();
        let has = |name: &str| features.contains(&json!(name));
        assert!(FIRST.iter().all(|name| has(name)) && has("resume_regions"), "{link}");
        assert!(has("resume_carriers"), "{link}");
    }
    let table = std::process::Command::new(today())
        .args(["net", "--socket"])
        .arg(lab.source.spec.socket())
        .output()
        .expect("it runs");
    let table = String::from_utf8(table.stdout).expect("text");
    assert!(table.contains("WIRE"), "{table}");
}

#[test]
fn a_region_with_a_live_writer_moves_between_versions_each_way() {
    let Some(mixed) = mixed() else { return };
    for (seed, binaries) in (2..).zip(&mixed) {
        let lab = Lab::start_of(binaries, &[]);
        let transfer = lab.register("vm", Memory::filled(seed, REGION, true));
        let writer = transfer.source.start_writer(seed + 10, 4);
        let mut session = lab.must_open(&transfer);
        assert_first_version(&lab.source);
        assert_first_version(&lab.sink);
        for _ in 0..3 {
            session.round().expect("a round");
        }
        writer.stop();
        let end = session.finish_committed();
        transfer.assert_equal();
        transfer.assert_source_intact();
        assert_eq!(end["counters"]["nacks"], 0, "{end}");
        assert!(end["counters"]["delta_pages"].as_u64() > Some(0), "{end}");
        wait_until("the sink's record", SOON, || lab.sink.state_of(&session.id) == "committed");
    }
}

#[test]
fn what_only_one_end_has_is_off_a_region_does_not_wait_for_its_link() {
    let Some(mixed) = mixed() else { return };
    for (seed, binaries) in (4..).zip(&mixed) {
        let lab = Lab::start_of(binaries, &["--resume-window", "10min"]);
        let transfer = lab.register("vm", Memory::filled(seed, REGION, true));
        let session = lab.must_open(&transfer);
        let round = lab.hold_round(&session);
        lab.proxy.cut();
        let error = round.finish().expect_err("its link is lost");
        assert_eq!(error.code(), "session_failed", "{error:?}");
        lab.proxy.release_all();
        transfer.assert_source_intact();
        wait_until("the sink's end", SOON, || lab.sink.state_of(&session.id) == "failed");
        lab.good_session("after");
    }
}

#[test]
fn carriers_of_different_versions_carry_both_ways() {
    let Some(mixed) = mixed() else { return };
    for binaries in &mixed {
        let folder = tempfile::tempdir().expect("a folder");
        let pki = Pki::init(folder.path().join("pki"));
        let (source, sink) = (pki.host(SOURCE), pki.host(SINK));
        let ends = [source.as_path(), sink.as_path()];
        let carriers = Carriers::start_of(folder.path(), binaries, ends);
        let listener = carriers.listen();
        let (mut near, mut far) = carriers.channel(&listener);
        let forth: Vec<u8> = (0..3_000_000_u32).map(|at| (at / 7 % 251) as u8).collect();
        let writer = {
            let (mut near, forth) = (near.try_clone().expect("a descriptor"), forth.clone());
            std::thread::spawn(move || {
                near.write_all(&forth).expect("the carrier takes it");
                near.shutdown(Shutdown::Write).expect("a connected socket");
            })
        };
        let mut got = Vec::new();
        far.read_to_end(&mut got).expect("the carrier goes on");
        assert!(got == forth, "{} of {} bytes", got.len(), forth.len());
        far.write_all(b"answer").expect("the carrier takes it");
        far.shutdown(Shutdown::Both).expect("a connected socket");
        let mut back = Vec::new();
        near.read_to_end(&mut back).expect("the carrier goes on");
        assert_eq!(back, b"answer");
        writer.join().expect("it wrote everything");
        let (near, far) = (carriers.source.ended_well(), carriers.sink.ended_well());
        assert_eq!(near["session"], far["session"]);
    }
}
