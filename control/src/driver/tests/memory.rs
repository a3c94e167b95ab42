//! The page memory that is asked for before a guest moves.

use super::fake::{Client, Daemon, config, run};
use super::qemus::Qemus;
use super::vm::VmPair;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::rc::Rc;

const MIB: u64 = 1 << 20;

/// What a daemon wants ready.
async fn wanted(client: &mut Client) -> u64 {
    let status = client.ask("status", json!({})).await;
    status["result"]["memory"]["wanted_bytes"].as_u64().unwrap()
}

async fn wait_wanted(client: &mut Client, bytes: u64) {
    while wanted(client).await != bytes {
        tokio::task::yield_now().await;
    }
}

fn at_a(name: &str, qmp: &str) -> Value {
    json!({ "name": name, "qmp": qmp })
}

#[test]
fn the_largest_attached_guest_says_how_much_is_to_be_ready_and_the_base_budget_bounds_it() {
    run(|directory| async move {
        let qemus = Qemus::start();
        for (path, ram_bytes) in [("/qemu/a", 10 * MIB), ("/qemu/b", 31 * MIB)] {
            qemus.set_ram_bytes(path, ram_bytes);
        }
        qemus.add("/qemu/large", "running");
        qemus.set_ram_bytes("/qemu/large", 1 << 40);
        let config = config(directory.path(), "a");
        let daemon = Daemon::start_vm(config, &Rc::new(RefCell::new(0)), qemus).await;
        let mut client = Client::connect(directory.path(), "a").await;
        assert_eq!(wanted(&mut client).await, 0, "no guest is attached");
        client.ask("vm.attach", at_a("small", "/qemu/a")).await;
        assert_eq!(wanted(&mut client).await, 10 * MIB);
        let spawned = json!({
            "name": "new", "spawn": "qemu -S -incoming defer", "incoming": true,
            "accept_from": ["b"],
        });
        let answer = client.ask("vm.attach", spawned).await;
        assert!(answer["result"].is_object(), "{answer}");
        assert_eq!(wanted(&mut client).await, 10 * MIB, "nobody knows how large it will be");
        let waits = json!({
            "name": "waits", "qmp": "/qemu/b", "incoming": true, "accept_from": ["b"],
        });
        client.ask("vm.attach", waits).await;
        assert_eq!(wanted(&mut client).await, 32 * MIB, "whole chunks");
        client.ask("vm.attach", at_a("large", "/qemu/large")).await;
        assert_eq!(wanted(&mut client).await, 64 * MIB, "no session keeps more");
        client.ask("vm.detach", json!({ "name": "large" })).await;
        client.ask("vm.detach", json!({ "name": "waits" })).await;
        assert_eq!(wanted(&mut client).await, 10 * MIB);
        // The journal knows it after a restart.
        let killed = daemon.kill().await;
        let _daemon = killed.restart().await;
        let mut client = Client::connect(directory.path(), "a").await;
        assert_eq!(wanted(&mut client).await, 10 * MIB);
    });
}

#[test]
fn what_a_guest_that_has_left_would_need_is_not_kept_ready() {
    run(|directory| async move {
        let mut pair = VmPair::start(directory).await;
        // The QEMU has got more memory since it was attached.
        pair.qemus.set_ram_bytes("/qemu/a", 40 * MIB);
        pair.qemus.set_ram_bytes("/qemu/b", 40 * MIB);
        let before = [wanted(&mut pair.at_a).await, wanted(&mut pair.at_b).await];
        assert_eq!(before, [64 * MIB; 2]);
        pair.migrate().await;
        let answer = pair.at_a.next().await;
        assert_eq!(answer["result"]["state"], "committed", "{answer}");
        wait_wanted(&mut pair.at_a, 0).await;
        // It may go on from where it is.
        wait_wanted(&mut pair.at_b, 40 * MIB).await;
    });
}
