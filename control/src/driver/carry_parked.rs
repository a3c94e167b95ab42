//! A carrier's session whose link is lost: it waits, and goes on over another connection.
//!
//! Part of [`Core`], on the control thread; what becomes of the link itself is in `parking`. The
//! shards keep everything, and the VMMs' sockets stand still by backpressure.

use super::carry::{LINK_CURE, failure};
use super::core::Core;
use crate::api::Role;
use crate::carry::CarryEvent;
use crate::limits::CARRY_LINGER_NS;
use crate::peer::PeerError;
use dwcp_proto::ids::{LinkId, SessionId};
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::peer::PeerMessage;

impl Core {
    /// The session, if it is on this link and can go on over another connection.
    pub(super) fn carried_on(&self, link: LinkId) -> Option<SessionId> {
        let session = self.carry.as_ref()?.session.as_ref()?;
        (session.link == Some(link) && session.may_park()).then_some(session.id)
    }

    /// Whether the session's link has lost its connection.
    pub(super) fn is_carry_parked(&self) -> bool {
        let session = self.carry.as_ref().and_then(|carry| carry.session.as_ref());
        let link = session.and_then(|session| session.link);
        let entry = link.and_then(|link| self.links.get(&link));
        entry.is_some_and(|entry| entry.parked.is_some())
    }

    /// The link has lost its connection, for the first time since it worked.
    pub(super) fn park_carry(&mut self, link: LinkId, cause: &PeerError) {
        let window_s = self.live.get().resume_window.as_secs();
        match (self.carried_on(link), self.links.get(&link)) {
            (Some(session), Some(entry)) => {
                let (session, peer) = (session.to_string(), entry.peer_name.clone());
                let reason = cause.to_string();
                self.report_carry(&CarryEvent::Parked { session, peer, reason, window_s });
            }
            _ => self.carry_link_lost(link, cause),
        }
    }

    /// The source goes on with these sessions alone.
    pub(super) fn agree_on_carry(&mut self, link: LinkId, named: &[SessionId]) {
        if self.carried_on(link).is_some_and(|session| !named.contains(&session)) {
            let message = "the source ended the session while the link was lost";
            self.end_carry(Some(failure("resume_not_named", message, LINK_CURE)));
        }
    }

    /// The link works again. What was under way on the lost channel is gone and said again.
    pub(super) fn resume_carry(&mut self, link: LinkId, lost_ms: u64) {
        if self.carried_on(link).is_none() {
            return;
        }
        let linger = self.now() + Nanos(CARRY_LINGER_NS);
        let Some(session) = self.carried() else { return };
        // A VMM could not end its answers while nobody took them.
        session.deadline = session.deadline.map(|_| linger);
        let (id, peer, role) = (session.id, session.peer.clone(), session.role);
        let channels = session.channels();
        let seconds = super::reports::seconds(lost_ms.saturating_mul(1_000_000));
        self.report_carry(&CarryEvent::Resumed { session: id.to_string(), peer, seconds });
        if role == Role::Source {
            for channel in 1..channels {
                self.send_peer(link, PeerMessage::ChannelOpen { session: id, channel });
            }
        }
        self.tell_digest();
    }
}
