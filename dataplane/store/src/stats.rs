//! What a store holds and what became of it: gauges and counters since it was opened.
//!
//! Plain values.

/// What a store holds and what became of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Segments in the index.
    pub segments: u64,
    /// Pages of all segments; a page that two of them hold counts twice.
    pub pages: u64,
    /// Bytes of the segments' files.
    pub bytes: u64,
    /// Bytes of files that are not used but take room: of a newer format, unreadable, stuck.
    pub left_alone_bytes: u64,
    /// Reads that gave a page.
    pub hits: u64,
    /// Reads that did not, whatever the reason.
    pub misses: u64,
    /// Blocks that were read and decoded for these: one for 16 pages that are asked for in order.
    pub blocks_read: u64,
    /// Segments landed.
    pub landed: u64,
    /// Segments that made room for one of the same name.
    pub replaced: u64,
    /// Segments that made room for others, because they were of use longest ago.
    pub evicted: u64,
    /// Segments that were of no use for too long.
    pub expired: u64,
    /// Segments removed by name, by domain or with all others.
    pub purged: u64,
    /// Segments that turned out to be damaged when a page was read.
    pub damaged: u64,
    /// Segments whose file was gone when a page was read.
    pub gone: u64,
    /// Segments whose file could not be read.
    pub unreadable: u64,
    /// Files that could not be removed.
    pub stuck: u64,
    /// Times of last use that could not be written down: they are forgotten at the next opening.
    pub untimed: u64,
}
