//! Adds an image to a store: the file that guests' disks or memory were made from.
//!
//! Runs on the store's thread for as long as the image takes to read, and tells of its progress.

use crate::error::StoreError;
use crate::layout::{BLOCK_BYTES, BLOCK_PAGES};
use crate::segment::{DomainId, Kind, SegmentId, SegmentInfo};
use crate::store::Store;
use crate::wiped::Wiped;
use dwcp_codec::hash::HASH_KEY_BYTES;
use dwcp_codec::{HashKey, PAGE_BYTES, PageHash, PageHasher};
use std::fs::File;
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::SystemTime;

/// An image that an operator names. Its bytes count as they lie in the file: of a compressed
/// format nothing would ever match.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// The file.
    pub path: &'a Path,
    /// Where its pages may match. A domain without segments gets a random hash key.
    pub domain: DomainId,
    /// What the segment is called.
    pub name: &'a str,
}

/// How far an image is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageProgress {
    /// Bytes read so far.
    pub read_bytes: u64,
    /// The file's length; 0 for a device.
    pub file_bytes: u64,
    /// Pages that will be in the segment: neither zero nor repeated.
    pub pages: u64,
}

/// Reads an image in pages and lands them as a segment. Zero pages are skipped, and a last page
/// that is not whole is filled up with zeros. `progress` is called after every 64 KiB and may stop
/// it.
///
/// # Errors
/// As [`Store::begin`], [`crate::SegmentWriter::push`] and [`Store::land`], or the image can't be
/// read, or `progress` stopped it. The store is as it was.
pub fn add_image(
    store: &mut Store,
    image: &Image<'_>,
    now: SystemTime,
    progress: &mut dyn FnMut(ImageProgress) -> ControlFlow<()>,
) -> Result<SegmentId, StoreError> {
    let reading = || StoreError::io("read the image", image.path);
    let mut file = File::open(image.path).map_err(reading())?;
    let file_bytes = file.metadata().map_err(reading())?.len();
    let hash_key = match store.domain_key(image.domain) {
        Some(key) => key,
        None => random_key()?,
    };
    let hasher = PageHasher::new(&hash_key);
    let name = image.name.to_owned();
    let info =
        SegmentInfo { domain: image.domain, hash_key, name, kind: Kind::Image, note: Vec::new() };
    let mut writer = store.begin(info)?;
    let mut buffer = Wiped::<BLOCK_BYTES>::new();
    let mut read_bytes = 0;
    loop {
        let bytes = read_full(&mut file, &mut buffer.0[..]).map_err(reading())?;
        let padded = bytes.next_multiple_of(PAGE_BYTES);
        buffer.0[bytes..padded].fill(0);
        let pages = buffer.0[..padded].as_chunks::<PAGE_BYTES>().0;
        let mut hashes = [PageHash::default(); BLOCK_PAGES];
        let hashes = &mut hashes[..pages.len()];
        hasher.hash_all(pages, hashes);
        for (hash, page) in hashes.iter().zip(pages) {
            writer.push_hashed(*hash, page)?;
        }
        read_bytes += bytes as u64;
        let told = ImageProgress { read_bytes, file_bytes, pages: writer.pages() };
        if progress(told).is_break() {
            return Err(StoreError::Stopped);
        }
        if bytes < BLOCK_BYTES {
            return store.land(writer, now);
        }
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
