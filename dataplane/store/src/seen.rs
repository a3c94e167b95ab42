//! The pages that a writer has taken so far: their hashes in order, and which of them there are.
//!
//! Pure. A table of positions beside the list of hashes takes less than half of what a set of
//! hashes would, and is rebuilt from the list when it grows, so that no two of them lie in memory.

use dwcp_codec::PageHash;

const EMPTY: u32 = u32::MAX;
/// Slots of the first table. A power of two, as all tables have it.
const SLOTS_MIN: usize = 1024;

/// The pages that a writer has taken so far.
#[derive(Debug)]
pub(crate) struct Seen {
    hashes: Vec<PageHash>,
    /// Positions in `hashes`; at least a quarter of the slots is empty.
    slots: Vec<u32>,
}

impl Seen {
    pub(crate) fn new() -> Self {
        Self { hashes: Vec::new(), slots: vec![EMPTY; SLOTS_MIN] }
    }

    pub(crate) fn len(&self) -> u32 {
        self.hashes.len() as u32
    }

    pub(crate) fn contains(&self, hash: &PageHash) -> bool {
        self.slots[self.slot_of(hash)] != EMPTY
    }

    /// Takes a hash that is not there yet.
    pub(crate) fn insert(&mut self, hash: PageHash) {
        assert!(self.len() < EMPTY - 1, "the limit of a segment is checked before");
        if self.hashes.len() + 1 > self.slots.len() / 4 * 3 {
            self.grow();
        }
        let slot = self.slot_of(&hash);
        assert!(self.slots[slot] == EMPTY, "a page is taken once");
        self.slots[slot] = self.len();
        self.hashes.push(hash);
    }

    /// The hashes in the order in which they came.
    pub(crate) fn hashes(&self) -> &[PageHash] {
        &self.hashes
    }

    /// The hashes alone, without spare room.
    pub(crate) fn into_hashes(self) -> Vec<PageHash> {
        let Self { mut hashes, slots } = self;
        drop(slots);
        hashes.shrink_to_fit();
        hashes
    }

    fn grow(&mut self) {
        let slots = self.slots.len() * 2;
        self.slots = Vec::new();
        self.slots = vec![EMPTY; slots];
        for position in 0..self.len() {
            let slot = self.slot_of(&self.hashes[position as usize]);
            self.slots[slot] = position;
        }
    }

    /// The slot that the hash has, or that it would have. The hash is keyed, so nobody can choose
    /// pages that meet in one slot.
    fn slot_of(&self, hash: &PageHash) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = u128::from_le_bytes(hash.0) as usize & mask;
        loop {
            let position = self.slots[slot];
            if position == EMPTY || self.hashes[position as usize] == *hash {
                return slot;
            }
            slot = (slot + 1) & mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn what_went_in_is_there_and_nothing_else(
            // Few low bytes, so that slots collide and tables grow.
            hashes in proptest::collection::vec((0..64_u8, 0..60_u8), 0..3000),
        ) {
            let hash = |(low, high)| {
                let mut bytes = [0; 16];
                (bytes[0], bytes[15]) = (low, high);
                PageHash(bytes)
            };
            let mut seen = Seen::new();
            let mut model = BTreeSet::new();
            for pair in hashes {
                let new = model.insert(pair);
                prop_assert_eq!(seen.contains(&hash(pair)), !new);
                if new {
                    seen.insert(hash(pair));
                }
            }
            prop_assert_eq!(seen.len() as usize, model.len());
            for pair in (0..64).flat_map(|low| (0..60).map(move |high| (low, high))) {
                prop_assert_eq!(seen.contains(&hash(pair)), model.contains(&pair));
            }
        }
    }
}
