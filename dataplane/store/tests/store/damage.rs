//! Crashes at every step, bytes that rot, files that are cut: a right page or none, and a reason.

use crate::pages::{day, file, files, folder, land, names, noise, open, reads, text, write};
use dwcp_codec::Page;
use dwcp_store::{SegmentId, Store, StoreKey};
use proptest::prelude::*;
use std::path::Path;
use std::sync::LazyLock;

/// Two blocks, one that compresses and one that does not.
static PAGES: LazyLock<Vec<Page>> =
    LazyLock::new(|| (0..16).map(text).chain([noise(16)]).collect());

/// The file of a segment of these pages, and its name.
static FILE: LazyLock<(String, Vec<u8>)> = LazyLock::new(|| {
    let folder = folder();
    let (mut store, _) = open(folder.path());
    let id = land(&mut store, "guest", &PAGES, day(0));
    let path = file(folder.path(), id);
    (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(path).unwrap())
});

/// Opens a store that has this file, and reads all pages. Tells the reason why the file was of no
/// use, and whether it is still there.
fn reason_of(bytes: &[u8]) -> (Option<&'static str>, bool) {
    let folder = folder();
    let path = folder.path().join(&FILE.0);
    std::fs::write(&path, bytes).unwrap();
    let (mut store, mut report) = open(folder.path());
    let opened = report.segments == 1;
    assert_eq!(report.unusable.len(), usize::from(!opened), "used or told of");
    let read = PAGES.iter().filter(|page| reads(&mut store, page)).count();
    let fault = report.unusable.pop().or(store.take_faults().pop());
    assert_eq!(fault.is_none(), read == PAGES.len(), "all is good, or a fault is told");
    if let Some(fault) = &fault {
        assert_eq!(fault.path, path);
        assert_eq!(fault.removed, !path.exists());
        assert_eq!(store.stats().segments, 0);
        assert_eq!(store.stats().damaged, u64::from(opened));
    }
    let left_alone = if fault.is_some() && path.exists() { bytes.len() as u64 } else { 0 };
    assert_eq!(store.stats().left_alone_bytes, left_alone);
    (fault.map(|fault| fault.reason.code()), path.exists())
}

#[test]
fn a_flipped_byte_anywhere_is_found_out() {
    let bytes = &FILE.1;
    assert_eq!(reason_of(bytes), (None, true));
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        let (reason, stays) = reason_of(&flipped);
        let trailer_at = bytes.len() - 24;
        let expected: &[&str] = match at {
            0..8 => &["segment_damaged"],
            8..12 => &["segment_newer_format", "segment_damaged"],
            12..48 => &["segment_other_key"],
            at if at >= trailer_at => &["segment_damaged", "segment_cut"],
            _ => &["segment_damaged"],
        };
        let reason = reason.unwrap_or("none");
        assert!(expected.contains(&reason), "byte {at}: {reason}");
        assert_eq!(stays, reason == "segment_newer_format", "byte {at}");
    }
}

#[test]
fn a_file_that_was_cut_anywhere_is_removed_at_once() {
    for length in 0..FILE.1.len() {
        let (reason, stays) = reason_of(&FILE.1[..length]);
        assert_eq!((reason, stays), (Some("segment_cut"), false), "length {length}");
    }
    let longer = [FILE.1.as_slice(), &[0]].concat();
    assert_eq!(reason_of(&longer), (Some("segment_cut"), false));
}

#[test]
fn a_file_of_a_newer_format_is_left_alone_until_all_is_purged() {
    let folder = folder();
    let path = folder.path().join(&FILE.0);
    let mut bytes = FILE.1.clone();
    bytes[8] = 2;
    std::fs::write(&path, &bytes).unwrap();
    let (mut store, report) = open(folder.path());
    assert_eq!(report.unusable[0].reason.code(), "segment_newer_format");
    assert!(!report.unusable[0].removed && path.exists());
    assert_eq!(store.stats().left_alone_bytes, bytes.len() as u64);
    assert_eq!(store.purge_all().unwrap(), 1);
    assert!(!path.exists());
    assert_eq!((store.stats().left_alone_bytes, store.stats().purged), (0, 1));
}

#[test]
fn under_another_key_nothing_is_read_and_nothing_is_kept() {
    let folder = folder();
    let path = folder.path().join(&FILE.0);
    std::fs::write(&path, &FILE.1).unwrap();
    let key = StoreKey::new([8; 32]);
    let (mut store, report) = Store::open(folder.path(), key, crate::pages::WIDE, day(0)).unwrap();
    assert_eq!(report.unusable[0].reason.code(), "segment_other_key");
    assert!(report.unusable[0].removed && !path.exists());
    assert!(PAGES.iter().all(|page| !reads(&mut store, page)));
}

#[test]
fn a_file_under_another_segments_name_is_refused() {
    let folder = folder();
    let other = "00112233445566778899aabbccddeeff.seg";
    std::fs::write(folder.path().join(other), &FILE.1).unwrap();
    let (_, report) = open(folder.path());
    assert_eq!(report.unusable[0].reason.code(), "segment_other_key");
}

fn copy(from: &Path, to: &Path) {
    for name in files(from) {
        std::fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}

/// What a crash at this moment would leave, opened: the store's segments, and what was left over.
fn crashed(path: &Path) -> (Vec<String>, u64, Vec<bool>) {
    let copied = folder();
    copy(path, copied.path());
    let (mut store, report) = open(copied.path());
    assert!(report.unusable.is_empty(), "{report:?}");
    let there = PAGES.iter().map(|page| reads(&mut store, page)).collect();
    let stats = store.stats();
    assert_eq!(files(copied.path()).len() as u64, stats.segments, "nothing else stays");
    (names(&store), report.leftovers, there)
}

#[test]
fn a_crash_at_any_step_leaves_the_old_state_or_the_new_one() {
    let folder = folder();
    let (mut store, _) = open(folder.path());
    land(&mut store, "guest", &[noise(1)], day(0));
    let old = (vec!["guest".to_owned()], 1, vec![false; PAGES.len()]);
    let mut writer = write(&store, "guest", &[]);
    assert_eq!(crashed(folder.path()), old);
    for page in &*PAGES {
        writer.push(crate::pages::hash(page), page).unwrap();
        assert_eq!(crashed(folder.path()), old);
    }
    store.land(writer, day(0)).unwrap();
    let new = (vec!["guest".to_owned()], 0, vec![true; PAGES.len()]);
    assert_eq!(crashed(folder.path()), new);
}

#[test]
fn a_crash_before_the_old_segment_went_leaves_the_new_one() {
    let folder = folder();
    let (mut store, _) = open(folder.path());
    let old = file(folder.path(), land(&mut store, "guest", &[noise(1)], day(0)));
    let kept = std::fs::read(&old).unwrap();
    for _ in 0..4 {
        // Ids are random, so that by name alone each would come first half of the time.
        land(&mut store, "guest", &PAGES, day(0));
        std::fs::write(&old, &kept).unwrap();
        let later = std::fs::File::open(&old).unwrap();
        later.set_modified(day(0)).unwrap();
        assert_eq!(crashed(folder.path()), (vec!["guest".to_owned()], 0, vec![true; 17]));
        drop(store);
        let report;
        (store, report) = open(folder.path());
        assert_eq!((report.segments, report.replaced), (1, 1));
        assert!(!old.exists());
    }
}

#[test]
fn a_dropped_writer_leaves_nothing() {
    let folder = folder();
    let (store, _) = open(folder.path());
    let writer = write(&store, "guest", &PAGES);
    assert_eq!(files(folder.path()).len(), 1);
    drop(writer);
    assert!(files(folder.path()).is_empty());
}

#[test]
fn what_is_no_file_is_left_alone() {
    let folder = folder();
    std::fs::create_dir(folder.path().join(&FILE.0)).unwrap();
    let (_, report) = open(folder.path());
    assert_eq!(report.unusable[0].reason.code(), "segment_not_a_file");
    assert!(!report.unusable[0].removed);
}

#[test]
fn of_two_hash_keys_of_a_domain_the_later_one_counts() {
    let (one, two) = (folder(), folder());
    let (mut first, _) = open(one.path());
    land(&mut first, "a", &[text(1)], day(1));
    let (mut second, _) = open(two.path());
    let mut later = SegmentId::clone(&land(&mut second, "b", &[text(1)], day(0)));
    for _ in 0..2 {
        second.remove(later).unwrap();
        let hash_key = dwcp_codec::HashKey([8; 32]);
        let info = dwcp_store::SegmentInfo { hash_key, ..crate::pages::info("b") };
        later = second.land(second.begin(info).unwrap(), day(0)).unwrap();
    }
    copy(two.path(), one.path());
    drop(first);
    let (store, report) = open(one.path());
    assert_eq!(names(&store), ["b"]);
    assert_eq!(report.unusable[0].reason.code(), "segment_other_hash_key");
    assert!(report.unusable[0].removed);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_bytes_are_opened_without_a_wrong_page_or_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..600),
        kept_front in 0..80_usize,
        kept_back in 0..80_usize,
    ) {
        // The header and the trailer of a real file lead further in than noise ever would.
        let real = &FILE.1;
        let front = &real[..kept_front];
        let back = &real[real.len() - kept_back..];
        let (reason, _) = reason_of(&[front, &bytes, back].concat());
        prop_assert!(reason.is_some());
    }

    #[test]
    fn a_file_with_any_part_overwritten_gives_no_wrong_page(
        bytes in proptest::collection::vec(any::<u8>(), 1..200),
        at: prop::sample::Index,
    ) {
        let mut file = FILE.1.clone();
        let at = at.index(file.len() - bytes.len());
        file[at..at + bytes.len()].copy_from_slice(&bytes);
        let (reason, _) = reason_of(&file);
        prop_assert_eq!(reason.is_none(), file == FILE.1);
    }
}
