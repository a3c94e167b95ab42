//! One check's outcome.
//!
//! Data.

use serde::Serialize;

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    /// As it should be.
    Ok,
    /// dwcp runs, less well.
    Warn,
    /// dwcp doesn't run.
    Fail,
}

/// What a check found, and what to change.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) status: Status,
    pub(super) found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cure: Option<String>,
}

impl Check {
    /// All is well.
    pub(super) fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, found: found.into(), cure: None }
    }

    /// Something could be better.
    pub(super) fn warn(
        name: &'static str,
        found: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self { name, status: Status::Warn, found: found.into(), cure: Some(cure.into()) }
    }

    /// Something must change.
    pub(super) fn fail(
        name: &'static str,
        found: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self { name, status: Status::Fail, found: found.into(), cure: Some(cure.into()) }
    }
}

/// A short file of the kernel, without the blanks around its text.
pub(super) fn kernel_file(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}
