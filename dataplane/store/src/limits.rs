//! The bounds of a store: what its owner chooses, and the sizes that are fixed.
//!
//! Plain values, used by all modules of this crate.

use std::time::Duration;

/// What a store may take, as its owner chose it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreLimits {
    /// Bytes of all files in the directory. The file of a writer that is open comes on top until
    /// it lands, and is never longer than this either.
    pub bytes_max: u64,
    /// Pages of all segments, each of which takes [`INDEX_BYTES_PER_PAGE`] of memory.
    pub pages_max: u64,
    /// How long a segment is kept after it was of use last.
    pub ttl: Duration,
}

/// Memory that the index takes for each page, rounded up: 16 of its hash, 4 of its position, and
/// 8 of its block's offset, which 16 pages share.
pub const INDEX_BYTES_PER_PAGE: usize = 21;

/// Memory that a writer takes at most for each page until it lands: 32 for a list of hashes that
/// may be half empty, at most 11 for the table that finds repeated pages; at its end 16 and 21.
pub const WRITER_BYTES_PER_PAGE: usize = 43;

/// Bytes of a segment's name. Its length is one byte on disk.
pub const NAME_BYTES_MAX: usize = 255;
/// Bytes of what its owner notes of a segment.
pub const NOTE_BYTES_MAX: usize = 255;

/// Pages that one segment may have: 16 TiB. A position is a `u32`, and the highest one means
/// "none".
pub const SEGMENT_PAGES_MAX: u32 = u32::MAX - 1;

/// Decoded blocks that are kept, 1 MiB. Pages are asked for in the order of the guest's memory,
/// by several streams at once: each of them comes back to its block for up to 16 pages.
pub const BLOCKS_KEPT: usize = 16;

/// Faults that are kept until somebody takes them; later ones only move counters.
pub const FAULTS_KEPT: usize = 64;
