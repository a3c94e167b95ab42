//! The core's sessions: feeding the machines and carrying out what they say.
//!
//! Part of [`Core`], on the control thread. The machines decide; nothing here does.

use super::core::{Core, Written, unix_ms};
use super::opening::new_record;
use super::views::PARKED;
use crate::api::{Role, Topic};
use crate::limits::{REDIAL_WAIT_NS, SESSIONS_LIVE_MAX, UNKNOWN_QUERIES_PER_PEER_MAX};
use crate::migration::{Machine, Session};
use crate::peer::PeerError;
use crate::state::SessionState;
use dwcp_proto::ids::{LinkId, SessionId};
use dwcp_proto::session::reason::StepError;
use dwcp_proto::session::record::SinkRecord;
use dwcp_proto::session::resolve::RunAt;
use dwcp_proto::session::sink::{SinkAction, SinkInput, SinkSession};
use dwcp_proto::session::source::{SourceAction, SourceInput};
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::peer::PeerMessage;
use serde_json::json;

/// Frame round trips of ended sessions that a scrape still adds up.
const RTT_READERS_ENDED_MAX: usize = 1024;

impl Core {
    pub(super) fn add_session(&mut self, mut session: Session) {
        session.opened_at = self.now();
        let id = session.id();
        if let Some(key) = session.key {
            self.keys.insert(key, id);
        }
        let record = session.record.clone();
        self.sessions.insert(id, session);
        self.write(record, Vec::new(), Written::Note);
        self.tell_state(id);
    }

    /// A message that names a session goes to its machine, if it comes from that session's peer.
    pub(super) fn on_session_message(&mut self, link: LinkId, message: PeerMessage) {
        let Some(entry) = self.links.get(&link) else { return };
        let (Some(id), peer) = (message.session(), entry.peer_name.clone()) else { return };
        let dialled = entry.link.is_dialled();
        if self.on_carry_message(link, &peer, id, &message) {
            return;
        }
        let role = if dialled { Role::Source } else { Role::Sink };
        if role == Role::Sink && matches!(message, PeerMessage::SessionOpen { .. }) {
            return self.on_session_open(link, &peer, &message);
        }
        if role == Role::Sink && matches!(message, PeerMessage::VmOpen { .. }) {
            return self.on_vm_open(link, &peer, &message);
        }
        if role == Role::Sink && !self.sessions.contains_key(&id) {
            self.revive_sink(id, &peer, &message);
        }
        let known = self
            .sessions
            .get(&id)
            .filter(|session| session.record.peer == peer && session.role() == role);
        let Some(session) = known else {
            if !(role == Role::Source && self.hear_late(id, &peer, &message)) {
                self.counters.ignored.add(message.name());
            }
            return;
        };
        if session.link != Some(link) {
            let ends = matches!(message, PeerMessage::Abort { .. });
            let parked = self.parked_view(session).is_some();
            if session.link.is_some() && !(ends && parked) {
                // The peer came back before we noticed that its old connection is dead.
                self.session_link_lost(id, &PeerError::Closed);
            }
            if let Some(session) = self.sessions.get_mut(&id) {
                session.link = Some(link);
            } else if role == Role::Sink {
                // It ended with the old connection; what it left may still be asked about.
                return self.on_session_message(link, message);
            }
        }
        if self.on_vm_message(id, &message) {
            return;
        }
        match role {
            Role::Source => self.source_step(id, SourceInput::Peer(message)),
            Role::Sink => self.sink_step(id, SinkInput::Peer(message)),
        }
    }

    /// A source asks about, or settles, a session that has ended here or is not known at all.
    fn revive_sink(&mut self, id: SessionId, peer: &str, message: &PeerMessage) {
        let asks = matches!(
            message,
            PeerMessage::Query { .. } | PeerMessage::Yield { .. } | PeerMessage::Resolved { .. }
        );
        // A source that never yielded must hear that an operator let this end run.
        let let_run = Some(SinkRecord::Resolved { run: RunAt::Sink });
        let settles = match message {
            PeerMessage::Settled { .. } => true,
            PeerMessage::Abort { .. } => {
                self.history.find(id).is_some_and(|record| record.sink_record == let_run)
            }
            _ => false,
        };
        if !(asks || settles) || self.sessions.len() >= SESSIONS_LIVE_MAX {
            return;
        }
        let ours = self.history.find(id).is_some_and(|r| r.peer == peer && r.role == Role::Sink);
        let known = if ours { self.history.take(id) } else { None };
        let record = match known {
            Some(record) => record,
            // A name that another peer used, or nothing to settle.
            None if self.history.find(id).is_some() || !asks => return,
            None if self.unknown_queries(peer) >= UNKNOWN_QUERIES_PER_PEER_MAX => {
                return self.counters.ignored.add("too_many_unknown_sessions");
            }
            None => {
                let mut record = new_record(id, Role::Sink, "", 0);
                record.peer = peer.to_owned();
                record.state = SessionState::Failed;
                record.unknown = true;
                record
            }
        };
        let machine = SinkSession::restore(id, record.sink_record, self.journal.id());
        let mut session = Session::new(Machine::Sink(machine), record);
        session.revived = Some(session.record.clone());
        self.sessions.insert(id, session);
    }

    /// How many sessions live only because this peer asks about what nobody knows.
    fn unknown_queries(&self, peer: &str) -> usize {
        let records = self.sessions.values().map(|session| &session.record);
        records.filter(|record| record.unknown && record.peer == peer).count()
    }

    /// Feeds a source's machine with something that it never refuses.
    pub(super) fn source_step(&mut self, id: SessionId, input: SourceInput) {
        let refused = self.source_request(id, input).err();
        debug_assert!(refused.is_none(), "only clients are refused: {refused:?}");
    }

    /// Feeds a source's machine and carries out what it says.
    pub(super) fn source_request(
        &mut self,
        id: SessionId,
        input: SourceInput,
    ) -> Result<(), StepError> {
        let now = self.now();
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(()) };
        let Machine::Source(machine) = &mut session.machine else { return Ok(()) };
        let actions = machine.step(now, input)?;
        self.source_actions(id, actions);
        Ok(())
    }

    /// Feeds a sink's machine with something that it never refuses.
    pub(super) fn sink_step(&mut self, id: SessionId, input: SinkInput) {
        let refused = self.sink_request(id, input).err();
        debug_assert!(refused.is_none(), "only clients are refused: {refused:?}");
    }

    /// Feeds a sink's machine and carries out what it says.
    pub(super) fn sink_request(
        &mut self,
        id: SessionId,
        input: SinkInput,
    ) -> Result<(), StepError> {
        let now = self.now();
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(()) };
        let Machine::Sink(machine) = &mut session.machine else { return Ok(()) };
        let actions = machine.step(now, input)?;
        self.sink_actions(id, actions);
        Ok(())
    }

    pub(super) fn source_actions(&mut self, id: SessionId, actions: Vec<SourceAction>) {
        let before = self.sessions.get(&id).map(|session| session.record.state);
        for action in actions {
            match action {
                SourceAction::Send(message) => self.send_session(id, message),
                SourceAction::OpenLanes => self.open_lanes(id),
                SourceAction::StartRound { round, last } => self.start_round(id, round, last),
                SourceAction::Verify => self.verify(id),
                SourceAction::CloseLanes => self.close_lanes(id),
                SourceAction::Journal(record) => {
                    let now = self.now();
                    let Some(session) = self.sessions.get_mut(&id) else { return };
                    session.verify_ns = now.since(session.times.verify).0;
                    session.times.commit = now;
                    session.update_record();
                    // The living record takes it over once it is on disk.
                    let mut note = session.record.clone();
                    note.source_record = Some(record);
                    self.write(note, Vec::new(), Written::Source(id, record));
                }
                SourceAction::Reconnect => {
                    let now = self.now();
                    if let Some(session) = self.sessions.get_mut(&id) {
                        session.link = None;
                        session.reconnect = Some((now, Nanos(REDIAL_WAIT_NS.0)));
                    }
                }
                SourceAction::Report(report) => self.report_source(id, report),
                SourceAction::Ignored { message } => self.counters.ignored.add(message),
            }
        }
        self.after_step(id, before);
    }

    pub(super) fn sink_actions(&mut self, id: SessionId, actions: Vec<SinkAction>) {
        let before = self.sessions.get(&id).map(|session| session.record.state);
        for action in actions {
            match action {
                SinkAction::Send(message) => self.send_session(id, message),
                SinkAction::OpenLanes => self.open_lanes(id),
                SinkAction::CloseLanes => self.close_lanes(id),
                SinkAction::Journal(record) => {
                    let Some(session) = self.sessions.get_mut(&id) else { return };
                    session.update_record();
                    let mut note = session.record.clone();
                    note.sink_record = Some(record);
                    self.write(note, Vec::new(), Written::Sink(id, record));
                }
                SinkAction::Report(report) => self.report_sink(id, report),
                SinkAction::Forget => {
                    if let Some(session) = self.sessions.get_mut(&id) {
                        session.record.settled = true;
                    }
                }
                SinkAction::Ignored { message } => self.counters.ignored.add(message),
            }
        }
        self.after_step(id, before);
    }

    /// Brings record, subscribers and history up to what the machine says now.
    fn after_step(&mut self, id: SessionId, before: Option<SessionState>) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.update_record();
        if before != Some(session.record.state) {
            self.tell_state(id);
        }
        self.release_use(id);
        self.retire_if_over(id);
    }

    /// Gives back what an ended session used; it may still owe its peer a word.
    pub(super) fn release_use(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(&id) else { return };
        let (role, state) = (session.role(), session.state());
        let driven = session.vm.as_ref().is_some_and(|part| part.task.is_some());
        if !state.is_over() || session.lanes_held != 0 || driven {
            return;
        }
        let region = session.record.region.clone();
        let vm = session.record.vm.as_ref().map(|vm| vm.name.clone());
        self.regions.give_back(&region, id, state == SessionState::Committed);
        if let Some(name) = vm {
            self.give_back_vm(&name, id, Some((role, state)));
        }
    }

    pub(super) fn tell_state(&self, id: SessionId) {
        let Some(session) = self.sessions.get(&id) else { return };
        let record = &session.record;
        let parked = self.parked_view(session);
        let state = if parked.is_some() { PARKED } else { record.state.name() };
        let role = record.role.name();
        tracing::info!(session = %id, role, state, peer = %record.peer, "session");
        let mut params = json!({
            "session": id, "role": role, "state": state, "reason": record.reason,
        });
        if let Some(parked) = parked {
            params["parked"] = parked;
        }
        if let Some(vm) = &record.vm {
            params["vm"] = json!(vm.name);
            params["warnings"] = json!(vm.warnings);
        }
        if let Some(conflict) = record.conflict {
            params["conflict"] = json!(conflict);
        }
        self.notify(Topic::SessionState, id, &params);
    }

    /// Moves a session that is over from the living to the history.
    pub(super) fn retire_if_over(&mut self, id: SessionId) {
        if !self.sessions.get(&id).is_some_and(Session::is_over) {
            return;
        }
        self.release_use(id);
        let Some(mut session) = self.sessions.remove(&id) else { return };
        if let Some(key) = session.key {
            self.keys.remove(&key);
        }
        let first_end = session.record.ended_unix_ms.is_none();
        session.record.ended_unix_ms.get_or_insert_with(unix_ms);
        if first_end {
            self.counters.sessions_ended.add(session.record.state.name());
        }
        self.frame_rtt_ended.extend(session.frame_rtt_ns.drain(..));
        while self.frame_rtt_ended.len() > RTT_READERS_ENDED_MAX {
            self.frame_rtt_ended.pop_front();
        }
        let (record, revived) = (session.record, session.revived);
        if record.unknown && record.sink_record.is_none() {
            // Nothing was promised about it: it leaves no trace.
            return;
        }
        if record.unknown && record.settled {
            return self.write(record, vec![id], Written::Note);
        }
        let forgotten = self.history.push(record.clone());
        // Answering a question again changes nothing, and a peer may ask as often as it likes.
        if !forgotten.is_empty() || revived.as_ref() != Some(&record) {
            self.write(record, forgotten, Written::Note);
        }
    }

    pub(super) fn send_session(&mut self, id: SessionId, message: PeerMessage) {
        if let Some(link) = self.sessions.get(&id).and_then(|session| session.link) {
            self.send_peer(link, message);
        }
    }
}
