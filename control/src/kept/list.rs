//! The list of the pages that a session left, as it lies in a store beside them.
//!
//! It is cut into pages itself, which are kept under their hashes like all others. Each begins with
//! the hash of the next, so that the first one's hash is all that has to be known. Pure.
//!
//! ```text
//! block  0  u8   1        pages u64        bytes of the name u8        name
//! page   0  u8   2        number in the block u64        hash 16
//! end    0  u8   0
//! ```
//!
//! Numbers are little-endian. Entries run on from one page of the list to the next.

use dwcp_dataplane::port::{Page, PageHash};

/// Bytes of a page of the list that hold entries.
const ROOM_BYTES: usize = size_of::<Page>() - HASH_BYTES;
const HASH_BYTES: usize = 16;

const END: u8 = 0;
const BLOCK: u8 = 1;
const PAGE: u8 = 2;

/// A list that is made.
#[derive(Debug, Default)]
pub(super) struct ListWriter {
    entries: Vec<u8>,
}

impl ListWriter {
    /// Adds a block of guest memory.
    pub(super) fn block(&mut self, name: &[u8], pages: u64) {
        let Ok(name_bytes) = u8::try_from(name.len()) else {
            unreachable!("a block's name has a length of one byte")
        };
        self.entries.push(BLOCK);
        self.entries.extend(pages.to_le_bytes());
        self.entries.push(name_bytes);
        self.entries.extend(name);
    }

    /// Adds a page of the block that was added last.
    pub(super) fn page(&mut self, number: u64, hash: PageHash) {
        self.entries.push(PAGE);
        self.entries.extend(number.to_le_bytes());
        self.entries.extend(hash.0);
    }

    /// Gives the pages of the list to `keep`, the last one first, which says under which hash it
    /// keeps each. Returns the first one's.
    pub(super) fn finish<E>(
        mut self,
        mut keep: impl FnMut(&Page) -> Result<PageHash, E>,
    ) -> Result<PageHash, E> {
        self.entries.push(END);
        let mut next = PageHash::default();
        for entries in self.entries.chunks(ROOM_BYTES).rev() {
            let mut page = [0; size_of::<Page>()];
            page[..HASH_BYTES].copy_from_slice(&next.0);
            page[HASH_BYTES..][..entries.len()].copy_from_slice(entries);
            next = keep(&page)?;
        }
        Ok(next)
    }
}

/// What a list names.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Block { name: Vec<u8>, pages: u64 },
    Page { number: u64, hash: PageHash },
}

/// Why a list can't be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ListError {
    #[error("a page of the list is not there any more")]
    Gone,
    #[error("the list is malformed")]
    Malformed,
}

/// Reads a list whose pages `read` fetches by their hashes.
pub(super) struct ListReader<R> {
    read: R,
    page: Page,
    at: usize,
}

impl<R: FnMut(&PageHash, &mut Page) -> bool> ListReader<R> {
    pub(super) fn new(first: PageHash, read: R) -> Self {
        let mut page = [0; size_of::<Page>()];
        page[..HASH_BYTES].copy_from_slice(&first.0);
        Self { read, page, at: size_of::<Page>() }
    }

    /// The next entry; none at the end.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, ListError> {
        Ok(Some(match self.byte()? {
            END => return Ok(None),
            BLOCK => {
                let pages = u64::from_le_bytes(self.array()?);
                let name_bytes = self.byte()?;
                let name = (0..name_bytes).map(|_| self.byte()).collect::<Result<_, _>>()?;
                Entry::Block { name, pages }
            }
            PAGE => {
                let number = u64::from_le_bytes(self.array()?);
                Entry::Page { number, hash: PageHash(self.array()?) }
            }
            _ => return Err(ListError::Malformed),
        }))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ListError> {
        let mut out = [0; N];
        for byte in &mut out {
            *byte = self.byte()?;
        }
        Ok(out)
    }

    fn byte(&mut self) -> Result<u8, ListError> {
        if self.at == self.page.len() {
            let mut hash = PageHash::default();
            hash.0.copy_from_slice(&self.page[..HASH_BYTES]);
            if !(self.read)(&hash, &mut self.page) {
                return Err(ListError::Gone);
            }
            self.at = HASH_BYTES;
        }
        let byte = self.page[self.at];
        self.at += 1;
        Ok(byte)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_dataplane::port::{HashKey, PageHasher};
    use std::collections::BTreeMap;

    type Kept = BTreeMap<PageHash, Page>;

    fn written(pages: u64) -> (Kept, PageHash, Vec<Entry>) {
        let hasher = PageHasher::new(&HashKey([1; 32]));
        let (mut list, mut entries) = (ListWriter::default(), Vec::new());
        for name in [&b"pc.ram"[..], &[b'x'; 255], b""] {
            list.block(name, pages);
            entries.push(Entry::Block { name: name.to_vec(), pages });
            for number in 0..pages {
                let hash = PageHash([number as u8; 16]);
                list.page(number, hash);
                entries.push(Entry::Page { number, hash });
            }
        }
        let mut kept = Kept::new();
        let first = list.finish(|page| {
            let hash = hasher.hash(page);
            kept.insert(hash, *page);
            Ok::<_, ListError>(hash)
        });
        (kept, first.unwrap(), entries)
    }

    fn read(kept: &Kept, first: PageHash) -> Result<Vec<Entry>, ListError> {
        let mut list = ListReader::new(first, |hash: &PageHash, out: &mut Page| {
            kept.get(hash).map(|page| *out = *page).is_some()
        });
        let mut entries = Vec::new();
        while let Some(entry) = list.next()? {
            entries.push(entry);
        }
        Ok(entries)
    }

    #[test]
    fn a_list_of_any_length_is_read_as_it_was_written() {
        for pages in [0, 1, 150, 163, 164, 1000] {
            let (kept, first, entries) = written(pages);
            assert_eq!(read(&kept, first).unwrap(), entries, "{pages}");
        }
    }

    #[test]
    fn a_list_with_a_hole_or_of_other_bytes_is_told() {
        let (mut kept, first, _) = written(1000);
        let noise = PageHash([9; 16]);
        kept.insert(noise, [7; 4096]);
        assert_eq!(read(&kept, noise), Err(ListError::Malformed));
        let other = *kept.keys().find(|hash| **hash != first && **hash != noise).unwrap();
        kept.remove(&other);
        assert_eq!(read(&kept, first), Err(ListError::Gone));
        assert_eq!(read(&kept, PageHash([8; 16])), Err(ListError::Gone));
    }
}
