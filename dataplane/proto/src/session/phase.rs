//! The phases of a session, one straight list for each end.
//!
//! Plain values for the machines of [`super`] and for display.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Where a session is at the source. It goes down the list; failures lead to the last ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourcePhase {
    /// The sink was asked, or the lanes are opening.
    Opening,
    /// Rounds run while the region is written to.
    #[serde(rename = "precopy")]
    PreCopy,
    /// The round in the pause runs.
    LastRound,
    /// The sink proves that it holds every page; then the journal is written.
    Verifying,
    /// The source durably gave the region up and told the sink.
    Yielded,
    /// The sink owns the region. The end.
    Committed,
    /// The session failed; the source owns the region. An end.
    Failed,
    /// A client ended the session; the source owns the region. An end.
    Aborted,
    /// The source gave the region up and does not know whether the sink took it. It asks until it
    /// knows.
    InDoubt,
}

/// Where a session is at the sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SinkPhase {
    /// The lanes are opening.
    Opening,
    /// Pages arrive.
    Receiving,
    /// Every lane's memory was read back and matches.
    Verified,
    /// The sink durably owns the region. The end.
    Committed,
    /// The session failed; the sink does not own the region. An end.
    Failed,
    /// A client or the source ended it; the sink does not own the region. An end.
    Aborted,
    /// The commit could not be written for sure: only a restart, which reads the journal, can tell.
    InDoubt,
}

impl SourcePhase {
    /// The phase's name in the control API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::PreCopy => "precopy",
            Self::LastRound => "last_round",
            Self::Verifying => "verifying",
            Self::Yielded => "yielded",
            Self::Committed => "committed",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
            Self::InDoubt => "in_doubt",
        }
    }

    /// True for the phases that nothing follows.
    #[must_use]
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Committed | Self::Failed | Self::Aborted)
    }

    /// True when the source surely owns the region.
    #[must_use]
    pub const fn owns_region(self) -> bool {
        !matches!(self, Self::Yielded | Self::Committed | Self::InDoubt)
    }
}

impl SinkPhase {
    /// The phase's name in the control API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Receiving => "receiving",
            Self::Verified => "verified",
            Self::Committed => "committed",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
            Self::InDoubt => "in_doubt",
        }
    }

    /// True for the phases that nothing follows.
    #[must_use]
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Committed | Self::Failed | Self::Aborted)
    }

    /// True when the sink surely owns the region.
    #[must_use]
    pub const fn owns_region(self) -> bool {
        matches!(self, Self::Committed)
    }
}

impl fmt::Display for SourcePhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for SinkPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
