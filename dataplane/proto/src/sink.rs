//! The flow of one lane at the sink: the order of frames on each stream, and the answers that are
//! due.
//!
//! Runs on the shard that owns the lane. All tables are sized when it is built; nothing allocates
//! afterwards. For each frame with pages the caller asks [`SinkFlow::accept`] first, decodes, and
//! then says [`SinkFlow::applied`] or [`SinkFlow::refused`]. Answers go back on the stream that
//! they speak of, each NACK before any ack that covers its frame; one ack stands for all before
//! it, so the answers are bounded by the tables whatever the peer sends.

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

/// What can't be done, or what the peer may not send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SinkFlowError {
    /// The stream is not one of this lane's live ones.
    #[error("stream {stream} is not open on this lane")]
    UnknownStream {
        /// The stream.
        stream: StreamId,
    },
    /// The session is not known (any more): the frame is dropped and counted.
    #[error("session {session} is not open on this lane")]
    UnknownSession {
        /// The session.
        session: SessionNumber,
    },
    /// The lane's table of streams is full.
    #[error("the lane has {streams_max} streams already")]
    StreamsFull {
        /// The table's size.
        streams_max: usize,
    },
    /// The lane's table of sessions is full.
    #[error("the lane has {sessions_max} sessions already")]
    SessionsFull {
        /// The table's size.
        sessions_max: usize,
    },
    /// The stream or session is open already.
    #[error("it is open on this lane already")]
    AlreadyOpen,
    /// An incarnation that is not newer than the stream's last one.
    #[error("incarnation {incarnation} of stream {stream} is not newer than {last}")]
    StaleIncarnation {
        /// The stream.
        stream: StreamId,
        /// The refused incarnation.
        incarnation: Incarnation,
        /// The stream's last one.
        last: Incarnation,
    },
    /// A frame that is not newer than the stream's last one.
    #[error("frame {sequence} follows frame {last} on one stream")]
    OutOfOrder {
        /// The frame.
        sequence: Sequence,
        /// The newest one before.
        last: Sequence,
    },
    /// The peer does not read its NACKs.
    #[error("{nacks_max} NACKs wait for a peer that does not read")]
    NacksFull {
        /// The table's size.
        nacks_max: usize,
    },
}

impl SinkFlowError {
    /// The stable code of this error.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::UnknownStream { .. } => "sink_unknown_stream",
            Self::UnknownSession { .. } => "sink_unknown_session",
            Self::StreamsFull { .. } => "sink_streams_full",
            Self::SessionsFull { .. } => "sink_sessions_full",
            Self::AlreadyOpen => "sink_already_open",
            Self::StaleIncarnation { .. } => "sink_stale_incarnation",
            Self::OutOfOrder { .. } => "sink_out_of_order",
            Self::NacksFull { .. } => "sink_nacks_full",
        }
    }

    /// True when the peer broke the protocol and its stream must end.
    #[must_use]
    pub const fn is_violation(&self) -> bool {
        matches!(self, Self::OutOfOrder { .. } | Self::NacksFull { .. })
    }
}

#[derive(Clone, Copy, Debug)]
struct Stream {
    id: StreamId,
    incarnation: Incarnation,
    live: bool,
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
    streams: Vec<Stream>,
    sessions: Vec<Option<SessionNumber>>,
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
        assert!(streams_max > 0 && sessions_max > 0 && nacks_max > 0);
        Self {
            config,
            streams: Vec::with_capacity(streams_max),
            sessions: vec![None; sessions_max],
            places: vec![Place::default(); streams_max * sessions_max],
            nacks: VecDeque::with_capacity(nacks_max),
        }
    }

    /// Takes a stream in, or its next incarnation after it died.
    ///
    /// # Errors
    /// The table is full, the stream is alive, or the incarnation is not newer than its last one.
    pub fn add_stream(
        &mut self,
        id: StreamId,
        incarnation: Incarnation,
    ) -> Result<(), SinkFlowError> {
        if let Some(stream) = self.streams.iter_mut().find(|stream| stream.id == id) {
            if stream.live {
                return Err(SinkFlowError::AlreadyOpen);
            }
            if incarnation <= stream.incarnation {
                let last = stream.incarnation;
                return Err(SinkFlowError::StaleIncarnation { stream: id, incarnation, last });
            }
            *stream = Stream { id, incarnation, live: true };
            return Ok(());
        }
        let streams_max = self.config.streams_max;
        if self.streams.len() == streams_max {
            return Err(SinkFlowError::StreamsFull { streams_max });
        }
        self.streams.push(Stream { id, incarnation, live: true });
        Ok(())
    }

    /// Takes a dead stream out; its answers have nobody to read them.
    ///
    /// # Errors
    /// The stream is not live.
    pub fn remove_stream(&mut self, id: StreamId) -> Result<(), SinkFlowError> {
        let slot = self.stream_slot(id)?;
        self.streams[slot].live = false;
        let row = slot * self.config.sessions_max;
        self.places[row..row + self.config.sessions_max].fill(Place::default());
        self.nacks.retain(|nack| nack.stream != id);
        Ok(())
    }

    /// Takes a session in.
    ///
    /// # Errors
    /// The table is full or the session is open already.
    pub fn add_session(&mut self, number: SessionNumber) -> Result<(), SinkFlowError> {
        if self.session_slot(number).is_ok() {
            return Err(SinkFlowError::AlreadyOpen);
        }
        let sessions_max = self.config.sessions_max;
        match self.sessions.iter_mut().find(|slot| slot.is_none()) {
            Some(slot) => *slot = Some(number),
            None => return Err(SinkFlowError::SessionsFull { sessions_max }),
        }
        Ok(())
    }

    /// Drops a session with its answers. Later frames of it are [`SinkFlowError::UnknownSession`].
    ///
    /// # Errors
    /// The session is not open.
    pub fn forget_session(&mut self, number: SessionNumber) -> Result<(), SinkFlowError> {
        let slot = self.session_slot(number)?;
        self.sessions[slot] = None;
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
    ) -> Result<(), SinkFlowError> {
        let place = self.place(stream, session)?;
        let last = self.places[place].accepted;
        if sequence <= last {
            return Err(SinkFlowError::OutOfOrder { sequence, last });
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
    ) -> Result<(), SinkFlowError> {
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
    ) -> Result<(), SinkFlowError> {
        let nacks_max = self.config.nacks_max;
        if self.nacks.len() == nacks_max {
            return Err(SinkFlowError::NacksFull { nacks_max });
        }
        self.applied(stream, session, sequence)?;
        self.nacks.push_back(Nack { stream, session, sequence, reason });
        Ok(())
    }

    /// The next answer due on a stream; `None` when all are taken. What was taken must be sent.
    pub fn next_due(&mut self, stream: StreamId) -> Option<Frame<'static>> {
        let slot = self.stream_slot(stream).ok()?;
        if let Some(at) = self.nacks.iter().position(|nack| nack.stream == stream) {
            let Nack { session, sequence, reason, .. } = self.nacks.remove(at)?;
            return Some(Frame::Nack { session, sequence, reason });
        }
        let row = slot * self.config.sessions_max;
        let places = &mut self.places[row..row + self.config.sessions_max];
        for (place, session) in places.iter_mut().zip(&self.sessions) {
            if let (true, Some(session)) = (place.settled > place.acked, *session) {
                place.acked = place.settled;
                return Some(Frame::Ack { session, through: place.settled });
            }
        }
        None
    }

    fn stream_slot(&self, id: StreamId) -> Result<usize, SinkFlowError> {
        let live = |stream: &Stream| stream.id == id && stream.live;
        self.streams.iter().position(live).ok_or(SinkFlowError::UnknownStream { stream: id })
    }

    fn session_slot(&self, number: SessionNumber) -> Result<usize, SinkFlowError> {
        let open = |slot: &Option<SessionNumber>| *slot == Some(number);
        self.sessions.iter().position(open).ok_or(SinkFlowError::UnknownSession { session: number })
    }

    fn place(&self, stream: StreamId, session: SessionNumber) -> Result<usize, SinkFlowError> {
        let stream = self.stream_slot(stream)?;
        Ok(stream * self.config.sessions_max + self.session_slot(session)?)
    }
}
