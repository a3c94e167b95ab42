//! Properties of the two session machines: whatever is cut, restarted or delayed, there are never
//! two owners of a region, and once all is healed the session ends the same way at both ends.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use dwcp_proto::ids::{LaneId, SessionId, SessionNumber};
use dwcp_proto::session::phase::{SinkPhase, SourcePhase};
use dwcp_proto::session::reason::StepError;
use dwcp_proto::session::record::{SinkRecord, SourceRecord};
use dwcp_proto::session::resolve::{Conflict, RunAt};
use dwcp_proto::session::sink::{SinkAction, SinkInput, SinkReport, SinkSession, SinkSpec};
use dwcp_proto::session::source::{
    SourceAction, SourceInput, SourceReport, SourceSession, SourceSpec, SourceWhat,
};
use dwcp_proto::session::timing::SessionTiming;
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::peer::{Message, PeerCoding, PeerMessage, RegionName};
use dwcp_proto::wire::token::JournalId;
use dwcp_proto::wire::vm::{FactsText, VmOffer, VmTerms};
use proptest::prelude::*;
use std::collections::VecDeque;

const SESSION: SessionId = SessionId([7; 16]);
const LANES: u16 = 3;
const TERMS: VmTerms =
    VmTerms { window_log: 0, pages_max: 10, base_pages: 5, undelivered_bytes_max: 1 << 20 };

/// One connection: what is under way on it is delivered in order, even after it was cut.
#[derive(Default, Debug)]
struct Link {
    to_sink: VecDeque<PeerMessage>,
    to_source: VecDeque<PeerMessage>,
}

/// Both daemons, their journals and the network between them.
#[derive(Debug)]
struct World {
    now: Nanos,
    source: Option<SourceSession>,
    sink: Option<SinkSession>,
    source_journal: Option<SourceRecord>,
    sink_journal: Option<SinkRecord>,
    sink_journal_id: JournalId,
    source_writes: Option<SourceRecord>,
    sink_writes: Option<SinkRecord>,
    source_lanes: VecDeque<SourceInput>,
    sink_lanes: VecDeque<SinkInput>,
    sink_lanes_open: bool,
    links: Vec<Link>,
    link_up: bool,
    sink_ever_committed: bool,
    journal_lost: bool,
    /// It moves a virtual machine, so that the sink parks.
    vm: bool,
    /// An operator decided at this end, and its journal may hold it.
    source_decided: bool,
    sink_decided: bool,
    /// The sink was parked when its daemon ended.
    sink_parked: bool,
    source_conflict: Option<Conflict>,
    sink_conflict: Option<Conflict>,
}

impl World {
    fn new() -> Self {
        let (region, coding) = (RegionName::cut("vm"), PeerCoding::Full);
        Self::of(SourceWhat::Region { region, pages: 100, coding })
    }

    /// One that moves a virtual machine.
    fn with_vm() -> Self {
        let (name, facts) = (RegionName::cut("vm"), FactsText::cut("{}"));
        let offer = VmOffer { name, facts, coding: PeerCoding::Full, terms: TERMS };
        Self::of(SourceWhat::Vm(Box::new(offer)))
    }

    fn of(what: SourceWhat) -> Self {
        let vm = matches!(what, SourceWhat::Vm(_));
        let spec = SourceSpec { session: SESSION, number: SessionNumber(1), what, lanes: LANES };
        let (source, actions) = SourceSession::open(spec, SessionTiming::default(), Nanos(0));
        let mut world = Self {
            now: Nanos(0),
            source: Some(source),
            sink: None,
            source_journal: None,
            sink_journal: None,
            sink_journal_id: JournalId([1; 16]),
            source_writes: None,
            sink_writes: None,
            source_lanes: VecDeque::new(),
            sink_lanes: VecDeque::new(),
            sink_lanes_open: false,
            links: vec![Link::default()],
            link_up: true,
            sink_ever_committed: false,
            journal_lost: false,
            vm,
            source_decided: false,
            sink_decided: false,
            sink_parked: false,
            source_conflict: None,
            sink_conflict: None,
        };
        world.do_source(actions);
        world
    }

    fn source(&mut self, input: SourceInput) -> Result<(), StepError> {
        let Some(source) = &mut self.source else { return Ok(()) };
        let actions = source.step(self.now, input)?;
        self.do_source(actions);
        Ok(())
    }

    fn do_source(&mut self, actions: Vec<SourceAction>) {
        let lanes = || (0..LANES).map(LaneId);
        for action in actions {
            match action {
                SourceAction::Send(message) if self.link_up => {
                    self.links.last_mut().unwrap().to_sink.push_back(message);
                }
                SourceAction::OpenLanes => {
                    self.source_lanes.extend(lanes().map(SourceInput::LaneOpened));
                }
                SourceAction::StartRound { round, .. } => self
                    .source_lanes
                    .extend(lanes().map(|lane| SourceInput::LaneRoundDone { lane, round })),
                SourceAction::Verify if self.sink_lanes_open => {
                    self.sink_lanes.extend(lanes().map(SinkInput::LaneVerified));
                    self.source_lanes.extend(lanes().map(SourceInput::LaneVerified));
                }
                SourceAction::Journal(record) => self.source_writes = Some(record),
                SourceAction::Report(SourceReport::Conflict(conflict)) => {
                    self.source_conflict = Some(conflict);
                }
                SourceAction::CloseLanes => self.source_lanes.clear(),
                _ => {}
            }
        }
    }

    fn sink(&mut self, input: SinkInput) -> Result<(), StepError> {
        if self.sink.is_none() {
            match input {
                SinkInput::Peer(
                    PeerMessage::SessionOpen { session, number, .. }
                    | PeerMessage::VmOpen { session, number, .. },
                ) => {
                    let journal = self.sink_journal_id;
                    let vm = self.vm.then_some(TERMS);
                    let spec = SinkSpec { session, number, lanes: LANES, journal, vm };
                    let (sink, actions) =
                        SinkSession::open(spec, SessionTiming::default(), self.now);
                    self.sink = Some(sink);
                    self.do_sink(actions);
                    return Ok(());
                }
                SinkInput::Peer(PeerMessage::Query { .. } | PeerMessage::Resolved { .. }) => {
                    self.sink = Some(SinkSession::restore(SESSION, None, self.sink_journal_id));
                }
                _ => return Ok(()),
            }
        }
        let actions = self.sink.as_mut().unwrap().step(self.now, input)?;
        self.do_sink(actions);
        Ok(())
    }

    fn do_sink(&mut self, actions: Vec<SinkAction>) {
        for action in actions {
            match action {
                SinkAction::Send(message) if self.link_up => {
                    self.links.last_mut().unwrap().to_source.push_back(message);
                }
                SinkAction::OpenLanes => {
                    self.sink_lanes_open = true;
                    self.sink_lanes.extend((0..LANES).map(LaneId).map(SinkInput::LaneOpened));
                }
                SinkAction::CloseLanes => {
                    self.sink_lanes_open = false;
                    self.sink_lanes.clear();
                }
                SinkAction::Report(SinkReport::Conflict(conflict)) => {
                    self.sink_conflict = Some(conflict);
                }
                SinkAction::Journal(record) => {
                    let sink = self.sink.as_ref().unwrap();
                    if record == SinkRecord::Committed {
                        assert!(sink.phase() == SinkPhase::Verified || sink.is_parked());
                    }
                    self.sink_writes = Some(record);
                }
                SinkAction::Forget => self.sink_journal = None,
                _ => {}
            }
        }
    }

    fn journal_source(&mut self, reaches_disk: bool, confirmed: bool) {
        let Some(record) = self.source_writes.take() else { return };
        if reaches_disk {
            self.source_journal = Some(record);
        }
        let input = match confirmed {
            true => SourceInput::JournalWritten(record),
            false => SourceInput::JournalFailed(record),
        };
        self.source(input).unwrap();
    }

    fn journal_sink(&mut self, reaches_disk: bool, confirmed: bool) {
        let Some(record) = self.sink_writes.take() else { return };
        if reaches_disk {
            self.sink_journal = Some(record);
            self.sink_ever_committed |= record.owns();
        }
        let input = match confirmed {
            true => SinkInput::JournalWritten(record),
            false => SinkInput::JournalFailed(record),
        };
        self.sink(input).unwrap();
    }

    fn restart_source(&mut self, write_survives: bool) {
        if let (Some(record), true) = (self.source_writes.take(), write_survives) {
            self.source_journal = Some(record);
        }
        self.source_lanes.clear();
        self.link_up = false;
        let timing = SessionTiming::default();
        let restored = self.source_journal.map(|r| SourceSession::restore(SESSION, r, timing));
        self.source = restored.map(|(source, _)| source);
    }

    fn restart_sink(&mut self, write_survives: bool) {
        if let (Some(record), true) = (self.sink_writes.take(), write_survives) {
            self.sink_journal = Some(record);
            self.sink_ever_committed |= record.owns();
        }
        // The driver notes that a session is parked; nobody waits for that to reach the disk.
        let parked = self.sink.as_ref().is_some_and(SinkSession::is_parked) && !self.journal_lost;
        self.sink_parked = parked && self.sink_journal.is_none() && write_survives;
        self.sink_lanes.clear();
        self.sink_lanes_open = false;
        let record = self.sink_journal;
        self.sink = record.map(|r| SinkSession::restore(SESSION, Some(r), self.sink_journal_id));
        if self.sink_parked {
            self.sink = Some(SinkSession::restore_parked(SESSION, self.sink_journal_id));
        }
        self.cut();
    }

    fn cut(&mut self) {
        if std::mem::take(&mut self.link_up) {
            self.source(SourceInput::LinkLost).unwrap();
        }
    }

    fn connect(&mut self) {
        if !self.link_up {
            self.link_up = true;
            self.links.push(Link::default());
            self.source(SourceInput::LinkUp).unwrap();
        }
    }

    fn deliver_to_sink(&mut self, pick: usize) {
        let waiting = self.links.iter_mut().filter(|link| !link.to_sink.is_empty());
        let mut waiting: Vec<_> = waiting.collect();
        let count = waiting.len().max(1);
        if let Some(message) = waiting.get_mut(pick % count).and_then(|l| l.to_sink.pop_front()) {
            self.sink(SinkInput::Peer(message)).unwrap();
        }
    }

    fn deliver_to_source(&mut self, pick: usize) {
        let waiting = self.links.iter_mut().filter(|link| !link.to_source.is_empty());
        let mut waiting: Vec<_> = waiting.collect();
        let count = waiting.len().max(1);
        if let Some(message) = waiting.get_mut(pick % count).and_then(|l| l.to_source.pop_front()) {
            self.source(SourceInput::Peer(message)).unwrap();
        }
    }

    fn tick(&mut self, millis: u64) {
        self.now = self.now + Nanos::from_millis(millis);
        self.source(SourceInput::Tick).unwrap();
        if self.sink.is_some() {
            self.sink(SinkInput::Tick).unwrap();
        }
    }

    fn lane_event(&mut self) {
        if let Some(input) = self.source_lanes.pop_front() {
            self.source(input).unwrap();
        }
        if let Some(input) = self.sink_lanes.pop_front() {
            self.sink(input).unwrap();
        }
    }

    /// One random event. The odds favour progress, so that late phases are reached.
    fn event(&mut self, op: u8, pick: u8) {
        let (low, high) = (pick & 1 == 1, pick & 2 == 2);
        match op {
            0..=39 => self.deliver_to_sink(pick.into()),
            40..=79 => self.deliver_to_source(pick.into()),
            80..=139 => self.lane_event(),
            140..=159 => self.journal_source(true, true),
            160..=179 => self.journal_sink(true, true),
            180..=199 => drop(self.source(SourceInput::Finish)),
            200..=214 => drop(self.source(SourceInput::Round)),
            215 => drop(self.source(SourceInput::Abort)),
            216 if self.sink.is_some() => drop(self.sink(SinkInput::Abort)),
            217..=219 => self.cut(),
            220..=222 if !self.link_up && self.sink.is_some() => {
                self.sink(SinkInput::LinkLost).unwrap();
            }
            223..=231 => self.connect(),
            232..=234 => self.restart_source(low),
            235..=237 => self.restart_sink(low),
            238 => self.journal_source(low, false),
            239 => self.journal_sink(low, false),
            240 => {
                let (lane, code) = (LaneId(u16::from(pick) % LANES), "test");
                self.source(SourceInput::LaneFailed { lane, code }).unwrap();
            }
            241 if self.sink.is_some() => {
                let (lane, code) = (LaneId(u16::from(pick) % LANES), "test");
                self.sink(SinkInput::LaneFailed { lane, code }).unwrap();
            }
            242 if high && low => {
                self.sink_journal = None;
                self.sink_journal_id.0[0] += 1;
                self.journal_lost = true;
                self.restart_sink(false);
            }
            243..=250 => self.tick(u64::from(pick) * 20),
            251 if self.vm && low => self.decide(if high { RunAt::Source } else { RunAt::Sink }),
            252 if self.vm => {
                let (code, message) = ("test", Message::cut("test"));
                match low {
                    true => self.source(SourceInput::VmFailed { code, message }).unwrap(),
                    false if self.sink.is_some() => {
                        self.sink(SinkInput::VmFailed { code, message }).unwrap();
                    }
                    false => {}
                }
            }
            _ => {}
        }
    }

    /// An operator decides at each end that is in doubt; at the sink, the other way round.
    fn decide(&mut self, run: RunAt) {
        self.source_decided |=
            self.source(SourceInput::Resolve(run)).is_ok() && self.source_writes.is_some();
        let other = if run == RunAt::Source { RunAt::Sink } else { RunAt::Source };
        if self.sink.is_some() {
            self.sink_decided |= self.sink(SinkInput::Resolve(other)).is_ok();
        }
    }

    fn decided(&self) -> bool {
        self.source_decided || self.sink_decided
    }

    fn source_owns(&self) -> bool {
        self.source.as_ref().is_none_or(|source| source.phase().owns_region())
    }

    fn check(&self) {
        let sink_phase = self.sink.as_ref().map(SinkSession::phase);
        if sink_phase == Some(SinkPhase::Committed) {
            assert!(self.sink_ever_committed, "the sink claims what it never wrote: {self:#?}");
        }
        let both = self.source_owns() && self.sink_ever_committed;
        assert!(!both || self.decided(), "two owners: {self:#?}");
        if self.sink_ever_committed && !self.decided() {
            let kept = matches!(self.source_journal, None | Some(SourceRecord::Kept));
            assert!(!kept, "a restarted source would be a second owner: {self:#?}");
        }
        let gone = self.source.as_ref().map(SourceSession::phase) == Some(SourcePhase::Committed);
        if gone && !self.decided() {
            assert!(self.sink_ever_committed, "no owner is left: {self:#?}");
        }
    }

    /// Lets everything work until nothing moves.
    fn heal(&mut self) {
        for _ in 0..400 {
            let sink = self.sink.as_ref();
            if sink.is_some_and(|s| s.phase() == SinkPhase::InDoubt && !s.is_parked()) {
                self.restart_sink(false);
            }
            self.connect();
            self.deliver_to_sink(0);
            self.deliver_to_source(0);
            self.lane_event();
            self.journal_source(true, true);
            self.journal_sink(true, true);
            let _ = self.source(SourceInput::Finish);
            self.tick(500);
            self.check();
        }
    }
}

#[test]
fn a_good_run_moves_the_region() {
    let mut world = World::new();
    world.heal();
    assert_eq!(world.source.as_ref().unwrap().phase(), SourcePhase::Committed);
    assert_eq!(world.sink.as_ref().unwrap().phase(), SinkPhase::Committed);
    assert_eq!(world.source_journal, Some(SourceRecord::Done));
    assert_eq!(world.sink_journal, None, "the sink forgets what is settled");
}

#[test]
fn nothing_is_taken_back_once_the_journal_was_asked() {
    let mut world = World::new();
    while world.source_writes.is_none() {
        world.deliver_to_sink(0);
        world.deliver_to_source(0);
        world.lane_event();
        let _ = world.source(SourceInput::Finish);
    }
    assert_eq!(world.source(SourceInput::Abort), Err(StepError::TooLate));
    world.cut();
    world.journal_source(true, true);
    assert_eq!(world.source.as_ref().unwrap().phase(), SourcePhase::InDoubt);
    world.heal();
    assert!(world.source_owns(), "the sink never heard the yield");
}

#[test]
fn a_lost_sink_journal_leaves_the_source_in_doubt() {
    let mut world = World::new();
    while world.sink_journal.is_none() {
        world.deliver_to_sink(0);
        world.deliver_to_source(0);
        world.lane_event();
        world.journal_source(true, true);
        world.journal_sink(true, false);
        let _ = world.source(SourceInput::Finish);
    }
    world.sink_journal = None;
    world.sink_journal_id = JournalId([9; 16]);
    world.restart_sink(false);
    world.heal();
    let source = world.source.as_ref().unwrap();
    assert_eq!(source.phase(), SourcePhase::InDoubt);
    assert_eq!(source.reason().unwrap().code(), "session_outcome_unknown");
}

#[test]
fn nothing_stops_a_commit_that_the_sink_is_writing() {
    let mut world = World::new();
    while world.sink_writes.is_none() {
        world.deliver_to_sink(0);
        world.deliver_to_source(0);
        world.lane_event();
        world.journal_source(true, true);
        let _ = world.source(SourceInput::Finish);
    }
    assert_eq!(world.sink(SinkInput::Abort), Err(StepError::TooLate));
    world.cut();
    world.sink(SinkInput::LinkLost).unwrap();
    assert_eq!(world.sink.as_ref().unwrap().phase(), SinkPhase::Verified);
    world.journal_sink(true, true);
    assert_eq!(world.sink.as_ref().unwrap().phase(), SinkPhase::Committed);
    world.heal();
    assert_eq!(world.source.as_ref().unwrap().phase(), SourcePhase::Committed);
}

#[test]
fn the_sink_is_told_to_forget_only_what_is_durable_at_the_source() {
    let mut world = World::new();
    while world.source_writes != Some(SourceRecord::Done) {
        world.deliver_to_sink(0);
        world.deliver_to_source(0);
        world.lane_event();
        if world.source_writes != Some(SourceRecord::Done) {
            world.journal_source(true, true);
        }
        world.journal_sink(true, true);
        let _ = world.source(SourceInput::Finish);
    }
    world.journal_source(false, false);
    assert!(world.links.iter().all(|link| link.to_sink.is_empty()), "no word of it");
    world.restart_source(false);
    world.heal();
    assert_eq!(world.source.as_ref().unwrap().phase(), SourcePhase::Committed);
}

#[test]
fn early_messages_of_a_sink_fail_the_session_and_keep_the_region() {
    for message in [
        PeerMessage::Committed { session: SESSION },
        PeerMessage::Yield { session: SESSION },
        PeerMessage::Settled { session: SESSION },
    ] {
        let mut world = World::new();
        world.source(SourceInput::Peer(message)).unwrap();
        let source = world.source.as_ref().unwrap();
        assert_eq!(source.phase(), SourcePhase::Failed);
        assert_eq!(source.reason().unwrap().code(), "session_protocol_violation");
    }
}

/// Runs until both ends wait for a word that never came: the source has yielded, the sink parks.
fn parked() -> World {
    let mut world = World::with_vm();
    while world.source_journal.is_none() {
        world.deliver_to_sink(0);
        world.deliver_to_source(0);
        world.lane_event();
        if world.sink.as_ref().is_some_and(|sink| sink.phase() == SinkPhase::Verified) {
            world.journal_source(true, true);
        }
        let _ = world.source(SourceInput::Finish);
    }
    world.links.clear();
    world.links.push(Link::default());
    world.cut();
    world.sink(SinkInput::LinkLost).unwrap();
    assert!(world.sink.as_ref().unwrap().is_parked());
    assert_eq!(world.source.as_ref().unwrap().phase(), SourcePhase::InDoubt);
    world
}

#[test]
fn a_parked_guest_is_given_up_when_the_source_asks() {
    let mut world = parked();
    world.heal();
    assert!(world.source_owns());
    assert_eq!(world.sink.as_ref().unwrap().phase(), SinkPhase::Aborted);
    assert_eq!((world.source_conflict, world.sink_conflict), (None, None));
}

#[test]
fn an_operators_word_at_one_end_is_heard_at_the_other() {
    for (run, restart) in
        [(RunAt::Source, false), (RunAt::Source, true), (RunAt::Sink, false), (RunAt::Sink, true)]
    {
        let mut world = parked();
        world.source(SourceInput::Resolve(run)).unwrap();
        world.journal_source(true, true);
        assert_eq!(world.source_owns(), run == RunAt::Source, "at once, without the peer");
        if restart {
            world.restart_source(false);
            world.restart_sink(true);
        }
        world.heal();
        let sink = world.sink.as_ref().unwrap();
        assert_eq!(sink.phase().owns_region(), run == RunAt::Sink, "{world:#?}");
        assert_eq!(world.source_owns(), run == RunAt::Source);
        assert_eq!(world.source_journal, Some(SourceRecord::ResolvedTold { run }));
        assert_eq!((world.source_conflict, world.sink_conflict), (None, None));
    }
}

#[test]
fn an_operators_word_at_the_sink_ends_the_sources_doubt() {
    for run in [RunAt::Source, RunAt::Sink] {
        let mut world = parked();
        world.sink(SinkInput::Resolve(run)).unwrap();
        world.journal_sink(true, true);
        assert_eq!(world.sink.as_ref().unwrap().phase().owns_region(), run == RunAt::Sink);
        world.heal();
        assert_eq!(world.source_owns(), run == RunAt::Source);
        assert!(world.source.as_ref().unwrap().is_over());
    }
}

#[test]
fn contradicting_decisions_are_kept_and_said_at_both_ends() {
    for (at_source, at_sink, conflict) in [
        (RunAt::Source, RunAt::Sink, Conflict::BothRun),
        (RunAt::Sink, RunAt::Source, Conflict::NoneRuns),
    ] {
        let mut world = parked();
        (world.source_decided, world.sink_decided) = (true, true);
        world.source(SourceInput::Resolve(at_source)).unwrap();
        world.journal_source(true, true);
        world.sink(SinkInput::Resolve(at_sink)).unwrap();
        world.journal_sink(true, true);
        world.heal();
        assert_eq!(world.source_conflict, Some(conflict));
        assert_eq!(world.sink_conflict, Some(conflict));
        assert_eq!(world.source_owns(), at_source == RunAt::Source, "each keeps to its record");
        assert_eq!(world.sink.as_ref().unwrap().phase().owns_region(), at_sink == RunAt::Sink);
    }
}

#[test]
fn a_decision_that_the_journal_did_not_take_is_none() {
    let mut world = parked();
    world.source(SourceInput::Resolve(RunAt::Source)).unwrap();
    world.journal_source(false, false);
    let source = world.source.as_ref().unwrap();
    assert_eq!(source.phase(), SourcePhase::InDoubt);
    assert_eq!(source.reason().unwrap().code(), "session_journal_failed");
    world.sink(SinkInput::Resolve(RunAt::Sink)).unwrap();
    world.journal_sink(false, false);
    assert!(!world.sink.as_ref().unwrap().is_parked(), "only a restart can tell");
    world.heal();
    assert!(world.source.as_ref().unwrap().is_over());
}

#[test]
fn only_a_doubt_is_resolved_and_a_machine_takes_no_rounds_of_clients() {
    let mut world = World::with_vm();
    let refused = world.source(SourceInput::Resolve(RunAt::Source)).unwrap_err();
    assert_eq!(refused.code(), "session_not_now");
    let refused = world.source(SourceInput::Round).unwrap_err();
    assert_eq!(refused.code(), "session_of_a_vm");
    world.heal();
    assert_eq!(world.source.as_ref().unwrap().phase(), SourcePhase::Committed);
    assert!(world.source(SourceInput::Resolve(RunAt::Source)).is_err());
    assert!(world.sink(SinkInput::Resolve(RunAt::Source)).is_err());
}

#[test]
fn terms_above_the_offer_are_a_violation() {
    let journal = JournalId([1; 16]);
    let above = VmTerms { base_pages: TERMS.base_pages + 1, ..TERMS };
    for vm in [Some(above), None] {
        let mut world = World::with_vm();
        let number = SessionNumber(1);
        let accept = PeerMessage::SessionAccept { session: SESSION, number, journal, vm };
        world.source(SourceInput::Peer(accept)).unwrap();
        let source = world.source.as_ref().unwrap();
        assert_eq!(source.reason().unwrap().code(), "session_protocol_violation", "{vm:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn there_are_never_two_owners_and_healing_ends_every_doubt(
        events in prop::collection::vec((any::<u8>(), any::<u8>()), 1..300),
    ) {
        let mut world = World::new();
        for (op, pick) in events {
            world.event(op, pick);
            world.check();
        }
        world.heal();
        if world.journal_lost {
            return Ok(());
        }
        if let Some(source) = &world.source {
            prop_assert!(source.is_over(), "the source hangs: {world:#?}");
            let committed = source.phase() == SourcePhase::Committed;
            prop_assert_eq!(committed, world.sink_ever_committed, "{:#?}", world);
        }
    }

    #[test]
    fn only_operators_make_two_owners_of_a_machine_and_then_it_is_said(
        events in prop::collection::vec((any::<u8>(), any::<u8>()), 1..300),
    ) {
        let mut world = World::with_vm();
        for (op, pick) in events {
            world.event(op, pick);
            world.check();
        }
        world.heal();
        if world.journal_lost {
            return Ok(());
        }
        let Some(source) = &world.source else { return Ok(()) };
        prop_assert!(source.is_over(), "the source hangs: {world:#?}");
        let two = world.source_owns() && world.sink_ever_committed;
        prop_assert!(!two || world.decided(), "{world:#?}");
        let told = matches!(world.source_journal, Some(SourceRecord::ResolvedTold { .. }));
        if two && told {
            prop_assert_eq!(world.source_conflict, Some(Conflict::BothRun), "{:#?}", world);
        }
        if !world.decided() {
            let committed = source.phase() == SourcePhase::Committed;
            prop_assert_eq!(committed, world.sink_ever_committed, "{:#?}", world);
        }
    }
}
