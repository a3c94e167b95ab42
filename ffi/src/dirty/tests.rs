//! Tests of the dirty-page sources: no change is ever lost.

use super::*;
use crate::sys::monotonic_now;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

fn taken(bitmap: &DirtyBitmap) -> BTreeSet<u64> {
    let mut pages = BTreeSet::new();
    for index in 0..bitmap.words() {
        let word = bitmap.take_word(index);
        pages.extend((0..64).filter(|bit| word >> bit & 1 == 1).map(|bit| index as u64 * 64 + bit));
    }
    pages
}

/// A region and its tracker, or None (said aloud) where the kernel can't.
fn tracked(bytes: u64) -> Option<(Region, PagemapTracker)> {
    let region = Region::create("test", bytes, HugePages::Never).unwrap();
    match PagemapTracker::new(&region) {
        Ok(tracker) => Some((region, tracker)),
        Err(error @ (DirtyError::Missing { .. } | DirtyError::NotPermitted)) => {
            eprintln!("passed over: {error}");
            None
        }
        Err(error) => panic!("{error:?}"),
    }
}

#[test]
fn bits_come_back_once_and_only_for_existing_pages() {
    let bitmap = DirtyBitmap::create(130).unwrap();
    assert_eq!((bitmap.words(), bitmap.page_count()), (3, 130));
    for page in [0, 63, 64, 129] {
        bitmap.set(page);
    }
    assert_eq!(bitmap.count(), 4);
    assert_eq!(taken(&bitmap), BTreeSet::from([0, 63, 64, 129]));
    assert_eq!(taken(&bitmap), BTreeSet::new());
    bitmap.set_range(60, 70);
    assert_eq!(taken(&bitmap), (60..130).collect());
    bitmap.set_range(0, 64);
    bitmap.set_range(130, 0);
    assert_eq!(taken(&bitmap), (0..64).collect());
    // A faulty writer in another process sets bits beyond the last page.
    let foreign = Region::from_fd(bitmap.fd().try_clone_to_owned().unwrap()).unwrap();
    foreign.store_u64(16, u64::MAX);
    assert_eq!(taken(&bitmap), BTreeSet::from([128, 129]));
}

#[test]
fn a_bitmap_is_shared_by_its_descriptor() {
    let here = DirtyBitmap::create(1 << 20).unwrap();
    let there =
        DirtyBitmap::from_fd(here.fd().try_clone_to_owned().unwrap(), here.page_count()).unwrap();
    there.set((1 << 20) - 1);
    assert_eq!(taken(&here), BTreeSet::from([(1 << 20) - 1]));
    let again = here.fd().try_clone_to_owned().unwrap();
    let too_many = here.page_count() + 1;
    assert!(matches!(DirtyBitmap::from_fd(again, too_many), Err(RegionError::Size { .. })));
    let bare = memfd_create("test", MFdFlags::MFD_CLOEXEC).unwrap();
    assert!(matches!(DirtyBitmap::from_fd(bare, 1), Err(RegionError::NotSealable)));
    assert!(DirtyBitmap::create(0).is_err() && DirtyBitmap::create(u64::MAX).is_err());
}

#[test]
#[should_panic(expected = "outside the bitmap")]
fn a_page_outside_is_the_callers_bug() {
    DirtyBitmap::create(1).unwrap().set(1);
}

#[test]
fn a_change_marked_while_words_are_taken_is_never_lost() {
    const PAGES: usize = 256;
    const ROUNDS: u64 = 100_000;
    let bitmap = Arc::new(DirtyBitmap::create(PAGES as u64).unwrap());
    let contents: Arc<[AtomicU64; PAGES]> = Arc::new(std::array::from_fn(|_| AtomicU64::new(0)));
    let writing = {
        let (bitmap, contents) = (Arc::clone(&bitmap), Arc::clone(&contents));
        thread::spawn(move || {
            for round in 1..=ROUNDS {
                let page = round * 31 % PAGES as u64;
                contents[page as usize].store(round, Ordering::Relaxed);
                bitmap.set(page);
            }
        })
    };
    // A copy that follows the bits alone must end equal to the contents.
    let mut copy = [0; PAGES];
    let mut last_turn = false;
    while !last_turn {
        last_turn = writing.is_finished();
        for page in taken(&bitmap) {
            copy[page as usize] = contents[page as usize].load(Ordering::Relaxed);
        }
        thread::yield_now();
    }
    writing.join().unwrap();
    for (page, copied) in copy.iter().enumerate() {
        assert_eq!(*copied, contents[page].load(Ordering::Relaxed), "page {page} was lost");
    }
}

#[test]
fn the_tracker_reports_each_written_page_once() {
    let Some((region, mut tracker)) = tracked(4096 * 4096) else { return };
    let bitmap = DirtyBitmap::create(region.page_count()).unwrap();
    assert_eq!(tracker.collect(&bitmap).unwrap(), 0);
    // Every other page: more ranges than one scan reports.
    for page in (0..4096).step_by(2) {
        region.store_u64(page * 4096 + 8, page + 1);
    }
    assert_eq!(tracker.collect(&bitmap).unwrap(), 2048);
    assert_eq!(taken(&bitmap), (0..4096).step_by(2).collect());
    assert_eq!(tracker.collect(&bitmap).unwrap(), 0);
    // Reading is not writing, and pages that did not exist before count like others.
    assert!(region.is_zero_page(4095));
    region.store_u64(4094 * 4096, 1);
    region.write_pages(1, &[1; 2 * PAGE_BYTES]);
    assert_eq!(tracker.collect(&bitmap).unwrap(), 3);
    assert_eq!(taken(&bitmap), BTreeSet::from([1, 2, 4094]));
}

#[test]
fn the_tracker_knows_pages_that_were_there_before_it() {
    let region = Region::create("test", 64 * 4096, HugePages::Never).unwrap();
    for page in 0..64 {
        region.store_u64(page * 4096, 1);
    }
    let mut tracker = match PagemapTracker::new(&region) {
        Ok(tracker) => tracker,
        Err(error) => return eprintln!("passed over: {error}"),
    };
    let bitmap = DirtyBitmap::create(64).unwrap();
    assert_eq!(tracker.collect(&bitmap).unwrap(), 0);
    region.store_u64(9 * 4096, 2);
    assert_eq!(tracker.collect(&bitmap).unwrap(), 1);
    assert_eq!(taken(&bitmap), BTreeSet::from([9]));
}

#[test]
fn writes_during_a_collect_are_never_lost() {
    const PAGES: u64 = 512;
    let Some((region, mut tracker)) = tracked(PAGES * 4096) else { return };
    let region = Arc::new(region);
    let bitmap = DirtyBitmap::create(PAGES).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let seed = monotonic_now() | 1;
    eprintln!("seed {seed}");
    let writing = {
        let (region, stop) = (Arc::clone(&region), Arc::clone(&stop));
        thread::spawn(move || {
            let mut state = seed;
            while !stop.load(Ordering::Relaxed) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                region.store_u64(state % PAGES * 4096 + 64, state);
            }
        })
    };
    // A copy that is brought up to date from the bits alone must end equal to the memory.
    let copy = Region::create("copy", PAGES * 4096, HugePages::Never).unwrap();
    let mut page_bytes = [0; PAGE_BYTES];
    let mut follow = |tracker: &mut PagemapTracker| {
        let pages = tracker.collect(&bitmap).unwrap();
        for page in taken(&bitmap) {
            region.read_pages(page, &mut page_bytes);
            copy.write_pages(page, &page_bytes);
        }
        pages
    };
    // Until enough was seen to be sure that writes and collects ran side by side.
    let end = monotonic_now() + 20_000_000_000;
    let (mut pages_seen, mut collects) = (0, 0);
    while (pages_seen < 20 * PAGES || collects < 300) && monotonic_now() < end {
        pages_seen += follow(&mut tracker);
        collects += 1;
    }
    stop.store(true, Ordering::Relaxed);
    writing.join().unwrap();
    follow(&mut tracker);
    assert!(pages_seen > PAGES, "the writer was hardly seen: {pages_seen} in {collects}");
    let (mut one, mut other) = ([0; PAGE_BYTES], [0; PAGE_BYTES]);
    for page in 0..PAGES {
        region.read_pages(page, &mut one);
        copy.read_pages(page, &mut other);
        assert!(one == other, "page {page} was lost");
    }
}

#[test]
fn the_tracker_outlives_its_region_and_ends_its_watch() {
    let Some((region, mut tracker)) = tracked(16 * 4096) else { return };
    assert!(matches!(PagemapTracker::new(&region), Err(DirtyError::Busy)));
    region.store_u64(0, 1);
    let file = region.fd().try_clone_to_owned().unwrap();
    drop(region);
    let bitmap = DirtyBitmap::create(16).unwrap();
    assert_eq!(tracker.collect(&bitmap).unwrap(), 1);
    let small = DirtyBitmap::create(15).unwrap();
    assert!(matches!(tracker.collect(&small), Err(DirtyError::BitmapSize { .. })));
    drop(tracker);
    let region = Region::from_fd(file).unwrap();
    let again = PagemapTracker::new(&region).unwrap();
    drop(again);
    assert!(PagemapTracker::new(&region).is_ok());
}

#[test]
fn the_tracker_follows_huge_pages_whole() {
    let bytes = 2 * crate::region::HUGE_PAGE_BYTES;
    let region = match Region::create("test", bytes, HugePages::Require) {
        Ok(region) => region,
        Err(error) => return eprintln!("passed over: {error}"),
    };
    let taken_over = Region::from_fd(region.fd().try_clone_to_owned().unwrap()).unwrap();
    assert!(taken_over.huge() && taken_over.bytes() == bytes);
    let mut tracker = match PagemapTracker::new(&region) {
        Ok(tracker) => tracker,
        Err(error) => return eprintln!("passed over: {error}"),
    };
    let bitmap = DirtyBitmap::create(region.page_count()).unwrap();
    assert_eq!(tracker.collect(&bitmap).unwrap(), 0);
    region.store_u64(bytes - 8, 1);
    assert_eq!(tracker.collect(&bitmap).unwrap(), 512);
    assert_eq!(taken(&bitmap), (512..1024).collect());
    assert_eq!(tracker.collect(&bitmap).unwrap(), 0);
    region.store_u64(bytes - 8, 2);
    assert_eq!(tracker.collect(&bitmap).unwrap(), 512);
}
