//! Private memory of pages, for what only its owner reads and writes.
//!
//! It comes from a [`PagePool`], is left out of core dumps, and goes back to the pool when it is
//! dropped, on any thread.

mod caretaker;
mod pool;

pub use caretaker::Caretaker;
pub use pool::{CHUNK_BYTES, PagePool, Taken};

use crate::PAGE_BYTES;
use pool::{Shared, State};
use std::fmt;
use std::sync::Arc;

const CHUNK_PAGES: u64 = CHUNK_BYTES / PAGE_BYTES as u64;

/// A chunk that is held, and what it will be when it is given back.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    number: usize,
    state: State,
}

/// Pages of zeroes, until they are written.
pub struct PrivatePages {
    pool: Arc<Shared>,
    /// What the pages lie in, in their order. Nobody else holds these.
    chunks: Vec<Chunk>,
    pages: u64,
}

impl PrivatePages {
    /// A page.
    ///
    /// # Panics
    /// When there is no such page.
    #[must_use]
    pub fn page(&self, page: u64) -> &[u8; PAGE_BYTES] {
        let (chunk, offset) = self.place(page);
        let bytes = self.pool.at(self.chunks[chunk].number, offset);
        // SAFETY: the page lies in a chunk that `self` alone holds, in a mapping that lives as long
        // as `self`, is readable, and private: nobody writes it while `self` is borrowed, since
        // `page_mut` alone gives a way to, by `&mut self`. Any bytes are a value.
        unsafe { bytes.cast().as_ref() }
    }

    /// A page, to be written.
    ///
    /// # Panics
    /// When there is no such page.
    #[must_use]
    pub fn page_mut(&mut self, page: u64) -> &mut [u8; PAGE_BYTES] {
        let (chunk, offset) = self.place(page);
        let chunk = &mut self.chunks[chunk];
        chunk.state = State::Used;
        let bytes = self.pool.at(chunk.number, offset);
        // SAFETY: as in `page`, and the mapping is writable; `&mut self` keeps all others away.
        unsafe { bytes.cast().as_mut() }
    }

    /// The chunk of a page, and how far into it the page starts.
    fn place(&self, page: u64) -> (usize, usize) {
        assert!(page < self.pages, "a page outside the memory");
        let offset = (page % CHUNK_PAGES) as usize * PAGE_BYTES;
        ((page / CHUNK_PAGES) as usize, offset)
    }
}

impl Drop for PrivatePages {
    fn drop(&mut self) {
        self.pool.give_back(&self.chunks);
    }
}

impl fmt::Debug for PrivatePages {
    /// The size only: the bytes are guest memory.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivatePages").field("pages", &self.pages).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
