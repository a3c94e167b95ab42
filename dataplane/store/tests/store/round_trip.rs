//! What was put in comes out, after a restart as well, and only where it may.

use crate::pages::{
    DOMAIN, day, folder, hash, hash_key, info, land, noise, open, reads, text, write,
};
use dwcp_codec::{HashKey, PAGE_BYTES, Page, PageHash, PageHasher};
use dwcp_store::{DomainId, Kind, Pushed, SegmentInfo, StoreError};
use proptest::prelude::*;
use std::collections::BTreeSet;

#[test]
fn all_pages_come_back_from_memory_and_from_disk() {
    let folder = folder();
    let pages: Vec<Page> =
        (0..75).map(|page| if page % 3 == 0 { noise(page) } else { text(page) }).collect();
    let (mut store, report) = open(folder.path());
    assert_eq!(report.segments, 0);
    let id = land(&mut store, "guest", &pages, day(0));
    for _ in 0..2 {
        assert!(pages.iter().all(|page| reads(&mut store, page)));
        assert!(pages.iter().rev().all(|page| reads(&mut store, page)));
        assert!(!reads(&mut store, &text(1000)));
        let hashes: BTreeSet<PageHash> = store.hashes(DOMAIN).collect();
        assert_eq!(hashes, pages.iter().map(hash).collect());
        assert!(store.contains(DOMAIN, &hash(&pages[7])));
        let view = store.list().next().unwrap();
        assert_eq!((view.id, view.name.as_str(), view.kind), (id, "guest", Kind::Guest));
        assert_eq!((view.pages, view.domain, view.last_used), (75, DOMAIN, day(0)));
        assert_eq!(store.domain_key(DOMAIN), Some(hash_key()));
        assert_eq!(store.named("guest").count(), 1);
        assert_eq!(store.named("other").count(), 0);
        let stats = store.stats();
        assert_eq!((stats.hits, stats.misses, stats.segments, stats.pages), (150, 1, 1, 75));
        assert_eq!(stats.bytes, view.bytes);
        drop(store);
        let report;
        (store, report) = open(folder.path());
        assert_eq!(report.segments, 1);
        assert!(report.unusable.is_empty());
    }
}

#[test]
fn a_block_is_decoded_once_while_its_pages_are_asked_for() {
    let folder = folder();
    let (mut store, _) = open(folder.path());
    let pages: Vec<Page> = (0..40 * 16).map(text).collect();
    land(&mut store, "guest", &pages, day(0));
    assert!(pages.iter().all(|page| reads(&mut store, page)));
    assert_eq!(store.stats().blocks_read, 40);
    // Two readers, one of which stays where it is: what is used is kept.
    for block in (0..40).rev() {
        assert!(reads(&mut store, &pages[block * 16]) && reads(&mut store, &pages[39 * 16]));
    }
    let kept = dwcp_store::limits::BLOCKS_KEPT as u64;
    assert_eq!(store.stats().blocks_read, 40 + 40 - kept);
}

#[test]
fn zero_repeated_and_changed_pages_are_not_stored() {
    let folder = folder();
    let (mut store, _) = open(folder.path());
    let mut writer = store.begin(info("guest")).unwrap();
    let zero = [0; PAGE_BYTES];
    let mut push = |hash, page: &Page| writer.push(hash, page).unwrap();
    assert_eq!(push(hash(&zero), &zero), Pushed::Zero);
    assert_eq!(push(hash(&text(1)), &text(1)), Pushed::Stored);
    assert_eq!(push(hash(&text(1)), &text(1)), Pushed::Repeated);
    assert_eq!(push(hash(&text(2)), &text(3)), Pushed::Changed);
    assert_eq!(push(hash(&text(3)), &zero), Pushed::Changed);
    assert_eq!(push(hash(&zero), &text(3)), Pushed::Changed);
    assert_eq!(writer.pages(), 1);
    store.land(writer, day(0)).unwrap();
    assert_eq!(store.stats().pages, 1);
    assert!(reads(&mut store, &text(1)));
    for page in [&zero, &text(2), &text(3)] {
        assert!(!reads(&mut store, page));
    }
}

#[test]
fn pages_match_in_their_own_domain_alone() {
    let folder = folder();
    let (mut store, _) = open(folder.path());
    let other = DomainId([9; 16]);
    let other_key = HashKey([8; 32]);
    let page = text(1);
    let other_hash = PageHasher::new(&other_key).hash(&page);
    land(&mut store, "guest", &[page], day(0));
    let mut out = [0; PAGE_BYTES];
    for asked in [hash(&page), other_hash] {
        assert!(!store.read(other, &asked, &mut out), "nothing is known of the domain");
    }
    let name = "guest".to_owned();
    let info = SegmentInfo {
        domain: other,
        hash_key: other_key.clone(),
        name,
        kind: Kind::Image,
        note: Vec::new(),
    };
    let mut writer = store.begin(info).unwrap();
    writer.push(other_hash, &page).unwrap();
    store.land(writer, day(0)).unwrap();
    assert!(!store.read(other, &hash(&page), &mut out));
    assert!(!store.read(DOMAIN, &other_hash, &mut out));
    assert_eq!(out, [0; PAGE_BYTES]);
    assert!(store.read(other, &other_hash, &mut out));
    assert!(reads(&mut store, &page));
    assert_eq!(
        store.domains().into_iter().collect::<Vec<_>>(),
        [(DOMAIN, hash_key()), (other, other_key)]
    );
    assert_eq!(store.hashes(other).collect::<Vec<_>>(), [other_hash]);
}

#[test]
fn a_domain_has_one_hash_key() {
    let folder = folder();
    let (mut store, _) = open(folder.path());
    let other = SegmentInfo { hash_key: HashKey([8; 32]), ..info("other") };
    // Both begin while the domain has no key: the one that lands first decides.
    let late = store.begin(other.clone()).unwrap();
    land(&mut store, "guest", &[text(1)], day(0));
    let is_refused = |error: StoreError| assert_eq!(error.code(), "store_other_hash_key");
    is_refused(store.begin(other).unwrap_err());
    is_refused(store.land(late, day(0)).unwrap_err());
    assert_eq!(store.stats().segments, 1);
}

#[test]
fn an_empty_segment_and_the_longest_name_are_kept() {
    let folder = folder();
    let name = "n".repeat(255);
    {
        let (mut store, _) = open(folder.path());
        land(&mut store, &name, &[], day(0));
        let error = store.begin(info(&"n".repeat(256))).unwrap_err();
        assert_eq!(error.code(), "store_name_too_long");
    }
    let (store, report) = open(folder.path());
    assert_eq!(report.segments, 1);
    assert_eq!(store.named(&name).next().unwrap().pages, 0);
}

#[test]
fn a_table_of_many_chunks_is_read_back() {
    let folder = folder();
    // 16 bytes a page: more than two chunks of 64 KiB.
    let pages: Vec<Page> = (0..9000).map(text).collect();
    {
        let (mut store, _) = open(folder.path());
        land(&mut store, "guest", &pages, day(0));
    }
    let (mut store, report) = open(folder.path());
    assert_eq!((report.segments, store.stats().pages), (1, 9000));
    assert!(pages.iter().step_by(97).all(|page| reads(&mut store, page)));
}

#[test]
fn nothing_of_a_page_or_a_name_lies_on_the_disk_in_the_clear() {
    let folder = folder();
    let (mut store, _) = open(folder.path());
    let secret = *b"attack at dawn, and tell nobody!";
    let mut page = noise(1);
    page[100..132].copy_from_slice(&secret);
    let mut writer = store.begin(info("a secret name")).unwrap();
    writer.push(hash(&page), &page).unwrap();
    let id = store.land(writer, day(0)).unwrap();
    let bytes = std::fs::read(crate::pages::file(folder.path(), id)).unwrap();
    let has = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    assert!(!has(&secret[..8]) && !has(b"a secret") && !has(&hash(&page).0));
    assert!(!has(&hash_key().0) && !has(&DOMAIN.0));
}

#[test]
fn a_writer_may_be_fed_on_another_thread() {
    let folder = folder();
    let (mut store, _) = open(folder.path());
    let mut writer = write(&store, "guest", &[text(1)]);
    let fed = std::thread::spawn(move || {
        writer.push(hash(&text(2)), &text(2)).unwrap();
        writer
    });
    store.land(fed.join().unwrap(), day(0)).unwrap();
    assert!(reads(&mut store, &text(1)) && reads(&mut store, &text(2)));
}

#[test]
fn a_segment_of_format_1_is_read_for_ever() {
    const NAME: &str = "e0a9c1234d6461716340b7f9e4f61b16.seg";
    let folder = folder();
    let golden = include_bytes!("../../golden/v1.seg");
    std::fs::write(folder.path().join(NAME), golden).unwrap();
    let (mut store, report) = open(folder.path());
    assert_eq!(report.segments, 1, "{report:?}");
    let view = store.list().next().unwrap();
    assert_eq!((view.name.as_str(), view.kind, view.pages), ("golden", Kind::Guest, 18));
    assert_eq!(view.note, b"a note");
    // One block compressed and one, of a page that does not compress, as it is.
    assert!((0..16).all(|page| reads(&mut store, &text(page))));
    assert!((16..18).all(|page| reads(&mut store, &noise(page))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_pages_in_any_segments_come_back(
        segments in proptest::collection::vec(
            proptest::collection::vec((0..40_u32, any::<bool>()), 0..60), 1..4),
    ) {
        let folder = folder();
        let (mut store, _) = open(folder.path());
        let page = |(number, noisy)| if noisy { noise(number) } else { text(number) };
        for (number, pages) in segments.iter().enumerate() {
            let pages: Vec<Page> = pages.iter().copied().map(page).collect();
            land(&mut store, &number.to_string(), &pages, day(0));
        }
        let stored: BTreeSet<(u32, bool)> = segments.iter().flatten().copied().collect();
        for _ in 0..2 {
            for asked in (0..40).flat_map(|number| [(number, false), (number, true)]) {
                prop_assert_eq!(reads(&mut store, &page(asked)), stored.contains(&asked));
            }
            let hashes: BTreeSet<PageHash> = store.hashes(DOMAIN).collect();
            prop_assert_eq!(hashes.len(), stored.len());
            drop(store);
            store = open(folder.path()).0;
        }
    }
}
