//! A guest moves to and fro, and every page is right.

use super::harness::{At, Hosts};
use super::pair::Pair;
use super::spawned::Spawned;
use dwcp_tools::lab::Guest;
use serde_json::json;

/// The round trip of the first test's link.
const RTT_MIN_NANOS: u64 = 10_000_000;

/// Both journals say that it is done, and no end is in doubt.
fn assert_committed(hosts: &Hosts) {
    for at in [At::A, At::B] {
        let record = hosts.record(at).expect("a record");
        assert_eq!(record["state"], "committed", "{record}");
        assert_eq!(hosts.daemon(at).must("status", json!({}))["health"], "good");
    }
}

#[test]
fn a_dirtying_guest_moves_to_and_fro_and_runs_on_each_time() {
    let Some(hosts) = Hosts::up("rate=1g delay=5ms") else { return };
    let guest = Guest::new(&hosts.lab, "dirty:24,400,3").unwrap().with_ram_mib(96);
    let mut pair = Pair::boot(&hosts, &guest, At::A);
    for round in 0..3 {
        if round > 0 {
            pair = pair.turn(&hosts);
        }
        let told = hosts.migrate(pair.from, &[]);
        assert_eq!(pair.states(), ("postmigrate".to_owned(), "running".to_owned()), "{told}");
        assert_committed(&hosts);
        pair.assert_runs_at_sink();
        println!("move {round}: blackout {:?}, {told}", pair.blackout());
        assert!(told["blackout_ms"].as_u64().is_some_and(|ms| ms > 0), "{told}");
        assert!(told["opaque"].is_null(), "the stream was read: {told}");
        let rtt = told["counters"]["rtt_min_nanoseconds"].as_u64();
        assert!(rtt >= Some(RTT_MIN_NANOS), "no ack comes before its way allows: {told}");
    }
}

#[test]
fn a_guest_that_arrives_paused_has_every_page_of_the_source() {
    // The other tests have the levels that the link chooses, which are lower on this one.
    let Some(hosts) = Hosts::up_with("rate=1g delay=5ms", &["--zstd-level", "6"]) else { return };
    let guest = Guest::new(&hosts.lab, "dirty:24,800,3").unwrap().with_ram_mib(96);
    let mut pair = Pair::boot(&hosts, &guest, At::A);
    for mode in ["full", "passthrough"] {
        let told = hosts.migrate(pair.from, &["--paused", "--mode", mode]);
        assert_eq!(pair.states(), ("postmigrate".to_owned(), "paused".to_owned()), "{told}");
        pair.assert_same_memory();
        assert_committed(&hosts);
        pair.sink.qmp().execute("cont", json!({})).unwrap();
        pair.assert_runs_at_sink();
        pair = pair.turn(&hosts);
    }
}

#[test]
fn a_guest_that_its_user_has_paused_moves_and_stays_paused_until_its_user_starts_it() {
    let Some(hosts) = Hosts::up("rate=1g delay=5ms") else { return };
    let guest = Guest::new(&hosts.lab, "dirty:24,800,3").unwrap().with_ram_mib(96);
    let mut pair = Pair::boot(&hosts, &guest, At::A);
    pair.source.qmp().execute("stop", json!({})).unwrap();
    for round in 0..2 {
        if round > 0 {
            pair = pair.turn(&hosts);
        }
        let told = hosts.migrate(pair.from, &[]);
        assert_eq!(told["paused"], true, "{told}");
        assert!(told["blackout_ms"].is_null(), "it did not run before: {told}");
        assert_eq!(pair.states(), ("postmigrate".to_owned(), "paused".to_owned()), "{told}");
        assert_eq!(pair.look(), 0, "nobody runs it");
        pair.assert_same_memory();
        assert_committed(&hosts);
    }
    // Not even a daemon that starts again does.
    let mut hosts = hosts;
    hosts.daemon_mut(At::A).kill();
    hosts.daemon_mut(At::A).restart();
    let record = hosts.record(At::A).expect("a record");
    assert_eq!(record["vm"]["guest"], "paused", "{record}");
    let resumed = pair.sink.qmp().events().unwrap().iter().any(|event| event.name == "RESUME");
    assert!(!resumed, "nobody has started it");
    pair.sink.qmp().execute("cont", json!({})).unwrap();
    pair.assert_runs_at_sink();
}

#[test]
fn a_daemon_starts_the_waiting_qemu_itself() {
    let Some(hosts) = Hosts::up("rate=1g delay=5ms") else { return };
    let guest = Guest::new(&hosts.lab, "idle").unwrap().with_ram_mib(96);
    let mut source = hosts.boot(&guest, At::A, &[]);
    let spawned = Spawned::attach(&hosts, &guest, At::B, &[]);
    let told = hosts.migrate(At::A, &[]);
    assert_eq!(source.qmp().status().unwrap(), "postmigrate", "{told}");
    assert_eq!(spawned.qmp().unwrap().status().unwrap(), "running");
}

#[test]
#[ignore = "takes minutes and `cargo xtask lab setup --real`; part of `cargo xtask ci --full`"]
fn a_real_workload_moves_unhurt() {
    let Some(hosts) = Hosts::up("rate=1g delay=20ms") else { return };
    let guest = Guest::new(&hosts.lab, "redis").unwrap();
    let mut pair = Pair::boot(&hosts, &guest, At::A);
    for round in 0..3 {
        if round > 0 {
            pair = pair.turn(&hosts);
        }
        let told = hosts.migrate(pair.from, &[]);
        pair.assert_runs_at_sink();
        println!("redis {round}: blackout {:?}, {told}", pair.blackout());
    }
}
