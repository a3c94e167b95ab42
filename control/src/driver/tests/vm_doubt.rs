//! A machine in doubt: both ends stand paused with the evidence shown, and the healed link or an
//! operator ends it.

use super::fake::{Client, Killed, run};
use super::qemus::Qemus;
use super::vm::{VmPair, speaks_of_guests};
use serde_json::{Value, json};
use std::rc::Rc;

/// The source in doubt: it has yielded, and the sink died without having heard of it.
struct SourceInDoubt {
    directory: tempfile::TempDir,
    qemus: Rc<Qemus>,
    a: super::fake::Daemon,
    b: Killed,
    at_a: Client,
    session: Value,
    answer: Value,
}

impl SourceInDoubt {
    async fn start(directory: tempfile::TempDir) -> Self {
        let (mut pair, at_a, session) = VmPair::yielded(directory).await;
        let b = pair.b.kill().await;
        let answer = pair.at_a.next().await;
        let VmPair { directory, qemus, a, .. } = pair;
        Self { directory, qemus, a, b, at_a, session, answer }
    }
}

/// The sink in doubt: it has loaded the guest and waits, and the source died before it yielded.
struct SinkInDoubt {
    directory: tempfile::TempDir,
    qemus: Rc<Qemus>,
    a: Killed,
    b: super::fake::Daemon,
    at_b: Client,
    session: Value,
}

impl SinkInDoubt {
    async fn start(directory: tempfile::TempDir) -> Self {
        let mut pair = VmPair::start(directory).await;
        pair.qemus.hold("completed");
        pair.migrate().await;
        let session = pair.at_b.wait_state_of_only_session("verified").await;
        let a = pair.a.kill().await;
        let record = pair.at_b.wait_for(&session, "in_doubt").await;
        assert_eq!(record["vm"]["guest"], "paused", "{record}");
        assert!(record["sink_record"].is_null() && record["reason"].is_string(), "{record}");
        pair.qemus.free("completed");
        let VmPair { directory, qemus, b, at_b, .. } = pair;
        Self { directory, qemus, a, b, at_b, session }
    }
}

#[test]
fn doubt_is_shown_with_its_evidence_and_ends_when_the_daemons_talk() {
    run(|directory| async move {
        let mut doubt = SourceInDoubt::start(directory).await;
        let answer = &doubt.answer;
        assert_eq!(answer["error"]["data"]["code"], "session_in_doubt", "{answer}");
        let cure = &answer["error"]["data"]["cure"];
        speaks_of_guests(&answer["error"]["message"], cure);
        assert!(cure.as_str().unwrap().contains("dwcp resolve"), "{answer}");
        let record = doubt.at_a.wait_for(&doubt.session, "in_doubt").await;
        assert_eq!(record["source_record"]["record"], "yielded", "{record}");
        assert_eq!(record["vm"]["guest"], "paused");
        assert_eq!(record["vm"]["peer_said"], "loaded");
        let status = doubt.at_a.ask("status", json!({})).await;
        assert_eq!(status["result"]["health"], "in doubt");
        let named = json!({ "session": doubt.session });
        let refused = doubt.at_a.ask("session.abort", named).await;
        let cure = refused["error"]["data"]["cure"].as_str().unwrap();
        assert!(cure.contains("dwcp resolve") && !cure.contains("copy"), "{refused}");
        assert_eq!(doubt.qemus.run_state("/qemu/a"), "postmigrate");
        assert_eq!(doubt.qemus.run_state("/qemu/b"), "paused");
        let _b = doubt.b.restart().await;
        doubt.at_a.wait_for(&doubt.session, "failed").await;
        doubt.qemus.wait_for("/qemu/a", "running").await;
        assert_eq!(VmPair::free(&mut doubt.at_a).await["state"], "free");
    });
}

#[test]
fn an_operator_ends_the_sources_doubt_and_the_sink_agrees_later() {
    run(|directory| async move {
        let mut doubt = SourceInDoubt::start(directory).await;
        let resolve = json!({ "session": doubt.session, "run": "source" });
        let resolved = doubt.at_a.ask("session.resolve", resolve).await;
        assert_eq!(resolved["result"]["state"], "failed", "{resolved}");
        doubt.qemus.wait_for("/qemu/a", "running").await;
        assert_eq!(VmPair::free(&mut doubt.at_a).await["state"], "free", "without the peer");
        let record = doubt.at_a.wait_for(&doubt.session, "failed").await;
        assert_eq!(record["source_record"]["record"], "resolved", "{record}");
        assert!(record["reason"].as_str().unwrap().contains("operator"), "{record}");
        // The source dies as well and tells the sink after its restart.
        let _a = doubt.a.kill().await.restart().await;
        let _b = doubt.b.restart().await;
        let mut at_a = Client::connect(doubt.directory.path(), "a").await;
        loop {
            let record = at_a.wait_for(&doubt.session, "failed").await;
            if record["source_record"]["record"] == "resolved_told" {
                assert!(record["conflict"].is_null(), "{record}");
                break;
            }
            tokio::task::yield_now().await;
        }
        assert_eq!(doubt.qemus.run_state("/qemu/a"), "running");
    });
}

#[test]
fn a_decision_that_leaves_no_guest_is_said() {
    run(|directory| async move {
        let mut doubt = SourceInDoubt::start(directory).await;
        let resolve = json!({ "session": doubt.session, "run": "sink" });
        let resolved = doubt.at_a.ask("session.resolve", resolve).await;
        assert_eq!(resolved["result"]["state"], "committed", "{resolved}");
        let _b = doubt.b.restart().await;
        loop {
            let record = doubt.at_a.wait_for(&doubt.session, "committed").await;
            if record["conflict"] == "none_runs" {
                break;
            }
            tokio::task::yield_now().await;
        }
        assert_eq!(doubt.qemus.run_state("/qemu/a"), "postmigrate", "nothing runs by our doing");
    });
}

#[test]
fn an_end_that_the_sink_has_not_heard_is_told_after_any_number_of_restarts() {
    run(|directory| async move {
        let doubt = SinkInDoubt::start(directory).await;
        let b = doubt.b.kill().await;
        // The second start finds a session that is over, and a sink that still has not heard of it.
        let a = doubt.a.restart().await.kill().await.restart().await;
        let mut at_a = Client::connect(doubt.directory.path(), "a").await;
        let status = at_a.ask("status", json!({})).await;
        let dialled = &status["result"]["dialling"][0];
        assert_eq!((&dialled["peer"], &dialled["why"]), (&json!("b"), &json!("end_untold")));
        assert!(dialled["next_in_s"].is_u64() && dialled["address"].is_string(), "{status}");
        let _b = b.restart().await;
        let mut at_b = Client::connect(doubt.directory.path(), "b").await;
        at_b.wait_for(&doubt.session, "aborted").await;
        assert_eq!(doubt.qemus.run_state("/qemu/a"), "running");
        while at_a.ask("status", json!({})).await["result"]["dialling"] != json!([]) {
            tokio::task::yield_now().await;
        }
        drop(a);
    });
}

#[test]
fn a_decision_that_comes_too_early_is_told_when_it_may_come() {
    run(|directory| async move {
        let mut pair = VmPair::start(directory).await;
        pair.qemus.hold("completed");
        pair.migrate().await;
        let session = pair.at_b.wait_state_of_only_session("verified").await;
        let resolve = json!({ "session": session, "run": "sink" });
        let refused = pair.at_b.ask("session.resolve", resolve.clone()).await;
        let data = &refused["error"]["data"];
        assert_eq!((&data["code"], &data["state"]), (&json!("session_state"), &json!("verified")));
        assert!(data["wait_s"].as_u64().is_some_and(|seconds| seconds > 0), "{refused}");
        assert!(refused["error"]["message"].as_str().unwrap().contains("not in doubt yet"));
        let wait = format!("in {} s", data["wait_s"]);
        assert!(data["cure"].as_str().unwrap().contains(&wait), "{refused}");
        // At the source there is nothing to wait for: it may be cancelled.
        let mut other = pair.other().await;
        let refused = other.ask("session.resolve", resolve).await;
        let data = &refused["error"]["data"];
        assert!(data["wait_s"].is_null(), "{refused}");
        assert!(data["cure"].as_str().unwrap().contains("dwcp cancel"), "{refused}");
        pair.qemus.free("completed");
        assert_eq!(pair.at_a.next().await["result"]["state"], "committed");
    });
}

#[test]
fn an_operator_lets_a_guest_stay_paused_at_the_sink() {
    run(|directory| async move {
        let mut pair = VmPair::start(directory).await;
        pair.qemus.hold("completed");
        pair.migrate_paused().await;
        let session = pair.at_b.wait_state_of_only_session("verified").await;
        let _a = pair.a.kill().await;
        pair.at_b.wait_for(&session, "in_doubt").await;
        let resolve = json!({ "session": session, "run": "sink" });
        let resolved = pair.at_b.ask("session.resolve", resolve).await;
        assert_eq!(resolved["result"]["state"], "committed", "{resolved}");
        assert_eq!(VmPair::free(&mut pair.at_b).await["incoming"], false);
        assert_eq!(pair.qemus.orders("/qemu/b"), ["prepare", "leave paused"]);
        assert_eq!(pair.qemus.run_state("/qemu/b"), "paused");
    });
}

#[test]
fn a_guest_that_waits_is_given_up_when_the_source_runs_it() {
    run(|directory| async move {
        let mut doubt = SinkInDoubt::start(directory).await;
        let a = doubt.a.restart().await;
        doubt.qemus.wait_for("/qemu/a", "running").await;
        let mut at_a = Client::connect(doubt.directory.path(), "a").await;
        VmPair::free(&mut at_a).await;
        // The next link brings the word; its own migration may be too early for the sink.
        let migrate = json!({ "name": "vm", "peer": doubt.b.info["listen"] });
        let answer = at_a.ask("vm.migrate", migrate.clone()).await;
        assert!(answer["error"].is_object(), "that QEMU has loaded another guest: {answer}");
        let record = doubt.at_b.wait_for(&doubt.session, "aborted").await;
        assert!(record["conflict"].is_null(), "{record}");
        VmPair::free(&mut at_a).await;
        VmPair::free(&mut doubt.at_b).await;
        doubt.qemus.add("/qemu/b", "inmigrate");
        let answer = at_a.ask("vm.migrate", migrate).await;
        assert_eq!(answer["result"]["state"], "committed", "{answer}");
        drop(a);
    });
}

#[test]
fn an_operator_at_the_sink_gives_the_waiting_guest_up_even_after_a_restart() {
    run(|directory| async move {
        let doubt = SinkInDoubt::start(directory).await;
        let _b = doubt.b.kill().await.restart().await;
        let mut at_b = Client::connect(doubt.directory.path(), "b").await;
        let record = at_b.wait_for(&doubt.session, "in_doubt").await;
        assert_eq!(record["vm"]["name"], "vm", "{record}");
        let resolve = json!({ "session": doubt.session, "run": "source" });
        let resolved = at_b.ask("session.resolve", resolve).await;
        assert_eq!(resolved["result"]["state"], "aborted", "{resolved}");
        doubt.qemus.wait_for("/qemu/b", "spent").await;
        let _a = doubt.a.restart().await;
        doubt.qemus.wait_for("/qemu/a", "running").await;
    });
}

#[test]
fn a_decision_that_makes_two_run_is_said_at_both_ends() {
    run(|directory| async move {
        let mut doubt = SinkInDoubt::start(directory).await;
        let resolve = json!({ "session": doubt.session, "run": "sink" });
        let resolved = doubt.at_b.ask("session.resolve", resolve).await;
        assert_eq!(resolved["result"]["state"], "committed", "{resolved}");
        doubt.qemus.wait_for("/qemu/b", "running").await;
        // The operator was wrong: the source had not yielded.
        doubt.qemus.two_may_run.set(true);
        let _a = doubt.a.restart().await;
        doubt.qemus.wait_for("/qemu/a", "running").await;
        let mut at_a = Client::connect(doubt.directory.path(), "a").await;
        VmPair::free(&mut at_a).await;
        let migrate = json!({ "name": "vm", "peer": doubt.b.info["listen"] });
        assert!(at_a.ask("vm.migrate", migrate).await["error"].is_object());
        for (client, state) in [(&mut at_a, "failed"), (&mut doubt.at_b, "committed")] {
            while client.wait_for(&doubt.session, state).await["conflict"] != "both_run" {
                tokio::task::yield_now().await;
            }
        }
    });
}
