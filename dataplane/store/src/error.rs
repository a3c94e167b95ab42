//! Why the store could not do what it was asked for.
//!
//! After any of these the store is as it was before, and a writer that met one has left nothing on
//! the disk. That a file is not usable is no error of the store: see [`crate::Unusable`].

use crate::limits::{NAME_BYTES_MAX, NOTE_BYTES_MAX, SEGMENT_PAGES_MAX};
use crate::segment::DomainId;
use std::io;
use std::path::{Path, PathBuf};

/// Why the store could not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The kernel refused something.
    #[error("can't {doing} {}: {source}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Another owner has the directory open.
    #[error("another process uses the store {}", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// Others than its owner may enter the directory.
    #[error("the store {} is open to others (mode {mode:04o})", path.display())]
    Exposed {
        /// The directory.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// A segment is longer than all that the store may take.
    #[error("the segment takes {bytes} bytes or more, and the store has room for {room_bytes}")]
    TooLarge {
        /// What is known to be needed.
        bytes: u64,
        /// The store's limit without what it has to leave alone.
        room_bytes: u64,
    },
    /// A segment has more pages than the index may hold.
    #[error("the segment has more than the {pages_max} pages that the store may hold")]
    TooManyPages {
        /// The store's limit, or that of one segment.
        pages_max: u64,
    },
    /// A note is too long.
    #[error("a note of {bytes} bytes; at most {NOTE_BYTES_MAX} are kept")]
    NoteTooLong {
        /// Its length.
        bytes: usize,
    },
    /// A segment's name is too long.
    #[error("a name of {bytes} bytes; at most {NAME_BYTES_MAX} are kept")]
    NameTooLong {
        /// Its length.
        bytes: usize,
    },
    /// A domain has one hash key, and this is another.
    #[error("the domain's pages are hashed with another key")]
    OtherHashKey {
        /// The domain.
        domain: DomainId,
    },
    /// An earlier error ended the writer.
    #[error("the writer ended with an earlier error")]
    WriterEnded,
    /// The caller stopped what was going on.
    #[error("stopped as the caller wished")]
    Stopped,
    /// The system has no random numbers.
    #[error("the system's random numbers can't be had")]
    Random,
}

impl StoreError {
    /// Makes an error of the kernel's reason.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }

    /// The stable name of the fault.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "store_io",
            Self::Locked { .. } => "store_locked",
            Self::Exposed { .. } => "store_exposed",
            Self::TooLarge { .. } => "store_too_large",
            Self::TooManyPages { .. } => "store_too_many_pages",
            Self::NameTooLong { .. } => "store_name_too_long",
            Self::NoteTooLong { .. } => "store_note_too_long",
            Self::OtherHashKey { .. } => "store_other_hash_key",
            Self::WriterEnded => "store_writer_ended",
            Self::Stopped => "store_stopped",
            Self::Random => "store_random",
        }
    }

    /// What to do about it; none where there is nothing for a person to do.
    #[must_use]
    pub fn cure(&self) -> Option<&'static str> {
        match self {
            Self::Io { source, .. } => Some(match source.kind() {
                io::ErrorKind::StorageFull
                | io::ErrorKind::QuotaExceeded
                | io::ErrorKind::FileTooLarge => {
                    "free space on the store's disk, raise the quota, or let the store take less"
                }
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    "give a path that this user may read and write"
                }
                io::ErrorKind::NotFound => "check that the path is there",
                _ => "check the disk",
            }),
            Self::Locked { .. } => Some("stop the other process or give another directory"),
            Self::Exposed { .. } => {
                Some("give a directory of its own, or take others' permissions away (chmod 700)")
            }
            Self::TooLarge { .. } => Some("raise the bytes that the store may take"),
            Self::TooManyPages { pages_max } => Some(if *pages_max < SEGMENT_PAGES_MAX.into() {
                "raise the pages that the store may hold"
            } else {
                "split it"
            }),
            Self::NameTooLong { .. } => Some("give a shorter name"),
            Self::OtherHashKey { .. } => {
                Some("take the key that the store tells for the domain, or purge the domain first")
            }
            Self::NoteTooLong { .. } | Self::WriterEnded | Self::Stopped => None,
            Self::Random => Some("check the kernel's getrandom"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_with_its_path_and_cure() {
        // ENOSPC, EDQUOT, EFBIG.
        for number in [28, 122, 27] {
            let source = io::Error::from_raw_os_error(number);
            let error = StoreError::io("write", Path::new("store/a.seg"))(source);
            assert!(error.to_string().starts_with("can't write store/a.seg: "), "{error}");
            assert!(error.cure().unwrap().contains("space"), "{number}");
        }
    }
}
