//! The core's orderly end after SIGTERM: nothing new begins, and what is under way may finish.
//!
//! Part of [`Core`], on the control thread. A session in doubt is not waited for: it waits for its
//! peer, and goes on doing so when the daemon is started again. A carrier has no draining: its
//! manager sees the end of a migration before it tells the carrier to end, so that a signal ends
//! its session at once; only its peer is still told.

use super::core::{Core, unix_ms};
use crate::api::{ApiCode, ApiError};
use crate::limits::FAREWELL_WAIT;
use crate::peer::PeerError;
use crate::state::SessionState;
use dwcp_proto::ids::LinkId;
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::peer::{Message, PeerMessage};

/// How long a draining daemon goes on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drain {
    /// By the core's clock.
    until: Nanos,
    /// For people.
    pub(super) until_unix_ms: u64,
    /// Nothing is left to do, and the peers were told.
    farewell: bool,
}

impl Core {
    /// Lets sessions finish and begins no other. False if there is nothing to wait for, or if it
    /// was asked before: then the daemon ends now.
    pub(crate) fn drain(&mut self) -> bool {
        if self.carry.is_some() {
            return self.leave();
        }
        let left = self.unfinished();
        let wait = self.live.get().drain_timeout;
        if self.drain.is_some() || left == 0 || wait.is_zero() {
            return false;
        }
        let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let until = self.now() + Nanos(millis.saturating_mul(1_000_000));
        let until_unix_ms = unix_ms().saturating_add(millis);
        self.drain = Some(Drain { until, until_unix_ms, farewell: false });
        let wait_s = wait.as_secs_f64();
        tracing::info!(sessions = left, wait_s, "draining: they may finish, no other begins");
        true
    }

    /// Ends a carrier's session and has its peer hear of it before the streams end: the end of
    /// those alone looks like a lost link, for which the peer would wait. False if there is nothing
    /// to wait for, or if it was asked before.
    pub(crate) fn leave(&mut self) -> bool {
        if self.carry.is_none() || self.drain.is_some() {
            return false;
        }
        self.drain = Some(Drain {
            until: self.now() + FAREWELL_WAIT,
            until_unix_ms: unix_ms(),
            farewell: false,
        });
        self.stop_carry();
        true
    }

    /// True once nothing more may begin.
    pub(super) fn is_leaving(&self) -> bool {
        self.stopping || self.drain.is_some()
    }

    /// Whether a draining daemon has nothing to wait for any more.
    pub(crate) fn is_drained(&mut self) -> bool {
        let (left, now) = (self.unfinished(), self.now());
        if left == 0 {
            self.say_farewell(now);
        }
        let Some(drain) = &self.drain else { return false };
        let late = drain.until <= now;
        if late && left > 0 {
            tracing::warn!(sessions = left, "given up: --drain-timeout is over");
        }
        late || left == 0 && self.links.values().all(|entry| entry.channel.is_none())
    }

    /// Leaves it to the peers to end their links: they do so when they have read all that was said
    /// before. An end of the data streams could overtake the word on a session.
    fn say_farewell(&mut self, now: Nanos) {
        let Some(drain) = self.drain.as_mut().filter(|drain| !drain.farewell) else { return };
        drain.farewell = true;
        drain.until = drain.until.min(now + FAREWELL_WAIT);
        let links: Vec<LinkId> = self.links.keys().copied().collect();
        let reason = Message::cut(&PeerError::Stopping.to_string());
        for link in links {
            self.send_peer(link, PeerMessage::Goodbye { reason: reason.clone() });
        }
    }

    /// Refuses a session that would begin while the daemon drains.
    pub(super) fn check_not_draining(&self) -> Result<(), ApiError> {
        if self.drain.is_none() {
            return Ok(());
        }
        let message = "this daemon finishes what is under way and then ends";
        let cure = "try again when it was started anew";
        Err(ApiError::new(ApiCode::Stopping, message).with("cure", cure))
    }

    /// How many sessions are under way, or about to be.
    fn unfinished(&self) -> usize {
        let live = self.sessions.values();
        let live = live.filter(|s| !s.is_over() && s.state() != SessionState::InDoubt).count();
        let waiting: usize = self.links.values().map(|entry| entry.waiters.len()).sum();
        let vms = self.vm_sources.len() + self.vm_sinks.len() + self.vm_settling.len();
        live + waiting + vms
    }
}
