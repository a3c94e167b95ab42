//! The sink's machine of a session. See [`super`] for a good run and the driver's rules.
//!
//! Runs on the control thread; pure. Invariants: `Committed` is ordered from the journal only when
//! every lane is verified and `Yield` has arrived; `NotCommitted` is said only after `Aborted` is
//! in the journal that the session was accepted with; after that nothing leads to a commit. Only
//! an operator's record, ordered in [`SinkInput::Resolve`], makes an owner without a yield.

mod parked;

use super::ACTIONS_MAX;
use super::lanes::LaneSet;
use super::phase::SinkPhase;
use super::reason::{EndReason, StepError};
use super::record::SinkRecord;
use super::resolve::{Conflict, RunAt};
use super::timing::SessionTiming;
use crate::ids::{LaneId, SessionId, SessionNumber};
use crate::time::Nanos;
use crate::wire::peer::{Message, Outcome, PeerMessage};
use crate::wire::token::JournalId;
use crate::wire::vm::VmTerms;

/// What a new session needs. The driver has checked region and permission before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SinkSpec {
    /// The session.
    pub session: SessionId,
    /// Its name in frames.
    pub number: SessionNumber,
    /// The link's lanes.
    pub lanes: u16,
    /// The journal of this daemon.
    pub journal: JournalId,
    /// Of a virtual machine: what both ends reserve, not above the source's offer.
    pub vm: Option<VmTerms>,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SinkInput {
    /// The source sent a message about this session.
    Peer(PeerMessage),
    /// A client of this daemon gives the session up.
    Abort,
    /// An operator ends the doubt of a parked session.
    Resolve(RunAt),
    /// A lane reserved its memory.
    LaneOpened(LaneId),
    /// On this lane the memory was read back and matches.
    LaneVerified(LaneId),
    /// The session can't go on on this lane.
    LaneFailed {
        /// The lane.
        lane: LaneId,
        /// The data plane's code.
        code: &'static str,
    },
    /// The virtual machine here can't go on.
    VmFailed {
        /// Its stable code.
        code: &'static str,
        /// What happened.
        message: Message,
    },
    /// The record is durable.
    JournalWritten(SinkRecord),
    /// The record may or may not be durable.
    JournalFailed(SinkRecord),
    /// The connection to the source is gone.
    LinkLost,
    /// Time passed.
    Tick,
}

/// What to do, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SinkAction {
    /// Send this to the source, if there is a connection.
    Send(PeerMessage),
    /// Open the session on every lane; each answers `LaneOpened` or `LaneFailed`.
    OpenLanes,
    /// Close the session on every lane and give its memory back.
    CloseLanes,
    /// Write and fsync; answered by `JournalWritten` or `JournalFailed`.
    Journal(SinkRecord),
    /// Tell the clients.
    Report(SinkReport),
    /// The source will never ask again: the journal's record may go.
    Forget,
    /// A message of the peer came too late to matter: count it under this name.
    Ignored {
        /// The message.
        message: &'static str,
    },
}

/// News for the clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SinkReport {
    /// Pages can arrive.
    Opened,
    /// Every page is there and checked; the commit is next.
    Verified,
    /// This end owns the region.
    Committed,
    /// Whether the commit is durable is not known; or the link was lost when all was verified, and
    /// a virtual machine waits here for the source's word.
    InDoubt(EndReason),
    /// The session ended and this end does not own the region.
    Ended(EndReason),
    /// The source's decision contradicts what this end's journal says.
    Conflict(Conflict),
}

/// The sink's side of a session.
#[derive(Clone, Debug)]
pub struct SinkSession {
    session: SessionId,
    number: SessionNumber,
    journal: JournalId,
    phase: SinkPhase,
    reason: Option<EndReason>,
    lanes: Option<LaneSet>,
    lanes_open: bool,
    /// `Yield` has arrived.
    yielded: bool,
    /// The record that the journal is writing.
    writing: Option<SinkRecord>,
    /// The record that the journal surely holds.
    durable: Option<SinkRecord>,
    /// The source waits for an answer that waits for the journal.
    query_waits: bool,
    /// What an operator decided at the source, once the source has told.
    decided: Option<RunAt>,
    vm: Option<VmTerms>,
    deadline: Option<Nanos>,
}

type Actions = Vec<SinkAction>;

impl SinkSession {
    /// Takes a session that the source asked for.
    ///
    /// # Panics
    /// When the number of lanes is zero or above the limit.
    #[must_use]
    pub fn open(spec: SinkSpec, timing: SessionTiming, now: Nanos) -> (Self, Actions) {
        let mut this = Self::new(spec.session, spec.journal, SinkPhase::Opening);
        this.number = spec.number;
        this.vm = spec.vm;
        this.lanes = Some(LaneSet::new(spec.lanes));
        this.lanes_open = true;
        this.deadline = Some(now + timing.open_timeout);
        (this, vec![SinkAction::OpenLanes])
    }

    /// Makes a session again after a restart from its newest journal record, or from the lack of
    /// one when the source asks about a session that is not known.
    #[must_use]
    pub fn restore(session: SessionId, record: Option<SinkRecord>, journal: JournalId) -> Self {
        let phase = match record {
            Some(record) if record.owns() => SinkPhase::Committed,
            Some(_) => SinkPhase::Aborted,
            None => SinkPhase::Failed,
        };
        let mut this = Self::new(session, journal, phase);
        this.durable = record;
        this.reason = match record {
            Some(SinkRecord::Resolved { run }) => Some(EndReason::Resolved { run }),
            Some(SinkRecord::Committed) => None,
            _ => Some(EndReason::Restarted),
        };
        this
    }

    /// Makes a parked session again after a restart: its guest still waits.
    #[must_use]
    pub fn restore_parked(session: SessionId, journal: JournalId) -> Self {
        let mut this = Self::new(session, journal, SinkPhase::InDoubt);
        this.reason = Some(EndReason::LinkLost);
        this
    }

    fn new(session: SessionId, journal: JournalId, phase: SinkPhase) -> Self {
        Self {
            session,
            number: SessionNumber(0),
            journal,
            phase,
            reason: None,
            lanes: None,
            lanes_open: false,
            yielded: false,
            writing: None,
            durable: None,
            query_waits: false,
            decided: None,
            vm: None,
            deadline: None,
        }
    }

    /// The session.
    #[must_use]
    pub const fn session(&self) -> SessionId {
        self.session
    }

    /// Where the session is.
    #[must_use]
    pub const fn phase(&self) -> SinkPhase {
        self.phase
    }

    /// Why it ended or is in doubt.
    #[must_use]
    pub const fn reason(&self) -> Option<&EndReason> {
        self.reason.as_ref()
    }

    /// When to feed `Tick`, if ever.
    #[must_use]
    pub const fn deadline(&self) -> Option<Nanos> {
        self.deadline
    }

    /// True when the session has ended and awaits no journal: it may become history. A committed
    /// one must be kept in the journal until `Forget`.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.phase.is_end() && self.writing.is_none()
    }

    /// Takes an input and tells what to do.
    ///
    /// # Errors
    /// A client's request that is not possible now; nothing changed.
    ///
    /// # Panics
    /// When a lane is named that the link does not have, or a journal record that was not ordered.
    pub fn step(&mut self, now: Nanos, input: SinkInput) -> Result<Actions, StepError> {
        let actions = match input {
            SinkInput::Peer(message) => self.on_peer(message),
            SinkInput::Abort => self.abort()?,
            SinkInput::Resolve(run) => self.resolve(run)?,
            SinkInput::LaneOpened(lane) => self.on_lane_opened(lane),
            SinkInput::LaneVerified(lane) => self.on_lane_verified(lane),
            // Of a guest that stands loaded nothing is awaited on a lane: its link decides.
            SinkInput::LaneFailed { .. } if self.vm.is_some() && self.has_all() => Vec::new(),
            SinkInput::LaneFailed { lane, code } => {
                self.fail_if_possible(EndReason::LaneFailed { lane, code }, true)
            }
            SinkInput::VmFailed { code, message } => {
                self.fail_if_possible(EndReason::VmFailed { code, message }, true)
            }
            SinkInput::JournalWritten(record) => self.on_journal(record, true),
            SinkInput::JournalFailed(record) => self.on_journal(record, false),
            SinkInput::LinkLost => self.on_link_lost(),
            SinkInput::Tick => self.on_tick(now),
        };
        assert!(actions.len() <= ACTIONS_MAX, "an input gives few actions");
        Ok(actions)
    }

    /// True while a failure simply leaves the region with the source: no commit was ordered.
    fn may_fail(&self) -> bool {
        (self.phase <= SinkPhase::Verified || self.is_parked()) && self.writing.is_none()
    }

    fn fail_if_possible(&mut self, reason: EndReason, tell: bool) -> Actions {
        if self.may_fail() { self.end(SinkPhase::Failed, reason, tell) } else { Vec::new() }
    }

    /// Ends the session without a commit.
    fn end(&mut self, phase: SinkPhase, reason: EndReason, tell: bool) -> Actions {
        assert!(self.may_fail(), "no commit was ordered");
        self.phase = phase;
        self.deadline = None;
        let mut actions = Vec::new();
        if tell {
            actions.push(self.failed(&reason));
        }
        self.close_lanes(&mut actions);
        actions.push(SinkAction::Report(SinkReport::Ended(reason.clone())));
        self.reason = Some(reason);
        actions
    }

    fn failed(&self, reason: &EndReason) -> SinkAction {
        let (code, message) = (reason.peer_code(), reason.peer_message());
        SinkAction::Send(PeerMessage::SessionFailed { session: self.session, code, message })
    }

    fn abort(&mut self) -> Result<Actions, StepError> {
        if self.may_fail() {
            return Ok(self.end(SinkPhase::Aborted, EndReason::ClientAborted, true));
        }
        if self.phase.is_end() {
            return Err(StepError::NotNow { request: "abort", phase: self.phase.name() });
        }
        Err(StepError::TooLate)
    }

    fn on_lane_opened(&mut self, lane: LaneId) -> Actions {
        if self.phase != SinkPhase::Opening || !self.report(lane) {
            return Vec::new();
        }
        self.phase = SinkPhase::Receiving;
        self.deadline = None;
        if let Some(lanes) = &mut self.lanes {
            lanes.clear();
        }
        let (session, number, journal) = (self.session, self.number, self.journal);
        let accept = PeerMessage::SessionAccept { session, number, journal, vm: self.vm };
        vec![SinkAction::Send(accept), SinkAction::Report(SinkReport::Opened)]
    }

    fn on_lane_verified(&mut self, lane: LaneId) -> Actions {
        if self.phase != SinkPhase::Receiving || !self.report(lane) {
            return Vec::new();
        }
        self.phase = SinkPhase::Verified;
        let mut actions = vec![SinkAction::Report(SinkReport::Verified)];
        if self.yielded {
            actions.push(self.order(SinkRecord::Committed));
        }
        actions
    }

    fn order(&mut self, record: SinkRecord) -> SinkAction {
        assert!(self.writing.is_none() && self.durable.is_none(), "one record for a session");
        self.writing = Some(record);
        SinkAction::Journal(record)
    }

    fn on_peer(&mut self, message: PeerMessage) -> Actions {
        match message {
            PeerMessage::Query { journal, .. } => self.on_query(journal),
            PeerMessage::Resolved { journal, run, .. } => self.on_decision(journal, run),
            PeerMessage::Abort { .. } if self.was_let_run() => {
                let committed = PeerMessage::Committed { session: self.session };
                vec![
                    SinkAction::Report(SinkReport::Conflict(Conflict::BothRun)),
                    SinkAction::Send(committed),
                ]
            }
            PeerMessage::Yield { .. } if self.may_fail() => self.on_yield(),
            PeerMessage::Yield { .. } if matches!(self.phase, SinkPhase::Committed) => {
                vec![SinkAction::Send(PeerMessage::Committed { session: self.session })]
            }
            PeerMessage::Yield { .. } if self.phase.is_end() => {
                vec![self.failed(self.reason.as_ref().unwrap_or(&EndReason::Restarted))]
            }
            PeerMessage::Abort { code, message, .. } if self.may_fail() && !self.yielded => {
                self.end(SinkPhase::Aborted, EndReason::PeerAborted { code, message }, false)
            }
            PeerMessage::Settled { .. } if self.is_over() => vec![SinkAction::Forget],
            other if self.may_fail() => {
                let (message, phase) = (other.name(), self.phase.name());
                self.end(SinkPhase::Failed, EndReason::Violation { message, phase }, true)
            }
            other => vec![SinkAction::Ignored { message: other.name() }],
        }
    }

    /// The source may yield before this end's lanes have reported: it heard from them first.
    fn on_yield(&mut self) -> Actions {
        match self.phase {
            _ if self.has_all() => {
                self.yielded = true;
                vec![self.order(SinkRecord::Committed)]
            }
            SinkPhase::Receiving if !self.yielded => {
                self.yielded = true;
                Vec::new()
            }
            _ => {
                let phase = self.phase.name();
                let reason = EndReason::Violation { message: "yield", phase };
                self.end(SinkPhase::Failed, reason, true)
            }
        }
    }

    fn on_query(&mut self, journal: JournalId) -> Actions {
        if let Some(record) = self.durable {
            return vec![self.answer(outcome_of(record))];
        }
        if self.writing.is_some() {
            self.query_waits = true;
            return Vec::new();
        }
        if journal != self.journal {
            return vec![self.answer(Outcome::Unknown)];
        }
        if self.phase == SinkPhase::InDoubt && !self.is_parked() {
            // A commit may be on the disk that called it failed. "Unknown" would be taken for the
            // last word; the source asks again until this daemon has read its journal.
            return Vec::new();
        }
        let mut actions = match self.may_fail() {
            true => self.end(SinkPhase::Aborted, EndReason::LinkLost, false),
            false => Vec::new(),
        };
        self.query_waits = true;
        actions.push(self.order(SinkRecord::Aborted));
        actions
    }

    fn answer(&self, outcome: Outcome) -> SinkAction {
        SinkAction::Send(PeerMessage::Outcome { session: self.session, outcome })
    }

    fn on_journal(&mut self, record: SinkRecord, written: bool) -> Actions {
        assert!(self.writing == Some(record), "the journal answers what it was asked");
        self.writing = None;
        self.durable = written.then_some(record);
        let asked = std::mem::take(&mut self.query_waits);
        let mut actions = Vec::new();
        if written {
            actions.extend(self.contradiction());
        }
        match (record, written) {
            (record, true) if record.owns() => {
                self.phase = SinkPhase::Committed;
                self.reason = parked::reason_of(record);
                let committed = PeerMessage::Committed { session: self.session };
                actions.push(SinkAction::Send(committed));
                actions.push(SinkAction::Report(SinkReport::Committed));
                self.close_lanes(&mut actions);
            }
            (SinkRecord::Resolved { run }, true) => {
                self.phase = SinkPhase::Aborted;
                self.reason = parked::reason_of(record);
                actions.push(SinkAction::Report(SinkReport::Ended(EndReason::Resolved { run })));
            }
            (SinkRecord::Committed | SinkRecord::Resolved { .. }, false) => {
                self.phase = SinkPhase::InDoubt;
                self.reason = Some(EndReason::Journal);
                actions.push(SinkAction::Report(SinkReport::InDoubt(EndReason::Journal)));
                self.close_lanes(&mut actions);
            }
            // The phase was an end before the record was ordered.
            (_, _) => {}
        }
        if asked {
            let outcome = self.durable.map_or(Outcome::Unknown, outcome_of);
            actions.push(self.answer(outcome));
        }
        actions
    }

    fn on_tick(&mut self, now: Nanos) -> Actions {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return Vec::new();
        }
        self.deadline = None;
        self.fail_if_possible(EndReason::TimedOut, true)
    }

    fn close_lanes(&mut self, actions: &mut Actions) {
        if self.lanes_open {
            self.lanes_open = false;
            actions.push(SinkAction::CloseLanes);
        }
    }

    fn report(&mut self, lane: LaneId) -> bool {
        self.lanes.as_mut().is_some_and(|lanes| lanes.report(lane))
    }
}

/// What a durable record means to the source.
const fn outcome_of(record: SinkRecord) -> Outcome {
    match record.owns() {
        true => Outcome::Committed,
        false => Outcome::NotCommitted,
    }
}
