//! A slow link and a guest that writes: the backlog stays bounded, so the guest stands still for as
//! long as was said and not for as long as a buffer takes to drain.

use super::harness::{At, Hosts, NAME};
use super::pair::Pair;
use dwcp_tools::lab::Guest;
use serde_json::json;

/// 100 Mbit/s.
const RATE_BYTES_PER_S: u64 = 12_500_000;
/// The harness's `--window`: no more is held for a session at any time.
const WINDOW_BYTES: u64 = 8 << 20;
/// A round trip of 100 ms.
const RTT_MS: u64 = 100;
/// What may wait beyond what the path holds.
const BACKLOG_MS: u64 = 50;

#[test]
fn on_a_slow_link_the_backlog_is_bounded_and_the_blackout_is_what_the_events_say() {
    let Some(hosts) = Hosts::up("rate=100m delay=50ms") else { return };
    let guest = Guest::new(&hosts.lab, "dirty:48,400,3").unwrap().with_ram_mib(128);
    let mut pair = Pair::boot(&hosts, &guest, At::A);
    let mut listener = hosts.listen(At::A);
    let mut migrate = hosts.start_migrate(At::A, &["--downtime-limit", "300ms"]);
    let (mut backlogs, mut stopped_after) = (Vec::new(), None);
    while !migrate.is_over() {
        let Some((method, params)) = listener.notification(std::time::Duration::from_millis(100))
        else {
            continue;
        };
        if method == "session.state" && params["state"] == json!("last_round") {
            stopped_after = Some(backlogs.len());
        }
        if method == "session.progress" && params["vm"]["name"] == json!(NAME) {
            backlogs.push(params["counters"]["undelivered_bytes"].as_u64().expect("a counter"));
        }
    }
    let end = migrate.finish();
    assert_eq!(end.code, Some(0), "{end:?}");
    pair.assert_runs_at_sink();
    // While the rate is being found out the window may overshoot, up to what `--window` allows.
    let most = backlogs.iter().copied().max().expect("there was progress");
    assert!(most <= WINDOW_BYTES, "{most} bytes were accepted and not delivered");
    // When the guest is stopped: one bandwidth-delay product and 50 ms of the rate, both taken for
    // a quarter more at the most, and two records: coding goes on while the window is not full.
    let bound = RATE_BYTES_PER_S * (RTT_MS + BACKLOG_MS) / 1000 * 5 / 4 + (1 << 19);
    let stopped_after = stopped_after.expect("the stop is told");
    let late = &backlogs[stopped_after.saturating_sub(2)..];
    let steady = late.iter().copied().max().expect("there was progress at the end");
    let blackout = pair.blackout();
    println!(
        "backlog at most {most}, at the end {steady} of {bound} bytes; {blackout:?} {}",
        end.json
    );
    assert!(steady <= bound, "{backlogs:?}, stopped after {stopped_after}");
    let said = end.json["blackout_ms"].as_u64().expect("it is said");
    let seen = u64::try_from(blackout.as_millis()).expect("short");
    assert!(said.abs_diff(seen) <= 5, "{said} ms said, {seen} ms seen");
}
