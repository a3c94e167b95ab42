//! Sources of dirty pages: a shared bitmap, the kernel's page-map scan, and comparison.
//!
//! The bitmap is the common currency: whoever knows what changed (a VMM, a [`PagemapTracker`] in
//! the process that writes) sets bits, and the shard that owns the pages takes them. The tracker
//! lives in its own file; this one owns the bitmap and the comparison.

mod tracker;

pub use tracker::{DirtyError, PagemapTracker};

use crate::PAGE_BYTES;
use crate::region::{HugePages, Region, RegionError};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// One bit per page in memory that processes share by file descriptor: words of 64 bits in the
/// machine's byte order, bit `p % 64` of word `p / 64` for page `p`.
///
/// The rule for writers: write the page first, then set its bit. Then a bit that was taken before
/// the write comes back after it, and no change is lost.
#[derive(Debug)]
pub struct DirtyBitmap {
    words: Region,
    page_count: u64,
}

/// How many bytes a bitmap of this many pages takes, in whole pages.
fn bitmap_bytes(page_count: u64) -> u64 {
    page_count.div_ceil(64).saturating_mul(8).next_multiple_of(PAGE_BYTES as u64)
}

impl DirtyBitmap {
    /// Makes a bitmap with no bit set.
    ///
    /// # Errors
    /// [`RegionError`]: no page, too many pages, or no memory.
    pub fn create(page_count: u64) -> Result<Self, RegionError> {
        // The bound keeps the arithmetic far from overflow; the region checks the rest.
        let bytes = bitmap_bytes(page_count.min(1 << 60));
        let words = Region::create("dwcp-dirty", bytes, HugePages::Never)?;
        Ok(Self { words, page_count })
    }

    /// Takes a bitmap that another process made.
    ///
    /// # Errors
    /// [`RegionError`]: not a sealable memfd of at least one bit per page, or not writable.
    pub fn from_fd(file: OwnedFd, page_count: u64) -> Result<Self, RegionError> {
        let words = Region::from_fd(file)?;
        if page_count == 0 || words.bytes() / 8 < page_count.div_ceil(64) {
            return Err(RegionError::Size { bytes: words.bytes(), multiple: PAGE_BYTES as u64 });
        }
        if !words.writable() {
            return Err(RegionError::ReadOnly);
        }
        Ok(Self { words, page_count })
    }

    /// The bitmap's file, to be given to another process.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.words.fd()
    }

    /// How many pages the bitmap speaks of.
    #[must_use]
    pub fn page_count(&self) -> u64 {
        self.page_count
    }

    /// How many words hold them.
    #[must_use]
    pub fn words(&self) -> usize {
        self.page_count.div_ceil(64) as usize
    }

    /// Marks a page as changed.
    ///
    /// # Panics
    /// When the page is not below the page count.
    pub fn set(&self, page: u64) {
        assert!(page < self.page_count, "page {page} is outside the bitmap");
        self.word((page / 64) as usize).fetch_or(1 << (page % 64), Ordering::AcqRel);
    }

    /// Marks `count` pages from `first` on as changed.
    ///
    /// # Panics
    /// When a page is not below the page count.
    pub fn set_range(&self, first: u64, count: u64) {
        let end = first.checked_add(count).filter(|&end| end <= self.page_count);
        let Some(end) = end else { panic!("pages {first}+{count} are outside the bitmap") };
        let mut page = first;
        while page < end {
            let bits = (64 - page % 64).min(end - page);
            let mask = (u64::MAX >> (64 - bits)) << (page % 64);
            self.word((page / 64) as usize).fetch_or(mask, Ordering::AcqRel);
            page += bits;
        }
    }

    /// Takes the bits of word `index` and clears them in one step. Bits beyond the last page, which
    /// only a faulty writer sets, are thrown away.
    ///
    /// # Panics
    /// When the index is not below [`words`](Self::words).
    #[must_use]
    pub fn take_word(&self, index: usize) -> u64 {
        let word = self.word(index);
        // Most words are clear in a late round: a load leaves their cache lines shared.
        if word.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let taken = word.swap(0, Ordering::AcqRel);
        let pages_left = self.page_count - index as u64 * 64;
        if pages_left >= 64 { taken } else { taken & ((1 << pages_left) - 1) }
    }

    /// The bits of word `index` as they are now; some may be beyond the last page.
    ///
    /// # Panics
    /// When the index is not below [`words`](Self::words).
    #[must_use]
    pub fn peek_word(&self, index: usize) -> u64 {
        self.word(index).load(Ordering::Acquire)
    }

    /// How many pages are marked now.
    #[must_use]
    pub fn count(&self) -> u64 {
        (0..self.words())
            .map(|i| u64::from(self.word(i).load(Ordering::Relaxed).count_ones()))
            .sum()
    }

    /// A word that holds bits of our pages.
    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.words(), "word {index} is outside the bitmap");
        &self.words.words()[index]
    }
}

#[cfg(test)]
mod tests;
