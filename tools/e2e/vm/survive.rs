//! A link that goes dead under a migration: the guest does not feel it while it runs, and stands
//! still no longer than it may.

use super::harness::{At, Hosts, NAME, told};
use super::is_full;
use super::pair::Pair;
use crate::harness::client::Client;
use crate::harness::{observe, wait_until};
use dwcp_tools::lab::Guest;
use serde_json::json;
use std::time::{Duration, Instant};

/// How long the link is dead; in a full run longer than `--dead-after`.
const DEAD_FOR: Duration = Duration::from_secs(15);
const DEAD_FOR_FULL: Duration = Duration::from_secs(60);

/// Traffic is back within a second and two round trips of 40 ms after healing. The rest is for a
/// machine that emulates two guests beside the daemons.
const BACK_WITHIN: Duration = Duration::from_secs(4);

/// Bytes that the sink's QEMU has taken, when the next progress tells.
fn delivered(client: &mut Client) -> u64 {
    let params = told(client, "progress", |method, params| {
        method == "session.progress" && params["vm"]["name"] == json!(NAME)
    });
    params["counters"]["delivered_bytes"].as_u64().expect("a counter")
}

#[test]
fn a_guest_that_runs_does_not_feel_a_dead_link_and_arrives_with_every_page() {
    let Some(hosts) = Hosts::up("rate=60m delay=20ms") else { return };
    let guest = Guest::new(&hosts.lab, "dirty:24,400,3").unwrap().with_ram_mib(96);
    let mut pair = Pair::boot(&hosts, &guest, At::A);
    let mut listener = hosts.listen(At::A);
    let migrate = hosts.start_migrate(At::A, &["--downtime-limit", "300ms", "--paused"]);
    while delivered(&mut listener) < 4 << 20 {}
    hosts.link("up=0 flush=1");
    let dead_for = if is_full() { DEAD_FOR_FULL } else { DEAD_FOR };
    observe(dead_for, || {
        assert_eq!(pair.look(), 1);
        assert_eq!(pair.states().0, "running", "the guest feels nothing");
    });
    if is_full() {
        for at in [At::A, At::B] {
            let record = hosts.record(at).expect("a record");
            assert_eq!(record["state"], "parked", "{record}");
        }
    }
    // What was told while the link was dead is of no interest any more.
    let mut listener = hosts.listen(At::A);
    let before = delivered(&mut listener);
    hosts.link("up=1");
    let healed = Instant::now();
    while delivered(&mut listener) <= before {}
    let back = healed.elapsed();
    println!("dead for {dead_for:?}, traffic back {back:?} after healing");
    assert!(back <= BACK_WITHIN, "traffic is back {back:?} after healing");
    let end = migrate.finish();
    assert_eq!(end.code, Some(0), "{end:?}\n{}\n{}", hosts.tail(At::A), hosts.tail(At::B));
    assert_eq!(pair.states(), ("postmigrate".to_owned(), "paused".to_owned()));
    pair.assert_same_memory();
    for at in [At::A, At::B] {
        let sum = |family: &str| hosts.daemon(at).metrics().sum(family, &[]);
        let (parked, resumed) = (sum("dwcp_links_parked_total"), sum("dwcp_links_resumed_total"));
        println!("{at:?}: parked {parked}, resumed {resumed}");
        assert!(parked == resumed && (parked > 0.0 || !is_full()));
    }
    let events = pair.source.qmp().events().unwrap();
    let stops = events.iter().filter(|event| event.name == "STOP").count();
    assert_eq!(stops, 1, "it stood still for the switchover alone");
    pair.sink.qmp().execute("cont", json!({})).unwrap();
    pair.assert_runs_at_sink();
}

#[test]
fn a_guest_that_stands_still_runs_on_at_the_source_when_the_link_dies() {
    let Some(hosts) = Hosts::up("rate=1g delay=100ms") else { return };
    let guest = Guest::new(&hosts.lab, "dirty:24,400,3").unwrap().with_ram_mib(96);
    let mut pair = Pair::boot(&hosts, &guest, At::A);
    let migrate = hosts.start_migrate(At::A, &["--downtime-limit", "2s"]);
    pair.wait_stopped();
    hosts.link("up=0 flush=1");
    let end = migrate.finish();
    println!("{end:?}");
    if end.code == Some(0) || end.code == Some(5) {
        // It had been given up before the link died: the rules of a commit hold.
        return;
    }
    wait_until("the guest at the source", Duration::from_secs(10), || pair.look() == 1);
    let stop = pair.source.qmp().stamp_of("STOP").expect("it stopped");
    let resume = pair.source.qmp().stamp_of("RESUME").expect("it runs on");
    let stood = resume.saturating_sub(stop);
    println!("the guest stood still for {stood:?}");
    // `--blackout-max` is 2 s; the peer was heard last a ping's period after the stop at most.
    assert!(stood <= Duration::from_millis(5000), "{stood:?}");
    pair.assert_runs_at_source();
    hosts.link("up=1");
    wait_until("the sink to hear of it", Duration::from_secs(60), || {
        let record = hosts.record(At::B).expect("a record");
        ["aborted", "failed"].iter().any(|state| record["state"] == *state)
    });
    let pair = pair.renew_sink(&hosts);
    hosts.migrate(At::A, &[]);
    drop(pair);
}
