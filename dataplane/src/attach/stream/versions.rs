//! The page versions that a stream session may name as bases: its own newest, and those from
//! before.
//!
//! Held alike at both ends, as the store is: what is held is a function of the sizes, of what there
//! is from before, and of the sequence of [`Versions::put`]. A page that is what it was before
//! takes no room of the store.

use super::before::{Before, VERSION_BEFORE};
use super::store::{Content, Held, PageStore};
use dwcp_codec::{Bases, Page, PageHash};
use dwcp_ffi::region::RegionError;

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

    /// Copies the version that the page is best coded against to `out`: its newest, or that from
    /// before where the newest is not held. A delta against zeros is the page itself: that is
    /// better coded with its neighbours.
    pub(super) fn read_base(&self, page: u64, out: &mut Page) -> Option<Held> {
        match self.store.get(page).map(|held| held.content) {
            Some(Content::Zero) => return None,
            Some(Content::Stored) => return self.store.read(page, out),
            Some(Content::Gone) | None => {}
        }
        let hash = self.before.as_ref()?.read(page, out)?;
        Some(Held { version: VERSION_BEFORE, hash, content: Content::Stored })
    }

    /// The page has a new version.
    pub(super) fn put(&mut self, page: u64, version: u64, hash: PageHash, bytes: &Page) {
        match self.before.as_ref().and_then(|before| before.hash(page)) {
            Some(before) if before == hash => self.store.put_gone(page, version, hash),
            _ => self.store.put(page, version, hash, bytes),
        }
    }

    /// How many pages' bytes are held.
    pub(super) fn held_pages(&self) -> u64 {
        self.store.stored_pages() + self.before.as_deref().map_or(0, Before::pages)
    }
}

impl Bases for &Versions {
    fn base(&mut self, page: u64, version: u64, out: &mut Page) -> Option<PageHash> {
        match (version, &self.before) {
            (VERSION_BEFORE, Some(before)) => before.read(page, out),
            _ => (&self.store).base(page, version, out),
        }
    }
}
