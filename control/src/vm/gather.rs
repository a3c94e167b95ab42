//! Gathers the facts.
use super::error::{QmpError, VmError};
use super::facts::VmFacts;
use std::path::Path;

/// Facts.
pub(super) async fn facts(qmp: &Path) -> Result<VmFacts, VmError> {
    Err(QmpError::Missing { path: qmp.to_path_buf() }.into())
}
