//! The shard's part of a link: its streams, what is in flight on them, what is owed on them.
//!
//! Owned by the shard. A stream has two names: the slot of the transport and the number that both
//! ends know.

use super::outbox::Outbox;
use crate::link::{PathState, StreamSlot};
use crate::port::{LaneSetup, Spread, StreamPlace};
use dwcp_ffi::counters::HistogramWriter;
use dwcp_proto::ids::{Incarnation, LinkId, SessionNumber, StreamId};
use dwcp_proto::sink::{SinkFlow, SinkFlowConfig};
use dwcp_proto::source::{InFlight, SourceFlow, SourceFlowConfig};
use dwcp_proto::time::Nanos;
use dwcp_proto::window::{PathReport, WindowConfig};
use dwcp_proto::wire::version::WireVersion;

/// Frames in flight on a lane. A window of 64 MiB holds 256 full extents; small deltas are bounded
/// by this number instead: 4096 frames of 1 KiB are 4 MiB.
const FRAMES_MAX: usize = 4096;

/// NACKs that may wait: every frame in flight may be refused.
const NACKS_MAX: usize = FRAMES_MAX;

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
    /// What the peer did that its stream must end for.
    pub(super) broken: Option<&'static str>,
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
            broken: None,
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
    /// So many of them carry pages, the eldest.
    active: usize,
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
            active: match setup.spread {
                Spread::All => usize::MAX,
                Spread::AsNeeded => 1,
            },
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
        self.slots().take(self.active)
    }

    /// Takes how the streams that carry pages fare: one that can't fill the path gets help. Returns
    /// what they say of the path together.
    pub(super) fn adapt(&mut self, each: impl Fn(StreamSlot) -> PathState) -> PathReport {
        if !self.active().all(|slot| each(slot).fills_alone) {
            self.active = usize::MAX;
        } else if self.active < self.streams.len()
            && self.active().any(|slot| each(slot).is_buffer_bound)
        {
            self.active += 1;
        }
        let states = || self.active().map(&each);
        let is_known = states().all(|it| it.rate > 0);
        let path = PathReport {
            in_startup: states().any(|it| it.in_startup),
            rate: if is_known { states().map(|it| it.rate).sum() } else { 0 },
        };
        self.flow.set_path(path);
        path
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

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_proto::ids::LaneId;

    const BBR: PathState =
        PathState { in_startup: false, rate: 1000, fills_alone: true, is_buffer_bound: false };

    /// A lane with streams 0 to 3 in slots 4 to 7.
    fn lane(spread: Spread) -> Lane {
        let setup =
            LaneSetup { link: LinkId(0), lane: LaneId(0), window_bytes_max: 1 << 20, spread };
        let mut lane = Lane::new(&setup, 4, 1);
        for stream in 0..4 {
            let slot = StreamSlot(stream + 4);
            assert!(lane.add_stream(slot, StreamId(stream), Incarnation(1)));
        }
        lane
    }

    fn active(lane: &Lane) -> Vec<usize> {
        lane.active().map(|slot| slot.index()).collect()
    }

    #[test]
    fn one_stream_carries_pages_until_its_buffers_hold_it_back() {
        let mut lane = lane(Spread::AsNeeded);
        assert_eq!(active(&lane), [4]);
        assert_eq!(lane.adapt(|_| BBR), PathReport { in_startup: false, rate: 1000 });
        assert_eq!(active(&lane), [4]);
        let bound = |slot: StreamSlot| PathState { is_buffer_bound: slot.index() == 4, ..BBR };
        lane.adapt(bound);
        assert_eq!(active(&lane), [4, 5]);
        assert_eq!(lane.adapt(|_| BBR).rate, 2000);
        assert_eq!(lane.adapt(|slot| PathState { rate: slot.index() as u64 - 4, ..BBR }).rate, 0);
        let spare_is_bound =
            |slot: StreamSlot| PathState { is_buffer_bound: slot.index() > 5, ..BBR };
        lane.adapt(spare_is_bound);
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
    fn all_carry_pages_where_one_does_not_fill_the_path_or_all_were_asked_for() {
        let mut lane_of_cubic = lane(Spread::AsNeeded);
        lane_of_cubic.adapt(|_| PathState::default());
        assert_eq!(active(&lane_of_cubic), [4, 5, 6, 7]);
        assert_eq!(active(&lane(Spread::All)), [4, 5, 6, 7]);
    }

    #[test]
    fn a_spare_stream_that_never_started_up_does_not_keep_the_window_ahead() {
        let mut lane = lane(Spread::AsNeeded);
        let mut adapt = |starts: fn(usize) -> bool| {
            lane.adapt(|slot| PathState { in_startup: starts(slot.index()), ..BBR }).in_startup
        };
        assert!(!adapt(|slot| slot > 4));
        assert!(adapt(|slot| slot == 4));
    }
}
