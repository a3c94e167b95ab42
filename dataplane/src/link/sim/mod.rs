//! The simulated link: real records, sealed and opened by the real code, over a [`Fabric`] in
//! memory.
//!
//! For simulated worlds alone, which poll their shards themselves on one thread; it never blocks
//! and reads no clock but the world's. What it does at its border is what the TCP link does: see
//! the contract that both are tested by.

mod fabric;
mod rng;
mod stream;

pub use fabric::{Conditions, ConnectionId, Fabric, FabricFault, Side, SimClock};
pub use rng::Rng;

use crate::link::tcp::SLOT_BYTES;
use crate::link::{Link, LinkEvent, PathState, StreamSlot};
use crate::port::{StreamEnd, StreamSetup};
use dwcp_ffi::arena::{Arena, ArenaError, Lease};
use dwcp_ffi::poll::is_ready;
use dwcp_ffi::spsc::Full;
use dwcp_ffi::uring::{Interest, Wait};
use dwcp_proto::time::Nanos;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use stream::SimStream;

/// Sizes of a simulated link, fixed at start.
#[derive(Clone, Copy, Debug)]
pub struct SimConfig {
    /// The most streams at a time.
    pub streams_max: usize,
    /// Slots for records that are not yet on their way.
    pub send_slots: usize,
    /// Watches of local sockets at a time.
    pub watches_max: usize,
}

#[derive(Debug)]
struct Watch {
    socket: OwnedFd,
    name: u32,
    interest: Interest,
}

/// All simulated streams of one shard.
#[derive(Debug)]
pub struct SimLink {
    fabric: Fabric,
    clock: SimClock,
    side: Side,
    config: SimConfig,
    streams: Vec<Option<SimStream>>,
    watches: Vec<Watch>,
    /// How each stream fared when it was sampled last.
    path: PathState,
    arena: Arena,
}

impl SimLink {
    /// A link without streams for a host on `side`.
    ///
    /// # Errors
    /// The memory can't be had.
    pub fn new(
        config: SimConfig,
        fabric: Fabric,
        clock: SimClock,
        side: Side,
    ) -> Result<Self, ArenaError> {
        Ok(Self {
            fabric,
            clock,
            side,
            config,
            streams: (0..config.streams_max).map(|_| None).collect(),
            watches: Vec::with_capacity(config.watches_max),
            path: PathState::default(),
            arena: Arena::new(SLOT_BYTES, config.send_slots, false)?,
        })
    }

    /// Reports watches that are over, and sockets that are ready.
    fn look(&mut self, on_event: &mut impl FnMut(LinkEvent<'_>)) -> bool {
        let mut worked = false;
        let mut at = 0;
        while at < self.watches.len() {
            let watch = &self.watches[at];
            if is_ready(watch.socket.as_fd(), watch.interest) {
                let Watch { name, .. } = self.watches.remove(at);
                on_event(LinkEvent::Ready { name });
                worked = true;
            } else {
                at += 1;
            }
        }
        worked
    }
}

impl Link for SimLink {
    type Clock = SimClock;

    fn clock(&self) -> SimClock {
        self.clock.clone()
    }

    fn add_stream(&mut self, setup: StreamSetup) -> Result<StreamSlot, StreamEnd> {
        let Some(at) = self.streams.iter().position(Option::is_none) else {
            return Err(StreamEnd::NoRoom);
        };
        let Some(connection) = self.fabric.claim(setup.socket.as_raw_fd(), self.side) else {
            return Err(StreamEnd::NoRoom);
        };
        let mut stream = SimStream::new(setup, connection, self.fabric.clone(), self.side);
        stream.pump();
        self.streams[at] = Some(stream);
        Ok(StreamSlot(at as u16))
    }

    fn close_stream(&mut self, stream: StreamSlot, cause: StreamEnd) {
        if let Some(open) = &mut self.streams[stream.index()] {
            open.fail(cause);
        }
    }

    fn lease(&mut self) -> Option<Lease> {
        self.arena.lease()
    }

    fn can_post(&self, stream: StreamSlot) -> bool {
        self.streams[stream.index()].as_ref().is_some_and(SimStream::can_post)
    }

    fn post(
        &mut self,
        stream: StreamSlot,
        lease: Lease,
        plain_bytes: usize,
    ) -> Result<usize, Full<Lease>> {
        let Some(open) = &mut self.streams[stream.index()] else { return Err(Full(lease)) };
        let sealed = open.post(lease, plain_bytes)?;
        open.pump();
        Ok(sealed)
    }

    fn watch(&mut self, socket: BorrowedFd<'_>, name: u32, interest: Interest) -> bool {
        if self.watches.len() == self.config.watches_max {
            return false;
        }
        // The owner may close its descriptor before the watch is over.
        let Ok(socket) = socket.try_clone_to_owned() else { return false };
        self.watches.push(Watch { socket, name, interest });
        true
    }

    fn poll(&mut self, _wait: Wait, mut on_event: impl FnMut(LinkEvent<'_>)) -> bool {
        let mut worked = self.look(&mut on_event);
        for (at, place) in self.streams.iter_mut().enumerate() {
            let Some(open) = place else { continue };
            let stream = StreamSlot(at as u16);
            worked |= open.receive(|plain| on_event(LinkEvent::Record { stream, plain }));
            open.pump();
            if let Some(cause) = open.ended() {
                *place = None;
                worked = true;
                on_event(LinkEvent::Down { stream, cause });
            }
        }
        worked
    }

    fn note(&mut self, stream: StreamSlot, rtt: Nanos, in_flight_bytes: u64) {
        if let Some(open) = &mut self.streams[stream.index()] {
            open.note(rtt, in_flight_bytes);
        }
    }

    fn sample(&mut self) {
        self.path = self.fabric.conditions(self.side).path;
    }

    fn curb(&mut self, _now: Nanos) {}

    fn path_state(&self, stream: StreamSlot) -> PathState {
        match self.streams[stream.index()] {
            Some(_) => self.path,
            None => PathState::default(),
        }
    }

    fn free_leases(&self) -> usize {
        self.arena.free_slots()
    }

    fn scrub(&mut self) {
        self.arena.scrub();
    }
}

impl Drop for SimLink {
    fn drop(&mut self) {
        // The end of a shard is the end of its sockets.
        self.streams.iter_mut().flatten().for_each(SimStream::close);
    }
}
