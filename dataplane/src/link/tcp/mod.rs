//! The TCP link: every stream is a connected socket of the shard's one io_uring.
//!
//! Runs on the shard's thread. One send and one receive are in flight per stream, so that bytes
//! stay in order; parallelism comes from many streams. All buffers are leases of one registered
//! arena. Never blocks but in [`Link::poll`] with a wait.

mod curb;
mod stream;

use crate::link::{Link, LinkEvent, Monotonic, PathState, StreamSlot};
use crate::port::{StreamEnd, StreamSetup};
use dwcp_ffi::arena::{Arena, ArenaError, Lease};
use dwcp_ffi::poll::WakeReceiver;
use dwcp_ffi::spsc::Full;
use dwcp_ffi::uring::{Completion, Interest, Uring, UringConfig, UringError, Wait};
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::limits::RECORD_BYTES_MAX;
use std::os::fd::BorrowedFd;
use stream::TcpStream;

/// Bytes of an arena slot: one record of the largest size and the header of the next, in whole
/// kernel pages.
pub const SLOT_BYTES: usize =
    (RECORD_BYTES_MAX + dwcp_proto::wire::limits::RECORD_HEADER_BYTES).next_multiple_of(4096);

/// Slots that each stream holds: one receive buffer.
pub const SLOTS_PER_STREAM: usize = 1;

/// Sizes of a TCP link, fixed at start.
#[derive(Clone, Copy, Debug)]
pub struct TcpConfig {
    /// The most streams at a time.
    pub streams_max: usize,
    /// Slots for records in flight, besides the streams' receive buffers.
    pub send_slots: usize,
    /// Watches of local sockets at a time.
    pub watches_max: usize,
    /// Lock the arena into memory and register it with the kernel, or fail. Without it every send
    /// is a plain one.
    pub lock_memory: bool,
    /// Use SEND_ZC while the kernel reports that it does not copy.
    pub zero_copy: bool,
}

/// Why a link can't start.
#[derive(Debug, thiserror::Error)]
pub enum TcpLinkError {
    /// The arena can't be made.
    #[error("the arena of the data plane: {0}")]
    Arena(#[from] ArenaError),
    /// io_uring can't be set up.
    #[error("io_uring: {0}")]
    Uring(#[from] UringError),
}

/// All TCP streams of one shard.
#[derive(Debug)]
pub struct TcpLink {
    streams: Vec<Option<TcpStream>>,
    zero_copy: bool,
    // Dropped in this order: the ring drains its operations before the arena goes.
    ring: Uring,
    arena: Arena,
}

impl TcpLink {
    /// A link without streams.
    ///
    /// # Errors
    /// The kernel lacks io_uring or a needed operation, or memory can't be had or locked.
    pub fn new(config: TcpConfig, wake: &WakeReceiver) -> Result<Self, TcpLinkError> {
        assert!(config.streams_max <= usize::from(u16::MAX), "a stream slot is 16 bits wide");
        let slots = config.streams_max * SLOTS_PER_STREAM + config.send_slots;
        let arena = Arena::new(SLOT_BYTES, slots, config.lock_memory)?;
        let ring = Uring::new(
            UringConfig {
                sockets_max: config.streams_max as u32,
                data_buffers: 0,
                watches_max: config.watches_max as u32,
                register_arena: config.lock_memory,
                ..UringConfig::default()
            },
            &arena,
            wake,
        )?;
        Ok(Self {
            streams: (0..config.streams_max).map(|_| None).collect(),
            zero_copy: config.zero_copy,
            ring,
            arena,
        })
    }

    /// Takes note of one completion; records are looked at afterwards, when the ring is free again.
    fn complete(streams: &mut [Option<TcpStream>], completion: Completion<'_>) {
        let (Completion::Sent { socket, .. }
        | Completion::Released { socket, .. }
        | Completion::Received { socket, .. }
        | Completion::Closed { socket, .. }
        | Completion::Data { socket, .. }
        | Completion::RecvEnded { socket, .. }) = completion
        else {
            return;
        };
        let Some(stream) = &mut streams[socket.slot()] else { return };
        match completion {
            Completion::Sent { result, .. } => stream.sent(result),
            Completion::Released { copied, .. } => stream.released(copied),
            Completion::Received { lease, result, .. } => stream.received(lease, result),
            Completion::Closed { .. } => stream.closed(),
            Completion::Woken
            | Completion::Ready { .. }
            | Completion::Data { .. }
            | Completion::RecvEnded { .. } => {}
        }
    }

    /// Opens what arrived, keeps sends and receives going, and finds streams that ended.
    fn serve(&mut self, index: usize, on_event: &mut impl FnMut(LinkEvent<'_>)) {
        let Some(open) = &mut self.streams[index] else { return };
        let stream = StreamSlot(index as u16);
        open.open_records(|plain| on_event(LinkEvent::Record { stream, plain }));
        open.pump(&mut self.ring, self.zero_copy);
        if let Some(cause) = open.ended() {
            self.streams[index] = None;
            on_event(LinkEvent::Down { stream, cause });
        }
    }
}

impl Link for TcpLink {
    type Clock = Monotonic;

    fn clock(&self) -> Monotonic {
        Monotonic
    }

    fn add_stream(&mut self, setup: StreamSetup) -> Result<StreamSlot, StreamEnd> {
        let Some(lease) = self.arena.lease() else { return Err(StreamEnd::NoRoom) };
        let socket = self.ring.add_socket(setup.socket).map_err(|_| StreamEnd::NoRoom)?;
        // The ring's places are the link's slots: below `streams_max` and free again after
        // `Closed`.
        let slot = StreamSlot(socket.slot() as u16);
        let mut stream = TcpStream::new(socket, setup.place, setup.keys, setup.stats, lease);
        stream.pump(&mut self.ring, self.zero_copy);
        stream.sample(&self.ring);
        let before = self.streams[slot.index()].replace(stream);
        assert!(before.is_none(), "a slot is free before it is used again");
        Ok(slot)
    }

    fn close_stream(&mut self, stream: StreamSlot, cause: StreamEnd) {
        if let Some(open) = &mut self.streams[stream.index()] {
            open.fail(cause);
            open.pump(&mut self.ring, self.zero_copy);
        }
    }

    fn lease(&mut self) -> Option<Lease> {
        if self.free_leases() > 0 { self.arena.lease() } else { None }
    }

    fn can_post(&self, stream: StreamSlot) -> bool {
        self.streams[stream.index()].as_ref().is_some_and(TcpStream::can_post)
    }

    fn post(
        &mut self,
        stream: StreamSlot,
        lease: Lease,
        plain_bytes: usize,
    ) -> Result<usize, Full<Lease>> {
        let Some(open) = &mut self.streams[stream.index()] else { return Err(Full(lease)) };
        let sealed = open.post(lease, plain_bytes)?;
        open.pump(&mut self.ring, self.zero_copy);
        Ok(sealed)
    }

    fn watch(&mut self, socket: BorrowedFd<'_>, name: u32, interest: Interest) -> bool {
        self.ring.watch(socket, name, interest)
    }

    fn poll(&mut self, wait: Wait, mut on_event: impl FnMut(LinkEvent<'_>)) -> bool {
        let Self { streams, ring, .. } = self;
        let completions = ring.poll(wait, &mut |completion| match completion {
            Completion::Ready { name } => on_event(LinkEvent::Ready { name }),
            other => Self::complete(streams, other),
        });
        // The ring itself failing is this process's broken invariant, not a peer's doing.
        let worked = match completions {
            Ok(count) => count > 0,
            Err(error) => panic!("io_uring_enter failed: {error}"),
        };
        for index in 0..self.streams.len() {
            self.serve(index, &mut on_event);
        }
        worked
    }

    fn note(&mut self, stream: StreamSlot, rtt: Nanos, in_flight_bytes: u64) {
        if let Some(open) = &self.streams[stream.index()] {
            open.note(rtt, in_flight_bytes);
        }
    }

    fn sample(&mut self) {
        for open in self.streams.iter_mut().flatten() {
            open.sample(&self.ring);
        }
    }

    fn curb(&mut self, now: Nanos) {
        for open in self.streams.iter_mut().flatten() {
            open.curb(&self.ring, now);
        }
    }

    fn path_state(&self, stream: StreamSlot) -> PathState {
        self.streams[stream.index()].as_ref().map_or(PathState::default(), TcpStream::path_state)
    }

    fn free_leases(&self) -> usize {
        // A receive buffer for each stream that may still come stays free, whatever is in flight.
        let open = self.streams.iter().flatten().count();
        self.arena.free_slots().saturating_sub((self.streams.len() - open) * SLOTS_PER_STREAM)
    }

    fn scrub(&mut self) {
        self.arena.scrub();
    }
}

#[cfg(test)]
mod tests;
