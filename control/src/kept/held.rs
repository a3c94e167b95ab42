//! Reads what this end alone holds for a session that runs, on the store's thread: a chunk at a
//! turn.
//!
//! Pages are told by the session's hash of what was read, so nothing else of them is checked. One
//! that comes twice is told once. What can't be read any more is left out, and the session does
//! without it.

use super::{HoldJob, KeptError};
use dwcp_dataplane::port::{HeldChunk, PageHash, PageHasher};
use dwcp_ffi::memory::PagePool;
use dwcp_store::{SegmentId, Store};
use std::collections::{HashSet, VecDeque};
use std::time::SystemTime;

/// What is being read for a session.
pub(super) struct Holding {
    pub(super) job: HoldJob,
    hasher: PageHasher,
    segments: VecDeque<SegmentId>,
    at: Option<At>,
    /// The pages that were read, by how the session's hashes of them begin.
    seen: HashSet<[u8; 8]>,
    /// Of the pages of one block.
    hashes: Vec<PageHash>,
    /// Segments that were not there any more.
    pub(super) gone: Vec<SegmentId>,
}

/// The place in a segment that is read next.
#[derive(Clone, Copy)]
struct At {
    segment: SegmentId,
    block: u32,
    /// In the block.
    page: usize,
}

impl Holding {
    pub(super) fn begin(job: HoldJob) -> Self {
        let hasher = PageHasher::new(&job.hash_key);
        let segments = job.segments.iter().copied().collect();
        let (seen, hashes, gone) = (HashSet::new(), Vec::new(), Vec::new());
        Self { job, hasher, segments, at: None, seen, hashes, gone }
    }

    /// How many pages were read.
    pub(super) fn pages(&self) -> u64 {
        u64::try_from(self.seen.len()).unwrap_or(u64::MAX)
    }

    /// The next pages; none when there are no more.
    pub(super) fn turn(
        &mut self,
        store: &mut Store,
        pool: &PagePool,
    ) -> Result<Option<Box<HeldChunk>>, KeptError> {
        if self.job.wanted.strong_count() == 0 {
            return Err(KeptError::Stopped);
        }
        let mut chunk = HeldChunk::create(pool)?;
        while !chunk.is_full() && self.pages() < self.job.pages {
            if let Some(at) = self.at {
                self.at = self.read(store, at, &mut chunk);
            } else if let Some(segment) = self.segments.pop_front() {
                self.at = self.open(store, segment);
            } else {
                break;
            }
        }
        Ok((chunk.pages() > 0).then(|| Box::new(chunk)))
    }

    fn open(&mut self, store: &mut Store, segment: SegmentId) -> Option<At> {
        let Some(view) = store.list().find(|view| view.id == segment) else {
            self.gone.push(segment);
            return None;
        };
        store.used(view.domain, SystemTime::now());
        Some(At { segment, block: 0, page: 0 })
    }

    /// Reads what is left of a block; returns the place behind it, if the segment has more.
    fn read(&mut self, store: &mut Store, at: At, chunk: &mut HeldChunk) -> Option<At> {
        let block = store.block(at.segment, at.block)?;
        let pages = &block[at.page..];
        self.hashes.resize(pages.len(), PageHash::default());
        self.hasher.hash_all(pages, &mut self.hashes);
        for (page, (hash, bytes)) in (at.page..).zip(self.hashes.iter().zip(pages)) {
            let is_enough = u64::try_from(self.seen.len()) == Ok(self.job.pages);
            if chunk.is_full() || is_enough {
                return Some(At { page, ..at });
            }
            if hash.0.first_chunk().is_some_and(|start| self.seen.insert(*start)) {
                chunk.add(*hash, bytes);
            }
        }
        Some(At { block: at.block + 1, page: 0, ..at })
    }
}
