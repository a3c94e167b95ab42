//! Reads what a segment's file says of itself: header, trailer and table.
//!
//! Any file gives a segment or a typed reason. What a file says of its size is held against its
//! length before memory is taken for it, and nothing of the table is used before its seal was
//! opened. Called when the store is opened.

use crate::index::{Entry, Index};
use crate::key::{Part, SegmentCipher, StoreKey};
use crate::layout::{self, CHUNK_BYTES, Extents, HEADER_BYTES, TAG_BYTES, TRAILER_BYTES};
use crate::segment::{SegmentId, SegmentInfo};
use crate::unusable::Unusable;
use dwcp_codec::{PAGE_BYTES, PageHash};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A segment's file whose header and trailer are good. Its table was not looked at.
#[derive(Debug)]
pub(crate) struct Probed {
    file: File,
    cipher: SegmentCipher,
    extents: Extents,
}

/// What a file says of its segment.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) info: SegmentInfo,
    pub(crate) serial: u64,
    pub(crate) cipher: SegmentCipher,
    pub(crate) index: Index,
}

impl Probed {
    /// Opens a file that the directory calls `id`.
    pub(crate) fn open(path: &Path, id: SegmentId, key: &StoreKey) -> Result<Self, Unusable> {
        let file = File::open(path).map_err(Unusable::of_read("file"))?;
        let file_bytes = file.metadata().map_err(Unusable::of_read("file"))?.len();
        let mut header = [0; HEADER_BYTES];
        file.read_exact_at(&mut header, 0).map_err(Unusable::of_read("header"))?;
        layout::check_version(&header)?;
        let cipher = SegmentCipher::new(key, id);
        if header != *cipher.header() {
            return Err(Unusable::OtherKey);
        }
        let trailer_at = file_bytes.checked_sub((HEADER_BYTES + TRAILER_BYTES) as u64);
        let Some(trailer_at) = trailer_at.map(|at| at + HEADER_BYTES as u64) else {
            return Err(Unusable::Cut { part: "trailer" });
        };
        let mut trailer = [0; TRAILER_BYTES];
        file.read_exact_at(&mut trailer, trailer_at).map_err(Unusable::of_read("trailer"))?;
        let extents = Extents::parse(&trailer, file_bytes)?;
        Ok(Self { file, cipher, extents })
    }

    pub(crate) fn pages(&self) -> u64 {
        self.extents.pages.into()
    }

    /// Reads the table.
    pub(crate) fn load(self) -> Result<Loaded, Unusable> {
        let Self { file, cipher, extents } = self;
        let mut table = Table::new(&file, &cipher, extents);
        let (info, serial) =
            layout::parse_info(&table.take()?).ok_or(Unusable::Damaged { part: "info" })?;
        let mut starts = Vec::with_capacity(extents.blocks() as usize);
        let mut end = HEADER_BYTES as u64;
        for block in 0..extents.blocks() {
            let sealed_bytes = u32::from_le_bytes(table.take()?) as usize;
            let plain_bytes_max = extents.pages_of(block) * PAGE_BYTES;
            if !(TAG_BYTES + 1..=TAG_BYTES + plain_bytes_max).contains(&sealed_bytes) {
                return Err(Unusable::Damaged { part: "table" });
            }
            starts.push(end);
            end += sealed_bytes as u64;
        }
        if end != extents.table_at {
            return Err(Unusable::Damaged { part: "table" });
        }
        let mut entries = Vec::with_capacity(extents.pages as usize);
        for position in 0..extents.pages {
            entries.push(Entry { hash: PageHash(table.take()?), position });
        }
        Ok(Loaded { info, serial, index: Index::new(entries, starts, extents), cipher })
    }
}

/// The table of a file, read and opened a chunk at a time.
struct Table<'a> {
    file: &'a File,
    cipher: &'a SegmentCipher,
    trailer: [u8; TRAILER_BYTES],
    /// Where the next chunk begins, and what is left from there on before sealing.
    at: u64,
    left_bytes: u64,
    number: u32,
    sealed: Vec<u8>,
    /// What of the chunk was opened and not taken yet.
    opened: std::ops::Range<usize>,
}

impl<'a> Table<'a> {
    fn new(file: &'a File, cipher: &'a SegmentCipher, extents: Extents) -> Self {
        Self {
            file,
            cipher,
            trailer: extents.trailer(),
            at: extents.table_at,
            left_bytes: extents.table_bytes(),
            number: 0,
            sealed: vec![0; CHUNK_BYTES + TAG_BYTES],
            opened: 0..0,
        }
    }

    /// The next bytes.
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Unusable> {
        let mut out = [0; N];
        let mut filled = 0;
        while filled < N {
            if self.opened.is_empty() {
                self.refill()?;
            }
            let count = self.opened.len().min(N - filled);
            let from = self.opened.start;
            out[filled..filled + count].copy_from_slice(&self.sealed[from..from + count]);
            filled += count;
            self.opened.start += count;
        }
        Ok(out)
    }

    fn refill(&mut self) -> Result<(), Unusable> {
        let bytes = self.left_bytes.min(CHUNK_BYTES as u64) as usize;
        assert!(bytes > 0, "the table's length follows from what is taken of it");
        let sealed = &mut self.sealed[..bytes + TAG_BYTES];
        self.file.read_exact_at(sealed, self.at).map_err(Unusable::of_read("table"))?;
        let opened = self.cipher.open(Part::Table(self.number, &self.trailer), sealed);
        if opened.is_none() {
            return Err(Unusable::Damaged { part: "table" });
        }
        self.at += sealed.len() as u64;
        self.left_bytes -= bytes as u64;
        self.number += 1;
        self.opened = 0..bytes;
        Ok(())
    }
}
