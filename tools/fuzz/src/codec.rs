//! Targets for the coding of pages.

use dwcp_codec::{
    BaseIn, Bases, Coding, Decoder, ENCODED_BYTES_MAX, EXTENT_PAGES, Encoder, EncoderConfig,
    ExtentInput, HashKey, PAGE_BYTES, Page, PageHash, PageHasher,
};
use std::cell::RefCell;

/// Pages of the region that payloads speak of.
pub const REGION_PAGES: u64 = 1 << 20;

/// The hash that [`held_page`] claims for every base.
const CLAIMED: PageHash = PageHash([9; 16]);

/// The content of every base version: words that differ, so that deltas have something to find.
#[must_use]
pub fn held_page(page: u64, version: u64) -> Page {
    let mut out = [0; PAGE_BYTES];
    let (words, _) = out.as_chunks_mut::<8>();
    for (index, word) in (0_u64..).zip(words) {
        let mixed = (page ^ version.rotate_left(32) ^ index).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        *word = if index % 3 == 0 { mixed } else { index / 5 }.to_le_bytes();
    }
    out
}

/// The key of all hashes here.
#[must_use]
pub fn hasher() -> PageHasher {
    PageHasher::new(&HashKey([5; 32]))
}

/// A sink that holds every version but multiples of 1,000, all with the same claimed hash. The
/// digest over the bases then depends only on which pages are deltas, and a changed version or run
/// gets past it to the code behind.
struct Held;

impl Bases for Held {
    fn base(&mut self, page: u64, version: u64, out: &mut Page) -> Option<PageHash> {
        *out = held_page(page, version);
        (version % 1000 != 0).then_some(CLAIMED)
    }
}

thread_local! {
    /// Both take about a MiB; one of each is made for all inputs, as a shard does it.
    static CODERS: RefCell<(Encoder, Decoder)> = RefCell::new((
        Encoder::new(EncoderConfig { zstd_level_max: 3 }),
        Decoder::new(),
    ));
}

/// Any payload gives pages that match its digest, or an error.
pub fn decode(data: &[u8]) {
    CODERS.with_borrow_mut(|(_, decoder)| {
        let Ok(extent) = decoder.decode(&hasher(), data, REGION_PAGES, &mut Held) else { return };
        let count = extent.mask.count_ones() as usize;
        assert!((1..=EXTENT_PAGES).contains(&count));
        assert_eq!(extent.pages.len(), count * PAGE_BYTES);
        assert_eq!((extent.hashes.len(), extent.classes.len()), (count, count));
        assert!(extent.first_page + (EXTENT_PAGES as u64) <= REGION_PAGES);
        let (pages, _) = extent.pages.as_chunks::<PAGE_BYTES>();
        for (page, hash) in pages.iter().zip(extent.hashes) {
            assert_eq!(hasher().hash(page), *hash);
        }
    });
}

/// What is encoded decodes to the same pages and is never longer than its pages sent raw.
pub fn round_trip(data: &[u8]) {
    let Some((mask, edits)) = data.split_first_chunk::<8>() else { return };
    let mask = u64::from_le_bytes(*mask);
    if mask == 0 {
        return;
    }
    let mut payload = vec![0; ENCODED_BYTES_MAX];
    CODERS.with_borrow_mut(|(encoder, _)| {
        let bytes = encode(encoder, mask, edits, &mut payload);
        payload.truncate(bytes);
    });
    CODERS.with_borrow_mut(|(_, decoder)| {
        let extent = decoder
            .decode(&hasher(), &payload, REGION_PAGES, &mut Held)
            .expect("what the encoder made can be decoded");
        assert_eq!((extent.first_page, extent.mask), (FIRST_PAGE, mask));
        assert_eq!(extent.pages, pages_of(mask, edits));
    });
}

/// The extent that all encoded pages belong to.
const FIRST_PAGE: u64 = 128;

/// Encodes the pages that `mask` and `edits` describe; returns the payload's length.
pub fn encode(encoder: &mut Encoder, mask: u64, edits: &[u8], payload: &mut [u8]) -> usize {
    let pages = pages_of(mask, edits);
    let hashes: Vec<PageHash> =
        pages.as_chunks::<PAGE_BYTES>().0.iter().map(|page| hasher().hash(page)).collect();
    let version = |page: u64| 7 + page % 3;
    let held: Vec<Page> = numbers(mask).map(|page| held_page(page, version(page))).collect();
    let bases: Vec<Option<BaseIn<'_>>> = numbers(mask)
        .zip(&held)
        .map(|(number, page)| {
            let base = BaseIn { version: version(number), hash: CLAIMED, page };
            (number % 4 != 3).then_some(base)
        })
        .collect();
    let zstd_level = i32::from(edits.first().copied().unwrap_or(1) % 3 + 1);
    let coding =
        if edits.len() % 16 == 15 { Coding::Passthrough } else { Coding::Full { zstd_level } };
    let input = ExtentInput {
        first_page: FIRST_PAGE,
        mask,
        pages: &pages,
        hashes: &hashes,
        bases: &bases,
        coding,
    };
    let encoded = encoder.encode(&hasher(), &input, payload);
    assert!(encoded.bytes <= ENCODED_BYTES_MAX);
    encoded.bytes
}

/// Numbers of the pages in `mask`.
fn numbers(mask: u64) -> impl Iterator<Item = u64> {
    (0..EXTENT_PAGES as u64).filter(move |bit| mask >> bit & 1 == 1).map(|bit| FIRST_PAGE + bit)
}

/// Pages made of a base and edits: four bytes each (page, kind, place, value).
fn pages_of(mask: u64, edits: &[u8]) -> Vec<u8> {
    let mut pages: Vec<u8> = numbers(mask).flat_map(|page| held_page(page, 7 + page % 3)).collect();
    let count = pages.len() / PAGE_BYTES;
    for edit in edits.as_chunks::<4>().0 {
        let [page, kind, place, value] = edit.map(usize::from);
        let page = &mut pages[page % count * PAGE_BYTES..][..PAGE_BYTES];
        match kind % 4 {
            0 => page.fill(0),
            1 => page[place * 16..][..16].fill(edit[3]),
            2 => {
                let mut state = (place * 256 + value) as u32 | 1;
                page.fill_with(|| {
                    state ^= state << 13;
                    state ^= state >> 17;
                    state ^= state << 5;
                    state as u8
                });
            }
            _ => page.iter_mut().step_by(value + 1).for_each(|byte| *byte ^= edit[2]),
        }
    }
    pages
}
