//! A real guest boots, is checked, and moves over an emulated link by QEMU's own means.
//!
//! Needs root and `cargo xtask lab setup`; passed over visibly without. Guests are emulated, so the
//! bounds are wide.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use dwcp_tools::lab::{Guest, Lab, Net, NetSpec, Vm, VmConfig, ram, wait_for};
use serde_json::json;
use std::time::Duration;

const BOOT_MAX: Duration = Duration::from_secs(180);
const MOVE_MAX: Duration = Duration::from_secs(120);

#[test]
fn an_idle_guest_boots_ticks_and_can_be_killed() {
    let Some(lab) = Lab::for_test() else { return };
    let guest = Guest::new(&lab, "idle").unwrap();
    let mut vm = Vm::start(&guest, VmConfig::default()).unwrap();
    vm.wait_for("BOOTED", BOOT_MAX).unwrap();
    vm.wait_for("TICK 1", BOOT_MAX).unwrap();
    assert_eq!(vm.trouble(), None, "{}", vm.serial());
    assert_eq!(vm.qmp().status().unwrap(), "running");
    vm.kill();
    assert!(!vm.is_alive());
    assert!(vm.wait_for("never said", BOOT_MAX).is_err(), "a dead guest is noticed at once");
}

#[test]
fn a_guest_that_changes_its_memory_moves_whole() {
    let Some(lab) = Lab::for_test() else { return };
    let net = Net::up(&NetSpec::pair("rate=1g delay=2ms").unwrap()).unwrap();
    let guest = Guest::new(&lab, "dirty:24,400,3").unwrap().with_ram_mib(96);
    let here = VmConfig { node: Some(net.node("a")), ram_file: true, ..VmConfig::default() };
    let there = VmConfig { node: Some(net.node("b")), incoming: true, paused: true, ..here };
    let mut source = Vm::start(&guest, here).unwrap();
    let mut sink = Vm::start(&guest, there).unwrap();
    source.wait_for("TICK 2", BOOT_MAX).unwrap();

    let on = json!({"capabilities": [{"capability": "return-path", "state": true}]});
    source.qmp().execute("migrate-set-capabilities", on).unwrap();
    let uri = json!({"uri": format!("tcp:{}:4444", net.node("b").address())});
    sink.qmp().execute("migrate-incoming", uri.clone()).unwrap();
    source.qmp().execute("migrate", uri).unwrap();
    wait_for("end of the migration", MOVE_MAX, || {
        let answer = source.qmp().execute("query-migrate", json!({}))?;
        assert_ne!(answer["status"], "failed", "{answer}");
        Ok((answer["status"] == "completed").then_some(()))
    })
    .unwrap();
    wait_for("loaded guest", MOVE_MAX, || Ok((sink.qmp().status()? == "paused").then_some(())))
        .unwrap();

    assert_eq!(source.qmp().status().unwrap(), "postmigrate");
    let (left, right) = (source.ram_file().unwrap(), sink.ram_file().unwrap());
    let differing = ram::differing_pages(&left, &right).unwrap();
    assert!(differing.is_empty() || !lab.qemu_keeps_pages(), "pages differ: {differing:?}");
    assert!(net.node("a").sent_bytes().unwrap() > 1 << 20);

    sink.qmp().execute("cont", json!({})).unwrap();
    let stop = source.qmp().wait_event("STOP", MOVE_MAX).unwrap();
    let resume = sink.qmp().wait_event("RESUME", MOVE_MAX).unwrap();
    assert!(resume.at > stop.at);
    source.kill();
    let trouble = sink.checked().unwrap();
    assert!(trouble.is_none() || !lab.qemu_keeps_pages(), "{trouble:?}");
    assert_eq!(sink.qmp().status().unwrap(), "running");
}
