//! The page versions that a stream session may name as bases: its own newest, and those from
//! before.
//!
//! Held alike at both ends, as the store is: what is held is a function of the sizes, of what there
//! is from before, and of the sequence of [`Versions::put`]. A page that is what one was before,
//! at any place, takes no room of the store.

use super::before::Before;
use super::store::{Content, Held, PageStore};
use dwcp_codec::{Bases, Page, PageHash};
use dwcp_ffi::region::RegionError;

/// In a version: it names a slot of what is from before, whatever the page. Positions are below.
const FROM_BEFORE: u64 = 1 << 40;

/// Page versions.
#[derive(Debug)]
pub(super) struct Versions {
    store: PageStore,
    before: Option<Box<Before>>,
}

impl Versions {
    /// For pages below `pages_max`. What is from before counts for the most that may be held.
    pub(super) fn new(
        pages_max: u64,
        base_pages: u64,
        before: Option<Box<Before>>,
    ) -> Result<Self, RegionError> {
        let own = base_pages.saturating_sub(before.as_deref().map_or(0, Before::pages));
        Ok(Self { store: PageStore::new(pages_max, own)?, before })
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
    /// bytes from before, wherever they were, or what was at its place.
    pub(super) fn read_base(
        &self,
        page: u64,
        (hash, bytes): (PageHash, &Page),
        out: &mut Page,
    ) -> Option<Held> {
        if let Some(held) = self.read_newest(page, out) {
            return Some(held);
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
            let (bytes, hash) = self.before.as_deref()?.page(version ^ FROM_BEFORE)?;
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
