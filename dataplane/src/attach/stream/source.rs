//! The source of a stream session: takes what the VMM writes, keeps it until the sink has it.
//!
//! Owned by one shard. Work comes in bounded steps: one call fills at most one frame. It reads from
//! the VMM only when the frame may be sent, so nothing piles up here and the VMM feels the link.

use super::NoMemory;
use super::cut::{Cutter, Filled, Tools};
use super::digest::{ChannelDigest, digest_of};
use super::held::{Alone, BeyondTerms};
use super::level::LevelChooser;
use super::pipe::{Moved, PipeId, Pipes};
use super::reply::{OutOfPlace, Replies};
use super::retain::{NeverSent, Part, Retained};
use super::versions::Versions;
use crate::attach::region::Scratch;
use crate::port::{ChannelEnd, ChannelId, Event, Heir, StreamCoding, StreamSourceSetup};
use crate::stats::{SessionCounter, SessionStats};
use dwcp_codec::{LongWindowEncoder, PageHasher};
use dwcp_ffi::counters::HistogramWriter;
use dwcp_ffi::memory::PagePool;
use dwcp_proto::ids::{Position, SessionKey};
use dwcp_proto::time::Nanos;
use dwcp_proto::window::PathReport;
use dwcp_proto::wire::frame::{Frame, HeldHashes, StreamKind};
use dwcp_proto::wire::limits::CHANNELS_MAX;
use std::collections::VecDeque;

/// The most bytes of the VMM that one frame carries as they are. More would only keep the other
/// work of the shard waiting.
const OPAQUE_BYTES_MAX: usize = 256 << 10;

/// The VMM's first connection, the only one that is read.
const FIRST: ChannelId = ChannelId(0);

/// What a step came to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// Nothing to do now.
    Idle,
    /// Something was done; call again.
    Worked,
    /// A frame is ready to be sent.
    Frame(Produced),
}

/// A frame that a step filled.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Produced {
    /// The name under which it is kept.
    pub(crate) name: u32,
    pub(crate) part: Part,
    pub(crate) payload_bytes: usize,
}

#[derive(Debug)]
struct Channel {
    id: ChannelId,
    pipe: PipeId,
    /// The VMM ended its writing, and the last part is sent.
    ended: bool,
    replies: Replies,
    digest: ChannelDigest,
}

/// The source of a stream session.
#[derive(Debug)]
pub(crate) struct StreamSource {
    pub(crate) session: SessionKey,
    pub(crate) stats: SessionStats,
    pub(crate) frame_rtt_ns: HistogramWriter,
    hasher: PageHasher,
    retained: Retained,
    /// Reads channel 0, unless every byte is carried as it is.
    cutter: Option<Cutter>,
    channels: Vec<Channel>,
    /// Which channel gets the next turn.
    turn: usize,
    verify: bool,
    failed: bool,
    heir: Option<Heir>,
    /// What the control thread has to be told.
    news: VecDeque<Event>,
}

/// What a session has to tell at the most: each channel ends here and at the peer, three notes, and
/// a digest.
pub(super) const NEWS_MAX: usize = 2 * CHANNELS_MAX as usize + 4;

impl StreamSource {
    pub(crate) fn new(setup: StreamSourceSetup, pool: &PagePool) -> Result<Self, NoMemory> {
        let cutter = match setup.coding {
            StreamCoding::Passthrough => None,
            StreamCoding::Pages { level, window_log } => {
                let bases = (setup.base_pages, setup.before);
                let alone = Alone::told(setup.held_pages);
                let versions = Versions::new(pool, setup.pages_max, bases, alone)?;
                let level = LevelChooser::new(level);
                let window = match window_log {
                    0 => None,
                    log => Some(LongWindowEncoder::new(log.into(), level.levels())?),
                };
                Some(Cutter::new(versions, window, level)?)
            }
        };
        Ok(Self {
            session: setup.session,
            stats: setup.stats,
            frame_rtt_ns: setup.frame_rtt_ns,
            hasher: PageHasher::new(&setup.hash_key),
            retained: Retained::new(setup.undelivered_bytes_max, setup.backlog)?,
            cutter,
            channels: Vec::with_capacity(usize::from(CHANNELS_MAX)),
            turn: 0,
            verify: false,
            failed: false,
            heir: setup.heir,
            news: VecDeque::with_capacity(NEWS_MAX),
        })
    }

    /// Takes a channel's socket over. False when there is one already, or no such channel.
    pub(crate) fn add_channel(&mut self, id: ChannelId, pipe: PipeId) -> bool {
        let known = self.channels.iter().any(|channel| channel.id == id);
        if known || id.0 >= CHANNELS_MAX || self.failed {
            return false;
        }
        if id != FIRST
            && let Some(cutter) = &mut self.cutter
        {
            cutter.stop();
        }
        let (replies, digest) = (Replies::new(), ChannelDigest::new(&self.hasher));
        self.channels.push(Channel { id, pipe, ended: false, replies, digest });
        true
    }

    /// Answers with a digest as soon as all that the VMM wrote is sent.
    pub(crate) fn start_verify(&mut self) {
        self.verify = true;
    }

    /// True when a step would fill a frame if it had one.
    pub(crate) fn wants_frame(&self, pipes: &Pipes) -> bool {
        let open = self.open_channels();
        let may_send =
            |it: &Channel| self.has_input(it, pipes) && self.retained.room(it.id, open) > 0;
        !self.failed && (self.retained.wants_resend() || self.channels.iter().any(may_send))
    }

    fn has_input(&self, channel: &Channel, pipes: &Pipes) -> bool {
        let cut = channel.id == FIRST && self.cutter.as_ref().is_some_and(Cutter::has_input);
        !channel.ended && (cut || pipes.is_readable(channel.pipe))
    }

    /// A turn is over: `held` says that it ended since the link takes no more now. True when the
    /// VMM waits for that.
    pub(crate) fn note_turn(&mut self, pipes: &Pipes, held: bool, now: Nanos) -> bool {
        let waits = held && self.channels.iter().any(|channel| self.has_input(channel, pipes));
        if let Some(cutter) = &mut self.cutter {
            cutter.level.note_turn(now, waits);
            let level = u64::from(cutter.level.level().unsigned_abs());
            let spent = cutter.level.spent();
            self.stats.set(SessionCounter::ZstdLevel.index(), level);
            self.stats.set(SessionCounter::CodingNanos.index(), spent.coding.0);
            self.stats.set(SessionCounter::HeldNanos.index(), spent.held.0);
        }
        waits
    }

    /// A part with pages took so long to make.
    pub(crate) fn note_coding(&mut self, took: Nanos) {
        if let Some(cutter) = &mut self.cutter {
            cutter.level.note_coding(took);
        }
    }

    /// Fills `out` with the next frame's payload: what a dead stream lost first, then what is new.
    pub(crate) fn fill(
        &mut self,
        pipes: &mut Pipes,
        scratch: &mut Scratch,
        out: &mut [u8],
        now: Nanos,
    ) -> Step {
        if self.failed {
            return Step::Idle;
        }
        if let Some((name, part, payload_bytes)) = self.retained.resend(out) {
            self.stats.add(SessionCounter::FramesResent.index(), 1);
            return Step::Frame(Produced { name, part, payload_bytes });
        }
        let count = self.channels.len();
        for turn in 0..count {
            let index = (self.turn + turn) % count;
            match self.read_channel(index, pipes, scratch, out) {
                Filled::Part(kind, bytes, pages_bytes) => {
                    self.turn = (index + 1) % count;
                    let payload = &out[..bytes];
                    return Step::Frame(self.keep(index, kind, (payload, pages_bytes), now));
                }
                Filled::Again => return Step::Worked,
                Filled::Ended(end) => {
                    self.channel_ended(index, end);
                    return Step::Frame(self.keep(index, StreamKind::End, (&[], 0), now));
                }
                Filled::Nothing => {}
            }
        }
        Step::Idle
    }

    /// Reads the next part of a channel, if it may be sent.
    fn read_channel(
        &mut self,
        index: usize,
        pipes: &mut Pipes,
        scratch: &mut Scratch,
        out: &mut [u8],
    ) -> Filled {
        let Channel { id, pipe, ended, .. } = self.channels[index];
        let room = self.retained.room(id, self.open_channels());
        if room == 0 || ended {
            return Filled::Nothing;
        }
        let position = self.retained.next_position(id);
        match &mut self.cutter {
            Some(cutter) if id == FIRST && !cutter.is_done() => {
                let (hasher, stats) = (&self.hasher, &self.stats);
                let mut tools = Tools { pipes, pipe, scratch, hasher, stats, position };
                let filled = cutter.fill(&mut tools, &mut out[..room]);
                if let Some(note) = cutter.note() {
                    self.news.push_back(Event::Stream { session: self.session, note });
                }
                filled
            }
            _ => read_plain(pipes, pipe, &self.stats, &mut out[..room.min(OPAQUE_BYTES_MAX)]),
        }
    }

    /// The VMM ended a channel; its last part follows.
    fn channel_ended(&mut self, index: usize, end: ChannelEnd) {
        let channel = &mut self.channels[index];
        channel.ended = true;
        let (session, channel) = (self.session, channel.id);
        self.news.push_back(Event::ChannelEnded { session, channel, end });
    }

    /// Keeps a new part and counts it into the digest.
    fn keep(
        &mut self,
        index: usize,
        kind: StreamKind,
        (payload, pages_bytes): (&[u8], u64),
        now: Nanos,
    ) -> Produced {
        let channel = &mut self.channels[index];
        let (name, part) = self.retained.keep(channel.id, kind, payload, pages_bytes, now);
        channel.digest.add(part.position, kind, payload.len(), [payload]);
        self.stats.add(SessionCounter::Frames.index(), 1);
        self.stats.add(SessionCounter::CodedBytes.index(), payload.len() as u64);
        self.note_window();
        Produced { name, part, payload_bytes: payload.len() }
    }

    /// A bounded piece of everything but new frames. True when anything was done.
    pub(crate) fn work(&mut self, pipes: &mut Pipes) -> bool {
        if self.failed {
            return false;
        }
        let mut worked = false;
        for channel in &mut self.channels {
            worked |= channel.replies.write(pipes, Some(channel.pipe));
        }
        if self.verify && self.is_settled(pipes) {
            self.verify = false;
            let digests = self.channels.iter().map(|channel| (channel.id, &channel.digest));
            let (frames, digest) = digest_of(&self.hasher, digests);
            let session = self.session;
            self.news.push_back(Event::StreamDigest { session, frames, digest });
            worked = true;
        }
        worked
    }

    /// True when everything that the VMM wrote is sent, as far as the last read could tell.
    fn is_settled(&self, pipes: &Pipes) -> bool {
        let read = |channel: &Channel| channel.ended || !pipes.is_readable(channel.pipe);
        let ended = self.channels.iter().any(|channel| channel.id == FIRST && channel.ended);
        let cut = ended || self.cutter.as_ref().is_none_or(Cutter::is_empty);
        cut && !self.retained.wants_resend() && self.channels.iter().all(read)
    }

    /// The frame went to the link as a record of `wire_bytes`.
    pub(crate) fn posted(&mut self, wire_bytes: usize) {
        self.stats.add(SessionCounter::WireBytes.index(), wire_bytes as u64);
    }

    /// The sink holds the part.
    pub(crate) fn acked(&mut self, name: u32) {
        self.retained.acked(name);
    }

    /// The part's stream died, or never took it.
    pub(crate) fn lost(&mut self, name: u32) {
        self.retained.lost(name);
    }

    /// The sink's VMM took every part of the channel through `position`.
    pub(crate) fn delivered(
        &mut self,
        channel: ChannelId,
        position: Position,
        now: Nanos,
    ) -> Result<(), NeverSent> {
        let bytes = self.retained.delivered(channel, position, now)?;
        self.stats.add(SessionCounter::DeliveredBytes.index(), bytes);
        self.note_window();
        Ok(())
    }

    /// The sink told of pages that it alone holds.
    pub(crate) fn told(&mut self, chunk: u32, hashes: &HeldHashes<'_>) -> Result<(), BeyondTerms> {
        let cutter = self.cutter.as_mut().ok_or(BeyondTerms)?;
        cutter.told(chunk, hashes)?;
        self.stats.add(SessionCounter::ToldBytes.index(), hashes.frame_bytes());
        Ok(())
    }

    /// Takes what the link's streams say of the path.
    pub(crate) fn set_path(&mut self, path: PathReport) {
        self.retained.set_path(path);
    }

    fn note_window(&mut self) {
        let undelivered = self.retained.undelivered_bytes();
        let window = self.retained.window();
        let stats = &mut self.stats;
        stats.set(SessionCounter::UndeliveredBytes.index(), undelivered);
        stats.set(SessionCounter::BacklogBytes.index(), window.backlog_bytes(undelivered));
        let rate = self.retained.rate_bytes_per_second();
        stats.set(SessionCounter::DeliveryRate.index(), rate);
        stats.set(SessionCounter::RttMinNanos.index(), window.rtt_min().map_or(0, |rtt| rtt.0));
    }

    /// The sink's VMM answered, or ended its side.
    pub(crate) fn reply(
        &mut self,
        pipes: &mut Pipes,
        id: ChannelId,
        offset: u64,
        payload: &[u8],
    ) -> Result<(), OutOfPlace> {
        let Some(channel) = self.channels.iter_mut().find(|channel| channel.id == id) else {
            // A reply to a channel that is not here yet: the sink asks again when a stream dies,
            // and control opens channels at the source first.
            return Ok(());
        };
        if !channel.replies.take(offset, payload)? {
            return Ok(());
        }
        self.stats.add(SessionCounter::ReplyBytes.index(), payload.len() as u64);
        if channel.replies.has_ended() {
            pipes.end_writing(channel.pipe);
            let end = ChannelEnd::Peer;
            self.news.push_back(Event::ChannelEnded { session: self.session, channel: id, end });
        } else {
            channel.replies.write(pipes, Some(channel.pipe));
        }
        Ok(())
    }

    /// The next small frame that has to be sent.
    pub(crate) fn next_due(&mut self) -> Option<Frame<'static>> {
        let session = self.session.number;
        self.channels.iter_mut().find_map(|channel| {
            let offset = channel.replies.next_due()?;
            Some(Frame::ReplyAck { session, channel: channel.id, offset })
        })
    }

    /// True when a small frame has to be sent.
    pub(crate) fn is_due(&self) -> bool {
        self.channels.iter().any(|channel| channel.replies.is_due())
    }

    /// What the control thread has to be told, taken out.
    pub(crate) fn news(&mut self) -> Option<Event> {
        self.news.pop_front()
    }

    /// Ends all work and closes the VMM's sockets. False when the session had failed before.
    pub(crate) fn fail(&mut self, pipes: &mut Pipes) -> bool {
        self.channels.iter().for_each(|channel| pipes.close(channel.pipe));
        self.channels.clear();
        !std::mem::replace(&mut self.failed, true)
    }

    /// The session is over: gives what it leaves to who waits for it.
    pub(crate) fn leave(self) {
        if let (Some(heir), Some(cutter)) = (self.heir, self.cutter) {
            // Nobody waits for what a session leaves that came to nothing.
            let _ = heir.try_send(cutter.leave(self.hasher));
        }
    }

    fn open_channels(&self) -> usize {
        self.channels.iter().filter(|channel| !channel.ended).count()
    }
}

/// Reads bytes that are carried as they are.
fn read_plain(pipes: &mut Pipes, pipe: PipeId, stats: &SessionStats, out: &mut [u8]) -> Filled {
    match pipes.read(pipe, out) {
        Moved::Bytes(bytes) => {
            stats.add(SessionCounter::VmmInBytes.index(), bytes as u64);
            stats.add(SessionCounter::OpaqueBytes.index(), bytes as u64);
            Filled::Part(StreamKind::Opaque, bytes, 0)
        }
        Moved::Later => Filled::Nothing,
        Moved::Ended => Filled::Ended(ChannelEnd::Closed),
        Moved::Failed(errno) => Filled::Ended(ChannelEnd::Socket { errno }),
    }
}
