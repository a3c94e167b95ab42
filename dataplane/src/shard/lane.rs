//! The shard's part of a link: its streams, what is in flight on them, what is owed on them.
//!
//! Owned by the shard. A stream has two names: the slot of the transport and the number that both
//! ends know.

use super::outbox::Outbox;
use crate::link::{PathState, StreamSlot};
use crate::port::{LaneSetup, Spread, StreamEnd, StreamPlace};
use dwcp_ffi::counters::HistogramWriter;
use dwcp_proto::ids::{Incarnation, LinkId, SessionNumber, StreamId};
use dwcp_proto::sink::{SinkFlow, SinkFlowConfig};
use dwcp_proto::source::{InFlight, SourceFlow, SourceFlowConfig};
use dwcp_proto::time::Nanos;
use dwcp_proto::tuner::{Decision, STREAMS_START, Sample, Tuner};
use dwcp_proto::window::{PathReport, WindowConfig};
use dwcp_proto::wire::version::WireVersion;

/// Frames in flight on a lane. A window of 64 MiB holds 256 full extents; small deltas are bounded
/// by this number instead: 4096 frames of 1 KiB are 4 MiB.
const FRAMES_MAX: usize = 4096;

/// NACKs that may wait: every frame in flight may be refused.
const NACKS_MAX: usize = FRAMES_MAX;

/// A path loses more than a little when more than one part of so many is sent again, and counts as
/// one that does for some samples.
const LOSS_PARTS: u64 = 5000;
const RECOVERS_FOR: Nanos = Nanos(2 * Nanos::SECOND.0);

/// What is lost behind a queue of more than one such part of the round trip may be what it dropped.
const OWN_QUEUE_PARTS: u64 = 2;

/// A live stream as the shard sees it.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) link: LinkId,
    pub(super) id: StreamId,
    /// The link's version: that of the frames on it.
    pub(super) version: WireVersion,
    pub(super) outbox: Outbox,
    /// Something waits to be said on it: answers of the sink's flow, or the outbox.
    pub(super) due: bool,
    /// A record of the peer was opened: it has the keys.
    pub(super) up: bool,
    /// Its last frame was queued, or came: nothing more is said on it.
    pub(super) retired: bool,
    /// Why it must end: what the peer did, or that it needs it no more.
    pub(super) over: Option<StreamEnd>,
    /// Newest round trip.
    pub(super) rtt: Nanos,
    /// All round trips of the frames on it.
    pub(super) frame_rtt_ns: HistogramWriter,
}

impl Stream {
    pub(super) fn new(link: LinkId, place: StreamPlace, frame_rtt_ns: HistogramWriter) -> Self {
        Self {
            link,
            id: place.stream,
            version: place.version,
            outbox: Outbox::new(),
            due: false,
            up: false,
            retired: false,
            over: None,
            rtt: Nanos(0),
            frame_rtt_ns,
        }
    }
}

/// The shard's part of a link.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) link: LinkId,
    pub(super) flow: SourceFlow,
    pub(super) sink: SinkFlow,
    /// The control thread gave the link up: the lane goes with its last stream.
    pub(super) dropped: bool,
    /// The eldest first.
    streams: Vec<(StreamSlot, StreamId)>,
    /// Finds how many of them carry pages, the eldest; without it all do.
    tuner: Option<Tuner>,
    /// The control thread was told this.
    told: Option<Decision>,
    retire_after: Option<Nanos>,
    /// Since when there are more streams than shall be.
    spare_since: Option<Nanos>,
    /// When more than a little was lost.
    lost_at: Option<Nanos>,
    /// Since the last sample something to send waited for the streams or a window.
    is_held_back: bool,
}

impl Lane {
    pub(super) fn new(setup: &LaneSetup, streams_max: usize, sessions_max: usize) -> Self {
        Self {
            link: setup.link,
            flow: SourceFlow::new(SourceFlowConfig {
                streams_max,
                sessions_max,
                frames_max: FRAMES_MAX,
                window: WindowConfig::with_max(setup.window_bytes_max),
            }),
            sink: SinkFlow::new(SinkFlowConfig { streams_max, sessions_max, nacks_max: NACKS_MAX }),
            dropped: false,
            streams: Vec::with_capacity(streams_max),
            tuner: match setup.spread {
                Spread::All => None,
                Spread::AsNeeded => Some(Tuner::new(setup.streams_max)),
            },
            told: None,
            retire_after: setup.retire_after,
            spare_since: None,
            lost_at: None,
            is_held_back: false,
        }
    }

    /// Takes a stream in. False when its number is in use or not newer than before.
    pub(super) fn add_stream(
        &mut self,
        slot: StreamSlot,
        id: StreamId,
        incarnation: Incarnation,
    ) -> bool {
        if self.flow.add_stream(id, incarnation).is_err() {
            return false;
        }
        let both = self.sink.add_stream(id, incarnation);
        assert!(both.is_ok(), "both flows of a lane know the same streams");
        self.streams.push((slot, id));
        true
    }

    /// Takes a dead stream out and gives back what it had in flight.
    pub(super) fn remove_stream(&mut self, id: StreamId, each: impl FnMut(InFlight)) {
        self.streams.retain(|&(_, open)| open != id);
        let known = self.flow.on_stream_dead(id, each).is_ok();
        let both = self.sink.remove_stream(id).is_ok();
        assert!(known == both, "both flows of a lane know the same streams");
    }

    pub(super) fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    pub(super) fn slots(&self) -> impl Iterator<Item = StreamSlot> {
        self.streams.iter().map(|&(slot, _)| slot)
    }

    pub(super) fn any_stream(&self) -> Option<StreamSlot> {
        self.streams.first().map(|&(slot, _)| slot)
    }

    /// The streams that carry pages.
    pub(super) fn active(&self) -> impl Iterator<Item = StreamSlot> {
        let active = self.tuner.as_ref().map_or(usize::MAX, |it| it.decision().streams.into());
        self.slots().take(active)
    }

    /// Something to send has to wait for the streams or a window.
    pub(super) fn hold_back(&mut self) {
        self.is_held_back = true;
    }

    /// Takes how the streams fare, and lets as many carry pages as are worth it. Returns what those
    /// say of the path together.
    pub(super) fn adapt(
        &mut self,
        now: Nanos,
        each: impl Fn(StreamSlot) -> PathState,
    ) -> PathReport {
        let sample = self.sample(&each);
        for &(slot, id) in &self.streams {
            self.flow.set_stream_window(id, each(slot).window_bytes);
        }
        // What a stream loses while it looks for the path's rate says nothing of later.
        let in_startup = self.active().any(|slot| each(slot).in_startup);
        let loses = sample.resent_bytes > sample.acked_bytes / LOSS_PARTS;
        // What fills the path alone may fill its queue, and what that drops is no reason to give it
        // more.
        let queue = sample.rtt.since(sample.rtt_least);
        let is_its_own = sample.fills_alone && queue.0 > sample.rtt_least.0 / OWN_QUEUE_PARTS;
        if !in_startup && !is_its_own && loses {
            self.lost_at = Some(now);
        }
        if let Some(tuner) = &mut self.tuner
            && sample.live > 0
        {
            tuner.step(now, &sample);
        }
        let states = || self.active().map(&each);
        let is_known = states().all(|it| it.rate > 0);
        let path = PathReport {
            streams: states().count() as u64,
            in_startup,
            rate: if is_known { states().map(|it| it.rate).sum() } else { 0 },
            rtt: states().map(|it| it.rtt_path).min().unwrap_or_default(),
            recovers: self.lost_at.is_some_and(|at| now.since(at) < RECOVERS_FOR),
        };
        self.flow.set_path(path);
        path
    }

    fn sample(&mut self, each: impl Fn(StreamSlot) -> PathState) -> Sample {
        let is_held_back = std::mem::take(&mut self.is_held_back);
        let all = || self.slots().map(&each);
        let states = || self.active().map(&each);
        let live = states().count() as u64;
        let rtt_least = states().map(|it| it.rtt_least).filter(|rtt| rtt.0 > 0).min();
        Sample {
            live: live as u16,
            acked_bytes: all().map(|it| it.acked_bytes).sum(),
            resent_bytes: all().map(|it| it.resent_bytes).sum(),
            rtt: Nanos(states().map(|it| it.rtt.0).sum::<u64>() / live.max(1)),
            rtt_least: rtt_least.unwrap_or_default(),
            is_held_back,
            fills_alone: states().all(|it| it.fills_alone),
            is_buffer_bound: states().any(|it| it.is_buffer_bound),
        }
    }

    /// A decision that the control thread has not been told, and how many streams there shall be.
    pub(super) fn news(&mut self) -> Option<(Decision, u16)> {
        let decision = self.tuner.as_ref()?.decision();
        if self.told.replace(decision) == Some(decision) {
            return None;
        }
        Some((decision, open(decision)))
    }

    /// The youngest stream, if it has been one too many for some time and nothing is in flight on
    /// it.
    pub(super) fn too_many(&mut self, now: Nanos) -> Option<StreamSlot> {
        let (tuner, retire_after) = (self.tuner.as_ref()?, self.retire_after?);
        if self.streams.len() <= usize::from(open(tuner.decision())) {
            self.spare_since = None;
            return None;
        }
        let since = *self.spare_since.get_or_insert(now);
        let (slot, id) = *self.streams.last()?;
        let is_due = now.since(since) >= retire_after;
        (is_due && self.flow.stream_in_flight_bytes(id) == 0).then_some(slot)
    }

    /// The stream for the next frame, if the window is open.
    pub(super) fn pick_stream(&self, ready: impl Fn(StreamSlot) -> bool) -> Option<StreamSlot> {
        let is_ready =
            |id| self.slot(id).is_some_and(|it| self.active().any(|slot| slot == it) && ready(it));
        self.slot(self.flow.pick_stream(is_ready)?)
    }

    /// A frame was posted on a stream.
    pub(super) fn sent(&mut self, slot: StreamSlot, frame: InFlight) {
        let Some(&(_, id)) = self.streams.iter().find(|&&(open, _)| open == slot) else {
            panic!("a frame was posted on a stream of another lane")
        };
        self.flow.on_sent(id, frame);
    }

    /// A session was closed. Either flow may not know it.
    pub(super) fn forget(&mut self, session: SessionNumber) {
        let _ = self.flow.forget_session(session);
        let _ = self.sink.forget_session(session);
    }

    fn slot(&self, id: StreamId) -> Option<StreamSlot> {
        self.streams.iter().find(|&&(_, open)| open == id).map(|&(slot, _)| slot)
    }
}

/// How many streams there shall be: a spare one takes the place of one that ends at once.
fn open(decision: Decision) -> u16 {
    decision.streams.max(STREAMS_START)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::RETIRE_AFTER;
    use dwcp_proto::ids::{LaneId, Sequence};
    use dwcp_proto::source::Cargo;
    use dwcp_proto::tuner::Why;

    const BBR: PathState = PathState {
        in_startup: false,
        rate: 1000,
        rtt_path: Nanos::from_millis(40),
        fills_alone: true,
        is_buffer_bound: false,
        acked_bytes: 0,
        resent_bytes: 0,
        window_bytes: 0,
        rtt: Nanos(0),
        rtt_least: Nanos(0),
    };

    /// A lane with streams 0 to 3 in slots 4 to 7.
    fn lane(spread: Spread) -> Lane {
        let (link, lane) = (LinkId(0), LaneId(0));
        let setup = LaneSetup {
            link,
            lane,
            window_bytes_max: 1 << 20,
            streams_max: 8,
            spread,
            retire_after: Some(RETIRE_AFTER),
        };
        let mut lane = Lane::new(&setup, 8, 1);
        (0..4).for_each(|stream| add(&mut lane, stream));
        lane
    }

    fn add(lane: &mut Lane, stream: u16) {
        let slot = StreamSlot(stream + 4);
        assert!(lane.add_stream(slot, StreamId(stream), Incarnation(1)));
    }

    fn active(lane: &Lane) -> Vec<usize> {
        lane.active().map(|slot| slot.index()).collect()
    }

    #[test]
    fn one_stream_carries_pages_until_its_buffers_hold_it_back() {
        let mut lane = lane(Spread::AsNeeded);
        let now = Nanos(1);
        assert_eq!(active(&lane), [4]);
        let rtt = BBR.rtt_path;
        let path = PathReport { streams: 1, in_startup: false, rate: 1000, rtt, recovers: false };
        assert_eq!(lane.adapt(now, |_| BBR), path);
        assert_eq!(active(&lane), [4]);
        let bound = |slot: StreamSlot| PathState { is_buffer_bound: slot.index() == 4, ..BBR };
        lane.adapt(now, bound);
        assert_eq!(active(&lane), [4, 5]);
        assert_eq!(lane.adapt(now, |_| BBR).rate, 2000);
        let rate = |slot: StreamSlot| PathState { rate: slot.index() as u64 - 4, ..BBR };
        assert_eq!(lane.adapt(now, rate).rate, 0);
        let spare_is_bound =
            |slot: StreamSlot| PathState { is_buffer_bound: slot.index() > 5, ..BBR };
        lane.adapt(now, spare_is_bound);
        assert_eq!(active(&lane), [4, 5], "a spare one that waits says nothing");
    }

    #[test]
    fn a_spare_stream_takes_the_place_of_one_that_ended() {
        let mut lane = lane(Spread::AsNeeded);
        lane.remove_stream(StreamId(0), |_| ());
        assert_eq!(active(&lane), [5]);
        assert_eq!(lane.pick_stream(|_| true).map(|slot| slot.0), Some(5));
        assert_eq!(lane.pick_stream(|slot| slot.index() != 5), None, "it waits for the one");
    }

    #[test]
    fn the_first_carry_pages_where_one_does_not_fill_the_path_or_all_were_asked_for() {
        let mut lane_of_cubic = lane(Spread::AsNeeded);
        lane_of_cubic.adapt(Nanos(1), |_| PathState::default());
        add(&mut lane_of_cubic, 4);
        assert_eq!(active(&lane_of_cubic), [4, 5, 6, 7]);
        let mut lane_of_all = lane(Spread::All);
        lane_of_all.adapt(Nanos(1), |_| PathState::default());
        assert_eq!((active(&lane_of_all), lane_of_all.news()), (vec![4, 5, 6, 7], None));
    }

    #[test]
    fn more_are_asked_for_while_that_pays_and_each_decision_is_told_once() {
        let mut lane = lane(Spread::AsNeeded);
        let first = Decision { streams: 1, why: Why::FillsAlone };
        assert_eq!(lane.news(), Some((first, 4)), "three are spare");
        let rtt = Nanos::from_millis(40);
        let each =
            |_| PathState { acked_bytes: 1_000_000, rtt, rtt_least: rtt, ..PathState::default() };
        let mut told = Vec::new();
        for quarter in 1..20 {
            lane.hold_back();
            lane.adapt(Nanos::from_millis(250 * quarter), each);
            told.extend(lane.news());
            assert_eq!(lane.news(), None);
        }
        let begun = Decision { streams: 4, why: Why::Begun };
        let more = Decision { streams: 8, why: Why::Trying { from: 4 } };
        assert_eq!(told, [(begun, 4), (more, 8)]);
        assert_eq!(active(&lane).len(), 4, "they have not come yet");
        (4..8).for_each(|stream| add(&mut lane, stream));
        assert_eq!(active(&lane).len(), 8);
    }

    #[test]
    fn a_path_that_loses_is_told_for_some_time_but_not_what_a_stream_loses_that_finds_the_rate() {
        let mut lane = lane(Spread::AsNeeded);
        let mut recovers = |millis, resent_bytes, state: PathState| {
            let each = |_| PathState { acked_bytes: 1_000_000, resent_bytes, ..state };
            lane.adapt(Nanos::from_millis(millis), each).recovers
        };
        let cubic = PathState { rate: 0, fills_alone: false, ..BBR };
        assert!(!recovers(1000, 100, cubic), "a little");
        assert!(!recovers(1250, 1000, PathState { in_startup: true, ..cubic }));
        let (rtt_least, long) = (Nanos::from_millis(40), Nanos::from_millis(61));
        let queued = PathState { rtt: long, rtt_least, ..BBR };
        assert!(!recovers(1250, 1000, queued), "its own queue may have dropped it");
        assert!(recovers(1500, 1000, PathState { fills_alone: false, ..queued }));
        assert!(recovers(3250, 0, cubic));
        assert!(!recovers(3500, 0, cubic));
        assert!(recovers(3750, 1000, PathState { rtt: rtt_least, rtt_least, ..BBR }), "no queue");
    }

    #[test]
    fn the_youngest_of_too_many_is_retired_after_some_time_without_use() {
        let mut lane = lane(Spread::AsNeeded);
        let second = |seconds: u64| Nanos(seconds * Nanos::SECOND.0);
        assert_eq!(lane.too_many(second(100)), None, "three are spare");
        add(&mut lane, 4);
        assert_eq!(lane.too_many(second(100)), None);
        assert_eq!(lane.too_many(second(119)), None);
        assert_eq!(lane.too_many(second(120)), Some(StreamSlot(8)));
        lane.flow.add_session(SessionNumber(1)).unwrap();
        lane.sent(
            StreamSlot(8),
            InFlight {
                session: SessionNumber(1),
                sequence: Sequence(1),
                cargo: Cargo::Kept(0),
                bytes: 10,
                sent_at: second(1),
            },
        );
        assert_eq!(lane.too_many(second(120)), None, "something is in flight");
        lane.remove_stream(StreamId(4), |_| ());
        assert_eq!(lane.too_many(second(200)), None);
        add(&mut lane, 5);
        assert_eq!(lane.too_many(second(200)), None, "another one, since now");
        lane.retire_after = None;
        assert_eq!(lane.too_many(second(300)), None, "the peer does not know how");
    }

    #[test]
    fn a_spare_stream_that_never_started_up_does_not_keep_the_window_ahead() {
        let mut lane = lane(Spread::AsNeeded);
        let mut adapt = |starts: fn(usize) -> bool| {
            let each = |slot: StreamSlot| PathState { in_startup: starts(slot.index()), ..BBR };
            lane.adapt(Nanos(1), each).in_startup
        };
        assert!(!adapt(|slot| slot > 4));
        assert!(adapt(|slot| slot == 4));
    }
}
