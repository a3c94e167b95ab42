//! The shard: one pinned thread, its transport, its sessions, its loop.
//!
//! One turn of the loop is [`Shard::poll`]: commands, pages and parts of migration streams to send,
//! frames to answer with, the link both ways, VMMs' sockets, checking at the sink. Each part is
//! bounded, none allocates, locks or logs. The clock is read once a turn and around each extent.
//! The shard shares nothing but rings and counters; the control thread is the only one that it
//! talks to.

mod carry;
mod config;
mod held;
mod inbox;
mod lane;
mod orders;
mod outbox;

pub use config::{PollMode, ShardConfig, ShardEnds, ShardError, spawn};

use crate::attach::region::{CodedExtent, ReadBack, RegionSink, RegionSource, Scratch, Step};
use crate::attach::stream::{Pipes, StreamSink, StreamSource};
use crate::link::{Clock, Link, LinkEvent, StreamSlot};
use crate::port::{Command, Event, SessionEnd, StreamEnd};
use crate::stats::{ShardCounter, ShardStats};
use dwcp_codec::{Decoder, ENCODED_BYTES_MAX};
use dwcp_ffi::arena::Lease;
use dwcp_ffi::counters::HistogramWriter;
use dwcp_ffi::poll::Waker;
use dwcp_ffi::spsc::{Consumer, Producer};
use dwcp_ffi::uring::Wait;
use dwcp_proto::ids::{Sequence, SessionKey, SessionNumber};
use dwcp_proto::source::{Cargo, InFlight};
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::frame::{Frame, write_pages_header};
use dwcp_proto::wire::limits::{
    PAGES_FRAME_HEADER_BYTES, RECORD_HEADER_BYTES, RECORD_PLAIN_BYTES_MAX, SMALL_FRAME_BYTES_MAX,
};
use lane::{Lane, Stream};
use std::time::Duration;

/// Where a frame's payload starts in a lease.
const PAYLOAD_AT: usize = RECORD_HEADER_BYTES + PAGES_FRAME_HEADER_BYTES;

/// The longest sleep in the kernel: an upper bound on how late a lost wake-up could be noticed.
const PARK_MAX: Duration = Duration::from_millis(200);

/// How often the kernel is asked how the streams fare while there is work.
const SAMPLE_EVERY: Nanos = Nanos(250_000_000);

/// How often a stream that looks for the path's rate is kept from overrunning it.
const CURB_EVERY: Nanos = Nanos(20_000_000);

/// Leases that pages may not take, so that acknowledgements always find one.
const LEASES_FOR_ANSWERS: usize = 2;

/// Everything but the transport, so that the transport can call into it.
#[derive(Debug)]
pub(crate) struct Desk<C> {
    clock: C,
    events: Producer<Event>,
    /// Room that is kept for what commands may bring.
    events_reserved: usize,
    lanes: Vec<Lane>,
    /// By stream slot.
    streams: Vec<Option<Stream>>,
    sources: Vec<RegionSource>,
    sinks: Vec<RegionSink>,
    stream_sources: Vec<StreamSource>,
    stream_sinks: Vec<StreamSink>,
    /// The local sockets of the stream sessions.
    pipes: Pipes,
    decoder: Decoder,
    read_back: ReadBack,
    stats: ShardStats,
    /// Events were pushed since the control thread was last woken.
    reported: bool,
    now: Nanos,
}

/// One data-plane thread.
#[derive(Debug)]
pub struct Shard<L: Link> {
    config: ShardConfig,
    commands: Consumer<Command>,
    control: Waker,
    link: L,
    desk: Desk<L::Clock>,
    scratch: Scratch,
    encode_ns: HistogramWriter,
    /// Which source gets the next turn.
    next_source: usize,
    /// When the streams were measured last, and whether there was work since.
    sampled: Nanos,
    unsampled: bool,
    /// Whether a stream looks for the path's rate, and when it was kept from overrunning it last.
    in_startup: bool,
    curbed: Nanos,
    stopping: bool,
}

impl<L: Link> Shard<L> {
    /// A shard without work, for the thread that calls. [`spawn`] makes a real one; a simulated
    /// world polls its shards itself.
    ///
    /// # Errors
    /// The memory to code in can't be had.
    pub fn new(config: ShardConfig, link: L, ends: ShardEnds) -> Result<Self, ShardError> {
        let desk = Desk {
            clock: link.clock(),
            events: ends.events,
            events_reserved: config.events_reserved(),
            lanes: Vec::with_capacity(config.links_max),
            streams: (0..config.streams_max).map(|_| None).collect(),
            sources: Vec::with_capacity(config.sessions_max),
            sinks: Vec::with_capacity(config.sessions_max),
            stream_sources: Vec::with_capacity(config.sessions_max),
            stream_sinks: Vec::with_capacity(config.sessions_max),
            pipes: Pipes::new(config.pipes_max()),
            decoder: Decoder::new(),
            read_back: ReadBack::new(),
            stats: ends.stats,
            reported: false,
            now: Nanos(0),
        };
        Ok(Self {
            config,
            commands: ends.commands,
            control: ends.control,
            link,
            desk,
            scratch: Scratch::new()?,
            encode_ns: ends.encode_ns,
            next_source: 0,
            sampled: Nanos(0),
            unsampled: false,
            in_startup: false,
            curbed: Nanos(0),
            stopping: false,
        })
    }

    /// The loop. Ends after [`Command::Stop`].
    pub(crate) fn run(&mut self) {
        let mut idle_since = None;
        while !self.stopping {
            let wait = self.wait(&mut idle_since);
            let worked = self.poll(wait);
            if worked {
                idle_since = None;
            }
        }
        self.desk.report(Event::Stopped);
        self.control.wake();
    }

    /// How long this turn may sleep in the kernel, given since when there was nothing to do.
    fn wait(&mut self, idle_since: &mut Option<Nanos>) -> Wait {
        let Some(since) = *idle_since else {
            *idle_since = Some(self.desk.clock.now());
            return Wait::No;
        };
        let park = match self.config.poll {
            PollMode::Busy => false,
            PollMode::Park => true,
            PollMode::Adaptive { spin } => {
                u128::from(self.desk.clock.now().since(since).0) >= spin.as_nanos()
            }
        };
        if !park {
            return Wait::No;
        }
        self.desk.stats.add(ShardCounter::Parks.index(), 1);
        Wait::Until(PARK_MAX)
    }

    /// One turn. Returns true when it found work.
    pub fn poll(&mut self, wait: Wait) -> bool {
        self.desk.now = self.desk.clock.now();
        let mut worked = self.take_commands();
        worked |= self.feed_sources();
        worked |= self.feed_streams();
        worked |= self.answer();
        self.desk.pipes.watch(&mut self.link);
        let wait = if worked { Wait::No } else { wait };
        let desk = &mut self.desk;
        // What comes came after a sleep, or after the coding of this turn: an ack with the time of
        // before makes the way too short.
        let mut first = true;
        let moved = self.link.poll(wait, |event| {
            if std::mem::take(&mut first) {
                desk.now = desk.clock.now();
            }
            match event {
                LinkEvent::Record { stream, plain } => desk.record(stream, plain),
                LinkEvent::Down { stream, cause } => desk.stream_down(stream, cause),
                LinkEvent::Ready { name } => desk.pipes.ready(name),
            }
        });
        self.close_broken();
        worked |= moved;
        worked |= self.desk.work_streams() | self.send_held();
        worked |= self.answer();
        worked |= self.desk.check_sinks(!worked);
        self.count(worked);
        if std::mem::take(&mut self.desk.reported) {
            self.control.wake();
        }
        worked
    }

    fn count(&mut self, worked: bool) {
        let stats = &mut self.desk.stats;
        stats.add(ShardCounter::Polls.index(), 1);
        if worked {
            stats.add(ShardCounter::BusyPolls.index(), 1);
        }
        stats.set(ShardCounter::LeasesFree.index(), self.link.free_leases() as u64);
        self.unsampled |= worked;
        let now = self.desk.now;
        let samples = self.unsampled && now.since(self.sampled).0 >= SAMPLE_EVERY.0;
        if samples {
            self.sampled = now;
            self.unsampled = false;
            self.link.sample();
            self.adapt_lanes();
        }
        if samples || self.in_startup && now.since(self.curbed).0 >= CURB_EVERY.0 {
            self.curbed = now;
            self.link.curb(now);
        }
        if !worked {
            return;
        }
        for (index, stream) in self.desk.streams.iter().enumerate() {
            let Some(stream) = stream else { continue };
            let lane = self.desk.lanes.iter().find(|lane| lane.link == stream.link);
            let in_flight = lane.map_or(0, |lane| lane.flow.stream_in_flight_bytes(stream.id));
            self.link.note(StreamSlot(index as u16), stream.rtt, in_flight);
        }
    }

    /// Tells each lane how its streams fare, and the windows before guests whether the path's rate
    /// is known.
    fn adapt_lanes(&mut self) {
        let Desk { lanes, stream_sources, now, .. } = &mut self.desk;
        self.in_startup = false;
        for lane in lanes {
            let path = lane.adapt(*now, |slot| self.link.path_state(slot));
            self.in_startup |= path.in_startup;
            for source in stream_sources.iter_mut().filter(|it| it.session.link == lane.link) {
                source.set_path(path);
            }
        }
        self.desk.tell_decisions();
        self.desk.retire_streams();
    }

    /// Gives each source one step: at most one coded extent each, so that answers never wait long.
    fn feed_sources(&mut self) -> bool {
        let count = self.desk.sources.len();
        let mut worked = false;
        for turn in 0..count {
            let index = (self.next_source + turn) % count;
            worked |= self.feed_source(index);
        }
        if count > 0 {
            self.next_source = (self.next_source + 1) % count;
        }
        worked
    }

    fn feed_source(&mut self, index: usize) -> bool {
        let session = self.desk.sources[index].session;
        let Some(lane) = self.desk.lane_of(session) else { return false };
        let mut room = None;
        if self.desk.sources[index].wants_lease() {
            room = self.room(lane, session.number);
        }
        let (now, settled) = (self.desk.now, self.desk.lanes[lane].flow.is_idle(session.number));
        let out = room.as_mut().map(|(_, lease, sequence)| {
            (&mut lease[PAYLOAD_AT..PAYLOAD_AT + ENCODED_BYTES_MAX], *sequence)
        });
        let started = self.desk.clock.now();
        match self.desk.sources[index].step(&mut self.scratch, out, settled, now) {
            Step::Idle => return false,
            Step::Worked => {}
            Step::Coded(coded) => {
                self.note_encoding(index, started, &coded);
                let Some((stream, lease, _)) = room else {
                    unreachable!("a source codes only into a lease")
                };
                self.send_pages(index, lane, stream, lease, &coded);
            }
            Step::RoundDone(round, stats) => {
                self.desk.report(Event::RoundDone { session, round, stats });
            }
            Step::Digest(digest, pages) => {
                let frame = Frame::Verify { session: session.number, digest: digest.0, pages };
                self.desk.send_on_lane(lane, frame);
            }
        }
        true
    }

    /// A stream with an open window, a lease to fill for it, and the frame's sequence.
    fn room(
        &mut self,
        lane: usize,
        session: SessionNumber,
    ) -> Option<(StreamSlot, Lease, Sequence)> {
        if self.link.free_leases() <= LEASES_FOR_ANSWERS {
            return None;
        }
        let link = &self.link;
        let lane = &mut self.desk.lanes[lane];
        let Some(stream) = lane.pick_stream(|slot| link.can_post(slot)) else {
            lane.hold_back();
            return None;
        };
        let sequence = lane.flow.next_sequence(session).ok()?;
        Some((stream, self.link.lease()?, sequence))
    }

    fn note_encoding(&mut self, source: usize, started: Nanos, coded: &CodedExtent) {
        let done = self.desk.clock.now();
        let nanos = done.since(started).0;
        self.encode_ns.record(nanos);
        self.desk.stats.add(ShardCounter::EncodeNanos.index(), nanos);
        if self.desk.sources[source].measure_baseline(&self.scratch, coded) {
            let nanos = self.desk.clock.now().since(done).0;
            self.desk.stats.add(ShardCounter::BaselineNanos.index(), nanos);
        }
    }

    fn send_pages(
        &mut self,
        source: usize,
        lane: usize,
        stream: StreamSlot,
        mut lease: Lease,
        coded: &CodedExtent,
    ) {
        let source = &mut self.desk.sources[source];
        let head = &mut lease[RECORD_HEADER_BYTES..PAYLOAD_AT];
        let number = source.session.number;
        write_pages_header(head, number, coded.sequence, source.round(), coded.payload_bytes);
        let plain_bytes = PAGES_FRAME_HEADER_BYTES + coded.payload_bytes;
        match self.link.post(stream, lease, plain_bytes) {
            Ok(wire_bytes) => {
                source.posted(wire_bytes);
                let CodedExtent { sequence, first_page, mask, .. } = *coded;
                let (cargo, sent_at) = (Cargo::Extent { first_page, mask }, self.desk.now);
                let (session, bytes) = (number, wire_bytes as u64);
                let frame = InFlight { session, sequence, cargo, bytes, sent_at };
                self.desk.lanes[lane].sent(stream, frame);
            }
            // The stream's key is used up or it failed a moment ago: the pages go out elsewhere.
            Err(_) => source.lost(coded.sequence, coded.first_page, coded.mask),
        }
    }

    /// Sends the acknowledgements and other small frames that wait, a record per stream.
    fn answer(&mut self) -> bool {
        let mut worked = self.send_replies();
        self.desk.mark_due();
        for index in 0..self.desk.streams.len() {
            let slot = StreamSlot(index as u16);
            let due = self.desk.streams[index].as_ref().is_some_and(|stream| stream.due);
            if !due || !self.link.can_post(slot) {
                continue;
            }
            let Some(mut lease) = self.link.lease() else { break };
            let bytes = self.desk.write_answers(slot, &mut lease[RECORD_HEADER_BYTES..]);
            if bytes == 0 {
                continue;
            }
            // A stream that fails here reports its end by itself; its answers die with it.
            worked |= self.link.post(slot, lease, bytes).is_ok();
        }
        worked
    }

    /// Closes streams whose peer broke the protocol or has said its last word.
    fn close_broken(&mut self) {
        for index in 0..self.desk.streams.len() {
            let over = self.desk.streams[index].as_ref().and_then(|stream| stream.over);
            if let Some(cause) = over {
                self.link.close_stream(StreamSlot(index as u16), cause);
            }
        }
    }
}

impl<C: Clock> Desk<C> {
    /// Reports to the control thread. The ring has room by [`ShardConfig::events_reserved`].
    fn report(&mut self, event: Event) {
        assert!(self.events.push(event).is_ok(), "every event has room that its command reserved");
        self.reported = true;
    }

    /// Says the last word on streams that are not needed any more; the sink then closes them.
    fn retire_streams(&mut self) {
        for lane in 0..self.lanes.len() {
            let Some(slot) = self.lanes[lane].too_many(self.now) else { continue };
            let stream = self.streams[slot.index()].as_mut();
            if let Some(stream) = stream.filter(|it| it.outbox.is_empty() && !it.retired) {
                stream.retired = stream.up && stream.outbox.push(Frame::Retire);
                stream.due |= stream.retired;
            }
        }
    }

    /// Reports how many streams lanes shall have, as far as there is room that no command has
    /// reserved; the others are told the next time.
    fn tell_decisions(&mut self) {
        for lane in 0..self.lanes.len() {
            if self.has_room_for_news()
                && let Some((decision, open)) = self.lanes[lane].news()
            {
                let link = self.lanes[lane].link;
                self.report(Event::Streams { link, decision, open });
            }
        }
    }

    fn lane_of(&self, session: SessionKey) -> Option<usize> {
        self.lanes.iter().position(|lane| lane.link == session.link)
    }

    /// Writes what waits for the stream, refusals and acknowledgements first, and as much as a
    /// record holds. Returns its bytes.
    fn write_answers(&mut self, slot: StreamSlot, out: &mut [u8]) -> usize {
        let Self { stream_sources, stream_sinks, streams, .. } = self;
        let Some(stream) = &mut streams[slot.index()] else { return 0 };
        let mut lane = self.lanes.iter_mut().find(|lane| lane.link == stream.link);
        let mut bytes = 0;
        while bytes + SMALL_FRAME_BYTES_MAX <= RECORD_PLAIN_BYTES_MAX {
            if stream.retired {
                // What else there is to say is said on others.
                stream.due = false;
                return stream.outbox.pop().map_or(0, |last| last.encode_into(out));
            }
            let due = lane.as_mut().and_then(|lane| lane.sink.next_due(stream.id));
            let carried = || carry::next_due(stream_sources, stream_sinks, stream.link);
            let Some(frame) = due.or_else(|| stream.outbox.pop()).or_else(carried) else {
                stream.due = false;
                break;
            };
            bytes += frame.encode_into(&mut out[bytes..]);
        }
        bytes
    }

    /// Queues a small frame on any live stream of the lane.
    fn send_on_lane(&mut self, lane: usize, frame: Frame<'static>) {
        let Some(slot) = self.lanes[lane].any_stream() else { return };
        self.queue(slot, frame);
    }

    fn queue(&mut self, slot: StreamSlot, frame: Frame<'static>) {
        if let Some(stream) = &mut self.streams[slot.index()] {
            stream.due = true;
            if !stream.outbox.push(frame) {
                stream.over = Some(StreamEnd::Protocol { code: "too_many_answers_owed" });
            }
        }
    }

    /// The session can't go on here: says so once, and keeps its memory until `CloseSession`. False
    /// when it had failed before or is not here.
    fn fail(&mut self, session: SessionKey, cause: SessionEnd) -> bool {
        let failed_now = if let Some(source) = self.source(session) {
            source.fail()
        } else if let Some(sink) = self.sink(session) {
            sink.fail()
        } else {
            self.fail_stream(session)
        };
        if failed_now {
            self.report(Event::Failed { session, cause });
        }
        failed_now
    }

    fn source(&mut self, session: SessionKey) -> Option<&mut RegionSource> {
        self.sources.iter_mut().find(|source| source.session == session)
    }

    fn sink(&mut self, session: SessionKey) -> Option<&mut RegionSink> {
        self.sinks.iter_mut().find(|sink| sink.session == session)
    }

    /// One bounded piece of checking at each sink; reading back ahead of time only when `idle`.
    fn check_sinks(&mut self, idle: bool) -> bool {
        let mut worked = false;
        for index in 0..self.sinks.len() {
            worked |= self.check_sink(index, idle);
        }
        worked
    }
}
