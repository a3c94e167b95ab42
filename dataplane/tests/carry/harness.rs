//! A pair of shards that carries the streams of stand-ins for VMMs.

use crate::pair::{PATIENCE, Pair, next};
use dwcp_dataplane::port::{
    Before, ChannelEnd, ChannelId, ChannelSetup, Command, Event, HashKey, HeldChunk, PagesLeft,
    StreamCoding, StreamSinkSetup, StreamSourceSetup,
};
use dwcp_dataplane::stats::{SESSION_COUNTER_COUNT, SessionCounter, SessionStatsReader};
use dwcp_ffi::counters::{counters, histogram};
use dwcp_proto::ids::LaneId;
use dwcp_proto::wire::limits::BACKLOG_DEFAULT;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Instant;

/// What a test asks for.
#[derive(Clone, Copy)]
pub(crate) struct Options {
    pub(crate) streams: u16,
    pub(crate) undelivered: u64,
    pub(crate) coding: StreamCoding,
    pub(crate) base_pages: u64,
    /// The most pages that the sink alone may hold, as the source and the sink see it.
    pub(crate) held_pages: [u64; 2],
}

impl Default for Options {
    fn default() -> Self {
        Self {
            streams: 1,
            undelivered: 8 << 20,
            coding: StreamCoding::Passthrough,
            base_pages: 256,
            held_pages: [0; 2],
        }
    }
}

pub(crate) struct Carry {
    pub(crate) pair: Pair,
    options: Options,
    source_stats: SessionStatsReader,
    sink_stats: SessionStatsReader,
    heirs: [Receiver<PagesLeft>; 2],
    /// What [`Carry::is_quiet`] saw, and how often in a row.
    quiet: (u64, u32),
}

impl Carry {
    pub(crate) fn new(options: Options) -> Self {
        Self::over(Pair::new(options.streams), options)
    }

    /// A session between two shards that are there.
    pub(crate) fn over(mut pair: Pair, options: Options) -> Self {
        let Opened { source_stats, sink_stats, heirs } = open(&mut pair, options, [None, None]);
        Self { pair, options, source_stats, sink_stats, heirs, quiet: (0, 0) }
    }

    /// Closes the session and opens the next one.
    pub(crate) fn reopen(&mut self) {
        self.end_session();
        self.open_next([None, None]);
    }

    fn end_session(&mut self) {
        self.pair.close_session();
        self.pair.session.number = self.pair.session.number.next();
    }

    /// Closes the session; what is left at the source and at the sink.
    pub(crate) fn close_session(&mut self) -> [PagesLeft; 2] {
        self.end_session();
        [0, 1].map(|end: usize| self.heirs[end].try_recv().unwrap())
    }

    /// Opens the next session with what the source and the sink hold from before.
    pub(crate) fn open_next(&mut self, before: [Option<Box<Before>>; 2]) {
        let opened = open(&mut self.pair, self.options, before);
        let Opened { source_stats, sink_stats, heirs } = opened;
        (self.source_stats, self.sink_stats, self.heirs) = (source_stats, sink_stats, heirs);
    }

    /// A channel at both ends: the VMM's socket at the source and at the sink.
    pub(crate) fn channel(&mut self, number: u16) -> (UnixStream, UnixStream) {
        (self.source_channel(number), self.sink_channel(number))
    }

    pub(crate) fn source_channel(&mut self, number: u16) -> UnixStream {
        let (vmm, command) = self.socket(number);
        self.pair.source.command(command);
        vmm
    }

    pub(crate) fn sink_channel(&mut self, number: u16) -> UnixStream {
        let (vmm, command) = self.socket(number);
        self.pair.sink.command(command);
        vmm
    }

    fn socket(&self, number: u16) -> (UnixStream, Command) {
        let (vmm, ours) = UnixStream::pair().unwrap();
        vmm.set_read_timeout(Some(PATIENCE)).unwrap();
        vmm.set_write_timeout(Some(PATIENCE)).unwrap();
        let (session, channel, socket) = (self.pair.session, ChannelId(number), ours.into());
        (vmm, Command::AddChannel(Box::new(ChannelSetup { session, channel, socket })))
    }

    /// Writes at one end and reads all of it at the other.
    pub(crate) fn move_bytes(&mut self, from: &UnixStream, to: &UnixStream, sent: &[u8]) {
        self.move_rest(from, to, sent, 0);
    }

    /// As [`Carry::move_bytes`], when the first `written` bytes are written already.
    pub(crate) fn move_rest(
        &mut self,
        from: &UnixStream,
        to: &UnixStream,
        sent: &[u8],
        written: usize,
    ) {
        std::thread::scope(|scope| {
            scope.spawn(move || { &*from }.write_all(&sent[written..]).unwrap());
            let mut got = vec![0; sent.len()];
            { to }.read_exact(&mut got).unwrap();
            assert!(got == sent, "what arrives is what was written");
        });
    }

    /// As [`Carry::move_bytes`], calling `meanwhile` with what has arrived so far.
    pub(crate) fn move_bytes_while(
        &mut self,
        from: &UnixStream,
        to: &UnixStream,
        sent: &[u8],
        mut meanwhile: impl FnMut(&mut Self, usize),
    ) {
        let arrived = AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| { from }.write_all(sent).unwrap());
            let reading = scope.spawn(|| {
                let mut at = 0;
                let mut part = vec![0; 100_000];
                while at < sent.len() {
                    let bytes = { to }.read(&mut part).unwrap();
                    assert!(bytes > 0 && part[..bytes] == sent[at..at + bytes], "at byte {at}");
                    at += bytes;
                    arrived.store(at as u64, Ordering::Relaxed);
                }
            });
            while !reading.is_finished() {
                meanwhile(self, arrived.load(Ordering::Relaxed) as usize);
                std::thread::yield_now();
            }
        });
    }

    /// Hands pages to the sink that it alone holds.
    pub(crate) fn add_held(&mut self, chunk: HeldChunk) {
        let (session, chunk) = (self.pair.session, Box::new(chunk));
        self.pair.sink.command(Command::AddHeld { session, chunk });
    }

    /// Waits until the source was told of so many chunks, of so many pages in all.
    pub(crate) fn wait_told(&mut self, chunks: u64, pages: u64) {
        let bytes = chunks * (8 + 8 + 512) + pages * 7;
        self.until(|carry| carry.source_counters()[SessionCounter::ToldBytes.index()] == bytes);
        assert_eq!(self.sink_counters()[SessionCounter::ToldBytes.index()], bytes);
    }

    /// The source's VMM ends its input; the sink's sees the end after everything.
    pub(crate) fn end_of_input(&mut self, number: u16, near: UnixStream, mut far: UnixStream) {
        near.shutdown(Shutdown::Write).unwrap();
        assert_eq!(far.read(&mut [0; 8]).unwrap(), 0);
        assert_eq!(self.source_channel_end(), (number, ChannelEnd::Closed));
        assert_eq!(self.sink_channel_end(), (number, ChannelEnd::Peer));
    }

    pub(crate) fn source_channel_end(&mut self) -> (u16, ChannelEnd) {
        self.pair.source.event(channel_end)
    }

    pub(crate) fn sink_channel_end(&mut self) -> (u16, ChannelEnd) {
        self.pair.sink.event(channel_end)
    }

    /// Both ends say what they carried, and say the same.
    pub(crate) fn assert_same_digest(&mut self) {
        let session = self.pair.session;
        let [source, sink] = [&mut self.pair.source, &mut self.pair.sink].map(|side| {
            side.command(Command::Verify { session });
            side.event(|event| match event {
                Event::StreamDigest { frames, digest, .. } => Some((frames, digest)),
                Event::Failed { cause, .. } => panic!("the session failed: {cause}"),
                _ => None,
            })
        });
        assert_eq!(source, sink);
        assert!(source.0 > 0);
    }

    /// Calls `done` until it says so, within the test's patience.
    pub(crate) fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done(self) {
            assert!(Instant::now() < end, "it did not happen");
            std::thread::yield_now();
        }
    }

    /// True when nothing was sent or delivered while this was asked many times in a row.
    pub(crate) fn is_quiet(&mut self, extra: u64) -> bool {
        let sum = self.source_counters().iter().fold(extra, |sum, count| sum.wrapping_add(*count));
        let times = if self.quiet.0 == sum { self.quiet.1 + 1 } else { 0 };
        self.quiet = (sum, times);
        times > 20_000
    }

    pub(crate) fn cut_stream(&mut self, index: usize) {
        self.pair.try_cut_stream(index);
    }

    pub(crate) fn source_counters(&self) -> [u64; SESSION_COUNTER_COUNT] {
        self.source_stats.snapshot()
    }

    pub(crate) fn sink_counters(&self) -> [u64; SESSION_COUNTER_COUNT] {
        self.sink_stats.snapshot()
    }

    pub(crate) fn close(self) {
        self.pair.close();
    }
}

/// An open session.
struct Opened {
    source_stats: SessionStatsReader,
    sink_stats: SessionStatsReader,
    heirs: [Receiver<PagesLeft>; 2],
}

/// Opens the session at both ends.
fn open(pair: &mut Pair, options: Options, before: [Option<Box<Before>>; 2]) -> Opened {
    let session = pair.session;
    let [source_before, sink_before] = before;
    let (source_heir, source_left) = sync_channel(1);
    let (sink_heir, sink_left) = sync_channel(1);
    let (stats, source_stats) = counters();
    let window_log = match options.coding {
        StreamCoding::Pages { window_log, .. } => window_log,
        StreamCoding::Passthrough => 0,
    };
    pair.source.command(Command::OpenStreamSource(Box::new(StreamSourceSetup {
        session,
        lane: LaneId(0),
        coding: options.coding,
        pages_max: 1 << 16,
        base_pages: options.base_pages,
        undelivered_bytes_max: options.undelivered,
        backlog: BACKLOG_DEFAULT,
        hash_key: HashKey([5; 32]),
        before: source_before,
        held_pages: options.held_pages[0],
        heir: Some(source_heir),
        stats,
        frame_rtt_ns: histogram().0,
    })));
    let (stats, sink_stats) = counters();
    pair.sink.command(Command::OpenStreamSink(Box::new(StreamSinkSetup {
        session,
        lane: LaneId(0),
        window_log,
        pages_max: 1 << 16,
        base_pages: options.base_pages,
        undelivered_bytes_max: options.undelivered,
        hash_key: HashKey([5; 32]),
        before: sink_before,
        held_pages: options.held_pages[1],
        heir: Some(sink_heir),
        stats,
    })));
    for side in [&mut pair.source, &mut pair.sink] {
        side.event(|event| matches!(event, Event::Opened { .. }).then_some(()));
    }
    Opened { source_stats, sink_stats, heirs: [source_left, sink_left] }
}

fn channel_end(event: Event) -> Option<(u16, ChannelEnd)> {
    match event {
        Event::ChannelEnded { channel, end, .. } => Some((channel.0, end)),
        _ => None,
    }
}

/// Bytes that look like nothing.
pub(crate) fn bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed;
    let words = (0..count.div_ceil(8))
        .flat_map(|_| next(&mut state).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    words.take(count).collect()
}

/// Writes and reads chunks of random length, one answer for some of them.
pub(crate) fn chatter(seed: u64, mut near: &UnixStream, mut far: &UnixStream) {
    let mut state = seed;
    for turn in 0..60 {
        let sent = bytes(seed + turn, 1 + next(&mut state) as usize % 300_000);
        std::thread::scope(|scope| {
            scope.spawn(|| { near }.write_all(&sent).unwrap());
            let mut got = vec![0; sent.len()];
            far.read_exact(&mut got).unwrap();
            assert!(got == sent, "seed {seed}, turn {turn}");
        });
        if next(&mut state).is_multiple_of(3) {
            let answer = bytes(turn, 1 + next(&mut state) as usize % 50_000);
            std::thread::scope(|scope| {
                scope.spawn(|| { far }.write_all(&answer).unwrap());
                let mut got = vec![0; answer.len()];
                near.read_exact(&mut got).unwrap();
                assert!(got == answer, "seed {seed}, answer {turn}");
            });
        }
    }
}

/// Reads a little at a time until the end.
pub(crate) fn sip(mut far: &UnixStream, at_most: usize) -> Vec<u8> {
    let mut got = Vec::with_capacity(at_most);
    let mut part = [0; 3000];
    loop {
        std::thread::yield_now();
        match far.read(&mut part).unwrap() {
            0 => return got,
            bytes => got.extend(&part[..bytes]),
        }
    }
}
