//! The shard's part of a link: its streams, what is in flight on them, what is owed on them.
//!
//! Owned by the shard. A stream has two names: the slot of the transport and the number that both
//! ends know.

use super::outbox::Outbox;
use crate::link::StreamSlot;
use crate::port::LaneSetup;
use dwcp_ffi::counters::HistogramWriter;
use dwcp_proto::ids::{Incarnation, LinkId, SessionNumber, StreamId};
use dwcp_proto::sink::{SinkFlow, SinkFlowConfig};
use dwcp_proto::source::{InFlight, SourceFlow, SourceFlowConfig};
use dwcp_proto::time::Nanos;
use dwcp_proto::window::WindowConfig;

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
    pub(super) fn new(link: LinkId, id: StreamId, frame_rtt_ns: HistogramWriter) -> Self {
        Self {
            link,
            id,
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
    streams: Vec<(StreamSlot, StreamId)>,
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

    /// The stream for the next frame, if the window is open.
    pub(super) fn pick_stream(&self, ready: impl Fn(StreamSlot) -> bool) -> Option<StreamSlot> {
        let id = self.flow.pick_stream(|id| self.slot(id).is_some_and(&ready))?;
        self.slot(id)
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
