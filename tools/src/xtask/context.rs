//! What every step knows: where the repository is and which tools this machine has.

use crate::error::TaskError;
use crate::tally::Tally;
use std::path::PathBuf;

/// Made once by `main`, filled by the set-up, read by the steps.
#[derive(Debug)]
pub(crate) struct Context {
    /// The root of the repository.
    pub(crate) root: PathBuf,
    /// Run everything, not only what fits CI's time.
    pub(crate) full: bool,
    /// How long each fuzzer runs.
    pub(crate) fuzz_seconds: u32,
    /// The checker of metrics pages, if there is one.
    pub(crate) promtool: Option<PathBuf>,
    /// True if instructions can be counted.
    pub(crate) has_valgrind: bool,
    /// True if what is missing could have been installed: then its lack is a failure.
    pub(crate) is_root: bool,
    /// Tests that ran so far.
    pub(crate) tally: Tally,
}

impl Context {
    /// Finds the workspace from the current folder upwards.
    pub(crate) fn find() -> Result<Self, TaskError> {
        let here = std::env::current_dir()
            .map_err(|source| TaskError::File { path: PathBuf::from("."), source })?;
        let is_root = |folder: &&std::path::Path| folder.join("tools/src/xtask/main.rs").is_file();
        let root = here.ancestors().find(is_root).ok_or(TaskError::NoWorkspace)?;
        Ok(Self {
            root: root.to_owned(),
            full: false,
            fuzz_seconds: 0,
            promtool: None,
            has_valgrind: false,
            is_root: false,
            tally: Tally::default(),
        })
    }
}
