//! The core's ears for virtual machines: what tasks, shards and peers tell about their sessions,
//! turned into inputs of the machines.
//!
//! Part of [`Core`], on the control thread. The machines decide. The path from the stop of the
//! guest to its resumption runs through here; it waits for nothing but what the commit needs.

use super::core::Core;
use crate::limits::VM_SINK_WORDS_NS;
use crate::migration::{FailedHere, Machine, Session};
use crate::peer::PeerError;
use crate::state::Change;
use crate::vm::{Finding, GuestState, VmError, VmNews, VmOrder, VmReport};
use dwcp_dataplane::port::{ChannelEnd, ChannelId, ChannelSetup, Command, StreamNote};
use dwcp_proto::ids::{LaneId, SessionId, SessionKey};
use dwcp_proto::session::phase::SourcePhase;
use dwcp_proto::session::sink::SinkInput;
use dwcp_proto::session::source::SourceInput;
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::limits::CHANNELS_MAX;
use dwcp_proto::wire::peer::PeerMessage;
use std::os::fd::OwnedFd;

const ONLY_LANE: LaneId = LaneId(0);

/// The code of a sink whose QEMU could not load the guest because the source's QEMU gave up.
const STREAM_ENDED: &str = "stream_ended";

impl Core {
    /// A task tells something.
    pub(crate) fn on_vm(&mut self, report: VmReport) {
        let VmReport { session: id, news } = report;
        if self.vm_sources.contains_key(&id) {
            self.on_vm_source(id, news);
        } else if self.vm_sinks.contains_key(&id) {
            self.on_vm_sink(id, news);
        } else if self.vm_settling.contains_key(&id) {
            self.on_vm_settling(id, news);
        } else if self.sessions.contains_key(&id) {
            self.on_vm_news(id, news);
        }
    }

    fn on_vm_news(&mut self, id: SessionId, news: VmNews) {
        match news {
            // Those of a session that a restart found: its QEMU tells what it does now.
            VmNews::Facts(facts) => self.guest_does(id, run_state(&facts.run_state)),
            VmNews::Saved(saved) => {
                if let Some(vm) = self.vm_record(id) {
                    vm.saved = Some(saved);
                    self.note_record(id);
                }
            }
            VmNews::Channel { channel, socket } => self.on_vm_channel(id, channel, socket),
            VmNews::Progress(progress) => {
                if let Some(part) = self.sessions.get_mut(&id).and_then(|s| s.vm.as_mut()) {
                    part.progress = Some(progress);
                }
            }
            VmNews::Stopped { at_unix_us } => {
                if let Some(vm) = self.vm_record(id) {
                    vm.stopped_at_unix_us = Some(at_unix_us);
                    vm.guest = Some(GuestState::Paused);
                }
                self.vm_stopped(id);
            }
            VmNews::Completed => self.on_vm_completed(id),
            VmNews::Prepared => {
                if let Some(part) = self.sessions.get_mut(&id).and_then(|s| s.vm.as_mut()) {
                    part.prepared = true;
                    part.channels = part.channels.max(1);
                }
                self.vm_sink_open(id);
            }
            VmNews::Loaded => {
                self.guest_does(id, GuestState::Paused);
                self.order_stream_digest(id);
            }
            VmNews::Resumed { at_unix_us } => self.on_vm_resumed(id, at_unix_us),
            VmNews::Failed(error) => self.on_vm_error(id, &error),
            VmNews::Ended { guest } => self.on_vm_ended(id, guest),
        }
    }

    pub(super) fn vm_record(&mut self, id: SessionId) -> Option<&mut crate::state::VmRecord> {
        self.sessions.get_mut(&id).and_then(|session| session.record.vm.as_mut())
    }

    pub(super) fn guest_does(&mut self, id: SessionId, guest: GuestState) {
        if let Some(vm) = self.vm_record(id) {
            vm.guest = Some(guest);
        }
    }

    /// Keeps what a restart needs and no step waits for.
    pub(super) fn note_record(&mut self, id: SessionId) {
        let record = self.sessions.get(&id).map(Session::fresh_record);
        if let Some(record) = record {
            let change = Change::Session { record: Box::new(record), forget: Vec::new() };
            self.note(change);
        }
    }

    fn on_vm_channel(&mut self, id: SessionId, channel: u16, socket: OwnedFd) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let is_source = matches!(session.machine, Machine::Source(_));
        // A session that closes its lane closes its sockets: this one comes too late.
        let (Some(key), Some(part), false) = (session.key, &mut session.vm, session.closing) else {
            return;
        };
        let lane = part.lane;
        part.channels = part.channels.max(channel + 1);
        let setup = ChannelSetup { session: key, channel: ChannelId(channel), socket };
        self.shards.send(key.link, lane, Command::AddChannel(Box::new(setup)));
        if is_source && channel > 0 {
            let open = PeerMessage::ChannelOpen { session: id, channel };
            self.send_session(id, open);
        }
    }

    fn order_stream_digest(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(&id).filter(|session| !session.closing) else {
            return;
        };
        if let (Some(key), Some(part)) = (session.key, &session.vm) {
            self.shards.send(key.link, part.lane, Command::Verify { session: key });
        }
    }

    /// The guest stands still: the last round, which QEMU runs by itself.
    fn vm_stopped(&mut self, id: SessionId) {
        if self.source_phase(id) == Some(SourcePhase::PreCopy) {
            self.source_step(id, SourceInput::Finish);
        }
    }

    fn on_vm_completed(&mut self, id: SessionId) {
        // Whoever told of the end has seen the stop as well.
        self.vm_stopped(id);
        let round = match self.sessions.get(&id).map(|session| &session.machine) {
            Some(Machine::Source(machine)) => machine.round(),
            _ => return,
        };
        self.source_step(id, SourceInput::LaneRoundDone { lane: ONLY_LANE, round });
    }

    fn source_phase(&self, id: SessionId) -> Option<SourcePhase> {
        match &self.sessions.get(&id)?.machine {
            Machine::Source(machine) => Some(machine.phase()),
            Machine::Sink(_) => None,
        }
    }

    /// A shard has carried everything, or so it says by its digest.
    pub(super) fn on_stream_digest(&mut self, key: SessionKey, digest: (u64, [u8; 16])) {
        let Some(id) = self.keys.get(&key).copied() else { return };
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let is_source = matches!(session.machine, Machine::Source(_));
        let Some(part) = &mut session.vm else { return };
        part.digest = Some(digest);
        if is_source {
            return self.compare_digests(id);
        }
        let (frames, digest) = (digest.0, SessionId(digest.1));
        self.send_session(id, PeerMessage::Loaded { session: id, frames, digest });
        self.sink_step(id, SinkInput::LaneVerified(ONLY_LANE));
        if self.is_link_parked(id) {
            // All of it had come when the link was lost: from here on the rules of a doubt hold.
            self.session_link_lost(id, &PeerError::Closed);
        }
    }

    /// The source's QEMU is done, the sink's has loaded: was it the same?
    fn compare_digests(&mut self, id: SessionId) {
        if self.source_phase(id) != Some(SourcePhase::Verifying) {
            return;
        }
        let part = self.sessions.get(&id).and_then(|session| session.vm.as_ref());
        let Some((Some(sent), Some(loaded))) = part.map(|part| (part.digest, part.loaded)) else {
            return;
        };
        if sent == loaded {
            return self.source_step(id, SourceInput::LaneVerified(ONLY_LANE));
        }
        let message = format!(
            "QEMU at the sink got another stream than was sent: {} frames of {}",
            loaded.0, sent.0
        );
        self.vm_failed(id, "stream_digest_mismatch", &message);
    }

    fn on_vm_error(&mut self, id: SessionId, error: &VmError) {
        tracing::warn!(session = %id, code = error.code(), %error, "virtual machine");
        let now = self.now();
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(part) = &mut session.vm else { return };
        part.cure = Some(error.cure());
        if part.ending {
            // The session has its end; that the guest does not follow has to be said.
            session.record.reason = Some(format!("{} ({})", error, error.code()));
            session.record.cure = Some(error.cure().to_owned());
            return;
        }
        let is_source = matches!(session.machine, Machine::Source(_));
        match error {
            VmError::MigrationFailed { .. } if is_source && session.link.is_some() => {
                let by = now + Nanos(VM_SINK_WORDS_NS);
                let (code, message) = (error.code(), error.to_string());
                part.failed = Some(FailedHere { code, message, by });
            }
            VmError::LoadFailed { .. } | VmError::LoadEnded { .. } if part.stream_ended => {
                let message = format!("the stream from the source's QEMU ended early ({error})");
                part.cure = Some("see at the source why QEMU ended its migration there");
                self.vm_failed(id, STREAM_ENDED, &message);
            }
            _ => self.vm_failed(id, error.code(), &error.to_string()),
        }
    }

    /// Ends sessions whose migration failed here and whose sink did not tell more.
    pub(super) fn tick_vm_failed(&mut self, now: Nanos) {
        let late = |session: &&Session| {
            let failed = session.vm.as_ref().and_then(|part| part.failed.as_ref());
            failed.is_some_and(|failed| failed.by <= now)
        };
        let late: Vec<SessionId> = self.sessions.values().filter(late).map(Session::id).collect();
        for id in late {
            self.vm_failed_here(id);
        }
    }

    /// The cause lies at the source; true if there was one.
    fn vm_failed_here(&mut self, id: SessionId) -> bool {
        let part = self.sessions.get_mut(&id).and_then(|session| session.vm.as_mut());
        let Some(FailedHere { code, message, .. }) = part.and_then(|part| part.failed.take())
        else {
            return false;
        };
        self.vm_failed(id, code, &message);
        true
    }

    /// What a shard learnt from the stream.
    pub(super) fn on_stream_note(&mut self, key: SessionKey, note: StreamNote) {
        let Some(id) = self.keys.get(&key).copied() else { return };
        if let StreamNote::Opaque(code) = note {
            tracing::warn!(session = %id, code, "the migration stream is carried unread");
            if let Some(vm) = self.vm_record(id) {
                vm.opaque = Some(code.to_owned());
            }
        }
    }

    /// A QEMU's socket ended. Its task says what that means: a migration that is done ends so too.
    pub(super) fn on_channel_ended(
        &mut self,
        key: SessionKey,
        channel: ChannelId,
        end: ChannelEnd,
    ) {
        let Some(id) = self.keys.get(&key) else { return };
        tracing::debug!(session = %id, channel = channel.0, %end, "migration socket");
        let part = self.sessions.get_mut(id).and_then(|session| session.vm.as_mut());
        if let (Some(part), ChannelEnd::Peer) = (part, end) {
            part.stream_ended = true;
        }
    }

    /// A peer's message about a virtual machine's session; true if it was not for the machine.
    pub(super) fn on_vm_message(&mut self, id: SessionId, message: &PeerMessage) -> bool {
        let Some(session) = self.sessions.get_mut(&id) else { return false };
        let is_source = matches!(session.machine, Machine::Source(_));
        if let Some(vm) = &mut session.record.vm {
            vm.peer_said = Some(said(message));
        }
        let Some(part) = &mut session.vm else { return false };
        match message {
            PeerMessage::SessionRefuse { findings, .. } if is_source => {
                part.findings = findings.clone();
                false
            }
            PeerMessage::VmWarnings { findings, .. } if is_source => {
                if let Some(vm) = self.vm_record(id) {
                    vm.warnings = findings.as_slice().iter().map(Finding::warning).collect();
                }
                true
            }
            // It failed there because QEMU here had ended its stream.
            PeerMessage::SessionFailed { code, .. } if code.as_str() == STREAM_ENDED => {
                self.vm_failed_here(id)
            }
            PeerMessage::Loaded { frames, digest, .. } if is_source => {
                part.loaded = Some((*frames, digest.0));
                self.compare_digests(id);
                true
            }
            PeerMessage::Resumed { at_unix_us, .. } if is_source => {
                let at = *at_unix_us;
                if let Some(vm) = self.vm_record(id) {
                    vm.resumed_at_unix_us = Some(at);
                }
                self.finish_vm(id);
                true
            }
            PeerMessage::ChannelOpen { channel, .. } if !is_source => {
                // In order and not too many, else the machine calls it a violation. Those that were
                // there before a link was lost are said again.
                if part.prepared && *channel < part.channels {
                    return true;
                }
                let next = part.prepared && *channel == part.channels && *channel < CHANNELS_MAX;
                if next {
                    part.channels += 1;
                    part.order(VmOrder::Connect { channel: *channel });
                }
                next
            }
            _ => false,
        }
    }

    fn on_vm_resumed(&mut self, id: SessionId, at_unix_us: u64) {
        if let Some(vm) = self.vm_record(id) {
            vm.resumed_at_unix_us = Some(at_unix_us);
            vm.guest = Some(GuestState::Running);
            vm.settled = true;
        }
        self.send_session(id, PeerMessage::Resumed { session: id, at_unix_us });
        self.note_record(id);
    }
}

/// What a guest does in a QEMU with this run state.
fn run_state(name: &str) -> GuestState {
    match name {
        "running" => GuestState::Running,
        "inmigrate" => GuestState::Empty,
        _ => GuestState::Paused,
    }
}

/// A peer's message as evidence.
fn said(message: &PeerMessage) -> String {
    match message {
        PeerMessage::Outcome { outcome, .. } => {
            let word = serde_json::to_value(outcome).ok();
            let word = word.as_ref().and_then(|word| word.as_str()).unwrap_or_default();
            format!("outcome: {word}")
        }
        PeerMessage::SessionFailed { code, message: text, .. }
        | PeerMessage::Abort { code, message: text, .. } => {
            format!("{}: {text} ({code})", message.name())
        }
        PeerMessage::Resolved { run, .. } => format!("resolved: {run}"),
        other => other.name().to_owned(),
    }
}
