//! Sessions that have ended, those of earlier daemons included: bounded, the oldest go first.
//!
//! Pure table, the mirror of what the journal keeps. A commit that the source may still ask about
//! is never dropped, whatever the bound.
//!
//! Records of sessions that nothing was known of, made because a peer asked, have bounds of their
//! own. Such a record backs the answer "not committed" and leaves the journal when the source has
//! settled. It goes before that only when its peer, or all peers, asked about too many at once.
//! Then the answer still holds: nothing but a session's own machine commits it, a machine for it is
//! made only by its `SessionOpen`, and a source sends that once, before it can be in doubt.

use crate::limits::{SESSION_HISTORY_MAX, UNKNOWN_SESSIONS_MAX, UNKNOWN_SESSIONS_PER_PEER_MAX};
use crate::state::SessionRecord;
use dwcp_proto::ids::SessionId;
use std::collections::VecDeque;

/// Ended sessions, each list the oldest first.
#[derive(Debug, Default)]
pub(crate) struct History {
    known: VecDeque<SessionRecord>,
    unknown: VecDeque<SessionRecord>,
}

impl History {
    /// Adds a record; returns the ones that must leave the journal for it.
    pub(crate) fn push(&mut self, record: SessionRecord) -> Vec<SessionId> {
        self.take(record.session);
        let mut forgotten = Vec::new();
        if record.unknown {
            self.push_unknown(record, &mut forgotten);
            return forgotten;
        }
        self.known.push_back(record);
        while self.known.len() > SESSION_HISTORY_MAX {
            let Some(index) = self.known.iter().position(SessionRecord::may_be_forgotten) else {
                break;
            };
            forgotten.extend(self.known.remove(index).map(|record| record.session));
        }
        forgotten
    }

    fn push_unknown(&mut self, record: SessionRecord, forgotten: &mut Vec<SessionId>) {
        let peer = record.peer.clone();
        self.unknown.push_back(record);
        let of_peer = |record: &SessionRecord| record.peer == peer;
        if self.unknown.iter().filter(|record| of_peer(record)).count()
            > UNKNOWN_SESSIONS_PER_PEER_MAX
        {
            self.forget_unknown(of_peer, forgotten);
        }
        while self.unknown.len() > UNKNOWN_SESSIONS_MAX {
            self.forget_unknown(|_| true, forgotten);
        }
    }

    fn forget_unknown(
        &mut self,
        whose: impl Fn(&SessionRecord) -> bool,
        forgotten: &mut Vec<SessionId>,
    ) {
        let index = self.unknown.iter().position(whose);
        let record = index.and_then(|index| self.unknown.remove(index));
        forgotten.extend(record.map(|record| record.session));
    }

    /// A session by its name.
    pub(crate) fn find(&self, session: SessionId) -> Option<&SessionRecord> {
        self.known.iter().chain(&self.unknown).find(|record| record.session == session)
    }

    /// A session by its name, to note what became known of it.
    pub(crate) fn find_mut(&mut self, session: SessionId) -> Option<&mut SessionRecord> {
        self.known.iter_mut().find(|record| record.session == session)
    }

    /// Takes a session out, to make it live again.
    pub(crate) fn take(&mut self, session: SessionId) -> Option<SessionRecord> {
        [&mut self.known, &mut self.unknown].into_iter().find_map(|list| {
            let index = list.iter().position(|record| record.session == session)?;
            list.remove(index)
        })
    }

    /// All of them: the known ones, the newest first, then the others.
    pub(crate) fn newest_first(&self) -> impl Iterator<Item = &SessionRecord> {
        self.known.iter().rev().chain(self.unknown.iter().rev())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Role;
    use crate::state::{SessionState, sample};
    use dwcp_proto::session::record::SinkRecord;

    fn numbered(number: usize, role: Role) -> SessionRecord {
        let mut record = sample(1, role, SessionState::Failed);
        record.session.0[..8].copy_from_slice(&number.to_be_bytes());
        record
    }

    /// What a question of `peer` about a session that nothing is known of leaves behind.
    fn unknown(number: usize, peer: &str) -> SessionRecord {
        let mut record = numbered(number, Role::Sink);
        record.sink_record = Some(SinkRecord::Aborted);
        record.peer = peer.to_owned();
        record.unknown = true;
        record
    }

    #[test]
    fn the_oldest_go_first_and_an_open_commit_never() {
        let mut history = History::default();
        let mut committed = sample(0, Role::Sink, SessionState::Committed);
        committed.sink_record = Some(SinkRecord::Committed);
        history.push(committed.clone());
        let mut forgotten = Vec::new();
        for number in 0..SESSION_HISTORY_MAX + 9 {
            forgotten.extend(history.push(numbered(number, Role::Source)));
        }
        assert_eq!(history.newest_first().count(), SESSION_HISTORY_MAX);
        assert_eq!(forgotten.len(), 10);
        assert!(history.find(committed.session).is_some());
    }

    #[test]
    fn questions_about_unknown_sessions_push_out_neither_history_nor_other_peers() {
        let mut history = History::default();
        for number in 0..SESSION_HISTORY_MAX {
            assert!(history.push(numbered(number, Role::Source)).is_empty());
        }
        let other = unknown(5000, "host-c");
        history.push(other.clone());
        let mut forgotten = Vec::new();
        for number in 1000..3000 {
            forgotten.extend(history.push(unknown(number, "host-b")));
        }
        assert_eq!(forgotten.len(), 2000 - UNKNOWN_SESSIONS_PER_PEER_MAX);
        assert_eq!(forgotten[0], unknown(1000, "host-b").session, "the oldest goes first");
        assert!(history.find(other.session).is_some());
        for number in 0..SESSION_HISTORY_MAX {
            assert!(history.find(numbered(number, Role::Source).session).is_some());
        }
        for number in 6000..7000 {
            history.push(unknown(number, &format!("host-{number}")));
        }
        let all = SESSION_HISTORY_MAX + UNKNOWN_SESSIONS_MAX;
        assert_eq!(history.newest_first().count(), all);
    }
}
