//! The memory of a session is there before its guest moves.

use super::harness::{At, Hosts, MOVE_MAX};
use super::pair::Pair;
use crate::harness::wait_until;
use dwcp_tools::lab::Guest;
use serde_json::{Value, json};

const RAM_BYTES: u64 = 96 << 20;

/// A figure of a daemon's page memory.
fn memory(hosts: &Hosts, at: At, name: &str) -> u64 {
    let status = hosts.daemon(at).must("status", json!({}));
    status["memory"][name].as_u64().expect("a number")
}

/// What sessions of a daemon took, by what it was.
fn taken(hosts: &Hosts, at: At, was: &str) -> f64 {
    let label = format!("was=\"{was}\"");
    hosts.daemon(at).metrics().sum("dwcp_memory_taken_bytes_total", &[&label])
}

fn wait_ready(hosts: &Hosts, at: At, bytes: u64) {
    // The thread that brings it has what the machine leaves.
    wait_until(&format!("{bytes} bytes to be ready at {}", at.host()), MOVE_MAX, || {
        memory(hosts, at, "ready_bytes") == bytes && memory(hosts, at, "held_bytes") == 0
    });
}

#[test]
fn a_guest_that_is_attached_finds_its_memory_ready_and_leaves_none_behind() {
    // Bases for all of its memory and no more, so that all that a session takes is asked for.
    let flags = ["--base-budget", "96MiB"];
    let Some(hosts) = Hosts::up_with("rate=1g delay=5ms", &flags) else { return };
    let guest = Guest::new(&hosts.lab, "dirty:24,400,3").unwrap().with_ram_mib(96);
    let pair = Pair::boot(&hosts, &guest, At::A);
    for at in [At::A, At::B] {
        wait_ready(&hosts, at, RAM_BYTES);
        assert_eq!(memory(&hosts, at, "wanted_bytes"), RAM_BYTES);
    }
    let told: Value = hosts.migrate(pair.from, &[]);
    for at in [At::A, At::B] {
        let all = ["ready", "untouched", "used"].map(|was| taken(&hosts, at, was));
        assert_eq!(all, [RAM_BYTES as f64, 0.0, 0.0], "at {}: {told}", at.host());
    }
    // The guest is at the sink now and may go on from there.
    wait_ready(&hosts, At::A, 0);
    wait_ready(&hosts, At::B, RAM_BYTES);
}
