//! What a session writes to the journal, each before the next step is taken.
//!
//! Plain values; the driver adds what it needs to find peer and region again.

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
}

/// The sink's records of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case", deny_unknown_fields)]
pub enum SinkRecord {
    /// The region is the sink's.
    Committed,
    /// The session will never be committed here.
    Aborted,
}
