//! Carrier mode with real guests: a manager moves them through two `dwcp carry` processes, dies on
//! the way, or finds a carrier dead.
//!
//! Whatever happens, never do two QEMUs run the guest, and where both stand still a manager that
//! comes back can tell from the source alone which of them to run.

use super::carrier::{Carried, Manager};
use super::harness::{At, MOVE_MAX};
use super::is_full;
use super::pair::Pair;
use crate::harness::carrier::Carrier;
use crate::harness::{observe, wait_until};
use dwcp_tools::lab::Guest;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::time::Duration;

/// How long two guests that stand still are watched for one that runs.
const WATCHED: Duration = Duration::from_millis(1500);

/// Longer than the silence after which another connection is tried.
const DEAD_FOR: Duration = Duration::from_secs(5);

/// What a carrier says when the stream that it carries is not that of one plain migration.
const OPAQUE: &str = "carried as it is from here on";

/// What its last words tell a manager to look at.
const DECIDES: &str = "if the source's migration";

/// What a guest's own words are for its kind of migration.
const SMALL: &str = "dirty:24,400,3";

/// Both stand still, both hold the same pages, and the source alone says what to do.
fn assert_both_stand_still(pair: &mut Pair<'_>) {
    assert_eq!(pair.states(), ("postmigrate".to_owned(), "paused".to_owned()));
    pair.assert_same_memory();
    observe(WATCHED, || assert_eq!(pair.look(), 0, "nobody has decided"));
}

/// Waits for the good end of a session; the carriers' words agree.
fn ended_well(hosts: &Carried, from: At) -> Value {
    let way = hosts.way(from);
    let (near, far) = (way.source.ended_well(), way.sink.ended_well());
    // Not their bytes: a page may be written in another form than it came.
    for field in ["session", "channels", "coded_bytes"] {
        assert_eq!(near[field], far[field], "{near} {far}");
    }
    for carrier in [&way.source, &way.sink] {
        let log = carrier.log();
        assert!(log.lines().last().is_some_and(|line| line.contains(DECIDES)), "{log}");
    }
    near
}

#[test]
fn a_guest_moves_through_carriers_with_every_page_coded_or_in_several_connections() {
    let Some(hosts) = Carried::up("rate=1g delay=5ms") else { return };
    let guest = Guest::new(&hosts.lab, SMALL).unwrap().with_ram_mib(96);
    let mut pair = hosts.boot(&guest, At::A);
    let moves: [&[&str]; 4] = [&[], &["multifd"], &[], &["multifd"]];
    for (index, capabilities) in moves.iter().take(if is_full() { 4 } else { 2 }).enumerate() {
        if index > 0 {
            pair = hosts.turn(pair);
        }
        let from = pair.from;
        let before = hosts.sent_bytes(from);
        let mut manager = Manager::connect(&pair);
        manager.begin(hosts.way(from), capabilities);
        manager.wait_status("completed");
        assert_both_stand_still(&mut pair);
        manager.run_at_sink();
        assert_eq!(pair.look(), 1);
        let ended = ended_well(&hosts, from);
        let wire = hosts.sent_bytes(from) - before;
        let (raw, log) = (ended["vmm_bytes"].as_u64().unwrap(), hosts.way(from).source.log());
        println!("{capabilities:?}: {raw} bytes, {wire} on the wire, {ended}");
        assert!(raw > 24 << 20, "the guest's pages were in it: {ended}");
        if capabilities.is_empty() {
            assert!(!log.contains(OPAQUE), "{log}");
            assert_eq!(ended["channels"], json!(1));
            assert!(wire < raw / 2, "{wire} bytes for {raw}");
        } else {
            assert!(log.contains(OPAQUE), "{log}");
            assert!(ended["channels"].as_u64() > Some(1), "{ended}");
        }
    }
    pair.assert_runs_at_sink();
}

/// How far a migration has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// A part of the first round is under way.
    RoundOne,
    /// The guest stands still, its last pages are under way.
    Stopped,
    /// The guest stands still, and QEMU waits for the manager's word before the last pages.
    Held,
}

/// Begins a migration and brings it to a phase.
fn go_to(hosts: &Carried, pair: &mut Pair<'_>, phase: Phase) -> Manager {
    hosts.link(if phase == Phase::RoundOne { "rate=60m delay=5ms" } else { "rate=1g delay=5ms" });
    let mut manager = Manager::connect(pair);
    let way = hosts.way(pair.from);
    if phase == Phase::RoundOne {
        manager.begin(way, &[]);
        wait_until("a part of the first round", MOVE_MAX, || {
            manager.migration()["ram"]["transferred"].as_u64() > Some(4 << 20)
        });
        return manager;
    }
    manager.begin(way, &["pause-before-switchover"]);
    manager.wait_status("pre-switchover");
    if phase == Phase::Stopped {
        // The end of a migration is short: on a longer way there is time to meet it. The sink's
        // word that it has all can't be back before 400 ms from now.
        hosts.link("delay=200ms");
        manager.go_on();
    }
    manager
}

#[test]
fn a_guest_whose_manager_dies_waits_at_the_end_for_one_that_comes_back() {
    let Some(hosts) = Carried::up("rate=60m delay=5ms") else { return };
    let guest = Guest::new(&hosts.lab, SMALL).unwrap().with_ram_mib(96);
    let mut pair = hosts.boot(&guest, At::A);
    let phases = [Phase::RoundOne, Phase::Stopped, Phase::Held];
    for (index, phase) in phases.into_iter().take(if is_full() { 3 } else { 2 }).enumerate() {
        if index > 0 {
            pair = hosts.turn(pair);
        }
        drop(go_to(&hosts, &mut pair, phase));
        // Nobody is left who could say anything to either QEMU.
        if phase == Phase::Held {
            observe(WATCHED, || assert_eq!(pair.look(), 0, "the source waits for a word"));
            Manager::connect(&pair).go_on();
        }
        wait_until("the end of the stream", MOVE_MAX, || {
            pair.look();
            pair.states() == ("postmigrate".to_owned(), "paused".to_owned())
        });
        assert_both_stand_still(&mut pair);
        println!("{phase:?}: {}", ended_well(&hosts, pair.from));
        Manager::connect(&pair).run_at_sink();
        assert_eq!(pair.look(), 1);
        assert_eq!(pair.states(), ("postmigrate".to_owned(), "running".to_owned()));
    }
    pair.assert_runs_at_sink();
}

#[test]
fn a_carrier_killed_while_the_guest_stands_still_never_costs_or_doubles_it() {
    // Its peer would wait for the link: what died can't be told from what is far away.
    let flags = ["--resume-window", "0s"];
    let Some(mut hosts) = Carried::up_with("rate=1g delay=5ms", &flags) else { return };
    let guest = Guest::new(&hosts.lab, SMALL).unwrap().with_ram_mib(96);
    let mut pair = hosts.boot(&guest, At::A);
    let points = [
        (Phase::Stopped, true),
        (Phase::Held, false),
        (Phase::Stopped, false),
        (Phase::Held, true),
    ];
    for (phase, kill_source) in points.into_iter().take(if is_full() { 4 } else { 2 }) {
        let mut manager = go_to(&hosts, &mut pair, phase);
        assert_eq!(pair.look(), 0, "it stands still");
        kill(&mut hosts, pair.from, kill_source);
        if phase == Phase::Held {
            // Until it is told to go on, QEMU looks at nothing.
            assert_eq!(pair.look(), 0);
            manager.go_on();
        }
        let end = manager.wait_end();
        println!("{phase:?}, source's carrier {kill_source}: {end}");
        let way = hosts.way(pair.from);
        let other = if kill_source { &way.sink } else { &way.source };
        assert_eq!(other.failure(), "link_lost");
        assert!(other.log().contains(DECIDES), "{}", other.log());
        if end == "failed" {
            // QEMU lets the guest run on by itself.
            wait_until("the guest at the source", MOVE_MAX, || pair.look() == 1);
            assert_eq!(pair.states().0, "running");
        } else {
            // The sink's last word was quicker than the signal, on a busy machine.
            assert!(end == "completed" && phase == Phase::Stopped, "{end}");
            assert_both_stand_still(&mut pair);
            manager.run_at_sink();
        }
        observe(WATCHED, || assert_eq!(pair.look(), 1));
        hosts.way_mut(pair.from).restart(kill_source);
        pair = if end == "failed" { hosts.renew_sink(pair) } else { hosts.turn(pair) };
    }
    let mut manager = go_to(&hosts, &mut pair, Phase::Held);
    manager.go_on();
    manager.wait_status("completed");
    assert_both_stand_still(&mut pair);
    manager.run_at_sink();
    ended_well(&hosts, pair.from);
    pair.assert_runs_at_sink();
}

#[test]
fn a_guest_that_runs_does_not_feel_a_dead_link_between_its_carriers() {
    let Some(hosts) = Carried::up("rate=60m delay=5ms") else { return };
    let guest = Guest::new(&hosts.lab, SMALL).unwrap().with_ram_mib(96);
    let mut pair = hosts.boot(&guest, At::A);
    let mut manager = go_to(&hosts, &mut pair, Phase::RoundOne);
    hosts.link("up=0 flush=1");
    observe(DEAD_FOR, || {
        assert_eq!(pair.look(), 1);
        assert_eq!(manager.migration()["status"], "active", "the guest's QEMU feels nothing");
    });
    hosts.link("up=1");
    manager.wait_status("completed");
    assert_both_stand_still(&mut pair);
    manager.run_at_sink();
    assert_eq!(pair.look(), 1);
    println!("{}", ended_well(&hosts, pair.from));
    let way = hosts.way(pair.from);
    for log in [way.source.log(), way.sink.log()] {
        // The old connection may have come back first.
        let told = [": parked:", ": resumed,"].map(|word| log.matches(word).count());
        println!("parked and resumed: {told:?}");
        assert_eq!(told[0], told[1], "{log}");
    }
    pair.assert_runs_at_sink();
}

fn kill(hosts: &mut Carried, from: At, at_source: bool) {
    let way = hosts.way_mut(from);
    let carrier: &mut Carrier = if at_source { &mut way.source } else { &mut way.sink };
    carrier.signal(Signal::SIGKILL);
    carrier.ended();
}
