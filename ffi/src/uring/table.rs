//! The two tables of a ring: operations in the kernel's hands, and sockets.
//!
//! Both have a fixed size from the start. An operation owns its lease from the moment it is queued
//! until the completion after which the kernel does not touch the memory any more; that is the
//! invariant on which every buffer handed to the kernel rests. Places are reused, so names carry a
//! generation, and a stale name is caught.

use crate::arena::Lease;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// An operation that the kernel holds.
pub(super) enum Op {
    /// A send whose bytes may still move. `zero_copy` tells what may come after.
    Send { socket: u32, lease: Lease },
    /// A zero-copy send that is done, whose memory the network stack still reads.
    Notice { socket: u32, lease: Lease },
    /// A receive into a lease.
    Receive { socket: u32, lease: Lease },
    /// A receive into provided buffers that goes on until it ends.
    Multishot { socket: u32 },
    /// The poll of the wake-up descriptor.
    Wake,
    /// The poll of a descriptor of somebody else.
    Watch { name: u32 },
}

/// A place of the table of operations.
struct Place {
    generation: u32,
    op: Option<Op>,
}

/// All operations in flight.
pub(super) struct Ops {
    places: Vec<Place>,
    free: Vec<u32>,
}

impl Ops {
    /// A table for at most `capacity` operations.
    pub(super) fn new(capacity: u32) -> Self {
        let places = (0..capacity).map(|_| Place { generation: 0, op: None }).collect();
        Self { places, free: (0..capacity).rev().collect() }
    }

    /// How many operations are in flight.
    pub(super) fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Takes an operation in and names it. The table holds every lease, every multishot receive,
    /// every watch and the wake-up at once, so it can't be full.
    pub(super) fn insert(&mut self, op: Op) -> u64 {
        let Some(index) = self.free.pop() else {
            panic!("more operations than leases, sockets and watches")
        };
        let place = &mut self.places[index as usize];
        place.op = Some(op);
        u64::from(place.generation) << 32 | u64::from(index)
    }

    /// Takes an operation out: its name is void from now on.
    pub(super) fn remove(&mut self, name: u64) -> Op {
        let index = name as u32;
        let place = &mut self.places[index as usize];
        assert!(
            u64::from(place.generation) == name >> 32,
            "a completion of an operation long gone"
        );
        let Some(op) = place.op.take() else { panic!("a completion of no operation") };
        place.generation = place.generation.wrapping_add(1);
        self.free.push(index);
        op
    }

    /// An operation that goes on under its name.
    pub(super) fn get(&self, name: u64) -> &Op {
        let place = &self.places[name as u32 as usize];
        assert!(
            u64::from(place.generation) == name >> 32,
            "a completion of an operation long gone"
        );
        let Some(op) = &place.op else { panic!("a completion of no operation") };
        op
    }

    /// Turns a send into the wait for its notification, under the same name.
    pub(super) fn await_notice(&mut self, name: u64) {
        let place = &mut self.places[name as u32 as usize];
        place.op = match place.op.take() {
            Some(Op::Send { socket, lease }) => Some(Op::Notice { socket, lease }),
            _ => panic!("a notification of something that is no send"),
        };
    }

    /// Gives up every operation without ever reusing its memory: for a kernel that does not let go.
    pub(super) fn leak(&mut self) {
        for place in &mut self.places {
            std::mem::forget(place.op.take());
        }
    }
}

/// Whether a socket receives into provided buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Multishot {
    /// No.
    Off,
    /// The kernel has the operation.
    Armed,
    /// The operation must be queued (again) as soon as there is room.
    Wanted,
}

/// A socket and what is in flight on it.
pub(super) struct Socket {
    pub(super) fd: OwnedFd,
    pub(super) sending: bool,
    pub(super) receiving: bool,
    pub(super) multishot: Multishot,
    /// Zero-copy sends whose memory is not released yet.
    pub(super) notices: u32,
    pub(super) closing: bool,
}

impl Socket {
    /// True when the kernel holds no operation on it.
    pub(super) fn is_idle(&self) -> bool {
        let armed = self.multishot == Multishot::Armed;
        !self.sending && !self.receiving && !armed && self.notices == 0
    }

    /// True when the connection holds memory of ours, so that only a reset makes it let go soon.
    pub(super) fn holds_memory(&self) -> bool {
        self.sending || self.notices > 0
    }
}

/// A socket's name in its ring. It ends with [`Completion::Closed`](super::Completion::Closed).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketIndex {
    slot: u32,
    generation: u32,
}

impl SocketIndex {
    /// The place in the ring's table: below `sockets_max`, unique among open sockets, for callers
    /// that keep tables of their own.
    #[must_use]
    pub fn slot(self) -> usize {
        self.slot as usize
    }
}

/// All sockets of a ring.
pub(super) struct Sockets {
    places: Vec<(u32, Option<Socket>)>,
}

impl Sockets {
    /// A table of `capacity` empty places.
    pub(super) fn new(capacity: u32) -> Self {
        Self { places: (0..capacity).map(|_| (0, None)).collect() }
    }

    /// The first empty place.
    pub(super) fn vacant(&self) -> Option<u32> {
        self.places.iter().position(|(_, socket)| socket.is_none()).map(|slot| slot as u32)
    }

    /// Fills an empty place.
    pub(super) fn insert(&mut self, slot: u32, fd: OwnedFd) -> SocketIndex {
        let multishot = Multishot::Off;
        let (sending, receiving, closing) = (false, false, false);
        let socket = Socket { fd, sending, receiving, multishot, notices: 0, closing };
        let (_, place) = &mut self.places[slot as usize];
        assert!(place.replace(socket).is_none(), "the place was taken");
        self.name(slot)
    }

    /// The socket's full name.
    pub(super) fn name(&self, slot: u32) -> SocketIndex {
        SocketIndex { slot, generation: self.places[slot as usize].0 }
    }

    /// The place of a name that must be alive.
    pub(super) fn slot(&self, index: SocketIndex) -> u32 {
        let (generation, socket) = &self.places[index.slot as usize];
        assert!(socket.is_some() && *generation == index.generation, "a socket that was closed");
        index.slot
    }

    /// A socket that must be there: something of it is in flight, or its name was just checked.
    pub(super) fn at(&mut self, slot: u32) -> &mut Socket {
        let Some(socket) = &mut self.places[slot as usize].1 else { panic!("no socket {slot}") };
        socket
    }

    /// The descriptor of a socket that must be there.
    pub(super) fn fd(&self, slot: u32) -> BorrowedFd<'_> {
        let Some(socket) = &self.places[slot as usize].1 else { panic!("no socket {slot}") };
        socket.fd.as_fd()
    }

    /// The socket at a place, if there is one.
    pub(super) fn find(&self, slot: u32) -> Option<&Socket> {
        self.places[slot as usize].1.as_ref()
    }

    /// Every place.
    pub(super) fn slots(&self) -> Range<u32> {
        0..self.places.len() as u32
    }

    /// Empties a place and ends the name.
    pub(super) fn remove(&mut self, slot: u32) {
        let (generation, socket) = &mut self.places[slot as usize];
        let gone = socket.take();
        assert!(gone.is_some_and(|socket| socket.is_idle()), "a socket with operations in flight");
        *generation = generation.wrapping_add(1);
    }
}
