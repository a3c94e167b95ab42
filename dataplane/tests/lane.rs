//! Two real shards on two threads, real TCP streams between them: a region moves, or fails cleanly.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod carry;
mod pair;

use dwcp_dataplane::port::{Coding, DirtyPages, Event, SessionEnd, StreamEnd};
use dwcp_dataplane::stats::SessionCounter;
use dwcp_ffi::dirty::DirtyBitmap;
use dwcp_proto::ids::Round;
use pair::{Cuts, PAGES, Pair, fill, scribble};
use std::sync::Arc;

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
