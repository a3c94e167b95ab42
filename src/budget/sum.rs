//! The sum of what the daemon takes at start, written out as people check it.
//!
//! Data and its text.

use crate::settings::value::show_bytes;
use std::fmt;

/// What is taken before any session opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemorySum {
    pub(super) shards: u64,
    pub(super) arena_bytes: u64,
    pub(super) links: u64,
    pub(super) window_bytes: u64,
    pub(super) control_bytes: u64,
}

impl MemorySum {
    /// All of it.
    pub(super) const fn total(&self) -> u64 {
        self.shards * self.arena_bytes + self.links * self.window_bytes + self.control_bytes
    }
}

impl fmt::Display for MemorySum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} x {} arena + {} x {} window + {} control = {}",
            counted(self.shards, "shard"),
            show_bytes(self.arena_bytes),
            counted(self.links, "link"),
            show_bytes(self.window_bytes),
            show_bytes(self.control_bytes),
            show_bytes(self.total()),
        )
    }
}

/// "1 shard", "4 shards".
pub(super) fn counted(count: u64, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}
