//! Room for pages that were read back from a region, so that they are hashed together.
//!
//! A shard has one for all its sinks. It holds pages of one sink at a time, and none between two
//! steps of checking.

use dwcp_codec::{PAGE_BYTES, Page, PageHash, PageHasher};

/// As many pages as are hashed side by side.
const ROOM_PAGES: usize = 16;

/// Pages that were read back and not hashed yet.
#[derive(Debug)]
pub(crate) struct ReadBack {
    pages: Box<[Page]>,
    hashes: [PageHash; ROOM_PAGES],
    slots: [usize; ROOM_PAGES],
    count: usize,
}

impl ReadBack {
    pub(crate) fn new() -> Self {
        Self {
            pages: vec![[0; PAGE_BYTES]; ROOM_PAGES].into(),
            hashes: [PageHash([0; 16]); ROOM_PAGES],
            slots: [0; ROOM_PAGES],
            count: 0,
        }
    }

    /// Where the page of a table slot is to be read to.
    pub(crate) fn place(&mut self, slot: usize) -> &mut Page {
        let place = self.count;
        assert!(place < ROOM_PAGES, "a full room is emptied first");
        self.slots[place] = slot;
        self.count += 1;
        &mut self.pages[place]
    }

    pub(crate) const fn is_full(&self) -> bool {
        self.count == ROOM_PAGES
    }

    pub(crate) const fn count(&self) -> usize {
        self.count
    }

    /// The hash of each page by its table slot. The room is free then.
    pub(crate) fn take(
        &mut self,
        hasher: &PageHasher,
    ) -> impl Iterator<Item = (usize, PageHash)> + use<'_> {
        let count = std::mem::take(&mut self.count);
        let hashes = &mut self.hashes[..count];
        hasher.hash_all(&self.pages[..count], hashes);
        self.slots.iter().copied().zip(hashes.iter().copied())
    }

    /// Zeroes what the last pages left.
    pub(crate) fn scrub(&mut self) {
        self.pages.as_flattened_mut().fill(0);
    }
}
