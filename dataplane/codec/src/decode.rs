//! The decoder of extents and batches.
//!
//! Owns all scratch memory that decoding needs. Runs on a shard, which owns one decoder for all
//! its sessions; called once per frame of pages. The payload is untrusted: every length is checked
//! before use, every zstd frame must announce and give the exact size of its pages, bases are
//! compared by digest before a byte is made of them, and pages come out only if they match the
//! digest that the source made of them. Never panics on input, never takes memory for it.

use crate::cursor::{Reader, unzigzag};
use crate::digest::{DIGEST_BYTES, Digest, DigestBuilder, DigestKind};
use crate::error::DecodeError;
use crate::hash::{PAGE_HASH_BYTES, PageHash, PageHasher};
use crate::head::{Numbers, read_batch, read_extent};
use crate::layout::{GROUP_PAGES, PREFIX_PAD_BYTES, RUNS_BYTES_MAX, classes_bytes};
use crate::page::{Class, EXTENT_BYTES, EXTENT_PAGES, PAGE_BYTES, Page};
use crate::runs::apply_runs;
use crate::window::LongWindowDecoder;
use std::fmt;
use zstd_safe::DCtx;

/// The pad and the base pages of one prefix group.
const GROUP_STRIDE_BYTES: usize = PREFIX_PAD_BYTES + GROUP_PAGES * PAGE_BYTES;

/// The page versions that the sink holds.
pub trait Bases {
    /// Copies version `version` of page `page` to `out` and returns its hash, or returns `None`
    /// if the sink doesn't hold that version.
    fn base(&mut self, page: u64, version: u64, out: &mut Page) -> Option<PageHash>;
}

/// The pages of a payload, checked against their digest.
#[derive(Clone, Copy, Debug)]
pub struct DecodedExtent<'a> {
    /// The extent's first page.
    pub first_page: u64,
    /// Bit i: page `first_page + i` is here.
    pub mask: u64,
    /// The pages, joined, ascending.
    pub pages: &'a [u8],
    /// Their hashes.
    pub hashes: &'a [PageHash],
    /// How they were coded.
    pub classes: &'a [Class],
}

/// The pages of a batch, checked against their digest.
#[derive(Clone, Copy, Debug)]
pub struct DecodedBatch<'a> {
    /// The pages' numbers, each once.
    pub numbers: &'a [u64],
    /// The pages, joined, in that order.
    pub pages: &'a [u8],
    /// Their hashes.
    pub hashes: &'a [PageHash],
    /// How they were coded.
    pub classes: &'a [Class],
}

/// The delta pages of a payload.
struct Deltas {
    /// Positions of the pages of kind runs among the pages of the payload.
    runs: List,
    /// The same for kind prefix.
    prefix: List,
}

/// A list of positions among the pages of a payload, of fixed room.
#[derive(Clone, Copy)]
struct List {
    items: [u8; EXTENT_PAGES],
    count: usize,
}

impl List {
    const EMPTY: Self = Self { items: [0; EXTENT_PAGES], count: 0 };

    fn push(&mut self, position: usize) {
        self.items[self.count] = position as u8;
        self.count += 1;
    }

    fn as_slice(&self) -> &[u8] {
        &self.items[..self.count]
    }
}

/// Decodes payloads.
pub struct Decoder {
    context: DCtx<'static>,
    numbers: Numbers,
    pages: Box<[u8]>,
    hashes: [PageHash; EXTENT_PAGES],
    classes: [Class; EXTENT_PAGES],
    /// The dictionaries of all prefix groups: each the pad and its base pages.
    bases: Box<[u8]>,
    /// What came out of one zstd frame.
    joined: Box<[u8]>,
}

impl Decoder {
    /// Takes all memory that it will need, 0.9 MiB.
    #[must_use]
    pub fn new() -> Self {
        Self {
            context: DCtx::create(),
            numbers: Numbers::EMPTY,
            pages: vec![0; EXTENT_BYTES].into(),
            hashes: [PageHash([0; PAGE_HASH_BYTES]); EXTENT_PAGES],
            classes: [Class::Raw; EXTENT_PAGES],
            bases: vec![0; EXTENT_PAGES / GROUP_PAGES * GROUP_STRIDE_BYTES].into(),
            joined: vec![0; EXTENT_BYTES].into(),
        }
    }

    /// Zeroes what the last payloads left of pages in the decoder's own buffers.
    pub fn scrub(&mut self) {
        for buffer in [&mut self.pages, &mut self.bases, &mut self.joined] {
            buffer.fill(0);
        }
    }

    /// Decodes one extent for a region of `region_pages` pages.
    ///
    /// # Errors
    /// The payload breaks the format, names a base that isn't held, or its pages don't match
    /// their digest.
    pub fn decode<B: Bases>(
        &mut self,
        hasher: &PageHasher,
        payload: &[u8],
        region_pages: u64,
        bases: &mut B,
    ) -> Result<DecodedExtent<'_>, DecodeError> {
        let mut reader = Reader::new(payload);
        let (first_page, mask) = read_extent(&mut reader, region_pages)?;
        self.numbers = Numbers::of_mask(first_page, mask);
        self.decode_body(reader, hasher, bases, None)?;
        let DecodedBatch { pages, hashes, classes, .. } = self.decoded();
        Ok(DecodedExtent { first_page, mask, pages, hashes, classes })
    }

    /// Decodes one batch for a region of `region_pages` pages. With a `window` its zstd pages
    /// continue that stream, so all payloads of the window must come in the order of their coding,
    /// and the first that is refused spends the window.
    ///
    /// # Errors
    /// As for [`Self::decode`], or the window is spent.
    pub fn decode_batch<B: Bases>(
        &mut self,
        hasher: &PageHasher,
        payload: &[u8],
        region_pages: u64,
        bases: &mut B,
        mut window: Option<&mut LongWindowDecoder>,
    ) -> Result<DecodedBatch<'_>, DecodeError> {
        if window.as_mut().is_some_and(|window| !window.begin()) {
            return Err(DecodeError::WindowSpent);
        }
        let mut reader = Reader::new(payload);
        self.numbers = read_batch(&mut reader, region_pages)?;
        self.decode_body(reader, hasher, bases, window.as_deref_mut())?;
        if let Some(window) = window {
            window.finish();
        }
        Ok(self.decoded())
    }

    /// Decodes and checks all behind the place of the pages, which is read.
    fn decode_body<B: Bases>(
        &mut self,
        mut reader: Reader<'_>,
        hasher: &PageHasher,
        bases: &mut B,
        window: Option<&mut LongWindowDecoder>,
    ) -> Result<(), DecodeError> {
        let count = self.numbers.count();
        let digest = Digest(reader.array::<DIGEST_BYTES>("head")?);
        self.read_classes(&mut reader, count)?;
        if self.classes[..count].contains(&Class::Delta) {
            let deltas = self.read_bases(&mut reader, hasher, bases)?;
            self.decode_runs(&mut reader, deltas.runs.as_slice())?;
            self.decode_groups(&mut reader, deltas.prefix.as_slice())?;
        }
        self.decode_zstd(&mut reader, count, window)?;
        let pages = self.pages.as_chunks_mut::<PAGE_BYTES>().0;
        for (page, class) in pages.iter_mut().zip(&self.classes[..count]) {
            match class {
                Class::Zero => page.fill(0),
                Class::Raw => page.copy_from_slice(reader.take(PAGE_BYTES, "raw pages")?),
                Class::Delta | Class::Zstd => {}
            }
        }
        reader.finish()?;
        self.check(hasher, digest)
    }

    /// What the last payload came to.
    fn decoded(&self) -> DecodedBatch<'_> {
        let count = self.numbers.count();
        DecodedBatch {
            numbers: self.numbers.as_slice(),
            pages: &self.pages[..count * PAGE_BYTES],
            hashes: &self.hashes[..count],
            classes: &self.classes[..count],
        }
    }

    fn read_classes(&mut self, reader: &mut Reader<'_>, count: usize) -> Result<(), DecodeError> {
        const SECTION: &str = "classes";
        let codes = reader.take(classes_bytes(count), SECTION)?;
        let code = |index: usize| codes[index / 4] >> (index % 4 * 2);
        for (index, class) in self.classes[..count].iter_mut().enumerate() {
            *class = Class::from_code(code(index));
        }
        let padding_is_zero = (count..codes.len() * 4).all(|index| code(index) & 3 == 0);
        if padding_is_zero { Ok(()) } else { Err(DecodeError::Malformed { section: SECTION }) }
    }

    /// Reads which bases the deltas are against, fetches them and checks their digest. The base of
    /// a page of kind runs is put where the page will be; the others into their groups.
    fn read_bases<B: Bases>(
        &mut self,
        reader: &mut Reader<'_>,
        hasher: &PageHasher,
        bases: &mut B,
    ) -> Result<Deltas, DecodeError> {
        const SECTION: &str = "delta section";
        let expected = Digest(reader.array::<DIGEST_BYTES>(SECTION)?);
        let mut versions = [0; EXTENT_PAGES];
        let mut count = 0;
        let is_delta = |class: &&Class| **class == Class::Delta;
        for _ in self.classes[..self.numbers.count()].iter().filter(is_delta) {
            let code = reader.varint(SECTION)?;
            versions[count] = match count {
                0 => code,
                _ => versions[count - 1].wrapping_add_signed(unzigzag(code)),
            };
            count += 1;
        }
        let kinds = reader.take(count.div_ceil(8), SECTION)?;
        let is_prefix = |index: usize| kinds[index / 8] >> (index % 8) & 1 == 1;
        if (count..kinds.len() * 8).any(is_prefix) {
            return Err(DecodeError::Malformed { section: SECTION });
        }
        let mut deltas = Deltas { runs: List::EMPTY, prefix: List::EMPTY };
        let mut digest = DigestBuilder::new(hasher, DigestKind::Bases);
        let pages = self.pages.as_chunks_mut::<PAGE_BYTES>().0;
        let numbers = self.numbers.as_slice();
        let mut index = 0;
        for (position, (page_out, &page)) in pages.iter_mut().zip(numbers).enumerate() {
            if self.classes[position] != Class::Delta {
                continue;
            }
            let version = versions[index];
            let hash = if is_prefix(index) {
                let room = base_room(&mut self.bases, deltas.prefix.count);
                deltas.prefix.push(position);
                room.and_then(|room| bases.base(page, version, room))
            } else {
                deltas.runs.push(position);
                bases.base(page, version, page_out)
            };
            digest.add(page, hash.ok_or(DecodeError::BaseUnknown { page, version })?);
            index += 1;
        }
        if digest.finish() == expected { Ok(deltas) } else { Err(DecodeError::BaseMismatch) }
    }

    fn decode_runs(&mut self, reader: &mut Reader<'_>, runs: &[u8]) -> Result<(), DecodeError> {
        const SECTION: &str = "runs";
        if runs.is_empty() {
            return Ok(());
        }
        let plain_bytes = usize::from(u16::from_le_bytes(reader.array(SECTION)?));
        let coded_bytes = usize::from(u16::from_le_bytes(reader.array(SECTION)?));
        if plain_bytes > RUNS_BYTES_MAX || coded_bytes > plain_bytes {
            return Err(DecodeError::Malformed { section: SECTION });
        }
        let coded = reader.take(coded_bytes, SECTION)?;
        let plain = if coded_bytes == plain_bytes {
            coded
        } else {
            let room = &mut self.joined[..plain_bytes];
            decompress(&mut self.context, coded, &[], room, SECTION)?;
            room
        };
        let mut reader = Reader::new(plain);
        let pages = self.pages.as_chunks_mut::<PAGE_BYTES>().0;
        for position in runs {
            apply_runs(&mut reader, &mut pages[usize::from(*position)])?;
        }
        reader.finish()
    }

    fn decode_groups(&mut self, reader: &mut Reader<'_>, prefix: &[u8]) -> Result<(), DecodeError> {
        const SECTION: &str = "prefix group";
        let groups = prefix.chunks(GROUP_PAGES).zip(self.bases.chunks(GROUP_STRIDE_BYTES));
        for (group, bases) in groups {
            let bytes = reader.length(SECTION)?;
            let frame = reader.take(bytes, SECTION)?;
            let plain_bytes = group.len() * PAGE_BYTES;
            let room = &mut self.joined[..plain_bytes];
            let bases = &bases[..PREFIX_PAD_BYTES + plain_bytes];
            decompress(&mut self.context, frame, bases, room, SECTION)?;
            let pages = self.pages.as_chunks_mut::<PAGE_BYTES>().0;
            for (position, page) in group.iter().zip(room.as_chunks::<PAGE_BYTES>().0) {
                pages[usize::from(*position)] = *page;
            }
        }
        Ok(())
    }

    fn decode_zstd(
        &mut self,
        reader: &mut Reader<'_>,
        count: usize,
        window: Option<&mut LongWindowDecoder>,
    ) -> Result<(), DecodeError> {
        const SECTION: &str = "zstd section";
        let classes = &self.classes[..count];
        let zstd_pages = classes.iter().filter(|class| **class == Class::Zstd).count();
        if zstd_pages == 0 {
            return Ok(());
        }
        let bytes = reader.length(SECTION)?;
        let frame = reader.take(bytes, SECTION)?;
        // Where nothing else is in the payload, the pages need no sorting.
        let all = zstd_pages == count;
        let room = if all { &mut self.pages } else { &mut self.joined };
        let room = &mut room[..zstd_pages * PAGE_BYTES];
        match window {
            None => decompress(&mut self.context, frame, &[], room, SECTION)?,
            Some(window) => window.decompress(frame, room, SECTION)?,
        }
        if all {
            return Ok(());
        }
        let mut plain = self.joined[..zstd_pages * PAGE_BYTES].as_chunks::<PAGE_BYTES>().0.iter();
        for (page, class) in self.pages.as_chunks_mut::<PAGE_BYTES>().0.iter_mut().zip(classes) {
            if *class == Class::Zstd
                && let Some(plain) = plain.next()
            {
                *page = *plain;
            }
        }
        Ok(())
    }

    /// Hashes the pages and compares with what the source hashed.
    fn check(&mut self, hasher: &PageHasher, expected: Digest) -> Result<(), DecodeError> {
        let mut digest = DigestBuilder::new(hasher, DigestKind::Extent);
        let numbers = self.numbers.as_slice();
        let hashes = &mut self.hashes[..numbers.len()];
        hasher.hash_all(&self.pages.as_chunks().0[..numbers.len()], hashes);
        for (number, hash) in numbers.iter().zip(hashes) {
            digest.add(*number, *hash);
        }
        if digest.finish() == expected { Ok(()) } else { Err(DecodeError::DigestMismatch) }
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Decoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Decoder")
    }
}

/// Where the base of the prefix page number `index` goes.
fn base_room(bases: &mut [u8], index: usize) -> Option<&mut Page> {
    let group = bases.chunks_mut(GROUP_STRIDE_BYTES).nth(index / GROUP_PAGES)?;
    let pages = group[PREFIX_PAD_BYTES..].as_chunks_mut::<PAGE_BYTES>().0;
    pages.get_mut(index % GROUP_PAGES)
}

/// Decompresses exactly one frame to exactly fill `out`.
fn decompress(
    context: &mut DCtx<'static>,
    frame: &[u8],
    dictionary: &[u8],
    out: &mut [u8],
    section: &'static str,
) -> Result<(), DecodeError> {
    let one_frame = zstd_safe::find_frame_compressed_size(frame) == Ok(frame.len());
    let announced = zstd_safe::get_frame_content_size(frame).ok().flatten();
    if !one_frame || announced != Some(out.len() as u64) {
        return Err(DecodeError::Decompress { section });
    }
    let plain = if dictionary.is_empty() {
        context.decompress(out, frame)
    } else {
        context.decompress_using_dict(out, frame, dictionary)
    };
    if plain == Ok(out.len()) { Ok(()) } else { Err(DecodeError::Decompress { section }) }
}
