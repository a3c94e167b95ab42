//! A source shard and a sink shard with real TCP streams between them.

use dwcp_dataplane::port::{
    Coding, Command, DirtyPages, Event, HashKey, LaneSetup, RoundStats, ShardPort, SinkSetup,
    SourceSetup, Spread, StreamEnd, StreamSetup,
};
use dwcp_dataplane::shard::{PollMode, ShardConfig, spawn};
use dwcp_dataplane::stats::{SESSION_COUNTER_COUNT, SessionStatsReader};
use dwcp_ffi::counters::{counters, histogram};
use dwcp_ffi::memory::PagePool;
use dwcp_ffi::poll::{WakeReceiver, waker};
use dwcp_ffi::region::{HugePages, Region};
use dwcp_proto::ids::{Incarnation, LaneId, LinkId, Round, SessionKey, SessionNumber, StreamId};
use dwcp_proto::time::Nanos;
use dwcp_proto::tuner::STREAMS_START;
use dwcp_proto::wire::record::{DirectionKey, StreamKeys, StreamPlace};
use dwcp_proto::wire::version::WireVersion;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Pages of the test regions: some extents and a partial one.
pub(crate) const PAGES: u64 = 64 * 40 + 17;

/// How long a test waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How long a stream too many stays without use: short, so that tests need not wait.
const RETIRE_AFTER: Nanos = Nanos::from_millis(100);

pub(crate) struct Side {
    port: Option<ShardPort>,
    thread: Option<JoinHandle<()>>,
    woken: WakeReceiver,
    waiting: Vec<Event>,
}

impl Side {
    fn new(index: usize) -> Self {
        let (wake, woken) = waker().unwrap();
        let config = ShardConfig {
            index,
            core: None,
            poll: PollMode::Park,
            send_slots: 8,
            lock_memory: false,
            zero_copy: true,
            sessions_max: 4,
            streams_max: 8,
            links_max: 2,
            pages: PagePool::new(256 << 20).unwrap(),
        };
        let (port, thread) = spawn(config, wake).unwrap();
        Self { port: Some(port), thread: Some(thread), woken, waiting: Vec::new() }
    }

    pub(crate) fn command(&mut self, command: Command) {
        self.port.as_mut().unwrap().send(command).unwrap();
    }

    /// Waits for the first event that `pick` wants; the others stay for later.
    pub(crate) fn event<T>(&mut self, mut pick: impl FnMut(Event) -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(picked) = self.try_event(&mut pick) {
                return picked;
            }
            assert!(Instant::now() < until, "no such event; waiting: {:?}", self.waiting);
            self.woken.drain();
            std::thread::yield_now();
        }
    }

    /// The first event that `pick` wants, if it is there.
    pub(crate) fn try_event<T>(&mut self, mut pick: impl FnMut(Event) -> Option<T>) -> Option<T> {
        while let Some(event) = self.port.as_mut().unwrap().events.pop() {
            self.waiting.push(event);
        }
        let at = self.waiting.iter().position(|&event| pick(event).is_some())?;
        pick(self.waiting.remove(at))
    }

    fn stop(&mut self) {
        self.command(Command::Stop);
        self.event(|event| (event == Event::Stopped).then_some(()));
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Who ends all streams.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cuts {
    Network,
    Source,
    Sink,
}

pub(crate) struct Pair {
    pub(crate) source_region: Arc<Region>,
    pub(crate) sink_region: Arc<Region>,
    pub(crate) session: SessionKey,
    pub(crate) source: Side,
    pub(crate) sink: Side,
    sockets: Vec<TcpStream>,
    /// Of the streams that are there now.
    incarnation: Incarnation,
    source_stats: Option<SessionStatsReader>,
    sink_stats: Option<SessionStatsReader>,
}

/// Picks the end of a stream.
pub(crate) fn end_of(stream: StreamId) -> impl Fn(Event) -> Option<StreamEnd> {
    move |event| match event {
        Event::StreamDown { stream: down, cause, .. } if down == stream => Some(cause),
        _ => None,
    }
}

fn key(byte: u8) -> DirectionKey {
    DirectionKey::from_exported(&[byte; 44])
}

fn connect() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (near, listener.accept().unwrap().0)
}

impl Pair {
    pub(crate) fn new(streams: u16) -> Self {
        Self::with_spread(streams, Spread::All)
    }

    /// A pair whose source needs no more streams than these: any further one is retired.
    pub(crate) fn with_enough_streams() -> Self {
        Self::with_spread(STREAMS_START, Spread::AsNeeded)
    }

    fn with_spread(streams: u16, spread: Spread) -> Self {
        let session = SessionKey { link: LinkId(1), number: SessionNumber(7) };
        let region = |name| Arc::new(Region::create(name, PAGES * 4096, HugePages::Never).unwrap());
        let mut pair = Self {
            source_region: region("source"),
            sink_region: region("sink"),
            session,
            source: Side::new(0),
            sink: Side::new(1),
            sockets: Vec::new(),
            incarnation: Incarnation(1),
            source_stats: None,
            sink_stats: None,
        };
        for (side, spread) in [(&mut pair.source, spread), (&mut pair.sink, Spread::All)] {
            side.command(Command::AddLane(Box::new(LaneSetup {
                link: session.link,
                lane: LaneId(0),
                window_bytes_max: 16 << 20,
                streams_max: STREAMS_START,
                spread,
                retire_after: Some(RETIRE_AFTER),
            })));
        }
        for stream in 0..streams {
            pair.add_stream(StreamId(stream), 2);
        }
        pair
    }

    /// Connects a stream; the sink's receiving key is `sink_key`, the right one is 2.
    pub(crate) fn add_stream(&mut self, stream: StreamId, sink_key: u8) {
        let (near, far) = connect();
        self.sockets.push(near.try_clone().unwrap());
        for (side, socket, send, receive) in
            [(&mut self.source, near, 2, 3), (&mut self.sink, far, 3, sink_key)]
        {
            let setup = Box::new(StreamSetup {
                link: self.session.link,
                place: StreamPlace {
                    version: WireVersion::HIGHEST,
                    stream,
                    incarnation: self.incarnation,
                },
                socket: socket.into(),
                keys: StreamKeys { send: key(send), receive: key(receive) },
                stats: counters().0,
            });
            side.command(Command::AddStream { setup, frame_rtt_ns: histogram().0 });
        }
        if sink_key == 2 {
            for side in [&mut self.source, &mut self.sink] {
                side.event(|event| match event {
                    Event::StreamUp { stream: up, .. } if up == stream => Some(()),
                    _ => None,
                });
            }
        }
    }

    /// All streams end, here as over a dead network or as the end `cuts` orders it, and others
    /// take their places.
    pub(crate) fn renew_streams(&mut self, cuts: Cuts) {
        let count = self.cut_all(cuts);
        self.next_streams(count);
    }

    /// Ends all streams; returns how many there were.
    pub(crate) fn cut_all(&mut self, cuts: Cuts) -> usize {
        let link = self.session.link;
        // What is kept here would keep connections open.
        let sockets = std::mem::take(&mut self.sockets);
        let count = sockets.len();
        match cuts {
            Cuts::Network => {
                sockets.iter().for_each(|socket| drop(socket.shutdown(Shutdown::Both)));
            }
            Cuts::Source => self.source.command(Command::CutStreams { link }),
            Cuts::Sink => self.sink.command(Command::CutStreams { link }),
        }
        drop(sockets);
        for side in [&mut self.source, &mut self.sink] {
            for _ in 0..count {
                side.event(|event| matches!(event, Event::StreamDown { .. }).then_some(()));
            }
        }
        count
    }

    /// So many streams, of the next incarnation.
    pub(crate) fn next_streams(&mut self, count: usize) {
        self.incarnation = self.incarnation.next();
        (0..count).for_each(|stream| self.add_stream(StreamId(stream as u16), 2));
    }

    /// Adds a stream as its next incarnation.
    pub(crate) fn add_next(&mut self, stream: StreamId) {
        self.incarnation = self.incarnation.next();
        self.add_stream(stream, 2);
    }

    /// How a stream ended at both ends, once it has.
    pub(crate) fn stream_ends(&mut self, stream: StreamId) -> [StreamEnd; 2] {
        [&mut self.source, &mut self.sink].map(|side| side.event(end_of(stream)))
    }

    /// How both ends of a stream end whose keys differ.
    pub(crate) fn wrong_keys_stream(&mut self, stream: u16) -> (StreamEnd, StreamEnd) {
        self.add_stream(StreamId(stream), 9);
        self.stream_ends(StreamId(stream)).into()
    }

    pub(crate) fn open(&mut self, dirty: DirtyPages) {
        self.open_with(dirty, Coding::Full { zstd_level: 1 });
    }

    pub(crate) fn open_with(&mut self, dirty: DirtyPages, coding: Coding) {
        let (stats, source_stats) = counters();
        self.source.command(Command::OpenSource(Box::new(SourceSetup {
            session: self.session,
            region: Arc::clone(&self.source_region),
            dirty,
            lane: LaneId(0),
            lane_count: 1,
            base_pages_max: 1000,
            hash_key: HashKey([5; 32]),
            coding,
            measure_baseline: true,
            stats,
            frame_rtt_ns: histogram().0,
        })));
        let (stats, sink_stats) = counters();
        self.sink.command(Command::OpenSink(Box::new(SinkSetup {
            session: self.session,
            region: Arc::clone(&self.sink_region),
            lane: LaneId(0),
            lane_count: 1,
            hash_key: HashKey([5; 32]),
            stats,
        })));
        self.source_stats = Some(source_stats);
        self.sink_stats = Some(sink_stats);
        for side in [&mut self.source, &mut self.sink] {
            side.event(|event| matches!(event, Event::Opened { .. }).then_some(()));
        }
    }

    pub(crate) fn source_event<T>(&mut self, pick: impl FnMut(Event) -> Option<T>) -> T {
        self.source.event(pick)
    }

    pub(crate) fn start_round(&mut self, round: Round) {
        let session = self.session;
        self.source.command(Command::StartRound { session, round, last: false });
    }

    pub(crate) fn wait_round(&mut self, wanted: Round) -> RoundStats {
        self.source.event(|event| match event {
            Event::RoundDone { round, stats, .. } if round == wanted => Some(stats),
            Event::Failed { cause, .. } => panic!("the session failed: {cause}"),
            _ => None,
        })
    }

    pub(crate) fn round(&mut self, round: Round) -> RoundStats {
        self.start_round(round);
        self.wait_round(round)
    }

    pub(crate) fn verify(&mut self) {
        self.start_verify();
        self.wait_verified();
    }

    pub(crate) fn start_verify(&mut self) {
        let session = self.session;
        self.source.command(Command::Verify { session });
    }

    /// The source's shard is told that the link is given up.
    pub(crate) fn drop_link(&mut self) {
        self.source.command(Command::DropLink { link: self.session.link });
    }

    pub(crate) fn wait_verified(&mut self) {
        for side in [&mut self.source, &mut self.sink] {
            side.event(|event| match event {
                Event::Verified { .. } => Some(()),
                Event::Failed { cause, .. } => panic!("the session failed: {cause}"),
                _ => None,
            });
        }
    }

    pub(crate) fn cut_stream(&mut self, index: usize) {
        self.sockets[index].shutdown(Shutdown::Both).unwrap();
    }

    /// Cuts a stream that may have been cut before.
    pub(crate) fn try_cut_stream(&mut self, index: usize) {
        let _again = self.sockets[index].shutdown(Shutdown::Both);
    }

    pub(crate) fn source_counters(&self) -> [u64; SESSION_COUNTER_COUNT] {
        self.source_stats.as_ref().unwrap().snapshot()
    }

    pub(crate) fn sink_counters(&self) -> [u64; SESSION_COUNTER_COUNT] {
        self.sink_stats.as_ref().unwrap().snapshot()
    }

    pub(crate) fn assert_same(&self) {
        let (mut near, mut far) = (vec![0; 4096], vec![0; 4096]);
        for page in 0..PAGES {
            self.source_region.read_pages(page, &mut near);
            self.sink_region.read_pages(page, &mut far);
            assert!(near == far, "page {page} differs");
        }
    }

    pub(crate) fn close_session(&mut self) {
        let session = self.session;
        for side in [&mut self.source, &mut self.sink] {
            side.command(Command::CloseSession { session });
            side.event(|event| matches!(event, Event::Closed { .. }).then_some(()));
        }
    }

    pub(crate) fn close(mut self) {
        self.close_session();
        [&mut self.source, &mut self.sink].into_iter().for_each(Side::stop);
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // A failed test must not leave threads behind that poll for ever.
        for side in [&mut self.source, &mut self.sink] {
            if side.thread.is_some() && std::thread::panicking() {
                let _ = side.port.as_mut().unwrap().send(Command::Stop);
            }
        }
    }
}

/// A small generator: the same seed gives the same bytes.
pub(crate) fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 16
}

/// Fills a region with zero, repetitive and random pages.
pub(crate) fn fill(region: &Region, seed: u64) {
    let mut state = seed;
    for page in 0..PAGES {
        let kind = next(&mut state) % 3;
        for word in 0..512 {
            let value = match kind {
                0 => 0,
                1 => page * 1000 + word % 16,
                _ => next(&mut state) << 20 ^ next(&mut state),
            };
            region.store_u64(page * 4096 + word * 8, value);
        }
    }
}

/// Changes some words on `count` pages and names them.
pub(crate) fn scribble(region: &Region, seed: u64, count: usize) -> Vec<u64> {
    let mut state = seed;
    let mut pages = std::collections::BTreeSet::new();
    while pages.len() < count {
        pages.insert(next(&mut state) % PAGES);
    }
    for &page in &pages {
        for _ in 0..3 {
            let offset = page * 4096 + next(&mut state) % 512 * 8;
            region.store_u64(offset, region.load_u64(offset) ^ (next(&mut state) | 1));
        }
    }
    pages.into_iter().collect()
}
