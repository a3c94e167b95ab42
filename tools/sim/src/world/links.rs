//! The links of both hosts: what the real machine says is carried out on the simulated network.
//!
//! In place of the product's driver. The near host dials; a control channel comes first, streams
//! follow when the machine asks for them. A link that can't go on takes its sessions with it.

use super::agenda::{StreamDial, Task};
use super::channel::ChannelId;
use super::{SIDES, World, WorldError};
use crate::fact::Fact;
use dwcp_control::link::{Link, LinkInput, LinkOutput, LinkPhase};
use dwcp_dataplane::link::sim::{Rng, Side};
use dwcp_dataplane::port::{Command, HashKey, LaneSetup, RETIRE_AFTER, StreamEnd, StreamSetup};
use dwcp_dataplane::stats::StreamStatsReader;
use dwcp_ffi::counters::{counters, histogram};
use dwcp_proto::ids::{Incarnation, LaneId, LinkEpoch, LinkId, SessionNumber, StreamId};
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::keys::{Direction, DirectionKey, EXPORTED_BYTES, StreamKeys, key_context};
use dwcp_proto::wire::peer::{Message, PeerCodec, PeerMessage};
use dwcp_proto::wire::preface::StreamPreface;
use dwcp_proto::wire::record::StreamPlace;
use dwcp_proto::wire::token::{LinkToken, ResumeToken};
use dwcp_proto::wire::version::WireVersion;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

/// A channel that is silent for so long is given up.
const SILENCE_MAX: Nanos = Nanos(4_000_000_000);

/// An attempt at a connection that nobody answers.
const DIAL_MAX: Nanos = Nanos(3_000_000_000);

/// By when every lane of a link must work.
const LANES_MAX: Nanos = Nanos(10_000_000_000);

/// The first and the longest wait between two attempts at a control channel.
const REDIAL: (Nanos, Nanos) = (Nanos(250_000_000), Nanos(4_000_000_000));

pub(crate) struct LinkEntry {
    pub(crate) link: Link,
    pub(crate) channel: Option<ChannelId>,
    pub(crate) hash_key: HashKey,
    pub(crate) next_number: SessionNumber,
    /// What each stream's newest opening counts.
    pub(crate) streams: BTreeMap<StreamId, StreamStatsReader>,
    /// When both ways were last known to carry something.
    heard: Nanos,
    deadline: Nanos,
    /// Lanes that the shards have.
    lanes: u16,
}

impl LinkEntry {
    /// Bytes in flight on the streams of a lane.
    pub(crate) fn in_flight_bytes(&self, lane: LaneId) -> u64 {
        use dwcp_dataplane::stats::StreamCounter::InFlightBytes;
        let streams = self.link.streams().filter(|(id, up)| *up && self.link.lane_of(*id) == lane);
        let readers = streams.filter_map(|(id, _)| self.streams.get(&id));
        readers.map(|reader| reader.snapshot()[InFlightBytes.index()]).sum()
    }
}

/// Secret bytes that both ends of a channel derive, as from a TLS exporter.
fn derive<const BYTES: usize>(secret: u64, context: &[u8]) -> [u8; BYTES] {
    let folded = context.iter().fold(secret, |word, byte| Rng::new(word ^ u64::from(*byte)).draw());
    Rng::new(folded).bytes()
}

impl World {
    /// The newest link that the near host dialled.
    pub(super) fn dialled_link(&self) -> Option<LinkId> {
        self.host(Side::Near).links.keys().next_back().copied()
    }

    /// Dials the far host, unless there is a link or an attempt under way.
    pub(super) fn want_link(&mut self) {
        let now = self.now();
        let host = self.host_mut(Side::Near);
        if !host.is_up() || host.is_dialling || !host.links.is_empty() || now < host.dial_at {
            return;
        }
        host.is_dialling = true;
        host.dial_wait = Nanos((host.dial_wait.0 * 2).clamp(REDIAL.0.0, REDIAL.1.0));
        host.dial_at = now + host.dial_wait;
        let life = host.life;
        let due = now + self.fabric.conditions(Side::Near).delay;
        self.agenda.add(due, Task::Knock { life });
    }

    /// The far host is asked for a control channel.
    pub(super) fn knock(&mut self, life: u32) {
        let now = self.now();
        let ways_are_up = SIDES.iter().all(|side| self.fabric.conditions(*side).is_up);
        if !ways_are_up || !self.host(Side::Far).is_up() {
            let due = now + if ways_are_up { Nanos(0) } else { DIAL_MAX };
            return self.agenda.add(due, Task::Dialled { life, channel: None });
        }
        let channel = self.channels.add(self.rng.draw());
        let (token, resume) = (LinkToken(self.rng.bytes()), ResumeToken(self.rng.bytes()));
        let lanes = self.host(Side::Far).shards.len() as u16;
        let link = Link::accepted(token, Some(resume), lanes, 8);
        self.add_link(Side::Far, link, channel);
        let due = now + self.fabric.conditions(Side::Far).delay;
        self.agenda.add(due, Task::Dialled { life, channel: Some(channel) });
    }

    /// The near host learns what came of its attempt.
    pub(super) fn dialled(&mut self, life: u32, channel: Option<ChannelId>) {
        let is_ours = self.host(Side::Near).life == life;
        if is_ours {
            self.host_mut(Side::Near).is_dialling = false;
        }
        let Some(channel) = channel else { return };
        if !is_ours {
            return self.close_channel(Side::Near, channel);
        }
        let epoch = LinkEpoch(self.next_epoch);
        self.next_epoch += 1;
        let lanes = self.host(Side::Near).shards.len() as u16;
        let link = Link::dialling(epoch, lanes, self.plan.streams);
        let id = self.add_link(Side::Near, link, channel);
        self.sources_link_up(id);
        self.link_step(Side::Near, id, LinkInput::ChannelUp);
    }

    fn add_link(&mut self, side: Side, mut link: Link, channel: ChannelId) -> LinkId {
        link.set_version(self.plan.version);
        let now = self.now();
        let secret = self.channels.secret(channel).unwrap_or_default();
        let host = self.host_mut(side);
        let id = host.next_link;
        host.next_link = id.next();
        let entry = LinkEntry {
            link,
            channel: Some(channel),
            hash_key: HashKey(derive(secret, b"page hash")),
            next_number: SessionNumber(1),
            streams: BTreeMap::new(),
            heard: now,
            deadline: now + LANES_MAX,
            lanes: 0,
        };
        host.links.insert(id, entry);
        self.note(Fact::Link { side, state: "new" });
        id
    }

    /// Feeds a link and carries out what it says.
    pub(super) fn link_step(&mut self, side: Side, id: LinkId, input: LinkInput) {
        let now = self.host(side).now();
        let Some(entry) = self.host_mut(side).links.get_mut(&id) else { return };
        let outputs = match entry.link.step(now, input) {
            Ok(outputs) => outputs,
            Err(error) => return self.end_link(side, id, error.code()),
        };
        for output in outputs {
            match output {
                LinkOutput::Send(message) => self.send_on(side, id, &message),
                LinkOutput::AddLanes { lanes } => self.add_lanes(side, id, lanes),
                LinkOutput::Dial(preface) => self.dial_stream(id, preface),
                LinkOutput::CutStreams => {
                    self.order_lanes(side, id, |link| Command::CutStreams { link })
                }
                LinkOutput::Ready => self.note(Fact::Link { side, state: "ready" }),
                LinkOutput::Unready => self.await_lanes(side, id),
                LinkOutput::Taken | LinkOutput::Join => {}
            }
        }
    }

    fn await_lanes(&mut self, side: Side, id: LinkId) {
        let now = self.now();
        if let Some(entry) = self.host_mut(side).links.get_mut(&id) {
            entry.deadline = now + LANES_MAX;
        }
    }

    fn add_lanes(&mut self, side: Side, id: LinkId, lanes: u16) {
        if let Some(entry) = self.host_mut(side).links.get_mut(&id) {
            entry.lanes = lanes;
        }
        let (window, spread) = (self.plan.window_bytes, self.plan.spread);
        let streams_max = self.plan.streams;
        let retire_after = (self.plan.version >= WireVersion::V2).then_some(RETIRE_AFTER);
        for lane in (0..lanes).map(LaneId) {
            let window_bytes_max = window / u64::from(lanes);
            let link = id;
            let setup =
                LaneSetup { link, lane, window_bytes_max, streams_max, spread, retire_after };
            self.send(side, lane, Command::AddLane(Box::new(setup)));
        }
    }

    fn order_lanes(&mut self, side: Side, id: LinkId, order: impl Fn(LinkId) -> Command) {
        let lanes = self.host(side).links.get(&id).map_or(0, |entry| entry.lanes);
        (0..lanes).for_each(|lane| self.send(side, LaneId(lane), order(id)));
    }

    fn dial_stream(&mut self, link: LinkId, preface: StreamPreface) {
        let life = self.host(Side::Near).life;
        let due = self.now() + self.fabric.conditions(Side::Near).delay;
        self.agenda.add(due, Task::StreamArrives(StreamDial { life, link, preface }));
    }

    /// A stream's connection reaches the far host.
    pub(super) fn stream_arrives(&mut self, dial: StreamDial) -> Result<(), WorldError> {
        let now = self.now();
        let ways_are_up = SIDES.iter().all(|side| self.fabric.conditions(*side).is_up);
        if !ways_are_up || !self.host(Side::Far).is_up() {
            let due = now + if ways_are_up { Nanos(0) } else { DIAL_MAX };
            self.agenda.add(due, Task::StreamDialled { dial, near: None });
            return Ok(());
        }
        let (connection, near, far) = self.fabric.connect()?;
        let preface = dial.preface;
        let host_now = self.host(Side::Far).now();
        let links = &mut self.host_mut(Side::Far).links;
        let found = links.iter_mut().find(|(_, entry)| entry.link.expects(preface.token));
        let joins = found.and_then(|(id, entry)| {
            entry.link.step(host_now, LinkInput::Arrived(preface)).ok().map(|_| *id)
        });
        match joins {
            Some(id) => self.join_stream(Side::Far, id, preface, far),
            None => self.fabric.close(connection, Side::Far),
        }
        // The dialler's connection stands, whatever its peer makes of it.
        let due = now + self.fabric.conditions(Side::Far).delay;
        self.agenda.add(due, Task::StreamDialled { dial, near: Some(near) });
        Ok(())
    }

    /// The near host learns what came of its attempt at a stream.
    pub(super) fn stream_dialled(&mut self, dial: StreamDial, near: Option<OwnedFd>) {
        let StreamDial { life, link, preface } = dial;
        let StreamPreface { stream, incarnation, .. } = preface;
        let now = self.host(Side::Near).now();
        let host = self.host_mut(Side::Near);
        let entry = host.links.get_mut(&link).filter(|_| host.life == life);
        let joined = near.is_some();
        let input = LinkInput::Dialled { stream, incarnation, joined };
        let outputs = entry.and_then(|entry| entry.link.step(now, input).ok());
        match (outputs.is_some_and(|it| it.contains(&LinkOutput::Join)), near) {
            (true, Some(token)) => self.join_stream(Side::Near, link, preface, token),
            (_, Some(token)) => self.fabric.abandon(token, Side::Near),
            (_, None) => {}
        }
    }

    /// Hands a connection to the shard that owns its lane.
    fn join_stream(&mut self, side: Side, id: LinkId, preface: StreamPreface, token: OwnedFd) {
        let StreamPreface { stream, incarnation, .. } = preface;
        let keys = self.stream_keys(side, id, stream, incarnation);
        let Some(entry) = self.host_mut(side).links.get_mut(&id) else { return };
        let Some(keys) = keys else {
            self.fabric.abandon(token, side);
            return;
        };
        let (stats, reader) = counters();
        entry.streams.insert(stream, reader);
        let lane = entry.link.lane_of(stream);
        let place = StreamPlace { version: entry.link.version(), stream, incarnation };
        let setup = Box::new(StreamSetup { link: id, place, socket: token, keys, stats });
        self.send(side, lane, Command::AddStream { setup, frame_rtt_ns: histogram().0 });
    }

    fn stream_keys(
        &self,
        side: Side,
        id: LinkId,
        stream: StreamId,
        incarnation: Incarnation,
    ) -> Option<StreamKeys> {
        let entry = self.host(side).links.get(&id)?;
        let secret = self.channels.secret(entry.channel?)?;
        let key = |direction| {
            let context = key_context(entry.link.epoch(), stream, incarnation, direction);
            DirectionKey::from_exported(&derive::<EXPORTED_BYTES>(secret, &context))
        };
        let (outward, inward) = (key(Direction::SourceToSink), key(Direction::SinkToSource));
        Some(match side {
            Side::Near => StreamKeys { send: outward, receive: inward },
            Side::Far => StreamKeys { send: inward, receive: outward },
        })
    }

    pub(super) fn stream_up(&mut self, side: Side, link: LinkId, stream: StreamId) {
        self.link_step(side, link, LinkInput::StreamUp(stream));
    }

    pub(super) fn stream_down(
        &mut self,
        side: Side,
        link: LinkId,
        stream: StreamId,
        cause: StreamEnd,
    ) {
        self.link_step(side, link, LinkInput::StreamDown(stream, cause));
    }

    /// Says something on a link's channel, if it has one.
    pub(super) fn send_on(&mut self, side: Side, id: LinkId, message: &PeerMessage) {
        let channel = self.host(side).links.get(&id).and_then(|entry| entry.channel);
        let Some(channel) = channel else { return };
        let way = self.fabric.conditions(side);
        let jitter = Nanos(self.rng.below(way.jitter.0 + 1));
        let due = self.now() + way.delay + jitter;
        if let Some(due) = self.channels.send(channel, side, due, message) {
            self.agenda.add(due, Task::Channel { side: side.across() });
        }
    }

    pub(super) fn on_message(&mut self, side: Side, channel: ChannelId, bytes: &[u8]) {
        let message = match PeerCodec::decode(bytes) {
            Ok(Some((message, used))) if used == bytes.len() => message,
            other => panic!("a message of ours does not come back from the wire: {other:?}"),
        };
        self.note(Fact::Message { side, name: message.name() });
        let Some(id) = self.link_of(side, channel) else { return };
        if matches!(message, PeerMessage::Goodbye { .. }) {
            return self.end_link(side, id, "peer_goodbye");
        }
        match (message.session(), side) {
            (Some(session), Side::Near) => self.source_message(session, message),
            (Some(session), Side::Far) => self.sink_message(id, session, message),
            (None, _) => self.link_step(side, id, LinkInput::Message(message)),
        }
    }

    fn link_of(&self, side: Side, channel: ChannelId) -> Option<LinkId> {
        let links = &self.host(side).links;
        links.iter().find(|(_, entry)| entry.channel == Some(channel)).map(|(id, _)| *id)
    }

    pub(super) fn channel_ended(&mut self, side: Side, channel: ChannelId) {
        if let Some(id) = self.link_of(side, channel) {
            self.end_link(side, id, "peer_closed");
        }
    }

    pub(super) fn close_channel(&mut self, side: Side, channel: ChannelId) {
        let due = self.now() + self.fabric.conditions(side).delay;
        self.channels.close(channel, side, due);
        self.agenda.add(due, Task::Channel { side: side.across() });
    }

    /// Ends a link: sessions hear of it, then its lanes go.
    pub(super) fn end_link(&mut self, side: Side, id: LinkId, cause: &'static str) {
        if !self.host(side).links.contains_key(&id) {
            return;
        }
        self.note(Fact::Link { side, state: cause });
        let reason = Message::cut(cause);
        self.send_on(side, id, &PeerMessage::Goodbye { reason });
        self.order_lanes(side, id, |link| Command::DropLink { link });
        let entry = self.host_mut(side).links.remove(&id);
        if let Some(channel) = entry.and_then(|entry| entry.channel) {
            self.close_channel(side, channel);
        }
        match side {
            Side::Near => self.sources_link_lost(id),
            Side::Far => self.sinks_link_lost(id),
        }
    }

    /// Gives up what is silent or late, and lets the machines dial again.
    pub(super) fn tick_links(&mut self, side: Side) {
        let now = self.now();
        let ways_are_up = SIDES.iter().all(|side| self.fabric.conditions(*side).is_up);
        let ids: Vec<LinkId> = self.host(side).links.keys().copied().collect();
        for id in ids {
            let Some(entry) = self.host_mut(side).links.get_mut(&id) else { continue };
            if ways_are_up {
                entry.heard = now;
            }
            let silent = now.since(entry.heard) >= SILENCE_MAX;
            let late = entry.link.phase() != LinkPhase::Ready && now >= entry.deadline;
            match (silent, late) {
                (true, _) => self.end_link(side, id, "peer_silent"),
                (_, true) => self.end_link(side, id, "peer_timeout"),
                _ => self.link_step(side, id, LinkInput::Tick),
            }
        }
    }
}
