//! Sessions that have ended, those of earlier daemons included: bounded, the oldest go first.
//!
//! Pure table, the mirror of what the journal keeps. A commit that the source may still ask about
//! is never dropped, whatever the bound.

use crate::limits::SESSION_HISTORY_MAX;
use crate::state::SessionRecord;
use dwcp_proto::ids::SessionId;
use std::collections::VecDeque;

/// Ended sessions, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct History(VecDeque<SessionRecord>);

impl History {
    /// Adds a record; returns the ones that must leave the journal for it.
    pub(crate) fn push(&mut self, record: SessionRecord) -> Vec<SessionId> {
        self.0.retain(|old| old.session != record.session);
        self.0.push_back(record);
        let mut forgotten = Vec::new();
        while self.0.len() > SESSION_HISTORY_MAX {
            let Some(index) = self.0.iter().position(SessionRecord::may_be_forgotten) else {
                break;
            };
            forgotten.extend(self.0.remove(index).map(|record| record.session));
        }
        forgotten
    }

    /// A session by its name.
    pub(crate) fn find(&self, session: SessionId) -> Option<&SessionRecord> {
        self.0.iter().find(|record| record.session == session)
    }

    /// Takes a session out, to make it live again.
    pub(crate) fn take(&mut self, session: SessionId) -> Option<SessionRecord> {
        let index = self.0.iter().position(|record| record.session == session)?;
        self.0.remove(index)
    }

    /// All of them, the newest first.
    pub(crate) fn newest_first(&self) -> impl Iterator<Item = &SessionRecord> {
        self.0.iter().rev()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Role;
    use crate::state::{SessionState, sample};
    use dwcp_proto::session::record::SinkRecord;

    #[test]
    fn the_oldest_go_first_and_an_open_commit_never() {
        let mut history = History::default();
        let mut committed = sample(0, Role::Sink, SessionState::Committed);
        committed.sink_record = Some(SinkRecord::Committed);
        history.push(committed.clone());
        let mut forgotten = Vec::new();
        for number in 0..SESSION_HISTORY_MAX + 9 {
            let mut record = sample(1, Role::Source, SessionState::Failed);
            record.session.0[..8].copy_from_slice(&number.to_be_bytes());
            forgotten.extend(history.push(record));
        }
        assert_eq!(history.newest_first().count(), SESSION_HISTORY_MAX);
        assert_eq!(forgotten.len(), 10);
        assert!(history.find(committed.session).is_some());
    }
}
