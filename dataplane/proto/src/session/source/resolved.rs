//! The source's machine when an operator ends its doubt.
//!
//! Part of [`SourceSession`]. Invariant: the decision holds from the moment that the journal has
//! it; what the sink answers then changes nothing here but what is known.

use super::{Actions, SourceAction, SourceReport, SourceSession};
use crate::session::phase::SourcePhase;
use crate::session::reason::{EndReason, StepError};
use crate::session::record::SourceRecord;
use crate::session::resolve::{Conflict, RunAt};
use crate::time::Nanos;
use crate::wire::peer::{Outcome, PeerMessage};

impl SourceSession {
    /// What an operator decided, if one did and the sink has not answered yet.
    #[must_use]
    pub const fn telling(&self) -> Option<RunAt> {
        self.telling
    }

    pub(super) fn resolve(&mut self, run: RunAt) -> Result<Actions, StepError> {
        if self.phase != SourcePhase::InDoubt || self.writing.is_some() {
            return Err(StepError::NotNow { request: "resolve", phase: self.phase.name() });
        }
        let Some(sink_journal) = self.sink_journal else {
            unreachable!("a session in doubt knows the sink's journal");
        };
        self.deadline = None;
        Ok(self.journal(SourceRecord::Resolved { sink_journal, run }))
    }

    /// Makes the decision what the machine says.
    pub(super) fn take_decision(&mut self, run: RunAt) {
        self.phase = match run {
            RunAt::Source => SourcePhase::Failed,
            RunAt::Sink => SourcePhase::Committed,
        };
        self.reason = Some(EndReason::Resolved { run });
        self.telling = Some(run);
    }

    pub(super) fn on_resolved(&mut self, now: Nanos, run: RunAt, written: bool) -> Actions {
        if !written {
            return self.doubt(now, EndReason::Journal);
        }
        self.take_decision(run);
        let report = match run {
            RunAt::Source => SourceReport::Ended(EndReason::Resolved { run }),
            RunAt::Sink => SourceReport::Committed,
        };
        vec![SourceAction::Report(report), self.tell_decision(now)]
    }

    /// Tells the sink, or asks for a connection to tell it over.
    pub(super) fn tell_decision(&mut self, now: Nanos) -> SourceAction {
        let (Some(run), Some(journal)) = (self.telling, self.sink_journal) else {
            unreachable!("a decision is told while it is there");
        };
        if !self.link_up {
            self.deadline = None;
            return SourceAction::Reconnect;
        }
        self.deadline = Some(now + self.timing.query_interval);
        SourceAction::Send(PeerMessage::Resolved { session: self.session, journal, run })
    }

    /// True while the sink owes an answer to the decision.
    pub(super) fn awaits_answer(&self) -> bool {
        self.telling.is_some() && self.writing.is_none()
    }

    pub(super) fn on_answer(&mut self, outcome: Outcome) -> Actions {
        let Some(run) = self.telling else { return Vec::new() };
        self.deadline = None;
        let conflict = match (run, outcome) {
            (RunAt::Source, Outcome::Committed) => Some(Conflict::BothRun),
            (RunAt::Sink, Outcome::NotCommitted) => Some(Conflict::NoneRuns),
            // A sink without the journal of then can't contradict.
            _ => None,
        };
        let report =
            conflict.map(|conflict| SourceAction::Report(SourceReport::Conflict(conflict)));
        let mut actions: Actions = report.into_iter().collect();
        actions.extend(self.journal(SourceRecord::ResolvedTold { run }));
        actions
    }

    /// The sink's answer is kept, or else it is asked for again after a restart.
    pub(super) fn on_told(&mut self, written: bool) -> Actions {
        self.telling = None;
        self.settle_owed = written;
        if !(written && self.link_up) {
            return Vec::new();
        }
        vec![SourceAction::Send(PeerMessage::Settled { session: self.session })]
    }
}
