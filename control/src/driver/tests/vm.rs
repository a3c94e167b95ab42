//! A virtual machine from its attachment to its running at the other host, and everything that says
//! no before anything has begun.

use super::fake::{Client, Daemon, config, run};
use super::qemus::Qemus;
use crate::config::ControlConfig;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::rc::Rc;

/// Two daemons and a machine `vm` that runs at `a` and may come to `b`.
pub(super) struct VmPair {
    pub(super) directory: tempfile::TempDir,
    pub(super) qemus: Rc<Qemus>,
    pub(super) a: Daemon,
    pub(super) b: Daemon,
    pub(super) at_a: Client,
    pub(super) at_b: Client,
}

impl VmPair {
    pub(super) async fn start(directory: tempfile::TempDir) -> Self {
        Self::with_links(directory, 8).await
    }

    /// Each daemon has room for so many links.
    pub(super) async fn with_links(directory: tempfile::TempDir, links_max: usize) -> Self {
        Self::with(directory, |config| ControlConfig { links_max, ..config }).await
    }

    /// Each daemon has a changed configuration.
    pub(super) async fn with(
        directory: tempfile::TempDir,
        change: impl Fn(ControlConfig) -> ControlConfig,
    ) -> Self {
        let (verified, qemus) = (Rc::new(RefCell::new(0)), Qemus::start());
        let daemon = async |name| {
            let config = change(config(directory.path(), name));
            Daemon::start_vm(config, &verified, Rc::clone(&qemus)).await
        };
        let (a, b) = (daemon("a").await, daemon("b").await);
        let mut at_a = Client::connect(directory.path(), "a").await;
        let mut at_b = Client::connect(directory.path(), "b").await;
        let attached = at_a.ask("vm.attach", json!({ "name": "vm", "qmp": "/qemu/a" })).await;
        assert_eq!(attached["result"]["qemu"]["run_state"], "running", "{attached}");
        let incoming = json!({
            "name": "vm", "qmp": "/qemu/b", "incoming": true, "accept_from": ["a"],
        });
        let attached = at_b.ask("vm.attach", incoming).await;
        assert_eq!(attached["result"]["incoming"], true, "{attached}");
        Self { directory, qemus, a, b, at_a, at_b }
    }

    /// What moves the machine from `a` to `b`.
    pub(super) fn migrate_params(&self) -> Value {
        json!({ "name": "vm", "peer": self.b.info["listen"] })
    }

    /// Asks for the migration; the answer is the next line at `a`.
    pub(super) async fn migrate(&mut self) {
        let params = self.migrate_params();
        self.at_a.send("vm.migrate", params).await;
    }

    /// Asks for a migration that leaves the guest paused.
    pub(super) async fn migrate_paused(&mut self) {
        let mut params = self.migrate_params();
        params["paused"] = json!(true);
        self.at_a.send("vm.migrate", params).await;
    }

    /// A pair whose migration stands at a point, a second client at `a`, and the session.
    pub(super) async fn held(
        directory: tempfile::TempDir,
        point: &'static str,
    ) -> (Self, Client, Value) {
        let mut pair = Self::start(directory).await;
        pair.qemus.hold(point);
        pair.migrate().await;
        let mut other = pair.other().await;
        let state = if point == "precopy" { "precopy" } else { "last_round" };
        let session = other.wait_state_of_only_session(state).await;
        (pair, other, session)
    }

    /// A pair whose source has yielded and whose sink hears nothing any more, a second client at
    /// `a`, and the session.
    pub(super) async fn yielded(directory: tempfile::TempDir) -> (Self, Client, Value) {
        let mut pair = Self::start(directory).await;
        pair.qemus.hold("completed");
        pair.migrate().await;
        let session = pair.at_b.wait_state_of_only_session("verified").await;
        pair.b.script.stopped.set(true);
        pair.qemus.free("completed");
        let mut other = pair.other().await;
        other.wait_for(&session, "yielded").await;
        (pair, other, session)
    }

    /// A second client at `a`.
    pub(super) async fn other(&self) -> Client {
        Client::connect(self.directory.path(), "a").await
    }

    /// Waits until `vm` is free at a client's daemon, and returns how it is listed there.
    pub(super) async fn free(client: &mut Client) -> Value {
        loop {
            let list = client.ask("vm.list", json!({})).await;
            if list["result"][0]["state"] != "busy" {
                return list["result"][0].clone();
            }
            tokio::task::yield_now().await;
        }
    }
}

/// What people are told of a guest's session has nothing to do with regions.
pub(super) fn speaks_of_guests(message: &Value, cure: &Value) {
    for text in [message, cure] {
        let text = text.as_str().unwrap();
        assert!(!text.is_empty() && !text.contains("region") && !text.contains("session.open"));
    }
}

#[test]
fn a_guest_moves_there_and_is_paused_nowhere() {
    run(|directory| async move {
        let mut pair = VmPair::start(directory).await;
        let mut watcher = pair.other().await;
        let topics = json!({ "topics": ["session.state"] });
        assert!(watcher.ask("subscribe", topics).await["result"].is_object());
        pair.migrate().await;
        let answer = pair.at_a.next().await;
        let result = &answer["result"];
        assert_eq!(result["state"], "committed", "{answer}");
        assert_eq!(result["vm"], "vm");
        assert_eq!(result["blackout_ms"], 250, "{answer}");
        assert_eq!(pair.qemus.run_state("/qemu/a"), "postmigrate");
        assert_eq!(pair.qemus.run_state("/qemu/b"), "running");
        let session = result["session"].clone();
        let first = watcher.next().await;
        assert_eq!(first["params"]["session"], session, "{first}");
        assert_eq!(first["params"]["vm"], "vm");
        assert_eq!(first["params"]["state"], "opening");
        let record = pair.at_b.wait_for(&session, "committed").await;
        assert_eq!(record["vm"]["guest"], "running", "{record}");
        assert_eq!(record["sink_record"]["record"], "committed");
        // Where it was, nothing is left to move; where it is, it may go on from.
        assert_eq!(VmPair::free(&mut pair.at_a).await["state"], "left");
        let there = VmPair::free(&mut pair.at_b).await;
        assert_eq!((&there["state"], &there["incoming"]), (&json!("free"), &json!(false)));
        let again = pair.migrate_params();
        assert_eq!(pair.at_a.refusal("vm.migrate", again).await, "vm_role");
        assert_eq!(pair.qemus.orders("/qemu/b"), ["prepare", "resume"]);
        assert!(pair.qemus.orders("/qemu/a").contains(&"release"));
    });
}

#[test]
fn a_guest_that_its_user_has_paused_moves_and_stays_paused() {
    run(|directory| async move {
        let mut pair = VmPair::start(directory).await;
        pair.qemus.add("/qemu/a", "paused");
        // First it can't be loaded; it stands at the source as before.
        pair.qemus.fail("load");
        pair.migrate().await;
        let failed = pair.at_a.next().await;
        assert_eq!(failed["error"]["data"]["guest"], "paused", "{failed}");
        assert_eq!(pair.qemus.run_state("/qemu/a"), "paused");
        let session = failed["error"]["data"]["session"].clone();
        VmPair::free(&mut pair.at_a).await;
        let record = pair.at_a.wait_for(&session, "failed").await;
        assert_eq!(record["vm"]["settled"], true, "nothing is left to do: {record}");
        VmPair::free(&mut pair.at_b).await;
        pair.qemus.no_failures();
        pair.qemus.add("/qemu/b", "inmigrate");
        pair.migrate().await;
        let moved = pair.at_a.next().await;
        assert_eq!(moved["result"]["state"], "committed", "{moved}");
        assert_eq!(moved["result"]["paused"], true, "{moved}");
        assert!(moved["result"]["blackout_ms"].is_null(), "it did not run before: {moved}");
        let record = pair.at_b.wait_for(&moved["result"]["session"], "committed").await;
        VmPair::free(&mut pair.at_b).await;
        assert_eq!(record["vm"]["stays_paused"], true, "{record}");
        assert_eq!(pair.qemus.run_state("/qemu/b"), "paused");
        assert_eq!(pair.qemus.orders("/qemu/b"), ["prepare", "leave paused"]);
    });
}

#[test]
fn a_guest_goes_to_and_fro() {
    run(|directory| async move {
        let mut pair = VmPair::start(directory).await;
        let (mut from, mut to) = (("/qemu/a", "a"), ("/qemu/b", "b"));
        for _ in 0..3 {
            let mut at_from = Client::connect(pair.directory.path(), from.1).await;
            let mut at_to = Client::connect(pair.directory.path(), to.1).await;
            let listen = if to.1 == "b" { &pair.b.info } else { &pair.a.info };
            let migrate = json!({ "name": "vm", "peer": listen["listen"] });
            let answer = at_from.ask("vm.migrate", migrate).await;
            assert_eq!(answer["result"]["state"], "committed", "{answer}");
            assert_eq!(pair.qemus.run_state(to.0), "running");
            // The old QEMU ends, a new one waits in its place.
            VmPair::free(&mut at_from).await;
            VmPair::free(&mut at_to).await;
            pair.qemus.add(from.0, "inmigrate");
            let incoming = json!({
                "name": "vm", "qmp": from.0, "incoming": true, "accept_from": [to.1],
            });
            let attached = at_from.ask("vm.attach", incoming).await;
            assert!(attached["result"].is_object(), "{attached}");
            (from, to) = (to, from);
        }
        pair.at_a.ask("status", json!({})).await;
    });
}

#[test]
fn every_connection_of_qemu_gets_its_channel_at_both_ends() {
    run(|directory| async move {
        let mut pair = VmPair::start(directory).await;
        pair.qemus.more_channels.set(4);
        pair.migrate().await;
        let answer = pair.at_a.next().await;
        assert_eq!(answer["result"]["state"], "committed", "{answer}");
        assert_eq!(pair.a.script.channels.get(), 5);
        assert_eq!(pair.b.script.channels.get(), 5);
    });
}

#[test]
fn progress_is_told_with_figures_and_forecast() {
    run(|directory| async move {
        let mut pair = VmPair::start(directory).await;
        let mut watcher = pair.other().await;
        let topics = json!({ "topics": ["session.progress"] });
        watcher.ask("subscribe", topics).await;
        pair.qemus.hold("precopy");
        pair.migrate().await;
        loop {
            let progress = watcher.next().await;
            let vm = &progress["params"]["vm"];
            if vm["total_bytes"] == 64 << 20 {
                assert_eq!(vm["name"], "vm");
                assert_eq!(vm["stage"], "setup");
                assert_eq!(vm["verdict"]["verdict"], "unknown", "{progress}");
                assert!(
                    vm["ratio_milli"].is_u64() && progress["params"]["rate_bytes_per_s"].is_u64()
                );
                break;
            }
        }
        pair.qemus.free("precopy");
        assert_eq!(pair.at_a.next().await["result"]["state"], "committed");
    });
}

#[test]
fn what_does_not_fit_is_refused_with_every_finding_and_the_guest_untouched() {
    run(|directory| async move {
        let mut pair = VmPair::start(directory).await;
        pair.qemus.set_ram_bytes("/qemu/b", 32 << 20);
        pair.migrate().await;
        let refused = pair.at_a.next().await;
        assert_eq!(refused["error"]["data"]["code"], "vm_unfit", "{refused}");
        let findings = refused["error"]["data"]["findings"].as_array().unwrap();
        assert_eq!(findings[0]["code"], "ram_differs", "{refused}");
        assert!(findings[0]["cure"].as_str().unwrap().contains("-m"));
        assert_eq!(pair.qemus.run_state("/qemu/a"), "running");
        assert!(!pair.qemus.orders("/qemu/a").contains(&"begin"));
        VmPair::free(&mut pair.at_b).await;
        assert_eq!(pair.qemus.orders("/qemu/b"), ["discard"]);
    });
}

#[test]
fn what_a_sink_warns_of_is_told_at_both_ends_while_the_guest_moves() {
    run(|directory| async move {
        let mut pair = VmPair::start(directory).await;
        let mut watcher = pair.other().await;
        watcher.ask("subscribe", json!({ "topics": ["session.state"] })).await;
        pair.qemus.set_capability("/qemu/a", "xbzrle");
        pair.migrate().await;
        let told = loop {
            let news = watcher.next().await;
            if news["params"]["state"] == "precopy" {
                break news["params"]["warnings"].clone();
            }
        };
        assert_eq!(told[0]["code"], "carried_opaque", "{told}");
        let answer = pair.at_a.next().await;
        assert_eq!(answer["result"]["warnings"], told, "{answer}");
        assert!(answer["result"]["opaque"].is_null(), "no shard has said so: {answer}");
        let session = &answer["result"]["session"];
        let record = pair.at_b.wait_for(session, "committed").await;
        assert_eq!(record["vm"]["warnings"], told, "{record}");
    });
}

#[test]
fn a_machine_is_taken_only_from_hosts_that_it_names_and_only_where_it_waits() {
    run(|directory| async move {
        let mut pair = VmPair::start(directory).await;
        assert!(pair.at_b.ask("vm.detach", json!({ "name": "vm" })).await["result"].is_object());
        let refused = |answer: &Value| {
            assert_eq!(answer["error"]["data"]["code"], "peer_refused", "{answer}");
            let message = answer["error"]["message"].as_str().unwrap();
            assert!(message.contains("is not accepted from a; attach it at the sink"), "{answer}");
            assert!(message.contains("--accept-from a"), "{answer}");
            assert!(!message.contains("socket"), "{answer}");
            speaks_of_guests(&answer["error"]["message"], &answer["error"]["data"]["cure"]);
        };
        let params = pair.migrate_params();
        refused(&pair.at_a.ask("vm.migrate", params.clone()).await);
        let incoming = json!({
            "name": "vm", "qmp": "/qemu/b", "incoming": true, "accept_from": ["c"],
        });
        pair.at_b.ask("vm.attach", incoming).await;
        VmPair::free(&mut pair.at_a).await;
        refused(&pair.at_a.ask("vm.migrate", params.clone()).await);
        VmPair::free(&mut pair.at_a).await;
        assert_eq!(pair.qemus.run_state("/qemu/a"), "running");
        assert_eq!(pair.qemus.orders("/qemu/b"), [] as [&str; 0], "nobody spoke to its QEMU");
        assert_eq!(pair.at_b.refusal("vm.migrate", params).await, "vm_role");
    });
}

#[test]
fn one_migration_of_a_machine_at_a_time_and_no_detaching_meanwhile() {
    run(|directory| async move {
        let mut pair = VmPair::start(directory).await;
        pair.qemus.hold("precopy");
        pair.migrate().await;
        pair.qemus.wait_order("/qemu/a", "begin").await;
        let mut other = pair.other().await;
        let params = pair.migrate_params();
        assert_eq!(other.refusal("vm.migrate", params).await, "vm_busy");
        assert_eq!(other.refusal("vm.detach", json!({ "name": "vm" })).await, "vm_busy");
        let list = other.ask("vm.list", json!({})).await;
        let session = list["result"][0]["session"].clone();
        let named = json!({ "session": session });
        for method in ["session.round", "session.finish"] {
            assert_eq!(other.refusal(method, named.clone()).await, "session_state");
        }
        let resolve = json!({ "session": session, "run": "source" });
        assert_eq!(other.refusal("session.resolve", resolve).await, "session_state");
        pair.qemus.free("precopy");
        assert_eq!(pair.at_a.next().await["result"]["state"], "committed");
    });
}

#[test]
fn faults_of_attaching_are_typed() {
    run(|directory| async move {
        let mut pair = VmPair::start(directory).await;
        let attach = |name: &str, qmp: &str| json!({ "name": name, "qmp": qmp });
        let missing = pair.at_a.ask("vm.attach", attach("other", "/qemu/none")).await;
        assert_eq!(missing["error"]["data"]["code"], "vm_unusable", "{missing}");
        assert_eq!(missing["error"]["data"]["reason"], "qmp_missing");
        assert!(missing["error"]["data"]["cure"].as_str().unwrap().contains("-qmp"), "{missing}");
        assert_eq!(pair.at_a.refusal("vm.attach", attach("vm", "/qemu/a")).await, "vm_exists");
        assert_eq!(pair.at_a.refusal("vm.detach", json!({ "name": "x" })).await, "vm_unknown");
        let unknown = json!({ "name": "x", "peer": "127.0.0.1:1" });
        assert_eq!(pair.at_a.refusal("vm.migrate", unknown).await, "vm_unknown");
        let unreachable = json!({ "name": "vm", "peer": "127.0.0.1:1" });
        let answer = pair.at_a.ask("vm.migrate", unreachable).await;
        assert_eq!(answer["error"]["data"]["code"], "peer_unreachable", "{answer}");
        assert_eq!(VmPair::free(&mut pair.at_a).await["state"], "free");
        for (command, why) in [
            ("qemu -S", "it lacks -incoming defer"),
            ("qemu -incoming defer", "it lacks -S"),
            ("qemu -S -incoming 'defer", "a quote is not closed"),
        ] {
            let spawn = json!({ "name": "new", "spawn": command, "incoming": true });
            let refused = pair.at_a.ask("vm.attach", spawn).await;
            assert_eq!(refused["error"]["data"]["code"], "params_invalid", "{refused}");
            assert!(refused["error"]["message"].as_str().unwrap().contains(why), "{refused}");
            assert!(refused["error"]["data"]["cure"].as_str().unwrap().contains("-S"), "{refused}");
        }
        let command = "qemu -S -name 'a b' -incoming defer";
        let spawn = json!({ "name": "new", "spawn": command, "incoming": true });
        let spawned = pair.at_a.ask("vm.attach", spawn).await;
        assert!(spawned["result"]["qmp"].as_str().unwrap().ends_with("a.vm/new.qmp"), "{spawned}");
    });
}

#[test]
fn attached_machines_are_there_after_a_restart() {
    run(|directory| async move {
        let mut pair = VmPair::start(directory).await;
        let before = pair.at_b.ask("vm.list", json!({})).await;
        let _b = pair.b.kill().await.restart().await;
        let mut at_b = Client::connect(pair.directory.path(), "b").await;
        assert_eq!(at_b.ask("vm.list", json!({})).await["result"], before["result"]);
    });
}

#[test]
fn a_guest_that_needs_more_memory_than_there_is_is_refused_with_the_sum() {
    run(|directory| async move {
        let mut pair = VmPair::start(directory).await;
        pair.qemus.set_ram_bytes("/qemu/a", 1 << 44);
        pair.migrate().await;
        let refused = pair.at_a.next().await;
        let data = &refused["error"]["data"];
        assert_eq!(data["code"], "memory_budget", "{refused}");
        let part = |name: &str| data[name].as_u64().unwrap();
        let parts = ["tables_bytes", "bases_bytes", "undelivered_bytes", "window_bytes"];
        assert_eq!(parts.map(part).iter().sum::<u64>(), part("wanted_bytes"));
        assert_eq!(pair.qemus.run_state("/qemu/a"), "running");
    });
}
