//! The shard's part of a carried session: opening it, its channels, their ends, the digest.
//!
//! Part of [`Core`], on the control thread.

use super::carry::{LINK_CURE, failure};
use super::core::Core;
use crate::api::Role;
use crate::carry::{CarryEvent, CarryPhase, CarrySession};
use crate::limits::CARRY_LINGER_NS;
use dwcp_dataplane::port::{
    ChannelEnd, ChannelId, ChannelSetup, Command, Event, HashKey, Level, SessionEnd, StreamCoding,
    StreamNote, StreamSinkSetup, StreamSourceSetup,
};
use dwcp_ffi::counters::{counters, histogram};
use dwcp_proto::ids::SessionId;
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::limits::{BACKLOG_DEFAULT, PAGE_BYTES};
use dwcp_proto::wire::peer::{PeerCoding, PeerMessage};
use std::os::fd::OwnedFd;

impl Core {
    /// What a shard reports of the session; true if it was a carrier's.
    pub(super) fn on_carry_event(&mut self, event: &Event) -> bool {
        let Some(carry) = &self.carry else { return false };
        let key = match *event {
            Event::Opened { session }
            | Event::Stream { session, .. }
            | Event::ChannelEnded { session, .. }
            | Event::StreamDigest { session, .. }
            | Event::Failed { session, .. }
            | Event::Closed { session } => session,
            Event::Stopped => {
                self.carry_over();
                return false;
            }
            _ => return false,
        };
        let Some(session) = carry.session.as_ref().filter(|s| s.key == Some(key)) else {
            return true;
        };
        let opened = session.lane_open;
        match *event {
            Event::Opened { .. } => self.carry_lane_opened(),
            Event::Stream { note, .. } => self.note_stream(note),
            Event::ChannelEnded { channel, end, .. } => self.carry_channel_ended(channel.0, end),
            Event::StreamDigest { frames, digest, .. } => self.carry_digest((frames, digest)),
            Event::Failed { cause, .. } => {
                if !opened
                    && let Some(carry) = &mut self.carry
                    && let Some(session) = &mut carry.session
                {
                    // Nothing was opened, so that nothing is left to close.
                    session.lane_ordered = false;
                }
                self.carry_lane_failed(cause);
            }
            _ => self.carry_over(),
        }
        true
    }

    /// Orders the shard's part open.
    pub(super) fn open_carry_lane(&mut self) {
        let level = self.live.get().zstd_level;
        let link = self.carried().and_then(|session| session.link);
        let hash_key = link.and_then(|link| self.links.get(&link)).map(|e| e.hash_key.clone());
        let (Some(hash_key), Some(session)) = (hash_key, self.carried()) else { return };
        let (Some(key), Some(command)) = (session.key, open_command(session, hash_key, level))
        else {
            return;
        };
        session.phase = CarryPhase::Opening;
        session.lane_ordered = true;
        let lane = session.lane;
        self.shards.send(key.link, lane, command);
    }

    fn carry_lane_opened(&mut self) {
        let now = self.now();
        if let Some(session) = self.carry.as_mut().and_then(|carry| carry.session.as_mut()) {
            session.lane_open = true;
        }
        let journal = self.journal.id();
        let Some(session) = self.carried() else { return };
        session.phase = CarryPhase::Carrying;
        session.deadline = None;
        session.progress_at = now;
        let (id, peer) = (session.id, session.peer.clone());
        let sockets = std::mem::take(&mut session.sockets);
        if let (Role::Sink, Some(key), Some(link)) = (session.role, session.key, session.link) {
            let (session, number, vm) = (id, key.number, session.terms);
            self.send_peer(link, PeerMessage::SessionAccept { session, number, journal, vm });
        }
        self.report_carry(&CarryEvent::Opened { session: id.to_string(), peer });
        sockets.into_iter().for_each(|(channel, socket)| self.give_channel(channel, socket));
    }

    /// Hands a VMM's socket to the shard, or keeps it until the shard is ready.
    pub(super) fn give_channel(&mut self, channel: u16, socket: OwnedFd) {
        let Some(session) = self.carried() else { return };
        let Some(key) = session.key.filter(|_| session.phase == CarryPhase::Carrying) else {
            return session.sockets.push((channel, socket));
        };
        let (id, role, lane, link) = (session.id, session.role, session.lane, session.link);
        let setup = ChannelSetup { session: key, channel: ChannelId(channel), socket };
        self.shards.send(key.link, lane, Command::AddChannel(Box::new(setup)));
        if channel == 0 {
            return;
        }
        if let (Role::Source, Some(link)) = (role, link) {
            self.send_peer(link, PeerMessage::ChannelOpen { session: id, channel });
        }
        self.report_carry(&CarryEvent::Channel { session: id.to_string(), channel });
    }

    fn carry_channel_ended(&mut self, channel: u16, end: ChannelEnd) {
        let linger = self.now() + Nanos(CARRY_LINGER_NS);
        let Some(session) = self.carried() else { return };
        tracing::debug!(session = %session.id, channel, %end, "migration socket");
        match (session.role, end) {
            (_, ChannelEnd::Broken) => {
                return self.fail_carry(failure(
                    "vmm_closed",
                    "the destination VMM closed its socket before it had taken everything",
                    "look at the destination VMM's own messages",
                ));
            }
            (Role::Source, ChannelEnd::Peer)
            | (Role::Sink, ChannelEnd::Closed)
            | (Role::Sink, ChannelEnd::Socket { .. }) => session.end_back(channel),
            (Role::Source, _) | (Role::Sink, ChannelEnd::Peer) => session.end_forth(channel),
        }
        let lingers = session.role == Role::Sink && session.all_forth_ended();
        session.deadline = lingers.then_some(linger);
        self.verify_carry();
    }

    /// Asks the shard for its digest if everything has ended.
    pub(super) fn verify_carry(&mut self) {
        let Some(session) = self.carried() else { return };
        let Some(key) = session.key else { return };
        if session.verify_due().is_some() {
            let lane = session.lane;
            session.deadline = None;
            self.shards.send(key.link, lane, Command::Verify { session: key });
        }
    }

    fn carry_digest(&mut self, digest: (u64, [u8; 16])) {
        if let Some(session) = self.carried() {
            session.digest = Some(digest);
            self.tell_digest();
        }
    }

    /// Tells the other end what was counted here, or compares both; a lost link is waited for.
    pub(super) fn tell_digest(&mut self) {
        if self.is_carry_parked() {
            return;
        }
        let Some(session) = self.carried() else { return };
        let Some(digest) = session.digest else { return };
        let (id, channels, link) = (session.id, session.verified, session.link);
        if session.role == Role::Sink {
            let (frames, digest) = (digest.0, SessionId(digest.1));
            let carried = PeerMessage::Carried { session: id, channels, frames, digest };
            if let Some(link) = link {
                self.send_peer(link, carried);
            }
            return;
        }
        if session.carried != Some((channels, digest)) {
            return self.fail_carry(failure(
                "digest_mismatch",
                "the destination VMM got another stream than the source VMM sent",
                "do not run the guest at the sink; report this with both carriers' messages",
            ));
        }
        if let Some(link) = link {
            self.send_peer(link, PeerMessage::Settled { session: id });
        }
        self.end_carry(None);
    }

    fn carry_lane_failed(&mut self, cause: SessionEnd) {
        if self.carried().is_none() {
            // It was closing already; if it never opened, nothing else will be told.
            let session = self.carry.as_ref().and_then(|carry| carry.session.as_ref());
            if session.is_some_and(|session| !session.lane_ordered) {
                self.carry_over();
            }
            return;
        }
        let (code, cure) = match cause {
            SessionEnd::LinkLost(_) => ("link_lost", LINK_CURE),
            SessionEnd::Peer { .. } => ("peer_ended", "look at the other carrier's messages"),
            SessionEnd::NoMemory => ("no_memory", "lower --memory or free memory on this machine"),
            SessionEnd::TableFull => ("no_room", "wait for the session before to end"),
            SessionEnd::PageMismatch | SessionEnd::Protocol { .. } => {
                ("protocol", "check that both carriers are of the same version")
            }
        };
        self.fail_carry(failure(code, cause.to_string(), cure));
    }

    fn note_stream(&mut self, note: StreamNote) {
        let Some(session) = self.carried() else { return };
        let name = session.id.to_string();
        let pages = session.terms.map_or(0, |terms| terms.pages_max);
        let event = match note {
            StreamNote::RamBytes(ram_bytes) => {
                let table_bytes = pages.saturating_mul(PAGE_BYTES as u64);
                CarryEvent::Ram { session: name, ram_bytes, table_bytes }
            }
            StreamNote::Opaque(reason) => CarryEvent::Opaque { session: name, reason },
            StreamNote::RamEnded => return,
        };
        self.report_carry(&event);
    }
}

/// The order to open the shard's part.
fn open_command(session: &mut CarrySession, hash_key: HashKey, level: Level) -> Option<Command> {
    let (key, terms, lane) = (session.key?, session.terms?, session.lane);
    let (stats, reader) = counters();
    session.stats = Some(reader);
    Some(match session.role {
        Role::Source => {
            let window_log = terms.window_log;
            Command::OpenStreamSource(Box::new(StreamSourceSetup {
                session: key,
                lane,
                coding: match session.coding {
                    PeerCoding::Full => StreamCoding::Pages { level, window_log },
                    PeerCoding::Passthrough => StreamCoding::Passthrough,
                },
                pages_max: terms.pages_max,
                base_pages: terms.base_pages,
                undelivered_bytes_max: terms.undelivered_bytes_max,
                backlog: BACKLOG_DEFAULT,
                hash_key,
                before: None,
                held_pages: 0,
                heir: None,
                stats,
                frame_rtt_ns: histogram().0,
            }))
        }
        Role::Sink => Command::OpenStreamSink(Box::new(StreamSinkSetup {
            session: key,
            lane,
            window_log: terms.window_log,
            pages_max: terms.pages_max,
            base_pages: terms.base_pages,
            undelivered_bytes_max: terms.undelivered_bytes_max,
            hash_key,
            before: None,
            held_pages: 0,
            heir: None,
            stats,
        })),
    })
}
