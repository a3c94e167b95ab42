//! The sink's machine when a verified guest waits for the source's word, and when an operator
//! decides at either end.
//!
//! Part of [`SinkSession`]. Invariants: a parked session writes a commit only for a yield, for the
//! source's decision or for an operator's word here; what the journal says already stands.

use super::{Actions, SinkAction, SinkReport, SinkSession};
use crate::session::phase::SinkPhase;
use crate::session::reason::{EndReason, StepError};
use crate::session::record::SinkRecord;
use crate::session::resolve::{Conflict, RunAt};
use crate::wire::token::JournalId;

impl SinkSession {
    /// True while a lost connection changes nothing but time, if another one takes its place: pages
    /// or a virtual machine's stream arrive. Once all is here and checked, the source may give it
    /// up unheard. A region waits all the same, since nobody runs on it before the commit; for a
    /// guest, which stands loaded, the rules of a doubt hold.
    #[must_use]
    pub const fn may_park(&self) -> bool {
        let waits = match self.phase {
            SinkPhase::Receiving => true,
            SinkPhase::Verified => self.vm.is_none(),
            _ => false,
        };
        waits && !self.yielded && self.writing.is_none()
    }

    /// True for a session that is in doubt because of its link alone: its journal is silent.
    #[must_use]
    pub fn is_parked(&self) -> bool {
        self.phase == SinkPhase::InDoubt && self.reason == Some(EndReason::LinkLost)
    }

    /// A guest that was loaded may be the only one left: the source may have yielded it.
    pub(super) fn on_link_lost(&mut self) -> Actions {
        if self.is_parked() {
            return Vec::new();
        }
        if !(self.vm.is_some() && self.phase == SinkPhase::Verified && self.may_fail()) {
            return self.fail_if_possible(EndReason::LinkLost, false);
        }
        self.phase = SinkPhase::InDoubt;
        self.reason = Some(EndReason::LinkLost);
        let mut actions = vec![SinkAction::Report(SinkReport::InDoubt(EndReason::LinkLost))];
        self.close_lanes(&mut actions);
        actions
    }

    pub(super) fn resolve(&mut self, run: RunAt) -> Result<Actions, StepError> {
        if !self.is_parked() || self.writing.is_some() {
            return Err(StepError::NotNow { request: "resolve", phase: self.phase.name() });
        }
        Ok(vec![self.order(SinkRecord::Resolved { run })])
    }

    /// True when every page is here and checked and nothing was decided.
    pub(super) fn has_all(&self) -> bool {
        self.phase == SinkPhase::Verified || self.is_parked()
    }

    /// True when an operator here let the sink run.
    pub(super) fn was_let_run(&self) -> bool {
        self.durable == Some(SinkRecord::Resolved { run: RunAt::Sink })
    }

    /// An operator ended the source's doubt. This end follows if it can; what its journal says
    /// stands.
    pub(super) fn on_decision(&mut self, journal: JournalId, run: RunAt) -> Actions {
        self.decided = Some(run);
        let follows = run == RunAt::Sink && self.may_fail() && self.has_all();
        if follows && journal == self.journal {
            self.yielded = true;
            return vec![self.order(SinkRecord::Committed)];
        }
        let mut actions: Actions = self.contradiction().into_iter().collect();
        actions.extend(self.on_query(journal));
        actions
    }

    /// What the source's decision and the journal here make together, if that is bad.
    pub(super) fn contradiction(&self) -> Option<SinkAction> {
        let conflict = match (self.decided?, self.durable?.owns()) {
            (RunAt::Source, true) => Conflict::BothRun,
            (RunAt::Sink, false) => Conflict::NoneRuns,
            _ => return None,
        };
        Some(SinkAction::Report(SinkReport::Conflict(conflict)))
    }
}

/// Why a session ended like this, if that needs saying.
pub(super) const fn reason_of(record: SinkRecord) -> Option<EndReason> {
    match record {
        SinkRecord::Resolved { run } => Some(EndReason::Resolved { run }),
        _ => None,
    }
}
