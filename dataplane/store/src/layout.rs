//! The format of a segment's file, version 1.
//!
//! ```text
//! header    48  magic 8, version u32, zero u32, segment id 16, key check 16
//! blocks        for each 16 pages (the last may have fewer): their bytes as they are, or zstd
//!               where that is shorter; sealed, so 16 bytes of tag come behind
//! table         a row of bytes in chunks of 64 KiB, each sealed, so 16 bytes of tag behind each:
//!               info 569, length of each sealed block u32, hash of each page 16
//! trailer   24  where the table begins u64, pages u32, zero u32, magic 8
//! ```
//!
//! Numbers are little-endian. A block is zstd if and only if it is shorter than its pages. All
//! lengths but those of the blocks follow from the number of pages, and the file ends where they
//! say: a file that was cut is known by its last 24 bytes and its length alone.
//!
//! Sealed is AES-256-GCM. Its key is HKDF-SHA256 of the store's key, salted with the segment's id;
//! the nonce is the part (0 block, 1 table) as u32 and the number in it as u64, big-endian. The
//! associated data is the header, for the table also the trailer. A file is written once, so no
//! nonce serves twice. The key check comes from the same HKDF and tells another key from damage.
//!
//! Pure: owns the numbers and their arithmetic.

use crate::limits::{NAME_BYTES_MAX, NOTE_BYTES_MAX, SEGMENT_PAGES_MAX};
use crate::segment::{DomainId, ID_BYTES, Kind, SegmentInfo};
use crate::unusable::Unusable;
use dwcp_codec::hash::{HASH_KEY_BYTES, PAGE_HASH_BYTES};
use dwcp_codec::{HashKey, PAGE_BYTES};

/// The newest format that this program reads, and the one that it writes.
pub(crate) const VERSION: u32 = 1;
/// Pages of a whole block. More compress better together, fewer cost less where one is asked for.
pub(crate) const BLOCK_PAGES: usize = 16;
/// Bytes of a whole block's pages.
pub(crate) const BLOCK_BYTES: usize = BLOCK_PAGES * PAGE_BYTES;
/// Bytes that sealing adds.
pub(crate) const TAG_BYTES: usize = 16;
/// Bytes of the table that are sealed together.
pub(crate) const CHUNK_BYTES: usize = 1 << 16;
/// Bytes of the header.
pub(crate) const HEADER_BYTES: usize = 48;
/// Bytes of the trailer.
pub(crate) const TRAILER_BYTES: usize = 24;
/// Bytes of the key check.
pub(crate) const CHECK_BYTES: usize = 16;

const HEADER_MAGIC: [u8; 8] = *b"dwcp-seg";
const TRAILER_MAGIC: [u8; 8] = *b"dwcp-end";
/// Domain, hash key, serial number, kind, length of the name, room for the longest name; length
/// of the note, room for the longest.
const INFO_BYTES: usize =
    ID_BYTES + HASH_KEY_BYTES + 8 + 1 + 1 + NAME_BYTES_MAX + 1 + NOTE_BYTES_MAX;
/// Where the length of the note lies.
const NOTE_AT: usize = INFO_BYTES - NOTE_BYTES_MAX - 1;

const _: () = assert!(INFO_BYTES == 569);
const _: () = assert!(NAME_BYTES_MAX == u8::MAX as usize);
const _: () = assert!(NOTE_BYTES_MAX == u8::MAX as usize);
const _: () = assert!(HEADER_BYTES == 8 + 4 + 4 + ID_BYTES + CHECK_BYTES);
const _: () = assert!(size_of::<usize>() == size_of::<u64>());

/// The header of a segment.
#[must_use]
pub(crate) fn header(id: &[u8; ID_BYTES], check: &[u8; CHECK_BYTES]) -> [u8; HEADER_BYTES] {
    let mut out = [0; HEADER_BYTES];
    out[..8].copy_from_slice(&HEADER_MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[16..32].copy_from_slice(id);
    out[32..].copy_from_slice(check);
    out
}

/// Checks what can be known without a key: that these bytes begin a segment of a format that this
/// program reads.
pub(crate) fn check_version(header: &[u8; HEADER_BYTES]) -> Result<(), Unusable> {
    let (magic, rest) = header.split_at(HEADER_MAGIC.len());
    if magic != HEADER_MAGIC {
        return Err(Unusable::Damaged { part: "magic" });
    }
    match number(rest) {
        0 => Err(Unusable::Damaged { part: "version" }),
        VERSION => Ok(()),
        found => Err(Unusable::NewerFormat { found }),
    }
}

/// The first four bytes as a number.
fn number(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// Where things lie in a file: all that its trailer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extents {
    /// Where the table begins, which is where the blocks end.
    pub(crate) table_at: u64,
    /// How many pages there are.
    pub(crate) pages: u32,
}

impl Extents {
    /// The trailer's bytes.
    #[must_use]
    pub(crate) fn trailer(&self) -> [u8; TRAILER_BYTES] {
        let mut out = [0; TRAILER_BYTES];
        out[..8].copy_from_slice(&self.table_at.to_le_bytes());
        out[8..12].copy_from_slice(&self.pages.to_le_bytes());
        out[16..].copy_from_slice(&TRAILER_MAGIC);
        out
    }

    /// Reads a trailer and holds it against the file's length.
    pub(crate) fn parse(trailer: &[u8; TRAILER_BYTES], file_bytes: u64) -> Result<Self, Unusable> {
        let (table_at, rest) = trailer.split_at(8);
        let table_at = table_at.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let this = Self { table_at, pages: number(rest) };
        if this.trailer() != *trailer {
            return Err(Unusable::Cut { part: "trailer" });
        }
        let bounded = table_at <= file_bytes && this.pages <= SEGMENT_PAGES_MAX;
        if !bounded || this.file_bytes() != file_bytes {
            return Err(Unusable::Damaged { part: "trailer" });
        }
        Ok(this)
    }

    /// The number of blocks.
    #[must_use]
    pub(crate) const fn blocks(&self) -> u32 {
        self.pages.div_ceil(BLOCK_PAGES as u32)
    }

    /// The pages of a block.
    #[must_use]
    pub(crate) fn pages_of(&self, block: u32) -> usize {
        assert!(block < self.blocks(), "a block of this file");
        (self.pages as usize - block as usize * BLOCK_PAGES).min(BLOCK_PAGES)
    }

    /// Bytes of the table before sealing.
    #[must_use]
    pub(crate) const fn table_bytes(&self) -> u64 {
        let hashes = PAGE_HASH_BYTES as u64 * self.pages as u64;
        INFO_BYTES as u64 + 4 * self.blocks() as u64 + hashes
    }

    /// Bytes of the whole file. Saturates, since a trailer may say anything.
    #[must_use]
    pub(crate) const fn file_bytes(&self) -> u64 {
        let chunks = self.table_bytes().div_ceil(CHUNK_BYTES as u64);
        let sealed_bytes = self.table_bytes() + chunks * TAG_BYTES as u64;
        self.table_at.saturating_add(sealed_bytes + TRAILER_BYTES as u64)
    }
}

/// The info at the table's beginning.
#[must_use]
pub(crate) fn info(info: &SegmentInfo, serial: u64) -> [u8; INFO_BYTES] {
    let name = info.name.as_bytes();
    let (Ok(name_bytes), Ok(note_bytes)) =
        (u8::try_from(name.len()), u8::try_from(info.note.len()))
    else {
        unreachable!("names are checked when a writer begins, notes when they are set");
    };
    let mut out = [0; INFO_BYTES];
    out[..16].copy_from_slice(&info.domain.0);
    out[16..48].copy_from_slice(&info.hash_key.0);
    out[48..56].copy_from_slice(&serial.to_le_bytes());
    out[56] = info.kind as u8;
    out[57] = name_bytes;
    out[58..58 + name.len()].copy_from_slice(name);
    out[NOTE_AT] = note_bytes;
    out[NOTE_AT + 1..][..info.note.len()].copy_from_slice(&info.note);
    out
}

/// Reads what [`info`] wrote.
pub(crate) fn parse_info(bytes: &[u8; INFO_BYTES]) -> Option<(SegmentInfo, u64)> {
    let domain = DomainId(*bytes.first_chunk()?);
    let hash_key = HashKey(*bytes[16..].first_chunk()?);
    let serial = u64::from_le_bytes(*bytes[48..].first_chunk()?);
    let kind = Kind::from_code(bytes[56])?;
    let name = bytes[58..].get(..usize::from(bytes[57]))?;
    let name = std::str::from_utf8(name).ok()?.to_owned();
    let note = bytes[NOTE_AT + 1..].get(..usize::from(bytes[NOTE_AT]))?.to_vec();
    Some((SegmentInfo { domain, hash_key, name, kind, note }, serial))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_info_is_read_as_it_was_written() {
        for name in ["", "guest", &"n".repeat(NAME_BYTES_MAX), "\u{fc}\u{1f600}"] {
            let written = SegmentInfo {
                domain: DomainId([1; 16]),
                hash_key: HashKey([2; 32]),
                name: name.to_owned(),
                kind: Kind::Image,
                note: name.as_bytes().to_vec(),
            };
            let bytes = info(&written, 7);
            assert_eq!(parse_info(&bytes), Some((written, 7)));
            let mut other = bytes;
            other[56] = 2;
            assert_eq!(parse_info(&other), None, "an unknown kind");
            other = bytes;
            other[57..59].copy_from_slice(&[255, 0xff]);
            assert_eq!(parse_info(&other), None, "a name that is no text");
        }
    }

    #[test]
    fn versions_are_told_apart() {
        let good = header(&[1; 16], &[2; 16]);
        assert!(check_version(&good).is_ok());
        for (at, byte, code) in
            [(0, 0, "segment_damaged"), (8, 0, "segment_damaged"), (8, 2, "segment_newer_format")]
        {
            let mut other = good;
            other[at] = byte;
            assert_eq!(check_version(&other).unwrap_err().code(), code);
        }
    }

    proptest! {
        #[test]
        fn a_trailer_fits_one_length_of_file_alone(
            table_at in 48..u64::from(u32::MAX), pages: u32, other: u64,
        ) {
            let extents = Extents { table_at, pages: pages.min(SEGMENT_PAGES_MAX) };
            let trailer = extents.trailer();
            let bytes = extents.file_bytes();
            prop_assert_eq!(Extents::parse(&trailer, bytes).unwrap(), extents);
            prop_assume!(other != bytes);
            prop_assert!(Extents::parse(&trailer, other).is_err());
        }

        #[test]
        fn any_trailer_is_read_without_a_panic(trailer: [u8; TRAILER_BYTES], bytes: u64) {
            let mut trailer = trailer;
            trailer[12..16].fill(0);
            trailer[16..].copy_from_slice(&TRAILER_MAGIC);
            let _ = Extents::parse(&trailer, bytes);
            let _ = Extents::parse(&trailer, u64::MAX);
            trailer[..8].fill(0xff);
            prop_assert!(Extents::parse(&trailer, bytes).is_err());
        }
    }
}
