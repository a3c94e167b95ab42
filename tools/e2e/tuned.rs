//! The number of streams that a link finds out by itself, as people see it.

use crate::harness::lab::Lab;
use crate::harness::memory::{MIB, Memory};
use crate::harness::{SOON, wait_until};
use serde_json::{Value, json};

/// Bytes per second of a path that a link can't fill faster, so that the round lasts some seconds.
const RATE: u64 = 5_000_000;

#[test]
fn more_streams_are_opened_and_tried_and_the_metrics_say_so() {
    // A congestion control that does not fill every path alone begins with four.
    let flags = ["--streams", "auto", "--congestion", "cubic", "--links-max", "1"];
    let lab = Lab::start(&[&flags[..], &["--arena", "72MiB"]].concat());
    lab.proxy.slow_down(RATE);
    let transfer = lab.register("vm", Memory::random(5, 32 * MIB));
    let params = json!({"region": "vm", "peer": lab.peer(), "coding": "passthrough"});
    let opened = lab.source.must("session.open", params);
    let id = json!({"session": opened["session"]});
    let streams =
        |kind: &str| lab.source.metrics().sum("dwcp_lane_streams", &[&format!("kind=\"{kind}\"")]);
    let round = lab.source.pending("session.round", id.clone());
    wait_until("the number to begin with", SOON, || streams("carrying") == 4.0);
    wait_until("twice as many", SOON, || streams("carrying") >= 8.0);
    assert!(streams("open") >= 8.0, "what carries is open");
    let is_up = |stream: &&Value| stream["up"] == json!(true);
    wait_until("their connections", SOON, || {
        let links = lab.source.must("net.show", json!({}));
        let all = links[0]["streams"].as_array().expect("streams");
        all.iter().filter(is_up).count() >= 8
    });
    assert!(!round.is_over(), "they were opened while pages moved");
    lab.proxy.slow_down(u64::MAX);
    round.finish().expect("the round ends");
    lab.source.must("session.finish", id);
    transfer.assert_equal();
}
