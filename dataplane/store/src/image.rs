//! Reads an image into a store: the file that guests' disks or memory were made from.
//!
//! On the store's thread, some blocks at a time, so that its owner can do other things in between
//! however long the image is.

use crate::error::StoreError;
use crate::layout::{BLOCK_BYTES, BLOCK_PAGES};
use crate::segment::{DomainId, Kind, SegmentId, SegmentInfo};
use crate::store::Store;
use crate::wiped::Wiped;
use crate::writer::SegmentWriter;
use dwcp_codec::hash::HASH_KEY_BYTES;
use dwcp_codec::{HashKey, PAGE_BYTES, PageHash, PageHasher};
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::SystemTime;

/// An image that an operator gives. Its bytes count as they lie in the file: of a compressed
/// format nothing would ever match.
#[derive(Debug)]
pub struct Image {
    /// The file, at its begin.
    pub file: File,
    /// Where its pages may match. A domain without segments gets a random hash key.
    pub domain: DomainId,
    /// What the segment is called.
    pub name: String,
    /// What its owner notes of it.
    pub note: Vec<u8>,
}

/// How far an image is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageProgress {
    /// Bytes read so far.
    pub read_bytes: u64,
    /// Pages that will be in the segment: neither zero nor repeated.
    pub pages: u64,
}

/// An image that is being read. Dropping it leaves nothing.
#[derive(Debug)]
pub struct ImageReader {
    file: File,
    hasher: PageHasher,
    writer: SegmentWriter,
    buffer: Wiped<BLOCK_BYTES>,
    read_bytes: u64,
}

impl ImageReader {
    /// Begins an image.
    ///
    /// # Errors
    /// As [`Store::begin`].
    pub fn begin(store: &Store, image: Image) -> Result<Self, StoreError> {
        let Image { file, domain, name, note } = image;
        let hash_key = match store.domain_key(domain) {
            Some(key) => key,
            None => random_key()?,
        };
        let hasher = PageHasher::new(&hash_key);
        let writer =
            store.begin(SegmentInfo { domain, hash_key, name, kind: Kind::Image, note })?;
        Ok(Self { file, hasher, writer, buffer: Wiped::new(), read_bytes: 0 })
    }

    /// Reads the next 64 KiB; false at the end of the file. Zero pages are skipped, and a last page
    /// that is not whole is filled up with zeros.
    ///
    /// # Errors
    /// As [`SegmentWriter::push`], or the image can't be read.
    pub fn step(&mut self) -> Result<bool, StoreError> {
        let reading = StoreError::io("read the image", Path::new(&self.writer.info().name));
        let bytes = read_full(&mut self.file, &mut self.buffer.0[..]).map_err(reading)?;
        self.read_bytes += bytes as u64;
        let padded = bytes.next_multiple_of(PAGE_BYTES);
        self.buffer.0[bytes..padded].fill(0);
        // Most of a disk is often nothing, which need not be hashed to be known.
        if self.buffer.0[..padded].iter().any(|byte| *byte != 0) {
            let pages = self.buffer.0[..padded].as_chunks::<PAGE_BYTES>().0;
            let mut hashes = [PageHash::default(); BLOCK_PAGES];
            let hashes = &mut hashes[..pages.len()];
            self.hasher.hash_all(pages, hashes);
            for (hash, page) in hashes.iter().zip(pages) {
                self.writer.push_hashed(*hash, page)?;
            }
        }
        Ok(bytes == BLOCK_BYTES)
    }

    /// How far it is read.
    #[must_use]
    pub fn progress(&self) -> ImageProgress {
        ImageProgress { read_bytes: self.read_bytes, pages: self.writer.pages() }
    }

    /// Makes what was read a segment of the store that it was begun with.
    ///
    /// # Errors
    /// As [`Store::land`].
    pub fn land(self, store: &mut Store, now: SystemTime) -> Result<SegmentId, StoreError> {
        store.land(self.writer, now)
    }
}

fn random_key() -> Result<HashKey, StoreError> {
    let mut key = [0; HASH_KEY_BYTES];
    aws_lc_rs::rand::fill(&mut key).map_err(|_| StoreError::Random)?;
    Ok(HashKey(key))
}

/// Fills the buffer as far as the file goes.
fn read_full(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
