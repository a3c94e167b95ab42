//! Private memory of pages, for what only its owner reads and writes.
//!
//! All of it is address space at first and gets memory where it is touched: huge pages if the
//! kernel has transparent ones, since taking a fault for each small page costs several times what
//! copying the page does. It is left out of core dumps and given back when it is dropped.

use crate::PAGE_BYTES;
use crate::mapping::Mapping;
use crate::region::{RegionError, checked_size};
use nix::sys::mman::MmapAdvise;

/// Pages of zeroes, until they are written.
#[derive(Debug)]
pub struct PrivatePages {
    mapping: Mapping,
}

impl PrivatePages {
    /// Maps so many bytes.
    ///
    /// # Errors
    /// [`RegionError`]: a bad size, or the kernel refused.
    pub fn create(bytes: u64) -> Result<Self, RegionError> {
        let length = checked_size(bytes, PAGE_BYTES as u64)?;
        let refused = |call| move |source| RegionError::Kernel { call, source };
        let mapping = Mapping::sparse(length).map_err(refused("mmap"))?;
        mapping.advise(MmapAdvise::MADV_DONTDUMP).map_err(refused("madvise"))?;
        // A kernel without huge pages refuses; small ones do as well.
        let _ = mapping.advise(MmapAdvise::MADV_HUGEPAGE);
        Ok(Self { mapping })
    }

    /// A page.
    ///
    /// # Panics
    /// When there is no such page.
    #[must_use]
    pub fn page(&self, page: u64) -> &[u8; PAGE_BYTES] {
        let offset = self.offset(page);
        // SAFETY: the page lies in the mapping (`offset` asserts it), which lives as long as
        // `self`, is readable, and private: nobody writes it while `self` is borrowed, since
        // `page_mut` alone gives a way to, by `&mut self`. Any bytes are a value.
        unsafe { self.mapping.at(offset).cast().as_ref() }
    }

    /// A page, to be written.
    ///
    /// # Panics
    /// When there is no such page.
    #[must_use]
    pub fn page_mut(&mut self, page: u64) -> &mut [u8; PAGE_BYTES] {
        let offset = self.offset(page);
        // SAFETY: as in `page`, and the mapping is writable; `&mut self` keeps all others away.
        unsafe { self.mapping.at(offset).cast().as_mut() }
    }

    fn offset(&self, page: u64) -> usize {
        let page = usize::try_from(page).unwrap_or(usize::MAX);
        assert!(page < self.mapping.bytes() / PAGE_BYTES, "a page outside the memory");
        page * PAGE_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_zeroes_until_they_are_written() {
        let mut memory = PrivatePages::create(8 * PAGE_BYTES as u64).unwrap();
        memory.page_mut(7).fill(3);
        memory.page_mut(0)[PAGE_BYTES - 1] = 1;
        assert_eq!(memory.page(7), &[3; PAGE_BYTES]);
        assert_eq!(memory.page(6), &[0; PAGE_BYTES]);
        assert_eq!(memory.page(0)[PAGE_BYTES - 1], 1);
        assert_eq!(memory.page(1), &[0; PAGE_BYTES]);
    }

    #[test]
    fn sizes_that_can_not_be_are_refused() {
        for bytes in [0, 1, PAGE_BYTES as u64 + 1, u64::MAX] {
            assert!(matches!(PrivatePages::create(bytes), Err(RegionError::Size { .. })));
        }
    }

    #[test]
    #[should_panic(expected = "outside the memory")]
    fn a_page_behind_the_end_is_our_own_fault() {
        let _ = PrivatePages::create(PAGE_BYTES as u64).unwrap().page(1);
    }
}
