//! Two real shards on two threads, real TCP streams between them: a region moves, or fails cleanly.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod carry;
mod pair;

use carry::harness::{Carry, Options, chatter};
use dwcp_dataplane::port::{Coding, DirtyPages, Event, SessionEnd, StreamEnd};
use dwcp_dataplane::stats::SessionCounter;
use dwcp_ffi::dirty::DirtyBitmap;
use dwcp_proto::ids::{Round, StreamId};
use dwcp_proto::tuner::STREAMS_START;
use pair::{Cuts, PAGES, Pair, end_of, fill, scribble};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[test]
fn a_region_moves_in_rounds_and_is_proven() {
    let mut pair = Pair::new(2);
    let bitmap = Arc::new(DirtyBitmap::create(PAGES).unwrap());
    fill(&pair.source_region, 1);
    pair.open(DirtyPages::Bitmap(Arc::clone(&bitmap)));
    let first = pair.round(Round(1));
    assert_eq!(first.pages, PAGES);
    for round in 2..5 {
        let dirty = scribble(&pair.source_region, u64::from(round), 200);
        dirty.iter().for_each(|&page| bitmap.set(page));
        let stats = pair.round(Round(round));
        assert_eq!(stats.pages, dirty.len() as u64, "only what the bitmap named is looked at");
    }
    pair.verify();
    pair.assert_same();
    let counted = pair.source_counters();
    assert!(counted[SessionCounter::PagesDelta.index()] > 0, "small changes go as deltas");
    assert!(counted[SessionCounter::PagesZero.index()] > 0);
    let sink = pair.sink_counters();
    assert_eq!(
        counted[SessionCounter::PagesDelta.index()],
        sink[SessionCounter::PagesDelta.index()]
    );
    assert!(sink[SessionCounter::PagesVerified.index()] >= PAGES);
    pair.close();
}

#[test]
fn comparison_finds_changes_without_a_bitmap() {
    let mut pair = Pair::new(1);
    fill(&pair.source_region, 2);
    pair.open(DirtyPages::Compare);
    pair.round(Round(1));
    let dirty = scribble(&pair.source_region, 3, 50);
    let second = pair.round(Round(2));
    assert_eq!(second.pages, PAGES, "every page is looked at");
    assert_eq!(second.pages_sent, dirty.len() as u64, "changed pages alone are sent");
    pair.verify();
    pair.assert_same();
    pair.close();
}

#[test]
fn passthrough_sends_every_changed_page_as_it_is_and_keeps_no_base() {
    let mut pair = Pair::new(2);
    fill(&pair.source_region, 7);
    pair.open_with(DirtyPages::Compare, Coding::Passthrough);
    pair.round(Round(1));
    let dirty = scribble(&pair.source_region, 8, 50).len() as u64;
    assert_eq!(pair.round(Round(2)).pages_sent, dirty);
    pair.verify();
    pair.assert_same();
    let counted = pair.source_counters();
    assert_eq!(counted[SessionCounter::PagesRaw.index()], PAGES + dirty);
    assert_eq!(counted[SessionCounter::BasePages.index()], 0);
    pair.close();
}

#[test]
fn a_stream_that_dies_in_a_round_costs_nothing_but_its_frames() {
    let mut pair = Pair::new(3);
    fill(&pair.source_region, 4);
    pair.open(DirtyPages::Compare);
    pair.start_round(Round(1));
    pair.cut_stream(1);
    pair.wait_round(Round(1));
    scribble(&pair.source_region, 5, 100);
    pair.round(Round(2));
    pair.verify();
    pair.assert_same();
    pair.close();
}

#[test]
fn a_session_outlives_all_streams_of_its_lane() {
    for cuts in [Cuts::Network, Cuts::Source, Cuts::Sink] {
        let mut pair = Pair::new(2);
        fill(&pair.source_region, 6);
        pair.open(DirtyPages::Compare);
        pair.start_round(Round(1));
        pair.renew_streams(cuts);
        pair.wait_round(Round(1));
        pair.renew_streams(cuts);
        scribble(&pair.source_region, 7, 100);
        let count = pair.cut_all(cuts);
        // Without a stream nothing is lost of what the shard is told.
        pair.start_round(Round(2));
        pair.next_streams(count);
        pair.wait_round(Round(2));
        let count = pair.cut_all(cuts);
        pair.start_verify();
        pair.next_streams(count);
        pair.wait_verified();
        pair.assert_same();
        pair.close();
    }
}

#[test]
fn a_dropped_link_takes_the_session_with_it_and_the_region_stays() {
    let mut pair = Pair::new(1);
    fill(&pair.source_region, 6);
    pair.open(DirtyPages::Compare);
    pair.start_round(Round(1));
    pair.drop_link();
    let ended = pair.source_event(|event| match event {
        Event::Failed { cause, .. } => Some(cause),
        _ => None,
    });
    assert!(matches!(ended, SessionEnd::LinkLost(_)), "{ended}");
    pair.close();
}

#[test]
fn a_stream_with_the_wrong_keys_is_refused_and_counted() {
    let mut pair = Pair::new(1);
    let (source, sink) = pair.wrong_keys_stream(9);
    // The end that reads first refuses the record; the other may see only the closed connection.
    let refused = |end| matches!(end, StreamEnd::Protocol { .. });
    assert!(refused(source) || refused(sink), "source: {source}, sink: {sink}");
    fill(&pair.source_region, 1);
    pair.open(DirtyPages::Compare);
    pair.round(Round(1));
    pair.verify();
    pair.assert_same();
    pair.close();
}

/// The stream beyond those that are needed.
const SPARE: StreamId = StreamId(STREAMS_START);

/// Tells the thread that talks to stop, also when the test fails.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Two VMMs talk, to and fro, until `stop`.
fn talk(near: &UnixStream, far: &UnixStream, stop: &AtomicBool) {
    for seed in (1..).take_while(|_| !stop.load(Ordering::Relaxed)) {
        chatter(seed, near, far);
    }
}

#[test]
fn a_stream_is_retired_and_comes_again_while_a_region_and_a_vmm_are_carried() {
    let mut carry = Carry::over(Pair::with_enough_streams(), Options::default());
    let (near, far) = carry.channel(0);
    let of_vmm = carry.pair.session;
    carry.pair.session.number = of_vmm.number.next();
    fill(&carry.pair.source_region, 1);
    carry.pair.open(DirtyPages::Compare);
    let mut rounds = (1..).map(Round);
    assert_eq!(carry.pair.round(rounds.next().unwrap()).pages_sent, PAGES);
    let mut sent = PAGES;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stops = Stops(&stop);
        scope.spawn(|| talk(&near, &far, &stop));
        for _ in 0..3 {
            carry.pair.add_next(SPARE);
            let mut ends = [None; 2];
            while ends.contains(&None) {
                let round = rounds.next().unwrap();
                let changed = scribble(&carry.pair.source_region, round.0.into(), 100).len();
                let moved = carry.pair.round(round).pages_sent;
                assert_eq!(moved, changed as u64, "what changed, and each page once");
                sent += moved;
                let Pair { source, sink, .. } = &mut carry.pair;
                for (end, side) in ends.iter_mut().zip([source, sink]) {
                    *end = end.or_else(|| side.try_event(end_of(SPARE)));
                }
            }
            assert_eq!(ends, [Some(StreamEnd::Retired); 2]);
        }
    });
    let of = |counters: &[u64], counter: SessionCounter| counters[counter.index()];
    let (source, sink) = (carry.pair.source_counters(), carry.pair.sink_counters());
    for counted in [&source, &sink] {
        let kinds = [SessionCounter::PagesZero, SessionCounter::PagesDelta];
        let kinds = kinds.into_iter().chain([SessionCounter::PagesZstd, SessionCounter::PagesRaw]);
        assert_eq!(kinds.map(|kind| of(counted, kind)).sum::<u64>(), sent);
    }
    assert_eq!(of(&source, SessionCounter::PagesRequeued), 0);
    assert_eq!(of(&carry.source_counters(), SessionCounter::FramesResent), 0);
    assert_eq!(of(&carry.sink_counters(), SessionCounter::DuplicateFrames), 0);
    // It is a stream like any other, and carries everything when the others are gone.
    for elder in (1..STREAMS_START).map(StreamId) {
        carry.cut_stream(elder.0.into());
        carry.pair.stream_ends(elder);
    }
    carry.pair.add_next(SPARE);
    carry.cut_stream(0);
    carry.pair.stream_ends(StreamId(0));
    scribble(&carry.pair.source_region, 0, 100);
    carry.pair.round(rounds.next().unwrap());
    carry.pair.verify();
    carry.pair.assert_same();
    chatter(0, &near, &far);
    carry.pair.close_session();
    carry.pair.session = of_vmm;
    carry.assert_same_digest();
    carry.close();
}
