//! The page versions that a stream session may name as bases: its own newest, and those from
//! before.
//!
//! Held alike at both ends, as the store is: what is held is a function of the sizes, of what there
//! is from before, and of the sequence of [`Versions::put`]. A page that is what one was before,
//! at any place, takes no room of the store. What the sink alone holds may be named, too; it is
//! nothing that both ends hold, so a page that is named so is put as if it had been sent.

use super::before::Before;
use super::held::{Alone, BeyondTerms, HeldPages};
use super::store::{Content, Held, PageStore};
use dwcp_codec::{Bases, Page, PageHash};
use dwcp_ffi::memory::PagePool;
use dwcp_ffi::region::RegionError;
use dwcp_proto::wire::frame::HeldHashes;

/// In a version: it names a slot of what is from before, or of what the sink alone holds, whatever
/// the page. A session has one of them at the most. Positions are below.
const FROM_BEFORE: u64 = 1 << 40;

/// Page versions.
#[derive(Debug)]
pub(super) struct Versions {
    store: PageStore,
    before: Option<Box<Before>>,
    alone: Alone,
}

impl Versions {
    /// For pages below `pages_max`. What is from before, and what the sink alone may hold, counts
    /// for the most bases that there may be.
    pub(super) fn new(
        pool: &PagePool,
        pages_max: u64,
        (base_pages, before): (u64, Option<Box<Before>>),
        (alone, held_pages): (Alone, u64),
    ) -> Result<Self, RegionError> {
        let others = before.as_deref().map_or(0, Before::pages).saturating_add(held_pages);
        let own = base_pages.saturating_sub(others);
        Ok(Self { store: PageStore::new(pool, pages_max, own)?, before, alone })
    }

    /// The sink told of pages that it alone holds.
    pub(super) fn told(&mut self, chunk: u32, hashes: &HeldHashes<'_>) -> Result<(), BeyondTerms> {
        match &mut self.alone {
            Alone::Told(told) => told.take(chunk, hashes),
            Alone::Nothing | Alone::Held(_) => Err(BeyondTerms),
        }
    }

    /// At the sink: what it alone holds, if it may hold any.
    pub(super) fn held(&self) -> Option<&HeldPages> {
        if let Alone::Held(held) = &self.alone { Some(held) } else { None }
    }

    /// The same, to add some.
    pub(super) fn held_mut(&mut self) -> Option<&mut HeldPages> {
        if let Alone::Held(held) = &mut self.alone { Some(held) } else { None }
    }

    /// At the source: whether a base is a page that the sink alone holds.
    pub(super) fn is_alone(&self, held: &Held) -> bool {
        held.version & FROM_BEFORE != 0 && self.before.is_none()
    }

    /// The session announces a block.
    pub(super) fn place(&mut self, idstr: &[u8], first_page: u64, pages: u64) {
        if let Some(before) = &mut self.before {
            before.place(idstr, first_page, pages);
        }
    }

    /// The hash of the page's newest version, if the session has sent one.
    pub(super) fn newest(&self, page: u64) -> Option<PageHash> {
        self.store.get(page).map(|held| held.hash)
    }

    /// Copies to `out` what the page, which is now `bytes`, is best coded against: its newest
    /// version; where that is not held or is zeroes, which it is better coded without, the same
    /// bytes from before, wherever they were, or what was at its place; the same bytes at the sink.
    pub(super) fn read_base(
        &self,
        page: u64,
        (hash, bytes): (PageHash, &Page),
        out: &mut Page,
    ) -> Option<Held> {
        if let Some(held) = self.read_newest(page, out) {
            return Some(held);
        }
        if let Alone::Told(told) = &self.alone {
            let slot = told.find(hash)?;
            // The sink knows by the whole hash whether it is the same page.
            out.copy_from_slice(bytes);
            return Some(Held { version: FROM_BEFORE | slot, hash, content: Content::Gone });
        }
        let before = self.before.as_deref()?;
        let same = before.find(hash).filter(|slot| {
            // Never by the hash alone.
            before.page(*slot).is_some_and(|(page, _)| page == bytes)
        });
        let slot = same.or_else(|| before.slot(page))?;
        let (page, hash) = before.page(slot)?;
        out.copy_from_slice(page);
        Some(Held { version: FROM_BEFORE | slot, hash, content: Content::Elsewhere(slot) })
    }

    /// Copies the page's newest version to `out`, if its bytes are held and not zeroes.
    fn read_newest(&self, page: u64, out: &mut Page) -> Option<Held> {
        let held = self.store.get(page)?;
        match held.content {
            Content::Stored => self.store.read(page, out),
            Content::Elsewhere(slot) => {
                out.copy_from_slice(self.before.as_deref()?.page(slot)?.0);
                Some(held)
            }
            Content::Zero | Content::Gone => None,
        }
    }

    /// The page has a new version.
    pub(super) fn put(&mut self, page: u64, version: u64, hash: PageHash, bytes: &Page) {
        assert!(version < FROM_BEFORE, "positions are below");
        match self.before.as_ref().and_then(|before| before.find(hash)) {
            Some(slot) => self.store.put_elsewhere(page, version, hash, slot),
            None => self.store.put(page, version, hash, bytes),
        }
    }

    /// How many pages' bytes are held.
    pub(super) fn held_pages(&self) -> u64 {
        self.store.stored_pages() + self.before.as_deref().map_or(0, Before::pages)
    }

    /// Copies what is left of a page at the end: its newest version if that is held, else what was
    /// at its place before, which both ends hold as well.
    pub(super) fn read_left(&self, page: u64, out: &mut Page) -> Option<PageHash> {
        if let Some(held) = self.read_newest(page, out) {
            return Some(held.hash);
        }
        let is_zero = self.store.get(page).is_some_and(|held| held.content == Content::Zero);
        let before = self.before.as_deref().filter(|_| !is_zero)?;
        let (bytes, hash) = before.page(before.slot(page)?)?;
        out.copy_from_slice(bytes);
        Some(hash)
    }
}

impl Bases for &Versions {
    fn base(&mut self, page: u64, version: u64, out: &mut Page) -> Option<PageHash> {
        if version & FROM_BEFORE != 0 {
            let slot = version ^ FROM_BEFORE;
            let from_before = self.before.as_deref().and_then(|before| before.page(slot));
            let (bytes, hash) = from_before.or_else(|| self.held()?.page(slot))?;
            out.copy_from_slice(bytes);
            return Some(hash);
        }
        let held = self.store.get(page).filter(|held| held.version == version)?;
        match held.content {
            Content::Elsewhere(_) => self.read_newest(page, out).map(|held| held.hash),
            _ => self.store.read(page, out).map(|held| held.hash),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::before::tests::{hash, page, pool};
    use super::*;

    /// Pages 0 to 7 of a block were 10 to 17.
    fn versions() -> Versions {
        let pool = pool();
        let mut before = Before::with_room(&pool, 8).unwrap();
        before.add_block(b"pc.ram", 8);
        for number in 0..8 {
            let byte = 10 + number as u8;
            before.add_page(number, hash(byte), &page(byte)).unwrap();
        }
        let bases = (10, Some(Box::new(before)));
        let mut versions = Versions::new(&pool, 64, bases, Alone::held(0)).unwrap();
        versions.place(b"pc.ram", 0, 8);
        versions
    }

    fn base(versions: &Versions, number: u64, byte: u8) -> Option<(u64, u8)> {
        let mut room = page(0);
        let held = versions.read_base(number, (hash(byte), &page(byte)), &mut room)?;
        let mut again = page(0);
        let mut bases = versions;
        assert_eq!(bases.base(number, held.version, &mut again), Some(held.hash));
        assert_eq!(room, again, "the sink reads what the source has read");
        Some((held.version, room[0]))
    }

    #[test]
    fn a_page_is_coded_against_the_same_bytes_from_before_or_else_what_was_at_its_place() {
        let versions = versions();
        assert_eq!(base(&versions, 3, 13), Some((FROM_BEFORE | 3, 13)), "unchanged");
        assert_eq!(base(&versions, 3, 15), Some((FROM_BEFORE | 5, 15)), "moved");
        assert_eq!(base(&versions, 3, 99), Some((FROM_BEFORE | 3, 13)), "changed");
        assert_eq!(base(&versions, 20, 99), None);
        // A hash that lies is no reason to send nothing.
        let mut room = page(0);
        let held = versions.read_base(20, (hash(15), &page(99)), &mut room);
        assert_eq!(held, None);
    }

    #[test]
    fn the_newest_version_comes_first_wherever_its_bytes_are() {
        let mut versions = versions();
        versions.put(3, 7, hash(15), &page(15));
        assert_eq!(base(&versions, 3, 99), Some((7, 15)));
        assert_eq!(versions.held_pages(), 8, "its bytes are there already");
        versions.put(3, 8, hash(99), &page(99));
        assert_eq!(base(&versions, 3, 98), Some((8, 99)));
        assert_eq!((versions.held_pages(), versions.newest(3)), (9, Some(hash(99))));
        versions.put(3, 9, hash(0), &page(0));
        assert_eq!(base(&versions, 3, 13), Some((FROM_BEFORE | 3, 13)), "not against zeroes");
    }

    #[test]
    fn what_a_peer_names_and_nobody_has_is_not_there() {
        let (versions, mut room) = (versions(), page(1));
        let mut with = &versions;
        for version in [FROM_BEFORE | 8, u64::MAX, FROM_BEFORE - 1, 0] {
            assert_eq!(with.base(3, version, &mut room), None);
        }
        let without = Versions::new(&pool(), 64, (10, None), Alone::told(0)).unwrap();
        assert_eq!((&without).base(3, FROM_BEFORE, &mut room), None);
        assert_eq!(room, page(1));
    }

    #[test]
    fn what_is_left_is_the_newest_or_what_was_before_but_never_old_where_it_is_zero() {
        let mut versions = versions();
        versions.put(0, 1, hash(50), &page(50));
        versions.put(1, 1, hash(0), &page(0));
        let left = |number| {
            let mut room = page(0);
            versions.read_left(number, &mut room).map(|_| room[0])
        };
        assert_eq!([left(0), left(1), left(2), left(9)], [Some(50), None, Some(12), None]);
    }
}
