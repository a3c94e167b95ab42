//! Makes the VMM's stream again of the parts with pages, at the sink.
//!
//! Owned by a stream sink; serves channel 0. A batch is decoded into page records, which wait here
//! until the VMM took them; the next batch is decoded only then. The store follows the source's
//! exactly: it gets every page of every batch, in the order of the parts.

use super::before::PagesLeft;
use super::block::read_block;
use super::held::HeldPages;
use super::pool::guest_memory;
use super::versions::Versions;
use crate::attach::qemu::{EmitError, Emitter, RECORD_BYTES_MAX};
use crate::stats::{SessionCounter, SessionStats};
use dwcp_codec::{
    Class, DecodeError, Decoder, EXTENT_PAGES, LongWindowDecoder, PAGE_BYTES, PageHasher,
};
use dwcp_ffi::arena::{ArenaError, Lease};
use dwcp_proto::ids::Position;
use std::ops::Range;

/// Room for the records of a batch.
pub(super) const OUTPUT_BYTES: usize = EXTENT_PAGES * RECORD_BYTES_MAX;

/// Why parts with pages can't be made into a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RebuildError {
    #[error("an announcement of a block is malformed")]
    Block,
    #[error(transparent)]
    Emit(#[from] EmitError),
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

impl RebuildError {
    /// The stable code of the error.
    pub(crate) const fn code(&self) -> &'static str {
        match self {
            Self::Block => "stream_block",
            Self::Emit(error) => error.code(),
            Self::Decode(error) => error.code(),
        }
    }
}

/// The rebuilder of a stream session.
#[derive(Debug)]
pub(super) struct Rebuilder {
    emitter: Emitter,
    versions: Versions,
    window: Option<LongWindowDecoder>,
    output: Lease,
    unwritten: Range<usize>,
}

impl Rebuilder {
    pub(super) fn new(
        versions: Versions,
        window: Option<LongWindowDecoder>,
    ) -> Result<Self, ArenaError> {
        let output = guest_memory(OUTPUT_BYTES)?;
        Ok(Self { emitter: Emitter::new(), versions, window, output, unwritten: 0..0 })
    }

    /// A block was announced.
    pub(super) fn block(&mut self, payload: &[u8]) -> Result<(), RebuildError> {
        let (number, bytes, idstr) = read_block(payload).ok_or(RebuildError::Block)?;
        self.emitter.block(number, idstr, bytes)?;
        if let Some(block) = self.emitter.blocks().block(number) {
            self.versions.place(idstr, block.first_page(), block.pages());
        }
        Ok(())
    }

    /// Decodes a batch into records.
    pub(super) fn pages(
        &mut self,
        decoder: &mut Decoder,
        hasher: &PageHasher,
        stats: &SessionStats,
        (position, payload): (Position, &[u8]),
    ) -> Result<(), RebuildError> {
        assert!(self.unwritten.is_empty(), "a batch is decoded when the one before is written");
        let pages_max = self.emitter.blocks().page_slots();
        let window = self.window.as_mut();
        let batch =
            decoder.decode_batch(hasher, payload, pages_max, &mut &self.versions, window)?;
        let mut at = 0;
        let pages = batch.pages.as_chunks::<PAGE_BYTES>().0;
        let each = batch.numbers.iter().zip(pages).zip(batch.hashes).zip(batch.classes);
        for (((&number, page), &hash), &class) in each {
            let Some(room) = self.output[at..].first_chunk_mut::<RECORD_BYTES_MAX>() else {
                panic!("the output has room for a whole batch")
            };
            at += match class {
                Class::Zero => self.emitter.zero(number, room)?,
                Class::Delta | Class::Zstd | Class::Raw => self.emitter.page(number, page, room)?,
            };
            self.versions.put(number, position.0, hash, page);
            stats.add(crate::attach::region::class_counter(class).index(), 1);
        }
        stats.set(SessionCounter::BasePages.index(), self.versions.held_pages());
        self.unwritten = 0..at;
        Ok(())
    }

    /// The pages that this end alone holds, if there may be any.
    pub(super) fn held(&mut self) -> Option<&mut HeldPages> {
        self.versions.held_mut()
    }

    /// What is left when the session is over.
    pub(super) fn leave(self, hasher: PageHasher) -> PagesLeft {
        PagesLeft::new(hasher, self.emitter.into_blocks(), self.versions)
    }

    /// The records that the VMM has not taken.
    pub(super) fn unwritten(&self) -> &[u8] {
        &self.output[self.unwritten.clone()]
    }

    /// The VMM took so many bytes. True when it has all of the batch.
    pub(super) fn wrote(&mut self, bytes: usize) -> bool {
        self.unwritten.start += bytes;
        self.unwritten.is_empty()
    }
}
