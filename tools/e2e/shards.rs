//! Daemons with two shards: links use both, and a shard without work sleeps.

use crate::harness::daemon::Daemon;
use crate::harness::lab::{Lab, Session, Transfer};
use crate::harness::memory::{MIB, Memory};
use crate::harness::{Rng, SOON, wait_for, wait_until};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const REGION: u64 = 16 * MIB;

/// The longest sleep of a shard.
const PARK_MAX: Duration = Duration::from_millis(200);

/// The processor time after which a shard has surely worked; the kernel's ticks are 10 ms.
const WORKED_TICKS: u64 = 30;

/// What a shard may use for looking around several times a second.
const ASLEEP_TICKS: u64 = 2;

/// Two daemons of two shards each, whose links have one stream and so one lane. None, which is
/// said, where there is one core.
fn lab(flags: &[&str]) -> Option<Lab> {
    let cores = dwcp_ffi::cpu::allowed_cores();
    let [one, two, ..] = cores[..] else {
        println!("skipped: two shards need two cores, this process may use {}", cores.len());
        return None;
    };
    let cores = format!("{one},{two}");
    let usual = ["--cores", &cores, "--streams", "1", "--poll", "adaptive", "--memory", "512MiB"];
    Some(Lab::start(&[&usual, flags].concat()))
}

/// Two sessions on links of their own: a peer that is named otherwise is another one.
fn two_links(lab: &Lab) -> [(Transfer, Session); 2] {
    let peers = [("one", lab.peer()), ("two", lab.sink.listen.to_string())];
    peers.map(|(name, peer)| {
        let transfer = lab.register(name, Memory::filled(31, REGION, true));
        let mut client = lab.source.client();
        let opened = client.must("session.open", json!({"region": name, "peer": peer}));
        let id = opened["session"].as_str().expect("a session").to_owned();
        (transfer, Session { client, id })
    })
}

/// Each link's number, and the shard that serves its only lane.
fn served(daemon: &Daemon) -> Vec<(u64, u64)> {
    let links = daemon.must("net.show", json!({}));
    let number = |value: &Value| value.as_u64().expect("a number");
    let links = links.as_array().expect("links").iter();
    links.map(|link| (number(&link["link"]), number(&link["streams"][0]["shard"]))).collect()
}

/// What a shard has done so far.
#[derive(Clone, Copy, Debug)]
struct Shard {
    polls: u64,
    busy_polls: u64,
    parks: u64,
    ticks: u64,
}

impl Shard {
    fn of(daemon: &Daemon, index: usize) -> Self {
        let status = daemon.must("status", json!({}));
        let count = |name: &str| {
            let counted = status["shards"][index][name].as_u64();
            counted.unwrap_or_else(|| panic!("no {name} of shard {index}: {status}"))
        };
        let ticks = daemon.thread_ticks(&format!("dwcp-shard-{index}"));
        let (polls, busy_polls) = (count("polls"), count("busy_polls"));
        Self { polls, busy_polls, parks: count("parks"), ticks }
    }

    fn since(self, before: Self) -> Self {
        Self {
            polls: self.polls - before.polls,
            busy_polls: self.busy_polls - before.busy_polls,
            parks: self.parks - before.parks,
            ticks: self.ticks - before.ticks,
        }
    }

    /// It finds nothing to do, and each of its turns is a sleep. One may be under way.
    fn only_sleeps(self) -> bool {
        self.busy_polls == 0 && self.polls.abs_diff(self.parks) <= 1
    }
}

/// Waits until a shard has slept several times in a row; what it has done until then.
fn wait_asleep(daemon: &Daemon, index: usize) -> Shard {
    let mut first = Shard::of(daemon, index);
    wait_for("the shard sleeps", SOON, || {
        let now = Shard::of(daemon, index);
        if !now.since(first).only_sleeps() {
            first = now;
        }
        (now.since(first).parks >= 3).then_some(now)
    })
}

/// Runs rounds until the shard that carries them has worked for some time.
fn work(daemon: &Daemon, index: usize, (transfer, session): &mut (Transfer, Session)) {
    let before = Shard::of(daemon, index);
    let mut rng = Rng(index as u64);
    wait_until("the shard works", SOON, || {
        transfer.source.touch_some(&mut rng, 1000);
        session.round().expect("a round");
        Shard::of(daemon, index).since(before).ticks >= WORKED_TICKS
    });
    let worked = Shard::of(daemon, index).since(before);
    assert!(worked.busy_polls > 100, "{worked:?}");
}

#[test]
fn two_links_use_two_shards_and_the_one_without_work_sleeps() {
    let Some(lab) = lab(&[]) else { return };
    let mut sessions = two_links(&lab);
    let daemons = [&lab.source, &lab.sink];
    for daemon in daemons {
        assert_eq!(served(daemon), [(0, 0), (1, 1)], "each link has a shard of its own");
    }
    sessions.iter_mut().for_each(|(_, session)| drop(session.round().expect("a round")));
    for (works, sleeps) in [(0, 1), (1, 0)] {
        let asleep = daemons.map(|daemon| (wait_asleep(daemon, sleeps), Instant::now()));
        work(&lab.source, works, &mut sessions[works]);
        for (daemon, (before, since)) in daemons.into_iter().zip(asleep) {
            let slept = Shard::of(daemon, sleeps).since(before);
            assert!(slept.only_sleeps(), "shard {sleeps} is not spared: {slept:?}");
            let turns_max = since.elapsed().as_millis() / PARK_MAX.as_millis() + 2;
            assert!(u128::from(slept.polls) <= turns_max, "{slept:?} of at most {turns_max}");
            assert!(slept.ticks <= ASLEEP_TICKS, "shard {sleeps} costs time: {slept:?}");
        }
    }
    for (transfer, session) in &mut sessions {
        session.finish_committed();
        transfer.assert_equal();
    }
}

#[test]
fn a_link_that_comes_back_keeps_its_shard() {
    let Some(lab) = lab(&["--resume-window", "1min"]) else { return };
    // The link that will be lost lies on the second shard.
    let [mut stays, mut comes_back] = {
        let direct = lab.register("stays", Memory::filled(33, REGION, true));
        let mut client = lab.source.client();
        let params = json!({"region": "stays", "peer": lab.sink.listen.to_string()});
        let opened = client.must("session.open", params);
        let id = opened["session"].as_str().expect("a session").to_owned();
        let lost = lab.register("comes-back", Memory::filled(34, REGION, true));
        let session = lab.must_open(&lost);
        [(direct, Session { client, id }), (lost, session)]
    };
    let before = [&lab.source, &lab.sink].map(served);
    assert_eq!(before, [[(0, 0), (1, 1)], [(0, 0), (1, 1)]]);
    let round = lab.hold_round(&comes_back.1);
    lab.proxy.refuse(true);
    lab.proxy.cut();
    wait_until("the loss", SOON, || lab.source.state_of(&comes_back.1.id) == "parked");
    work(&lab.source, 0, &mut stays);
    lab.proxy.refuse(false);
    lab.proxy.release_all();
    round.finish().expect("the round goes on");
    for daemon in [&lab.source, &lab.sink] {
        let resumed = || daemon.metrics().sum("dwcp_links_resumed_total", &[]) >= 1.0;
        wait_until("it went on over another connection", SOON, resumed);
    }
    assert_eq!([&lab.source, &lab.sink].map(served), before);
    work(&lab.source, 1, &mut comes_back);
    for (transfer, session) in [&mut stays, &mut comes_back] {
        session.finish_committed();
        transfer.assert_equal();
    }
}
