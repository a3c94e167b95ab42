//! Files that go, stay or can't be read while the store is open, and two owners.

use crate::pages::{DOMAIN, WIDE, day, file, folder, land, noise, open, open_at, reads, text};
use dwcp_codec::Page;
use dwcp_store::{Store, StoreKey, StoreLimits};

#[test]
fn two_owners_never_share_a_store() {
    let folder = folder();
    let (store, _) = open(folder.path());
    let again = || Store::open(folder.path(), StoreKey::new([7; 32]), WIDE, day(0));
    let error = again().unwrap_err();
    assert_eq!(error.code(), "store_locked");
    assert!(error.cure().is_some());
    drop(store);
    assert!(again().is_ok());
}

#[test]
fn a_file_that_is_gone_is_a_miss_and_its_segment_leaves() {
    let folder = folder();
    let (mut store, _) = open(folder.path());
    let id = land(&mut store, "a", &[text(1)], day(0));
    std::fs::remove_file(file(folder.path(), id)).unwrap();
    assert!(!reads(&mut store, &text(1)));
    let stats = store.stats();
    assert_eq!((stats.gone, stats.segments, stats.misses, stats.left_alone_bytes), (1, 0, 1, 0));
    let faults = store.take_faults();
    assert_eq!(faults[0].reason.code(), "segment_gone");
    assert!(store.take_faults().is_empty());
}

#[test]
fn a_file_that_is_removed_while_it_is_read_gives_right_pages_or_none() {
    let folder = folder();
    let (mut store, _) = open(folder.path());
    let pages: Vec<Page> = (0..64).map(noise).collect();
    let id = land(&mut store, "a", &pages, day(0));
    assert!(reads(&mut store, &pages[0]));
    std::fs::remove_file(file(folder.path(), id)).unwrap();
    for page in &pages {
        reads(&mut store, page);
    }
    assert!(store.remove(id).is_ok(), "a file that is gone is as good as removed");
}

#[test]
fn a_damaged_segment_does_not_hide_a_good_one() {
    let folder = folder();
    let (mut store, _) = open(folder.path());
    let ids = ["a", "b", "c"].map(|name| land(&mut store, name, &[text(1)], day(0)));
    for id in &ids[..2] {
        let path = file(folder.path(), *id);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[60] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
    assert!(reads(&mut store, &text(1)));
    let stats = store.stats();
    assert_eq!(stats.damaged + stats.segments, 3, "found out one by one, as they are met");
    assert!(store.list().any(|view| view.id == ids[2]));
}

/// Puts a directory in the place of a segment's file: it can be opened, but neither read nor
/// removed as a file, whoever asks.
fn obstruct(path: &std::path::Path) {
    std::fs::remove_file(path).unwrap();
    std::fs::create_dir(path).unwrap();
}

#[test]
fn a_file_that_cannot_be_read_is_left_alone_and_counts_for_the_limit() {
    let folder = folder();
    let (mut store, _) = open(folder.path());
    let path = file(folder.path(), land(&mut store, "a", &[text(1)], day(0)));
    let bytes = store.stats().bytes;
    obstruct(&path);
    assert!(!reads(&mut store, &text(1)));
    let stats = store.stats();
    assert_eq!((stats.unreadable, stats.segments, stats.left_alone_bytes), (1, 0, bytes));
    let fault = store.take_faults().pop().unwrap();
    assert_eq!(fault.reason.code(), "segment_unreadable");
    assert!(!fault.removed && path.exists());
    // All that is left alone goes with the rest, if it can.
    assert_eq!(store.purge_all().unwrap_err().code(), "store_io");
    std::fs::remove_dir(&path).unwrap();
    assert_eq!(store.purge_all().unwrap(), 1);
    assert_eq!(store.stats().left_alone_bytes, 0);
}

#[test]
fn a_file_that_cannot_be_removed_is_told_and_counts_for_the_limit() {
    let folder = folder();
    let (mut store, _) = open(folder.path());
    let id = land(&mut store, "a", &[text(1)], day(0));
    land(&mut store, "b", &[text(2)], day(0));
    let bytes = store.stats().bytes;
    obstruct(&file(folder.path(), id));
    let error = store.remove(id).unwrap_err();
    assert_eq!(error.code(), "store_io");
    assert!(error.to_string().contains(&id.to_string()));
    let stats = store.stats();
    assert_eq!((stats.stuck, stats.segments), (1, 1));
    assert_eq!(stats.bytes + stats.left_alone_bytes, bytes);
    let id = store.list().next().unwrap().id;
    obstruct(&file(folder.path(), id));
    assert_eq!(store.expire(day(100)), 1);
    assert_eq!(store.take_faults()[0].reason.code(), "segment_stuck");
    assert_eq!(store.stats().stuck, 2);
}

#[test]
fn what_is_left_alone_takes_its_room_of_the_limit() {
    let folder = folder();
    let (mut store, _) = open(folder.path());
    let path = file(folder.path(), land(&mut store, "a", &[noise(1), noise(2)], day(0)));
    land(&mut store, "b", &[noise(3)], day(1));
    let bytes = store.stats().bytes;
    drop(store);
    let mut newer = std::fs::read(&path).unwrap();
    newer[8] = 2;
    std::fs::write(&path, newer).unwrap();
    // Found last, when the other one is in the index already.
    std::fs::File::open(&path).unwrap().set_modified(day(0)).unwrap();
    let limits = StoreLimits { bytes_max: bytes - 1, ..WIDE };
    let (mut store, report) = open_at(folder.path(), limits, day(1));
    assert_eq!((report.evicted, report.segments), (1, 0));
    let error = store.land(crate::pages::write(&store, "b", &[noise(3)]), day(1)).unwrap_err();
    assert_eq!(error.code(), "store_too_large");
}

#[test]
fn what_came_to_be_left_alone_while_a_writer_was_under_way_counts() {
    let folder = folder();
    let limits = StoreLimits { bytes_max: 10_000, ..WIDE };
    let (mut store, _) = open_at(folder.path(), limits, day(0));
    let path = file(folder.path(), land(&mut store, "a", &[noise(1)], day(0)));
    let writer = crate::pages::write(&store, "b", &[noise(2), noise(3)]);
    obstruct(&path);
    assert!(!reads(&mut store, &noise(1)));
    assert_eq!(store.land(writer, day(0)).unwrap_err().code(), "store_too_large");
}

#[test]
fn a_use_that_cannot_be_written_down_is_counted() {
    let folder = folder();
    let (mut store, _) = open(folder.path());
    let id = land(&mut store, "a", &[text(1)], day(0));
    std::fs::remove_file(file(folder.path(), id)).unwrap();
    store.used(DOMAIN, day(1));
    assert_eq!(store.stats().untimed, 1);
    assert_eq!(store.list().next().unwrap().last_used, day(1));
}

#[test]
fn faults_that_nobody_takes_are_bounded() {
    let folder = folder();
    let (mut store, _) = open(folder.path());
    for page in 0..70 {
        let id = land(&mut store, &page.to_string(), &[text(page)], day(0));
        std::fs::remove_file(file(folder.path(), id)).unwrap();
        assert!(!reads(&mut store, &text(page)));
    }
    assert_eq!(store.stats().gone, 70);
    assert_eq!(store.take_faults().len(), dwcp_store::limits::FAULTS_KEPT);
}
