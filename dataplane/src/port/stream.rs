//! What a stream session and its channels are opened with.
//!
//! Plain values, made on the control thread; the shard owns what they carry.

use super::{Before, ChannelId, HashKey, Heir, Level};
use crate::stats::SessionStats;
use dwcp_ffi::counters::HistogramWriter;
use dwcp_proto::ids::{LaneId, SessionKey};
use dwcp_proto::time::Nanos;
use std::os::fd::OwnedFd;

/// How the bytes of a migration stream are carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamCoding {
    /// The stream is read, its pages are coded.
    Pages {
        /// How hard pages are compressed.
        level: Level,
        /// The binary logarithm of the long zstd window, 0 for none; the same at both ends.
        window_log: u8,
    },
    /// Every byte as it is.
    Passthrough,
}

/// A VMM's migration stream as the source of a session. It is served by one lane alone.
#[derive(Debug)]
pub struct StreamSourceSetup {
    /// The session.
    pub session: SessionKey,
    /// The lane that serves it.
    pub lane: LaneId,
    /// How.
    pub coding: StreamCoding,
    /// The most guest pages that the session's table holds; what lies beyond is sent without base.
    pub pages_max: u64,
    /// How many page versions both ends keep as bases; agreed between them.
    pub base_pages: u64,
    /// The most coded bytes that are sent and not yet handed to the VMM at the sink; agreed.
    pub undelivered_bytes_max: u64,
    /// How much of that there may be beyond one bandwidth-delay product, as time at the current
    /// rate: it is part of the guest's downtime.
    pub backlog: Nanos,
    /// Key of the page hash, the same at both ends.
    pub hash_key: HashKey,
    /// What both ends hold from an earlier session, under the same key.
    pub before: Option<Box<Before>>,
    /// The most pages that the sink may tell of that it alone holds; agreed. Not beside `before`.
    pub held_pages: u64,
    /// Who is given what the session leaves.
    pub heir: Option<Heir>,
    /// Where the shard counts.
    pub stats: SessionStats,
    /// Round trips of the session's frames, in nanoseconds.
    pub frame_rtt_ns: HistogramWriter,
}

/// A VMM's migration stream as the sink of a session.
#[derive(Debug)]
pub struct StreamSinkSetup {
    /// The session.
    pub session: SessionKey,
    /// The lane that serves it.
    pub lane: LaneId,
    /// As at the source.
    pub window_log: u8,
    /// As at the source.
    pub pages_max: u64,
    /// As at the source.
    pub base_pages: u64,
    /// As at the source.
    pub undelivered_bytes_max: u64,
    /// Key of the page hash, the same at both ends.
    pub hash_key: HashKey,
    /// As at the source.
    pub before: Option<Box<Before>>,
    /// As at the source.
    pub held_pages: u64,
    /// As at the source.
    pub heir: Option<Heir>,
    /// Where the shard counts.
    pub stats: SessionStats,
}

/// A connected local socket that becomes a channel.
#[derive(Debug)]
pub struct ChannelSetup {
    /// The session.
    pub session: SessionKey,
    /// The channel's number, the same at both ends.
    pub channel: ChannelId,
    /// The connected socket. Closed when the session closes or fails.
    pub socket: OwnedFd,
}
