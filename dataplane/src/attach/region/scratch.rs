//! What a shard works with while it codes.
//!
//! One per shard, lent to one source at a time; all memory is taken at start.

use dwcp_codec::policy::ZSTD_LEVEL_MAX;
use dwcp_codec::{EXTENT_BYTES, EXTENT_PAGES, Encoder, EncoderConfig, PageHash};
use dwcp_ffi::arena::{Arena, ArenaError, Lease};

/// Working memory for one extent or batch and the coder; a shard has one of each for all its
/// sources.
#[derive(Debug)]
pub(crate) struct Scratch {
    pub(crate) encoder: Encoder,
    pub(crate) pages: Lease,
    pub(crate) hashes: [PageHash; EXTENT_PAGES],
    /// Bases that a stream session copied out of its store.
    pub(crate) bases: Lease,
    // Keeps the lease's memory; never asked for another.
    _arena: Arena,
}

impl Scratch {
    pub(crate) fn new() -> Result<Self, ArenaError> {
        let arena = Arena::new(EXTENT_BYTES, 2, false)?;
        let (Some(pages), Some(bases)) = (arena.lease(), arena.lease()) else {
            unreachable!("a new arena of two slots has them free")
        };
        let encoder = Encoder::new(EncoderConfig { zstd_level_max: ZSTD_LEVEL_MAX });
        Ok(Self { encoder, pages, hashes: [PageHash([0; 16]); EXTENT_PAGES], bases, _arena: arena })
    }

    /// Zeroes what the last extents left of pages.
    pub(crate) fn scrub(&mut self) {
        self.pages.fill(0);
        self.bases.fill(0);
        self.encoder.scrub();
    }
}
