//! One session's record, as the journal keeps it and `session.show` tells it.
//!
//! Pure values. [`recover`] says what a record of a daemon that died means now.

use super::vm_record::VmRecord;
use crate::api::Role;
use dwcp_proto::ids::SessionId;
use dwcp_proto::session::phase::{SinkPhase, SourcePhase};
use dwcp_proto::session::record::{SinkRecord, SourceRecord};
use dwcp_proto::session::resolve::Conflict;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionState {
    /// Link and lanes come up.
    Opening,
    /// Source: rounds run while the region is in use.
    Precopy,
    /// Sink: pages come in.
    Receiving,
    /// Source: the last round, in the pause.
    LastRound,
    /// Source: the sink proves that it holds every page.
    Verifying,
    /// Sink: every page was read back and matched.
    Verified,
    /// Source: the right to the region is given up, durably; the sink has not confirmed yet.
    Yielded,
    /// The sink holds the region.
    Committed,
    /// It ended before the yield: the source keeps its region.
    Failed,
    /// It was given up on request: the source keeps its region.
    Aborted,
    /// The source yielded and does not know whether the sink committed.
    InDoubt,
}

impl SessionState {
    /// True when nothing changes any more.
    #[must_use]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Committed | Self::Failed | Self::Aborted)
    }

    /// The word for people and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Precopy => "precopy",
            Self::Receiving => "receiving",
            Self::LastRound => "last_round",
            Self::Verifying => "verifying",
            Self::Verified => "verified",
            Self::Yielded => "yielded",
            Self::Committed => "committed",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
            Self::InDoubt => "in_doubt",
        }
    }
}

/// One session's record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// The session.
    pub session: SessionId,
    /// Which end this host is.
    pub role: Role,
    /// The peer's host name.
    pub peer: String,
    /// Where the peer is dialled, at the source.
    pub peer_address: Option<String>,
    /// The region on this host.
    pub region: String,
    /// Where it stands.
    pub state: SessionState,
    /// Why it ended or is in doubt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
    /// Rounds begun.
    pub round: u32,
    /// Pages of the region.
    pub pages: u64,
    /// What was counted, summed over the lanes.
    pub counters: BTreeMap<String, u64>,
    /// When it was opened.
    pub started_unix_ms: u64,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_unix_ms: Option<u64>,
    /// Source: what the commit protocol wrote last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_record: Option<SourceRecord>,
    /// Sink: what the commit protocol wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sink_record: Option<SinkRecord>,
    /// Sink: nobody will ask about the commit again, so the record may become history.
    #[serde(default)]
    pub settled: bool,
    /// The peer's journal contradicts what an operator decided at one of the ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflict: Option<Conflict>,
    /// Of a virtual machine's session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<VmRecord>,
    /// Sink: made only because a peer asked about a session that nothing was known of.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unknown: bool,
}

impl SessionRecord {
    /// The record of a session that begins.
    pub(crate) fn new(
        session: SessionId,
        role: Role,
        region: &str,
        pages: u64,
        started_unix_ms: u64,
    ) -> Self {
        Self {
            session,
            role,
            peer: String::new(),
            peer_address: None,
            region: region.to_owned(),
            state: SessionState::Opening,
            reason: None,
            cure: None,
            round: 0,
            pages,
            counters: BTreeMap::new(),
            started_unix_ms,
            ended_unix_ms: None,
            source_record: None,
            sink_record: None,
            settled: false,
            conflict: None,
            vm: None,
            unknown: false,
        }
    }

    /// True for a virtual machine that waits at the sink for the source's word: its journal is
    /// silent, its guest is loaded and paused.
    pub(crate) fn is_parked(&self) -> bool {
        let silent = self.role == Role::Sink && self.sink_record.is_none();
        silent && self.vm.is_some() && self.state == SessionState::InDoubt
    }

    /// True when the record may be forgotten to make room for newer ones.
    #[must_use]
    pub fn may_be_forgotten(&self) -> bool {
        let commit_counts = self.sink_record.is_some_and(SinkRecord::owns) && !self.settled;
        self.state.is_over() && !commit_counts && !self.guest_waits()
    }

    /// True when the session has ended and its guest is not yet known to be where that puts it.
    pub(crate) fn guest_waits(&self) -> bool {
        let Some(vm) = self.vm.as_ref().filter(|vm| !vm.settled) else { return false };
        let committed = self.state == SessionState::Committed;
        let waits = match self.role {
            Role::Source => !committed,
            // A QEMU that was prepared for a guest is spent.
            Role::Sink => committed || vm.saved.is_some(),
        };
        self.state.is_over() && waits
    }

    /// True at a source that durably knows the end, which the sink has to hear.
    pub(crate) fn owes_settling(&self) -> bool {
        let told = |record| {
            matches!(
                record,
                SourceRecord::Done | SourceRecord::Kept | SourceRecord::ResolvedTold { .. }
            )
        };
        self.source_record.is_some_and(told)
    }
}

impl From<SourcePhase> for SessionState {
    fn from(phase: SourcePhase) -> Self {
        match phase {
            SourcePhase::Opening => Self::Opening,
            SourcePhase::PreCopy => Self::Precopy,
            SourcePhase::LastRound => Self::LastRound,
            SourcePhase::Verifying => Self::Verifying,
            SourcePhase::Yielded => Self::Yielded,
            SourcePhase::Committed => Self::Committed,
            SourcePhase::Failed => Self::Failed,
            SourcePhase::Aborted => Self::Aborted,
            SourcePhase::InDoubt => Self::InDoubt,
        }
    }
}

impl From<SinkPhase> for SessionState {
    fn from(phase: SinkPhase) -> Self {
        match phase {
            SinkPhase::Opening => Self::Opening,
            SinkPhase::Receiving => Self::Receiving,
            SinkPhase::Verified => Self::Verified,
            SinkPhase::Committed => Self::Committed,
            SinkPhase::Failed => Self::Failed,
            SinkPhase::Aborted => Self::Aborted,
            SinkPhase::InDoubt => Self::InDoubt,
        }
    }
}

/// What the record of a daemon that is gone means for the one that starts now. True if it changed.
///
/// The records of the commit protocol decide; the state beside them may be older than they are.
pub(crate) fn recover(record: &mut SessionRecord, now_unix_ms: u64) -> bool {
    let known_end = match (record.role, record.source_record, record.sink_record) {
        (Role::Source, Some(written), _) if written.gone() => Some(SessionState::Committed),
        (Role::Source, Some(written), _) if written.keeps() => Some(SessionState::Failed),
        (Role::Sink, _, Some(written)) if written.owns() => Some(SessionState::Committed),
        (Role::Sink, _, Some(SinkRecord::Resolved { .. })) => Some(SessionState::Aborted),
        _ => None,
    };
    if record.is_parked() {
        return false;
    }
    if record.state.is_over() && known_end.is_none_or(|state| state == record.state) {
        return false;
    }
    let yielded = matches!(record.source_record, Some(SourceRecord::Yielded { .. }));
    let (state, reason) = match (known_end, record.role) {
        (Some(state), _) => {
            record.state = state;
            record.ended_unix_ms = Some(now_unix_ms);
            return true;
        }
        (None, Role::Source) if yielded => (
            SessionState::InDoubt,
            "the daemon restarted after the source had yielded and before the sink's answer",
        ),
        (None, Role::Source) => (SessionState::Failed, "the daemon restarted"),
        (None, Role::Sink) => (SessionState::Failed, "the daemon restarted before the commit"),
    };
    let cure = match (state, record.role, &record.vm) {
        (SessionState::InDoubt, _, None) => {
            "change neither copy: this daemon asks the peer until it answers"
        }
        (SessionState::InDoubt, _, Some(_)) => {
            "start the guest at neither end: this daemon asks the peer until it answers; \
             dwcp resolve decides it if that can't be"
        }
        (_, Role::Source, None) => {
            "the source keeps its region: register it again and open a new session"
        }
        (_, Role::Sink, None) => {
            "the source keeps its region: register this one again for its new session"
        }
        (_, _, Some(_)) => "the guest stays at the source: migrate it again when wanted",
    };
    record.state = state;
    record.reason = Some(reason.to_owned());
    record.cure = Some(cure.to_owned());
    record.ended_unix_ms = state.is_over().then_some(now_unix_ms);
    true
}

#[cfg(test)]
pub(crate) fn sample(session: u8, role: Role, state: SessionState) -> SessionRecord {
    let (id, started) = (SessionId([session; 16]), 1000 + u64::from(session));
    SessionRecord {
        peer: "host-b".to_owned(),
        peer_address: Some("192.0.2.7:7411".to_owned()),
        state,
        round: 2,
        counters: BTreeMap::from([("frames".to_owned(), 7)]),
        ..SessionRecord::new(id, role, "vm1", 10, started)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_source_whose_yield_is_on_disk_is_in_doubt_after_a_restart() {
        let sink_journal = dwcp_proto::wire::token::JournalId([1; 16]);
        let yielded = Some(SourceRecord::Yielded { sink_journal });
        let states = [
            SessionState::Opening,
            SessionState::Precopy,
            SessionState::Verifying,
            SessionState::Yielded,
            SessionState::InDoubt,
        ];
        for state in states {
            for source_record in [None, yielded] {
                let mut record = sample(1, Role::Source, state);
                record.source_record = source_record;
                assert!(recover(&mut record, 5));
                let doubt = source_record.is_some();
                let expected = if doubt { SessionState::InDoubt } else { SessionState::Failed };
                assert_eq!(record.state, expected, "{state:?}");
                assert!(record.reason.is_some() && record.cure.is_some());
            }
        }
    }

    #[test]
    fn a_sink_has_committed_exactly_if_its_record_says_so() {
        for sink_record in [None, Some(SinkRecord::Aborted), Some(SinkRecord::Committed)] {
            let mut record = sample(1, Role::Sink, SessionState::Verified);
            record.sink_record = sink_record;
            assert!(recover(&mut record, 5));
            let committed = sink_record == Some(SinkRecord::Committed);
            assert_eq!(record.state == SessionState::Committed, committed);
            assert_eq!(record.may_be_forgotten(), !committed);
        }
    }

    #[test]
    fn an_ended_record_is_left_alone() {
        for state in [SessionState::Committed, SessionState::Failed, SessionState::Aborted] {
            let mut record = sample(1, Role::Sink, state);
            assert!(!recover(&mut record, 5));
            assert_eq!(record, sample(1, Role::Sink, state));
        }
    }
}
