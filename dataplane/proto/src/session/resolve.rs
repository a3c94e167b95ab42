//! The operator's decision about a session in doubt, and how it can turn out wrong.
//!
//! Plain values, in requests, records and peer messages.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The end that an operator lets run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunAt {
    /// The source goes on; the sink never will.
    Source,
    /// The sink goes on; the source never will.
    Sink,
}

impl RunAt {
    /// The word for people, requests and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Sink => "sink",
        }
    }
}

impl fmt::Display for RunAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What both ends' records together mean when an operator's decision contradicts the other end's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Conflict {
    /// Each end has the right to run.
    BothRun,
    /// Neither end has it.
    NoneRuns,
}

impl Conflict {
    /// The word for people and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::BothRun => "both_run",
            Self::NoneRuns => "none_runs",
        }
    }
}
