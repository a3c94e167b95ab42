//! A sink that is slow or stands still: the source waits in bounded memory, then goes on.

use crate::harness::daemon::Daemon;
use crate::harness::lab::Lab;
use crate::harness::memory::{MIB, Memory};
use crate::harness::proxy::{Channel, Way};
use crate::harness::{SOON, observe, wait_until};
use dwcp_proto::wire::limits::RECORD_BYTES_MAX;
use serde_json::json;
use std::time::Duration;

/// How long the sink stands still.
const STOPPED: Duration = Duration::from_secs(10);

/// The window that the daemons of this file run with.
const WINDOW_BYTES: u64 = 8 * MIB;

/// What a daemon may grow by while it waits. Everything that a session needs is reserved when it
/// opens; what is left are pages touched for the first time: arena slots under way (the arena has
/// 24 MiB, half of it for sending), the bases that `--base-budget` allows (4 MiB) and some heap.
const GROWTH_BYTES_MAX: u64 = 24 * MIB;

/// The daemon's own memory: regions belong to their owners and are counted apart, as shared.
fn own_bytes(daemon: &Daemon) -> u64 {
    daemon.memory_bytes("RssAnon")
}

#[test]
fn a_sink_that_stands_still_for_ten_seconds_costs_time_and_no_memory() {
    let lab = Lab::start(&["--base-budget", "4MiB"]);
    let transfer = lab.register("vm", Memory::random(1, 48 * MIB));
    let mut session = lab.must_open(&transfer);
    let before = own_bytes(&lab.source);
    let round = lab.source.pending("session.round", session.params());
    let enough = || lab.proxy.passed(Channel::Data, Way::Forth) >= 4 * MIB;
    wait_until("the round is under way", SOON, enough);
    lab.sink.stop();
    // What was under way may still leave: a window, and what the proxy's sockets take.
    let most = session.counter("wire_bytes") + WINDOW_BYTES + 16 * MIB;
    observe(STOPPED, || {
        assert!(!round.is_over(), "no round ends without its acknowledgements");
        let record = lab.source.session(&session.id).expect("the source answers meanwhile");
        assert_eq!(record["state"], "precopy");
        let grown = own_bytes(&lab.source).saturating_sub(before);
        assert!(grown <= GROWTH_BYTES_MAX, "the source grew by {grown} bytes");
    });
    assert!(session.counter("wire_bytes") <= most, "the source waits");
    lab.sink.go_on();
    round.finish().expect("the round goes on");
    session.finish_committed();
    transfer.assert_equal();
    let grown = own_bytes(&lab.source).saturating_sub(before);
    assert!(grown <= GROWTH_BYTES_MAX, "the source grew by {grown} bytes");
}

#[test]
fn a_slow_path_bounds_memory_and_backlog() {
    const RATE: u64 = 5_000_000;
    // Half a second of the path: what a guest's pause may at most inherit from the round before.
    // Design: one BDP and 50 ms of the rate; kernel and proxy sockets on the path add the rest.
    const IN_FLIGHT_BYTES_MAX: u64 = RATE / 2;
    const KNOWN_AFTER_BYTES: u64 = 18 * MIB;
    let lab = Lab::start(&["--base-budget", "4MiB"]);
    lab.proxy.slow_down(RATE);
    let transfer = lab.register("vm", Memory::random(2, 28 * MIB));
    let params = json!({"region": "vm", "peer": lab.peer(), "coding": "passthrough"});
    let opened = lab.source.must("session.open", params);
    let id = json!({"session": opened["session"]});
    let before = own_bytes(&lab.source);
    let round = lab.source.pending("session.round", id.clone());
    let (mut most_in_flight, mut most_backlog) = (0, 0);
    wait_until("the round's end", 3 * SOON, || {
        let record = lab.source.must("session.show", id.clone());
        let backlog = record["counters"]["backlog_bytes"].as_u64().expect("a counter");
        let links = lab.source.must("net.show", json!({}));
        let streams = links[0]["streams"].as_array().expect("streams").iter();
        let in_flight: u64 = streams.filter_map(|s| s["in_flight_bytes"].as_u64()).sum();
        // The window is looked at before a frame is sent: it may be exceeded by one record.
        assert!(in_flight <= WINDOW_BYTES + RECORD_BYTES_MAX as u64, "{in_flight} bytes in flight");
        let passed = lab.proxy.passed(Channel::Data, Way::Forth);
        // Until the rate is known the window grows by trial.
        if passed > KNOWN_AFTER_BYTES {
            most_in_flight = most_in_flight.max(in_flight);
            most_backlog = most_backlog.max(backlog);
        }
        round.is_over()
    });
    let reply = round.finish().expect("the round ends");
    let least = transfer.source.pages() as f64 * 4096.0 / RATE as f64 * 0.8;
    let seconds = reply["seconds"].as_f64().expect("a time");
    assert!(seconds >= least, "{seconds} s is less than the path can do ({least} s)");
    println!("in flight at most {most_in_flight}, backlog {most_backlog} bytes, {seconds} s");
    assert!(most_backlog <= IN_FLIGHT_BYTES_MAX, "a backlog of {most_backlog} bytes");
    assert!(most_in_flight <= IN_FLIGHT_BYTES_MAX, "{most_in_flight} bytes in flight");
    let grown = own_bytes(&lab.source).saturating_sub(before);
    assert!(grown <= GROWTH_BYTES_MAX, "the source grew by {grown} bytes");
    let end = lab.source.must("session.finish", id);
    assert_eq!(end["state"], "committed");
    transfer.assert_equal();
}

#[test]
fn a_sink_that_stays_silent_is_given_up_and_the_source_keeps_its_region() {
    let lab = Lab::start(&["--keepalive", "200ms", "--dead-after", "1s"]);
    let transfer = lab.register("vm", Memory::random(3, 16 * MIB));
    let session = lab.must_open(&transfer);
    let round = lab.hold_round(&session);
    lab.sink.stop();
    let error = round.finish().expect_err("the sink is taken for dead");
    assert_eq!(error.code(), "session_failed", "{error:?}");
    let record = lab.source.session(&session.id).expect("a record");
    let reason = record["reason"].as_str().expect("a reason");
    assert!(reason.contains("silent"), "{record}");
    let ended = lab.source.metrics().sum("dwcp_links_ended_total", &["reason=\"peer_silent\""]);
    assert!(ended >= 1.0, "it is counted");
    transfer.assert_source_intact();
    lab.sink.go_on();
    lab.proxy.release_all();
    wait_until("the sink's end of it", SOON, || lab.sink.state_of(&session.id) == "failed");
    lab.good_session("after");
}
