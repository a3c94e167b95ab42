//! What the core tells clients of its sessions: answers that waited, and progress.
//!
//! Part of [`Core`], on the control thread.

use super::core::Core;
use super::vm_progress::progress_value;
use crate::api::{ApiCode, ApiError, Topic};
use crate::limits::{PROGRESS_PERIOD_NS, REDIAL_WAIT_NS};
use crate::migration::{Session, WaitingFor};
use dwcp_dataplane::port::SessionEnd;
use dwcp_dataplane::stats::SessionCounter;
use dwcp_proto::ids::{Round, SessionId};
use dwcp_proto::session::reason::EndReason;
use dwcp_proto::session::sink::SinkReport;
use dwcp_proto::session::source::SourceReport;
use dwcp_proto::time::Nanos;
use serde_json::{Value, json};

/// For either end of a session that the network took.
const LINK_LOST_CURE: &str =
    "the source keeps its region; open a new session when the peer is back";

impl Core {
    pub(super) fn report_source(&mut self, id: SessionId, report: SourceReport) {
        let now = self.now();
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.update_record();
        if session.is_vm() {
            return self.report_vm_source(id, report);
        }
        let waits = session.waiting.as_ref().map(|waiting| waiting.what);
        let outcome = match report {
            SourceReport::Opened => {
                let record = &session.record;
                Ok(json!({
                    "session": id, "peer_name": record.peer, "pages": record.pages,
                    "lanes": session.plan.as_ref().map_or(0, |plan| plan.lanes),
                }))
            }
            SourceReport::RoundDone { round } if waits == Some(WaitingFor::Round) => {
                Ok(round_value(round, session, now))
            }
            SourceReport::RoundDone { .. } => return,
            SourceReport::Conflict(conflict) => return self.note_conflict(id, conflict),
            SourceReport::Ended(EndReason::Resolved { .. }) | SourceReport::Committed
                if waits == Some(WaitingFor::Resolve) =>
            {
                Ok(json!({ "session": id, "state": session.record.state }))
            }
            SourceReport::Committed => Ok(finish_value(session, now)),
            SourceReport::InDoubt(reason) => {
                session.set_reason(&reason, Some(ApiCode::SessionInDoubt.cure()));
                session.reconnect.get_or_insert((now, Nanos(REDIAL_WAIT_NS.0)));
                let code = match waits {
                    Some(WaitingFor::Resolve) => ApiCode::JournalFailed,
                    _ => ApiCode::SessionInDoubt,
                };
                Err(session.end_error(code, &reason))
            }
            SourceReport::Ended(reason) => {
                session.set_reason(&reason, session.lost_cure(&reason));
                Err(session.end_error(end_code(&reason), &reason))
            }
        };
        let outcome = outcome.map_err(|e: ApiError| e.with("session", id.to_string()));
        let (waiting, ended) = (session.waiting.take(), session.state().is_over());
        if ended {
            self.owe_region_end(id);
        }
        if let Some(waiting) = waiting {
            self.answer(waiting.reply, outcome);
        }
    }

    pub(super) fn report_sink(&mut self, id: SessionId, report: SinkReport) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.is_vm() {
            return self.report_vm_sink(id, report);
        }
        match report {
            SinkReport::Conflict(conflict) => self.note_conflict(id, conflict),
            SinkReport::Opened | SinkReport::Verified | SinkReport::Committed => {}
            SinkReport::InDoubt(reason) => session.set_reason(&reason, None),
            SinkReport::Ended(reason) => {
                session.set_reason(&reason, session.lost_cure(&reason));
            }
        }
    }

    /// Tells subscribers how far each session is, not too often.
    pub(super) fn send_progress(&mut self, now: Nanos) {
        if self.subscribers.is_empty() {
            return;
        }
        let mut news = Vec::new();
        for session in self.sessions.values_mut() {
            let since = now.since(session.progress_at).0;
            if since < PROGRESS_PERIOD_NS || session.stats.is_empty() {
                continue;
            }
            session.update_record();
            let bytes = session.count(SessionCounter::WireBytes.index());
            let moved = bytes.saturating_sub(session.progress_bytes);
            let rate = u128::from(moved) * 1_000_000_000 / u128::from(since.max(1));
            session.progress_at = now;
            session.progress_bytes = bytes;
            let mut params = json!({
                "session": session.id(),
                "role": session.role(),
                "state": session.record.state,
                "round": session.record.round,
                "pages_pending": session.count(SessionCounter::PagesPending.index()),
                "counters": session.record.counters,
                "rate_bytes_per_s": u64::try_from(rate).unwrap_or(u64::MAX),
            });
            if session.is_vm() {
                params["vm"] = progress_value(session, now);
            }
            news.push((session.id(), params));
        }
        news.iter().for_each(|(id, params)| self.notify(Topic::SessionProgress, *id, params));
    }
}

impl Session {
    /// Keeps why a session ended or is in doubt, with the deeper cause if one is known, and what to
    /// do about it.
    pub(super) fn set_reason(&mut self, reason: &EndReason, cure: Option<&'static str>) {
        let cause = match (reason, &self.lane_failure, &self.link_failure) {
            (EndReason::LinkLost, _, Some((text, _))) => format!(": {text}"),
            (EndReason::LaneFailed { .. }, Some(cause), _) => format!(": {cause}"),
            _ => String::new(),
        };
        self.record.reason = Some(format!("{reason}{cause}"));
        self.record.cure = Some(cure.unwrap_or_else(|| reason.cure()).to_owned());
    }

    /// What to do when the network took the session, rather than one of the hosts.
    fn lost_cure(&self, reason: &EndReason) -> Option<&'static str> {
        let lane_lost = matches!(self.lane_failure, Some(SessionEnd::LinkLost(_)));
        match reason {
            EndReason::LinkLost => Some(LINK_LOST_CURE),
            EndReason::LaneFailed { .. } if lane_lost => Some(LINK_LOST_CURE),
            _ => None,
        }
    }

    /// The answer to a client whose session ended or is in doubt, in the words of its record.
    pub(super) fn end_error(&self, code: ApiCode, reason: &EndReason) -> ApiError {
        let error = ApiError::new(code, self.record.reason.clone().unwrap_or_default())
            .with("reason", reason.code())
            .with("reason_cure", self.record.cure.clone());
        let error = match self.lost_cure(reason) {
            Some(cure) if code == ApiCode::SessionFailed => error.with("cure", cure),
            _ => error,
        };
        match (reason, &self.link_failure) {
            (EndReason::LinkLost, Some((_, code))) => error.with("peer_code", *code),
            _ => error,
        }
    }
}

pub(super) fn end_code(reason: &EndReason) -> ApiCode {
    match reason {
        EndReason::ClientAborted => ApiCode::SessionAborted,
        EndReason::Refused { .. } => ApiCode::PeerRefused,
        EndReason::Journal => ApiCode::JournalFailed,
        _ => ApiCode::SessionFailed,
    }
}

fn round_value(round: Round, session: &Session, now: Nanos) -> Value {
    let stats = session.round_stats;
    json!({
        "round": round, "pages": stats.pages, "pages_sent": stats.pages_sent,
        "wire_bytes": stats.wire_bytes, "seconds": seconds(now.since(session.times.round).0),
    })
}

fn finish_value(session: &Session, now: Nanos) -> Value {
    json!({
        "session": session.id(), "state": session.record.state, "rounds": session.record.round,
        "last_round_ms": seconds(session.last_round_ns) * 1e3,
        "verify_ms": seconds(session.verify_ns) * 1e3,
        "commit_ms": seconds(now.since(session.times.commit).0) * 1e3,
        "counters": session.record.counters,
    })
}

/// Nanoseconds as seconds, for people.
#[allow(clippy::cast_precision_loss, reason = "a float of seconds is for display")]
pub(super) fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}
