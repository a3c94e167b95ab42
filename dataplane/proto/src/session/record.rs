//! What a session writes to the journal, each before the next step is taken.
//!
//! Plain values; the driver adds what it needs to find peer and region again.

use super::resolve::RunAt;
use crate::wire::token::JournalId;
use serde::{Deserialize, Serialize};

/// The source's records of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case", deny_unknown_fields)]
pub enum SourceRecord {
    /// The region is given up for the sink with this journal.
    Yielded {
        /// The sink's journal, which alone can tell the outcome.
        sink_journal: JournalId,
    },
    /// The sink committed: the region is gone for good.
    Done,
    /// The sink never will commit: the region is the source's again.
    Kept,
    /// An operator ended the doubt; the sink has not answered to that yet.
    Resolved {
        /// The sink's journal.
        sink_journal: JournalId,
        /// Who runs.
        run: RunAt,
    },
    /// An operator ended the doubt, and the sink has answered.
    ResolvedTold {
        /// Who runs.
        run: RunAt,
    },
}

/// The sink's records of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case", deny_unknown_fields)]
pub enum SinkRecord {
    /// The region is the sink's.
    Committed,
    /// The session will never be committed here.
    Aborted,
    /// An operator ended the doubt.
    Resolved {
        /// Who runs.
        run: RunAt,
    },
}

impl SourceRecord {
    /// True when it says that the source owns the region.
    #[must_use]
    pub const fn keeps(self) -> bool {
        matches!(
            self,
            Self::Kept
                | Self::Resolved { run: RunAt::Source, .. }
                | Self::ResolvedTold { run: RunAt::Source }
        )
    }

    /// True when it says that the source gave the region up for good.
    #[must_use]
    pub const fn gone(self) -> bool {
        matches!(
            self,
            Self::Done
                | Self::Resolved { run: RunAt::Sink, .. }
                | Self::ResolvedTold { run: RunAt::Sink }
        )
    }
}

impl SinkRecord {
    /// True when it says that the sink owns the region.
    #[must_use]
    pub const fn owns(self) -> bool {
        matches!(self, Self::Committed | Self::Resolved { run: RunAt::Sink })
    }
}
