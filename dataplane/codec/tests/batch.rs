//! Batches of any pages, alone and over one long window: what one end codes, the other takes back.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use common::{Extent, KINDS, Kind, Noise, hasher};
use dwcp_codec::layout::batch_bytes_max;
use dwcp_codec::policy::ZSTD_LEVEL_MAX;
use dwcp_codec::window::{WINDOW_LOG_MAX, WINDOW_LOG_MIN};
use dwcp_codec::{
    BaseIn, Bases, BatchInput, Class, Coding, DecodeError, Decoder, EXTENT_PAGES, Encoder,
    EncoderConfig, LongWindowDecoder, LongWindowEncoder, PAGE_BYTES, Page, PageHash, WindowError,
};
use proptest::prelude::*;
use std::collections::BTreeMap;

const REGION_PAGES: u64 = 1 << 40;
const FULL: Coding = Coding::Full { zstd_level: 1 };

/// All versions of all pages that were coded or decoded so far.
#[derive(Default)]
struct History(BTreeMap<(u64, u64), (PageHash, Box<Page>)>);

impl Bases for &History {
    fn base(&mut self, page: u64, version: u64, out: &mut Page) -> Option<PageHash> {
        let (hash, held) = self.0.get(&(page, version))?;
        out.copy_from_slice(&held[..]);
        Some(*hash)
    }
}

impl History {
    fn keep(&mut self, version: u64, numbers: &[u64], pages: &[u8], hashes: &[PageHash]) {
        let pages = pages.as_chunks::<PAGE_BYTES>().0;
        for ((number, page), hash) in numbers.iter().zip(pages).zip(hashes) {
            self.0.insert((*number, version), (*hash, Box::new(*page)));
        }
    }

    /// Any version of a page, by a number that picks one.
    fn any(&self, page: u64, pick: u64) -> Option<(u64, PageHash, &Page)> {
        let versions = || self.0.range((page, 0)..=(page, u64::MAX));
        let count = versions().count() as u64;
        let found = versions().nth((pick % count.max(1)) as usize)?;
        Some((found.0.1, found.1.0, &found.1.1))
    }
}

/// Both ends of a channel.
struct Ends {
    encoder: Encoder,
    decoder: Decoder,
    windows: Option<(LongWindowEncoder, LongWindowDecoder)>,
    sent: History,
    got: History,
    version: u64,
}

impl Ends {
    fn new(window_log: Option<u32>) -> Self {
        let windows = window_log.map(|window_log| {
            let decoder = LongWindowDecoder::new(window_log).unwrap();
            // Level 1 searches otherwise than 3.
            let level = if window_log % 2 == 0 { 1 } else { 3 };
            (LongWindowEncoder::new(window_log, level..=ZSTD_LEVEL_MAX).unwrap(), decoder)
        });
        let encoder = Encoder::new(EncoderConfig { zstd_level_max: 3 });
        let (sent, got) = (History::default(), History::default());
        Self { encoder, decoder: Decoder::new(), windows, sent, got, version: 0 }
    }

    fn set_level(&mut self, level: i32) {
        if let Some((encoder, _)) = &mut self.windows {
            encoder.set_level(level);
        }
    }

    fn encode(&mut self, batch: &[(u64, Page)], noise: &mut Noise, coding: Coding) -> Vec<u8> {
        let numbers: Vec<u64> = batch.iter().map(|(number, _)| *number).collect();
        let pages: Vec<u8> = batch.iter().flat_map(|(_, page)| *page).collect();
        let hashes: Vec<PageHash> = batch.iter().map(|(_, page)| hasher().hash(page)).collect();
        let bases: Vec<Option<BaseIn<'_>>> = numbers
            .iter()
            .map(|number| {
                let (version, hash, page) = self.sent.any(*number, noise.next())?;
                Some(BaseIn { version, hash, page })
            })
            .collect();
        let (numbers, hashes) = (&numbers[..], &hashes[..]);
        let input = BatchInput { numbers, pages: &pages, hashes, bases: &bases, coding };
        let mut out = vec![0xa5; batch_bytes_max(batch.len())];
        let window = self.windows.as_mut().map(|(window, _)| window);
        let encoded = self.encoder.encode_batch(&hasher(), &input, window, &mut out);
        assert_eq!(encoded.stats.total_bytes(), encoded.bytes as u64);
        assert_eq!(encoded.stats.total_pages(), batch.len() as u64);
        out.truncate(encoded.bytes);
        self.version += 1;
        self.sent.keep(self.version, numbers, &pages, hashes);
        out
    }

    fn decode(&mut self, payload: &[u8]) -> Result<Vec<(u64, Page)>, DecodeError> {
        let window = self.windows.as_mut().map(|(_, window)| window);
        let (decoder, mut bases) = (&mut self.decoder, &self.got);
        let decoded = decoder.decode_batch(&hasher(), payload, REGION_PAGES, &mut bases, window)?;
        let pages = decoded.pages.as_chunks::<PAGE_BYTES>().0;
        let list = decoded.numbers.iter().copied().zip(pages.iter().copied()).collect();
        self.got.keep(self.version, decoded.numbers, decoded.pages, decoded.hashes);
        Ok(list)
    }

    fn round_trip(&mut self, batch: &[(u64, Page)], noise: &mut Noise, coding: Coding) -> usize {
        let payload = self.encode(batch, noise, coding);
        let decoded = self.decode(&payload).unwrap();
        assert!(decoded == batch, "version {}", self.version);
        payload.len()
    }
}

/// A new version of a page: fresh, or something of what was there.
fn next_page(noise: &mut Noise, old: Option<&Page>) -> Page {
    let mut page = old.copied().unwrap_or_else(|| noise.text_page());
    match noise.below(6) {
        0 => page = [0; PAGE_BYTES],
        1 => page = noise.random_page(),
        2 => page = noise.text_page(),
        3 => page.rotate_right(1 + noise.below(50)),
        _ => {
            for _ in 0..=noise.below(20) {
                page[noise.below(PAGE_BYTES)] = noise.next() as u8;
            }
        }
    }
    page
}

/// Up to 64 of `spread` pages, far apart and in any order.
fn next_batch(noise: &mut Noise, spread: usize, ends: &Ends) -> Vec<(u64, Page)> {
    let mut numbers: Vec<u64> = (0..spread as u64).map(|page| page * page * 977).collect();
    for index in (1..numbers.len()).rev() {
        numbers.swap(index, noise.below(index + 1));
    }
    numbers.truncate(1 + noise.below(EXTENT_PAGES));
    numbers
        .into_iter()
        .map(|number| {
            let old = ends.sent.any(number, noise.next()).map(|(_, _, page)| *page);
            (number, next_page(noise, old.as_ref()))
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_sequence_of_batches_with_any_earlier_bases_comes_back(
        seed: u64, window in proptest::option::of(WINDOW_LOG_MIN..=21), spread in 1..200_usize,
    ) {
        let mut noise = Noise(seed);
        let mut ends = Ends::new(window);
        for _ in 0..12 {
            if noise.below(3) == 0 {
                ends.set_level(noise.below(12) as i32);
            }
            let batch = next_batch(&mut noise, spread, &ends);
            let coding = if noise.below(8) == 0 { Coding::Passthrough } else { FULL };
            ends.round_trip(&batch, &mut noise, coding);
        }
    }

    #[test]
    fn an_altered_batch_never_gives_other_pages(
        seed: u64, window in proptest::option::of(WINDOW_LOG_MIN..=18), front: bool,
        at: prop::sample::Index, flip in 1..=255_u8,
    ) {
        let mut noise = Noise(seed);
        let mut ends = Ends::new(window);
        for _ in 0..3 {
            let batch = next_batch(&mut noise, 80, &ends);
            ends.round_trip(&batch, &mut noise, FULL);
        }
        let batch = next_batch(&mut noise, 80, &ends);
        let mut payload = ends.encode(&batch, &mut noise, FULL);
        let end = if front { payload.len().min(200) } else { payload.len() };
        payload[at.index(end)] ^= flip;
        match ends.decode(&payload) {
            Ok(decoded) => prop_assert!(decoded == batch),
            Err(_) if window.is_some() => {
                prop_assert_eq!(ends.decode(&payload).unwrap_err(), DecodeError::WindowSpent);
            }
            Err(_) => {}
        }
    }

    #[test]
    fn any_bytes_are_refused_with_a_typed_error(
        bytes in proptest::collection::vec(any::<u8>(), 0..2048), window: bool,
    ) {
        let mut ends = Ends::new(window.then_some(16));
        prop_assert!(ends.decode(&bytes).is_err());
    }
}

#[test]
fn a_batch_of_neighbours_has_the_same_body_as_their_extent() {
    let kinds: Vec<Kind> = KINDS.into_iter().cycle().take(EXTENT_PAGES).collect();
    let extent = Extent::new(640, &kinds, 3);
    let bases = extent.bases_in();
    let numbers: Vec<u64> =
        (0..64).filter(|bit| extent.mask >> bit & 1 == 1).map(|bit| 640 + bit).collect();
    let mut encoder = Encoder::new(EncoderConfig { zstd_level_max: 1 });
    let mut one = vec![0; dwcp_codec::ENCODED_BYTES_MAX];
    let mut two = one.clone();
    let ext = encoder.encode(&hasher(), &extent.input(&bases, FULL), &mut one).bytes;
    let (pages, hashes) = (&extent.pages[..], &extent.hashes[..]);
    let input = BatchInput { numbers: &numbers, pages, hashes, bases: &bases, coding: FULL };
    let list = encoder.encode_batch(&hasher(), &input, None, &mut two).bytes;
    // Count, one number of two bytes, and one byte for each that follows.
    let place_bytes = 1 + 2 + numbers.len() - 1;
    assert!(one[16..ext] == two[place_bytes..list]);
}

#[test]
fn a_repeated_batch_costs_next_to_nothing_inside_the_window() {
    for (window, most) in [(None, usize::MAX), (Some(20), 4000)] {
        let mut noise = Noise(9);
        let mut ends = Ends::new(window);
        let batch: Vec<_> = (0..64).map(|page| (page, noise.text_page())).collect();
        let first = ends.round_trip(&batch, &mut noise, FULL);
        // The same contents at other places, so that no base is of use.
        let moved: Vec<_> = batch.iter().map(|(page, bytes)| (page + 1000, *bytes)).collect();
        let second = ends.round_trip(&moved, &mut noise, FULL);
        assert!(second <= most, "{window:?}: {first} then {second}");
        assert!(window.is_some() || second * 2 > first);
    }
}

/// A page that doesn't look random to the quick guess, and that zstd can't compress.
fn deceiving_page(noise: &mut Noise) -> Page {
    let mut page = noise.random_page();
    // What is sampled are the first eight bytes of every 32.
    for word in page.chunks_mut(32) {
        word[0] = 0;
        word[1] = 1;
    }
    page
}

#[test]
fn incompressible_pages_in_the_window_exceed_their_bytes_by_the_stated_bound_at_most() {
    for window_log in [WINDOW_LOG_MIN, 14, WINDOW_LOG_MAX] {
        let mut noise = Noise(u64::from(window_log));
        let mut ends = Ends::new(Some(window_log));
        for count in [64, 1, 3, 63, 64, 64] {
            let batch: Vec<_> =
                (0..count).map(|page| (page * 3, deceiving_page(&mut noise))).collect();
            let bytes = ends.round_trip(&batch, &mut noise, FULL);
            assert!(bytes <= batch_bytes_max(batch.len()), "{window_log}");
        }
    }
}

#[test]
fn a_sink_with_a_smaller_window_refuses_the_stream() {
    let mut noise = Noise(1);
    let mut ends = Ends::new(Some(20));
    ends.windows.as_mut().unwrap().1 = LongWindowDecoder::new(19).unwrap();
    let payload = ends.encode(&[(1, noise.text_page())], &mut noise, FULL);
    let refused = DecodeError::Decompress { section: "zstd section" };
    assert_eq!(ends.decode(&payload).unwrap_err(), refused);
    assert_eq!(ends.decode(&payload).unwrap_err(), DecodeError::WindowSpent);
}

#[test]
fn a_gap_in_the_stream_is_noticed() {
    let mut noise = Noise(2);
    let mut ends = Ends::new(Some(20));
    let batch = |from: u64, pages: &[Page]| -> Vec<(u64, Page)> {
        (from..).zip(pages.iter().copied()).collect()
    };
    let pages: Vec<Page> = (0..8).map(|_| noise.text_page()).collect();
    ends.round_trip(&batch(0, &pages), &mut noise, FULL);
    let fresh: Vec<Page> = (0..8).map(|_| noise.text_page()).collect();
    let _lost = ends.encode(&batch(100, &fresh), &mut noise, FULL);
    let after = ends.encode(&batch(200, &fresh), &mut noise, FULL);
    assert!(ends.decode(&after).is_err());
    assert_eq!(ends.decode(&after).unwrap_err(), DecodeError::WindowSpent);
}

#[test]
fn another_level_begins_with_an_empty_window() {
    let mut noise = Noise(4);
    let mut ends = Ends::new(Some(20));
    let batch: Vec<_> = (0..64).map(|page| (page, noise.text_page())).collect();
    let moved = |by: u64| -> Vec<_> { batch.iter().map(|(page, it)| (page + by, *it)).collect() };
    let first = ends.round_trip(&batch, &mut noise, FULL);
    let inside = ends.round_trip(&moved(1000), &mut noise, FULL);
    ends.set_level(3);
    let outside = ends.round_trip(&moved(2000), &mut noise, FULL);
    let again = ends.round_trip(&moved(3000), &mut noise, FULL);
    assert!(inside * 10 < first && outside * 2 > first, "{first}, {inside}, {outside}");
    assert!(again * 10 < first, "{first}, {again}");
}

#[test]
fn memory_is_taken_at_once_and_bounded_by_the_window() {
    for window_log in [WINDOW_LOG_MIN, 21, WINDOW_LOG_MAX] {
        let mut noise = Noise(3);
        let mut ends = Ends::new(Some(window_log));
        let memory = |ends: &Ends| {
            let (encoder, decoder) = ends.windows.as_ref().unwrap();
            (encoder.memory_bytes(), decoder.memory_bytes())
        };
        let before = memory(&ends);
        for round in 0..4 {
            ends.set_level([9, 1, 5, 3][round as usize]);
            let batch: Vec<_> =
                (0..64).map(|page| (page + round * 64, noise.text_page())).collect();
            ends.round_trip(&batch, &mut noise, FULL);
        }
        assert_eq!(memory(&ends), before, "{window_log}");
        let window_bytes = 1 << window_log;
        assert!(before.1 >= window_bytes && before.1 <= window_bytes + (512 << 10), "{before:?}");
    }
}

#[test]
fn windows_of_no_possible_size_are_refused() {
    for window_log in [0, WINDOW_LOG_MIN - 1, WINDOW_LOG_MAX + 1, u32::MAX] {
        let refused = WindowError::WindowLog { window_log };
        assert_eq!(LongWindowEncoder::new(window_log, 1..=1).unwrap_err(), refused);
        assert_eq!(LongWindowDecoder::new(window_log).unwrap_err(), refused);
    }
}

#[test]
fn delta_groups_span_the_whole_batch() {
    let mut noise = Noise(6);
    let mut ends = Ends::new(Some(18));
    let old: Vec<_> = (0..40_u64).map(|page| (page * 5000, noise.text_page())).collect();
    let first = ends.round_trip(&old, &mut noise, FULL);
    let new: Vec<_> = old
        .iter()
        .rev()
        .map(|(number, page)| {
            let mut page = *page;
            page.rotate_right(7);
            (*number, page)
        })
        .collect();
    let second = ends.round_trip(&new, &mut noise, FULL);
    assert!((0..40).all(|index| ends.encoder.class(index) == Class::Delta));
    assert!(second < first / 5, "{first} then {second}");
}
