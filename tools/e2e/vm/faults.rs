//! Faults at every phase of a migration: the link cut, a daemon or both killed, a QEMU killed.
//!
//! A point is a phase and a fault. A short run takes points by a seed that changes with the day;
//! `DWCP_E2E_FULL=1` takes all. Whatever happens: never do two QEMUs run the guest, at no moment.
//! Afterwards, with the daemons started again and the link healed, exactly one runs it; a guest
//! whose own QEMU was killed may be lost with it, and then the records say so.

use super::harness::{At, Hosts, MOVE_MAX, Migrate, Told};
use super::is_full;
use super::pair::Pair;
use super::phase::{PHASES, Phase, go_to};
use crate::harness::{Rng, observe, wait_for, wait_until};
use dwcp_tools::lab::Guest;
use serde_json::{Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Points that a short run takes.
const POINTS_SHORT: usize = 3;

/// The daemons and QEMUs settle by themselves as soon as they can. The bound covers the longest
/// wait between two attempts to reach a peer.
const SETTLED_WITHIN: Duration = Duration::from_secs(90);

/// How long a link is cut that a migration survives: longer than a silence that is taken for noise.
const CUT_FOR: Duration = Duration::from_secs(5);

/// How long a settled guest is watched for a second one.
const WATCHED: Duration = Duration::from_millis(1500);

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    LinkCut,
    /// Nothing comes back from the sink; what the source sends arrives.
    WayBackCut,
    SourceDaemonKilled,
    SinkDaemonKilled,
    BothDaemonsKilled,
    SourceQemuKilled,
    SinkQemuKilled,
}

const FAULTS: [Fault; 7] = [
    Fault::LinkCut,
    Fault::WayBackCut,
    Fault::SourceDaemonKilled,
    Fault::SinkDaemonKilled,
    Fault::BothDaemonsKilled,
    Fault::SourceQemuKilled,
    Fault::SinkQemuKilled,
];

type Point = (Phase, Fault);

#[test]
fn no_fault_runs_a_guest_twice_or_hurts_it() {
    let all: Vec<Point> =
        PHASES.iter().flat_map(|phase| FAULTS.map(|fault| (*phase, fault))).collect();
    assert!(all.len() >= 25);
    let chosen = match (std::env::var("DWCP_E2E_POINT"), is_full()) {
        // One point by its name, for whoever looks into it.
        (Ok(name), _) => {
            all.into_iter().filter(|point| format!("{point:?}").contains(&name)).collect()
        }
        (_, true) => all,
        _ => choose(all),
    };
    let Some(mut hosts) = Hosts::up("rate=60m delay=5ms") else { return };
    let guest = Guest::new(&hosts.lab, "dirty:24,400,3").unwrap().with_ram_mib(96);
    let mut pair = Pair::boot(&hosts, &guest, At::A);
    for (index, (phase, fault)) in chosen.into_iter().enumerate() {
        let old = [At::A, At::B].iter().flat_map(|at| hosts.sessions(*at)).collect();
        let end = Run { hosts: &mut hosts, pair: &mut pair, old }.point(phase, fault);
        println!("point {index}: {fault:?} at {phase:?}: {end:?}");
        pair = match end {
            End::AtSource => pair.renew_sink(&hosts),
            End::AtSink => pair.turn(&hosts),
            End::Lost => {
                let from = pair.from;
                drop(pair);
                Pair::boot(&hosts, &guest, from)
            }
        };
    }
}

fn choose(mut all: Vec<Point>) -> Vec<Point> {
    let day = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() / 86_400;
    let seed = std::env::var("DWCP_E2E_SEED").map_or(day, |text| text.parse().expect("a number"));
    println!("DWCP_E2E_SEED={seed}");
    let mut rng = Rng(seed ^ 0x7ea5);
    let mut take = || {
        let index = rng.below(all.len() as u64);
        all.swap_remove(usize::try_from(index).expect("few points"))
    };
    (0..POINTS_SHORT).map(|_| take()).collect()
}

/// Where the guest is afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    AtSource,
    AtSink,
    /// It was in a QEMU that was killed.
    Lost,
}

struct Run<'a, 'b> {
    hosts: &'a mut Hosts,
    pair: &'a mut Pair<'b>,
    /// Sessions of before.
    old: Vec<Value>,
}

impl Run<'_, '_> {
    fn point(mut self, phase: Phase, fault: Fault) -> End {
        let migrate = go_to(self.hosts, self.pair, phase);
        let before = self.pair.look();
        assert!(before <= 1);
        let said = self.hit(phase, fault, migrate);
        self.mend(fault);
        let end = self.settle(phase, fault, &said);
        match end {
            End::AtSource => self.pair.assert_runs_at_source(),
            End::AtSink => self.pair.assert_runs_at_sink(),
            End::Lost => {}
        }
        observe(WATCHED, || assert!(self.pair.look() <= 1));
        if said.code == Some(0) {
            assert!(end == End::AtSink || fault == Fault::SinkQemuKilled, "{said:?} {end:?}");
        }
        self.hosts.link("rate=60m delay=5ms up=1");
        end
    }

    /// Lets the fault happen; returns what the client was told.
    fn hit(&mut self, phase: Phase, fault: Fault, migrate: Migrate) -> Told {
        let (from, to) = (self.pair.from, self.pair.to());
        match fault {
            Fault::LinkCut => self.hosts.link("up=0 flush=1"),
            Fault::WayBackCut => self.hosts.way(to, "up=0 flush=1"),
            Fault::SourceDaemonKilled => self.hosts.daemon_mut(from).kill(),
            Fault::SinkDaemonKilled => self.hosts.daemon_mut(to).kill(),
            Fault::BothDaemonsKilled => {
                self.hosts.daemon_mut(from).kill();
                self.hosts.daemon_mut(to).kill();
            }
            Fault::SourceQemuKilled => self.pair.kill_source(),
            Fault::SinkQemuKilled => self.pair.kill_sink(),
        }
        let is_cut = matches!(fault, Fault::LinkCut | Fault::WayBackCut);
        if is_cut && matches!(phase, Phase::RoundOne | Phase::LaterRound) {
            // While the guest runs, the migration waits for the link. One that QEMU has stopped for
            // its switchover in the meantime runs on at the source.
            observe(CUT_FOR, || assert!(self.pair.look() <= 1));
            self.hosts.link("up=1");
        }
        let mut migrate = migrate;
        wait_until("the client to be told", MOVE_MAX, || {
            self.pair.look();
            migrate.is_over()
        });
        migrate.finish()
    }

    /// What an operator would do: dead daemons start again, the link is healed.
    fn mend(&mut self, fault: Fault) {
        let (from, to) = (self.pair.from, self.pair.to());
        self.hosts.link("up=1");
        if matches!(fault, Fault::SourceDaemonKilled | Fault::BothDaemonsKilled) {
            self.hosts.daemon_mut(from).restart();
        }
        if matches!(fault, Fault::SinkDaemonKilled | Fault::BothDaemonsKilled) {
            self.hosts.daemon_mut(to).restart();
        }
    }

    /// Waits until both ends agree and the guest runs, if it can.
    fn settle(&mut self, phase: Phase, fault: Fault, said: &Told) -> End {
        let (from, to) = (self.pair.from, self.pair.to());
        let deadline = std::time::Instant::now() + SETTLED_WITHIN;
        wait_for("the guest to be settled", SETTLED_WITHIN + MOVE_MAX, || {
            let running = self.pair.look();
            let records = [from, to].map(|at| {
                let record = self.hosts.record(at)?;
                (!self.old.contains(&record["session"])).then_some(record)
            });
            let ended = |record: &Option<Value>| {
                let state = record.as_ref().map_or(&json!("none"), |it| &it["state"]).clone();
                ["none", "committed", "failed", "aborted"].iter().any(|end| state == *end)
            };
            let over = records.iter().all(ended);
            let states = self.pair.states();
            let killed = matches!(fault, Fault::SourceQemuKilled | Fault::SinkQemuKilled);
            match (over, running) {
                (true, 1) if states.0 == "running" => Some(End::AtSource),
                (true, 1) if states.1 == "running" => Some(End::AtSink),
                (true, 0) if killed && lost(fault, &records, &states) => Some(End::Lost),
                _ => {
                    let late = std::time::Instant::now() > deadline;
                    assert!(
                        !late,
                        "{fault:?} at {phase:?}: over {over}, {running} run, {states:?}\n\
                         records {records:#?}\n{said:?}\n{}\n{}",
                        self.hosts.tail(from),
                        self.hosts.tail(to)
                    );
                    None
                }
            }
        })
    }
}

/// A guest that nobody runs was in the QEMU that was killed, and its host says so.
fn lost(fault: Fault, records: &[Option<Value>; 2], states: &(String, String)) -> bool {
    let state = |at: usize| records[at].as_ref().map_or("none", |it| it["state"].as_str().unwrap());
    match fault {
        Fault::SourceQemuKilled => states.0 == "gone" && state(1) != "committed",
        _ => states.1 == "gone" && state(1) == "committed",
    }
}
