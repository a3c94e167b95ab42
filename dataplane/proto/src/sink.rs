//! The flow of one lane at the sink: the order of frames on each stream, and the answers that are
//! due.
//!
//! Runs on the shard that owns the lane. All tables are sized when it is built; nothing allocates
//! afterwards. For each frame with pages the caller asks [`SinkFlow::accept`] first, decodes, and
//! then says [`SinkFlow::applied`] or [`SinkFlow::refused`]. Answers go back on the stream that
//! they speak of, each NACK before any ack that covers its frame; one ack stands for all before
//! it, so the answers are bounded by the tables whatever the peer sends.

use crate::flow::FlowError;
use crate::flow::roster::Roster;
use crate::ids::{Incarnation, Sequence, SessionNumber, StreamId};
use crate::wire::frame::{Frame, NackReason};
use std::collections::VecDeque;

/// The sizes of a lane's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SinkFlowConfig {
    /// The most streams of the lane.
    pub streams_max: usize,
    /// The most sessions at one time.
    pub sessions_max: usize,
    /// The most NACKs that wait to be sent.
    pub nacks_max: usize,
}

/// One session on one stream.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// The newest frame taken in.
    accepted: Sequence,
    /// The newest frame applied or refused, with all before it.
    settled: Sequence,
    /// What the last ack said.
    acked: Sequence,
}

#[derive(Clone, Copy, Debug)]
struct Nack {
    stream: StreamId,
    session: SessionNumber,
    sequence: Sequence,
    reason: NackReason,
}

/// The flow of one lane at the sink.
#[derive(Debug)]
pub struct SinkFlow {
    config: SinkFlowConfig,
    roster: Roster,
    /// `streams_max` rows of `sessions_max` places.
    places: Vec<Place>,
    nacks: VecDeque<Nack>,
}

impl SinkFlow {
    /// An empty flow; all memory is taken here.
    ///
    /// # Panics
    /// When a size is zero.
    #[must_use]
    pub fn new(config: SinkFlowConfig) -> Self {
        let SinkFlowConfig { streams_max, sessions_max, nacks_max } = config;
        assert!(nacks_max > 0);
        Self {
            config,
            roster: Roster::new(streams_max, sessions_max),
            places: vec![Place::default(); streams_max * sessions_max],
            nacks: VecDeque::with_capacity(nacks_max),
        }
    }

    /// Takes a stream in, or its next incarnation after it died.
    ///
    /// # Errors
    /// The table is full, the stream is alive, or the incarnation is not newer than its last one.
    pub fn add_stream(&mut self, id: StreamId, incarnation: Incarnation) -> Result<(), FlowError> {
        self.roster.add_stream(id, incarnation)
    }

    /// Takes a dead stream out; its answers have nobody to read them.
    ///
    /// # Errors
    /// The stream is not live.
    pub fn remove_stream(&mut self, id: StreamId) -> Result<(), FlowError> {
        let slot = self.roster.stream_slot(id)?;
        self.roster.end_stream(slot);
        let row = slot * self.config.sessions_max;
        self.places[row..row + self.config.sessions_max].fill(Place::default());
        self.nacks.retain(|nack| nack.stream != id);
        Ok(())
    }

    /// Takes a session in.
    ///
    /// # Errors
    /// The table is full or the session is open already.
    pub fn add_session(&mut self, number: SessionNumber) -> Result<(), FlowError> {
        self.roster.add_session(number).map(|_| ())
    }

    /// Drops a session with its answers. Later frames of it are [`FlowError::UnknownSession`].
    ///
    /// # Errors
    /// The session is not open.
    pub fn forget_session(&mut self, number: SessionNumber) -> Result<(), FlowError> {
        let slot = self.roster.session_slot(number)?;
        self.roster.end_session(slot);
        let places = self.places.iter_mut().skip(slot).step_by(self.config.sessions_max);
        places.for_each(|place| *place = Place::default());
        self.nacks.retain(|nack| nack.session != number);
        Ok(())
    }

    /// Checks that a frame with pages is the next one on its stream. To be called before its
    /// payload is looked at.
    ///
    /// # Errors
    /// Unknown stream or session, or a sequence that does not grow.
    pub fn accept(
        &mut self,
        stream: StreamId,
        session: SessionNumber,
        sequence: Sequence,
    ) -> Result<(), FlowError> {
        let place = self.place(stream, session)?;
        let last = self.places[place].accepted;
        if sequence <= last {
            return Err(FlowError::OutOfOrder { sequence, last });
        }
        self.places[place].accepted = sequence;
        Ok(())
    }

    /// The frame is decoded, hash-checked and in the region: an ack is due.
    ///
    /// # Errors
    /// The stream died or the session ended since; nothing is due then.
    ///
    /// # Panics
    /// When frames of one stream are settled out of order.
    pub fn applied(
        &mut self,
        stream: StreamId,
        session: SessionNumber,
        sequence: Sequence,
    ) -> Result<(), FlowError> {
        let place = self.place(stream, session)?;
        let place = &mut self.places[place];
        assert!(sequence > place.settled && sequence <= place.accepted, "frames settle in order");
        place.settled = sequence;
        Ok(())
    }

    /// The frame can't be applied: a NACK is due.
    ///
    /// # Errors
    /// The stream died or the session ended since, or too many NACKs wait already.
    ///
    /// # Panics
    /// When frames of one stream are settled out of order.
    pub fn refused(
        &mut self,
        stream: StreamId,
        session: SessionNumber,
        sequence: Sequence,
        reason: NackReason,
    ) -> Result<(), FlowError> {
        let nacks_max = self.config.nacks_max;
        if self.nacks.len() == nacks_max {
            return Err(FlowError::NacksFull { nacks_max });
        }
        self.applied(stream, session, sequence)?;
        self.nacks.push_back(Nack { stream, session, sequence, reason });
        Ok(())
    }

    /// The next answer due on a stream; `None` when all are taken. What was taken must be sent.
    pub fn next_due(&mut self, stream: StreamId) -> Option<Frame<'static>> {
        let slot = self.roster.stream_slot(stream).ok()?;
        if let Some(at) = self.nacks.iter().position(|nack| nack.stream == stream) {
            let Nack { session, sequence, reason, .. } = self.nacks.remove(at)?;
            return Some(Frame::Nack { session, sequence, reason });
        }
        let row = slot * self.config.sessions_max;
        let places = &mut self.places[row..row + self.config.sessions_max];
        for (place, session) in places.iter_mut().zip(self.roster.sessions()) {
            if let (true, Some(session)) = (place.settled > place.acked, *session) {
                place.acked = place.settled;
                return Some(Frame::Ack { session, through: place.settled });
            }
        }
        None
    }

    fn place(&self, stream: StreamId, session: SessionNumber) -> Result<usize, FlowError> {
        let stream = self.roster.stream_slot(stream)?;
        Ok(stream * self.config.sessions_max + self.roster.session_slot(session)?)
    }
}
