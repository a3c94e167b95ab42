//! Targets for the coding of pages.

use dwcp_codec::{
    BaseIn, Bases, BatchInput, Coding, DecodeError, Decoder, ENCODED_BYTES_MAX, EXTENT_PAGES,
    Encoder, EncoderConfig, ExtentInput, HashKey, LongWindowDecoder, LongWindowEncoder, PAGE_BYTES,
    Page, PageHash, PageHasher,
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

/// The window of [`decode_stream`] and [`encode_stream`]: small, so that inputs leave it behind.
const WINDOW_LOG: u32 = 17;

/// A stream of batches over one long window, each behind its length (u16, little-endian), gives
/// pages that match their digest until the first error, and the same error for ever after.
pub fn decode_stream(data: &[u8]) {
    let mut window = LongWindowDecoder::new(WINDOW_LOG).expect("a window of this size is possible");
    let memory_bytes = window.memory_bytes();
    let (mut rest, mut spent) = (data, false);
    CODERS.with_borrow_mut(|(_, decoder)| {
        while let Some((length, behind)) = rest.split_first_chunk::<2>() {
            let length = usize::from(u16::from_le_bytes(*length)).min(behind.len());
            let (payload, behind) = behind.split_at(length);
            rest = behind;
            let key = &hasher();
            match decoder.decode_batch(
                key,
                payload,
                REGION_PAGES,
                &mut Scattered,
                Some(&mut window),
            ) {
                Err(error) => {
                    assert_eq!(spent, error == DecodeError::WindowSpent);
                    spent = true;
                }
                Ok(batch) => {
                    assert!(!spent, "a spent window decodes no more");
                    let count = batch.numbers.len();
                    assert!((1..=EXTENT_PAGES).contains(&count));
                    assert_eq!((batch.hashes.len(), batch.classes.len()), (count, count));
                    let mut numbers = batch.numbers.to_vec();
                    numbers.sort_unstable();
                    numbers.dedup();
                    assert_eq!(numbers.len(), count, "each page once");
                    assert!(numbers.iter().all(|number| *number < REGION_PAGES));
                    let (pages, behind) = batch.pages.as_chunks::<PAGE_BYTES>();
                    assert!(pages.len() == count && behind.is_empty());
                    for (page, hash) in pages.iter().zip(batch.hashes) {
                        assert_eq!(key.hash(page), *hash);
                    }
                }
            }
        }
    });
    assert!(window.memory_bytes() <= memory_bytes, "memory is bounded by the window");
}

/// What is encoded as a stream of batches decodes to the same pages.
pub fn stream_round_trip(data: &[u8]) {
    let mut window = LongWindowDecoder::new(WINDOW_LOG).expect("a window of this size is possible");
    for (mask, edits, payload) in encode_stream(data) {
        CODERS.with_borrow_mut(|(_, decoder)| {
            let batch = decoder
                .decode_batch(&hasher(), &payload, REGION_PAGES, &mut Scattered, Some(&mut window))
                .expect("what the encoder made can be decoded");
            assert!(batch.numbers.iter().copied().eq(numbers(mask).map(scattered)));
            assert_eq!(batch.pages, pages_of(mask, edits));
        });
    }
}

/// Encodes the stream of batches that `data` describes in pieces of at most 40 bytes, each a mask
/// and edits as in [`round_trip`], at levels that the masks tell; returns what was coded with each
/// payload.
pub fn encode_stream(data: &[u8]) -> Vec<(u64, &[u8], Vec<u8>)> {
    let mut window = LongWindowEncoder::new(WINDOW_LOG, 1..=3).expect("the window is possible");
    let pieces = data.chunks(40).take(16).filter_map(|piece| piece.split_first_chunk::<8>());
    let masks = pieces.map(|(mask, edits)| (u64::from_le_bytes(*mask), edits));
    masks
        .filter(|(mask, _)| *mask != 0)
        .map(|(mask, edits)| {
            let mut payload = vec![0; ENCODED_BYTES_MAX];
            window.set_level((mask % 7) as i32);
            let bytes = CODERS.with_borrow_mut(|(encoder, _)| {
                let window = Some(&mut window);
                with_pages(mask, edits, |pages, hashes, bases, coding| {
                    let numbers: Vec<u64> = numbers(mask).map(scattered).collect();
                    let input = BatchInput { numbers: &numbers, pages, hashes, bases, coding };
                    encoder.encode_batch(&hasher(), &input, window, &mut payload).bytes
                })
            });
            payload.truncate(bytes);
            (mask, edits, payload)
        })
        .collect()
}

/// Another place for a page, so that neighbours are out of order; its own inverse.
const fn scattered(page: u64) -> u64 {
    page ^ 0xa_5a15
}

/// The sink of a stream: holds at each place what [`Held`] has for the page that was put there.
struct Scattered;

impl Bases for Scattered {
    fn base(&mut self, page: u64, version: u64, out: &mut Page) -> Option<PageHash> {
        Held.base(scattered(page), version, out)
    }
}

/// The extent that all encoded pages belong to.
const FIRST_PAGE: u64 = 128;

/// Encodes the pages that `mask` and `edits` describe; returns the payload's length.
pub fn encode(encoder: &mut Encoder, mask: u64, edits: &[u8], payload: &mut [u8]) -> usize {
    with_pages(mask, edits, |pages, hashes, bases, coding| {
        let input = ExtentInput { first_page: FIRST_PAGE, mask, pages, hashes, bases, coding };
        encoder.encode(&hasher(), &input, payload).bytes
    })
}

/// Makes the pages that `mask` and `edits` describe, with their hashes, bases and coding.
fn with_pages<T>(
    mask: u64,
    edits: &[u8],
    use_them: impl FnOnce(&[u8], &[PageHash], &[Option<BaseIn<'_>>], Coding) -> T,
) -> T {
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
    use_them(&pages, &hashes, &bases, coding)
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
