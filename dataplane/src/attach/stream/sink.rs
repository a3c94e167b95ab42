//! The sink of a stream session: holds what came, hands it to the VMM in order.
//!
//! Owned by one shard. What comes in its turn, while the VMM takes it, is written without another
//! copy; everything else waits in a pool of fixed size. One turn hands over a bounded number of
//! bytes. A part counts as delivered when the VMM's socket took its last byte.

use super::NoMemory;
use super::digest::{ChannelDigest, digest_of};
use super::error::StreamSinkError;
use super::held::{Alone, HeldPages};
use super::pipe::{Moved, PipeId, Pipes};
use super::pool::{Chain, guest_memory};
use super::rebuild::Rebuilder;
use super::reorder::{Held, Reorder, Taken};
use super::reply::Answers;
use super::source::NEWS_MAX;
use super::versions::Versions;
use crate::port::{ChannelEnd, ChannelId, Event, Heir, StreamSinkSetup};
use crate::stats::{SessionCounter, SessionStats};
use dwcp_codec::{Decoder, LongWindowDecoder, PageHasher};
use dwcp_ffi::arena::Lease;
use dwcp_ffi::memory::PagePool;
use dwcp_proto::ids::{Position, SessionKey};
use dwcp_proto::wire::frame::{Frame, StreamKind, StreamPart};
use dwcp_proto::wire::limits::{CHANNELS_MAX, STREAM_PAYLOAD_BYTES_MAX};
use std::collections::VecDeque;
use std::io::IoSlice;

/// Bytes that one turn of the shard hands to the VMM of one session.
const BYTES_PER_TURN: usize = 256 << 10;

/// Pieces that one write hands over: as many as a full record has units.
const SLICES_MAX: usize = 64;

/// A part whose turn has come and that is not all written.
#[derive(Debug)]
enum Begun {
    /// Bytes that are written as they are, so many of them so far.
    Opaque(Chain, usize),
    /// The records of a batch, in the rebuilder.
    Pages,
}

#[derive(Debug)]
struct Channel {
    id: ChannelId,
    pipe: Option<PipeId>,
    /// The position whose turn comes next.
    next: Position,
    begun: Option<Begun>,
    /// How many parts the VMM took, and how many the source knows of.
    delivered: u64,
    told: u64,
    ended: bool,
    /// The VMM takes nothing any more.
    broken: bool,
    /// The control thread knows that the VMM ended it.
    gone: bool,
    answers: Answers,
    digest: ChannelDigest,
}

impl Channel {
    fn new(id: ChannelId, hasher: &PageHasher) -> Self {
        Self {
            id,
            pipe: None,
            next: Position(0),
            begun: None,
            delivered: 0,
            told: 0,
            ended: false,
            broken: false,
            gone: false,
            answers: Answers::new(),
            digest: ChannelDigest::new(hasher),
        }
    }

    /// True when nothing waits for the VMM, so that what comes in its turn may be written at once.
    fn is_free(&self) -> bool {
        self.pipe.is_some() && self.begun.is_none() && !self.broken
    }
}

/// The sink of a stream session.
#[derive(Debug)]
pub(crate) struct StreamSink {
    pub(crate) session: SessionKey,
    pub(crate) stats: SessionStats,
    hasher: PageHasher,
    reorder: Reorder,
    rebuilder: Rebuilder,
    /// A part that was held, in one piece.
    coded: Option<Lease>,
    channels: Vec<Channel>,
    /// Bytes that may still be handed over in this turn.
    left_of_turn: usize,
    /// Which channel comes first in the next turn.
    turn: usize,
    verify: bool,
    failed: bool,
    heir: Option<Heir>,
    news: VecDeque<Event>,
}

impl StreamSink {
    pub(crate) fn new(setup: StreamSinkSetup, pool: &PagePool) -> Result<Self, NoMemory> {
        let hasher = PageHasher::new(&setup.hash_key);
        let bases = (setup.base_pages, setup.before);
        let versions = Versions::new(pool, setup.pages_max, bases, Alone::held(setup.held_pages))?;
        let window = match setup.window_log {
            0 => None,
            log => Some(LongWindowDecoder::new(log.into())?),
        };
        Ok(Self {
            session: setup.session,
            stats: setup.stats,
            reorder: Reorder::new(setup.undelivered_bytes_max)?,
            rebuilder: Rebuilder::new(versions, window)?,
            coded: Some(guest_memory(STREAM_PAYLOAD_BYTES_MAX)?),
            channels: (0..CHANNELS_MAX).map(|id| Channel::new(ChannelId(id), &hasher)).collect(),
            hasher,
            left_of_turn: BYTES_PER_TURN,
            turn: 0,
            verify: false,
            failed: false,
            heir: setup.heir,
            news: VecDeque::with_capacity(NEWS_MAX),
        })
    }

    /// Takes a channel's socket over. False when there is one already, or no such channel.
    pub(crate) fn add_channel(&mut self, id: ChannelId, pipe: PipeId) -> bool {
        match self.channels.get_mut(usize::from(id.0)) {
            Some(channel) if channel.pipe.is_none() && !self.failed => {
                channel.pipe = Some(pipe);
                true
            }
            _ => false,
        }
    }

    /// The pages that this end alone holds, if there may be any.
    pub(crate) fn held(&mut self) -> Option<&mut HeldPages> {
        self.rebuilder.held().filter(|_| !self.failed)
    }

    /// Answers with a digest as soon as all that came in order is handed to the VMM.
    pub(crate) fn start_verify(&mut self) {
        self.verify = true;
    }

    /// Takes a part in: from now on the source need not keep it.
    pub(crate) fn accept(
        &mut self,
        pipes: &mut Pipes,
        decoder: &mut Decoder,
        part: &StreamPart,
        payload: &[u8],
    ) -> Result<(), StreamSinkError> {
        if self.failed {
            return Err(StreamSinkError::Failed);
        }
        let StreamPart { channel, kind, position, .. } = *part;
        let at = usize::from(channel.0);
        let Channel { next, ended, .. } = self.channels[at];
        let its_turn = position == next && !self.reorder.has(channel, next);
        if its_turn && !ended && self.channels[at].is_free() && self.left_of_turn > 0 {
            return self.handle(pipes, decoder, at, (kind, payload));
        }
        match self.reorder.hold(channel, next, position, (kind, payload)) {
            Taken::Held if ended => Err(StreamSinkError::AfterEnd),
            Taken::Held => {
                let high_water = self.reorder.high_water_bytes() as u64;
                self.stats.set(SessionCounter::ReorderHighWater.index(), high_water);
                Ok(())
            }
            Taken::Duplicate => {
                self.stats.add(SessionCounter::DuplicateFrames.index(), 1);
                Ok(())
            }
            Taken::Overflow => Err(StreamSinkError::Overflow),
        }
    }

    /// Handles a part whose turn has come; what the VMM does not take now is held.
    fn handle(
        &mut self,
        pipes: &mut Pipes,
        decoder: &mut Decoder,
        at: usize,
        (kind, payload): (StreamKind, &[u8]),
    ) -> Result<(), StreamSinkError> {
        let channel = &mut self.channels[at];
        let position = channel.next;
        channel.digest.add(position, kind, payload.len(), [payload]);
        self.begun(at, payload.len());
        match kind {
            StreamKind::Opaque => {
                let taken = self.write(pipes, at, payload);
                if taken < payload.len() {
                    let rest = self.reorder.put(&payload[taken..]);
                    let chain = rest.ok_or(StreamSinkError::Overflow)?;
                    self.channels[at].begun = Some(Begun::Opaque(chain, 0));
                } else {
                    self.channels[at].delivered += 1;
                }
            }
            StreamKind::End => self.end(pipes, at),
            StreamKind::Pages | StreamKind::Block if at != 0 => {
                return Err(StreamSinkError::PagesChannel);
            }
            StreamKind::Block => {
                self.rebuilder.block(payload)?;
                self.channels[at].delivered += 1;
            }
            StreamKind::Pages => {
                let part = (position, payload);
                self.rebuilder.pages(decoder, &self.hasher, &self.stats, part)?;
                self.write_records(pipes, at);
            }
        }
        Ok(())
    }

    /// Writes more of a batch's records. False when the VMM takes nothing now.
    fn write_records(&mut self, pipes: &mut Pipes, at: usize) -> bool {
        let Some(pipe) = self.channels[at].pipe else { return false };
        let moved = pipes.write(pipe, &[IoSlice::new(self.rebuilder.unwritten())]);
        let taken = self.wrote(at, moved);
        if self.rebuilder.wrote(taken) {
            self.channels[at].delivered += 1;
        } else {
            self.channels[at].begun = Some(Begun::Pages);
        }
        taken > 0
    }

    /// A part's turn has come.
    fn begun(&mut self, at: usize, payload_bytes: usize) {
        let channel = &mut self.channels[at];
        channel.next = channel.next.next();
        self.stats.add(SessionCounter::Frames.index(), 1);
        self.stats.add(SessionCounter::CodedBytes.index(), payload_bytes as u64);
    }

    /// The source's VMM ended the channel: so does this end, after all that came before.
    fn end(&mut self, pipes: &mut Pipes, at: usize) {
        let channel = &mut self.channels[at];
        channel.ended = true;
        channel.delivered += 1;
        if let Some(pipe) = channel.pipe {
            pipes.end_writing(pipe);
        }
        self.tell(at, ChannelEnd::Peer);
    }

    /// Writes to the VMM what it takes. Returns how much that was.
    fn write(&mut self, pipes: &mut Pipes, at: usize, bytes: &[u8]) -> usize {
        match self.channels[at].pipe {
            Some(pipe) => {
                let moved = pipes.write(pipe, &[IoSlice::new(bytes)]);
                self.wrote(at, moved)
            }
            None => 0,
        }
    }

    /// What came of a write. Returns how many bytes went.
    fn wrote(&mut self, at: usize, moved: Moved) -> usize {
        match moved {
            Moved::Bytes(bytes) => {
                self.left_of_turn = self.left_of_turn.saturating_sub(bytes);
                self.stats.add(SessionCounter::VmmOutBytes.index(), bytes as u64);
                return bytes;
            }
            Moved::Later => {}
            Moved::Ended | Moved::Failed(_) => self.broken(at),
        }
        0
    }

    /// The VMM takes nothing any more on a channel.
    fn broken(&mut self, at: usize) {
        if !std::mem::replace(&mut self.channels[at].broken, true) {
            self.channels[at].gone = true;
            self.channels[at].answers.end();
            self.tell(at, ChannelEnd::Broken);
        }
    }

    /// The VMM ended a channel: said once.
    fn gone(&mut self, at: usize, end: ChannelEnd) {
        if !std::mem::replace(&mut self.channels[at].gone, true) {
            self.tell(at, end);
        }
    }

    fn tell(&mut self, at: usize, end: ChannelEnd) {
        let (session, channel) = (self.session, self.channels[at].id);
        self.news.push_back(Event::ChannelEnded { session, channel, end });
    }

    /// A bounded piece of handing over and of reading replies; begins a new turn. True when
    /// anything was done.
    pub(crate) fn work(
        &mut self,
        pipes: &mut Pipes,
        decoder: &mut Decoder,
    ) -> Result<bool, StreamSinkError> {
        if self.failed {
            return Ok(false);
        }
        self.left_of_turn = BYTES_PER_TURN;
        let mut worked = false;
        let count = self.channels.len();
        for turn in 0..count {
            let at = (self.turn + turn) % count;
            while self.left_of_turn > 0 && self.advance(pipes, decoder, at)? {
                worked = true;
            }
            worked |= self.read_answers(pipes, at);
        }
        self.turn = (self.turn + 1) % count;
        if self.verify && self.is_settled() {
            self.verify = false;
            let digests = self.channels.iter().map(|channel| (channel.id, &channel.digest));
            let (frames, digest) = digest_of(&self.hasher, digests);
            let session = self.session;
            self.news.push_back(Event::StreamDigest { session, frames, digest });
            worked = true;
        }
        Ok(worked)
    }

    /// One step of a channel: writes on, or begins the next part that is held. False when the
    /// channel has to wait.
    fn advance(
        &mut self,
        pipes: &mut Pipes,
        decoder: &mut Decoder,
        at: usize,
    ) -> Result<bool, StreamSinkError> {
        let channel = &mut self.channels[at];
        let Some(pipe) = channel.pipe.filter(|_| !channel.broken) else { return Ok(false) };
        match channel.begun.take() {
            Some(Begun::Opaque(chain, written)) => {
                return Ok(self.write_on(pipes, pipe, at, (chain, written)));
            }
            Some(Begun::Pages) => return Ok(self.write_records(pipes, at)),
            None => {}
        }
        let (id, next) = (channel.id, channel.next);
        let Some(Held { kind, chain }) = self.reorder.take(id, next) else { return Ok(false) };
        if channel.ended {
            return Err(StreamSinkError::AfterEnd);
        }
        if kind == StreamKind::Opaque {
            channel.digest.add(next, kind, chain.bytes(), self.reorder.parts(&chain));
            self.begun(at, chain.bytes());
            self.channels[at].begun = Some(Begun::Opaque(chain, 0));
            return Ok(true);
        }
        let Some(mut coded) = self.coded.take() else {
            unreachable!("it is put back below, and nothing in between asks for it")
        };
        let bytes = self.reorder.copy(&chain, &mut coded);
        self.reorder.free(chain);
        let handled = self.handle(pipes, decoder, at, (kind, &coded[..bytes]));
        self.coded = Some(coded);
        handled.map(|()| true)
    }

    /// Writes more of a part that was begun. False when the VMM takes nothing now.
    fn write_on(
        &mut self,
        pipes: &mut Pipes,
        pipe: PipeId,
        at: usize,
        (chain, written): (Chain, usize),
    ) -> bool {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut count = 0;
        let mut skip = written;
        for piece in self.reorder.parts(&chain) {
            let skipped = skip.min(piece.len());
            skip -= skipped;
            if skipped < piece.len() && count < SLICES_MAX {
                slices[count] = IoSlice::new(&piece[skipped..]);
                count += 1;
            }
        }
        let moved = pipes.write(pipe, &slices[..count]);
        let taken = self.wrote(at, moved);
        if written + taken == chain.bytes() {
            self.reorder.free(chain);
            self.channels[at].delivered += 1;
        } else {
            self.channels[at].begun = Some(Begun::Opaque(chain, written + taken));
        }
        taken > 0
    }

    fn read_answers(&mut self, pipes: &mut Pipes, at: usize) -> bool {
        let channel = &mut self.channels[at];
        let Some(pipe) = channel.pipe else { return false };
        match channel.answers.read(pipes, pipe) {
            None | Some(Moved::Later) => return false,
            Some(Moved::Bytes(bytes)) => {
                self.stats.add(SessionCounter::ReplyBytes.index(), bytes as u64);
            }
            Some(Moved::Ended) => self.gone(at, ChannelEnd::Closed),
            Some(Moved::Failed(errno)) => self.gone(at, ChannelEnd::Socket { errno }),
        }
        true
    }

    /// The session is over: gives what it leaves to who waits for it.
    pub(crate) fn leave(self) {
        if let Some(heir) = self.heir {
            // Nobody waits for what a session leaves that came to nothing.
            let _ = heir.try_send(self.rebuilder.leave(self.hasher));
        }
    }

    /// True when all that came in order is handed to the VMM.
    fn is_settled(&self) -> bool {
        self.channels
            .iter()
            .all(|channel| channel.begun.is_none() && !self.reorder.has(channel.id, channel.next))
    }

    /// The next small frame that has to be sent.
    pub(crate) fn next_due(&mut self) -> Option<Frame<'static>> {
        let channel = self.channels.iter_mut().find(|channel| channel.delivered > channel.told)?;
        channel.told = channel.delivered;
        let (session, position) = (self.session.number, Position(channel.delivered - 1));
        Some(Frame::Delivered { session, channel: channel.id, position })
    }

    /// True when a small frame has to be sent.
    pub(crate) fn is_due(&self) -> bool {
        self.channels.iter().any(|channel| channel.delivered > channel.told)
    }

    /// The next reply that has to be sent.
    pub(crate) fn reply_due(&self) -> Option<Frame<'_>> {
        let session = self.session.number;
        self.channels.iter().find_map(|Channel { id, answers, .. }| {
            let (offset, payload) = answers.due()?;
            Some(Frame::Reply { session, channel: *id, offset, payload })
        })
    }

    /// The reply of a channel went out.
    pub(crate) fn reply_sent(&mut self, channel: ChannelId) {
        self.channels[usize::from(channel.0)].answers.sent();
    }

    /// The source's VMM took a reply.
    pub(crate) fn reply_acked(
        &mut self,
        channel: ChannelId,
        offset: u64,
    ) -> Result<(), StreamSinkError> {
        self.channels[usize::from(channel.0)].answers.acked(offset)?;
        Ok(())
    }

    /// A stream of the link died: what was said last may have died with it, so it is said again.
    pub(crate) fn say_again(&mut self) {
        for channel in &mut self.channels {
            channel.told = 0;
            channel.answers.send_again();
        }
    }

    /// What the control thread has to be told, taken out.
    pub(crate) fn news(&mut self) -> Option<Event> {
        self.news.pop_front()
    }

    /// Ends all work and closes the VMM's sockets. False when the session had failed before.
    pub(crate) fn fail(&mut self, pipes: &mut Pipes) -> bool {
        self.channels.iter_mut().filter_map(|channel| channel.pipe.take()).for_each(|pipe| {
            pipes.close(pipe);
        });
        !std::mem::replace(&mut self.failed, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_codec::HashKey;
    use dwcp_ffi::counters::counters;
    use dwcp_proto::ids::{LinkId, Sequence, SessionNumber};
    use dwcp_proto::wire::limits::{HELD_UNIT_BYTES, UNDELIVERED_BYTES_MIN};
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    struct Bench {
        sink: StreamSink,
        pipes: Pipes,
        decoder: Decoder,
    }

    /// Channel and position, kind and payload of a part.
    type Sent<'a> = ((u16, u64), StreamKind, &'a [u8]);

    impl Bench {
        fn new() -> Self {
            let setup = StreamSinkSetup {
                session: SessionKey { link: LinkId(1), number: SessionNumber(1) },
                lane: dwcp_proto::ids::LaneId(0),
                window_log: 0,
                pages_max: 64,
                base_pages: 4,
                undelivered_bytes_max: UNDELIVERED_BYTES_MIN,
                hash_key: HashKey([5; 32]),
                before: None,
                held_pages: 0,
                heir: None,
                stats: counters().0,
            };
            let sink = StreamSink::new(setup, &PagePool::new(1 << 20).unwrap());
            Self { sink: sink.unwrap(), pipes: Pipes::new(2), decoder: Decoder::new() }
        }

        fn channel(&mut self, number: u16) -> UnixStream {
            let (near, far) = UnixStream::pair().unwrap();
            let pipe = self.pipes.add(near.into()).unwrap();
            assert!(self.sink.add_channel(ChannelId(number), pipe));
            far
        }

        fn accept(
            &mut self,
            (channel, position): (u16, u64),
            kind: StreamKind,
            payload: &[u8],
        ) -> Result<(), &'static str> {
            let (session, channel) = (self.sink.session.number, ChannelId(channel));
            let (sequence, position) = (Sequence(1), Position(position));
            let part = StreamPart { session, channel, kind, sequence, position };
            let Self { sink, pipes, decoder } = self;
            let accepted = sink.accept(pipes, decoder, &part, payload);
            accepted.and_then(|()| sink.work(pipes, decoder).map(drop)).map_err(|e| e.code())
        }
    }

    #[test]
    fn a_source_that_breaks_the_rules_is_found_out() {
        use StreamKind::{Block, End, Opaque, Pages};
        let cases: [(&[Sent<'_>], _); 7] = [
            (&[((0, 0), End, b""), ((0, 1), Opaque, b"x")], "stream_after_end"),
            (&[((0, 1), Opaque, b"x"), ((0, 0), End, b"")], "stream_after_end"),
            (&[((1, 0), Block, b"x")], "stream_pages_channel"),
            (&[((0, 0), Block, b"x")], "stream_block"),
            (&[((0, 0), Block, &[0, 1, 0, 0, 0, 0, 0, 0, 0x10, 0, b'a'])], "qemu-block-order"),
            (&[((0, 0), Block, &[0, 0, 0, 0, 0, 0, 0, 0, 0x10, 1, b'a'])], "qemu-block-invalid"),
            (&[((0, 1), Pages, &[1, 9, 9]), ((0, 0), Opaque, b"x")], "codec-beyond-region"),
        ];
        for (parts, code) in cases {
            let mut bench = Bench::new();
            let _vmms = [bench.channel(0), bench.channel(1)];
            let outcomes: Vec<_> = parts
                .iter()
                .map(|(place, kind, bytes)| bench.accept(*place, *kind, bytes))
                .collect();
            assert_eq!(outcomes.last(), Some(&Err(code)), "{parts:?}: {outcomes:?}");
        }
    }

    #[test]
    fn more_than_was_agreed_is_refused() {
        let mut bench = Bench::new();
        let bound = UNDELIVERED_BYTES_MIN / HELD_UNIT_BYTES as u64 + 65;
        for position in 0..bound {
            assert_eq!(bench.accept((0, position), StreamKind::Opaque, b"x"), Ok(()));
        }
        let more = bench.accept((0, bound), StreamKind::Opaque, b"x");
        assert_eq!(more, Err("stream_overflow"));
    }

    #[test]
    fn what_the_vmm_took_is_told_once_and_again_when_a_stream_dies() {
        let mut bench = Bench::new();
        let mut vmm = bench.channel(0);
        for position in [2, 0, 1, 1] {
            assert_eq!(bench.accept((0, position), StreamKind::Opaque, &[position as u8]), Ok(()));
        }
        let told = bench.sink.next_due();
        let Some(Frame::Delivered { position: Position(2), .. }) = told else { panic!("{told:?}") };
        assert_eq!((bench.sink.next_due(), bench.sink.is_due()), (None, false));
        bench.sink.say_again();
        assert_eq!(bench.sink.next_due(), told);
        let mut got = [9; 3];
        vmm.read_exact(&mut got).unwrap();
        assert_eq!(got, [0, 1, 2]);
    }

    #[test]
    fn a_part_that_comes_again_is_handled_once_wherever_the_first_one_is() {
        let mut bench = Bench::new();
        for position in [0, 1, 0] {
            assert_eq!(bench.accept((0, position), StreamKind::Opaque, &[position as u8]), Ok(()));
        }
        // The channel comes after its first parts, and they come again before anything else.
        let mut vmm = bench.channel(0);
        for position in [0, 1, 0, 2, 1] {
            assert_eq!(bench.accept((0, position), StreamKind::Opaque, &[position as u8]), Ok(()));
        }
        let mut got = [9; 3];
        vmm.read_exact(&mut got).unwrap();
        assert_eq!(got, [0, 1, 2]);
        assert!(!bench.sink.reorder.has(ChannelId(0), Position(0)), "nothing is left behind");
    }

    #[test]
    fn a_failed_session_closes_its_sockets_once() {
        let mut bench = Bench::new();
        let mut vmm = bench.channel(0);
        assert!(bench.sink.fail(&mut bench.pipes));
        assert!(!bench.sink.fail(&mut bench.pipes));
        assert_eq!(vmm.read(&mut [0]).unwrap(), 0);
        // Both places are free for the next session.
        for _ in 0..2 {
            assert!(bench.pipes.add(UnixStream::pair().unwrap().0.into()).is_some());
        }
        assert!(bench.pipes.add(UnixStream::pair().unwrap().0.into()).is_none(), "all are taken");
    }
}
