//! The streams and sessions of one lane, each with a slot that does not move.
//!
//! On the shard that owns the lane, inside of either flow, which keeps what it knows of a stream or
//! a session in tables of its own by the same slots. Sized when it is built. A dead stream keeps
//! its slot, because its next incarnation must be newer; a session's slot is free after its end.

use super::FlowError;
use crate::ids::{Incarnation, SessionNumber, StreamId};

#[derive(Clone, Copy, Debug)]
struct Stream {
    id: StreamId,
    incarnation: Incarnation,
    live: bool,
}

/// Who takes part in a lane.
#[derive(Debug)]
pub(crate) struct Roster {
    streams_max: usize,
    streams: Vec<Stream>,
    sessions: Vec<Option<SessionNumber>>,
}

impl Roster {
    /// An empty roster; all memory is taken here.
    ///
    /// # Panics
    /// When a size is zero.
    pub(crate) fn new(streams_max: usize, sessions_max: usize) -> Self {
        assert!(streams_max > 0 && sessions_max > 0);
        let streams = Vec::with_capacity(streams_max);
        Self { streams_max, streams, sessions: vec![None; sessions_max] }
    }

    /// Takes a stream in, or its next incarnation after it died.
    pub(crate) fn add_stream(
        &mut self,
        id: StreamId,
        incarnation: Incarnation,
    ) -> Result<(), FlowError> {
        if let Some(stream) = self.streams.iter_mut().find(|stream| stream.id == id) {
            if stream.live {
                return Err(FlowError::AlreadyOpen);
            }
            if incarnation <= stream.incarnation {
                let last = stream.incarnation;
                return Err(FlowError::StaleIncarnation { stream: id, incarnation, last });
            }
            *stream = Stream { id, incarnation, live: true };
            return Ok(());
        }
        let streams_max = self.streams_max;
        if self.streams.len() == streams_max {
            return Err(FlowError::StreamsFull { streams_max });
        }
        self.streams.push(Stream { id, incarnation, live: true });
        Ok(())
    }

    /// Marks the stream of a slot as dead.
    pub(crate) fn end_stream(&mut self, slot: usize) {
        self.streams[slot].live = false;
    }

    /// Takes a session in and returns its slot.
    pub(crate) fn add_session(&mut self, number: SessionNumber) -> Result<usize, FlowError> {
        if self.session_slot(number).is_ok() {
            return Err(FlowError::AlreadyOpen);
        }
        let sessions_max = self.sessions.len();
        let free = self.sessions.iter().position(Option::is_none);
        let slot = free.ok_or(FlowError::SessionsFull { sessions_max })?;
        self.sessions[slot] = Some(number);
        Ok(slot)
    }

    /// Frees a session's slot.
    pub(crate) fn end_session(&mut self, slot: usize) {
        self.sessions[slot] = None;
    }

    /// The slot of a live stream.
    pub(crate) fn stream_slot(&self, id: StreamId) -> Result<usize, FlowError> {
        let live = |stream: &Stream| stream.id == id && stream.live;
        self.streams.iter().position(live).ok_or(FlowError::UnknownStream { stream: id })
    }

    /// The slot of an open session.
    pub(crate) fn session_slot(&self, number: SessionNumber) -> Result<usize, FlowError> {
        let open = |slot: &Option<SessionNumber>| *slot == Some(number);
        self.sessions.iter().position(open).ok_or(FlowError::UnknownSession { session: number })
    }

    /// The live streams with their slots.
    pub(crate) fn live_streams(&self) -> impl Iterator<Item = (usize, StreamId, Incarnation)> {
        let all = self.streams.iter().enumerate();
        all.filter(|(_, stream)| stream.live).map(|(slot, s)| (slot, s.id, s.incarnation))
    }

    /// Slots of streams that are or were in use.
    pub(crate) fn streams(&self) -> usize {
        self.streams.len()
    }

    /// All sessions' slots, open or not.
    pub(crate) fn sessions(&self) -> &[Option<SessionNumber>] {
        &self.sessions
    }
}
