//! Why a payload was refused.
//!
//! Every variant is the peer's fault or a lost base, never ours; the shard counts it by its code
//! and answers the frame with a NACK or ends the session.

/// Why a payload was refused. Nothing of it may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The payload ends before what its head announces.
    #[error("the payload ends at byte {bytes} inside its {section}")]
    Truncated {
        /// What was being read.
        section: &'static str,
        /// The payload's length.
        bytes: usize,
    },
    /// The payload is longer than what its head announces.
    #[error("{bytes} bytes are left after the last section")]
    TrailingBytes {
        /// How many.
        bytes: usize,
    },
    /// The mask names no page.
    #[error("the payload has no page")]
    Empty,
    /// The first page is not the first of an extent.
    #[error("page {first_page} is not the first of an extent")]
    Unaligned {
        /// The page that the payload names.
        first_page: u64,
    },
    /// A page lies beyond the end of the region.
    #[error("page {page} is beyond the region's {region_pages} pages")]
    BeyondRegion {
        /// The last page that the payload names.
        page: u64,
        /// The region's size.
        region_pages: u64,
    },
    /// A batch names a page twice.
    #[error("page {page} is in the payload twice")]
    RepeatedPage {
        /// The page.
        page: u64,
    },
    /// A section breaks the format.
    #[error("the {section} breaks the format")]
    Malformed {
        /// Which.
        section: &'static str,
    },
    /// zstd refused a section or made something else of it than its exact size.
    #[error("the {section} does not decompress to its exact size")]
    Decompress {
        /// Which.
        section: &'static str,
    },
    /// The sink doesn't hold the version that a delta is against. The source must send the pages
    /// of this frame whole.
    #[error("version {version} of page {page} is not held here")]
    BaseUnknown {
        /// The page.
        page: u64,
        /// The version that the frame names.
        version: u64,
    },
    /// The sink's bases have other contents than the source's.
    #[error("the bases held here differ from the source's")]
    BaseMismatch,
    /// A payload of the same long window was refused before: the stream can't be continued.
    #[error("the long window was lost with an earlier payload")]
    WindowSpent,
    /// The decoded pages are not those that the source hashed.
    #[error("the decoded pages don't match their digest")]
    DigestMismatch,
}

impl DecodeError {
    /// The stable name for counters and logs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Truncated { .. } => "codec-truncated",
            Self::TrailingBytes { .. } => "codec-trailing-bytes",
            Self::Empty => "codec-empty",
            Self::Unaligned { .. } => "codec-unaligned",
            Self::BeyondRegion { .. } => "codec-beyond-region",
            Self::RepeatedPage { .. } => "codec-repeated-page",
            Self::Malformed { .. } => "codec-malformed",
            Self::Decompress { .. } => "codec-decompress",
            Self::BaseUnknown { .. } => "codec-base-unknown",
            Self::BaseMismatch => "codec-base-mismatch",
            Self::WindowSpent => "codec-window-spent",
            Self::DigestMismatch => "codec-digest-mismatch",
        }
    }

    /// True if sending the same pages without deltas cures it: the bases differ, not the bytes.
    #[must_use]
    pub const fn wants_whole_pages(&self) -> bool {
        matches!(self, Self::BaseUnknown { .. } | Self::BaseMismatch)
    }
}
