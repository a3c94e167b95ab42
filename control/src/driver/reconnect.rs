//! The core's sessions when links come and go: who hears of it, who asks again, who may forget.
//!
//! Part of [`Core`], on the control thread.

use super::core::Core;
use crate::api::{PeerAddress, Role};
use crate::limits::REDIAL_WAIT_NS;
use crate::migration::Session;
use crate::peer::PeerError;
use crate::state::{SessionRecord, SessionState};
use dwcp_proto::ids::{LinkId, SessionId};
use dwcp_proto::session::sink::SinkInput;
use dwcp_proto::session::source::SourceInput;
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::peer::{Code, Message, PeerMessage};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A peer whose sink may wait for the word that its session has ended.
#[derive(Debug)]
pub(super) struct Errand {
    address: String,
    at: Nanos,
    wait: Nanos,
}

/// All of them, by the peer's name.
pub(super) type Errands = BTreeMap<String, Errand>;

impl Core {
    /// The source's end was not heard by its sink, whose guest may stand loaded: it is dialled
    /// until it hears.
    pub(super) fn owe_abort(&mut self, record: &SessionRecord) {
        let Some(address) = record.peer_address.clone() else { return };
        let errand = Errand { address, at: self.now(), wait: Nanos(REDIAL_WAIT_NS.0) };
        self.errands.insert(record.peer.clone(), errand);
    }

    /// A session of a region ended here and its sink, which waits for the link, can't hear of it
    /// yet: it is told over the next one.
    pub(super) fn owe_region_end(&mut self, id: SessionId) {
        if !self.is_link_parked(id) {
            return;
        }
        let Some(record) = self.sessions.get(&id).map(|session| session.record.clone()) else {
            return;
        };
        self.untold.insert(id, record.peer.clone());
        self.owe_abort(&record);
    }

    /// A link is gone over which ends of sessions were told: a way that carries nothing may have
    /// lost them, and the sinks wait.
    pub(super) fn owe_unheard_aborts(&mut self, peer: &str, link_since_unix_ms: u64) {
        let told_here = |record: &&SessionRecord| {
            let owed = record.vm.as_ref().is_some_and(|vm| vm.abort_owed);
            let ended = record.ended_unix_ms.is_none_or(|at| at >= link_since_unix_ms);
            owed && ended && record.peer == peer
        };
        let live = self.sessions.values().map(|session| &session.record);
        let found = self.history.newest_first().chain(live).find(told_here).cloned();
        if let Some(record) = found {
            self.owe_abort(&record);
        }
    }

    /// A new channel to a peer: sessions in doubt with it ask their question.
    pub(super) fn sessions_link_up(&mut self, link: LinkId) {
        let Some(entry) = self.links.get(&link) else { return };
        let peer = entry.peer_name.clone();
        let waiting: Vec<SessionId> = self
            .sessions
            .values_mut()
            .filter(|s| s.link.is_none() && s.role() == Role::Source && s.record.peer == peer)
            .map(|session| {
                session.link = Some(link);
                session.reconnect = None;
                session.id()
            })
            .collect();
        waiting.into_iter().for_each(|id| self.source_step(id, SourceInput::LinkUp));
        let owes = |s: &Session| s.record.vm.as_ref().is_some_and(|vm| vm.abort_owed);
        // One that still sees its guest run is told of when it is over.
        if !self.sessions.values().any(|s| s.record.peer == peer && owes(s)) {
            self.errands.remove(&peer);
        }
        self.settle_history(link, &peer);
    }

    /// Tells a peer which ended sessions it may forget: again with every link, since nobody says
    /// whether it was heard.
    fn settle_history(&mut self, link: LinkId, peer: &str) {
        let owed: Vec<SessionId> = self
            .history
            .newest_first()
            .filter(|r| r.peer == peer && r.owes_settling())
            .map(|record| record.session)
            .collect();
        for session in owed {
            self.send_peer(link, PeerMessage::Settled { session });
        }
        // A guest that was loaded there may still wait for a word.
        let aborted: Vec<SessionId> = self
            .history
            .newest_first()
            .filter(|r| r.peer == peer && r.vm.as_ref().is_some_and(|vm| vm.abort_owed))
            .map(|record| record.session)
            .collect();
        let untold = self.untold.extract_if(.., |_, of| of == peer).map(|(session, _)| session);
        let untold: Vec<SessionId> = untold.collect();
        for session in aborted.into_iter().chain(untold) {
            let (code, message) = (Code::cut("session_failed"), Message::cut("it ended before"));
            self.send_peer(link, PeerMessage::Abort { session, code, message });
        }
    }

    /// A link is gone: every session on it hears of it.
    pub(super) fn sessions_link_lost(&mut self, link: LinkId, cause: &PeerError) {
        let on_link =
            self.sessions.values().filter(|session| session.link == Some(link)).map(Session::id);
        for id in on_link.collect::<Vec<_>>() {
            self.session_link_lost(id, cause);
        }
    }

    /// The region stays busy until every lane has closed, whatever became of the link.
    pub(super) fn session_link_lost(&mut self, id: SessionId, cause: &PeerError) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.link_failure = Some((cause.to_string(), cause.code()));
        }
        match self.sessions.get(&id).map(Session::role) {
            Some(Role::Source) => self.source_step(id, SourceInput::LinkLost),
            Some(Role::Sink) => self.sink_step(id, SinkInput::LinkLost),
            None => return,
        }
        // A machine that waits for its journal would close its lanes only later, and they serve no
        // link any more.
        self.close_lanes(id);
        if let Some(session) = self.sessions.get_mut(&id) {
            session.link = None;
        }
        self.retire_if_over(id);
    }

    /// The peers that are dialled until they answer, each with the reason, for people.
    pub(super) fn dialling(&self) -> Value {
        let now = self.now();
        let view = |peer: &str, address: Option<&str>, at: Nanos, why: &str| {
            let next_in_s = at.since(now).0.div_ceil(Nanos::SECOND.0);
            json!({ "peer": peer, "address": address, "why": why, "next_in_s": next_in_s })
        };
        let sessions = self.sessions.values().filter_map(|session| {
            let (at, _) = session.reconnect?;
            let record = &session.record;
            let in_doubt = session.state() == SessionState::InDoubt;
            let why = if in_doubt { "in_doubt" } else { "decision_untold" };
            Some(view(&record.peer, record.peer_address.as_deref(), at, why))
        });
        let errands = self
            .errands
            .iter()
            .map(|(peer, errand)| view(peer, Some(&errand.address), errand.at, "end_untold"));
        Value::Array(sessions.chain(errands).collect())
    }

    /// Dials the peers of sessions in doubt and those with an errand, with growing waits.
    pub(super) fn reconnect_due(&mut self, now: Nanos) {
        let due: Vec<(SessionId, Option<String>)> = self
            .sessions
            .values_mut()
            .filter_map(|session| {
                let (at, wait) = session.reconnect.filter(|(at, _)| *at <= now)?;
                debug_assert!(at <= now);
                let longer = Nanos((wait.0 * 2).min(REDIAL_WAIT_NS.1));
                session.reconnect = Some((now + wait, longer));
                Some((session.id(), session.record.peer_address.clone()))
            })
            .collect();
        let errands = self.errands.values_mut().filter(|errand| errand.at <= now).map(|errand| {
            (errand.at, errand.wait) =
                (now + errand.wait, Nanos((errand.wait.0 * 2).min(REDIAL_WAIT_NS.1)));
            Some(errand.address.clone())
        });
        let due = due.into_iter().map(|(_, address)| address).chain(errands.collect::<Vec<_>>());
        for address in due {
            let peer = address.and_then(|text| PeerAddress::try_from(text).ok());
            let Some(Ok(link)) = peer.map(|peer| self.link_to(&peer)) else { continue };
            let up = self.links.get(&link).is_some_and(|entry| entry.channel.is_some());
            if up {
                self.sessions_link_up(link);
            }
        }
    }
}
