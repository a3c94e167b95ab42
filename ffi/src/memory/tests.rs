//! Private pages and the pool that they come from.

use super::*;
use crate::region::RegionError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

fn pool(chunks: u64) -> PagePool {
    PagePool::new(chunks * CHUNK_BYTES).unwrap()
}

fn wait_for(what: &str, holds: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "{what}");
        thread::yield_now();
    }
}

/// Whether every page is zeroes.
fn is_clean(pages: &PrivatePages) -> bool {
    (0..pages.pages).all(|page| pages.page(page).iter().all(|&byte| byte == 0))
}

fn fill(pages: &mut PrivatePages, byte: u8) {
    (0..pages.pages).for_each(|page| pages.page_mut(page).fill(byte));
}

/// How many of the pool's bytes have memory.
fn resident_bytes(pool: &PagePool) -> u64 {
    let shared = &pool.0;
    let bytes = pool.bytes() as usize;
    let mut seen = vec![0_u8; bytes / PAGE_BYTES];
    let base = shared.at(0, 0).as_ptr();
    // SAFETY: the range is the pool's mapping, and the vector has a byte for each of its pages.
    let outcome = unsafe { libc::mincore(base.cast(), bytes, seen.as_mut_ptr()) };
    assert_eq!(outcome, 0);
    seen.iter().filter(|&&page| page & 1 == 1).count() as u64 * PAGE_BYTES as u64
}

#[test]
fn pages_are_zeroes_until_they_are_written() {
    let mut memory = pool(2).take(CHUNK_BYTES + 8 * PAGE_BYTES as u64).unwrap();
    let last = CHUNK_PAGES + 7;
    memory.page_mut(last).fill(3);
    memory.page_mut(0)[PAGE_BYTES - 1] = 1;
    assert_eq!(memory.page(last), &[3; PAGE_BYTES]);
    assert_eq!(memory.page(last - 1), &[0; PAGE_BYTES]);
    assert_eq!(memory.page(0)[PAGE_BYTES - 1], 1);
    assert_eq!(memory.page(1), &[0; PAGE_BYTES]);
}

#[test]
fn sizes_that_can_not_be_are_refused() {
    let pool = pool(1);
    for bytes in [0, 1, PAGE_BYTES as u64 + 1, u64::MAX] {
        assert!(matches!(pool.take(bytes), Err(RegionError::Size { .. })));
    }
    assert!(matches!(PagePool::new(u64::MAX), Err(RegionError::Size { .. })));
    assert_eq!(PagePool::new(1).unwrap().bytes(), CHUNK_BYTES, "whole chunks");
}

#[test]
#[should_panic(expected = "outside the memory")]
fn a_page_behind_the_end_is_our_own_fault_though_its_chunk_is_there() {
    let _ = pool(1).take(PAGE_BYTES as u64).unwrap().page(1);
}

#[test]
fn an_exhausted_pool_says_so_and_keeps_what_it_has_until_some_comes_back() {
    let pool = pool(3);
    let two = pool.take(CHUNK_BYTES + PAGE_BYTES as u64).unwrap();
    for bytes in [2 * CHUNK_BYTES, 4 * CHUNK_BYTES] {
        let refused = pool.take(bytes);
        assert!(matches!(refused, Err(RegionError::PoolExhausted { pool_bytes, .. })
            if pool_bytes == 3 * CHUNK_BYTES));
    }
    assert_eq!(pool.held_bytes(), 2 * CHUNK_BYTES, "a refusal takes nothing");
    let one = pool.take(CHUNK_BYTES).unwrap();
    drop((two, one));
    assert_eq!(pool.held_bytes(), 0);
    assert!(pool.take(3 * CHUNK_BYTES).is_ok());
}

#[test]
fn what_was_written_comes_back_as_zeroes_and_its_memory_goes_without_a_caretaker() {
    let pool = pool(2);
    for byte in 1..4 {
        let mut pages = pool.take(2 * CHUNK_BYTES).unwrap();
        assert!(is_clean(&pages));
        fill(&mut pages, byte);
        assert_eq!(resident_bytes(&pool), 2 * CHUNK_BYTES);
        drop(pages);
        assert_eq!(resident_bytes(&pool), 0);
    }
    assert_eq!(pool.taken().untouched_bytes, 6 * CHUNK_BYTES);
    assert_eq!(pool.ready_bytes(), 0);
}

#[test]
fn a_caretaker_has_ready_what_is_wanted_and_gives_back_what_is_not() {
    let pool = pool(6);
    let caretaker = Caretaker::start(&pool, &[]).unwrap();
    pool.want_ready(3 * CHUNK_BYTES + 1);
    wait_for("memory becomes ready", || pool.ready_bytes() == 4 * CHUNK_BYTES);
    assert_eq!(resident_bytes(&pool), 4 * CHUNK_BYTES);
    let mut pages = pool.take(5 * CHUNK_BYTES).unwrap();
    let taken = Taken { ready_bytes: 4 * CHUNK_BYTES, untouched_bytes: CHUNK_BYTES, used_bytes: 0 };
    assert_eq!(pool.taken(), taken, "what is ready goes first");
    assert!(is_clean(&pages));
    fill(&mut pages, 1);
    drop(pages);
    // What is wanted is zeroed and stays; what is more goes.
    wait_for("memory is zeroed", || pool.ready_bytes() == 4 * CHUNK_BYTES);
    wait_for("the rest goes", || resident_bytes(&pool) == 4 * CHUNK_BYTES);
    pool.want_ready(CHUNK_BYTES);
    wait_for("memory goes", || pool.ready_bytes() == CHUNK_BYTES);
    wait_for("memory goes", || resident_bytes(&pool) == CHUNK_BYTES);
    pool.want_ready(u64::MAX);
    wait_for("all is ready", || pool.ready_bytes() == 6 * CHUNK_BYTES);
    drop(caretaker);
    assert!(is_clean(&pool.take(6 * CHUNK_BYTES).unwrap()));
}

#[test]
fn what_sessions_hold_counts_for_what_is_wanted() {
    let pool = pool(6);
    let _caretaker = Caretaker::start(&pool, &[]).unwrap();
    pool.want_ready(2 * CHUNK_BYTES);
    wait_for("memory becomes ready", || pool.ready_bytes() == 2 * CHUNK_BYTES);
    let pages = pool.take(2 * CHUNK_BYTES).unwrap();
    // One more that is wanted is the only one that comes.
    pool.want_ready(3 * CHUNK_BYTES);
    wait_for("one more", || pool.ready_bytes() == CHUNK_BYTES);
    assert!(!pool.0.tend(&mut 0), "there is nothing left to do");
    // Nothing was written: it is ready as before.
    drop(pages);
    assert_eq!(pool.ready_bytes(), 3 * CHUNK_BYTES);
}

#[test]
fn a_used_chunk_is_zeroed_as_it_is_taken_if_there_is_no_other() {
    let pool = pool(2);
    // As if the caretaker had not come to it.
    for number in [0, 1] {
        assert_eq!(pool.0.claim(State::Untouched, number..2), Some(number));
        pool.0.put(number, State::Ready);
    }
    let mut pages = pool.take(2 * CHUNK_BYTES).unwrap();
    fill(&mut pages, 9);
    let chunks = std::mem::take(&mut pages.chunks);
    chunks.iter().for_each(|chunk| pool.0.put(chunk.number, chunk.state));
    let again = pool.take(2 * CHUNK_BYTES).unwrap();
    assert_eq!(pool.taken().used_bytes, 2 * CHUNK_BYTES);
    assert!(is_clean(&again));
}

#[test]
fn takers_on_many_threads_beside_the_caretaker_never_share_a_chunk() {
    let pool = pool(12);
    let caretaker = Caretaker::start(&pool, &[]).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for mark in 1..4_u8 {
            let (pool, stop) = (&pool, &stop);
            scope.spawn(move || {
                for turn in 0..60_u64 {
                    let mut pages = pool.take((1 + turn % 3) * CHUNK_BYTES).unwrap();
                    assert!(is_clean(&pages));
                    let pages_max = pages.pages;
                    // Not all of it, so that chunks come back in every state.
                    for page in (0..pages_max).step_by(300) {
                        pages.page_mut(page).fill(mark);
                    }
                    for page in (0..pages_max).step_by(300) {
                        assert!(pages.page(page).iter().all(|&byte| byte == mark));
                    }
                    // Dropped elsewhere every now and then.
                    if turn % 2 == 0 {
                        scope.spawn(move || drop(pages)).join().unwrap();
                    }
                }
                stop.store(true, Ordering::Relaxed);
            });
        }
        let mut wanted = 0;
        while !stop.load(Ordering::Relaxed) {
            wanted = (wanted + 5) % 13;
            pool.want_ready(wanted * CHUNK_BYTES);
            thread::yield_now();
        }
    });
    wait_for("all is zeroed", || pool.held_bytes() == 0);
    pool.want_ready(u64::MAX);
    wait_for("every chunk is there", || pool.ready_bytes() == pool.bytes());
    drop(caretaker);
    assert!(is_clean(&pool.take(pool.bytes()).unwrap()));
}

#[test]
#[should_panic(expected = "one caretaker")]
fn a_pool_has_one_caretaker() {
    let pool = pool(1);
    let _first = Caretaker::start(&pool, &[]).unwrap();
    let _second = Caretaker::start(&pool, &[]);
}
