//! A guest that its sink alone has seen the like of, between two real shards.

use super::harness::{Carry, Options};
use super::pages::{carried, guest, options};
use super::qemu::{Guest, load};
use dwcp_dataplane::port::{Event, HashKey, HeldChunk, Page, PageHash, PageHasher, SessionEnd};
use dwcp_dataplane::stats::SessionCounter;
use dwcp_ffi::memory::PagePool;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::mpsc::sync_channel;

/// All pages of a guest that are not zero, as its sink's store would give them.
fn chunk(guest: &Guest, hash: impl Fn(&Page) -> PageHash) -> HeldChunk {
    let mut chunk = HeldChunk::create(&PagePool::new(8 << 20).unwrap()).unwrap();
    let pages = guest.pages().filter(|page| **page != [0; 4096]);
    pages.for_each(|page| chunk.add(hash(page), page));
    chunk
}

fn hash(page: &Page) -> PageHash {
    PageHasher::new(&HashKey([5; 32])).hash(page)
}

fn held(window_log: u8) -> Options {
    Options { base_pages: 2048 + 1024, held_pages: [1024; 2], ..options(window_log, 2) }
}

#[test]
fn a_guest_that_the_sink_alone_knows_costs_its_pages_names() {
    for (seed, window_log) in [(61, 0), (62, 18)] {
        eprintln!("seed {seed}");
        let mut carry = Carry::new(held(window_log));
        let mut guest = guest(seed);
        guest.begin_anew();
        let chunk = chunk(&guest, hash);
        let pages = chunk.pages() as u64;
        carry.add_held(chunk);
        carry.wait_told(1, pages);
        // The same pages at other places, and some others.
        guest.shuffle();
        guest.change(60);
        guest.all();
        for _ in 0..4 {
            guest.round(100);
        }
        guest.finish(50);
        let (near, far) = carry.channel(0);
        let got = carried(&mut carry, (&near, &far), &guest.stream, seed, |_| ());
        assert!(load(&got) == load(&guest.stream), "another stream arrived");
        carry.assert_same_digest();
        let counters = carry.source_counters();
        let of = |counter: SessionCounter| counters[counter.index()];
        assert!(of(SessionCounter::PagesHeld) > 300, "{}", of(SessionCounter::PagesHeld));
        let whole = of(SessionCounter::PagesZstd) + of(SessionCounter::PagesRaw);
        assert!(whole < 250, "{whole} pages were sent as if nothing were known");
        // What was named is held at both ends from there on, for the next time as well.
        let left = carry.close_session();
        assert_eq!(left[0].digest(), left[1].digest());
        carry.open_next([None, None]);
        carry.close();
    }
}

#[test]
fn what_is_told_while_the_guest_moves_serves_from_there_on() {
    let mut carry = Carry::new(held(0));
    let mut guest = guest(63);
    guest.begin_anew();
    let chunk = chunk(&guest, hash);
    let pages = chunk.pages() as u64;
    guest.all();
    guest.finish(50);
    let (begin, rest) = guest.stream.split_at(guest.stream.len() / 3);
    let (near, far) = carry.channel(0);
    let (go_on, told) = sync_channel(1);
    let got = std::thread::scope(|scope| {
        let mut writing = &near;
        scope.spawn(move || {
            writing.write_all(begin).unwrap();
            told.recv().unwrap();
            writing.write_all(rest).unwrap();
            writing.shutdown(Shutdown::Write).unwrap();
        });
        let reading = scope.spawn(|| {
            let mut got = Vec::new();
            { &far }.read_to_end(&mut got).map(|_| got).unwrap()
        });
        carry.until(|carry| carry.source_counters()[SessionCounter::Frames.index()] > 2);
        let before = carry.source_counters()[SessionCounter::PagesHeld.index()];
        assert_eq!(before, 0);
        carry.add_held(chunk);
        carry.wait_told(1, pages);
        go_on.send(()).unwrap();
        reading.join().unwrap()
    });
    assert!(load(&got) == load(&guest.stream), "another stream arrived");
    let named = carry.source_counters()[SessionCounter::PagesHeld.index()];
    assert!((100..pages).contains(&named), "{named} of {pages}");
    carry.assert_same_digest();
    let left = carry.close_session();
    assert_eq!(left[0].digest(), left[1].digest());
    carry.open_next([None, None]);
    carry.close();
}

/// Writes a guest's stream until the session fails; how it did at the sink, and what its VMM got.
fn failed(carry: &mut Carry, guest: &Guest) -> (SessionEnd, Vec<u8>) {
    let (near, far) = carry.channel(0);
    std::thread::scope(|scope| {
        // It ends with an error when the session does.
        scope.spawn(|| { &near }.write_all(&guest.stream).err());
        let reading = scope.spawn(|| {
            let mut got = Vec::new();
            { &far }.read_to_end(&mut got).map(|_| got).unwrap_or_default()
        });
        let cause = carry.pair.sink.event(|event| match event {
            Event::Failed { cause, .. } => Some(cause),
            _ => None,
        });
        carry.pair.source.event(|event| matches!(event, Event::Failed { .. }).then_some(()));
        (cause, reading.join().unwrap())
    })
}

#[test]
fn a_page_whose_hash_only_looks_alike_is_never_taken_for_the_guests() {
    // Hashes that begin as those of the guest's pages, and whole ones of other pages.
    let begins = |page: &Page| {
        let mut hash = hash(page);
        hash.0[8] ^= 1;
        hash
    };
    for collides in [false, true] {
        let mut carry = Carry::new(held(0));
        let mut guest = guest(64);
        guest.begin_anew();
        guest.all();
        guest.finish(0);
        let mut chunk = HeldChunk::create(&PagePool::new(8 << 20).unwrap()).unwrap();
        for page in guest.pages().filter(|page| **page != [0; 4096]) {
            if collides {
                let mut other = *page;
                other[17] ^= 1;
                chunk.add(hash(page), &other);
            } else {
                chunk.add(begins(page), page);
            }
        }
        let pages = chunk.pages() as u64;
        carry.add_held(chunk);
        carry.wait_told(1, pages);
        let (cause, got) = failed(&mut carry, &guest);
        let expected = if collides { "codec-digest-mismatch" } else { "codec-base-mismatch" };
        let SessionEnd::Protocol { code, .. } = cause else { panic!("{cause}") };
        assert_eq!(code, expected);
        assert!(got.len() < 4096, "no page went to the VMM");
        carry.reopen();
        carry.close();
    }
}

#[test]
fn a_sink_that_tells_more_than_was_agreed_loses_the_session_and_not_the_link() {
    let mut carry = Carry::new(Options { held_pages: [0, 1024], ..held(0) });
    carry.add_held(chunk(&guest(65), hash));
    let cause = carry.pair.source.event(|event| match event {
        Event::Failed { cause, .. } => Some(cause),
        _ => None,
    });
    assert!(matches!(cause, SessionEnd::Protocol { code: "held_beyond_terms", .. }), "{cause}");
    carry.pair.sink.event(|event| matches!(event, Event::Failed { .. }).then_some(()));
    carry.reopen();
    let (near, far) = carry.channel(0);
    carry.move_bytes(&near, &far, b"the next session");
    carry.close();
}
