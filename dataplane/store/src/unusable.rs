//! Why a file of the store is of no use.
//!
//! Told in the report of opening, and of a segment that a read found to be bad. Never an error of
//! the store as a whole, which goes on without the file.

use crate::layout::VERSION;
use std::io;
use std::path::PathBuf;

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unusable {
    /// A newer program wrote it. Left alone.
    #[error("it has format {found}, and this program knows {VERSION}")]
    NewerFormat {
        /// The format found.
        found: u32,
    },
    /// Another store key wrote it, or its header is damaged. Removed.
    #[error("it was written under another key, or its header is damaged")]
    OtherKey,
    /// It is not as long as it says, or says nothing: most of all a file that was cut. Removed.
    #[error("it was cut or is no segment: its {part} is not there")]
    Cut {
        /// What is missing.
        part: &'static str,
    },
    /// Something in it is not what was written. Removed.
    #[error("its {part} is damaged")]
    Damaged {
        /// What.
        part: &'static str,
    },
    /// Its domain's newer segments have another hash key. Removed.
    #[error("its domain has another hash key by now")]
    OtherHashKey,
    /// It is gone.
    #[error("it is gone")]
    Gone,
    /// It is a directory, a link or something else. Left alone.
    #[error("it is not a regular file")]
    NotAFile,
    /// The kernel can't read it. Left alone: it may be readable when the store is opened again.
    #[error("it can't be read: {source}")]
    Unreadable {
        /// The kernel's reason.
        source: io::Error,
    },
    /// It is not needed any more but can't be removed.
    #[error("it can't be removed: {source}")]
    Stuck {
        /// The kernel's reason.
        source: io::Error,
    },
}

impl Unusable {
    /// The stable name for counters and logs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NewerFormat { .. } => "segment_newer_format",
            Self::OtherKey => "segment_other_key",
            Self::Cut { .. } => "segment_cut",
            Self::Damaged { .. } => "segment_damaged",
            Self::OtherHashKey => "segment_other_hash_key",
            Self::Gone => "segment_gone",
            Self::NotAFile => "segment_not_a_file",
            Self::Unreadable { .. } => "segment_unreadable",
            Self::Stuck { .. } => "segment_stuck",
        }
    }

    /// True if nobody will ever be able to use the file, so that it is removed.
    pub(crate) const fn is_final(&self) -> bool {
        match self {
            Self::OtherKey | Self::Cut { .. } | Self::Damaged { .. } | Self::OtherHashKey => true,
            Self::NewerFormat { .. }
            | Self::Gone
            | Self::NotAFile
            | Self::Unreadable { .. }
            | Self::Stuck { .. } => false,
        }
    }

    /// What a failed read of a part means.
    pub(crate) fn of_read(part: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::UnexpectedEof => Self::Cut { part },
            io::ErrorKind::NotFound => Self::Gone,
            _ => Self::Unreadable { source },
        }
    }
}

/// A file that is of no use, and why.
#[derive(Debug)]
pub struct UnusableFile {
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub reason: Unusable,
    /// It was removed; otherwise it still takes its bytes of the store's limit.
    pub removed: bool,
}
