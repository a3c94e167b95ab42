//! What both ends of a stream session hold from an earlier one of the same guest.
//!
//! A session leaves page versions behind ([`PagesLeft`]), alike at both ends. Who keeps them may
//! give them to a later session at both ends ([`Before`]), most often when the guest comes back: a
//! page that is still what it was costs a few bytes then, and one that has changed is coded against
//! what it was. Pages are found by their content, too, wherever they were: that serves another
//! guest of the same image.
//!
//! [`Before`] is made off the shard, belongs to one session and is only read there. The numbers of
//! pages may differ from session to session, so pages are named by their block, which finds its
//! place when it is announced. Both ends hold the same versions in the same order, or the session
//! must not have them.

use super::versions::Versions;
use crate::attach::qemu::{BLOCKS_MAX, Blocks};
use dwcp_codec::{Digest, DigestBuilder, DigestKind, PAGE_BYTES, Page, PageHash, PageHasher};
use dwcp_ffi::memory::{PagePool, PrivatePages};
use dwcp_ffi::region::RegionError;
use std::sync::mpsc::SyncSender;

/// Memory for each page from before: its bytes, its hash, and its part of what finds it by that.
pub const BEFORE_PAGE_BYTES: u64 = PAGE_BYTES as u64 + 16 + 4 * 4;
/// Memory for each page of the guest while there are any from before.
pub const BEFORE_GUEST_PAGE_BYTES: u64 = 4;

/// The most pages from before: one more marks a page that there is none of.
const PAGES_MAX: u64 = NONE as u64;
const NONE: u32 = u32::MAX;

/// Why pages can't be taken into a [`Before`].
#[derive(Debug, thiserror::Error)]
pub enum BeforeError {
    /// Their memory can't be had.
    #[error(transparent)]
    Memory(#[from] RegionError),
    /// There are more than it was made for, or one comes twice, or none of that number can be.
    #[error("page {page} of block {block} does not fit")]
    Place {
        /// The number of the block.
        block: usize,
        /// The page in it.
        page: u64,
    },
}

/// A block of guest memory.
#[derive(Debug)]
struct Block {
    idstr: Vec<u8>,
    /// For each page its slot, or `NONE`.
    slots: Vec<u32>,
}

/// Page versions from before.
#[derive(Debug)]
pub struct Before {
    blocks: Vec<Block>,
    /// Where the session has put blocks: their first page and which they are, ascending.
    placed: Vec<(u64, usize)>,
    hashes: Vec<PageHash>,
    /// Slots by hash: open addressing, a power of two, at most half full.
    found: Vec<u32>,
    pages: PrivatePages,
    capacity: u64,
}

impl Before {
    /// Room for so many pages in memory of a pool.
    ///
    /// # Errors
    /// [`BeforeError::Memory`]: none, or more than the pool has left.
    pub fn with_room(pool: &PagePool, pages: u64) -> Result<Self, BeforeError> {
        let capacity = pages.min(PAGES_MAX);
        Ok(Self {
            blocks: Vec::new(),
            placed: Vec::with_capacity(BLOCKS_MAX),
            hashes: Vec::with_capacity(usize::try_from(capacity).unwrap_or(0)),
            found: vec![NONE; usize::try_from(capacity * 2).unwrap_or(0).next_power_of_two()],
            pages: pool.take(capacity.saturating_mul(PAGE_BYTES as u64))?,
            capacity,
        })
    }

    /// Adds a block of so many pages; those that follow are its own.
    pub fn add_block(&mut self, idstr: &[u8], pages: u64) {
        let pages = usize::try_from(pages).unwrap_or(0);
        self.blocks.push(Block { idstr: idstr.to_vec(), slots: vec![NONE; pages] });
    }

    /// Adds a page of the block that was added last.
    ///
    /// # Errors
    /// [`BeforeError::Place`].
    pub fn add_page(&mut self, page: u64, hash: PageHash, bytes: &Page) -> Result<(), BeforeError> {
        let block = self.blocks.len();
        let slot = self.hashes.len() as u64;
        let places = self.blocks.last_mut().map(|block| &mut block.slots);
        let place = places.and_then(|it| it.get_mut(usize::try_from(page).ok()?));
        match place {
            Some(place) if *place == NONE && slot < self.capacity => *place = slot as u32,
            _ => return Err(BeforeError::Place { block, page }),
        }
        self.pages.page_mut(slot).copy_from_slice(bytes);
        self.hashes.push(hash);
        let at = self.search(hash);
        if self.found[at] == NONE {
            self.found[at] = slot as u32;
        }
        Ok(())
    }

    /// Where a hash stands among those that are found, or would.
    fn search(&self, hash: PageHash) -> usize {
        let mask = self.found.len() - 1;
        let start = hash.0.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)) as usize;
        let mut at = start & mask;
        while self.found[at] != NONE && self.hashes[self.found[at] as usize] != hash {
            at = (at + 1) & mask;
        }
        at
    }

    /// How many pages there are.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.hashes.len() as u64
    }

    /// The session announces a block. One that is not as it was has no pages from before.
    pub(super) fn place(&mut self, idstr: &[u8], first_page: u64, pages: u64) {
        let is_it = |block: &Block| block.idstr == idstr && block.slots.len() as u64 == pages;
        if let Some(index) = self.blocks.iter().position(is_it)
            && self.placed.len() < BLOCKS_MAX
        {
            self.placed.push((first_page, index));
        }
    }

    /// The slot of the page at the same place.
    pub(super) fn slot(&self, page: u64) -> Option<u64> {
        let behind = self.placed.partition_point(|(first, _)| *first <= page);
        let (first, index) = self.placed[behind.checked_sub(1)?];
        let slots = &self.blocks[index].slots;
        let slot = *slots.get(usize::try_from(page - first).ok()?)?;
        (slot != NONE).then_some(slot.into())
    }

    /// The slot of the first page with this hash, wherever it was.
    pub(super) fn find(&self, hash: PageHash) -> Option<u64> {
        let slot = self.found[self.search(hash)];
        (slot != NONE).then_some(slot.into())
    }

    /// The page in a slot, and its hash.
    pub(super) fn page(&self, slot: u64) -> Option<(&Page, PageHash)> {
        let hash = *self.hashes.get(usize::try_from(slot).ok()?)?;
        Some((self.pages.page(slot), hash))
    }
}

/// Who is given what a stream session leaves, once it is closed. Has room for it.
pub type Heir = SyncSender<PagesLeft>;

/// What a stream session leaves behind: the page versions that both ends hold.
#[derive(Debug)]
pub struct PagesLeft {
    hasher: PageHasher,
    blocks: Blocks,
    versions: Versions,
}

impl PagesLeft {
    pub(super) const fn new(hasher: PageHasher, blocks: Blocks, versions: Versions) -> Self {
        Self { hasher, blocks, versions }
    }

    /// The guest's blocks: name and pages of each.
    pub fn blocks(&self) -> impl Iterator<Item = (&[u8], u64)> {
        (0..self.blocks.count())
            .filter_map(|number| self.blocks.block(number))
            .map(|block| (block.idstr(), block.pages()))
    }

    /// Gives each page of a block that is held and not zero to `each`, ascending: its number in the
    /// block, its hash, its bytes. Stops at the first error.
    ///
    /// # Errors
    /// The first one of `each`.
    pub fn pages<E>(
        &self,
        block: u16,
        mut each: impl FnMut(u64, PageHash, &Page) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(block) = self.blocks.block(block) else { return Ok(()) };
        let mut room = [0; PAGE_BYTES];
        for page in 0..block.pages() {
            if let Some(hash) = self.versions.read_left(block.first_page() + page, &mut room) {
                each(page, hash, &room)?;
            }
        }
        Ok(())
    }

    /// A digest of all of it. Two ends that hold the same have the same.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut digest = DigestBuilder::new(&self.hasher, DigestKind::Region);
        for (number, (idstr, pages)) in (0..).zip(self.blocks()) {
            digest.add_part(pages, 0, idstr.len(), [idstr]);
            let added: Result<(), std::convert::Infallible> =
                self.pages(number, |page, hash, _| {
                    digest.add(page, hash);
                    Ok(())
                });
            let Ok(()) = added;
        }
        digest.finish()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What stands for the hash of [`page`].
    pub(in super::super) fn hash(byte: u8) -> PageHash {
        PageHash([byte; 16])
    }

    pub(in super::super) fn pool() -> PagePool {
        PagePool::new(4 << 20).unwrap()
    }

    pub(in super::super) fn page(byte: u8) -> Page {
        [byte; PAGE_BYTES]
    }

    #[test]
    fn pages_are_found_by_place_once_their_block_has_one_and_by_content_at_once() {
        let mut before = Before::with_room(&pool(), 8).unwrap();
        before.add_block(b"pc.ram", 10);
        for number in [1, 4, 5, 9] {
            // Two of them have the same content.
            let byte = if number == 9 { 4 } else { number as u8 };
            before.add_page(number, hash(byte), &page(byte)).unwrap();
        }
        before.add_block(b"pc.bios", 2);
        before.add_page(0, hash(77), &page(77)).unwrap();
        assert_eq!((before.pages(), before.slot(4)), (5, None), "no block has a place");
        assert_eq!((before.find(hash(4)), before.find(hash(6))), (Some(1), None));
        before.place(b"pc.bios", 0, 2);
        before.place(b"pc.other", 64, 2);
        before.place(b"pc.ram", 128, 10);
        let slots = [0, 1, 63, 64, 128, 129, 132, 137, 138].map(|number| before.slot(number));
        assert_eq!(slots, [Some(4), None, None, None, None, Some(0), Some(1), Some(3), None]);
        assert_eq!(before.page(3), Some((&page(4), hash(4))));
        assert_eq!(before.page(5), None);
        assert_eq!(before.page(u64::MAX), None);
    }

    #[test]
    fn a_block_of_another_length_has_no_place() {
        let mut before = Before::with_room(&pool(), 1).unwrap();
        before.add_block(b"pc.ram", 10);
        before.add_page(0, hash(1), &page(1)).unwrap();
        before.place(b"pc.ram", 0, 11);
        assert_eq!(before.slot(0), None);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(matches!(Before::with_room(&pool(), 0), Err(BeforeError::Memory(_))));
        let mut before = Before::with_room(&pool(), 2).unwrap();
        let refused = |before: &mut Before, number| {
            matches!(before.add_page(number, hash(1), &page(1)), Err(BeforeError::Place { .. }))
        };
        assert!(refused(&mut before, 0), "there is no block");
        before.add_block(b"pc.ram", 4);
        before.add_page(0, hash(1), &page(1)).unwrap();
        assert!(refused(&mut before, 0) && refused(&mut before, 4));
        before.add_page(1, hash(2), &page(2)).unwrap();
        assert!(refused(&mut before, 2), "it is full");
        assert_eq!(before.pages(), 2);
    }

    #[test]
    fn many_hashes_that_begin_alike_are_told_apart() {
        let mut before = Before::with_room(&pool(), 300).unwrap();
        before.add_block(b"pc.ram", 300);
        let alike = |number: u64| {
            let mut hash = [7; 16];
            hash[8..].copy_from_slice(&number.to_le_bytes());
            PageHash(hash)
        };
        for number in 0..300 {
            before.add_page(number, alike(number), &page(number as u8)).unwrap();
        }
        assert!((0..300).all(|number| before.find(alike(number)) == Some(number)));
        assert_eq!(before.find(alike(300)), None);
    }
}
