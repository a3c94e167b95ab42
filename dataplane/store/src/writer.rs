//! A segment that is being written.
//!
//! Owns its file until it lands or is dropped, which leaves nothing. Pages are kept back until
//! there is a block of them, compressed and sealed together, and written. Its owner may feed it on
//! another thread than the store's.

use crate::error::StoreError;
use crate::folder::Temporary;
use crate::index::{Entry, Index};
use crate::key::{Part, SegmentCipher};
use crate::layout::{
    self, BLOCK_BYTES, BLOCK_PAGES, CHUNK_BYTES, Extents, HEADER_BYTES, TAG_BYTES, TRAILER_BYTES,
};
use crate::limits::{NOTE_BYTES_MAX, SEGMENT_PAGES_MAX};
use crate::seen::Seen;
use crate::segment::{SegmentId, SegmentInfo};
use crate::wiped::Wiped;
use dwcp_codec::page::is_zero;
use dwcp_codec::{PAGE_BYTES, Page, PageHash, PageHasher};
use std::fmt;
use std::io::Write;
use std::time::SystemTime;
use zstd_safe::CCtx;

/// The cheapest level: 3 makes guests' memory a tenth smaller at two thirds of the speed.
const ZSTD_LEVEL: i32 = 1;

/// What became of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It will be in the segment.
    Stored,
    /// It is there already.
    Repeated,
    /// It is zero, which is never stored.
    Zero,
    /// It is not what its hash says, most likely because its guest wrote it since. Not stored.
    Changed,
}

/// The room that a segment may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) bytes: u64,
    pub(crate) pages: u64,
}

impl Room {
    pub(crate) fn check(&self, bytes: u64, pages: u64) -> Result<(), StoreError> {
        let pages_max = self.pages.min(SEGMENT_PAGES_MAX.into());
        if bytes > self.bytes {
            return Err(StoreError::TooLarge { bytes, room_bytes: self.bytes });
        }
        if pages > pages_max { Err(StoreError::TooManyPages { pages_max }) } else { Ok(()) }
    }
}

/// A segment that is being written. [`crate::Store::land`] makes it one of the store's; dropping
/// it leaves nothing.
pub struct SegmentWriter {
    id: SegmentId,
    info: SegmentInfo,
    cipher: SegmentCipher,
    hasher: PageHasher,
    room: Room,
    /// None after an error.
    file: Option<Temporary>,
    seen: Seen,
    /// Where each block begins; the next one begins at `end`.
    starts: Vec<u64>,
    end: u64,
    plain: Wiped<BLOCK_BYTES>,
    plain_pages: usize,
    sealed: Box<[u8; BLOCK_BYTES + TAG_BYTES]>,
    context: CCtx<'static>,
}

/// A segment that is written and not landed yet.
pub(crate) struct Written {
    pub(crate) id: SegmentId,
    pub(crate) info: SegmentInfo,
    pub(crate) cipher: SegmentCipher,
    pub(crate) hasher: PageHasher,
    pub(crate) file: Temporary,
    pub(crate) index: Index,
}

impl SegmentWriter {
    /// Begins a segment in `file`.
    pub(crate) fn new(
        file: Temporary,
        (id, info): (SegmentId, SegmentInfo),
        cipher: SegmentCipher,
        room: Room,
    ) -> Result<Self, StoreError> {
        let hasher = PageHasher::new(&info.hash_key);
        let mut this = Self {
            id,
            info,
            cipher,
            hasher,
            room,
            file: Some(file),
            seen: Seen::new(),
            starts: Vec::new(),
            end: 0,
            plain: Wiped::new(),
            plain_pages: 0,
            sealed: Box::new([0; BLOCK_BYTES + TAG_BYTES]),
            context: CCtx::create(),
        };
        this.sealed[..HEADER_BYTES].copy_from_slice(this.cipher.header());
        this.write(HEADER_BYTES)?;
        Ok(this)
    }

    /// What it was begun with.
    #[must_use]
    pub const fn info(&self) -> &SegmentInfo {
        &self.info
    }

    /// Changes what is noted of the segment.
    ///
    /// # Errors
    /// It is too long; the note stays what it was.
    pub fn set_note(&mut self, note: Vec<u8>) -> Result<(), StoreError> {
        let bytes = note.len();
        if bytes > NOTE_BYTES_MAX {
            return Err(StoreError::NoteTooLong { bytes });
        }
        self.info.note = note;
        Ok(())
    }

    /// Different pages taken so far.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.seen.len().into()
    }

    /// Takes a page with the hash that it had when it was looked at.
    ///
    /// # Errors
    /// The disk or the store's limits have no room, or the disk failed. The file is removed, and
    /// every later call is an error as well.
    pub fn push(&mut self, hash: PageHash, page: &Page) -> Result<Pushed, StoreError> {
        if self.file.is_some() && !self.seen.contains(&hash) && self.hasher.hash(page) != hash {
            return Ok(Pushed::Changed);
        }
        self.push_hashed(hash, page)
    }

    /// Takes a page that was hashed a moment ago.
    pub(crate) fn push_hashed(
        &mut self,
        hash: PageHash,
        page: &Page,
    ) -> Result<Pushed, StoreError> {
        if self.file.is_none() {
            return Err(StoreError::WriterEnded);
        }
        if is_zero(page) {
            return Ok(Pushed::Zero);
        }
        if self.seen.contains(&hash) {
            return Ok(Pushed::Repeated);
        }
        let taken = self.take(hash, page);
        if taken.is_err() {
            self.file = None;
        }
        taken
    }

    fn take(&mut self, hash: PageHash, page: &Page) -> Result<Pushed, StoreError> {
        self.room.check(0, self.pages() + 1)?;
        let at = self.plain_pages * PAGE_BYTES;
        self.plain.0[at..at + PAGE_BYTES].copy_from_slice(page);
        self.plain_pages += 1;
        self.seen.insert(hash);
        if self.plain_pages == BLOCK_PAGES {
            self.write_block()?;
        }
        Ok(Pushed::Stored)
    }

    /// Writes the pages that were kept back.
    fn write_block(&mut self) -> Result<(), StoreError> {
        let plain = &self.plain.0[..self.plain_pages * PAGE_BYTES];
        // One byte less than the pages, so an error means that the frame isn't shorter.
        let room = &mut self.sealed[..plain.len() - 1];
        let bytes = match self.context.compress(room, plain, ZSTD_LEVEL) {
            Ok(bytes) => bytes,
            Err(_) => {
                self.sealed[..plain.len()].copy_from_slice(plain);
                plain.len()
            }
        };
        self.plain_pages = 0;
        let sealed_bytes = bytes + TAG_BYTES;
        let number = self.starts.len() as u32;
        self.cipher.seal(Part::Block(number), &mut self.sealed[..sealed_bytes]);
        self.starts.push(self.end);
        // The table that these pages need counts, too: what fits now must still fit at the end.
        let extents = Extents { table_at: self.end + sealed_bytes as u64, pages: self.seen.len() };
        self.room.check(extents.file_bytes(), 0)?;
        self.write(sealed_bytes)
    }

    /// Writes the first bytes of `sealed`.
    fn write(&mut self, bytes: usize) -> Result<(), StoreError> {
        let Some(file) = &mut self.file else { return Err(StoreError::WriterEnded) };
        let written = file.file.write_all(&self.sealed[..bytes]);
        written.map_err(StoreError::io("write", &file.path))?;
        self.end += bytes as u64;
        Ok(())
    }

    /// Writes what is left, the table and the trailer, and says when the file was of use last.
    pub(crate) fn finish(mut self, serial: u64, now: SystemTime) -> Result<Written, StoreError> {
        if self.plain_pages > 0 {
            self.write_block()?;
        }
        let extents = Extents { table_at: self.end, pages: self.seen.len() };
        self.room.check(extents.file_bytes(), extents.pages.into())?;
        self.write_table(serial, &extents)?;
        let Self { id, info, cipher, hasher, file, seen, starts, .. } = self;
        let Some(file) = file else { return Err(StoreError::WriterEnded) };
        file.file.set_modified(now).map_err(StoreError::io("set the time of", &file.path))?;
        let entry = |(position, hash)| Entry { hash, position };
        let entries = (0..).zip(seen.into_hashes()).map(entry).collect();
        let index = Index::new(entries, starts, extents);
        Ok(Written { id, info, cipher, hasher, file, index })
    }

    fn write_table(&mut self, serial: u64, extents: &Extents) -> Result<(), StoreError> {
        let trailer = extents.trailer();
        let mut chunk = Chunk { number: 0, bytes: 0 };
        self.put(&mut chunk, &trailer, &layout::info(&self.info, serial))?;
        for block in 0..self.starts.len() {
            let end = self.starts.get(block + 1).copied().unwrap_or(extents.table_at);
            let length = (end - self.starts[block]) as u32;
            self.put(&mut chunk, &trailer, &length.to_le_bytes())?;
        }
        for page in 0..self.seen.hashes().len() {
            let hash = self.seen.hashes()[page];
            self.put(&mut chunk, &trailer, &hash.0)?;
        }
        if chunk.bytes > 0 {
            self.write_chunk(&mut chunk, &trailer)?;
        }
        assert!(
            self.end + TRAILER_BYTES as u64 == extents.file_bytes(),
            "lengths are known before"
        );
        self.sealed[..TRAILER_BYTES].copy_from_slice(&trailer);
        self.write(TRAILER_BYTES)
    }

    /// Adds bytes to the table.
    fn put(
        &mut self,
        chunk: &mut Chunk,
        trailer: &[u8; TRAILER_BYTES],
        mut bytes: &[u8],
    ) -> Result<(), StoreError> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK_BYTES - chunk.bytes));
            self.sealed[chunk.bytes..chunk.bytes + now.len()].copy_from_slice(now);
            chunk.bytes += now.len();
            bytes = later;
            if chunk.bytes == CHUNK_BYTES {
                self.write_chunk(chunk, trailer)?;
            }
        }
        Ok(())
    }

    fn write_chunk(
        &mut self,
        chunk: &mut Chunk,
        trailer: &[u8; TRAILER_BYTES],
    ) -> Result<(), StoreError> {
        let sealed_bytes = chunk.bytes + TAG_BYTES;
        let part = Part::Table(chunk.number, trailer);
        self.cipher.seal(part, &mut self.sealed[..sealed_bytes]);
        *chunk = Chunk { number: chunk.number + 1, bytes: 0 };
        self.write(sealed_bytes)
    }
}

/// The chunk of the table that lies in `sealed`.
struct Chunk {
    number: u32,
    bytes: usize,
}

const _: () = assert!(CHUNK_BYTES == BLOCK_BYTES);

impl fmt::Debug for SegmentWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SegmentWriter")
            .field("id", &self.id)
            .field("name", &self.info.name)
            .field("pages", &self.pages())
            .finish_non_exhaustive()
    }
}
