//! A sink whose QEMU does not take the guest, or not to its end: the guest runs on at the source,
//! the words of the sink say why, and the next migration works.

use super::harness::{At, Hosts, Told, told};
use super::memory_group::MemoryGroup;
use super::pair::Pair;
use super::spawned::Spawned;
use dwcp_tools::lab::Guest;
use serde_json::json;

/// A device of the guest.
const DEVICE: [&str; 2] = ["-device", "virtio-rng-pci,id=rng0"];

/// It has another PCI configuration then, which shows nowhere before it is loaded.
const UNLIKE: [&str; 2] = ["-global", "virtio-rng-pci.vectors=0"];

/// Less than any guest has.
const LITTLE_BYTES: u64 = 12 << 20;

/// The client is told that it failed at the sink, in the sink's words.
fn assert_said(end: &Told, words: &[&str]) {
    println!("{}", end.stderr);
    assert_eq!(end.code, Some(1), "{end:?}");
    for word in words.iter().chain(&["[session_failed]", "the guest stays at the source"]) {
        assert!(end.stderr.contains(word), "no {word} in {}", end.stderr);
    }
}

/// So are both journals.
fn assert_told(hosts: &Hosts, end: &Told, words: &[&str]) {
    assert_said(end, words);
    for at in [At::A, At::B] {
        let record = hosts.wait_record(at, "failed");
        let reason = record["reason"].as_str().expect("a reason");
        assert!(words.iter().all(|word| reason.contains(word)), "{record}");
        assert!(record["cure"].is_string(), "{record}");
        assert_eq!(hosts.daemon(at).must("status", json!({}))["health"], "good");
    }
}

#[test]
fn device_state_that_the_sink_cannot_load_leaves_the_guest_and_is_told_in_the_sinks_words() {
    let Some(hosts) = Hosts::up("rate=1g delay=20ms") else { return };
    let guest = Guest::new(&hosts.lab, "idle").unwrap().with_ram_mib(96);
    let mut pair = Pair::boot_with(&hosts, &guest, At::A, &DEVICE, &UNLIKE);
    let end = hosts.start_migrate(At::A, &[]).finish();
    let told = ["QEMU at the sink could not load the guest", "(load_failed)"];
    assert_told(&hosts, &end, &told);
    assert!(end.stderr.contains("standard error of the sink's QEMU"), "{end:?}");
    pair.assert_runs_at_source();

    // What dwcp has started itself is quoted.
    let spawned = Spawned::attach(&hosts, &guest, At::B, &[DEVICE, UNLIKE].concat());
    let end = hosts.start_migrate(At::A, &[]).finish();
    assert_told(&hosts, &end, &[told.as_slice(), &["virtio-rng"]].concat());
    pair.assert_runs_at_source();
    assert!(spawned.qmp().is_none(), "it holds half a guest and is ended");

    let mut pair = pair.renew_sink(&hosts);
    hosts.migrate(At::A, &[]);
    pair.assert_runs_at_sink();
}

#[test]
fn a_sink_that_the_kernel_kills_for_want_of_memory_leaves_the_guest_at_the_source() {
    let Some(group) = MemoryGroup::new(LITTLE_BYTES) else { return };
    let Some(hosts) = Hosts::up("rate=200m delay=5ms") else { return };
    let guest = Guest::new(&hosts.lab, "idle").unwrap().with_ram_mib(96);
    let mut pair = Pair::boot(&hosts, &guest, At::A);
    group.take(pair.sink.pid());
    let end = hosts.start_migrate(At::A, &[]).finish();
    assert_eq!(group.kills(), 1, "it was the kernel");
    pair.kill_sink();
    assert_told(&hosts, &end, &["QEMU at the sink ended", "(load_ended)"]);
    assert!(end.stderr.contains("kernel log"), "{end:?}");
    pair.assert_runs_at_source();

    let mut pair = pair.renew_sink(&hosts);
    hosts.migrate(At::A, &[]);
    pair.assert_runs_at_sink();
}

#[test]
fn right_after_a_failed_migration_the_next_one_works() {
    let Some(hosts) = Hosts::up("rate=30m delay=5ms") else { return };
    let guest = Guest::new(&hosts.lab, "idle").unwrap().with_ram_mib(96);
    let mut source = hosts.boot(&guest, At::A, &[]);
    let spawned = Spawned::attach(&hosts, &guest, At::B, &[]);
    let mut listener = hosts.listen(At::A);
    let migrate = hosts.start_migrate(At::A, &[]);
    told(&mut listener, "the first round", |method, params| {
        method == "session.progress" && params["counters"]["vmm_in_bytes"].as_u64() > Some(4 << 20)
    });
    spawned.kill();
    let end = migrate.finish();
    hosts.link("rate=1g");
    let next = hosts.start_migrate(At::A, &[]).finish();
    assert_said(&end, &["QEMU at the sink ended", "signal: 9", "(load_ended)"]);
    assert_eq!(next.code, Some(0), "{next:?}");
    assert_eq!(source.qmp().status().unwrap(), "postmigrate");
    assert_eq!(spawned.qmp().expect("a new one").status().unwrap(), "running");
}
