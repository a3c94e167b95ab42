//! Whatever fails before the commit, the guest runs on at the source, and the next migration works.

use super::fake::run;
use super::vm::{VmPair, speaks_of_guests};
use serde_json::{Value, json};

/// After a failed migration: the guest runs here, and moves when nothing fails any more.
async fn all_is_well(pair: &mut VmPair) {
    pair.qemus.wait_for("/qemu/a", "running").await;
    assert_eq!(VmPair::free(&mut pair.at_a).await["state"], "free");
    VmPair::free(&mut pair.at_b).await;
    pair.qemus.no_failures();
    pair.b.script.bad_digest.set(false);
    pair.qemus.add("/qemu/b", "inmigrate");
    pair.migrate().await;
    let answer = pair.at_a.next().await;
    assert_eq!(answer["result"]["state"], "committed", "{answer}");
    assert_eq!(pair.qemus.run_state("/qemu/b"), "running");
}

fn guest_runs_here(answer: &Value) {
    assert_eq!(answer["error"]["data"]["guest"], "running", "{answer}");
    speaks_of_guests(&answer["error"]["message"], &answer["error"]["data"]["cure"]);
}

#[test]
fn a_qemu_that_fails_at_any_point_leaves_the_guest_at_the_source() {
    for point in ["precopy", "stopped", "sibling", "completed", "prepare", "load"] {
        run(|directory| async move {
            let mut pair = VmPair::start(directory).await;
            pair.qemus.fail(point);
            pair.migrate().await;
            let answer = pair.at_a.next().await;
            assert_eq!(answer["error"]["data"]["code"], "session_failed", "{point} {answer}");
            let message = answer["error"]["message"].as_str().unwrap();
            assert!(message.contains(&format!("at {point}")), "{answer}");
            guest_runs_here(&answer);
            all_is_well(&mut pair).await;
        });
    }
}

#[test]
fn a_machine_is_free_when_its_client_is_told_of_the_failure() {
    run(|directory| async move {
        let mut pair = VmPair::start(directory).await;
        pair.a.script.hold_closed.set(true);
        pair.qemus.fail("load");
        pair.migrate().await;
        let mut other = pair.other().await;
        other.wait_state_of_only_session("failed").await;
        pair.qemus.wait_for("/qemu/a", "running").await;
        let told = tokio::select! {
            biased;
            answer = pair.at_a.next() => Some(answer),
            () = turns(1000) => None,
        };
        assert_eq!(told, None, "the shard still holds it");
        pair.a.script.hold_closed.set(false);
        guest_runs_here(&pair.at_a.next().await);
        let list = pair.at_a.ask("vm.list", json!({})).await;
        assert_eq!(list["result"][0]["state"], "free", "{list}");
    });
}

/// Lets everybody else go on for a while.
async fn turns(count: u32) {
    for _ in 0..count {
        tokio::task::yield_now().await;
    }
}

/// Both QEMUs fail, the source's first; returns what the client is told.
async fn both_fail(pair: &mut VmPair) -> Value {
    pair.qemus.hold("load");
    for point in ["sibling", "load"] {
        pair.qemus.fail(point);
    }
    pair.migrate().await;
    while pair.qemus.failures.get() == 0 {
        tokio::task::yield_now().await;
    }
    pair.qemus.free("load");
    pair.at_a.next().await
}

/// The QEMU at the source only knows that its sibling failed.
#[test]
fn a_guest_that_the_sink_cannot_load_is_told_in_the_words_of_the_sink() {
    run(|directory| async move {
        let mut pair = VmPair::start(directory).await;
        let answer = both_fail(&mut pair).await;
        let data = &answer["error"]["data"];
        assert_eq!(data["code"], "session_failed", "{answer}");
        assert_eq!(data["peer_code"], "load_failed", "{answer}");
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains("QEMU at the sink could not load the guest: at load"), "{answer}");
        assert!(data["cure"].as_str().unwrap().contains("the sink's QEMU"), "{answer}");
        guest_runs_here(&answer);
        let record = pair.at_b.wait_for(&data["session"], "failed").await;
        assert!(record["reason"].as_str().unwrap().contains("load_failed"), "{record}");
        all_is_well(&mut pair).await;
    });
}

#[test]
fn a_guest_that_the_sink_cannot_load_since_its_stream_ended_is_told_in_the_words_of_the_source() {
    run(|directory| async move {
        let mut pair = VmPair::start(directory).await;
        pair.b.script.peer_ends.set(true);
        let answer = both_fail(&mut pair).await;
        let data = &answer["error"]["data"];
        assert_eq!(data["vm_code"], "migration_failed", "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains("at sibling"), "{answer}");
        guest_runs_here(&answer);
        let record = pair.at_b.wait_for(&data["session"], "failed").await;
        assert!(record["reason"].as_str().unwrap().contains("stream_ended"), "{record}");
        pair.b.script.peer_ends.set(false);
        all_is_well(&mut pair).await;
    });
}

#[test]
fn a_stream_that_differs_at_the_sink_is_never_committed() {
    run(|directory| async move {
        let mut pair = VmPair::start(directory).await;
        pair.b.script.bad_digest.set(true);
        pair.migrate().await;
        let answer = pair.at_a.next().await;
        assert_eq!(answer["error"]["data"]["vm_code"], "stream_digest_mismatch", "{answer}");
        guest_runs_here(&answer);
        all_is_well(&mut pair).await;
    });
}

#[test]
fn a_client_cancels_in_every_phase_before_the_commit() {
    for point in ["precopy", "stopped", "load", "completed"] {
        run(|directory| async move {
            let (mut pair, mut other, session) = VmPair::held(directory, point).await;
            let aborted = other.ask("session.abort", json!({ "session": session })).await;
            assert_eq!(aborted["result"]["state"], "aborted", "{aborted}");
            let answer = pair.at_a.next().await;
            assert_eq!(answer["error"]["data"]["code"], "session_aborted", "{answer}");
            guest_runs_here(&answer);
            assert!(pair.qemus.orders("/qemu/a").contains(&"cancel"));
            pair.qemus.free(point);
            all_is_well(&mut pair).await;
        });
    }
}

#[test]
fn a_client_cancels_before_there_is_a_link() {
    run(|directory| async move {
        let mut pair = VmPair::start(directory).await;
        // The sink accepts connections and says nothing.
        pair.b.script.stopped.set(true);
        pair.migrate().await;
        let mut other = pair.other().await;
        let session = other.wait_state_of_only_session("opening").await;
        let aborted = other.ask("session.abort", json!({ "session": session })).await;
        assert_eq!(aborted["result"]["state"], "aborted", "{aborted}");
        let answer = pair.at_a.next().await;
        assert_eq!(answer["error"]["data"]["code"], "session_aborted", "{answer}");
        pair.b.script.stopped.set(false);
        all_is_well(&mut pair).await;
    });
}

#[test]
fn an_operator_at_the_sink_may_refuse_a_guest_that_comes() {
    run(|directory| async move {
        let mut pair = VmPair::start(directory).await;
        pair.qemus.hold("precopy");
        pair.migrate().await;
        let session = pair.at_b.wait_state_of_only_session("receiving").await;
        let aborted = pair.at_b.ask("session.abort", json!({ "session": session })).await;
        assert_eq!(aborted["result"]["state"], "aborted", "{aborted}");
        let answer = pair.at_a.next().await;
        assert_eq!(answer["error"]["data"]["code"], "session_failed", "{answer}");
        guest_runs_here(&answer);
        pair.qemus.free("precopy");
        all_is_well(&mut pair).await;
    });
}

#[test]
fn a_sink_that_dies_before_the_yield_leaves_the_guest_at_the_source() {
    for point in ["precopy", "stopped", "load", "completed"] {
        run(|directory| async move {
            let (mut pair, ..) = VmPair::held(directory, point).await;
            let b = pair.b.kill().await;
            let answer = pair.at_a.next().await;
            assert_eq!(answer["error"]["data"]["code"], "session_failed", "{answer}");
            guest_runs_here(&answer);
            pair.qemus.free(point);
            pair.b = b.restart().await;
            pair.at_b = super::fake::Client::connect(pair.directory.path(), "b").await;
            all_is_well(&mut pair).await;
        });
    }
}

#[test]
fn a_guest_that_does_not_start_after_the_commit_is_started_by_resolve() {
    run(|directory| async move {
        let mut pair = VmPair::start(directory).await;
        pair.qemus.fail("resume");
        pair.migrate().await;
        let session = pair.at_b.wait_state_of_only_session("committed").await;
        VmPair::free(&mut pair.at_b).await;
        let record = pair.at_b.wait_for(&session, "committed").await;
        assert_eq!(record["vm"]["guest"], "paused", "{record}");
        assert!(record["reason"].as_str().unwrap().contains("not_resumed"), "{record}");
        let resolve = |run: &str| json!({ "session": session, "run": run });
        assert_eq!(pair.at_b.refusal("session.resolve", resolve("source")).await, "session_state");
        pair.qemus.no_failures();
        let resolved = pair.at_b.ask("session.resolve", resolve("sink")).await;
        assert_eq!(resolved["result"]["guest"], "running", "{resolved}");
        assert_eq!(pair.qemus.run_state("/qemu/b"), "running");
    });
}
