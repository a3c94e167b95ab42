//! The core's links without a connection: sessions that wait, attempts at another connection, and
//! going on over it.
//!
//! Part of [`Core`], on the control thread. A parked link keeps its lanes, and its sessions that
//! can wait keep their memory and the VMMs' sockets, which stand still by backpressure. These are
//! the ones of virtual machines, and those of regions and carriers if both ends know how. The end
//! that dialled looks for another connection; the one that listens waits. Every parked link ends:
//! by going on, by its window, or when nobody waits for it any more. What was under way on the lost
//! channel is gone: what still matters is said again here.

use super::core::{Core, unix_ms};
use super::links::LinkEntry;
use super::room::refusal;
use crate::api::Role;
use crate::limits::{RESUME_SILENCE, RESUME_WAIT_NS, RESUMES_MAX};
use crate::migration::{Machine, Session};
use crate::peer::{
    ChannelHandle, ConnectionId, Established, LinkInput, LinkPhase, PeerError, dial_peer, random,
};
use dwcp_proto::ids::{LinkEpoch, LinkId, SessionId};
use dwcp_proto::session::phase::{SinkPhase, SourcePhase};
use dwcp_proto::session::sink::SinkInput;
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::peer::{Code, Message, PeerMessage};
use dwcp_proto::wire::token::{LinkToken, ResumeToken};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

/// Since when and for whom a link waits.
#[derive(Debug)]
pub(super) struct Parked {
    since: Nanos,
    since_unix_ms: u64,
    cause: String,
    sessions: BTreeSet<SessionId>,
}

/// Attempts at another connection.
#[derive(Debug, Default)]
pub(super) struct Redial {
    at: Nanos,
    wait: Nanos,
    under_way: BTreeSet<ConnectionId>,
    /// When the last one was taken.
    taken_at: Option<Nanos>,
}

impl Redial {
    /// The connection is lost: the next attempt is due at once, unless that one was young. A path
    /// that kills every connection is not worn out by new ones.
    fn lost(&mut self, now: Nanos) {
        let young = self.taken_at.is_some_and(|taken| now.since(taken).0 < RESUME_WAIT_NS.1);
        let rest = if young { RESUME_WAIT_NS.1 } else { 0 };
        (self.at, self.wait) = (now + Nanos(rest), Nanos(RESUME_WAIT_NS.0));
    }
}

impl LinkEntry {
    /// Features that both ends have.
    pub(super) fn features(&self) -> u64 {
        self.agreed.map_or(0, |agreed| agreed.features)
    }
}

impl Core {
    /// A link's connection or its last stream is gone: the link is parked if that is of use, else
    /// it ends. Where the streams alone are gone, the channel is heard to the end first.
    pub(super) fn lose_link(&mut self, link: LinkId, cause: &PeerError) {
        if !self.awaits_last_words(link, cause) {
            self.link_is_lost(link, cause);
        }
    }

    /// Nothing more is to be heard on the link's channel.
    pub(super) fn link_is_lost(&mut self, link: LinkId, cause: &PeerError) {
        if let Some(entry) = self.links.get_mut(&link) {
            entry.last_words = None;
        }
        let waits = cause.is_loss() && !self.stopping && !self.live.get().resume_window.is_zero();
        let may = self.links.get(&link).is_some_and(|entry| entry.link.may_resume());
        match waits && may && !self.waiting_on(link).is_empty() {
            true => self.park_link(link, cause),
            false => self.end_link(link, cause),
        }
    }

    /// Sessions that can go on over another connection of their link.
    fn sessions_on(&self, link: LinkId) -> impl Iterator<Item = &Session> {
        self.sessions.values().filter(move |s| s.link == Some(link) && may_wait(s))
    }

    /// The names of these, and of a carrier's.
    fn waiting_on(&self, link: LinkId) -> Vec<SessionId> {
        self.sessions_on(link).map(Session::id).chain(self.carried_on(link)).collect()
    }

    /// Gives up the link's connection and keeps the rest. Sessions that can't wait hear of it.
    fn park_link(&mut self, link: LinkId, cause: &PeerError) {
        let now = self.now();
        let sessions = self.waiting_on(link);
        let Some(entry) = self.links.get_mut(&link) else { return };
        entry.heard = entry.heard();
        if let Some(channel) = entry.channel.take() {
            channel.abort();
        }
        if let Some(connection) = entry.connection.take() {
            self.connections.remove(&connection);
        }
        entry.redial.lost(now);
        let first = entry.parked.is_none();
        let parked = entry.parked.get_or_insert_with(|| Parked {
            since: now,
            since_unix_ms: unix_ms(),
            cause: cause.to_string(),
            sessions: BTreeSet::new(),
        });
        parked.sessions.extend(sessions);
        if first {
            self.counters.links_parked.add(cause.code());
            if let Some(suppressed) = self.peer_log.allow(now) {
                let (peer, code) = (&entry.peer_name, cause.code());
                tracing::warn!(%link, %peer, code, error = %cause, suppressed, "link parked");
            }
        }
        self.link_step(link, LinkInput::Lost);
        let on_link: Vec<(SessionId, bool)> = self
            .sessions
            .values()
            .filter(|session| session.link == Some(link))
            .map(|session| (session.id(), session.may_park()))
            .collect();
        for (session, parks) in on_link {
            match parks {
                true if first => self.tell_state(session),
                true => {}
                false => self.session_link_lost(session, cause),
            }
        }
        self.vm_sinks_link_lost(link);
        if first {
            self.park_carry(link, cause);
        }
    }

    /// Does what is due for a link that waits, or should.
    pub(super) fn tick_parked(&mut self, link: LinkId, now: Nanos) {
        let window = self.live.get().resume_window;
        self.tick_last_words(link, now);
        let Some(entry) = self.links.get_mut(&link) else { return };
        let silent = entry.heard().map_or(Duration::ZERO, |heard| entry.silence.tick(heard));
        let carried = self.carried_on(link);
        let Some(entry) = self.links.get(&link) else { return };
        if let Some(parked) = &entry.parked {
            let waits = |id: &SessionId| {
                carried == Some(*id) || self.sessions.get(id).is_some_and(may_wait)
            };
            let alone = entry.link.phase() == LinkPhase::Parked;
            if alone && !parked.sessions.iter().any(waits) {
                return self.drop_link(link, &PeerError::ResumeUnwanted);
            }
        }
        if let Some(cause) = self.window_is_over(entry, carried.is_some(), silent, now) {
            let seconds = window.as_secs();
            return self.drop_link(link, &PeerError::ResumeWindow { seconds, cause });
        }
        if self.wants_connection(link, silent) {
            self.dial_again(link, now);
        }
    }

    /// How the link was lost, if nobody waits for it any longer. A carrier does not know whether
    /// its guest stands still, and bounds the silence as a whole: its window begins when the peer
    /// was heard last.
    fn window_is_over(
        &self,
        entry: &LinkEntry,
        carried: bool,
        silent: Duration,
        now: Nanos,
    ) -> Option<String> {
        let window = self.live.get().resume_window;
        match &entry.parked {
            Some(parked) => {
                let since = Duration::from_nanos(now.since(parked.since).0);
                let waited = if carried { silent } else { since };
                (waited >= window).then(|| parked.cause.clone())
            }
            None => {
                let over = carried && !window.is_zero() && silent >= window.max(self.patience());
                over.then(|| PeerError::Silent { seconds: silent.as_secs() }.to_string())
            }
        }
    }

    /// A peer that is silent for so long seems to be lost.
    fn patience(&self) -> Duration {
        RESUME_SILENCE.max(self.live.get().peer_ping_every * 3)
    }

    /// What stands still for its end, a guest or a region whose owner has paused, does so for as
    /// long as its peer lives, and not for a peer that says nothing or a link that does not come
    /// back.
    pub(super) fn tick_blackouts(&mut self) {
        let blackout_max = self.live.get().blackout_max;
        let mut silent = Vec::new();
        for (id, session) in &mut self.sessions {
            let stopped = match &session.machine {
                Machine::Source(machine) => {
                    matches!(machine.phase(), SourcePhase::LastRound | SourcePhase::Verifying)
                }
                Machine::Sink(_) => false,
            };
            let heard = session.link.and_then(|link| Some((link, self.links.get(&link)?.heard()?)));
            if let (true, Some((link, heard))) = (stopped, heard)
                && session.silence.tick(heard) >= blackout_max
                && session.may_park()
            {
                silent.push((*id, link, session.is_vm()));
            }
        }
        for (id, link, is_vm) in silent {
            let silence = PeerError::Silent { seconds: blackout_max.as_secs() };
            if !self.live.get().resume_window.is_zero() {
                // The sink hears of the end over another connection.
                self.lose_link(link, &silence);
            }
            let why = PeerError::Blackout;
            match is_vm {
                true => self.vm_failed(id, why.code(), &why.to_string()),
                false => self.session_link_lost(id, &why),
            }
        }
    }

    /// True for a link that we dialled and that has lost its connection, or seems to have.
    fn wants_connection(&self, link: LinkId, silent: Duration) -> bool {
        let Some(entry) = self.links.get(&link) else { return false };
        let lost = entry.link.phase() == LinkPhase::Parked || silent >= self.patience();
        let window = self.live.get().resume_window;
        entry.dialled.is_some()
            && entry.link.may_resume()
            && lost
            && !window.is_zero()
            && !self.waiting_on(link).is_empty()
    }

    fn dial_again(&mut self, link: LinkId, now: Nanos) {
        let Some(entry) = self.links.get(&link) else { return };
        let Redial { at, wait, under_way, .. } = &entry.redial;
        if *at > now || under_way.len() >= RESUMES_MAX {
            return;
        }
        let Some(peer) = entry.dialled.clone() else { return };
        let wait = wait.0.clamp(RESUME_WAIT_NS.0, RESUME_WAIT_NS.1);
        // Three quarters of the wait and up to a quarter more, so that many links don't knock at
        // the same time.
        let jitter = u64::from(u16::from_be_bytes(random())) * (wait / 4) / u64::from(u16::MAX);
        let connection = self.new_connection(link);
        if let Some(entry) = self.links.get_mut(&link) {
            entry.redial.under_way.insert(connection);
            entry.redial.at = now + Nanos(wait / 4 * 3 + jitter);
            entry.redial.wait = Nanos(wait * 2);
        }
        let (identity, peers) = (self.identity.clone(), self.peers.clone());
        dial_peer(connection, peer, identity, self.config.timeouts, peers);
    }

    /// An attempt at another connection came to an end.
    pub(super) fn on_redialled(
        &mut self,
        link: LinkId,
        connection: ConnectionId,
        outcome: Result<Box<Established>, PeerError>,
    ) {
        self.connections.remove(&connection);
        let Some(entry) = self.links.get_mut(&link) else { return };
        entry.redial.under_way.remove(&connection);
        let silent = entry.heard().map_or(Duration::ZERO, |heard| entry.silence.since(heard));
        let (phase, name) = (entry.link.phase(), entry.peer_name.clone());
        let agreed = entry.agreed;
        let peer = match outcome {
            Ok(peer) => *peer,
            Err(error) if phase == LinkPhase::Parked && error.is_nobody() => {
                return self.drop_link(link, &error);
            }
            Err(error) => return self.counters.refused.add(error.code()),
        };
        if peer.peer_name != name {
            return self.refuse_peer(peer.address, &PeerError::ResumeWrongPeer);
        }
        if agreed != Some(peer.agreed) {
            return self.drop_link(link, &PeerError::ResumeAgreement);
        }
        // Another attempt was first, or the old connection has come back.
        if !self.wants_connection(link, silent) {
            return;
        }
        if phase != LinkPhase::Parked {
            self.park_link(link, &PeerError::Silent { seconds: silent.as_secs() });
        }
        let connection = self.new_connection(link);
        let address = peer.address;
        let channel = ChannelHandle::start(connection, peer, self.peers.clone(), self.live.clone());
        self.attach(link, connection, (channel, address));
        let sessions = self.waiting_on(link);
        self.link_step(link, LinkInput::Reconnected(sessions));
    }

    /// Gives a parked link its next connection.
    fn attach(
        &mut self,
        link: LinkId,
        connection: ConnectionId,
        (channel, address): (ChannelHandle, SocketAddr),
    ) {
        self.connections.insert(connection, link);
        let now = self.now();
        if let Some(entry) = self.links.get_mut(&link) {
            entry.redial.taken_at = Some(now);
            entry.connection = Some(connection);
            entry.channel = Some(channel);
            entry.address = Some(address);
        }
    }

    /// A peer wants to go on with a link of before over the connection of `fresh`, which has no
    /// link of its own yet.
    pub(super) fn on_link_resume(
        &mut self,
        fresh: LinkId,
        (epoch, token): (LinkEpoch, ResumeToken),
        sessions: Vec<SessionId>,
    ) {
        let Some(entry) = self.links.get(&fresh) else { return };
        match self.resumable(entry, epoch, token) {
            Ok(link) => self.resume_link(link, fresh, token, &sessions),
            Err(error) => {
                self.counters.refused.add(error.code());
                self.send_peer(fresh, refusal(&error));
                self.drop_link(fresh, &error);
            }
        }
    }

    /// The link that a peer may go on with. A right token wins over a connection that still seems
    /// to live: nobody but the peer has it, and the peer has given that connection up.
    fn resumable(
        &self,
        fresh: &LinkEntry,
        epoch: LinkEpoch,
        token: ResumeToken,
    ) -> Result<LinkId, PeerError> {
        let mut refused = PeerError::ResumeUnknown;
        for (link, entry) in &self.links {
            let own = entry.peer_name == fresh.peer_name;
            match entry.link.check_resume(token) {
                Ok(()) if own && entry.link.epoch() == epoch => {
                    let same = entry.agreed == fresh.agreed;
                    return if same { Ok(*link) } else { Err(PeerError::ResumeAgreement) };
                }
                Ok(()) if !own => return Err(PeerError::ResumeWrongPeer),
                Err(error) if own && entry.link.epoch() == epoch => refused = error,
                _ => {}
            }
        }
        Err(refused)
    }

    fn resume_link(
        &mut self,
        link: LinkId,
        fresh: LinkId,
        shown: ResumeToken,
        sessions: &[SessionId],
    ) {
        if self.links.get(&link).is_some_and(|entry| entry.link.phase() != LinkPhase::Parked) {
            self.park_link(link, &PeerError::Closed);
        }
        let Some(entry) = self.links.remove(&fresh) else { return };
        let (Some(connection), Some(channel), Some(address)) =
            (entry.connection, entry.channel, entry.address)
        else {
            unreachable!("a message came over a channel that stands")
        };
        self.attach(link, connection, (channel, address));
        self.agree_on_sessions(link, sessions);
        let (token, resume) = (LinkToken(random()), ResumeToken(random()));
        self.link_step(link, LinkInput::Resumed { shown, token, resume });
    }

    /// Sessions that the source does not name are over; those that are over here are so there.
    fn agree_on_sessions(&mut self, link: LinkId, named: &[SessionId]) {
        let over: Vec<SessionId> = self
            .sessions_on(link)
            .filter(|session| session.may_park() && !named.contains(&session.id()))
            .map(Session::id)
            .collect();
        for session in over {
            let code = Code::cut("resume_not_named");
            let message = Message::cut("the source ended the session while the link was lost");
            let abort = PeerMessage::Abort { session, code, message };
            self.sink_step(session, SinkInput::Peer(abort));
        }
        self.agree_on_carry(link, named);
        let Some(entry) = self.links.get(&link) else { return };
        let peer = entry.peer_name.clone();
        let carried = self.carried_on(link);
        for &id in named.iter().filter(|id| carried != Some(**id)) {
            let of_peer = |s: &&mut Session| s.record.peer == peer && s.role() == Role::Sink;
            match self.sessions.get_mut(&id).filter(of_peer).filter(|session| may_wait(session)) {
                Some(session) => session.link = Some(link),
                None => {
                    let code = Code::cut("resume_session_unknown");
                    let reason = self.history.find(id).filter(|record| record.peer == peer);
                    let reason = reason.and_then(|record| record.reason.as_deref());
                    let message = Message::cut(reason.unwrap_or("no such session waits here"));
                    self.counters.ignored.add("resume_session_unknown");
                    let failed = PeerMessage::SessionFailed { session: id, code, message };
                    self.send_peer(link, failed);
                }
            }
        }
    }

    /// A link is ready; if it was parked, its sessions go on.
    pub(super) fn link_resumed(&mut self, link: LinkId) {
        let Some(entry) = self.links.get_mut(&link) else { return };
        let Some(parked) = entry.parked.take() else { return };
        let dialled = entry.link.is_dialled();
        let lost_ms = unix_ms().saturating_sub(parked.since_unix_ms);
        tracing::info!(%link, peer = %entry.peer_name, lost_ms, "link resumed");
        let role = if dialled { Role::Source } else { Role::Sink };
        self.counters.links_resumed.add(role.name());
        let sessions: Vec<SessionId> = self.sessions_on(link).map(Session::id).collect();
        for session in sessions {
            self.say_again(session);
            self.tell_state(session);
        }
        self.resume_carry(link, lost_ms);
        if dialled {
            self.sessions_link_up(link);
        }
    }

    /// What may have been lost with the channel and still matters; the peer knows what it had.
    fn say_again(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(&id) else { return };
        let Some(part) = &session.vm else { return };
        let channels = part.channels;
        match (&session.machine, part.digest) {
            (Machine::Source(_), _) => {
                for channel in 1..channels {
                    self.send_session(id, PeerMessage::ChannelOpen { session: id, channel });
                }
            }
            (Machine::Sink(_), Some((frames, digest))) => {
                let digest = SessionId(digest);
                self.send_session(id, PeerMessage::Loaded { session: id, frames, digest });
            }
            (Machine::Sink(_), None) => {}
        }
    }

    /// Whether the session's link has lost its connection.
    pub(super) fn is_link_parked(&self, id: SessionId) -> bool {
        let link = self.sessions.get(&id).and_then(|session| session.link);
        let entry = link.and_then(|link| self.links.get(&link));
        entry.is_some_and(|entry| entry.parked.is_some())
    }

    /// Since when and until when a session is parked, for people; `None` if it is not.
    pub(super) fn parked_view(&self, session: &Session) -> Option<Value> {
        let parked = self.links.get(&session.link?)?.parked.as_ref()?;
        let window = u64::try_from(self.live.get().resume_window.as_millis()).unwrap_or(u64::MAX);
        session.may_park().then(|| {
            json!({
                "since_unix_ms": parked.since_unix_ms,
                "until_unix_ms": parked.since_unix_ms.saturating_add(window),
                "reason": parked.cause,
            })
        })
    }
}

/// True for a session that another connection of its link may help: its stream is under way, or it
/// has loaded its guest and awaits the source's word.
fn may_wait(session: &Session) -> bool {
    session.may_park()
        || match &session.machine {
            Machine::Sink(sink) if session.is_vm() => {
                sink.phase() == SinkPhase::Verified || sink.is_parked()
            }
            _ => false,
        }
}
