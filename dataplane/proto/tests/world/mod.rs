//! Both daemons of a session, their journals and the network between them: what the properties are
//! checked on.

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
use dwcp_proto::wire::peer::{Code, Message, PeerCoding, PeerMessage, RegionName};
use dwcp_proto::wire::token::JournalId;
use dwcp_proto::wire::vm::{FactsText, VmOffer, VmTerms};
use std::collections::VecDeque;

pub(crate) const SESSION: SessionId = SessionId([7; 16]);
pub(crate) const LANES: u16 = 3;
pub(crate) const TERMS: VmTerms = VmTerms {
    window_log: 0,
    pages_max: 10,
    base_pages: 5,
    undelivered_bytes_max: 1 << 20,
    before: None,
    held: None,
};

/// One connection: what is under way on it is delivered in order, even after it was cut.
#[derive(Default, Debug)]
pub(crate) struct Link {
    pub(crate) to_sink: VecDeque<PeerMessage>,
    pub(crate) to_source: VecDeque<PeerMessage>,
}

/// Both daemons, their journals and the network between them.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: Nanos,
    pub(crate) source: Option<SourceSession>,
    pub(crate) sink: Option<SinkSession>,
    pub(crate) source_journal: Option<SourceRecord>,
    pub(crate) sink_journal: Option<SinkRecord>,
    pub(crate) sink_journal_id: JournalId,
    pub(crate) source_writes: Option<SourceRecord>,
    pub(crate) sink_writes: Option<SinkRecord>,
    pub(crate) source_lanes: VecDeque<SourceInput>,
    pub(crate) sink_lanes: VecDeque<SinkInput>,
    pub(crate) sink_lanes_open: bool,
    pub(crate) links: Vec<Link>,
    pub(crate) link_up: bool,
    pub(crate) sink_ever_committed: bool,
    pub(crate) journal_lost: bool,
    /// It moves a virtual machine, so that the sink parks.
    pub(crate) vm: bool,
    /// Its ends wait for another connection, as a machine's do and a region's if both know how.
    pub(crate) resumes: bool,
    /// An operator decided at this end, and its journal may hold it.
    pub(crate) source_decided: bool,
    pub(crate) sink_decided: bool,
    /// The sink was parked when its daemon ended.
    pub(crate) sink_parked: bool,
    pub(crate) source_conflict: Option<Conflict>,
    pub(crate) sink_conflict: Option<Conflict>,
}

impl World {
    pub(crate) fn new() -> Self {
        let (region, coding) = (RegionName::cut("vm"), PeerCoding::Full);
        Self::of(SourceWhat::Region { region, pages: 100, coding })
    }

    /// One that moves a region which waits for another connection of its link.
    pub(crate) fn resuming() -> Self {
        Self { resumes: true, ..Self::new() }
    }

    /// One that moves a virtual machine.
    pub(crate) fn with_vm() -> Self {
        let (name, facts) = (RegionName::cut("vm"), FactsText::cut("{}"));
        let offer = VmOffer { name, facts, coding: PeerCoding::Full, terms: TERMS, paused: false };
        Self::of(SourceWhat::Vm(Box::new(offer)))
    }

    pub(crate) fn of(what: SourceWhat) -> Self {
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
            resumes: vm,
            source_decided: false,
            sink_decided: false,
            sink_parked: false,
            source_conflict: None,
            sink_conflict: None,
        };
        world.do_source(actions);
        world
    }

    pub(crate) fn source(&mut self, input: SourceInput) -> Result<(), StepError> {
        let Some(source) = &mut self.source else { return Ok(()) };
        let actions = source.step(self.now, input)?;
        self.do_source(actions);
        Ok(())
    }

    pub(crate) fn do_source(&mut self, actions: Vec<SourceAction>) {
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

    pub(crate) fn sink(&mut self, input: SinkInput) -> Result<(), StepError> {
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

    pub(crate) fn do_sink(&mut self, actions: Vec<SinkAction>) {
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

    pub(crate) fn journal_source(&mut self, reaches_disk: bool, confirmed: bool) {
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

    pub(crate) fn journal_sink(&mut self, reaches_disk: bool, confirmed: bool) {
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

    pub(crate) fn restart_source(&mut self, write_survives: bool) {
        if let (Some(record), true) = (self.source_writes.take(), write_survives) {
            self.source_journal = Some(record);
        }
        self.source_lanes.clear();
        self.link_up = false;
        let timing = SessionTiming::default();
        let restored = self.source_journal.map(|r| SourceSession::restore(SESSION, r, timing));
        self.source = restored.map(|(source, _)| source);
    }

    pub(crate) fn restart_sink(&mut self, write_survives: bool) {
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

    pub(crate) fn cut(&mut self) {
        if std::mem::take(&mut self.link_up) {
            self.source(SourceInput::LinkLost).unwrap();
        }
    }

    pub(crate) fn connect(&mut self) {
        if !self.link_up {
            self.link_up = true;
            self.links.push(Link::default());
            self.source(SourceInput::LinkUp).unwrap();
        }
    }

    /// The connection is lost and another takes its place at once. An end that may wait hears
    /// nothing of that; what was under way is gone, and each learns whether the other still waits.
    pub(crate) fn renew(&mut self) {
        if !self.link_up {
            return;
        }
        self.links = vec![Link::default()];
        let source = self.source.as_ref().is_some_and(SourceSession::may_park);
        let sink = self.sink.as_ref().is_some_and(SinkSession::may_park);
        if self.sink.is_some() && !sink {
            self.sink(SinkInput::LinkLost).unwrap();
        }
        let waits = sink || self.sink.as_ref().is_some_and(SinkSession::is_parked);
        let (session, code) = (SESSION, Code::cut("test"));
        let message = Message::cut("test");
        if !source {
            self.cut();
            self.connect();
        } else if !waits {
            let failed = PeerMessage::SessionFailed { session, code, message };
            return self.source(SourceInput::Peer(failed)).unwrap();
        }
        if sink && !source {
            let abort = PeerMessage::Abort { session, code, message };
            self.sink(SinkInput::Peer(abort)).unwrap();
        }
    }

    pub(crate) fn deliver_to_sink(&mut self, pick: usize) {
        let waiting = self.links.iter_mut().filter(|link| !link.to_sink.is_empty());
        let mut waiting: Vec<_> = waiting.collect();
        let count = waiting.len().max(1);
        if let Some(message) = waiting.get_mut(pick % count).and_then(|l| l.to_sink.pop_front()) {
            self.sink(SinkInput::Peer(message)).unwrap();
        }
    }

    pub(crate) fn deliver_to_source(&mut self, pick: usize) {
        let waiting = self.links.iter_mut().filter(|link| !link.to_source.is_empty());
        let mut waiting: Vec<_> = waiting.collect();
        let count = waiting.len().max(1);
        if let Some(message) = waiting.get_mut(pick % count).and_then(|l| l.to_source.pop_front()) {
            self.source(SourceInput::Peer(message)).unwrap();
        }
    }

    pub(crate) fn tick(&mut self, millis: u64) {
        self.now = self.now + Nanos::from_millis(millis);
        self.source(SourceInput::Tick).unwrap();
        if self.sink.is_some() {
            self.sink(SinkInput::Tick).unwrap();
        }
    }

    pub(crate) fn lane_event(&mut self) {
        if let Some(input) = self.source_lanes.pop_front() {
            self.source(input).unwrap();
        }
        if let Some(input) = self.sink_lanes.pop_front() {
            self.sink(input).unwrap();
        }
    }

    /// One random event. The odds favour progress, so that late phases are reached.
    pub(crate) fn event(&mut self, op: u8, pick: u8) {
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
            253..=255 if self.resumes => self.renew(),
            _ => {}
        }
    }

    /// An operator decides at each end that is in doubt; at the sink, the other way round.
    pub(crate) fn decide(&mut self, run: RunAt) {
        self.source_decided |=
            self.source(SourceInput::Resolve(run)).is_ok() && self.source_writes.is_some();
        let other = if run == RunAt::Source { RunAt::Sink } else { RunAt::Source };
        if self.sink.is_some() {
            self.sink_decided |= self.sink(SinkInput::Resolve(other)).is_ok();
        }
    }

    pub(crate) fn decided(&self) -> bool {
        self.source_decided || self.sink_decided
    }

    pub(crate) fn source_owns(&self) -> bool {
        self.source.as_ref().is_none_or(|source| source.phase().owns_region())
    }

    pub(crate) fn check(&self) {
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
    pub(crate) fn heal(&mut self) {
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
