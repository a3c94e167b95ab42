//! A folder for one step, removed at its end.

use crate::error::TaskError;
use std::path::PathBuf;

/// Lies under the system's folder for temporary files, whose short name leaves room for the names
/// of Unix sockets (at most 107 bytes).
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// Makes an empty folder.
    pub(crate) fn new(step: &str) -> Result<Self, TaskError> {
        let path = std::env::temp_dir().join(format!("dwcp-{step}-{}", std::process::id()));
        std::fs::create_dir_all(&path)
            .map_err(|source| TaskError::File { path: path.clone(), source })?;
        Ok(Self(path))
    }

    /// A name inside of it.
    pub(crate) fn join(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What can't be removed is left to the system, which clears this folder by itself.
        drop(std::fs::remove_dir_all(&self.0));
    }
}
