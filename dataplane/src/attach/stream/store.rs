//! The newest version of each page of a stream session, held alike at both ends.
//!
//! Owned by the session's shard. The source puts every page that it coded, the sink every page that
//! it decoded, both in the order of the frames' positions; so both hold the same versions at the
//! same position, and the source may code against any of them without asking.
//!
//! The invariant that this rests on: what is held is a function of the two sizes and of the
//! sequence of [`PageStore::put`] and
//! [`PageStore::put_elsewhere`] alone. Reading ([`PageStore::get`], [`PageStore::read`],
//! [`Bases`]) changes nothing, since the source looks at every page and the sink at the bases of
//! deltas only.
//!
//! The rules of a put, in order:
//! - a page of number `pages_max` or above is not known to the store;
//! - a zero page gives its slot back and takes none;
//! - a page with a slot keeps it, and its reference bit is set;
//! - a page without takes the slot that was given back last, else the first that was never used,
//!   else, if the page was put before, the one that the clock finds. A page that comes for the
//!   first time pushes out no other: most pages of a guest are sent once. The slot's reference bit
//!   is set if the page was put before, else cleared;
//! - a page whose bytes are held elsewhere ([`PageStore::put_elsewhere`]) gives its slot back;
//! - the clock looks at no more than 32 slots from its hand on, clears the reference bits that are
//!   set, and takes the first slot without one, or else the one behind those; the hand then stands
//!   behind the slot that was taken.
//!
//! Memory is 32 bytes per page that may be known, 8 bytes and a page per slot. The slots' pages are
//! the pool's, which has memory ready if the guest was announced; the rest is address space at
//! first and gets memory where pages are put. All of it is left out of core dumps and given back
//! when the store is dropped. A table for 2^28 pages (1 TiB of guest) is 8 GiB if all are put.

use dwcp_codec::page::is_zero;
use dwcp_codec::{Bases, PAGE_BYTES, Page, PageHash};
use dwcp_ffi::memory::{PagePool, PrivatePages};
use dwcp_ffi::region::{HugePages, Region, RegionError};

/// Bytes of the table for each page that may be known.
pub const STORE_PAGE_BYTES: u64 = 32;
/// Bytes for each slot, with its page.
pub const STORE_SLOT_BYTES: u64 = 8 + PAGE_BYTES as u64;

/// How far the clock may look before it takes any slot: bounds the work of one put.
const CLOCK_STEPS_MAX: u64 = 32;

/// The words of a page's entry: version, two of the hash, place.
const ENTRY_WORDS: u64 = STORE_PAGE_BYTES / WORD_BYTES;
const WORD_BYTES: u64 = 8;

/// Places: never put, all zeroes, known but not held; then slot 0 and so on; with this bit, a name
/// of somebody else.
const PLACE_NONE: u64 = 0;
const PLACE_ZERO: u64 = 1;
const PLACE_GONE: u64 = 2;
const PLACE_SLOTS: u64 = 3;
const PLACE_ELSEWHERE: u64 = 1 << 63;

/// In the word of a slot in use, beside the number of its page.
const REFERENCED: u64 = 1 << 63;
/// Ends the list of slots that were given back.
const NO_SLOT: u64 = u64::MAX;

/// Where the bytes of a known page are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// All bytes are zero.
    Zero,
    /// The store has them.
    Stored,
    /// Somebody else has them under this name.
    Elsewhere(u64),
    /// They had to go, or never had room.
    Gone,
}

/// The newest version of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The version's number.
    pub version: u64,
    /// The hash of its bytes.
    pub hash: PageHash,
    /// Whether its bytes are here.
    pub content: Content,
}

/// Words in lazily touched memory; none if there are none.
#[derive(Debug)]
struct Words(Option<Region>);

impl Words {
    fn new(name: &str, count: u64) -> Result<Self, RegionError> {
        let bytes = count.saturating_mul(WORD_BYTES);
        let bytes = bytes.checked_next_multiple_of(PAGE_BYTES as u64).unwrap_or(u64::MAX);
        Ok(Self(create(name, bytes)?))
    }

    fn load(&self, word: u64) -> u64 {
        self.0.as_ref().map_or(0, |region| region.load_u64(word * WORD_BYTES))
    }

    fn store(&mut self, word: u64, value: u64) {
        if let Some(region) = &self.0 {
            region.store_u64(word * WORD_BYTES, value);
        }
    }
}

/// A region, unless it would be empty.
fn create(name: &str, bytes: u64) -> Result<Option<Region>, RegionError> {
    (bytes > 0).then(|| Region::create(name, bytes, HugePages::Never)).transpose()
}

/// Holds page versions.
#[derive(Debug)]
pub struct PageStore {
    pages_max: u64,
    capacity_pages: u64,
    entries: Words,
    /// Of a slot in use the number of its page and the reference bit; of one that was given back
    /// the next such one.
    owners: Words,
    slots: Option<PrivatePages>,
    /// Slots that were ever in use: the first so many.
    touched: u64,
    /// The slot that was given back last, or `NO_SLOT`.
    free: u64,
    /// Slots in use.
    used: u64,
    hand: u64,
}

impl PageStore {
    /// A store for pages below `pages_max` that holds the bytes of at most `capacity_pages` of
    /// them, in memory of a pool. Both sizes must be the same at both ends; either may be 0.
    ///
    /// # Errors
    /// [`RegionError`]: the sizes are beyond what can be mapped, the pool has not so much left, or
    /// the kernel refused.
    pub fn new(pool: &PagePool, pages_max: u64, capacity_pages: u64) -> Result<Self, RegionError> {
        // A slot beyond one per page would never be used.
        let capacity_pages = capacity_pages.min(pages_max);
        let entry_words = pages_max.saturating_mul(ENTRY_WORDS);
        let slot_bytes = capacity_pages.saturating_mul(PAGE_BYTES as u64);
        Ok(Self {
            pages_max,
            capacity_pages,
            entries: Words::new("dwcp-page-table", entry_words)?,
            owners: Words::new("dwcp-page-owners", capacity_pages)?,
            slots: (slot_bytes > 0).then(|| pool.take(slot_bytes)).transpose()?,
            touched: 0,
            free: NO_SLOT,
            used: 0,
            hand: 0,
        })
    }

    /// How many pages' bytes are held now.
    #[must_use]
    pub const fn stored_pages(&self) -> u64 {
        self.used
    }

    /// The newest version of a page that was put.
    #[must_use]
    pub fn get(&self, page: u64) -> Option<Held> {
        let content = match self.place(page) {
            PLACE_NONE => return None,
            PLACE_ZERO => Content::Zero,
            PLACE_GONE => Content::Gone,
            place if place & PLACE_ELSEWHERE != 0 => Content::Elsewhere(place ^ PLACE_ELSEWHERE),
            _ => Content::Stored,
        };
        let word = page * ENTRY_WORDS;
        let mut hash = [0; 16];
        hash[..8].copy_from_slice(&self.entries.load(word + 1).to_le_bytes());
        hash[8..].copy_from_slice(&self.entries.load(word + 2).to_le_bytes());
        Some(Held { version: self.entries.load(word), hash: PageHash(hash), content })
    }

    /// Copies the newest version of a page to `out`, if its bytes are here.
    pub fn read(&self, page: u64, out: &mut Page) -> Option<Held> {
        let held = self.get(page)?;
        match (held.content, &self.slots) {
            (Content::Zero, _) => out.fill(0),
            (Content::Stored, Some(slots)) => {
                out.copy_from_slice(slots.page(self.place(page) - PLACE_SLOTS));
            }
            _ => return None,
        }
        Some(held)
    }

    /// The page has a new version. See the module for what this may push out.
    pub fn put(&mut self, page: u64, version: u64, hash: PageHash, bytes: &Page) {
        if page >= self.pages_max {
            return;
        }
        let old = self.place(page);
        let place = if is_zero(bytes) {
            self.leave(old);
            PLACE_ZERO
        } else {
            let again = old != PLACE_NONE;
            let slot = slot_of(old).or_else(|| self.take_slot(again));
            slot.map_or(PLACE_GONE, |slot| {
                self.owners.store(slot, page | if again { REFERENCED } else { 0 });
                if let Some(slots) = &mut self.slots {
                    slots.page_mut(slot).copy_from_slice(bytes);
                }
                PLACE_SLOTS + slot
            })
        };
        self.set(page, version, hash, place);
    }

    /// The page has a new version whose bytes somebody else holds under a name.
    pub fn put_elsewhere(&mut self, page: u64, version: u64, hash: PageHash, name: u64) {
        if page < self.pages_max {
            self.leave(self.place(page));
            self.set(page, version, hash, PLACE_ELSEWHERE | name);
        }
    }

    fn set(&mut self, page: u64, version: u64, hash: PageHash, place: u64) {
        let word = page * ENTRY_WORDS;
        let halves = hash.0.as_chunks::<8>().0;
        self.entries.store(word, version);
        self.entries.store(word + 1, u64::from_le_bytes(halves[0]));
        self.entries.store(word + 2, u64::from_le_bytes(halves[1]));
        self.entries.store(word + 3, place);
    }

    fn place(&self, page: u64) -> u64 {
        if page < self.pages_max { self.entries.load(page * ENTRY_WORDS + 3) } else { PLACE_NONE }
    }

    /// Gives back what a page had, if it was a slot.
    fn leave(&mut self, place: u64) {
        if let Some(slot) = slot_of(place) {
            self.owners.store(slot, self.free);
            self.free = slot;
            self.used -= 1;
        }
    }

    fn take_slot(&mut self, may_evict: bool) -> Option<u64> {
        let slot = if self.free != NO_SLOT {
            let slot = self.free;
            self.free = self.owners.load(slot);
            slot
        } else if self.touched < self.capacity_pages {
            self.touched += 1;
            self.touched - 1
        } else if may_evict && self.capacity_pages > 0 {
            // No slot is free, so the clock meets none that isn't in use.
            return Some(self.evict());
        } else {
            return None;
        };
        self.used += 1;
        Some(slot)
    }

    fn evict(&mut self) -> u64 {
        for _ in 0..CLOCK_STEPS_MAX {
            let owner = self.owners.load(self.hand);
            if owner & REFERENCED == 0 {
                break;
            }
            self.owners.store(self.hand, owner & !REFERENCED);
            self.hand = (self.hand + 1) % self.capacity_pages;
        }
        let slot = self.hand;
        self.hand = (self.hand + 1) % self.capacity_pages;
        let owner = self.owners.load(slot) & !REFERENCED;
        self.entries.store(owner * ENTRY_WORDS + 3, PLACE_GONE);
        slot
    }
}

/// The slot that a place is, if it is one.
fn slot_of(place: u64) -> Option<u64> {
    (PLACE_SLOTS..PLACE_ELSEWHERE).contains(&place).then(|| place - PLACE_SLOTS)
}

impl Bases for &PageStore {
    fn base(&mut self, page: u64, version: u64, out: &mut Page) -> Option<PageHash> {
        self.get(page).filter(|held| held.version == version)?;
        self.read(page, out).map(|held| held.hash)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_codec::{HashKey, PageHasher};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn pool() -> PagePool {
        PagePool::new(4 << 20).unwrap()
    }

    fn page_of(fill: u8) -> Page {
        [fill; PAGE_BYTES]
    }

    fn hash_of(page: &Page) -> PageHash {
        PageHasher::new(&HashKey([1; 32])).hash(page)
    }

    fn put(store: &mut PageStore, page: u64, version: u64, fill: u8) {
        let bytes = page_of(fill);
        store.put(page, version, hash_of(&bytes), &bytes);
    }

    fn content(store: &PageStore, page: u64) -> Option<Content> {
        store.get(page).map(|held| held.content)
    }

    #[test]
    fn a_base_is_given_only_in_the_version_that_is_held() {
        let mut store = PageStore::new(&pool(), 8, 4).unwrap();
        put(&mut store, 3, 10, 7);
        put(&mut store, 4, 10, 0);
        put(&mut store, 3, 11, 8);
        let mut out = page_of(1);
        let mut bases = &store;
        assert_eq!(bases.base(3, 10, &mut out), None);
        assert_eq!(out, page_of(1), "nothing is written for a version that isn't held");
        assert_eq!(bases.base(3, 11, &mut out), Some(hash_of(&page_of(8))));
        assert_eq!(out, page_of(8));
        assert_eq!(bases.base(4, 10, &mut out), Some(hash_of(&page_of(0))));
        assert_eq!(out, page_of(0));
        assert_eq!(bases.base(5, 10, &mut out), None);
        assert_eq!(bases.base(u64::MAX, 10, &mut out), None);
    }

    #[test]
    fn a_page_that_comes_again_pushes_out_one_that_came_once_but_not_the_other_way_round() {
        let mut store = PageStore::new(&pool(), 8, 2).unwrap();
        put(&mut store, 0, 1, 1);
        put(&mut store, 1, 1, 1);
        put(&mut store, 2, 1, 1);
        assert_eq!(content(&store, 2), Some(Content::Gone), "the first time");
        put(&mut store, 0, 2, 2);
        put(&mut store, 2, 2, 2);
        assert_eq!(content(&store, 0), Some(Content::Stored), "it came twice");
        assert_eq!(content(&store, 1), Some(Content::Gone));
        assert_eq!(content(&store, 2), Some(Content::Stored));
        assert_eq!(store.get(1).unwrap().hash, hash_of(&page_of(1)), "the hash is still known");
    }

    #[test]
    fn a_zero_page_gives_its_slot_to_the_next() {
        let mut store = PageStore::new(&pool(), 8, 1).unwrap();
        put(&mut store, 0, 1, 1);
        put(&mut store, 0, 2, 0);
        assert_eq!(store.stored_pages(), 0);
        put(&mut store, 1, 3, 5);
        assert_eq!(content(&store, 1), Some(Content::Stored));
        assert_eq!(content(&store, 0), Some(Content::Zero));
    }

    #[test]
    fn a_store_without_room_still_knows_hashes_and_zeroes() {
        let mut store = PageStore::new(&pool(), 4, 0).unwrap();
        put(&mut store, 1, 1, 9);
        put(&mut store, 1, 2, 9);
        put(&mut store, 2, 2, 0);
        put(&mut store, 4, 2, 3);
        assert_eq!(content(&store, 1), Some(Content::Gone));
        assert_eq!(content(&store, 2), Some(Content::Zero));
        assert_eq!(content(&store, 4), None, "beyond the table");
        let mut nothing = PageStore::new(&pool(), 0, 5).unwrap();
        put(&mut nothing, 0, 1, 1);
        assert_eq!(nothing.get(0), None);
    }

    #[test]
    fn a_table_of_a_tebibyte_takes_memory_only_where_it_is_used() {
        let pool = PagePool::new(1 << 40).unwrap();
        let mut store = PageStore::new(&pool, 1 << 28, 1 << 28).unwrap();
        put(&mut store, (1 << 28) - 1, 1, 6);
        assert_eq!(content(&store, (1 << 28) - 1), Some(Content::Stored));
        assert_eq!(content(&store, 0), None);
    }

    #[test]
    fn sizes_that_can_not_be_mapped_are_refused() {
        let refused = |pages, capacity| PageStore::new(&pool(), pages, capacity).unwrap_err();
        assert!(matches!(refused(u64::MAX, 1), RegionError::Size { .. }));
        assert!(matches!(refused(u64::MAX, u64::MAX), RegionError::Size { .. }));
        assert!(matches!(refused(1 << 20, 1 << 20), RegionError::PoolExhausted { .. }));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn two_stores_that_get_the_same_puts_hold_the_same_and_reads_change_nothing(
            pages_max in 0..60_u64, capacity in 0..70_u64,
            puts in proptest::collection::vec((0..64_u64, 0..4_u8, any::<u64>()), 0..400),
        ) {
            let pool = pool();
            let mut source = PageStore::new(&pool, pages_max, capacity).unwrap();
            let mut sink = PageStore::new(&pool, pages_max, capacity).unwrap();
            let mut newest = BTreeMap::new();
            for (version, (page, fill, looked_at)) in (1..).zip(puts) {
                let mut room = page_of(0);
                // Only the source looks.
                let _ = source.read(looked_at % 64, &mut room);
                let _ = (&source).base(page, version - 1, &mut room);
                put(&mut source, page, version, fill);
                put(&mut sink, page, version, fill);
                newest.insert(page, (version, fill));
                prop_assert!(source.stored_pages() <= capacity.min(pages_max));
                for page in 0..64 {
                    let held = source.get(page);
                    prop_assert_eq!(held, sink.get(page));
                    let known = newest.get(&page).filter(|_| page < pages_max);
                    let expected = known.map(|(at, fill)| (*at, hash_of(&page_of(*fill))));
                    prop_assert_eq!(held.map(|held| (held.version, held.hash)), expected);
                    let (mut one, mut two) = (page_of(200), page_of(200));
                    prop_assert_eq!(source.read(page, &mut one), sink.read(page, &mut two));
                    prop_assert!(one == two);
                    if let (Some(held), Some((_, fill))) = (held, known) {
                        let fill = if held.content == Content::Gone { 200 } else { *fill };
                        prop_assert!(one == page_of(fill));
                    }
                }
                let stored = (0..64).filter(|page| {
                    source.get(*page).is_some_and(|held| held.content == Content::Stored)
                });
                prop_assert_eq!(stored.count() as u64, source.stored_pages());
            }
        }
    }
}
