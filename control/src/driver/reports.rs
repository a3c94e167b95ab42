//! What the core tells clients of its sessions: answers that waited, and progress.
//!
//! Part of [`Core`], on the control thread.

use super::core::Core;
use crate::api::{ApiCode, ApiError, Topic};
use crate::limits::{PROGRESS_PERIOD_NS, REDIAL_WAIT_NS};
use crate::migration::{Session, WaitingFor};
use dwcp_dataplane::stats::SessionCounter;
use dwcp_proto::ids::{Round, SessionId};
use dwcp_proto::session::reason::EndReason;
use dwcp_proto::session::sink::SinkReport;
use dwcp_proto::session::source::SourceReport;
use dwcp_proto::time::Nanos;
use serde_json::{Value, json};

impl Core {
    pub(super) fn report_source(&mut self, id: SessionId, report: SourceReport) {
        let now = self.now();
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.update_record();
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
            SourceReport::Committed => Ok(finish_value(session, now)),
            SourceReport::InDoubt(reason) => {
                let reason = session.set_reason(&reason);
                session.reconnect.get_or_insert((now, Nanos(REDIAL_WAIT_NS.0)));
                Err(ApiError::new(ApiCode::SessionInDoubt, reason))
            }
            SourceReport::Ended(reason) => Err(end_error(&reason, session.set_reason(&reason))),
        };
        let outcome = outcome.map_err(|e: ApiError| e.with("session", id.to_string()));
        if let Some(waiting) = session.waiting.take() {
            self.answer(waiting.reply, outcome);
        }
    }

    pub(super) fn report_sink(&mut self, id: SessionId, report: SinkReport) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        match report {
            SinkReport::Opened | SinkReport::Verified | SinkReport::Committed => {}
            SinkReport::InDoubt(reason) | SinkReport::Ended(reason) => {
                session.set_reason(&reason);
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
            news.push((
                session.id(),
                json!({
                    "session": session.id(),
                    "role": session.role(),
                    "state": session.record.state,
                    "round": session.record.round,
                    "pages_pending": session.count(SessionCounter::PagesPending.index()),
                    "counters": session.record.counters,
                    "rate_bytes_per_s": u64::try_from(rate).unwrap_or(u64::MAX),
                }),
            ));
        }
        news.iter().for_each(|(id, params)| self.notify(Topic::SessionProgress, *id, params));
    }
}

impl Session {
    /// Keeps why a session ended or is in doubt; returns it in words.
    fn set_reason(&mut self, reason: &EndReason) -> String {
        let text = match &self.lane_failure {
            Some(cause) => format!("{reason}: {cause}"),
            None => reason.to_string(),
        };
        self.record.reason = Some(text.clone());
        self.record.cure = Some(reason.cure().to_owned());
        text
    }
}

fn end_error(reason: &EndReason, text: String) -> ApiError {
    let code = match reason {
        EndReason::ClientAborted => ApiCode::SessionAborted,
        EndReason::Refused { .. } => ApiCode::PeerRefused,
        EndReason::Journal => ApiCode::JournalFailed,
        _ => ApiCode::SessionFailed,
    };
    ApiError::new(code, text).with("reason", reason.code()).with("reason_cure", reason.cure())
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
fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}
