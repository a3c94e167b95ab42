//! Why the rules could not be checked at all; a broken rule is a `Violation` instead.

use std::path::PathBuf;

/// The tree or cargo could not be read.
#[derive(Debug, thiserror::Error)]
pub enum TidyError {
    /// A folder or file of the tree is not readable.
    #[error("cannot read {path}: {source}")]
    Read {
        /// What was read.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Cargo could not be started.
    #[error("cannot start cargo: {source}")]
    Cargo {
        /// What the kernel said.
        source: std::io::Error,
    },
    /// `cargo metadata` failed, most often because `Cargo.lock` is not up to date.
    #[error("cargo metadata for {manifest} failed (is its Cargo.lock up to date?):\n{stderr}")]
    Metadata {
        /// The manifest that was asked about.
        manifest: String,
        /// What cargo said.
        stderr: String,
    },
    /// `cargo metadata` answered something that is not its documented form.
    #[error("cargo metadata for {manifest} is not readable: {source}")]
    MetadataForm {
        /// The manifest that was asked about.
        manifest: String,
        /// What the parser said.
        source: serde_json::Error,
    },
}
