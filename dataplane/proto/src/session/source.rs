//! The source's machine of a session. See [`super`] for a good run and the driver's rules.
//!
//! Runs on the control thread; pure. Invariant: it claims the region before `Yielded` is in the
//! journal and after `NotCommitted` was heard, never in between and never after `Committed`. Only
//! an operator's record, in `resolved`, ends a doubt otherwise.

mod port;
mod resolved;
mod restored;

pub use port::{SourceAction, SourceInput, SourceReport, SourceSpec, SourceWhat};

use super::ACTIONS_MAX;
use super::lanes::LaneSet;
use super::phase::SourcePhase;
use super::reason::{EndReason, StepError};
use super::record::SourceRecord;
use super::resolve::RunAt;
use super::timing::SessionTiming;
use crate::ids::{LaneId, Round, SessionId, SessionNumber};
use crate::time::Nanos;
use crate::wire::peer::{Outcome, PeerMessage};
use crate::wire::token::JournalId;
use crate::wire::vm::VmTerms;

/// The source's side of a session.
#[derive(Clone, Debug)]
pub struct SourceSession {
    session: SessionId,
    number: SessionNumber,
    timing: SessionTiming,
    phase: SourcePhase,
    reason: Option<EndReason>,
    round: Round,
    round_running: bool,
    lanes: Option<LaneSet>,
    lanes_open: bool,
    sink_journal: Option<JournalId>,
    /// The record that the journal is writing.
    writing: Option<SourceRecord>,
    /// The sink may still hold a record that we don't need any more.
    settle_owed: bool,
    /// What an operator decided, while the sink has not answered to it.
    telling: Option<RunAt>,
    /// Of a virtual machine: what was offered, then what was agreed on.
    terms: Option<VmTerms>,
    link_up: bool,
    deadline: Option<Nanos>,
}

type Actions = Vec<SourceAction>;

impl SourceSession {
    /// Opens a session on an agreed link.
    ///
    /// # Panics
    /// When the number of lanes is zero or above the limit.
    #[must_use]
    pub fn open(spec: SourceSpec, timing: SessionTiming, now: Nanos) -> (Self, Actions) {
        let SourceSpec { session, number, what, lanes } = spec;
        let mut this = Self::new(session, timing, SourcePhase::Opening);
        this.number = number;
        this.lanes = Some(LaneSet::new(lanes));
        this.link_up = true;
        this.deadline = Some(now + timing.open_timeout);
        let open = match what {
            SourceWhat::Region { region, pages, coding } => {
                PeerMessage::SessionOpen { session, number, region, pages, coding }
            }
            SourceWhat::Vm(vm) => {
                this.terms = Some(vm.terms);
                PeerMessage::VmOpen { session, number, vm }
            }
        };
        (this, vec![SourceAction::Send(open)])
    }

    fn new(session: SessionId, timing: SessionTiming, phase: SourcePhase) -> Self {
        Self {
            session,
            number: SessionNumber(0),
            timing,
            phase,
            reason: None,
            round: Round(0),
            round_running: false,
            lanes: None,
            lanes_open: false,
            sink_journal: None,
            writing: None,
            settle_owed: false,
            telling: None,
            terms: None,
            link_up: false,
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
    pub const fn phase(&self) -> SourcePhase {
        self.phase
    }

    /// Why it ended or is in doubt.
    #[must_use]
    pub const fn reason(&self) -> Option<&EndReason> {
        self.reason.as_ref()
    }

    /// The newest round started; 0 before the first.
    #[must_use]
    pub const fn round(&self) -> Round {
        self.round
    }

    /// Of a virtual machine: what was offered, and once the sink accepted what was agreed on.
    #[must_use]
    pub const fn terms(&self) -> Option<VmTerms> {
        self.terms
    }

    /// When to feed `Tick`, if ever.
    #[must_use]
    pub const fn deadline(&self) -> Option<Nanos> {
        self.deadline
    }

    /// True when the session has ended and awaits no journal and no answer: it may become history.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.phase.is_end() && self.writing.is_none() && self.telling.is_none()
    }

    /// True while a lost connection changes nothing but time, if another one takes its place: pages
    /// or a virtual machine's stream are under way, and nothing has been given up.
    #[must_use]
    pub const fn may_park(&self) -> bool {
        let under_way = matches!(
            self.phase,
            SourcePhase::PreCopy | SourcePhase::LastRound | SourcePhase::Verifying
        );
        under_way && self.writing.is_none() && self.link_up
    }

    /// Takes an input and tells what to do.
    ///
    /// # Errors
    /// A client's request that is not possible now; nothing changed.
    ///
    /// # Panics
    /// When a lane is named that the link does not have, or a journal record that was not ordered.
    pub fn step(&mut self, now: Nanos, input: SourceInput) -> Result<Actions, StepError> {
        let actions = match input {
            SourceInput::Round => self.start_round(false)?,
            SourceInput::Finish => self.start_round(true)?,
            SourceInput::Abort => self.abort()?,
            SourceInput::Resolve(run) => self.resolve(run)?,
            SourceInput::Peer(message) => self.on_peer(now, message),
            SourceInput::LaneOpened(lane) => self.on_lane_opened(lane),
            SourceInput::LaneRoundDone { lane, round } => self.on_round_done(lane, round),
            SourceInput::LaneVerified(lane) => self.on_lane_verified(lane),
            SourceInput::LaneFailed { lane, code } => {
                self.fail_if_possible(EndReason::LaneFailed { lane, code })
            }
            SourceInput::VmFailed { code, message } => {
                self.fail_if_possible(EndReason::VmFailed { code, message })
            }
            SourceInput::JournalWritten(record) => self.on_journal(now, record, true),
            SourceInput::JournalFailed(record) => self.on_journal(now, record, false),
            SourceInput::LinkLost => self.on_link_lost(now),
            SourceInput::LinkUp => self.on_link_up(now),
            SourceInput::Tick => self.on_tick(now),
        };
        assert!(actions.len() <= ACTIONS_MAX, "an input gives few actions");
        Ok(actions)
    }

    fn start_round(&mut self, last: bool) -> Result<Actions, StepError> {
        let request = if last { "finish" } else { "a round" };
        if self.terms.is_some() && !last {
            return Err(StepError::OnlyRegions { request });
        }
        if self.phase != SourcePhase::PreCopy {
            return Err(StepError::NotNow { request, phase: self.phase.name() });
        }
        if self.round_running {
            return Err(StepError::RoundRunning { request });
        }
        self.round = self.round.next();
        self.round_running = true;
        self.clear_lanes();
        if last {
            self.phase = SourcePhase::LastRound;
        }
        Ok(vec![SourceAction::StartRound { round: self.round, last }])
    }

    fn abort(&mut self) -> Result<Actions, StepError> {
        if self.may_fail() {
            return Ok(self.end(SourcePhase::Aborted, EndReason::ClientAborted));
        }
        if self.phase.is_end() {
            return Err(StepError::NotNow { request: "abort", phase: self.phase.name() });
        }
        Err(StepError::TooLate)
    }

    /// True while a failure simply leaves the region here: before the journal was asked to give it
    /// up.
    fn may_fail(&self) -> bool {
        self.phase < SourcePhase::Yielded && self.writing.is_none()
    }

    fn fail_if_possible(&mut self, reason: EndReason) -> Actions {
        if self.may_fail() { self.end(SourcePhase::Failed, reason) } else { Vec::new() }
    }

    /// Ends the session with the region at the source.
    fn end(&mut self, phase: SourcePhase, reason: EndReason) -> Actions {
        assert!(self.phase < SourcePhase::Yielded, "the region was not given up");
        self.phase = phase;
        self.deadline = None;
        let mut actions = Vec::new();
        if self.link_up {
            let (code, message) = (reason.peer_code(), reason.peer_message());
            let abort = PeerMessage::Abort { session: self.session, code, message };
            actions.push(SourceAction::Send(abort));
        }
        self.close_lanes(&mut actions);
        actions.push(SourceAction::Report(SourceReport::Ended(reason.clone())));
        self.reason = Some(reason);
        actions
    }

    fn on_lane_opened(&mut self, lane: LaneId) -> Actions {
        if self.phase != SourcePhase::Opening || !self.report(lane) {
            return Vec::new();
        }
        self.phase = SourcePhase::PreCopy;
        self.deadline = None;
        vec![SourceAction::Report(SourceReport::Opened)]
    }

    fn on_round_done(&mut self, lane: LaneId, round: Round) -> Actions {
        if !self.round_running || round != self.round || !self.may_fail() || !self.report(lane) {
            return Vec::new();
        }
        self.round_running = false;
        if self.phase != SourcePhase::LastRound {
            return vec![SourceAction::Report(SourceReport::RoundDone { round })];
        }
        self.phase = SourcePhase::Verifying;
        self.clear_lanes();
        vec![SourceAction::Report(SourceReport::RoundDone { round }), SourceAction::Verify]
    }

    fn on_lane_verified(&mut self, lane: LaneId) -> Actions {
        if self.phase != SourcePhase::Verifying || !self.may_fail() || !self.report(lane) {
            return Vec::new();
        }
        let Some(sink_journal) = self.sink_journal else {
            unreachable!("lanes open only after the sink named its journal");
        };
        self.journal(SourceRecord::Yielded { sink_journal })
    }

    fn journal(&mut self, record: SourceRecord) -> Actions {
        assert!(self.writing.is_none(), "one record at a time");
        self.writing = Some(record);
        vec![SourceAction::Journal(record)]
    }

    fn on_journal(&mut self, now: Nanos, record: SourceRecord, written: bool) -> Actions {
        assert!(self.writing == Some(record), "the journal answers what it was asked");
        self.writing = None;
        match record {
            SourceRecord::Yielded { .. } if !written => {
                self.end(SourcePhase::Failed, EndReason::Journal)
            }
            SourceRecord::Yielded { .. } if self.link_up => {
                self.phase = SourcePhase::Yielded;
                self.deadline = Some(now + self.timing.commit_timeout);
                vec![SourceAction::Send(PeerMessage::Yield { session: self.session })]
            }
            SourceRecord::Yielded { .. } => self.doubt(now, EndReason::LinkLost),
            SourceRecord::Resolved { run, .. } => self.on_resolved(now, run, written),
            SourceRecord::ResolvedTold { .. } => self.on_told(written),
            SourceRecord::Done => self.settle(SourceReport::Committed, written),
            SourceRecord::Kept => {
                self.phase = SourcePhase::Failed;
                self.reason = Some(EndReason::NotCommitted);
                self.settle(SourceReport::Ended(EndReason::NotCommitted), written)
            }
        }
    }

    /// Reports the end. Only a durable one lets the sink forget; else we may have to ask again
    /// after a restart.
    fn settle(&mut self, report: SourceReport, written: bool) -> Actions {
        let mut actions = vec![SourceAction::Report(report)];
        self.settle_owed = written;
        if written && self.link_up {
            let settled = PeerMessage::Settled { session: self.session };
            actions.push(SourceAction::Send(settled));
        }
        actions
    }

    fn doubt(&mut self, now: Nanos, reason: EndReason) -> Actions {
        self.phase = SourcePhase::InDoubt;
        let mut actions = vec![SourceAction::Report(SourceReport::InDoubt(reason.clone()))];
        self.reason = Some(reason);
        self.close_lanes(&mut actions);
        actions.push(self.ask(now));
        actions
    }

    /// Asks for the outcome, or for a connection to ask over.
    fn ask(&mut self, now: Nanos) -> SourceAction {
        let Some(journal) = self.sink_journal else {
            unreachable!("a session in doubt knows the sink's journal");
        };
        if !self.link_up {
            self.deadline = None;
            return SourceAction::Reconnect;
        }
        self.deadline = Some(now + self.timing.query_interval);
        SourceAction::Send(PeerMessage::Query { session: self.session, journal })
    }

    /// True while the outcome is awaited from the sink, and not already known.
    fn awaits_outcome(&self) -> bool {
        matches!(self.phase, SourcePhase::Yielded | SourcePhase::InDoubt) && self.writing.is_none()
    }

    fn on_peer(&mut self, now: Nanos, message: PeerMessage) -> Actions {
        match message {
            PeerMessage::SessionAccept { number, journal, vm, .. }
                if self.phase == SourcePhase::Opening
                    && number == self.number
                    && self.sink_journal.is_none()
                    && self.may_agree(vm) =>
            {
                self.terms = vm;
                self.sink_journal = Some(journal);
                self.lanes_open = true;
                vec![SourceAction::OpenLanes]
            }
            // What else the sink found the driver keeps.
            PeerMessage::SessionRefuse { number, code, message, .. }
                if self.phase == SourcePhase::Opening
                    && number == self.number
                    && self.sink_journal.is_none() =>
            {
                self.end(SourcePhase::Failed, EndReason::Refused { code, message })
            }
            PeerMessage::SessionFailed { code, message, .. } if self.may_fail() => {
                self.end(SourcePhase::Failed, EndReason::PeerFailed { code, message })
            }
            PeerMessage::SessionFailed { code, message, .. }
                if self.phase == SourcePhase::Yielded =>
            {
                self.doubt(now, EndReason::PeerFailed { code, message })
            }
            PeerMessage::Committed { .. } if self.awaits_outcome() => self.on_committed(),
            PeerMessage::Outcome { outcome, .. } if self.awaits_outcome() => {
                self.on_outcome(now, outcome)
            }
            PeerMessage::Committed { .. } if self.awaits_answer() => {
                self.on_answer(Outcome::Committed)
            }
            PeerMessage::Outcome { outcome, .. } if self.awaits_answer() => self.on_answer(outcome),
            other if self.may_fail() => {
                let (message, phase) = (other.name(), self.phase.name());
                self.end(SourcePhase::Failed, EndReason::Violation { message, phase })
            }
            other => vec![SourceAction::Ignored { message: other.name() }],
        }
    }

    /// True when the sink's terms are not above the offer, and there exactly when there was one.
    fn may_agree(&self, terms: Option<VmTerms>) -> bool {
        match (&self.terms, terms) {
            (Some(offered), Some(terms)) => terms.within(offered),
            (offered, terms) => offered.is_none() && terms.is_none(),
        }
    }

    fn on_committed(&mut self) -> Actions {
        self.phase = SourcePhase::Committed;
        self.reason = None;
        self.deadline = None;
        let mut actions = self.journal(SourceRecord::Done);
        self.close_lanes(&mut actions);
        actions
    }

    fn on_outcome(&mut self, now: Nanos, outcome: Outcome) -> Actions {
        match outcome {
            Outcome::Committed => self.on_committed(),
            Outcome::NotCommitted => {
                // Not `Failed` before the journal has it, so that one state is seen at a time.
                self.phase = SourcePhase::InDoubt;
                self.deadline = None;
                let mut actions = self.journal(SourceRecord::Kept);
                self.close_lanes(&mut actions);
                actions
            }
            Outcome::Unknown if self.reason == Some(EndReason::OutcomeUnknown) => Vec::new(),
            Outcome::Unknown => {
                self.phase = SourcePhase::InDoubt;
                self.reason = Some(EndReason::OutcomeUnknown);
                self.deadline = Some(now + self.timing.query_interval);
                let report = SourceReport::InDoubt(EndReason::OutcomeUnknown);
                let mut actions = vec![SourceAction::Report(report)];
                self.close_lanes(&mut actions);
                actions
            }
        }
    }

    fn on_link_lost(&mut self, now: Nanos) -> Actions {
        self.link_up = false;
        match self.phase {
            _ if self.writing.is_some() => Vec::new(),
            SourcePhase::Yielded => self.doubt(now, EndReason::LinkLost),
            SourcePhase::InDoubt => vec![self.ask(now)],
            _ if self.telling.is_some() => vec![self.tell_decision(now)],
            phase if phase.is_end() => Vec::new(),
            _ => self.end(SourcePhase::Failed, EndReason::LinkLost),
        }
    }

    fn on_link_up(&mut self, now: Nanos) -> Actions {
        self.link_up = true;
        if self.phase == SourcePhase::InDoubt && self.writing.is_none() {
            return vec![self.ask(now)];
        }
        if self.awaits_answer() {
            return vec![self.tell_decision(now)];
        }
        if self.settle_owed {
            let settled = PeerMessage::Settled { session: self.session };
            return vec![SourceAction::Send(settled)];
        }
        Vec::new()
    }

    fn on_tick(&mut self, now: Nanos) -> Actions {
        if self.deadline.is_none_or(|deadline| now < deadline) {
            return Vec::new();
        }
        self.deadline = None;
        match self.phase {
            SourcePhase::Opening => self.end(SourcePhase::Failed, EndReason::TimedOut),
            SourcePhase::Yielded => self.doubt(now, EndReason::TimedOut),
            SourcePhase::InDoubt => vec![self.ask(now)],
            _ if self.awaits_answer() => vec![self.tell_decision(now)],
            _ => Vec::new(),
        }
    }

    fn close_lanes(&mut self, actions: &mut Actions) {
        if self.lanes_open {
            self.lanes_open = false;
            actions.push(SourceAction::CloseLanes);
        }
    }

    fn report(&mut self, lane: LaneId) -> bool {
        self.lanes.as_mut().is_some_and(|lanes| lanes.report(lane))
    }

    fn clear_lanes(&mut self) {
        if let Some(lanes) = &mut self.lanes {
            lanes.clear();
        }
    }
}
