//! Compares the facts of both ends before a guest moves: what doesn't fit, and what to do about it.
//!
//! Pure; the core runs it where both facts are known, before byte one.

use super::facts::VmFacts;
use serde::{Deserialize, Serialize};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Severity {
    /// The guest can move; the user should know.
    Warning,
    /// The guest can't move like this.
    Error,
}

/// One thing that doesn't fit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Finding {
    /// Its stable name.
    pub(crate) code: String,
    /// How bad it is.
    pub(crate) severity: Severity,
    /// What was found, with both values.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) cure: String,
}

/// Compares both ends. Errors come first.
pub(crate) fn preflight(source: &VmFacts, sink: &VmFacts) -> Vec<Finding> {
    let _ = (source, sink);
    Vec::new()
}
