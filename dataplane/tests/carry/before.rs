//! A guest that comes back, between two real shards that hold what its last session left.

use super::harness::{Carry, Options};
use super::pages::{carried, guest, options};
use super::qemu::{Guest, load};
use dwcp_dataplane::port::{Before, HashKey, PageHasher, PagesLeft};
use dwcp_dataplane::stats::SessionCounter;
use dwcp_ffi::memory::PagePool;

/// What a session left, as a later one is given it, up to so many pages.
fn before(left: &PagesLeft, pages_max: u64) -> Box<Before> {
    let hasher = PageHasher::new(&HashKey([5; 32]));
    let mut before = Before::with_room(&PagePool::new(16 << 20).unwrap(), pages_max).unwrap();
    for (number, (idstr, pages)) in (0..).zip(left.blocks()) {
        before.add_block(idstr, pages);
        let _ = left.pages(number, |page, hash, bytes| {
            assert_eq!(hasher.hash(bytes), hash, "page {page}");
            before.add_page(page, hash, bytes)
        });
    }
    Box::new(before)
}

/// Carries a guest; what it left at both ends.
fn first(carry: &mut Carry, guest: &Guest) -> [PagesLeft; 2] {
    let (near, far) = carry.channel(0);
    let got = carried(carry, (&near, &far), &guest.stream, 1, |_| ());
    assert!(load(&got) == load(&guest.stream), "another stream arrived");
    carry.close_session()
}

/// Carries it back with so many pages from before; the source's counters.
fn back(carry: &mut Carry, guest: &Guest, left: &[PagesLeft; 2], pages_max: u64) -> Vec<u64> {
    let [source, sink] = left;
    assert_eq!(source.digest(), sink.digest(), "both ends hold the same");
    // The guest goes the other way: the ends change their parts.
    carry.open_next([Some(before(sink, pages_max)), Some(before(source, pages_max))]);
    let (near, far) = carry.channel(0);
    let got = carried(carry, (&near, &far), &guest.stream, 2, |_| ());
    assert!(load(&got) == load(&guest.stream), "another stream arrived");
    carry.assert_same_digest();
    carry.source_counters().to_vec()
}

#[test]
fn a_guest_that_comes_back_costs_what_it_has_changed() {
    for (seed, window_log) in [(41, 0), (42, 18)] {
        eprintln!("seed {seed}");
        let whole = Options { base_pages: 2048, ..options(window_log, 2) };
        let mut carry = Carry::new(whole);
        let mut guest = guest(seed);
        let left = first(&mut carry, &guest);
        guest.begin_anew();
        guest.all();
        guest.finish(0);
        let counters = back(&mut carry, &guest, &left, 2048);
        let of = |counter: SessionCounter| counters[counter.index()];
        assert_eq!(of(SessionCounter::PagesZstd) + of(SessionCounter::PagesRaw), 0);
        assert!(of(SessionCounter::PagesDelta) > 400, "{}", of(SessionCounter::PagesDelta));
        assert!(of(SessionCounter::DeltaBytes) < 5 * 640, "{}", of(SessionCounter::DeltaBytes));
        // What it leaves this time is the same again.
        let again = carry.close_session();
        assert_eq!(again[0].digest(), left[0].digest());
        carry.open_next([None, None]);
        carry.close();
    }
}

#[test]
fn a_guest_that_went_on_is_coded_against_what_it_was() {
    for (seed, pages_max) in [(43, 2048), (44, 300), (45, 1)] {
        eprintln!("seed {seed}");
        let mut carry = Carry::new(Options { base_pages: 400, ..options(0, 2) });
        let mut guest = guest(seed);
        let left = first(&mut carry, &guest);
        guest.begin_anew();
        guest.change(200);
        guest.all();
        for _ in 0..4 {
            guest.round(200);
        }
        guest.finish(50);
        let counters = back(&mut carry, &guest, &left, pages_max);
        let of = |counter: SessionCounter| counters[counter.index()];
        assert!(of(SessionCounter::PagesDelta) > 0);
        let again = carry.close_session();
        assert_eq!(again[0].digest(), again[1].digest());
        carry.open_next([None, None]);
        carry.close();
    }
}

#[test]
fn another_guest_of_the_same_image_costs_what_it_has_of_its_own() {
    for (seed, window_log) in [(47, 0), (48, 17)] {
        eprintln!("seed {seed}");
        let mut carry = Carry::new(Options { base_pages: 2048, ..options(window_log, 2) });
        let mut guest = guest(seed);
        let left = first(&mut carry, &guest);
        // The same pages at other places, and some others.
        guest.shuffle();
        guest.begin_anew();
        guest.change(60);
        guest.all();
        for _ in 0..4 {
            guest.round(100);
        }
        guest.finish(50);
        let counters = back(&mut carry, &guest, &left, 2048);
        let of = |counter: SessionCounter| counters[counter.index()];
        assert!(of(SessionCounter::PagesDelta) > 500, "{}", of(SessionCounter::PagesDelta));
        let whole = of(SessionCounter::PagesZstd) + of(SessionCounter::PagesRaw);
        assert!(whole < 250, "{whole} pages were sent as if nothing were known");
        let again = carry.close_session();
        assert_eq!(again[0].digest(), again[1].digest());
        carry.open_next([None, None]);
        carry.close();
    }
}

#[test]
fn a_block_that_is_not_as_it_was_is_known_by_its_content_alone() {
    let mut carry = Carry::new(Options { base_pages: 2048, ..options(0, 1) });
    let mut guest = guest(46);
    let left = first(&mut carry, &guest);
    let other = |left: &PagesLeft| {
        let mut before = Before::with_room(&PagePool::new(1).unwrap(), 1).unwrap();
        before.add_block(b"pc.ram", 599);
        let _ = left.pages(0, |page, hash, bytes| before.add_page(page, hash, bytes));
        Some(Box::new(before))
    };
    carry.open_next([other(&left[0]), other(&left[1])]);
    guest.begin_anew();
    guest.all();
    guest.finish(0);
    let (near, far) = carry.channel(0);
    let got = carried(&mut carry, (&near, &far), &guest.stream, 3, |_| ());
    assert!(load(&got) == load(&guest.stream), "another stream arrived");
    let known = carry.source_counters()[SessionCounter::PagesDelta.index()];
    assert!((1..5).contains(&known), "{known}");
    carry.close();
}
