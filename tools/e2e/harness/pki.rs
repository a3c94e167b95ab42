//! Fresh certificates for each test, made by the binary itself.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A certificate authority in a folder.
#[derive(Debug)]
pub(crate) struct Pki {
    folder: PathBuf,
}

impl Pki {
    /// Makes one.
    pub(crate) fn init(folder: PathBuf) -> Self {
        let this = Self { folder };
        this.run(&["init"], &[]);
        this
    }

    /// Makes a host's certificate; returns the folder for its `--pki`.
    pub(crate) fn host(&self, name: &str) -> PathBuf {
        self.run(&["host", name], &[]);
        self.folder.join(name)
    }

    /// Makes a host's certificate that ended long ago.
    pub(crate) fn expired_host(&self, name: &str) -> PathBuf {
        self.run(&["host", name], &["--not-after", "1000000000"]);
        self.folder.join(name)
    }

    /// Revokes a host and tells another host of it.
    pub(crate) fn revoke(&self, name: &str, told: &Path) {
        self.run(&["revoke", name], &[]);
        let list = self.folder.join("revoked.pem");
        std::fs::copy(list, told.join("revoked.pem")).expect("the list is copied");
    }

    fn run(&self, action: &[&str], flags: &[&str]) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dwcp"));
        command.arg("pki").args(action).arg(&self.folder).args(flags);
        let output = command.output().expect("the binary runs");
        assert!(output.status.success(), "{command:?}: {output:?}");
    }
}
