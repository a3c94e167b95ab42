//! The source's machine when a daemon starts again.
//!
//! Part of [`SourceSession`].

use super::{Actions, SourceAction, SourceReport, SourceSession};
use crate::ids::SessionId;
use crate::session::phase::SourcePhase;
use crate::session::reason::EndReason;
use crate::session::record::SourceRecord;
use crate::session::timing::SessionTiming;

impl SourceSession {
    /// Makes a session again from its newest journal record, after a restart.
    #[must_use]
    pub fn restore(
        session: SessionId,
        record: SourceRecord,
        timing: SessionTiming,
    ) -> (Self, Actions) {
        let mut this = Self::new(session, timing, SourcePhase::InDoubt);
        match record {
            SourceRecord::Yielded { sink_journal } => {
                this.sink_journal = Some(sink_journal);
                this.reason = Some(EndReason::Restarted);
                let report = SourceReport::InDoubt(EndReason::Restarted);
                (this, vec![SourceAction::Report(report), SourceAction::Reconnect])
            }
            SourceRecord::Resolved { sink_journal, run } => {
                this.sink_journal = Some(sink_journal);
                this.take_decision(run);
                (this, vec![SourceAction::Reconnect])
            }
            SourceRecord::ResolvedTold { run } => {
                this.take_decision(run);
                this.telling = None;
                this.settle_owed = true;
                (this, Vec::new())
            }
            SourceRecord::Done => {
                this.phase = SourcePhase::Committed;
                this.settle_owed = true;
                (this, Vec::new())
            }
            SourceRecord::Kept => {
                this.phase = SourcePhase::Failed;
                this.reason = Some(EndReason::NotCommitted);
                this.settle_owed = true;
                (this, Vec::new())
            }
        }
    }
}
