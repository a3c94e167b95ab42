//! The limits hold: of bytes, of pages, of time; and what goes is what should go.

use crate::pages::{
    DAY, DOMAIN, WIDE, day, file, files, folder, hash, info, land, names, noise, open, open_at,
    reads, text, write,
};
use dwcp_codec::{HashKey, Page};
use dwcp_store::{DomainId, SegmentInfo, StoreLimits};
use std::collections::BTreeSet;

/// As many pages as no other segment has.
fn pages(segment: u32, count: u32) -> Vec<Page> {
    (0..count).map(|page| noise(1000 * segment + page)).collect()
}

#[test]
fn the_least_recently_used_go_first_when_pages_run_out() {
    let folder = folder();
    let limits = StoreLimits { pages_max: 30, ..WIDE };
    let (mut store, _) = open_at(folder.path(), limits, day(0));
    land(&mut store, "c", &pages(1, 10), day(1));
    land(&mut store, "a", &pages(2, 10), day(2));
    land(&mut store, "b", &pages(3, 10), day(3));
    land(&mut store, "d", &pages(4, 5), day(4));
    assert_eq!(names(&store), ["a", "b", "d"]);
    land(&mut store, "e", &pages(5, 25), day(5));
    assert_eq!(names(&store), ["d", "e"]);
    assert_eq!(store.stats().evicted, 3);
    assert_eq!(store.stats().pages, 30);
    assert_eq!(files(folder.path()).len(), 2);
    assert!(!reads(&mut store, &pages(2, 1)[0]));
    assert!(reads(&mut store, &pages(4, 1)[0]));
}

#[test]
fn use_protects_from_going_after_a_restart_as_well() {
    let folder = folder();
    let bytes = {
        let (mut store, _) = open(folder.path());
        land(&mut store, "a", &pages(1, 10), day(1));
        let other =
            SegmentInfo { domain: DomainId([9; 16]), hash_key: HashKey([9; 32]), ..info("b") };
        let writer = store.begin(other).unwrap();
        store.land(writer, day(2)).unwrap();
        store.used(DOMAIN, day(3));
        store.stats().bytes
    };
    let limits = StoreLimits { bytes_max: bytes, ..WIDE };
    let (mut store, report) = open_at(folder.path(), limits, day(4));
    assert_eq!(report.segments, 2);
    assert_eq!(store.named("a").next().unwrap().last_used, day(3));
    land(&mut store, "c", &[], day(4));
    assert_eq!(names(&store), ["a", "c"]);
    assert_eq!(store.stats().untimed, 0);
    // A clock that was set back makes nothing older.
    store.used(DOMAIN, day(1));
    assert_eq!(store.named("a").next().unwrap().last_used, day(3));
}

#[test]
fn bytes_on_the_disk_stay_within_the_limit() {
    let folder = folder();
    let limits = StoreLimits { bytes_max: 200_000, ..WIDE };
    let (mut store, _) = open_at(folder.path(), limits, day(0));
    for segment in 0..20 {
        let count = 1 + segment * 7 % 40;
        land(&mut store, &segment.to_string(), &pages(segment, count), day(segment));
        let on_disk = files(folder.path())
            .iter()
            .map(|name| folder.path().join(name).metadata().unwrap().len())
            .sum::<u64>();
        assert_eq!(on_disk, store.stats().bytes);
        assert!(on_disk <= limits.bytes_max);
        assert!(names(&store).contains(&segment.to_string()));
    }
}

#[test]
fn a_segment_that_never_fits_is_refused_and_the_others_stay() {
    let folder = folder();
    let limits = StoreLimits { bytes_max: 100_000, pages_max: 50, ..WIDE };
    let (mut store, _) = open_at(folder.path(), limits, day(0));
    land(&mut store, "a", &pages(1, 10), day(1));
    // 24 pages of noise fit into 100,000 bytes, and 50 of text do; more of either do not.
    let text: Vec<Page> = (0..51).map(text).collect();
    for (pages, code) in [(pages(2, 40), "store_too_large"), (text, "store_too_many_pages")] {
        let mut writer = store.begin(info("b")).unwrap();
        let mut pushes = pages.iter().map(|page| writer.push(hash(page), page));
        let error = pushes.find_map(Result::err).expect("known before the last page");
        assert_eq!(files(folder.path()).len(), 1, "the file goes at once");
        let page = noise(1);
        let again = writer.push(hash(&page), &page).unwrap_err();
        assert_eq!(again.code(), "store_writer_ended");
        assert_eq!(store.land(writer, day(2)).unwrap_err().code(), "store_writer_ended");
        assert_eq!(error.code(), code);
        assert!(error.cure().is_some());
        assert_eq!(names(&store), ["a"]);
        assert_eq!(files(folder.path()).len(), 1);
    }
    assert!(reads(&mut store, &pages(1, 1)[0]));
}

#[test]
fn a_last_block_that_does_not_fit_is_refused_when_it_lands() {
    let folder = folder();
    let limits = StoreLimits { bytes_max: 10_000, ..WIDE };
    let (mut store, _) = open_at(folder.path(), limits, day(0));
    let writer = write(&store, "a", &pages(1, 3));
    assert_eq!(store.land(writer, day(0)).unwrap_err().code(), "store_too_large");
    assert!(files(folder.path()).is_empty());
}

#[test]
fn a_name_is_taken_over_by_the_newest_segment() {
    let folder = folder();
    let (mut store, _) = open(folder.path());
    let old = land(&mut store, "a", &pages(1, 10), day(1));
    land(&mut store, "b", &pages(2, 1), day(1));
    let new = land(&mut store, "a", &pages(3, 10), day(2));
    assert_eq!(names(&store), ["a", "b"]);
    assert!(!file(folder.path(), old).exists() && file(folder.path(), new).exists());
    assert!(!reads(&mut store, &pages(1, 1)[0]));
    assert!(reads(&mut store, &pages(3, 1)[0]));
    let stats = store.stats();
    assert_eq!((stats.replaced, stats.evicted, stats.landed), (1, 0, 3));
}

#[test]
fn what_was_of_no_use_for_too_long_goes() {
    let folder = folder();
    let (mut store, _) = open(folder.path());
    land(&mut store, "a", &pages(1, 1), day(0));
    land(&mut store, "b", &pages(2, 1), day(1));
    assert_eq!(store.expire(day(7)), 0);
    assert_eq!(store.expire(day(7) + DAY / 2), 1);
    assert_eq!(names(&store), ["b"]);
    assert_eq!((store.stats().expired, files(folder.path()).len()), (1, 1));
    drop(store);
    let (store, report) = open_at(folder.path(), WIDE, day(9));
    assert_eq!((report.expired, store.stats().segments), (1, 0));
    assert!(files(folder.path()).is_empty());
}

#[test]
fn a_clock_that_was_set_back_removes_nothing() {
    let folder = folder();
    let (mut store, _) = open_at(folder.path(), WIDE, day(100));
    land(&mut store, "a", &pages(1, 1), day(100));
    assert_eq!(store.expire(day(0)), 0);
    drop(store);
    let (store, _) = open_at(folder.path(), WIDE, day(0));
    assert_eq!(store.named("a").next().unwrap().last_used, day(0));
}

#[test]
fn limits_that_became_smaller_hold_at_once() {
    let folder = folder();
    let (mut store, _) = open(folder.path());
    for (segment, name) in (1..).zip(["a", "b", "c"]) {
        land(&mut store, name, &pages(segment, 10), day(segment));
    }
    drop(store);
    let limits = StoreLimits { pages_max: 20, ..WIDE };
    let (store, report) = open_at(folder.path(), limits, day(4));
    assert_eq!((report.segments, report.evicted), (2, 1));
    assert_eq!(names(&store), ["b", "c"]);
    let bytes = store.stats().bytes;
    drop(store);
    let limits = StoreLimits { bytes_max: bytes - 1, ..WIDE };
    let (store, report) = open_at(folder.path(), limits, day(4));
    assert_eq!(report.evicted, 1);
    assert_eq!(names(&store), ["c"]);
    assert_eq!(files(folder.path()).len(), 1);
}

#[test]
fn segments_and_domains_and_all_are_purged() {
    let folder = folder();
    let (mut store, _) = open(folder.path());
    let a = land(&mut store, "a", &pages(1, 20), day(1));
    land(&mut store, "b", &pages(2, 1), day(1));
    land(&mut store, "c", &pages(3, 1), day(1));
    let other = SegmentInfo { domain: DomainId([9; 16]), hash_key: HashKey([9; 32]), ..info("d") };
    let writer = store.begin(other).unwrap();
    store.land(writer, day(1)).unwrap();
    assert!(reads(&mut store, &pages(1, 1)[0]), "its block is kept decoded");
    assert!(store.remove(a).unwrap());
    assert!(!store.remove(a).unwrap());
    assert!(!reads(&mut store, &pages(1, 1)[0]));
    assert_eq!(store.purge_domain(DOMAIN).unwrap(), 2);
    assert_eq!(store.domain_key(DOMAIN), None);
    assert_eq!(names(&store), ["d"]);
    assert_eq!(store.purge_all().unwrap(), 1);
    assert_eq!(store.stats().purged, 4);
    assert!(files(folder.path()).is_empty());
}

#[test]
fn a_page_in_two_segments_outlives_one_of_them() {
    let folder = folder();
    let (mut store, _) = open(folder.path());
    let a = land(&mut store, "a", &pages(1, 1), day(1));
    let b = land(&mut store, "b", &pages(1, 1), day(1));
    assert_eq!(store.hashes(DOMAIN).count(), 2);
    assert_eq!(store.hashes(DOMAIN).collect::<BTreeSet<_>>().len(), 1);
    store.remove(a).unwrap();
    assert!(reads(&mut store, &pages(1, 1)[0]));
    store.remove(b).unwrap();
    assert!(!reads(&mut store, &pages(1, 1)[0]));
}
