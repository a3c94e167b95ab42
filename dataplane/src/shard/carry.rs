//! Stream sessions in the shard's loop: parts to send, parts that arrive, replies, channels.
//!
//! Part of the shard, on its thread. Stream sessions share with region sessions the lanes, the
//! leases, the flow and the answers; what is theirs alone is here.

use super::inbox::Origin;
use super::{Desk, Shard};
use crate::attach::stream::{Produced, Step, StreamSink, StreamSource};
use crate::link::{Clock, Link};
use crate::port::{ChannelId, ChannelSetup, SessionEnd};
use crate::stats::ShardCounter;
use dwcp_proto::ids::{LinkId, Position, Sequence, SessionKey, SessionNumber};
use dwcp_proto::source::{Cargo, InFlight};
use dwcp_proto::wire::frame::{Frame, StreamKind, StreamPart, write_stream_header};
use dwcp_proto::wire::limits::{
    RECORD_HEADER_BYTES, STREAM_FRAME_HEADER_BYTES, STREAM_PAYLOAD_BYTES_MAX,
};

/// Where a part's payload starts in a lease.
const PAYLOAD_AT: usize = RECORD_HEADER_BYTES + STREAM_FRAME_HEADER_BYTES;

/// Frames and bytes of one session in one turn: a full frame, or some short ones.
const FRAMES_PER_TURN: usize = 8;
const BYTES_PER_TURN: usize = 256 << 10;

impl<L: Link> Shard<L> {
    /// Gives each stream source its turn.
    pub(super) fn feed_streams(&mut self) -> bool {
        let count = self.desk.stream_sources.len();
        let mut worked = false;
        for turn in 0..count {
            let index = (self.next_source + turn) % count;
            let (mut frames, mut bytes, mut held) = (0, 0, false);
            while frames < FRAMES_PER_TURN && bytes < BYTES_PER_TURN && !held {
                if let Some(sent) = self.feed_stream(index) {
                    worked = true;
                    frames += 1;
                    bytes += sent;
                } else {
                    held = true;
                }
            }
            let Desk { stream_sources, pipes, now, .. } = &mut self.desk;
            if stream_sources[index].note_turn(pipes, held, *now) {
                self.desk.hold_back(index);
            }
        }
        if count > 0 {
            self.next_source = self.next_source.wrapping_add(1);
        }
        worked
    }

    /// Sends one frame of a stream source, if there is one and room for it. Returns the bytes of
    /// its payload, 0 when only something else was done.
    fn feed_stream(&mut self, index: usize) -> Option<usize> {
        let source = &self.desk.stream_sources[index];
        if !source.wants_frame(&self.desk.pipes) {
            return None;
        }
        let number = source.session.number;
        let lane = self.desk.lane_of(source.session)?;
        let (stream, mut lease, sequence) = self.room(lane, number)?;
        let Desk { stream_sources, pipes, now, stats, clock, .. } = &mut self.desk;
        let source = &mut stream_sources[index];
        let out = &mut lease[PAYLOAD_AT..PAYLOAD_AT + STREAM_PAYLOAD_BYTES_MAX];
        let started = clock.now();
        let produced = match source.fill(pipes, &mut self.scratch, out, *now) {
            Step::Frame(produced) => produced,
            Step::Worked => return Some(0),
            Step::Idle => return None,
        };
        let Produced { name, part, payload_bytes } = produced;
        if part.kind == StreamKind::Pages {
            let nanos = clock.now().since(started);
            self.encode_ns.record(nanos.0);
            source.note_coding(nanos);
            stats.add(ShardCounter::EncodeNanos.index(), nanos.0);
        }
        let head = StreamPart {
            session: number,
            channel: part.channel,
            kind: part.kind,
            sequence,
            position: part.position,
        };
        write_stream_header(&mut lease[RECORD_HEADER_BYTES..], head, payload_bytes);
        match self.link.post(stream, lease, STREAM_FRAME_HEADER_BYTES + payload_bytes) {
            Ok(wire_bytes) => {
                source.posted(wire_bytes);
                let (cargo, bytes, sent_at) = (Cargo::Kept(name), wire_bytes as u64, *now);
                let frame = InFlight { session: number, sequence, cargo, bytes, sent_at };
                self.desk.lanes[lane].sent(stream, frame);
            }
            // The stream's key is used up or it failed a moment ago: it goes out elsewhere.
            Err(_) => source.lost(name),
        }
        Some(payload_bytes)
    }

    /// Sends the replies of VMMs that wait, a record each.
    pub(super) fn send_replies(&mut self) -> bool {
        let mut worked = false;
        for index in 0..self.desk.stream_sinks.len() {
            let sink = &self.desk.stream_sinks[index];
            let Some(frame @ Frame::Reply { channel, .. }) = sink.reply_due() else { continue };
            let Some(lane) = self.desk.lane_of(sink.session) else { continue };
            let mut slots = self.desk.lanes[lane].slots();
            let Some(slot) = slots.find(|&slot| self.link.can_post(slot)) else { continue };
            let Some(mut lease) = self.link.lease() else { break };
            let bytes = frame.encode_into(&mut lease[RECORD_HEADER_BYTES..]);
            // On a stream that fails here it is lost, and goes out again when that is known.
            worked |= self.link.post(slot, lease, bytes).is_ok();
            self.desk.stream_sinks[index].reply_sent(channel);
        }
        worked
    }
}

/// The next small frame that a stream session of the link has to say.
pub(super) fn next_due(
    sources: &mut [StreamSource],
    sinks: &mut [StreamSink],
    link: LinkId,
) -> Option<Frame<'static>> {
    let mut sources = sources.iter_mut().filter(|source| source.session.link == link);
    let mut sinks = sinks.iter_mut().filter(|sink| sink.session.link == link);
    let delivered = sinks.find_map(StreamSink::next_due);
    delivered.or_else(|| sources.find_map(StreamSource::next_due))
}

impl<C: Clock> Desk<C> {
    /// Marks the streams on which stream sessions have something to say: the first that can takes
    /// it.
    pub(super) fn mark_due(&mut self) {
        let Self { stream_sources, stream_sinks, streams, .. } = self;
        let sinks = stream_sinks.iter().filter(|sink| sink.is_due()).map(|sink| sink.session);
        let sources =
            stream_sources.iter().filter(|source| source.is_due()).map(|source| source.session);
        for session in sinks.chain(sources) {
            for stream in streams.iter_mut().flatten() {
                stream.due |= stream.link == session.link;
            }
        }
    }

    /// A VMM has more than the window before it, or the lane, takes now.
    fn hold_back(&mut self, source: usize) {
        if let Some(lane) = self.lane_of(self.stream_sources[source].session) {
            self.lanes[lane].hold_back();
        }
    }

    /// One bounded piece of work at each stream session beside sending.
    pub(super) fn work_streams(&mut self) -> bool {
        let mut worked = false;
        for index in 0..self.stream_sources.len() {
            let source = &mut self.stream_sources[index];
            worked |= source.work(&mut self.pipes);
            while self.has_room_for_news()
                && let Some(event) = self.stream_sources[index].news()
            {
                self.report(event);
            }
        }
        for index in 0..self.stream_sinks.len() {
            let sink = &mut self.stream_sinks[index];
            let session = sink.session;
            match sink.work(&mut self.pipes, &mut self.decoder) {
                Ok(did) => worked |= did,
                Err(error) => self.give_up(session, error.code()),
            }
            while self.has_room_for_news()
                && let Some(event) = self.stream_sinks[index].news()
            {
                self.report(event);
            }
        }
        worked
    }

    /// True when an event may be pushed that no command has reserved room for.
    pub(super) fn has_room_for_news(&mut self) -> bool {
        self.events.room() > self.events_reserved
    }

    /// A part that was held turned out to be wrong.
    fn give_up(&mut self, session: SessionKey, code: &'static str) {
        let cause = SessionEnd::Protocol { code, sequence: Sequence(0) };
        if self.fail(session, cause)
            && let Some(lane) = self.lane_of(session)
        {
            self.send_on_lane(lane, super::inbox::abort(session.number));
        }
    }

    pub(super) fn part(&mut self, at: Origin, part: &StreamPart, payload: &[u8]) {
        let StreamPart { session, sequence, .. } = *part;
        if !self.admit(at, session, sequence) {
            return;
        }
        let key = at.session(session);
        let Some(sink) = self.stream_sinks.iter_mut().find(|sink| sink.session == key) else {
            return self.refuse_peer(at, session, sequence, "stream_for_a_region");
        };
        let started = self.clock.now();
        let accepted = sink.accept(&mut self.pipes, &mut self.decoder, part, payload);
        if part.kind == StreamKind::Pages {
            let nanos = self.clock.now().since(started).0;
            self.stats.add(ShardCounter::DecodeNanos.index(), nanos);
        }
        if let Err(error) = accepted {
            return self.refuse_peer(at, session, sequence, error.code());
        }
        let settled = self.lanes[at.lane].sink.applied(at.id, session, sequence);
        self.settled(at, settled);
    }

    pub(super) fn delivered(
        &mut self,
        at: Origin,
        session: SessionNumber,
        channel: ChannelId,
        position: Position,
    ) {
        let (key, now) = (at.session(session), self.now);
        let Some(source) = self.stream_source(key) else { return self.dropped() };
        if source.delivered(channel, position, now).is_err() {
            self.refuse_peer(at, session, Sequence(0), "stream_delivered_unsent");
        }
    }

    pub(super) fn reply(
        &mut self,
        at: Origin,
        session: SessionNumber,
        (channel, offset): (ChannelId, u64),
        payload: &[u8],
    ) {
        let key = at.session(session);
        let Self { stream_sources, pipes, .. } = self;
        let Some(source) = stream_sources.iter_mut().find(|source| source.session == key) else {
            return self.dropped();
        };
        if source.reply(pipes, channel, offset, payload).is_err() {
            self.refuse_peer(at, session, Sequence(0), "stream_reply_out_of_place");
        }
    }

    pub(super) fn reply_ack(
        &mut self,
        at: Origin,
        session: SessionNumber,
        channel: ChannelId,
        offset: u64,
    ) {
        let key = at.session(session);
        let Some(sink) = self.stream_sinks.iter_mut().find(|sink| sink.session == key) else {
            return self.dropped();
        };
        if let Err(error) = sink.reply_acked(channel, offset) {
            self.refuse_peer(at, session, Sequence(0), error.code());
        }
    }

    /// A frame of a session that is not open here, or no longer.
    pub(super) fn dropped(&mut self) {
        self.stats.add(ShardCounter::FramesDropped.index(), 1);
    }

    /// Takes over a channel's socket. False when the session, or room for it, is not there.
    pub(super) fn add_channel(&mut self, setup: ChannelSetup) -> bool {
        let ChannelSetup { session, channel, socket } = setup;
        let Self { stream_sources, stream_sinks, pipes, .. } = self;
        let source = stream_sources.iter_mut().find(|source| source.session == session);
        let sink = stream_sinks.iter_mut().find(|sink| sink.session == session);
        if source.is_none() && sink.is_none() {
            return false;
        }
        let Some(pipe) = pipes.add(socket) else {
            self.fail(session, SessionEnd::TableFull);
            return false;
        };
        let taken = match (source, sink) {
            (Some(source), _) => source.add_channel(channel, pipe),
            (None, Some(sink)) => sink.add_channel(channel, pipe),
            (None, None) => false,
        };
        if !taken {
            self.pipes.close(pipe);
        }
        taken
    }

    /// Has a stream session report its digest. False when there is none of that name.
    pub(super) fn verify_stream(&mut self, session: SessionKey) -> bool {
        if let Some(source) = self.stream_source(session) {
            source.start_verify();
            return true;
        }
        let sink = self.stream_sinks.iter_mut().find(|sink| sink.session == session);
        sink.is_some_and(|sink| {
            sink.start_verify();
            true
        })
    }

    /// Fails a stream session. False when there is none, or it had failed before.
    pub(super) fn fail_stream(&mut self, session: SessionKey) -> bool {
        let Self { stream_sources, stream_sinks, pipes, .. } = self;
        let source = stream_sources.iter_mut().find(|source| source.session == session);
        let sink = stream_sinks.iter_mut().find(|sink| sink.session == session);
        source.is_some_and(|source| source.fail(pipes)) || sink.is_some_and(|sink| sink.fail(pipes))
    }

    /// Closes the sockets of a stream session and forgets it.
    pub(super) fn close_stream_session(&mut self, session: SessionKey) {
        self.fail_stream(session);
        let source = self.stream_sources.iter().position(|it| it.session == session);
        if let Some(at) = source {
            self.stream_sources.remove(at).leave();
        }
        let sink = self.stream_sinks.iter().position(|it| it.session == session);
        if let Some(at) = sink {
            self.stream_sinks.remove(at).leave();
        }
    }

    /// A stream of the link died: what the sinks said last may have died with it.
    pub(super) fn say_again(&mut self, link: LinkId) {
        let sinks = self.stream_sinks.iter_mut().filter(|sink| sink.session.link == link);
        sinks.for_each(StreamSink::say_again);
    }

    fn stream_source(&mut self, session: SessionKey) -> Option<&mut StreamSource> {
        self.stream_sources.iter_mut().find(|source| source.session == session)
    }
}
