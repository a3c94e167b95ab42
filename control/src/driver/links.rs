//! The core's links: carrying out what [`Link`] decides.
//!
//! Part of [`Core`], on the control thread. A link that fails takes its sessions through their
//! machines first, then its lanes; clients that waited for it are answered.

use super::core::{Core, unix_ms};
use super::families::StreamReaders;
use super::last_words::LastWords;
use super::parking::{Parked, Redial};
use super::room::StreamsHeld;
use super::stream_options::set_options;
use super::tuned::Tuned;
use crate::api::{ApiError, PeerAddress, Reply, SessionOpen};
use crate::limits::STREAMS_FIRST_VERSION;
use crate::migration::{Memory, Silence};
use crate::peer::{
    ChannelHandle, ConnectionId, Established, Link, LinkInput, LinkOutput, LinkPhase, PeerError,
    PeerInput, dial_peer, dial_stream, random,
};
use dwcp_dataplane::port::{Command, HashKey, Spread, StreamEnd, StreamPlace, StreamSetup};
use dwcp_ffi::counters::{counters, histogram};
use dwcp_ffi::sys::tcp::tcp_congestion;
use dwcp_proto::ids::{Incarnation, LaneId, LinkEpoch, LinkId, SessionId, SessionNumber, StreamId};
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::hello::FEATURE_RESUME;
use dwcp_proto::wire::peer::{Message, PeerMessage};
use dwcp_proto::wire::preface::StreamPreface;
use dwcp_proto::wire::token::{LinkToken, ResumeToken};
use dwcp_proto::wire::version::WireVersion;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// A client whose session waits for its link.
#[derive(Debug)]
pub(super) struct LinkWaiter {
    pub(super) session: SessionId,
    pub(super) open: SessionOpen,
    pub(super) memory: Memory,
    pub(super) memory_bytes: u64,
    pub(super) reply: Reply,
}

/// One link and what belongs to it here.
#[derive(Debug)]
pub(super) struct LinkEntry {
    pub(super) link: Link,
    /// Where it was dialled; `None` for one that the peer dialled.
    pub(super) dialled: Option<PeerAddress>,
    pub(super) peer_name: String,
    pub(super) address: Option<SocketAddr>,
    pub(super) channel: Option<ChannelHandle>,
    /// The connection of the channel, or the first one while it is dialled.
    pub(super) connection: Option<ConnectionId>,
    /// When its peer was heard on a connection that is gone.
    pub(super) heard: Option<Instant>,
    pub(super) silence: Silence,
    /// The link has no connection, or another one that does not carry it yet.
    pub(super) parked: Option<Parked>,
    pub(super) redial: Redial,
    /// Its streams are gone, and its channel is heard to the end before it counts as lost.
    pub(super) last_words: Option<LastWords>,
    pub(super) hash_key: HashKey,
    /// What the HELLOs agreed on.
    pub(super) agreed: Option<dwcp_proto::negotiate::Agreed>,
    pub(super) streams: BTreeMap<StreamId, StreamReaders>,
    /// What each lane has found out about its number of streams.
    pub(super) tuned: BTreeMap<LaneId, Tuned>,
    pub(super) streams_held: StreamsHeld,
    pub(super) waiters: Vec<LinkWaiter>,
    /// Virtual machines whose sessions wait for the link.
    pub(super) vm_waiters: Vec<SessionId>,
    pub(super) next_number: SessionNumber,
    /// When every lane must work.
    pub(super) deadline: Nanos,
    pub(super) since_unix_ms: u64,
}

impl LinkEntry {
    fn new(link: Link, dialled: Option<PeerAddress>, deadline: Nanos) -> Self {
        Self {
            link,
            dialled,
            peer_name: String::new(),
            address: None,
            channel: None,
            connection: None,
            heard: None,
            silence: Silence::default(),
            parked: None,
            redial: Redial::default(),
            last_words: None,
            hash_key: HashKey([0; 32]),
            agreed: None,
            streams: BTreeMap::new(),
            tuned: BTreeMap::new(),
            streams_held: StreamsHeld::default(),
            waiters: Vec::new(),
            vm_waiters: Vec::new(),
            next_number: SessionNumber(1),
            deadline,
            since_unix_ms: unix_ms(),
        }
    }

    /// When the peer was heard last, on this connection or the one before.
    pub(super) fn heard(&self) -> Option<Instant> {
        self.channel.as_ref().map(ChannelHandle::heard).or(self.heard)
    }
}

impl Core {
    /// A peer's news.
    pub(crate) fn on_peer(&mut self, input: PeerInput) {
        match input {
            PeerInput::Accepted(peer) => self.on_accepted(*peer),
            PeerInput::Stream { preface, socket, address } => {
                self.on_stream(preface, socket, address);
            }
            PeerInput::Dialled { connection, outcome } => self.on_dialled(connection, outcome),
            PeerInput::StreamDialled { link, stream, incarnation, outcome } => {
                self.on_stream_dialled(link, stream, incarnation, outcome);
            }
            // What comes from a connection that a link has given up is not heard any more.
            PeerInput::Message { connection, message } => {
                if let Some(link) = self.connections.get(&connection).copied() {
                    self.on_message(link, message);
                }
            }
            PeerInput::Ended { connection, end } => {
                if let Some(link) = self.connections.get(&connection).copied() {
                    self.lose_link(link, &end);
                }
            }
        }
    }

    /// The name of a new connection of a link.
    pub(super) fn new_connection(&mut self, link: LinkId) -> ConnectionId {
        let connection = self.next_connection;
        self.next_connection = connection.next();
        self.connections.insert(connection, link);
        connection
    }

    /// The link that was dialled to `peer`; a new one if there is none that has a connection.
    pub(super) fn link_to(&mut self, peer: &PeerAddress) -> Result<LinkId, PeerError> {
        let serves =
            |entry: &LinkEntry| entry.dialled.as_ref() == Some(peer) && entry.parked.is_none();
        if let Some((link, _)) = self.links.iter().find(|(_, entry)| serves(entry)) {
            return Ok(*link);
        }
        self.check_links()?;
        let epoch = LinkEpoch(unix_ms());
        let streams = self.live.get().streams.min(self.config.streams_per_link_max);
        let machine = Link::dialling(epoch, self.shards.count(), streams);
        let link = self.add_link(machine, Some(peer.clone()));
        let (identity, peers) = (self.identity.clone(), self.peers.clone());
        let connection = self.new_connection(link);
        if let Some(entry) = self.links.get_mut(&link) {
            entry.connection = Some(connection);
        }
        dial_peer(connection, peer.clone(), identity, self.config.timeouts, peers);
        Ok(link)
    }

    fn add_link(&mut self, link: Link, dialled: Option<PeerAddress>) -> LinkId {
        let id = self.number_of_link();
        self.next_link = id.next();
        self.links.insert(id, LinkEntry::new(link, dialled, self.lanes_deadline()));
        id
    }

    /// By when every lane of a link must work that begins to wait for its streams now.
    fn lanes_deadline(&self) -> Nanos {
        let answer = self.config.timeouts.answer.as_nanos();
        self.now() + Nanos(u64::try_from(answer).unwrap_or(u64::MAX))
    }

    /// A lane lost its only stream before its others came.
    fn await_lanes(&mut self, link: LinkId) {
        let deadline = self.lanes_deadline();
        if let Some(entry) = self.links.get_mut(&link) {
            tracing::info!(%link, peer = %entry.peer_name, "link waits for its other streams");
            entry.deadline = deadline;
        }
    }

    fn on_accepted(&mut self, peer: Established) {
        if let Err(error) = self.check_accept(&peer.peer_name) {
            return self.refuse_link(peer, &error);
        }
        let streams_max = self.config.streams_per_link_max;
        let resumes = peer.agreed.features & FEATURE_RESUME != 0;
        let resume = resumes.then(|| ResumeToken(random()));
        let token = LinkToken(random());
        let machine = Link::accepted(token, resume, self.shards.count(), streams_max);
        let link = self.add_link(machine, None);
        let connection = self.new_connection(link);
        self.start_channel(link, connection, peer);
    }

    fn on_dialled(
        &mut self,
        connection: ConnectionId,
        outcome: Result<Box<Established>, PeerError>,
    ) {
        let Some(link) = self.connections.get(&connection).copied() else { return };
        let first = self.links.get(&link).is_some_and(|e| e.connection == Some(connection));
        let peer = match outcome {
            outcome if !first => return self.on_redialled(link, connection, outcome),
            Ok(peer) => *peer,
            Err(error) => return self.drop_link(link, &error),
        };
        if self.start_channel(link, connection, peer) {
            // What is owed first: the peer may have no room for the link.
            self.sessions_link_up(link);
            self.link_step(link, LinkInput::ChannelUp);
        }
    }

    fn start_channel(&mut self, link: LinkId, connection: ConnectionId, peer: Established) -> bool {
        let Some(entry) = self.links.get_mut(&link) else { return false };
        entry.peer_name.clone_from(&peer.peer_name);
        entry.address = Some(peer.address);
        match peer.exporter.page_hash_key() {
            Ok(hash_key) => entry.hash_key = hash_key,
            Err(error) => {
                self.drop_link(link, &error.into());
                return false;
            }
        }
        let version = peer.agreed.version;
        entry.link.set_version(version);
        if entry.link.is_dialled() && self.live.get().spread == Spread::AsNeeded {
            let places = match version {
                // It says less than it means, and takes so many.
                WireVersion::V1 => STREAMS_FIRST_VERSION,
                _ => peer.agreed.streams_max,
            };
            entry.link.reserve_places(places.min(self.config.streams_per_link_max));
        }
        entry.agreed = Some(peer.agreed);
        tracing::info!(%link, peer = %peer.peer_name, address = %peer.address, %version, "peer up");
        let live = self.live.clone();
        entry.connection = Some(connection);
        entry.channel = Some(ChannelHandle::start(connection, peer, self.peers.clone(), live));
        true
    }

    fn on_stream(&mut self, preface: StreamPreface, socket: TcpStream, address: SocketAddr) {
        let found = self.links.iter().find(|(_, entry)| entry.link.expects(preface.token));
        let Some(link) = found.map(|(link, _)| *link) else {
            self.refuse_peer(address, &PeerError::StreamUnknown);
            return;
        };
        let now = self.now();
        let Some(entry) = self.links.get_mut(&link) else { return };
        match entry.link.step(now, LinkInput::Arrived(preface)) {
            Ok(_) => self.join_stream(link, preface.stream, preface.incarnation, socket),
            // The newcomer is refused; the link and its streams are untouched.
            Err(error) => self.refuse_peer(address, &error),
        }
    }

    fn on_stream_dialled(
        &mut self,
        link: LinkId,
        stream: StreamId,
        incarnation: Incarnation,
        outcome: Result<TcpStream, PeerError>,
    ) {
        let joined = outcome.is_ok();
        if let Err(error) = &outcome {
            tracing::debug!(%link, %stream, %error, "a stream was not connected");
        }
        let now = self.now();
        let Some(entry) = self.links.get_mut(&link) else { return };
        let outputs = entry.link.step(now, LinkInput::Dialled { stream, incarnation, joined });
        let join = outputs.is_ok_and(|outputs| outputs.contains(&LinkOutput::Join));
        if let (true, Ok(socket)) = (join, outcome) {
            self.join_stream(link, stream, incarnation, socket);
        }
    }

    /// Hands a connection to the shard that owns its lane.
    fn join_stream(
        &mut self,
        link: LinkId,
        stream: StreamId,
        incarnation: Incarnation,
        socket: TcpStream,
    ) {
        match self.stream_setup(link, stream, incarnation, socket) {
            Ok((lane, command)) => {
                if let Some(entry) = self.links.get_mut(&link) {
                    entry.streams_held.add(lane);
                }
                self.shards.send(link, lane, command);
            }
            Err(error) => self.drop_link(link, &error),
        }
    }

    fn stream_setup(
        &mut self,
        link: LinkId,
        stream: StreamId,
        incarnation: Incarnation,
        socket: TcpStream,
    ) -> Result<(LaneId, Command), PeerError> {
        let window = self.live.get().window_bytes_max;
        let entry = self.links.get_mut(&link).ok_or(PeerError::StreamUnknown)?;
        let channel = entry.channel.as_ref().ok_or(PeerError::StreamUnknown)?;
        let dialled = entry.link.is_dialled();
        let keys =
            channel.exporter.stream_keys(entry.link.epoch(), stream, incarnation, dialled)?;
        let socket = socket.into_std().map_err(PeerError::Io)?;
        // Autotuning stops at about 3 MB in flight; a stream may need its share of the window.
        let streams = match self.live.get().spread {
            Spread::All => u64::try_from(entry.link.streams().count().max(1)).unwrap_or(1),
            Spread::AsNeeded => 1,
        };
        let share = usize::try_from((window / streams).clamp(256 << 10, 64 << 20)).unwrap_or(0);
        let live = self.live.get();
        let faults = set_options(socket.as_fd(), share, live.peer_dead_after, live.congestion);
        let (stats, reader) = counters();
        let (frame_rtt_ns, rtt_reader) = histogram();
        let congestion = tcp_congestion(socket.as_fd()).ok();
        let readers = StreamReaders { stats: reader, congestion, frame_rtt_ns: rtt_reader };
        entry.streams.insert(stream, readers);
        let lane = entry.link.lane_of(stream);
        let place = StreamPlace { version: entry.link.version(), stream, incarnation };
        faults.iter().for_each(|fault| self.note_option(link, stream, fault));
        let socket = OwnedFd::from(socket);
        let setup = Box::new(StreamSetup { link, place, socket, keys, stats });
        Ok((lane, Command::AddStream { setup, frame_rtt_ns }))
    }

    pub(super) fn on_stream_up(&mut self, link: LinkId, stream: StreamId) {
        self.link_step(link, LinkInput::StreamUp(stream));
    }

    pub(super) fn on_stream_down(&mut self, link: LinkId, stream: StreamId, cause: StreamEnd) {
        self.counters.streams_ended.add(cause.code());
        if let Some(entry) = self.links.get_mut(&link) {
            tracing::info!(%link, %stream, %cause, "a stream ended");
            if cause == StreamEnd::Retired {
                // Its counters stand still for good.
                entry.streams.remove(&stream);
            }
        }
        self.link_step(link, LinkInput::StreamDown(stream, cause));
    }

    fn on_message(&mut self, link: LinkId, message: PeerMessage) {
        let asked = self.links.get(&link).is_some_and(|entry| entry.link.may_be_another());
        match message {
            PeerMessage::LinkResume { epoch, token, sessions } if asked => {
                self.on_link_resume(link, (epoch, token), sessions);
            }
            message if message.session().is_some() => self.on_session_message(link, message),
            message => self.link_step(link, LinkInput::Message(message)),
        }
    }

    /// Feeds a link and carries out what it says.
    pub(super) fn link_step(&mut self, link: LinkId, input: LinkInput) {
        let now = self.now();
        let Some(entry) = self.links.get_mut(&link) else { return };
        let outputs = match entry.link.step(now, input) {
            Ok(outputs) => outputs,
            Err(error) => return self.lose_link(link, &error),
        };
        for output in outputs {
            match output {
                LinkOutput::Send(message) => self.send_peer(link, message),
                LinkOutput::AddLanes { lanes } => {
                    if let Err(error) = self.add_lanes(link, lanes) {
                        return self.end_link(link, &error);
                    }
                }
                LinkOutput::CutStreams => self.cut_streams(link),
                LinkOutput::Dial(preface) => {
                    let address = self.links.get(&link).and_then(|entry| entry.address);
                    let Some(address) = address else { continue };
                    let peers = self.peers.clone();
                    dial_stream(link, preface, address, self.config.timeouts, peers);
                }
                LinkOutput::Taken => self.open_waiters(link),
                LinkOutput::Join => {}
                LinkOutput::Ready => self.on_link_ready(link),
                LinkOutput::Unready => self.await_lanes(link),
            }
        }
    }

    fn cut_streams(&mut self, link: LinkId) {
        let Some(entry) = self.links.get(&link) else { return };
        for lane in entry.streams_held.lanes() {
            self.shards.send(link, lane, Command::CutStreams { link });
        }
    }

    fn on_link_ready(&mut self, link: LinkId) {
        let Some(entry) = self.links.get_mut(&link) else { return };
        let (lanes, peer) = (entry.link.lanes(), entry.peer_name.clone());
        tracing::info!(%link, %peer, lanes, "link ready");
        self.open_waiters(link);
        self.on_carry_link(link);
        self.link_resumed(link);
    }

    /// Offers the sessions that wait for the link.
    fn open_waiters(&mut self, link: LinkId) {
        let Some(entry) = self.links.get_mut(&link) else { return };
        let vm_waiters = std::mem::take(&mut entry.vm_waiters);
        for waiter in std::mem::take(&mut entry.waiters) {
            self.open_source(link, waiter);
        }
        vm_waiters.into_iter().for_each(|session| self.open_vm_source(link, session));
    }

    /// Says something on a link's channel. A peer that does not read loses the link.
    pub(super) fn send_peer(&mut self, link: LinkId, message: PeerMessage) {
        let channel = self.links.get(&link).and_then(|entry| entry.channel.as_ref());
        if let Some(Err(error)) = channel.map(|channel| channel.send(message)) {
            self.lose_link(link, &error);
        }
    }

    /// Ends a link: sessions hear of it, then its lanes go, then whoever waited is answered.
    pub(super) fn drop_link(&mut self, link: LinkId, cause: &PeerError) {
        let Some(mut entry) = self.links.remove(&link) else { return };
        self.connections.retain(|_, of| *of != link);
        let code = cause.code();
        self.counters.links_ended.add(code);
        let was_up = entry.channel.is_some();
        if !was_up {
            self.counters.refused.add(code);
        }
        let now = self.now();
        if let Some(suppressed) = self.peer_log.allow(now) {
            let peer = &entry.peer_name;
            tracing::warn!(%link, %peer, code, error = %cause, suppressed, "link ended");
        }
        if let Some(channel) = entry.channel.take() {
            let reason = Message::cut(&cause.to_string());
            // The peer learns of it by the end of the connection as well.
            let _ = channel.send(PeerMessage::Goodbye { reason });
        }
        self.sessions_link_lost(link, cause);
        self.vm_sinks_link_lost(link);
        self.owe_unheard_aborts(&entry.peer_name, entry.since_unix_ms);
        self.carry_link_lost(link, cause);
        for session in entry.vm_waiters {
            self.fail_vm_source(session, cause.to_api());
        }
        for lane in entry.streams_held.lanes() {
            self.shards.send(link, lane, Command::DropLink { link });
        }
        self.close_link(link, entry.streams_held);
        for waiter in entry.waiters {
            self.regions.give_back(&waiter.open.region, waiter.session, false);
            self.answer(waiter.reply, Err(cause.to_api()));
        }
    }

    /// Redials lost streams and gives up links whose lanes were not ready in time.
    pub(super) fn tick_links(&mut self, now: Nanos) {
        let links: Vec<LinkId> = self.links.keys().copied().collect();
        for link in links {
            self.tick_parked(link, now);
            let late = self.links.get(&link).is_some_and(|entry| {
                let waits = entry.link.phase() != LinkPhase::Ready && entry.parked.is_none();
                waits && entry.deadline <= now
            });
            if late {
                self.lose_link(link, &PeerError::Timeout { what: "a stream for every lane" });
            } else {
                self.link_step(link, LinkInput::Tick);
            }
        }
    }

    /// Answers a client and counts an error.
    pub(super) fn answer(&self, reply: Reply, outcome: Result<serde_json::Value, ApiError>) {
        if let Err(error) = &outcome {
            self.counters.api_errors.add(error.code.name());
        }
        reply.send(outcome);
    }
}
