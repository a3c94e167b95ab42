//! What the coding of an extent came to, by class.
//!
//! Plain numbers that the caller adds to its counters. The classes' bytes and the overhead sum to
//! the payload's length.

use crate::page::Class;

/// Pages and bytes of one class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassStats {
    /// Pages that went out in this class.
    pub pages: u64,
    /// What they take in the payload.
    pub coded_bytes: u64,
}

/// What one extent came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExtentStats {
    /// Zero pages; they take no bytes beside their class.
    pub zero: ClassStats,
    /// Pages coded against a base; their bytes include the versions and the digest of the bases.
    pub delta: ClassStats,
    /// Pages compressed together.
    pub zstd: ClassStats,
    /// Pages sent as they are.
    pub raw: ClassStats,
    /// The head of the payload: place, mask, digest and classes.
    pub overhead_bytes: u64,
}

impl ExtentStats {
    /// The numbers of one class.
    #[must_use]
    pub const fn class(&self, class: Class) -> ClassStats {
        match class {
            Class::Zero => self.zero,
            Class::Delta => self.delta,
            Class::Zstd => self.zstd,
            Class::Raw => self.raw,
        }
    }

    /// The payload's length.
    #[must_use]
    pub const fn total_bytes(&self) -> u64 {
        self.overhead_bytes
            + self.zero.coded_bytes
            + self.delta.coded_bytes
            + self.zstd.coded_bytes
            + self.raw.coded_bytes
    }

    /// The pages of all classes.
    #[must_use]
    pub const fn total_pages(&self) -> u64 {
        self.zero.pages + self.delta.pages + self.zstd.pages + self.raw.pages
    }
}
