//! The border between the control thread and a shard: commands in, events out, over bounded rings.
//!
//! Commands that set something up carry what the shard will own (a socket, a region, keys) in a
//! box; all others are small `Copy`-like values. The shard never allocates for an event, and an
//! accepted session reserves the room of its final event, so that "finished" can't be lost.

mod stream;

pub use crate::attach::stream::store::{STORE_PAGE_BYTES, STORE_SLOT_BYTES};
pub use crate::attach::stream::{
    Before, BeforeError, Heir, HeldChunk, PagesLeft, StreamSizes, stream_sink_bytes,
    stream_source_bytes,
};
pub use crate::level::Level;
use crate::stats::{SessionStats, ShardStatsReader, StreamStats};
pub use dwcp_codec::{Coding, Digest, HashKey, Page, PageHash, PageHasher};
use dwcp_ffi::counters::{HistogramReader, HistogramWriter};
use dwcp_ffi::dirty::DirtyBitmap;
use dwcp_ffi::poll::Waker;
use dwcp_ffi::region::Region;
use dwcp_ffi::spsc::{Consumer, Full, Producer};
pub use dwcp_proto::ids::ChannelId;
use dwcp_proto::ids::{LaneId, LinkId, Round, Sequence, SessionKey, StreamId};
use dwcp_proto::time::Nanos;
use dwcp_proto::tuner::Decision;
use dwcp_proto::wire::record::StreamKeys;
pub use dwcp_proto::wire::record::StreamPlace;
use std::os::fd::OwnedFd;
use std::sync::Arc;
pub use stream::{ChannelSetup, StreamCoding, StreamSinkSetup, StreamSourceSetup};

/// What the control thread orders.
#[derive(Debug)]
pub enum Command {
    /// Make the shard's part of a link. Streams follow.
    AddLane(Box<LaneSetup>),
    /// Take over a connected socket as a stream of a lane.
    AddStream {
        /// What the transport takes over.
        setup: Box<StreamSetup>,
        /// Round trips of the frames on it, in nanoseconds, which the shard measures.
        frame_rtt_ns: HistogramWriter,
    },
    /// Close all streams of the link and fail its sessions.
    DropLink {
        /// The link to drop.
        link: LinkId,
    },
    /// Close all streams of the link and keep its lane: its sessions wait for other streams.
    CutStreams {
        /// The link.
        link: LinkId,
    },
    /// Take a region as the source of a session.
    OpenSource(Box<SourceSetup>),
    /// Take a region as the sink of a session.
    OpenSink(Box<SinkSetup>),
    /// Carry a VMM's migration stream as the source of a session.
    OpenStreamSource(Box<StreamSourceSetup>),
    /// Carry a VMM's migration stream as the sink of a session.
    OpenStreamSink(Box<StreamSinkSetup>),
    /// Take over a VMM's socket as a channel of a stream session: the sink's frames wait for it.
    AddChannel(Box<ChannelSetup>),
    /// Sink of a stream session: take over pages that this end alone holds, and tell the source.
    AddHeld {
        /// The session.
        session: SessionKey,
        /// The pages.
        chunk: Box<HeldChunk>,
    },
    /// Send what the dirty-page source says has changed (all pages in round 1).
    StartRound {
        /// The session.
        session: SessionKey,
        /// The round's number.
        round: Round,
        /// Nothing may be left for another.
        last: bool,
    },
    /// Source of a region, after the last round: have the sink prove that it holds all pages.
    /// Stream sessions: send [`Event::StreamDigest`] once all is sent, or handed to the VMM here.
    Verify {
        /// The session.
        session: SessionKey,
    },
    /// Forget a session and give its memory back. Answered by [`Event::Closed`].
    CloseSession {
        /// The session.
        session: SessionKey,
    },
    /// Test switch: break an invariant of the shard on purpose.
    BreakInvariant,
    /// End the shard's loop after draining the link.
    Stop,
}

/// The shard's part of a link.
#[derive(Debug)]
pub struct LaneSetup {
    /// The link.
    pub link: LinkId,
    /// The lane that this shard owns.
    pub lane: LaneId,
    /// The most bytes in flight on this lane.
    pub window_bytes_max: u64,
    /// The most streams of it.
    pub streams_max: u16,
    /// Which of its streams carry pages.
    pub spread: Spread,
    /// A stream too many that nothing was sent on for so long is retired; None if the peer does not
    /// know how.
    pub retire_after: Option<Nanos>,
}

/// The usual time: trials of more streams go to and fro in less.
pub const RETIRE_AFTER: Nanos = Nanos(20 * Nanos::SECOND.0);

/// Which streams of a lane carry pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// All of them.
    All,
    /// As many as are found to be worth it ([`dwcp_proto::tuner`]); the others are spare.
    AsNeeded,
}

/// A connected socket that becomes a stream.
#[derive(Debug)]
pub struct StreamSetup {
    /// The link.
    pub link: LinkId,
    /// What the records on it say of themselves.
    pub place: StreamPlace,
    /// The connected socket, past its preface.
    pub socket: OwnedFd,
    /// The keys of both directions.
    pub keys: StreamKeys,
    /// Where the shard counts.
    pub stats: StreamStats,
}

/// Where a source session learns which pages changed.
#[derive(Clone, Debug)]
pub enum DirtyPages {
    /// The owner of the region sets bits before each round; the shard takes and clears them.
    Bitmap(Arc<DirtyBitmap>),
    /// Every page is read and compared by hash in each round.
    Compare,
}

/// A region as the source of a session. Lane `lane` of `lane_count` takes every extent
/// whose number modulo `lane_count` is `lane`.
#[derive(Debug)]
pub struct SourceSetup {
    /// The session.
    pub session: SessionKey,
    /// The memory.
    pub region: Arc<Region>,
    /// How changed pages are found.
    pub dirty: DirtyPages,
    /// The lane that this shard serves.
    pub lane: LaneId,
    /// How many lanes share the session.
    pub lane_count: u16,
    /// How many page versions this lane may keep as bases.
    pub base_pages_max: usize,
    /// Key of the page hash, the same at both ends.
    pub hash_key: HashKey,
    /// How pages are coded.
    pub coding: Coding,
    /// Also code each page by plain zstd-1 and count the bytes: costs time, for comparisons.
    pub measure_baseline: bool,
    /// Where the shard counts.
    pub stats: SessionStats,
    /// Round trips of the session's frames, in nanoseconds.
    pub frame_rtt_ns: HistogramWriter,
}

/// A region as the sink of a session.
#[derive(Debug)]
pub struct SinkSetup {
    /// The session.
    pub session: SessionKey,
    /// The memory.
    pub region: Arc<Region>,
    /// The lane that this shard serves.
    pub lane: LaneId,
    /// How many lanes share the session.
    pub lane_count: u16,
    /// Key of the page hash, the same at both ends.
    pub hash_key: HashKey,
    /// Where the shard counts.
    pub stats: SessionStats,
}

/// What the source learnt from the migration stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamNote {
    /// The guest's RAM blocks are known: their bytes in all.
    RamBytes(u64),
    /// The RAM section has ended; what follows is device state.
    RamEnded,
    /// From here on every byte is carried as it is, for this reason (a stable code).
    Opaque(&'static str),
}

/// How a channel's local socket ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChannelEnd {
    /// The VMM closed it.
    #[error("the VMM closed its migration socket")]
    Closed,
    /// The socket failed.
    #[error("the VMM's migration socket failed with errno {errno}")]
    Socket {
        /// The kernel's error number.
        errno: i32,
    },
    /// Sink: the VMM closed its socket and there is more for it that it never took.
    #[error("the VMM closed its migration socket before it took everything")]
    Broken,
    /// The VMM at the other end closed or broke its socket.
    #[error("the VMM at the peer ended its migration socket")]
    Peer,
}

/// What a round did on one lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundStats {
    /// Pages that the source of dirty pages named.
    pub pages: u64,
    /// Pages that were sent.
    pub pages_sent: u64,
    /// Sealed bytes of the round's frames.
    pub wire_bytes: u64,
    /// From the command to the last acknowledgement.
    pub nanos: u64,
}

/// What a shard reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A stream proved its keys: its first record was opened.
    StreamUp {
        /// The link.
        link: LinkId,
        /// The stream.
        stream: StreamId,
    },
    /// A stream ended. When it was the lane's last one, its sessions wait until the link is dropped
    /// or has a stream again.
    StreamDown {
        /// The link.
        link: LinkId,
        /// The stream.
        stream: StreamId,
        /// Why.
        cause: StreamEnd,
    },
    /// How many streams of the lane shall carry pages has changed, or why.
    Streams {
        /// The link.
        link: LinkId,
        /// So many, and why.
        decision: Decision,
        /// How many there shall be.
        open: u16,
    },
    /// The session's memory is reserved and its region attached.
    Opened {
        /// The session.
        session: SessionKey,
    },
    /// Source: every page of the round is acknowledged by the sink.
    RoundDone {
        /// The session.
        session: SessionKey,
        /// The round.
        round: Round,
        /// What it did.
        stats: RoundStats,
    },
    /// The sink's pages of this lane match the source's (at the source: the sink said so;
    /// at the sink: it was checked here).
    Verified {
        /// The session.
        session: SessionKey,
    },
    /// Source of a stream session: something about the stream became known.
    Stream {
        /// The session.
        session: SessionKey,
        /// What.
        note: StreamNote,
    },
    /// A channel of a stream session ended; the session itself goes on until it is closed.
    ChannelEnded {
        /// The session.
        session: SessionKey,
        /// The channel.
        channel: ChannelId,
        /// How.
        end: ChannelEnd,
    },
    /// The answer to [`Command::Verify`] of a stream session: equal at both ends exactly when the
    /// sink handed to its VMM all that the source took from its own.
    StreamDigest {
        /// The session.
        session: SessionKey,
        /// How many frames it covers.
        frames: u64,
        /// Digest over all frames of all channels, in order.
        digest: [u8; 16],
    },
    /// The session can't go on on this lane.
    Failed {
        /// The session.
        session: SessionKey,
        /// Why.
        cause: SessionEnd,
    },
    /// The session's memory is free again.
    Closed {
        /// The session.
        session: SessionKey,
    },
    /// The shard's loop ended.
    Stopped,
}

/// Why a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamEnd {
    /// The peer closed the connection.
    #[error("the peer closed the stream")]
    ClosedByPeer,
    /// The socket failed.
    #[error("the socket failed with errno {errno}")]
    Socket {
        /// The kernel's error number.
        errno: i32,
    },
    /// The peer sent something that the protocol forbids.
    #[error("the peer broke the protocol ({code})")]
    Protocol {
        /// The stable code of the violation.
        code: &'static str,
    },
    /// The source needed it no more.
    #[error("the stream was not needed any more")]
    Retired,
    /// The link was dropped here.
    #[error("the link was dropped")]
    Dropped,
    /// The shard's stream table or its memory is used up.
    #[error("the shard has no room for another stream")]
    NoRoom,
}

impl StreamEnd {
    /// The word under which it is counted.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::ClosedByPeer => "closed_by_peer",
            Self::Socket { .. } => "socket",
            Self::Protocol { code } => code,
            Self::Retired => "retired",
            Self::Dropped => "dropped",
            Self::NoRoom => "no_room",
        }
    }
}

/// Why a session can't go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionEnd {
    /// The link was dropped, and the last stream of the lane ended.
    #[error("the link was lost: {0}")]
    LinkLost(StreamEnd),
    /// A page at the sink differs from the source's after the last round.
    #[error("a page differs at the sink after the last round")]
    PageMismatch,
    /// The peer ended the session.
    #[error("the peer ended the session (code {code})")]
    Peer {
        /// The peer's code.
        code: u16,
    },
    /// The peer sent a frame that is not allowed now or names pages outside the region.
    #[error("the peer broke the session's protocol ({code}) at frame {sequence}")]
    Protocol {
        /// The stable code of the violation.
        code: &'static str,
        /// The frame.
        sequence: Sequence,
    },
    /// No room for another session on this shard.
    #[error("the shard has no room for another session, or no lane of its link")]
    TableFull,
    /// The memory for tables and bases can't be had.
    #[error("the session's memory can't be had")]
    NoMemory,
}

/// The control thread's side of a shard.
#[derive(Debug)]
pub struct ShardPort {
    /// Orders.
    pub commands: Producer<Command>,
    /// Reports.
    pub events: Consumer<Event>,
    /// Wakes the shard when it sleeps in the kernel.
    pub wake_shard: Waker,
    /// The shard's counters.
    pub stats: ShardStatsReader,
    /// Time per coded extent, in nanoseconds.
    pub encode_ns: HistogramReader,
}

impl ShardPort {
    /// Hands a command over and wakes the shard.
    ///
    /// # Errors
    /// The ring is full: the command comes back.
    pub fn send(&mut self, command: Command) -> Result<(), Full<Command>> {
        self.commands.push(command)?;
        self.wake_shard.wake();
        Ok(())
    }
}
