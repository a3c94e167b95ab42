//! How many streams a link's lanes want, which of its places are dialled for them, and which may
//! still come.
//!
//! Part of [`Link`], pure. A link asks for more places than it wants streams; those that nobody
//! wants stay empty.

use super::{Link, LinkOutput, LinkPhase, Place, Stream};
use dwcp_proto::ids::{LaneId, StreamId};
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::limits::STREAMS_MAX;
use dwcp_proto::wire::preface::StreamPreface;

impl Link {
    /// Dialling end, before it asks: how many streams there may be at a time later.
    pub(crate) fn reserve_places(&mut self, places: u16) {
        assert!(self.streams.is_empty(), "places are asked for once");
        self.places = places.clamp(self.first, STREAMS_MAX);
    }

    /// A lane shall have so many streams.
    pub(super) fn want(&mut self, now: Nanos, lane: LaneId, streams: u16) -> Vec<LinkOutput> {
        if let Some(wanted) = self.wanted.get_mut(usize::from(lane.0)) {
            *wanted = streams.max(1);
        }
        self.redial(now)
    }

    /// How many more streams each lane wants. One whose time to be tried again will come counts as
    /// there.
    fn missing(&self, now: Nanos) -> Vec<u16> {
        let mut missing = self.wanted.clone();
        for (id, stream) in (0..).zip(&self.streams) {
            let is_vacant = matches!(stream.place, Place::Empty { retry_at } if retry_at <= now);
            let lane = usize::from(self.lane_of(StreamId(id)).0);
            if let Some(missing) = missing.get_mut(lane).filter(|_| !is_vacant) {
                *missing = missing.saturating_sub(1);
            }
        }
        missing
    }

    /// Dials as many empty places whose time has come as streams are wanted.
    pub(super) fn redial(&mut self, now: Nanos) -> Vec<LinkOutput> {
        let (version, token) = (self.version, self.token);
        let mut outputs = Vec::new();
        if !self.dialled || matches!(self.phase, LinkPhase::Parked | LinkPhase::Resuming) {
            return outputs;
        }
        let (mut missing, lanes) = (self.missing(now), self.lanes.max(1));
        for (id, stream) in (0..).zip(&mut self.streams) {
            let Some(missing) = missing.get_mut(usize::from(id % lanes)) else { continue };
            let is_ready = matches!(stream.place, Place::Empty { retry_at } if retry_at <= now);
            if is_ready && *missing > 0 {
                *missing -= 1;
                stream.place = Place::Dialling;
                stream.incarnation = stream.incarnation.next();
                let incarnation = stream.incarnation;
                let preface = StreamPreface { version, token, stream: StreamId(id), incarnation };
                outputs.push(LinkOutput::Dial(preface));
            }
        }
        outputs
    }

    /// A stream of the lane is on its way: its connection is made, or it never came over the
    /// channel that is there.
    pub(super) fn lane_is_coming(&self, now: Nanos, lane: u16) -> bool {
        // The dialling end dials at once what it wants.
        let may_come = !self.dialled && now < self.coming_until;
        (0..)
            .zip(&self.streams)
            .any(|(id, stream)| self.lane_of(StreamId(id)).0 == lane && stream.is_coming(may_come))
    }
}

impl Stream {
    /// `may_come` holds for one that never came over the channel that is there.
    fn is_coming(&self, may_come: bool) -> bool {
        match self.place {
            Place::Empty { retry_at } => may_come && retry_at == Nanos(0),
            Place::Dialling | Place::Joined => true,
            Place::Up => false,
        }
    }
}
