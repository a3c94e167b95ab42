//! Daemons that die in the middle of a migration: what the journal says decides where the guest
//! runs, and nobody has to help.

use super::fake::{Client, run};
use super::vm::{VmPair, speaks_of_guests};
use serde_json::json;

#[test]
fn a_source_that_dies_before_its_yield_runs_its_guest_again() {
    for point in ["precopy", "stopped", "load", "completed"] {
        run(|directory| async move {
            let (pair, _, session) = VmPair::held(directory, point).await;
            let _a = pair.a.kill().await.restart().await;
            pair.qemus.wait_for("/qemu/a", "running").await;
            let mut at_a = Client::connect(pair.directory.path(), "a").await;
            let record = at_a.wait_for(&session, "failed").await;
            assert!(record["reason"].as_str().unwrap().contains("restarted"), "{record}");
            speaks_of_guests(&record["reason"], &record["cure"]);
            VmPair::free(&mut at_a).await;
            while at_a.wait_for(&session, "failed").await["vm"]["settled"] != true {
                tokio::task::yield_now().await;
            }
            assert!(pair.qemus.orders("/qemu/a").contains(&"keep"));
        });
    }
}

#[test]
fn a_source_that_dies_after_its_yield_finds_out_that_the_sink_runs() {
    run(|directory| async move {
        let (mut pair, _, session) = VmPair::yielded(directory).await;
        let a = pair.a.kill().await;
        // The yield was on its way: the sink commits without the source.
        pair.b.script.stopped.set(false);
        pair.at_b.wait_for(&session, "committed").await;
        pair.qemus.wait_for("/qemu/b", "running").await;
        let _a = a.restart().await;
        let mut at_a = Client::connect(pair.directory.path(), "a").await;
        at_a.wait_for(&session, "committed").await;
        assert_eq!(VmPair::free(&mut at_a).await["state"], "left");
        assert_eq!(pair.qemus.run_state("/qemu/a"), "postmigrate");
        while pair.at_b.wait_for(&session, "committed").await["settled"] != true {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn a_sink_that_dies_between_commit_and_resumption_resumes_after_its_restart() {
    run(|directory| async move {
        let mut pair = VmPair::start(directory).await;
        pair.qemus.hold("resume");
        pair.migrate().await;
        let session = pair.at_b.wait_state_of_only_session("committed").await;
        pair.qemus.wait_order("/qemu/b", "resume").await;
        let b = pair.b.kill().await;
        pair.qemus.free("resume");
        assert_eq!(pair.qemus.run_state("/qemu/b"), "paused");
        let _b = b.restart().await;
        pair.qemus.wait_for("/qemu/b", "running").await;
        let mut at_b = Client::connect(pair.directory.path(), "b").await;
        assert_eq!(VmPair::free(&mut at_b).await["incoming"], false);
        let record = at_b.wait_for(&session, "committed").await;
        assert_eq!(record["vm"]["guest"], "running", "{record}");
        assert!(record["vm"]["resumed_at_unix_us"].is_u64());
        assert_eq!(pair.qemus.run_state("/qemu/a"), "postmigrate");
    });
}

#[test]
fn a_sink_that_dies_before_it_left_a_guest_paused_leaves_it_so_after_its_restart() {
    run(|directory| async move {
        let mut pair = VmPair::start(directory).await;
        pair.qemus.hold("leave");
        pair.migrate_paused().await;
        let session = pair.at_b.wait_state_of_only_session("committed").await;
        pair.qemus.wait_order("/qemu/b", "leave paused").await;
        let b = pair.b.kill().await;
        pair.qemus.free("leave");
        let b = b.restart().await;
        let mut at_b = Client::connect(pair.directory.path(), "b").await;
        assert_eq!(VmPair::free(&mut at_b).await["incoming"], false);
        let record = at_b.wait_for(&session, "committed").await;
        assert_eq!(record["vm"]["guest"], "paused", "{record}");
        assert_eq!(record["vm"]["settled"], true, "{record}");
        // From then on it is its owner's: no daemon's start has anything to do with it.
        let orders = pair.qemus.orders("/qemu/b");
        let _b = b.kill().await.restart().await;
        let mut at_b = Client::connect(pair.directory.path(), "b").await;
        VmPair::free(&mut at_b).await;
        assert_eq!(pair.qemus.orders("/qemu/b"), orders);
        assert!(!orders.contains(&"resume"), "{orders:?}");
        assert_eq!(pair.qemus.run_state("/qemu/b"), "paused");
        assert_eq!(pair.qemus.run_state("/qemu/a"), "postmigrate");
    });
}

#[test]
fn a_source_that_restarts_brings_its_guest_back_as_it_was_found() {
    // One is to be left paused at the sink, the other one was paused by its user.
    for found in ["running", "paused"] {
        run(|directory| async move {
            let mut pair = VmPair::start(directory).await;
            pair.qemus.add("/qemu/a", found);
            pair.qemus.hold("completed");
            pair.migrate_paused().await;
            let session = pair.at_b.wait_state_of_only_session("verified").await;
            assert_eq!(pair.qemus.run_state("/qemu/a"), "postmigrate");
            let _a = pair.a.kill().await.restart().await;
            let mut at_a = Client::connect(pair.directory.path(), "a").await;
            pair.qemus.wait_for("/qemu/a", found).await;
            VmPair::free(&mut at_a).await;
            let record = at_a.wait_for(&session, "failed").await;
            assert_eq!(record["vm"]["guest"], found, "{record}");
            assert_eq!(record["vm"]["settled"], true, "{record}");
        });
    }
}

#[test]
fn what_an_old_session_left_to_do_is_not_done_after_a_newer_one() {
    run(|directory| async move {
        let (mut pair, _, first) = VmPair::held(directory, "precopy").await;
        // The source's QEMU can't be asked when the daemon starts again.
        let a = pair.a.kill().await;
        pair.qemus.end("/qemu/a");
        let a = a.restart().await;
        let mut at_a = Client::connect(pair.directory.path(), "a").await;
        VmPair::free(&mut at_a).await;
        let record = at_a.wait_for(&first, "failed").await;
        assert_eq!(record["vm"]["settled"], false, "{record}");
        // Somebody has started the guest again, and it moves.
        pair.qemus.free("precopy");
        VmPair::free(&mut pair.at_b).await;
        pair.qemus.add("/qemu/a", "running");
        pair.qemus.add("/qemu/b", "inmigrate");
        let migrate = json!({ "name": "vm", "peer": pair.b.info["listen"] });
        let answer = at_a.ask("vm.migrate", migrate).await;
        assert_eq!(answer["result"]["state"], "committed", "{answer}");
        VmPair::free(&mut at_a).await;
        let _a = a.kill().await.restart().await;
        let mut at_a = Client::connect(pair.directory.path(), "a").await;
        assert_eq!(VmPair::free(&mut at_a).await["state"], "left");
        assert!(!pair.qemus.orders("/qemu/a").contains(&"keep"));
        assert_eq!(pair.qemus.run_state("/qemu/a"), "postmigrate");
    });
}
