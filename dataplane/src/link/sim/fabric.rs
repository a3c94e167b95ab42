//! The network of a simulated world: connections that keep the order of their bytes and nothing
//! else, on a clock that the world moves.
//!
//! One per world, shared by its [`SimLink`](super::SimLink)s on one thread; the world sets the
//! conditions and does the harm. Bytes of one connection arrive in order or not at all; between
//! connections nothing is ordered. It also keeps the books of keys: a key that seals two streams,
//! or one nonce twice, is written down as a [`FabricFault`].

use super::rng::Rng;
use crate::link::{Clock, PathState};
use dwcp_proto::time::Nanos;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;

/// The clock of one host of the world.
#[derive(Clone, Debug, Default)]
pub struct SimClock {
    base: Rc<Cell<Nanos>>,
    ahead: Rc<Cell<Nanos>>,
}

impl SimClock {
    /// The clock of another host of the same world.
    #[must_use]
    pub fn sibling(&self) -> Self {
        Self { base: Rc::clone(&self.base), ahead: Rc::default() }
    }

    /// Moves the world's time, on all hosts.
    ///
    /// # Panics
    /// When it would go back.
    pub fn set(&self, now: Nanos) {
        assert!(now >= self.base.get(), "the world's time never goes back");
        self.base.set(now);
    }

    /// Has this host's clock leap ahead of the world's, as after a pause of the whole machine.
    pub fn leap(&self, by: Nanos) {
        self.ahead.set(self.ahead.get() + by);
    }

    /// The world's time.
    #[must_use]
    pub fn world(&self) -> Nanos {
        self.base.get()
    }
}

impl Clock for SimClock {
    fn now(&self) -> Nanos {
        self.base.get() + self.ahead.get()
    }
}

/// One of the two hosts that a connection joins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The one that dialled.
    Near,
    /// The one that listens.
    Far,
}

impl Side {
    /// The side across.
    #[must_use]
    pub const fn across(self) -> Self {
        match self {
            Self::Near => Self::Far,
            Self::Far => Self::Near,
        }
    }

    const fn index(self) -> usize {
        match self {
            Self::Near => 0,
            Self::Far => 1,
        }
    }
}

/// How one way of the path is, for all connections.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// From a write to the earliest read.
    pub delay: Nanos,
    /// Up to so much more, drawn for each write.
    pub jitter: Nanos,
    /// How fast bytes leave.
    pub bytes_per_second: u64,
    /// What a connection takes before its reader has read: buffers and path together.
    pub capacity_bytes: usize,
    /// False in a partition: nothing arrives, nothing is lost.
    pub is_up: bool,
    /// What the transport says of itself.
    pub path: PathState,
}

impl Default for Conditions {
    fn default() -> Self {
        Self {
            delay: Nanos(0),
            jitter: Nanos(0),
            bytes_per_second: 1_000_000_000,
            capacity_bytes: 4 << 20,
            is_up: true,
            path: PathState::default(),
        }
    }
}

/// A connection's name in its fabric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(u32);

/// What must never be seen on a fabric, whatever the world does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FabricFault {
    /// One key for two openings of streams: both begin with the same nonce.
    KeyUsedTwice,
    /// A record's counter is not the next one of its key.
    NonceReused {
        /// The record's.
        counter: u32,
        /// The next one.
        expected: u32,
    },
}

#[derive(Debug)]
struct Segment {
    due: Nanos,
    bytes: Vec<u8>,
    taken: usize,
}

/// One way of one connection.
#[derive(Debug, Default)]
struct Wire {
    segments: VecDeque<Segment>,
    unread_bytes: usize,
    /// When its last byte arrives.
    last_due: Nanos,
    held_until: Nanos,
    /// The writer is done: the reader finds the end behind the last byte.
    ended: bool,
}

#[derive(Debug)]
struct Connection {
    /// The tokens that its ends are claimed by.
    tokens: [Option<RawFd>; 2],
    /// By the side that writes.
    wires: [Wire; 2],
    closed: [bool; 2],
    /// When each end finds that it is broken.
    broken_at: [Option<Nanos>; 2],
}

/// What a read brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    Bytes(usize),
    Nothing,
    Ended,
    Broken,
}

#[derive(Debug)]
struct State {
    clock: SimClock,
    rng: Rng,
    conditions: [Conditions; 2],
    /// When each way's bottleneck is free again.
    free_at: [Nanos; 2],
    connections: BTreeMap<ConnectionId, Connection>,
    next: ConnectionId,
    /// The counter that is due for each key ever used.
    keys: BTreeMap<Vec<u8>, u32>,
    fault: Option<FabricFault>,
    /// A host has something to look at: a reader made room, or a connection broke.
    news: [bool; 2],
}

/// The network of one world. Clones are handles on the same one.
#[derive(Clone, Debug)]
pub struct Fabric(Rc<RefCell<State>>);

impl Fabric {
    /// A network without connections.
    #[must_use]
    pub fn new(clock: SimClock, rng: Rng) -> Self {
        Self(Rc::new(RefCell::new(State {
            clock,
            rng,
            conditions: [Conditions::default(); 2],
            free_at: [Nanos(0); 2],
            connections: BTreeMap::new(),
            next: ConnectionId(0),
            keys: BTreeMap::new(),
            fault: None,
            news: [false; 2],
        })))
    }

    /// Sets how the way from `side` to the other one is from now on.
    pub fn set_conditions(&self, side: Side, conditions: Conditions) {
        let mut state = self.0.borrow_mut();
        state.conditions[side.index()] = conditions;
        state.news = [true; 2];
    }

    /// How the way from `side` is.
    #[must_use]
    pub fn conditions(&self, side: Side) -> Conditions {
        self.0.borrow().conditions[side.index()]
    }

    /// Makes a connection. Whoever owns a token may add it to a link of that side as its socket;
    /// a token that is dropped unused has to be told by [`Fabric::close`].
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn connect(&self) -> io::Result<(ConnectionId, OwnedFd, OwnedFd)> {
        // A token is any descriptor of its own: its number names the end while it is open.
        let (near, far) = (File::open("/dev/null")?, File::open("/dev/null")?);
        let mut state = self.0.borrow_mut();
        let id = state.next;
        state.next = ConnectionId(id.0 + 1);
        let connection = Connection {
            tokens: [Some(near.as_raw_fd()), Some(far.as_raw_fd())],
            wires: [Wire::default(), Wire::default()],
            closed: [false; 2],
            broken_at: [None; 2],
        };
        state.connections.insert(id, connection);
        Ok((id, near.into(), far.into()))
    }

    /// Breaks a connection: each end learns it at its time, and until then gets what arrives.
    pub fn cut(&self, id: ConnectionId, learnt_at: [Nanos; 2]) {
        let mut state = self.0.borrow_mut();
        let Some(connection) = state.connections.get_mut(&id) else { return };
        for (broken_at, learnt_at) in connection.broken_at.iter_mut().zip(learnt_at) {
            broken_at.get_or_insert(learnt_at);
        }
    }

    /// Holds what `side` wrote back until then.
    pub fn hold(&self, id: ConnectionId, side: Side, until: Nanos) {
        let mut state = self.0.borrow_mut();
        if let Some(connection) = state.connections.get_mut(&id) {
            let wire = &mut connection.wires[side.index()];
            wire.held_until = wire.held_until.max(until);
        }
    }

    /// An end is closed, as by the end of its process.
    pub fn close(&self, id: ConnectionId, side: Side) {
        self.0.borrow_mut().close(id, side);
    }

    /// Closes the end whose token nobody will claim.
    pub fn abandon(&self, token: OwnedFd, side: Side) {
        if let Some(connection) = self.claim(token.as_raw_fd(), side) {
            self.close(connection, side);
        }
    }

    /// All connections that are not closed at both ends.
    #[must_use]
    pub fn connections(&self) -> Vec<ConnectionId> {
        self.0.borrow().connections.keys().copied().collect()
    }

    /// When the host of `side` finds something to read at the soonest, if anything is under way.
    #[must_use]
    pub fn next_due(&self, side: Side) -> Option<Nanos> {
        let state = self.0.borrow();
        if state.news[side.index()] {
            return Some(Nanos(0));
        }
        let from = side.across();
        let is_up = state.conditions[from.index()].is_up;
        let is_read =
            |it: &&Connection| !it.closed[side.index()] && it.tokens[side.index()].is_none();
        let open = state.connections.values().filter(is_read);
        let dues = open.map(|it| {
            let broken_at = it.broken_at[side.index()];
            let arrives = it.wires[from.index()].next_due().filter(|_| is_up);
            arrives.into_iter().chain(broken_at).min()
        });
        dues.flatten().min()
    }

    /// The host of `side` is about to look at everything.
    pub fn take_news(&self, side: Side) -> bool {
        std::mem::take(&mut self.0.borrow_mut().news[side.index()])
    }

    /// What was seen first that must never be.
    #[must_use]
    pub fn fault(&self) -> Option<FabricFault> {
        self.0.borrow().fault
    }

    /// The end that a token stands for; it is claimed by this.
    pub(super) fn claim(&self, token: RawFd, side: Side) -> Option<ConnectionId> {
        let mut state = self.0.borrow_mut();
        let at = side.index();
        let found = state.connections.iter_mut().find(|(_, it)| it.tokens[at] == Some(token));
        let (id, connection) = found?;
        connection.tokens[at] = None;
        Some(*id)
    }

    /// A key begins to seal.
    pub(super) fn note_key(&self, key: &[u8]) {
        let mut state = self.0.borrow_mut();
        if state.keys.insert(key.to_vec(), 0).is_some() {
            state.fault.get_or_insert(FabricFault::KeyUsedTwice);
        }
    }

    /// A key sealed a record.
    pub(super) fn note_record(&self, key: &[u8], counter: u32) {
        let mut state = self.0.borrow_mut();
        let Some(expected) = state.keys.get_mut(key) else { return };
        let due = std::mem::replace(expected, counter.wrapping_add(1));
        if due != counter {
            state.fault.get_or_insert(FabricFault::NonceReused { counter, expected: due });
        }
    }

    /// Takes as many of the bytes as the connection has room for.
    pub(super) fn write(&self, id: ConnectionId, side: Side, bytes: &[u8]) -> usize {
        self.0.borrow_mut().write(id, side, bytes)
    }

    /// Appends what arrived for `side`, up to `bytes_max`.
    pub(super) fn read(
        &self,
        id: ConnectionId,
        side: Side,
        out: &mut Vec<u8>,
        bytes_max: usize,
    ) -> Read {
        self.0.borrow_mut().read(id, side, out, bytes_max)
    }
}

impl Wire {
    fn next_due(&self) -> Option<Nanos> {
        let due = match self.segments.front() {
            Some(segment) => segment.due,
            None if self.ended => self.last_due,
            None => return None,
        };
        Some(due.max(self.held_until))
    }
}

impl State {
    fn write(&mut self, id: ConnectionId, side: Side, bytes: &[u8]) -> usize {
        let at = side.index();
        let (conditions, now) = (self.conditions[at], self.clock.world());
        let Some(connection) = self.connections.get_mut(&id) else { return 0 };
        if connection.closed != [false; 2] || connection.broken_at[at].is_some_and(|it| it <= now) {
            return 0;
        }
        let wire = &mut connection.wires[at];
        let taken = bytes.len().min(conditions.capacity_bytes.saturating_sub(wire.unread_bytes));
        if taken == 0 {
            return 0;
        }
        let sending = taken as u64 * Nanos::SECOND.0 / conditions.bytes_per_second.max(1);
        self.free_at[at] = self.free_at[at].max(now) + Nanos(sending);
        let jitter = Nanos(self.rng.below(conditions.jitter.0 + 1));
        let due = (self.free_at[at] + conditions.delay + jitter).max(wire.last_due);
        wire.last_due = due;
        wire.unread_bytes += taken;
        wire.segments.push_back(Segment { due, bytes: bytes[..taken].to_vec(), taken: 0 });
        taken
    }

    fn read(&mut self, id: ConnectionId, side: Side, out: &mut Vec<u8>, bytes_max: usize) -> Read {
        let (now, from) = (self.clock.world(), side.across().index());
        let Some(connection) = self.connections.get_mut(&id) else { return Read::Broken };
        if connection.broken_at[side.index()].is_some_and(|it| it <= now) {
            return Read::Broken;
        }
        let wire = &mut connection.wires[from];
        let is_late = wire.next_due().is_none_or(|due| due > now);
        if !self.conditions[from].is_up || is_late {
            return Read::Nothing;
        }
        let mut read = 0;
        while let Some(segment) = wire.segments.front_mut()
            && segment.due <= now
            && read < bytes_max
        {
            let left = &segment.bytes[segment.taken..];
            let count = left.len().min(bytes_max - read);
            out.extend_from_slice(&left[..count]);
            segment.taken += count;
            read += count;
            if segment.taken == segment.bytes.len() {
                wire.segments.pop_front();
            }
        }
        wire.unread_bytes -= read;
        if read > 0 {
            self.news[from] = true;
            return Read::Bytes(read);
        }
        if wire.ended && wire.segments.is_empty() { Read::Ended } else { Read::Nothing }
    }

    fn close(&mut self, id: ConnectionId, side: Side) {
        let at = side.index();
        let now = self.clock.world();
        let delay = self.conditions[at].delay;
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.closed[at] = true;
        let wire = &mut connection.wires[at];
        wire.ended = true;
        wire.last_due = wire.last_due.max(now + delay);
        if connection.closed == [true; 2] {
            self.connections.remove(&id);
        }
    }
}
