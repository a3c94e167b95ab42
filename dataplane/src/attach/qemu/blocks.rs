//! The guest's RAM blocks and the numbers of their pages.
//!
//! Owned by a parser at the source and by an emitter at the sink, which make the same table of the
//! same announcements. All memory is taken at construction.

use dwcp_codec::{EXTENT_PAGES, PAGE_BYTES};

/// The most blocks of one guest. A block each for a memory device (QEMU has at most 256 of those
/// slots), a firmware image or a card's memory; usual guests have 6 to 20.
pub const BLOCKS_MAX: usize = 256;

/// The most pages of one guest: 4 PiB, beyond any machine. Keeps all sums far from overflow.
const PAGES_MAX: u64 = 1 << 40;

/// The longest name: its length is one byte.
const NAME_BYTES_MAX: usize = u8::MAX as usize;

/// A piece of guest memory under a name.
#[derive(Clone, Copy)]
pub struct Block {
    name: [u8; NAME_BYTES_MAX],
    name_bytes: u8,
    first_page: u64,
    pages: u64,
}

impl Block {
    /// The name.
    #[must_use]
    pub fn idstr(&self) -> &[u8] {
        &self.name[..usize::from(self.name_bytes)]
    }

    /// The number of its first page: a multiple of 64.
    #[must_use]
    pub const fn first_page(&self) -> u64 {
        self.first_page
    }

    /// How many pages it has.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// The page at this offset, if that is one.
    pub(super) fn page_at(&self, offset: u64) -> Option<u64> {
        let page = offset / PAGE_BYTES as u64;
        (page < self.pages).then_some(self.first_page + page)
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.idstr().escape_ascii();
        write!(f, "{name}: {} pages from {}", self.pages, self.first_page)
    }
}

/// The blocks in the order of their announcement.
#[derive(Debug)]
pub struct Blocks {
    table: Vec<Block>,
    /// The next block's first page.
    next_page: u64,
}

impl Blocks {
    pub(super) fn new() -> Self {
        Self { table: Vec::with_capacity(BLOCKS_MAX), next_page: 0 }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u16 {
        self.table.len() as u16
    }

    /// The size that a session's page table needs: one more than the highest page number.
    #[must_use]
    pub const fn page_slots(&self) -> u64 {
        self.next_page
    }

    /// A block by its number.
    #[must_use]
    pub fn block(&self, number: u16) -> Option<&Block> {
        self.table.get(usize::from(number))
    }

    /// The number of the block that has this page.
    #[must_use]
    pub fn of_page(&self, page: u64) -> Option<u16> {
        let behind = self.table.partition_point(|block| block.first_page <= page);
        let number = behind.checked_sub(1)?;
        let block = &self.table[number];
        (page - block.first_page < block.pages).then_some(number as u16)
    }

    /// The number of the block of this name.
    pub(super) fn of_name(&self, name: &[u8]) -> Option<u16> {
        self.table.iter().position(|block| block.idstr() == name).map(|number| number as u16)
    }

    /// Adds a block; false if it can't be one, or there is no room for it.
    pub(super) fn push(&mut self, name: &[u8], bytes: u64) -> bool {
        let pages = bytes / PAGE_BYTES as u64;
        let valid = self.table.len() < BLOCKS_MAX
            && (1..=NAME_BYTES_MAX).contains(&name.len())
            && bytes.is_multiple_of(PAGE_BYTES as u64)
            && pages <= PAGES_MAX - self.next_page
            && self.of_name(name).is_none();
        if !valid {
            return false;
        }
        let mut padded = [0; NAME_BYTES_MAX];
        padded[..name.len()].copy_from_slice(name);
        self.table.push(Block {
            name: padded,
            name_bytes: name.len() as u8,
            first_page: self.next_page,
            pages,
        });
        self.next_page = (self.next_page + pages).next_multiple_of(EXTENT_PAGES as u64);
        true
    }
}

const _: () = assert!(BLOCKS_MAX <= u16::MAX as usize);
// `push` keeps `next_page` at most `PAGES_MAX`: rounding up can't pass a multiple.
const _: () = assert!(PAGES_MAX.is_multiple_of(EXTENT_PAGES as u64));

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = PAGE_BYTES as u64;

    #[test]
    fn blocks_start_at_multiples_of_an_extent_and_gaps_belong_to_none() {
        let mut blocks = Blocks::new();
        assert!(blocks.push(b"pc.ram", 65 * PAGE));
        assert!(blocks.push(b"empty", 0));
        assert!(blocks.push(b"pc.bios", PAGE));
        assert_eq!(blocks.block(2).unwrap().first_page(), 128);
        assert_eq!(blocks.page_slots(), 192);
        for (page, owner) in [
            (0, Some(0)),
            (64, Some(0)),
            (65, None),
            (127, None),
            (128, Some(2)),
            (129, None),
            (u64::MAX, None),
        ] {
            assert_eq!(blocks.of_page(page), owner, "page {page}");
        }
        assert_eq!(blocks.block(0).unwrap().page_at(64 * PAGE), Some(64));
        assert_eq!(blocks.block(0).unwrap().page_at(65 * PAGE), None);
        assert_eq!(blocks.of_name(b"pc.bios"), Some(2));
    }

    #[test]
    fn what_can_not_be_a_block_changes_nothing() {
        let mut blocks = Blocks::new();
        assert!(!blocks.push(b"", PAGE));
        assert!(!blocks.push(&[b'a'; 256], PAGE));
        assert!(!blocks.push(b"a", PAGE - 1));
        assert!(!blocks.push(b"a", (PAGES_MAX + 1) * PAGE));
        assert!(blocks.push(b"a", PAGES_MAX * PAGE));
        assert!(!blocks.push(b"b", PAGE), "no page number is left");
        assert!(!blocks.push(b"a", 0), "the name is taken");
        assert_eq!(blocks.count(), 1);
    }

    #[test]
    fn the_table_holds_its_most_blocks_without_growing() {
        let mut blocks = Blocks::new();
        let before = blocks.table.capacity();
        for number in 0..BLOCKS_MAX {
            assert!(blocks.push(format!("block {number}").as_bytes(), PAGE));
        }
        assert!(!blocks.push(b"one more", PAGE));
        assert_eq!(blocks.table.capacity(), before);
        assert_eq!(usize::from(blocks.count()), BLOCKS_MAX);
    }
}
