//! A broken invariant of the data plane: the daemon ends at once and says why; its peer sees a cut.

use crate::harness::lab::Lab;
use crate::harness::memory::{MIB, Memory};
use crate::harness::{SOON, wait_until};
use serde_json::json;
use std::os::unix::process::ExitStatusExt as _;

#[test]
fn a_broken_invariant_aborts_the_daemon_and_the_peer_sees_a_clean_cut() {
    let mut lab = Lab::start_with(&[], &["--test-break-invariant"]);
    let transfer = lab.register("vm", Memory::filled(1, 4 * MIB, false));
    let opened = lab.open(&transfer);
    let status = lab.sink.ended();
    assert_eq!(status.signal(), Some(6), "SIGABRT: {status}");
    let log = lab.sink.log();
    let diagnosis = log.lines().find(|line| line.contains("an invariant is broken"));
    let diagnosis = diagnosis.unwrap_or_else(|| panic!("no diagnosis in:\n{log}"));
    assert!(diagnosis.contains("shard-0"), "it names the shard: {diagnosis}");
    let outcome = opened.and_then(|mut session| session.round());
    let error = outcome.expect_err("the sink is gone");
    let codes = ["session_failed", "link_lost", "peer_unreachable", "session_state"];
    assert!(codes.contains(&error.code()), "{error:?}");
    wait_until("the link is gone", SOON, || {
        lab.source.must("net.show", json!({})).as_array().is_some_and(Vec::is_empty)
    });
    let failed = lab.source.sessions_of("vm").iter().all(|record| record["state"] == "failed");
    assert!(failed, "no session goes on with a dead peer");
    transfer.assert_source_intact();
    lab.sink.spec.flags.clear();
    lab.restart_sink();
    lab.good_session("after");
}
