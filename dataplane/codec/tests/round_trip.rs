//! What the encoder makes, the decoder takes back; what anything else makes, it refuses.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use common::{Extent, KINDS, Kind, Noise, hasher};
use dwcp_codec::layout::encoded_bytes_max;
use dwcp_codec::{
    Bases, Class, Coding, DecodeError, Decoder, EXTENT_PAGES, Encoded, Encoder, EncoderConfig,
    ExtentStats, PAGE_BYTES, Page, PageHash,
};
use proptest::prelude::*;
use std::cell::RefCell;

const FULL: Coding = Coding::Full { zstd_level: 1 };
const REGION_PAGES: u64 = 1 << 20;

thread_local! {
    // One pair for all cases: what an extent leaves behind must not reach the next one.
    static CODER: RefCell<(Encoder, Decoder)> = RefCell::new((
        Encoder::new(EncoderConfig { zstd_level_max: 3 }),
        Decoder::new(),
    ));
}

struct NoBases;

impl Bases for NoBases {
    fn base(&mut self, _page: u64, _version: u64, _out: &mut Page) -> Option<PageHash> {
        None
    }
}

fn encode(extent: &Extent, coding: Coding) -> (Vec<u8>, Encoded) {
    let bases = extent.bases_in();
    // Rubbish in the output shows what the encoder forgets to write.
    let mut out = vec![0xa5; encoded_bytes_max(extent.hashes.len())];
    let encoded = CODER.with_borrow_mut(|(encoder, _)| {
        encoder.encode(&hasher(), &extent.input(&bases, coding), &mut out)
    });
    out.truncate(encoded.bytes);
    (out, encoded)
}

fn decode<T>(
    payload: &[u8],
    bases: &mut impl Bases,
    with: impl FnOnce(dwcp_codec::DecodedExtent<'_>) -> T,
) -> Result<T, DecodeError> {
    CODER.with_borrow_mut(|(_, decoder)| {
        decoder.decode(&hasher(), payload, REGION_PAGES, bases).map(with)
    })
}

fn error_of(payload: &[u8], mut bases: &Extent) -> DecodeError {
    decode(payload, &mut bases, |_| ()).unwrap_err()
}

/// Codes and decodes, and checks all that must hold for any extent.
fn round_trip(extent: &Extent, coding: Coding) -> (Vec<u8>, ExtentStats, Vec<Class>) {
    let (payload, encoded) = encode(extent, coding);
    assert_eq!(encoded.stats.total_bytes(), payload.len() as u64);
    assert_eq!(encoded.stats.total_pages(), u64::from(extent.mask.count_ones()));
    let mut bases = extent;
    let classes = decode(&payload, &mut bases, |decoded| {
        assert_eq!((decoded.first_page, decoded.mask), (extent.first_page, extent.mask));
        assert!(decoded.pages == extent.pages);
        assert_eq!(decoded.hashes, extent.hashes);
        decoded.classes.to_vec()
    })
    .unwrap();
    for class in Class::ALL {
        let count = classes.iter().filter(|found| **found == class).count() as u64;
        assert_eq!(encoded.stats.class(class).pages, count, "{class:?}");
    }
    (payload, encoded.stats, classes)
}

fn uniform(kind: Kind) -> Extent {
    Extent::new(128, &[kind; EXTENT_PAGES], 7)
}

fn kinds() -> impl Strategy<Value = Vec<Kind>> {
    let mixed = proptest::collection::vec(proptest::sample::select(&KINDS[..]), 1..=EXTENT_PAGES);
    mixed.prop_filter("at least one page", |kinds| kinds.iter().any(|kind| *kind != Kind::Absent))
}

#[test]
fn each_kind_of_page_gets_the_class_that_suits_it() {
    let class_of = |kind| {
        let (_, _, classes) = round_trip(&uniform(kind), FULL);
        assert!(classes.iter().all(|class| *class == classes[0]), "{kind:?}");
        classes[0]
    };
    assert_eq!(class_of(Kind::Zero), Class::Zero);
    assert_eq!(class_of(Kind::ZeroWithBase), Class::Zero);
    assert_eq!(class_of(Kind::Text), Class::Zstd);
    assert_eq!(class_of(Kind::Random), Class::Raw);
    assert_eq!(class_of(Kind::SameAsBase), Class::Delta);
    assert_eq!(class_of(Kind::FewBytes), Class::Delta);
    assert_eq!(class_of(Kind::Shifted), Class::Delta);
    assert_eq!(class_of(Kind::MagicBase), Class::Delta);
    assert_eq!(class_of(Kind::Rewritten), Class::Raw);
}

#[test]
fn deltas_are_far_smaller_than_the_page_alone() {
    let bytes = |kind| round_trip(&uniform(kind), FULL).0.len();
    assert!(bytes(Kind::SameAsBase) < 256);
    assert!(bytes(Kind::FewBytes) < bytes(Kind::Text) / 5);
    assert!(bytes(Kind::Shifted) < bytes(Kind::Text) / 5);
}

#[test]
fn passthrough_sends_every_page_raw() {
    for kind in [Kind::Zero, Kind::Text, Kind::FewBytes, Kind::Random] {
        let (payload, stats, classes) = round_trip(&uniform(kind), Coding::Passthrough);
        assert!(classes.iter().all(|class| *class == Class::Raw));
        assert_eq!(payload.len(), encoded_bytes_max(EXTENT_PAGES));
        assert_eq!(stats.raw.coded_bytes, (EXTENT_PAGES * PAGE_BYTES) as u64);
    }
}

#[test]
fn every_number_of_pages_of_every_kind_comes_back() {
    for kind in KINDS {
        for count in [1, 2, 3, 4, 5, 15, 16, 17, 33, 63, 64] {
            let mut kinds = [Kind::Absent; EXTENT_PAGES];
            for index in 0..count {
                kinds[index * EXTENT_PAGES / count] = kind;
            }
            if kind != Kind::Absent {
                round_trip(&Extent::new(0, &kinds, count as u64), FULL);
            }
        }
    }
}

#[test]
fn a_page_beyond_the_region_is_refused_and_the_last_one_is_not() {
    let extent = Extent::new(64, &[Kind::Text; 6], 1);
    let (payload, _) = encode(&extent, FULL);
    let mut decoder = Decoder::new();
    assert!(decoder.decode(&hasher(), &payload, 70, &mut NoBases).is_ok());
    assert_eq!(
        decoder.decode(&hasher(), &payload, 69, &mut NoBases).unwrap_err(),
        DecodeError::BeyondRegion { page: 69, region_pages: 69 }
    );
}

#[test]
fn heads_that_lie_about_their_place_are_refused() {
    let extent = uniform(Kind::FewBytes);
    let (payload, _) = encode(&extent, FULL);
    let with = |offset: usize, value: u64| {
        let mut payload = payload.clone();
        payload[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        error_of(&payload, &extent)
    };
    assert_eq!(with(0, 129), DecodeError::Unaligned { first_page: 129 });
    assert!(matches!(with(0, u64::MAX - 63), DecodeError::BeyondRegion { page: u64::MAX, .. }));
    assert_eq!(with(8, 0), DecodeError::Empty);
    let text = uniform(Kind::Text);
    let (mut moved, _) = encode(&text, FULL);
    moved[..8].copy_from_slice(&192u64.to_le_bytes());
    assert_eq!(error_of(&moved, &text), DecodeError::DigestMismatch);
}

#[test]
fn an_unknown_base_is_named_and_a_wrong_one_is_noticed() {
    struct WrongBases;
    impl Bases for WrongBases {
        fn base(&mut self, _page: u64, _version: u64, out: &mut Page) -> Option<PageHash> {
            out.fill(1);
            Some(hasher().hash(out))
        }
    }
    for kind in [Kind::FewBytes, Kind::Shifted] {
        let extent = Extent::new(0, &[kind; 20], 3);
        let (payload, _) = encode(&extent, FULL);
        let version = extent.bases[0].as_ref().unwrap().0;
        let unknown = decode(&payload, &mut NoBases, |_| ()).unwrap_err();
        assert_eq!(unknown, DecodeError::BaseUnknown { page: 0, version });
        let wrong = decode(&payload, &mut WrongBases, |_| ()).unwrap_err();
        assert_eq!(wrong, DecodeError::BaseMismatch);
        assert!(unknown.wants_whole_pages() && wrong.wants_whole_pages());
    }
}

#[test]
fn another_key_refuses_the_pages() {
    let extent = uniform(Kind::Text);
    let (payload, _) = encode(&extent, FULL);
    let other = dwcp_codec::PageHasher::new(&dwcp_codec::HashKey([43; 32]));
    let refused = Decoder::new().decode(&other, &payload, REGION_PAGES, &mut NoBases).unwrap_err();
    assert_eq!(refused, DecodeError::DigestMismatch);
}

#[test]
fn every_truncation_is_refused_as_such() {
    let mut noise = Noise(5);
    let kinds: Vec<Kind> = (0..EXTENT_PAGES).map(|_| KINDS[noise.below(KINDS.len())]).collect();
    let extent = Extent::new(0, &kinds, 5);
    let (mut payload, _) = encode(&extent, FULL);
    for length in (0..payload.len()).filter(|length| *length < 2000 || length % 61 == 0) {
        let error = error_of(&payload[..length], &extent);
        assert!(matches!(error, DecodeError::Truncated { .. }), "{length}: {error:?}");
    }
    payload.push(0);
    assert_eq!(error_of(&payload, &extent), DecodeError::TrailingBytes { bytes: 1 });
}

#[test]
fn frames_that_announce_another_size_are_refused_before_decompression() {
    // One zstd page whose frame holds 1 GiB of zeros by its own word.
    let extent = Extent::new(0, &[Kind::Text], 1);
    let (payload, _) = encode(&extent, FULL);
    let frame_at = 32 + 1 + 3;
    assert_eq!(&payload[frame_at..frame_at + 4], &0xfd2f_b528_u32.to_le_bytes());
    let mut bomb = payload[..frame_at - 3].to_vec();
    // Header of a single-segment frame with eight bytes of content size, then one RLE block.
    let frame = [
        &[0x28, 0xb5, 0x2f, 0xfd, 0xe0][..],
        &(1u64 << 30).to_le_bytes(),
        &[0x03, 0x00, 0x08, 0x00],
    ]
    .concat();
    bomb.extend_from_slice(&(frame.len() as u32).to_le_bytes()[..3]);
    bomb.extend_from_slice(&frame);
    assert_eq!(error_of(&bomb, &extent), DecodeError::Decompress { section: "zstd section" });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_mix_of_pages_comes_back_and_fits(
        kinds in kinds(), extent in 0..REGION_PAGES / 64, seed: u64, level in 1..=3,
    ) {
        let extent = Extent::new(extent * 64, &kinds, seed);
        let coding = Coding::Full { zstd_level: level };
        let (payload, _, _) = round_trip(&extent, coding);
        prop_assert!(payload.len() <= encoded_bytes_max(extent.hashes.len()));
    }

    #[test]
    fn altered_payloads_never_give_other_pages(
        kinds in kinds(), seed: u64,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), 1..=255u8), 1..4),
        front: bool,
    ) {
        let extent = Extent::new(0, &kinds, seed);
        let (mut payload, _) = encode(&extent, FULL);
        // Half of the cases aim at the heads, where the structure is.
        let end = if front { payload.len().min(160) } else { payload.len() };
        for (at, flip) in changes {
            payload[at.index(end)] ^= flip;
        }
        let mut bases = &extent;
        // A change may be without effect on the pages (another form of the same zstd frame, two
        // flips that cancel out), but it can't give any others.
        let _ = decode(&payload, &mut bases, |decoded| {
            assert_eq!((decoded.first_page, decoded.mask), (0, extent.mask));
            assert!(decoded.pages == extent.pages);
        });
    }

    #[test]
    fn any_bytes_are_refused_with_a_typed_error(
        bytes in proptest::collection::vec(any::<u8>(), 0..4096), mask: u64, head: bool,
    ) {
        let mut bytes = bytes;
        if head && bytes.len() >= 16 {
            bytes[..8].fill(0);
            bytes[8..16].copy_from_slice(&mask.to_le_bytes());
        }
        prop_assert!(decode(&bytes, &mut NoBases, |_| ()).is_err());
    }
}

#[test]
fn the_bytes_of_an_extent_are_a_promise_to_peers() {
    // Kinds whose coding is all ours: no byte of the payload is zstd's.
    let kinds = [
        Kind::Absent,
        Kind::Zero,
        Kind::Random,
        Kind::SameAsBase,
        Kind::Absent,
        Kind::Rewritten,
        Kind::SameAsBase,
    ];
    let (payload, _) = encode(&Extent::new(128, &kinds, 11), FULL);
    let head: String = payload[..34].iter().map(|byte| format!("{byte:02x}")).collect();
    let golden = "80000000000000006e00000000000000924ed09a69898216a9a5869920ab397adc01";
    assert_eq!((payload.len(), head.as_str()), (8256, golden));
    let all = "ae3132e708da33ee351f70f53e59b8732dfacbc8f471d255e94f40bb2137d77b";
    assert_eq!(blake3::hash(&payload).to_hex().as_str(), all);
}
