//! Sessions of regions whose link goes dead: they wait and go on, and every page is right.

use crate::harness::lab::Lab;
use crate::harness::memory::{MIB, Memory};
use crate::harness::{SOON, observe, wait_until};
use dwcp_tools::lab::{Net, NetSpec, networks_for_test};
use std::sync::Arc;
use std::time::Duration;

/// Longer than the silence after which another connection is tried.
const DEAD_FOR: Duration = Duration::from_secs(6);

/// Two hosts with a slow link between them; None where none can be made, which is said.
fn net() -> Option<Arc<Net>> {
    let spec = NetSpec::pair("rate=80m delay=10ms").expect("words of a link");
    networks_for_test().then(|| Arc::new(Net::up(&spec).expect("a network")))
}

#[test]
fn a_region_with_a_live_writer_does_not_feel_a_dead_link() {
    let Some(net) = net() else { return };
    let lab = Lab::start_on(&net, &["--resume-window", "1min"]);
    let transfer = lab.register("vm", Memory::random(21, 32 * MIB));
    let writer = transfer.source.start_writer(22, 2);
    let mut session = lab.must_open(&transfer);
    let round = lab.source.pending("session.round", session.params());
    wait_until("pages are under way", SOON, || session.counter("frames") > 8);
    net.link("ab").set("up=0 flush=1").expect("words of a link");
    observe(DEAD_FOR, || {
        let state = lab.source.state_of(&session.id);
        assert!(["precopy", "parked"].contains(&state.as_str()), "{state}");
    });
    net.link("ab").set("up=1").expect("words of a link");
    round.finish().expect("the round goes on");
    for daemon in [&lab.source, &lab.sink] {
        let resumed = daemon.metrics().sum("dwcp_links_resumed_total", &[]);
        assert!(resumed >= 1.0, "it went on over another connection: {resumed}");
    }
    session.round().expect("a round");
    writer.stop();
    session.finish_committed();
    transfer.assert_equal();
    transfer.assert_source_intact();
}

#[test]
fn without_a_window_a_dead_link_ends_a_region_s_session() {
    let Some(net) = net() else { return };
    let lab = Lab::start_on(&net, &["--resume-window", "0s", "--dead-after", "3s"]);
    let transfer = lab.register("vm", Memory::random(23, 32 * MIB));
    let session = lab.must_open(&transfer);
    let round = lab.source.pending("session.round", session.params());
    net.link("ab").set("up=0 flush=1").expect("words of a link");
    let error = round.finish().expect_err("its link is lost");
    assert_eq!(error.code(), "session_failed", "{error:?}");
    transfer.assert_source_intact();
    wait_until("the sink's end", SOON, || lab.sink.state_of(&session.id) == "failed");
}
