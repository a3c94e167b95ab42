//! Faults at every phase of a session: the link cut, either daemon killed, the sink stopped.
//!
//! A point is a phase and a fault. A short run takes points by a seed that changes with the day;
//! `DWCP_E2E_FULL=1` takes all. Whatever happens, these hold afterwards: the source's memory is
//! what its writer wrote; both ends come to agree by themselves on who holds the region;
//! "committed" anywhere means that both ends hold the same bytes; and the daemons serve the next
//! session.

use crate::harness::client::{Answer, Pending};
use crate::harness::lab::{Lab, Session, Transfer};
use crate::harness::memory::{MIB, Memory, Writer};
use crate::harness::proxy::{Channel, Way};
use crate::harness::{Rng, SOON, observe, wait_for, wait_until};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Points that a short run takes.
const POINTS_SHORT: usize = 4;

/// The name of the region under test at both ends.
const REGION: &str = "vm";

/// Longer than the source waits for the sink's answer to its yield, so that a sink stopped for so
/// long in the commit brings the session in doubt.
const STOPPED: Duration = Duration::from_millis(2500);

/// The daemons settle a session in doubt as soon as they can talk. The bound covers the longest
/// wait between two attempts to reach a peer.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);

/// How far a session has come when the fault hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The control channel is being secured.
    Handshake,
    /// The data streams come up.
    Streams,
    /// The sink's answer to the opening is on its way.
    Answer,
    /// A round's first frame is on its way.
    RoundStart(u32),
    /// A part of a round has arrived.
    RoundMiddle(u32),
    /// Frames arrive and no acknowledgement comes back.
    RoundUnacknowledged(u32),
    /// Between a round and what comes next.
    RoundEnd(u32),
    /// The pause has begun; nothing of the last round has arrived.
    LastRoundStart,
    /// A part of the last round has arrived.
    LastRoundMiddle,
    /// The sink proves what it holds.
    Verifying,
    /// The source has given the region up; the sink does not know.
    Yielded,
    /// The sink has taken the region; the source does not know.
    Committed,
    /// Both know; the sink does not know that the source does.
    Settled,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    LinkCut,
    SourceKilled,
    SinkKilled,
    SinkStopped,
}

const PHASES: [Phase; 16] = [
    Phase::Handshake,
    Phase::Streams,
    Phase::Answer,
    Phase::RoundStart(1),
    Phase::RoundMiddle(1),
    Phase::RoundUnacknowledged(1),
    Phase::RoundEnd(1),
    Phase::RoundStart(2),
    Phase::RoundMiddle(2),
    Phase::RoundEnd(2),
    Phase::LastRoundStart,
    Phase::LastRoundMiddle,
    Phase::Verifying,
    Phase::Yielded,
    Phase::Committed,
    Phase::Settled,
];

const FAULTS: [Fault; 4] =
    [Fault::LinkCut, Fault::SourceKilled, Fault::SinkKilled, Fault::SinkStopped];

/// Every point: each phase with each fault.
fn points() -> Vec<(Phase, Fault)> {
    PHASES.iter().flat_map(|phase| FAULTS.map(|fault| (*phase, fault))).collect()
}

#[test]
fn no_fault_loses_the_region_or_calls_half_a_session_done() {
    let all = points();
    assert!(all.len() >= 25);
    let chosen = if std::env::var("DWCP_E2E_FULL").is_ok_and(|full| full == "1") {
        all
    } else {
        let seed = seed();
        println!("DWCP_E2E_SEED={seed}");
        choose(all, seed)
    };
    for (index, (phase, fault)) in chosen.iter().enumerate() {
        println!("point {index}: {fault:?} at {phase:?}");
        Run::to(*phase, index as u64).hit(*fault).check();
    }
}

/// The commit is where a wrong step would run a guest twice or never: its points always run.
#[test]
fn a_commit_that_is_cut_is_settled_by_the_daemons_themselves() {
    for phase in [Phase::Yielded, Phase::Committed] {
        println!("point: LinkCut at {phase:?}");
        Run::to(phase, 99).hit(Fault::LinkCut).check();
    }
}

/// While the peers can't talk, nobody pretends to know.
#[test]
fn a_session_in_doubt_says_so_over_a_restart_until_the_peer_is_back() {
    let mut run = Run::to(Phase::Committed, 98);
    run.lab.proxy.refuse(true);
    run.lab.proxy.cut();
    run.lab.proxy.release_all();
    let pending = run.pending.take().expect("a call that waits");
    let error = pending.finish().expect_err("the source does not know");
    assert_eq!(error.code(), "session_in_doubt", "{error:?}");
    let tells = |lab: &Lab| {
        let record = lab.source.sessions_of(REGION).remove(0);
        assert_eq!(record["state"], "in_doubt", "{record}");
        assert!(record["reason"].is_string() && record["cure"].is_string(), "{record}");
        assert_eq!(lab.source.must("status", json!({}))["health"], "in doubt");
        let abort = lab.source.call("session.abort", json!({"session": record["session"]}));
        assert_eq!(abort.expect_err("too late").code(), "session_state");
    };
    tells(&run.lab);
    let release = run.lab.source.call("region.release", json!({"name": REGION}));
    assert_eq!(release.expect_err("nobody knows whose it is").code(), "region_busy");
    run.lab.source.kill();
    run.lab.source.restart();
    tells(&run.lab);
    run.lab.proxy.refuse(false);
    run.check();
}

/// From the environment, else the day.
fn seed() -> u64 {
    let day = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs() / 86_400;
    std::env::var("DWCP_E2E_SEED").map_or(day, |text| text.parse().expect("a number"))
}

fn choose(mut all: Vec<(Phase, Fault)>, seed: u64) -> Vec<(Phase, Fault)> {
    let mut rng = Rng(seed);
    let mut take = || {
        let index = rng.below(all.len() as u64);
        all.swap_remove(usize::try_from(index).expect("few points"))
    };
    (0..POINTS_SHORT).map(|_| take()).collect()
}

/// A session on its way to the point where the fault hits.
struct Run {
    lab: Lab,
    transfer: Transfer,
    writer: Option<Writer>,
    session: Option<Session>,
    /// The call that the fault meets.
    pending: Option<Pending>,
    phase: Phase,
}

impl Run {
    /// Starts everything and brings the session to `phase`.
    fn to(phase: Phase, seed: u64) -> Self {
        let lab = Lab::start(&[]);
        let transfer = lab.register(REGION, Memory::filled(seed, 16 * MIB, true));
        let writer = Some(transfer.source.start_writer(seed, 4));
        let mut this = Self { lab, transfer, writer, session: None, pending: None, phase };
        match phase {
            Phase::Handshake | Phase::Streams | Phase::Answer => this.go_to_opening(),
            Phase::RoundStart(round)
            | Phase::RoundMiddle(round)
            | Phase::RoundUnacknowledged(round)
            | Phase::RoundEnd(round) => this.go_to_round(round),
            _ => this.go_to_end(),
        }
        this
    }

    fn go_to_opening(&mut self) {
        let proxy = &self.lab.proxy;
        let (channel, way) = match self.phase {
            Phase::Handshake => (Channel::Control, Way::Forth),
            Phase::Streams => (Channel::Data, Way::Forth),
            _ => {
                // A link that is up already carries the sink's answer next.
                self.lab.good_session("before");
                (Channel::Control, Way::Back)
            }
        };
        proxy.hold(channel, way);
        let params = self.lab.open_params(&self.transfer);
        self.pending = Some(self.lab.source.pending("session.open", params));
        if self.phase == Phase::Answer {
            // Held pings look alike, so the sink says that it has answered.
            wait_until("the sink's session", SOON, || {
                !self.lab.sink.sessions_of(REGION).is_empty()
            });
        }
        proxy.wait_held(channel, way);
    }

    fn go_to_round(&mut self, round: u32) {
        let mut session = self.lab.must_open(&self.transfer);
        let proxy = &self.lab.proxy;
        (1..round).for_each(|_| drop(session.round().expect("a good round")));
        // Much for this round, so that it has a middle; one writer at a time counts the versions.
        self.writer.take().into_iter().for_each(Writer::stop);
        self.transfer.source.touch_some(&mut Rng(5), 2000);
        self.writer = Some(self.transfer.source.start_writer(u64::from(round), 4));
        let flow = match self.phase {
            Phase::RoundStart(_) => (Way::Forth, 0),
            Phase::RoundMiddle(1) => (Way::Forth, 2 * MIB),
            Phase::RoundMiddle(_) => (Way::Forth, MIB / 8),
            Phase::RoundUnacknowledged(_) => (Way::Back, 0),
            _ => {
                session.round().expect("a good round");
                self.session = Some(session);
                return;
            }
        };
        proxy.hold_after(Channel::Data, flow.0, flow.1);
        self.pending = Some(self.lab.source.pending("session.round", session.params()));
        proxy.wait_held(Channel::Data, flow.0);
        self.session = Some(session);
    }

    fn go_to_end(&mut self) {
        let mut session = self.lab.must_open(&self.transfer);
        let (source, sink, proxy) = (&self.lab.source, &self.lab.sink, &self.lab.proxy);
        session.round().expect("a good round");
        self.writer.take().expect("a writer").stop();
        // Much for the last round, so that it has a middle.
        self.transfer.source.touch_some(&mut Rng(5), 2000);
        let mut listener = source.client();
        listener.must("subscribe", json!({"topics": ["session.state"]}));
        match self.phase {
            Phase::LastRoundStart => proxy.hold(Channel::Data, Way::Forth),
            Phase::LastRoundMiddle => proxy.hold_after(Channel::Data, Way::Forth, MIB / 4),
            Phase::Yielded => proxy.hold(Channel::Control, Way::Forth),
            Phase::Committed | Phase::Settled => proxy.hold(Channel::Control, Way::Back),
            _ => {}
        }
        self.pending = Some(source.pending("session.finish", session.params()));
        let mut wait_state = |state: &str| {
            wait_until(state, SOON, || {
                let (_, params) = listener.notification(SOON).expect("a notification");
                params["state"] == json!(state)
            });
        };
        match self.phase {
            Phase::LastRoundStart | Phase::LastRoundMiddle => {
                proxy.wait_held(Channel::Data, Way::Forth);
            }
            Phase::Verifying => wait_state("verifying"),
            Phase::Yielded => wait_state("yielded"),
            _ => {
                wait_until("the sink to commit", SOON, || sink.state_of(&session.id) == "committed")
            }
        }
        if self.phase == Phase::Settled {
            proxy.hold(Channel::Control, Way::Forth);
            proxy.release(Channel::Control, Way::Back);
            wait_state("committed");
        }
        self.session = Some(session);
    }

    /// Lets the fault happen, then undoes what an operator would: dead daemons start again.
    fn hit(mut self, fault: Fault) -> Self {
        match fault {
            Fault::LinkCut => self.lab.proxy.cut(),
            Fault::SourceKilled => self.lab.source.kill(),
            Fault::SinkKilled => self.lab.sink.kill(),
            Fault::SinkStopped => self.lab.sink.stop(),
        }
        self.lab.proxy.release_all();
        if fault == Fault::SinkStopped {
            let source = &self.lab.source;
            observe(STOPPED, || drop(source.must("status", json!({}))));
            self.lab.sink.go_on();
        }
        if fault == Fault::SinkKilled {
            // Connections that are being made to nobody end as they would with a dead host.
            self.lab.proxy.cut();
        }
        let outcome = self.pending.take().map(Pending::finish);
        self.writer.take().into_iter().for_each(Writer::stop);
        self.check_answer(fault, outcome);
        match fault {
            Fault::SourceKilled => {
                self.lab.proxy.cut();
                self.lab.source.restart();
            }
            Fault::SinkKilled => self.lab.restart_sink(),
            // The session went on while the sink stood still, or it ended; let it end.
            Fault::SinkStopped | Fault::LinkCut => {}
        }
        self.finish_what_lives(fault);
        self
    }

    /// The client that waited was told the truth.
    fn check_answer(&self, fault: Fault, outcome: Option<Answer>) {
        let Some(outcome) = outcome else { return };
        let codes = [
            "session_failed",
            "session_in_doubt",
            "link_lost",
            "peer_unreachable",
            "peer_refused",
            "connection closed",
        ];
        match outcome {
            Ok(answer) if answer["state"] == "committed" => self.transfer.assert_equal(),
            Ok(_) => {}
            Err(error) => {
                assert!(codes.contains(&error.code()), "{error:?}");
                let closed = error.code() == "connection closed";
                assert_eq!(closed, fault == Fault::SourceKilled, "{error:?}");
            }
        }
    }

    /// A session that the fault did not end goes on to its commit.
    fn finish_what_lives(&mut self, fault: Fault) {
        if fault == Fault::SourceKilled || fault == Fault::SinkKilled {
            return;
        }
        let lives = |record: &Value| record["state"] == "precopy";
        let Some(record) = self.lab.source.sessions_of(REGION).into_iter().find(lives) else {
            return;
        };
        let answer = self.lab.source.call("session.finish", json!({"session": record["session"]}));
        // A cut that the daemons notice only now ends it as well.
        if let Ok(answer) = answer {
            assert_eq!(answer["state"], "committed");
            self.transfer.assert_equal();
        }
    }

    /// What must hold once both daemons run again.
    fn check(self) {
        let Self { lab, transfer, phase, .. } = self;
        let ends = ["committed", "failed", "aborted"];
        let ended = |record: &Value| ends.iter().any(|end| record["state"] == *end);
        let over = || {
            let (source, sink) = (lab.source.sessions_of(REGION), lab.sink.sessions_of(REGION));
            let done = source.iter().chain(&sink).all(ended);
            done.then_some((source, sink))
        };
        let (source, sink) = wait_for("both ends to settle", SETTLED_WITHIN, over);
        assert!(source.len() <= 1 && sink.len() <= 1, "one session: {source:?} {sink:?}");
        if !matches!(phase, Phase::Handshake | Phase::Streams) {
            assert_eq!(source.len(), 1, "the source tells of its session");
        }
        let committed = |records: &[Value]| records.iter().any(|r| r["state"] == "committed");
        assert_eq!(committed(&source), committed(&sink), "source {source:?}, sink {sink:?}");
        if committed(&sink) {
            transfer.assert_equal();
        }
        for record in source.iter().filter(|record| record["state"] == "failed") {
            assert!(record["reason"].is_string() && record["cure"].is_string(), "{record}");
        }
        transfer.assert_source_intact();
        for daemon in [&lab.source, &lab.sink] {
            let regions = daemon.must("region.list", json!({}));
            let regions = regions.as_array().expect("a list").clone();
            assert!(regions.iter().all(|region| region["session"].is_null()), "{regions:?}");
            let status = daemon.must("status", json!({}));
            assert_eq!(status["health"], "good", "{status}");
        }
        lab.good_session("after");
    }
}
