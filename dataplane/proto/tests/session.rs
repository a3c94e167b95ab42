//! Properties of the two session machines: whatever is cut, restarted or delayed, there are never
//! two owners of a region, and once all is healed the session ends the same way at both ends.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod world;

use dwcp_proto::ids::{LaneId, SessionNumber};
use dwcp_proto::session::phase::{SinkPhase, SourcePhase};
use dwcp_proto::session::reason::StepError;
use dwcp_proto::session::record::SourceRecord;
use dwcp_proto::session::resolve::{Conflict, RunAt};
use dwcp_proto::session::sink::SinkInput;
use dwcp_proto::session::source::SourceInput;
use dwcp_proto::wire::peer::PeerMessage;
use dwcp_proto::wire::token::{JournalId, PagesDigest};
use dwcp_proto::wire::vm::{PagesBefore, VmTerms};
use proptest::prelude::*;
use world::{Link, SESSION, TERMS, World};

#[test]
fn a_good_run_moves_the_region() {
    let mut world = World::new();
    world.heal();
    assert_eq!(world.source.as_ref().unwrap().phase(), SourcePhase::Committed);
    assert_eq!(world.sink.as_ref().unwrap().phase(), SinkPhase::Committed);
    assert_eq!(world.source_journal, Some(SourceRecord::Done));
    assert_eq!(world.sink_journal, None, "the sink forgets what is settled");
}

#[test]
fn nothing_is_taken_back_once_the_journal_was_asked() {
    let mut world = World::new();
    while world.source_writes.is_none() {
        world.deliver_to_sink(0);
        world.deliver_to_source(0);
        world.lane_event();
        let _ = world.source(SourceInput::Finish);
    }
    assert_eq!(world.source(SourceInput::Abort), Err(StepError::TooLate));
    world.cut();
    world.journal_source(true, true);
    assert_eq!(world.source.as_ref().unwrap().phase(), SourcePhase::InDoubt);
    world.heal();
    assert!(world.source_owns(), "the sink never heard the yield");
}

#[test]
fn a_lost_sink_journal_leaves_the_source_in_doubt() {
    let mut world = World::new();
    while world.sink_journal.is_none() {
        world.deliver_to_sink(0);
        world.deliver_to_source(0);
        world.lane_event();
        world.journal_source(true, true);
        world.journal_sink(true, false);
        let _ = world.source(SourceInput::Finish);
    }
    world.sink_journal = None;
    world.sink_journal_id = JournalId([9; 16]);
    world.restart_sink(false);
    world.heal();
    let source = world.source.as_ref().unwrap();
    assert_eq!(source.phase(), SourcePhase::InDoubt);
    assert_eq!(source.reason().unwrap().code(), "session_outcome_unknown");
}

#[test]
fn nothing_stops_a_commit_that_the_sink_is_writing() {
    let mut world = World::new();
    while world.sink_writes.is_none() {
        world.deliver_to_sink(0);
        world.deliver_to_source(0);
        world.lane_event();
        world.journal_source(true, true);
        let _ = world.source(SourceInput::Finish);
    }
    assert_eq!(world.sink(SinkInput::Abort), Err(StepError::TooLate));
    world.cut();
    world.sink(SinkInput::LinkLost).unwrap();
    assert_eq!(world.sink.as_ref().unwrap().phase(), SinkPhase::Verified);
    world.journal_sink(true, true);
    assert_eq!(world.sink.as_ref().unwrap().phase(), SinkPhase::Committed);
    world.heal();
    assert_eq!(world.source.as_ref().unwrap().phase(), SourcePhase::Committed);
}

#[test]
fn the_sink_is_told_to_forget_only_what_is_durable_at_the_source() {
    let mut world = World::new();
    while world.source_writes != Some(SourceRecord::Done) {
        world.deliver_to_sink(0);
        world.deliver_to_source(0);
        world.lane_event();
        if world.source_writes != Some(SourceRecord::Done) {
            world.journal_source(true, true);
        }
        world.journal_sink(true, true);
        let _ = world.source(SourceInput::Finish);
    }
    world.journal_source(false, false);
    assert!(world.links.iter().all(|link| link.to_sink.is_empty()), "no word of it");
    world.restart_source(false);
    world.heal();
    assert_eq!(world.source.as_ref().unwrap().phase(), SourcePhase::Committed);
}

#[test]
fn early_messages_of_a_sink_fail_the_session_and_keep_the_region() {
    for message in [
        PeerMessage::Committed { session: SESSION },
        PeerMessage::Yield { session: SESSION },
        PeerMessage::Settled { session: SESSION },
    ] {
        let mut world = World::new();
        world.source(SourceInput::Peer(message)).unwrap();
        let source = world.source.as_ref().unwrap();
        assert_eq!(source.phase(), SourcePhase::Failed);
        assert_eq!(source.reason().unwrap().code(), "session_protocol_violation");
    }
}

#[test]
fn what_is_under_way_moves_whenever_the_connection_is_renewed() {
    renew_at_every_step(World::with_vm);
    renew_at_every_step(World::resuming);
}

fn renew_at_every_step(make: fn() -> World) {
    let mut renewals = 0;
    loop {
        let mut world = make();
        let parks = |world: &World| {
            let source = world.source.as_ref().is_some_and(|source| source.may_park());
            source && world.sink.as_ref().is_some_and(|sink| sink.may_park())
        };
        let mut steps = 0;
        while steps < 40 && !(parks(&world) && steps >= renewals) {
            world.deliver_to_sink(0);
            world.deliver_to_source(0);
            world.lane_event();
            if steps > 20 {
                let _ = world.source(SourceInput::Finish);
            }
            steps += 1;
        }
        if !parks(&world) {
            break;
        }
        world.renew();
        world.heal();
        assert_eq!(world.source.as_ref().unwrap().phase(), SourcePhase::Committed);
        assert_eq!(world.sink.as_ref().unwrap().phase(), SinkPhase::Committed);
        renewals += 1;
    }
    assert!(renewals > 10, "{renewals} steps had both ends waiting");
}

/// The sink has found that all is there, and its word of that is lost with the connection.
#[test]
fn a_verified_region_waits_for_its_source_and_a_guest_is_in_doubt() {
    for (make, waits) in [(World::resuming as fn() -> World, true), (World::with_vm, false)] {
        let mut world = make();
        while world.sink.as_ref().is_none_or(|sink| sink.phase() != SinkPhase::Verified) {
            world.deliver_to_sink(0);
            world.deliver_to_source(0);
            world.lane_event();
            let _ = world.source(SourceInput::Finish);
        }
        assert_eq!(world.sink.as_ref().unwrap().may_park(), waits);
    }
}

/// Runs until both ends wait for a word that never came: the source has yielded, the sink parks.
fn parked() -> World {
    let mut world = World::with_vm();
    while world.source_journal.is_none() {
        world.deliver_to_sink(0);
        world.deliver_to_source(0);
        world.lane_event();
        if world.sink.as_ref().is_some_and(|sink| sink.phase() == SinkPhase::Verified) {
            world.journal_source(true, true);
        }
        let _ = world.source(SourceInput::Finish);
    }
    world.links.clear();
    world.links.push(Link::default());
    world.cut();
    world.sink(SinkInput::LinkLost).unwrap();
    assert!(world.sink.as_ref().unwrap().is_parked());
    assert_eq!(world.source.as_ref().unwrap().phase(), SourcePhase::InDoubt);
    world
}

#[test]
fn a_parked_guest_is_given_up_when_the_source_asks() {
    let mut world = parked();
    world.heal();
    assert!(world.source_owns());
    assert_eq!(world.sink.as_ref().unwrap().phase(), SinkPhase::Aborted);
    assert_eq!((world.source_conflict, world.sink_conflict), (None, None));
}

/// The streams of a link often end before its control channel, and their news may be late.
#[test]
fn a_guest_that_stands_loaded_outlives_its_lanes() {
    let failed = || SinkInput::LaneFailed { lane: LaneId(0), code: "lane_link_lost" };
    let mut world = parked();
    world.sink(failed()).unwrap();
    assert!(world.sink.as_ref().unwrap().is_parked(), "the source may have yielded it");
    world.heal();
    assert!(world.source_owns());

    let mut world = World::with_vm();
    while world.sink.as_ref().is_none_or(|sink| sink.phase() != SinkPhase::Verified) {
        world.deliver_to_sink(0);
        world.deliver_to_source(0);
        world.lane_event();
        let _ = world.source(SourceInput::Finish);
    }
    world.sink(failed()).unwrap();
    assert_eq!(world.sink.as_ref().unwrap().phase(), SinkPhase::Verified);
}

#[test]
fn an_operators_word_at_one_end_is_heard_at_the_other() {
    for (run, restart) in
        [(RunAt::Source, false), (RunAt::Source, true), (RunAt::Sink, false), (RunAt::Sink, true)]
    {
        let mut world = parked();
        world.source(SourceInput::Resolve(run)).unwrap();
        world.journal_source(true, true);
        assert_eq!(world.source_owns(), run == RunAt::Source, "at once, without the peer");
        if restart {
            world.restart_source(false);
            world.restart_sink(true);
        }
        world.heal();
        let sink = world.sink.as_ref().unwrap();
        assert_eq!(sink.phase().owns_region(), run == RunAt::Sink, "{world:#?}");
        assert_eq!(world.source_owns(), run == RunAt::Source);
        assert_eq!(world.source_journal, Some(SourceRecord::ResolvedTold { run }));
        assert_eq!((world.source_conflict, world.sink_conflict), (None, None));
    }
}

#[test]
fn an_operators_word_at_the_sink_ends_the_sources_doubt() {
    for run in [RunAt::Source, RunAt::Sink] {
        let mut world = parked();
        world.sink(SinkInput::Resolve(run)).unwrap();
        world.journal_sink(true, true);
        assert_eq!(world.sink.as_ref().unwrap().phase().owns_region(), run == RunAt::Sink);
        world.heal();
        assert_eq!(world.source_owns(), run == RunAt::Source);
        assert!(world.source.as_ref().unwrap().is_over());
    }
}

#[test]
fn contradicting_decisions_are_kept_and_said_at_both_ends() {
    for (at_source, at_sink, conflict) in [
        (RunAt::Source, RunAt::Sink, Conflict::BothRun),
        (RunAt::Sink, RunAt::Source, Conflict::NoneRuns),
    ] {
        let mut world = parked();
        (world.source_decided, world.sink_decided) = (true, true);
        world.source(SourceInput::Resolve(at_source)).unwrap();
        world.journal_source(true, true);
        world.sink(SinkInput::Resolve(at_sink)).unwrap();
        world.journal_sink(true, true);
        world.heal();
        assert_eq!(world.source_conflict, Some(conflict));
        assert_eq!(world.sink_conflict, Some(conflict));
        assert_eq!(world.source_owns(), at_source == RunAt::Source, "each keeps to its record");
        assert_eq!(world.sink.as_ref().unwrap().phase().owns_region(), at_sink == RunAt::Sink);
    }
}

#[test]
fn a_decision_that_the_journal_did_not_take_is_none() {
    let mut world = parked();
    world.source(SourceInput::Resolve(RunAt::Source)).unwrap();
    world.journal_source(false, false);
    let source = world.source.as_ref().unwrap();
    assert_eq!(source.phase(), SourcePhase::InDoubt);
    assert_eq!(source.reason().unwrap().code(), "session_journal_failed");
    world.sink(SinkInput::Resolve(RunAt::Sink)).unwrap();
    world.journal_sink(false, false);
    assert!(!world.sink.as_ref().unwrap().is_parked(), "only a restart can tell");
    world.heal();
    assert!(world.source.as_ref().unwrap().is_over());
}

#[test]
fn only_a_doubt_is_resolved_and_a_machine_takes_no_rounds_of_clients() {
    let mut world = World::with_vm();
    let refused = world.source(SourceInput::Resolve(RunAt::Source)).unwrap_err();
    assert_eq!(refused.code(), "session_not_now");
    let refused = world.source(SourceInput::Round).unwrap_err();
    assert_eq!(refused.code(), "session_of_a_vm");
    world.heal();
    assert_eq!(world.source.as_ref().unwrap().phase(), SourcePhase::Committed);
    assert!(world.source(SourceInput::Resolve(RunAt::Source)).is_err());
    assert!(world.sink(SinkInput::Resolve(RunAt::Source)).is_err());
}

#[test]
fn terms_above_the_offer_are_a_violation() {
    let journal = JournalId([1; 16]);
    let above = VmTerms { base_pages: TERMS.base_pages + 1, ..TERMS };
    let unasked = VmTerms { held: Some(1), ..TERMS };
    for vm in [Some(above), Some(unasked), None] {
        let mut world = World::with_vm();
        let number = SessionNumber(1);
        let accept = PeerMessage::SessionAccept { session: SESSION, number, journal, vm };
        world.source(SourceInput::Peer(accept)).unwrap();
        let source = world.source.as_ref().unwrap();
        assert_eq!(source.reason().unwrap().code(), "session_protocol_violation", "{vm:?}");
    }
}

#[test]
fn a_sink_may_tell_of_no_more_than_was_offered_and_of_nothing_beside_what_is_from_before() {
    let before = PagesBefore { session: SESSION, digest: PagesDigest([7; 16]), pages: 2 };
    let offered = VmTerms { held: Some(3), before: Some(before), ..TERMS };
    let within = |held, before| VmTerms { held, before, ..TERMS }.within(&offered);
    assert!(within(Some(3), None) && within(Some(1), None) && within(None, Some(before)));
    assert!(!within(Some(4), None) && !within(Some(3), Some(before)));
}

/// The sink's commit is on its disk although the disk called it failed, and an operator lets the
/// source run: the source must hear of it once the sink has found out.
#[test]
fn a_commit_that_was_not_confirmed_is_told_to_a_source_that_was_let_run() {
    let verified = [
        (0, 0),
        (80, 0),
        (80, 0),
        (80, 0),
        (40, 0),
        (80, 0),
        (80, 0),
        (80, 0),
        (180, 0),
        (80, 0),
        (80, 0),
        (80, 0),
        (80, 0),
        (80, 0),
        (80, 0),
        (140, 0),
        (0, 0),
    ];
    let unconfirmed_then_decided = [(239, 103), (243, 100), (251, 11), (0, 0), (140, 0)];
    let mut world = World::with_vm();
    for (op, pick) in verified.into_iter().chain(unconfirmed_then_decided) {
        world.event(op, pick);
        world.check();
    }
    world.heal();
    assert!(world.source.as_ref().is_some_and(|source| source.is_over()), "{world:#?}");
    assert!(world.source_owns() && world.sink_ever_committed, "{world:#?}");
    assert_eq!(world.source_conflict, Some(Conflict::BothRun), "{world:#?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn there_are_never_two_owners_and_healing_ends_every_doubt(
        events in prop::collection::vec((any::<u8>(), any::<u8>()), 1..300), resumes: bool,
    ) {
        let mut world = if resumes { World::resuming() } else { World::new() };
        for (op, pick) in events {
            world.event(op, pick);
            world.check();
        }
        world.heal();
        if world.journal_lost {
            return Ok(());
        }
        if let Some(source) = &world.source {
            prop_assert!(source.is_over(), "the source hangs: {world:#?}");
            let committed = source.phase() == SourcePhase::Committed;
            prop_assert_eq!(committed, world.sink_ever_committed, "{:#?}", world);
        }
    }

    #[test]
    fn only_operators_make_two_owners_of_a_machine_and_then_it_is_said(
        events in prop::collection::vec((any::<u8>(), any::<u8>()), 1..300),
    ) {
        let mut world = World::with_vm();
        for (op, pick) in events {
            world.event(op, pick);
            world.check();
        }
        world.heal();
        if world.journal_lost {
            return Ok(());
        }
        let Some(source) = &world.source else { return Ok(()) };
        prop_assert!(source.is_over(), "the source hangs: {world:#?}");
        let two = world.source_owns() && world.sink_ever_committed;
        prop_assert!(!two || world.decided(), "{world:#?}");
        let told = matches!(world.source_journal, Some(SourceRecord::ResolvedTold { .. }));
        if two && told {
            prop_assert_eq!(world.source_conflict, Some(Conflict::BothRun), "{:#?}", world);
        }
        if !world.decided() {
            let committed = source.phase() == SourcePhase::Committed;
            prop_assert_eq!(committed, world.sink_ever_committed, "{:#?}", world);
        }
    }
}
