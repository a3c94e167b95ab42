//! Where the pages of one segment lie.
//!
//! Pure; in memory while the segment is in the store, never changed. A sorted list and no hash
//! table: its size is exact, and it never grows by doubling.

use crate::layout::{Extents, HEADER_BYTES};
use crate::limits::INDEX_BYTES_PER_PAGE;
use dwcp_codec::PageHash;

/// One page: its hash, and its place in the row of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Entry {
    pub(crate) hash: PageHash,
    pub(crate) position: u32,
}

const _: () = assert!(size_of::<Entry>() == 20);
const _: () = assert!(size_of::<Entry>() + size_of::<u64>() / 16 < INDEX_BYTES_PER_PAGE);

/// Where a sealed block lies in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockPlace {
    pub(crate) number: u32,
    pub(crate) at: u64,
    pub(crate) sealed_bytes: usize,
    pub(crate) pages: usize,
}

/// Where the pages of one segment lie.
#[derive(Debug)]
pub(crate) struct Index {
    /// By hash.
    entries: Vec<Entry>,
    /// Where each block begins.
    starts: Vec<u64>,
    extents: Extents,
}

impl Index {
    /// An index of `entries` in any order, and of blocks that begin at `starts`.
    pub(crate) fn new(mut entries: Vec<Entry>, starts: Vec<u64>, extents: Extents) -> Self {
        assert!(entries.len() == extents.pages as usize, "every page has an entry");
        assert!(starts.len() == extents.blocks() as usize, "every block has a place");
        assert!(starts.first().is_none_or(|at| *at == HEADER_BYTES as u64), "blocks come first");
        entries.sort_unstable();
        Self { entries, starts, extents }
    }

    pub(crate) const fn pages(&self) -> u64 {
        self.extents.pages as u64
    }

    pub(crate) const fn file_bytes(&self) -> u64 {
        self.extents.file_bytes()
    }

    /// The hashes of all pages, sorted.
    pub(crate) fn hashes(&self) -> impl Iterator<Item = PageHash> {
        self.entries.iter().map(|entry| entry.hash)
    }

    /// How many blocks there are.
    pub(crate) fn blocks(&self) -> u32 {
        self.extents.blocks()
    }

    /// The position of the page with this hash.
    pub(crate) fn find(&self, hash: &PageHash) -> Option<u32> {
        let at = self.entries.binary_search_by_key(hash, |entry| entry.hash).ok()?;
        Some(self.entries[at].position)
    }

    /// Where a block lies.
    pub(crate) fn block(&self, number: u32) -> BlockPlace {
        let at = self.starts[number as usize];
        let end = self.starts.get(number as usize + 1).copied().unwrap_or(self.extents.table_at);
        let pages = self.extents.pages_of(number);
        BlockPlace { number, at, sealed_bytes: (end - at) as usize, pages }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_found_at_its_place_and_no_other_is() {
        let hash =
            |page: u32| PageHash(std::array::from_fn(|byte| (page * 97 + byte as u32) as u8));
        let entries =
            (0..20).map(|position| Entry { hash: hash(position), position }).collect::<Vec<_>>();
        let extents = Extents { table_at: 1000, pages: 20 };
        let index = Index::new(entries, vec![48, 600], extents);
        for position in 0..20 {
            assert_eq!(index.find(&hash(position)), Some(position));
        }
        assert_eq!(index.find(&hash(20)), None);
        assert_eq!(index.hashes().count(), 20);
        assert_eq!(index.blocks(), 2);
        let place =
            |number, at, sealed_bytes, pages| BlockPlace { number, at, sealed_bytes, pages };
        assert_eq!(index.block(0), place(0, 48, 552, 16));
        assert_eq!(index.block(1), place(1, 600, 400, 4));
    }
}
