//! BLAKE3 over many pages at once.
//!
//! A page is four chunks of 1024 bytes, and BLAKE3 compresses up to sixteen chunks in the time of
//! one where the processor has vectors for it. A page by itself fills a quarter of these vectors;
//! here each compression takes the same chunk of sixteen pages. What comes out is what
//! [`blake3::keyed_hash`] gives for each page: the tests hold both against each other. Pure, and
//! without memory of its own; [`crate::hash::PageHasher`] alone calls it.

use crate::hash::{HASH_KEY_BYTES, HashKey, PAGE_HASH_BYTES, PageHash};
use crate::page::{PAGE_BYTES, Page};
use blake3::platform::{Platform, words_from_le_bytes_32};
use blake3::{BLOCK_LEN, CHUNK_LEN, IncrementCounter, OUT_LEN};

/// Pages that are hashed together: as many as the widest vectors have lanes.
pub(crate) const TOGETHER: usize = 16;

/// Chunks of a page, the leaves of its tree.
const CHUNKS: usize = PAGE_BYTES / CHUNK_LEN;

// Flags of the compression function, BLAKE3 specification, table 3.
const CHUNK_START: u8 = 1 << 0;
const CHUNK_END: u8 = 1 << 1;
const PARENT: u8 = 1 << 2;
const ROOT: u8 = 1 << 3;
const KEYED_HASH: u8 = 1 << 4;

const _: () = assert!(CHUNKS == 4, "the tree below has four leaves and two levels of parents");
const _: () = assert!(2 * OUT_LEN == BLOCK_LEN, "a parent's block is its two children");

/// The chaining values of the same node of each page.
type Nodes = [[u8; OUT_LEN]; TOGETHER];

/// Hashes pages side by side under one key.
#[derive(Clone)]
pub(crate) struct ManyHasher {
    platform: Platform,
    key: [u32; HASH_KEY_BYTES / 4],
}

impl ManyHasher {
    pub(crate) fn new(key: &HashKey) -> Self {
        Self { platform: Platform::detect(), key: words_from_le_bytes_32(&key.0) }
    }

    /// The hashes of up to [`TOGETHER`] pages, in their order.
    pub(crate) fn hash(&self, pages: &[&Page]) -> [PageHash; TOGETHER] {
        assert!(pages.len() <= TOGETHER, "more pages than are hashed together");
        let [left, right] = [0, 2].map(|chunk| {
            let children = [self.chunks(pages, chunk), self.chunks(pages, chunk + 1)];
            self.parents(&children, pages.len(), 0)
        });
        let roots = self.parents(&[left, right], pages.len(), ROOT);
        roots.map(|root| {
            let mut short = [0; PAGE_HASH_BYTES];
            short.copy_from_slice(&root[..PAGE_HASH_BYTES]);
            PageHash(short)
        })
    }

    /// The chaining values of one chunk of each page.
    fn chunks(&self, pages: &[&Page], chunk: usize) -> Nodes {
        let mut inputs = [&[0; CHUNK_LEN]; TOGETHER];
        for (input, page) in inputs.iter_mut().zip(pages) {
            *input = &page.as_chunks::<CHUNK_LEN>().0[chunk];
        }
        let mut nodes = [[0; OUT_LEN]; TOGETHER];
        self.platform.hash_many(
            &inputs[..pages.len()],
            &self.key,
            chunk as u64,
            IncrementCounter::No,
            KEYED_HASH,
            CHUNK_START,
            CHUNK_END,
            nodes.as_flattened_mut(),
        );
        nodes
    }

    /// The parents of two children of each page.
    fn parents(&self, [left, right]: &[Nodes; 2], count: usize, flag: u8) -> Nodes {
        let mut blocks = [[0; BLOCK_LEN]; TOGETHER];
        for (block, (left, right)) in blocks.iter_mut().zip(left.iter().zip(right)) {
            block[..OUT_LEN].copy_from_slice(left);
            block[OUT_LEN..].copy_from_slice(right);
        }
        let inputs = blocks.each_ref();
        let mut nodes = [[0; OUT_LEN]; TOGETHER];
        self.platform.hash_many(
            &inputs[..count],
            &self.key,
            0,
            IncrementCounter::No,
            KEYED_HASH | PARENT | flag,
            0,
            0,
            nodes.as_flattened_mut(),
        );
        nodes
    }
}
