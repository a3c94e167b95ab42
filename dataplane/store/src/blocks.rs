//! Reads blocks of segments and keeps the last few decoded.
//!
//! Belongs to a store. What it gives is what was sealed: a block that is not, is refused with its
//! reason and never kept. Kept blocks are wiped when their segment goes.

use crate::index::BlockPlace;
use crate::key::{Part, SegmentCipher};
use crate::layout::{BLOCK_BYTES, TAG_BYTES};
use crate::limits::BLOCKS_KEPT;
use crate::segment::SegmentId;
use crate::unusable::Unusable;
use crate::wiped::Wiped;
use dwcp_codec::PAGE_BYTES;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use zstd_safe::DCtx;

/// Reads blocks and keeps the last few.
pub(crate) struct Blocks {
    kept: Vec<Kept>,
    turn: u64,
    blocks_read: u64,
    /// The segment that was read last: its blocks follow each other.
    file: Option<(SegmentId, File)>,
    sealed: Wiped<{ BLOCK_BYTES + TAG_BYTES }>,
    context: DCtx<'static>,
}

struct Kept {
    segment: SegmentId,
    block: u32,
    turn: u64,
    bytes: Wiped<BLOCK_BYTES>,
}

impl Blocks {
    pub(crate) fn new() -> Self {
        Self {
            kept: Vec::with_capacity(BLOCKS_KEPT),
            turn: 0,
            blocks_read: 0,
            file: None,
            sealed: Wiped::new(),
            context: DCtx::create(),
        }
    }

    /// The bytes of a block's pages.
    pub(crate) fn block(
        &mut self,
        segment: SegmentId,
        path: impl FnOnce() -> PathBuf,
        cipher: &SegmentCipher,
        place: BlockPlace,
    ) -> Result<&[u8], Unusable> {
        self.turn += 1;
        let is_it = |kept: &Kept| kept.segment == segment && kept.block == place.number;
        let slot = match self.kept.iter().position(is_it) {
            Some(slot) => slot,
            None => {
                let mut bytes = self.room();
                self.read(segment, path, cipher, place, &mut bytes)?;
                self.blocks_read += 1;
                let block = place.number;
                self.kept.push(Kept { segment, block, turn: self.turn, bytes });
                self.kept.len() - 1
            }
        };
        let kept = &mut self.kept[slot];
        kept.turn = self.turn;
        Ok(&kept.bytes.0[..place.pages * PAGE_BYTES])
    }

    /// How many blocks were read and decoded.
    pub(crate) const fn blocks_read(&self) -> u64 {
        self.blocks_read
    }

    /// Lets go of everything of a segment.
    pub(crate) fn forget(&mut self, segment: SegmentId) {
        self.kept.retain(|kept| kept.segment != segment);
        self.file.take_if(|(of, _)| *of == segment);
        self.sealed.wipe();
    }

    /// A buffer: that of the block which was asked for longest ago if there are enough.
    fn room(&mut self) -> Wiped<BLOCK_BYTES> {
        if self.kept.len() < BLOCKS_KEPT {
            return Wiped::new();
        }
        let oldest = (0..BLOCKS_KEPT).min_by_key(|slot| self.kept[*slot].turn).unwrap_or(0);
        self.kept.swap_remove(oldest).bytes
    }

    fn read(
        &mut self,
        segment: SegmentId,
        path: impl FnOnce() -> PathBuf,
        cipher: &SegmentCipher,
        place: BlockPlace,
        out: &mut Wiped<BLOCK_BYTES>,
    ) -> Result<(), Unusable> {
        let file = match &mut self.file {
            Some((of, file)) if *of == segment => file,
            file => {
                let opened = File::open(path()).map_err(Unusable::of_read("file"))?;
                &mut file.insert((segment, opened)).1
            }
        };
        let sealed = &mut self.sealed.0[..place.sealed_bytes];
        file.read_exact_at(sealed, place.at).map_err(Unusable::of_read("block"))?;
        let damaged = Unusable::Damaged { part: "block" };
        let Some(coded) = cipher.open(Part::Block(place.number), sealed) else {
            return Err(damaged);
        };
        let plain = &mut out.0[..place.pages * PAGE_BYTES];
        if coded.len() == plain.len() {
            plain.copy_from_slice(coded);
            return Ok(());
        }
        match self.context.decompress(plain, coded) {
            Ok(bytes) if bytes == plain.len() => Ok(()),
            _ => Err(damaged),
        }
    }
}

impl fmt::Debug for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blocks").field("kept", &self.kept.len()).finish_non_exhaustive()
    }
}
