//! The zstd level that a session asks for.
//!
//! A plain value: made by the control thread, read by the shard.

use dwcp_codec::policy::ZSTD_LEVEL_MIN;

/// The zstd level of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// As strong as the link leaves the core time for.
    Auto,
    /// This one.
    Fixed(i32),
}

impl Level {
    /// The level, or the lowest where none is chosen by measurement.
    #[must_use]
    pub const fn or_lowest(self) -> i32 {
        match self {
            Self::Auto => ZSTD_LEVEL_MIN,
            Self::Fixed(level) => level,
        }
    }
}
