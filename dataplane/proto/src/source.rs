//! The flow of one lane at the source: streams, sequences, frames in flight, acks, NACKs.
//!
//! Runs on the shard that owns the lane. All tables are sized when it is built; nothing allocates
//! afterwards. A frame is in flight from [`SourceFlow::on_sent`] until exactly one of these gives
//! it back to the caller: an ack (its pages are bases now), a NACK or a dead stream (its pages are
//! to be coded anew), or the end of its session. So no page version is ever lost.
//!
//! Frames in flight form one list for each pair of stream and session, in the order of sending,
//! because that is the order in which a stream's acks arrive.

use crate::flow::FlowError;
use crate::flow::roster::Roster;
use crate::ids::{Incarnation, PageIndex, Sequence, SessionNumber, StreamId};
use crate::time::Nanos;
use crate::window::{PathReport, SendMark, Window, WindowConfig};

/// What a stream counts for before its transport has told: ten segments, TCP's first window.
const STREAM_WINDOW_FIRST: u64 = 10 * 1448;
/// The next frame counts too, so that a slow stream is not given each one that finds it empty.
const FRAME_BYTES_LEAST: u64 = 16 << 10;
/// Waits are compared in so many parts of a window.
const WAIT_UNIT: u128 = 1 << 20;

/// The sizes of a lane's tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceFlowConfig {
    /// The most streams of the lane.
    pub streams_max: usize,
    /// The most sessions at one time.
    pub sessions_max: usize,
    /// The most frames in flight.
    pub frames_max: usize,
    /// The bounds of the lane's window.
    pub window: WindowConfig,
}

/// What a frame carries, as far as its session must know when the frame comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cargo {
    /// Pages of an extent: bit `i` of the mask is page `first_page + i`.
    Extent {
        /// The first page of the extent.
        first_page: PageIndex,
        /// The pages in the frame.
        mask: u64,
    },
    /// A part of a migration stream that its source keeps under this name.
    Kept(u32),
}

/// A frame that was sent and is not yet acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// The session.
    pub session: SessionNumber,
    /// The frame's sequence, which is the version of its pages.
    pub sequence: Sequence,
    /// What it carries.
    pub cargo: Cargo,
    /// Bytes of the sealed record.
    pub bytes: u64,
    /// When it was handed to the link.
    pub sent_at: Nanos,
}

/// What an ack brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AckSummary {
    /// Frames that became acknowledged.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The round trip of the newest one.
    pub rtt: Option<Nanos>,
}

/// The end of a list.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Entry {
    frame: InFlight,
    mark: SendMark,
    next: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Session {
    /// The newest sequence that was given out.
    newest: Sequence,
    frames: usize,
}

/// The frames of one session on one stream.
#[derive(Clone, Copy, Debug)]
struct List {
    head: u32,
    tail: u32,
    sent: Sequence,
    acked: Sequence,
}

const EMPTY: List = List { head: NONE, tail: NONE, sent: Sequence(0), acked: Sequence(0) };

/// The flow of one lane at the source.
#[derive(Debug)]
pub struct SourceFlow {
    config: SourceFlowConfig,
    roster: Roster,
    /// Bytes in flight on each stream.
    stream_bytes: Vec<u64>,
    /// What each stream's transport lets be under way.
    stream_windows: Vec<u64>,
    sessions: Vec<Session>,
    /// `streams_max` rows of `sessions_max` lists.
    lists: Vec<List>,
    entries: Vec<Entry>,
    /// Head of the list of entries that were used before and are free again.
    free: u32,
    frames: usize,
    in_flight_bytes: u64,
    window: Window,
}

impl SourceFlow {
    /// An empty flow; all memory is taken here.
    ///
    /// # Panics
    /// When a size is zero or the window's bounds are not in order.
    #[must_use]
    pub fn new(config: SourceFlowConfig) -> Self {
        let SourceFlowConfig { streams_max, sessions_max, frames_max, window } = config;
        assert!(frames_max > 0 && frames_max < NONE as usize);
        Self {
            config,
            roster: Roster::new(streams_max, sessions_max),
            stream_bytes: vec![0; streams_max],
            stream_windows: vec![STREAM_WINDOW_FIRST; streams_max],
            sessions: vec![Session::default(); sessions_max],
            lists: vec![EMPTY; streams_max * sessions_max],
            entries: Vec::with_capacity(frames_max),
            free: NONE,
            frames: 0,
            in_flight_bytes: 0,
            window: Window::new(window),
        }
    }

    /// Takes a stream in, or its next incarnation after it died.
    ///
    /// # Errors
    /// The table is full, the stream is alive, or the incarnation is not newer than its last one.
    pub fn add_stream(&mut self, id: StreamId, incarnation: Incarnation) -> Result<(), FlowError> {
        self.roster.add_stream(id, incarnation)?;
        self.set_stream_window(id, 0);
        Ok(())
    }

    /// The live incarnation of a stream.
    #[must_use]
    pub fn incarnation(&self, id: StreamId) -> Option<Incarnation> {
        self.roster.live_streams().find(|(_, open, _)| *open == id).map(|(.., newest)| newest)
    }

    /// How many streams are live.
    #[must_use]
    pub fn live_streams(&self) -> usize {
        self.roster.live_streams().count()
    }

    /// Takes a session in. Its first sequence is 1.
    ///
    /// # Errors
    /// The table is full or the session is open already.
    pub fn add_session(&mut self, number: SessionNumber) -> Result<(), FlowError> {
        let slot = self.roster.add_session(number)?;
        self.sessions[slot] = Session::default();
        Ok(())
    }

    /// Drops a session and all that it has in flight. Later acks for it are
    /// [`FlowError::UnknownSession`].
    ///
    /// # Errors
    /// The session is not open.
    pub fn forget_session(&mut self, number: SessionNumber) -> Result<(), FlowError> {
        let session = self.roster.session_slot(number)?;
        for stream in 0..self.roster.streams() {
            let list = self.list_slot(stream, session);
            while self.pop(stream, session).is_some() {}
            self.lists[list] = EMPTY;
        }
        self.roster.end_session(session);
        Ok(())
    }

    /// The sequence for the session's next frame; each call gives the next one.
    ///
    /// # Errors
    /// The session is not open.
    pub fn next_sequence(&mut self, number: SessionNumber) -> Result<Sequence, FlowError> {
        let session = &mut self.sessions[self.roster.session_slot(number)?];
        session.newest = session.newest.next();
        Ok(session.newest)
    }

    /// Takes what a stream's transport lets be under way; 0: it does not say.
    pub fn set_stream_window(&mut self, stream: StreamId, window_bytes: u64) {
        let Ok(slot) = self.roster.stream_slot(stream) else { return };
        self.stream_windows[slot] =
            if window_bytes > 0 { window_bytes } else { STREAM_WINDOW_FIRST };
    }

    /// The live stream on which the next frame would arrive first, of those that `ready` accepts:
    /// it has the least in flight for what its transport lets be under way. `None` while the
    /// window is closed, the table of frames is full, or no stream is ready. The window may be
    /// exceeded by the one frame that is sent next.
    #[must_use]
    pub fn pick_stream(&self, ready: impl Fn(StreamId) -> bool) -> Option<StreamId> {
        if !self.may_send() {
            return None;
        }
        let open = self.roster.live_streams().filter(|(_, id, _)| ready(*id));
        let wait = |slot: usize| {
            let bytes = self.stream_bytes[slot] + FRAME_BYTES_LEAST;
            u128::from(bytes) * WAIT_UNIT / u128::from(self.stream_windows[slot])
        };
        open.min_by_key(|(slot, ..)| wait(*slot)).map(|(_, id, _)| id)
    }

    /// True while the window is open and there is room for one more frame.
    #[must_use]
    pub fn may_send(&self) -> bool {
        self.frames < self.config.frames_max && self.in_flight_bytes < self.window.window_bytes()
    }

    /// Notes a frame that was handed to a stream.
    ///
    /// # Panics
    /// When the stream or session is not open, the table is full, or the sequence is not newer than
    /// the stream's last one: bugs of the caller, who asked [`SourceFlow::pick_stream`] before.
    pub fn on_sent(&mut self, stream: StreamId, frame: InFlight) {
        let stream_slot = match self.roster.stream_slot(stream) {
            Ok(slot) => slot,
            Err(error) => panic!("a frame was sent on a stream that is not open: {error}"),
        };
        let session_slot = match self.roster.session_slot(frame.session) {
            Ok(slot) => slot,
            Err(error) => panic!("a frame was sent for a session that is not open: {error}"),
        };
        assert!(self.frames < self.config.frames_max, "the table of frames has room");
        let list_slot = self.list_slot(stream_slot, session_slot);
        assert!(frame.sequence > self.lists[list_slot].sent, "sequences grow on a stream");
        let mark = self.window.on_sent(frame.sent_at, self.in_flight_bytes, frame.bytes);
        let entry = self.take_entry(Entry { frame, mark, next: NONE });
        let list = &mut self.lists[list_slot];
        list.sent = frame.sequence;
        match list.tail {
            NONE => list.head = entry,
            tail => self.entries[tail as usize].next = entry,
        }
        list.tail = entry;
        self.frames += 1;
        self.in_flight_bytes += frame.bytes;
        self.stream_bytes[stream_slot] += frame.bytes;
        self.sessions[session_slot].frames += 1;
    }

    /// Takes an ack that arrived on `stream` and gives each newly acknowledged frame to `each`.
    ///
    /// # Errors
    /// Unknown stream or session, or an ack that the peer may not send.
    pub fn on_ack(
        &mut self,
        stream: StreamId,
        session: SessionNumber,
        through: Sequence,
        now: Nanos,
        mut each: impl FnMut(InFlight),
    ) -> Result<AckSummary, FlowError> {
        let stream_slot = self.roster.stream_slot(stream)?;
        let session_slot = self.roster.session_slot(session)?;
        let list_slot = self.list_slot(stream_slot, session_slot);
        let List { sent, acked, .. } = self.lists[list_slot];
        if through > sent {
            return Err(FlowError::AckBeyondSent { through, sent });
        }
        if through < acked {
            return Err(FlowError::AckBackwards { through, acked });
        }
        self.lists[list_slot].acked = through;
        let mut summary = AckSummary::default();
        let mut newest = None;
        while self.head(list_slot).is_some_and(|frame| frame.sequence <= through) {
            if let Some(entry) = self.pop(stream_slot, session_slot) {
                summary.frames += 1;
                summary.bytes += entry.frame.bytes;
                newest = Some(entry.mark);
                each(entry.frame);
            }
        }
        summary.rtt = newest.map(|mark| self.window.on_acked(now, summary.bytes, mark));
        Ok(summary)
    }

    /// Takes a NACK that arrived on `stream` and gives the frame back: its pages are to be sent
    /// again, whole.
    ///
    /// # Errors
    /// Unknown stream or session, or a frame that is not in flight there.
    pub fn on_nack(
        &mut self,
        stream: StreamId,
        session: SessionNumber,
        sequence: Sequence,
    ) -> Result<InFlight, FlowError> {
        let stream_slot = self.roster.stream_slot(stream)?;
        let session_slot = self.roster.session_slot(session)?;
        let list_slot = self.list_slot(stream_slot, session_slot);
        let mut before = NONE;
        let mut at = self.lists[list_slot].head;
        while at != NONE && self.entries[at as usize].frame.sequence < sequence {
            before = at;
            at = self.entries[at as usize].next;
        }
        if at == NONE || self.entries[at as usize].frame.sequence != sequence {
            return Err(FlowError::NackNotInFlight { sequence });
        }
        if before == NONE {
            return self
                .pop(stream_slot, session_slot)
                .map(|entry| entry.frame)
                .ok_or(FlowError::NackNotInFlight { sequence });
        }
        let entry = self.entries[at as usize];
        self.entries[before as usize].next = entry.next;
        if self.lists[list_slot].tail == at {
            self.lists[list_slot].tail = before;
        }
        self.release(stream_slot, session_slot, at);
        Ok(entry.frame)
    }

    /// Takes a stream out and gives each of its unacknowledged frames to `each`: their pages are to
    /// be coded anew and sent on other streams.
    ///
    /// # Errors
    /// The stream is not live.
    pub fn on_stream_dead(
        &mut self,
        stream: StreamId,
        mut each: impl FnMut(InFlight),
    ) -> Result<(), FlowError> {
        let stream_slot = self.roster.stream_slot(stream)?;
        for session_slot in 0..self.sessions.len() {
            while let Some(entry) = self.pop(stream_slot, session_slot) {
                each(entry.frame);
            }
            let list_slot = self.list_slot(stream_slot, session_slot);
            self.lists[list_slot] = EMPTY;
        }
        assert!(self.stream_bytes[stream_slot] == 0, "a dead stream has nothing in flight");
        self.roster.end_stream(stream_slot);
        Ok(())
    }

    /// Bytes in flight on all streams.
    #[must_use]
    pub const fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }

    /// Bytes in flight on one stream; zero for a stream that is not there.
    #[must_use]
    pub fn stream_in_flight_bytes(&self, id: StreamId) -> u64 {
        self.roster.stream_slot(id).map_or(0, |slot| self.stream_bytes[slot])
    }

    /// Frames in flight on all streams.
    #[must_use]
    pub const fn in_flight_frames(&self) -> usize {
        self.frames
    }

    /// True when the session has nothing in flight (or is not open).
    #[must_use]
    pub fn is_idle(&self, number: SessionNumber) -> bool {
        self.roster.session_slot(number).map_or(true, |slot| self.sessions[slot].frames == 0)
    }

    /// What is in flight beyond one bandwidth-delay product.
    #[must_use]
    pub fn backlog_bytes(&self) -> u64 {
        self.window.backlog_bytes(self.in_flight_bytes)
    }

    /// Takes what the lane's streams say of the path.
    pub fn set_path(&mut self, path: PathReport) {
        self.window.set_path(path);
    }

    /// The lane's window.
    #[must_use]
    pub const fn window(&self) -> &Window {
        &self.window
    }

    const fn list_slot(&self, stream_slot: usize, session_slot: usize) -> usize {
        stream_slot * self.config.sessions_max + session_slot
    }

    fn head(&self, list_slot: usize) -> Option<InFlight> {
        self.entries.get(self.lists[list_slot].head as usize).map(|entry| entry.frame)
    }

    fn pop(&mut self, stream_slot: usize, session_slot: usize) -> Option<Entry> {
        let list_slot = self.list_slot(stream_slot, session_slot);
        let at = self.lists[list_slot].head;
        let entry = *self.entries.get(at as usize)?;
        self.lists[list_slot].head = entry.next;
        if entry.next == NONE {
            self.lists[list_slot].tail = NONE;
        }
        self.release(stream_slot, session_slot, at);
        Some(entry)
    }

    fn take_entry(&mut self, entry: Entry) -> u32 {
        let Some(slot) = self.entries.get_mut(self.free as usize) else {
            self.entries.push(entry);
            return (self.entries.len() - 1) as u32;
        };
        let at = self.free;
        self.free = slot.next;
        *slot = entry;
        at
    }

    fn release(&mut self, stream_slot: usize, session_slot: usize, at: u32) {
        let bytes = self.entries[at as usize].frame.bytes;
        self.entries[at as usize].next = self.free;
        self.free = at;
        self.frames -= 1;
        self.in_flight_bytes -= bytes;
        self.stream_bytes[stream_slot] -= bytes;
        self.sessions[session_slot].frames -= 1;
    }
}
