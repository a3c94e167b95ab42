//! What a shard needs of a transport: leases to fill, records to post, records to read.
//!
//! A link carries sealed records over streams, each of them in order and reliable while it lives.
//! It knows nothing of sessions. Static dispatch; capabilities are data. One value per shard, used
//! on the shard's thread alone.

pub mod sim;
pub mod tcp;

use crate::port::{StreamEnd, StreamSetup};
use dwcp_ffi::arena::Lease;
use dwcp_ffi::spsc::Full;
use dwcp_ffi::sys::monotonic_now;
use dwcp_ffi::uring::{Interest, Wait};
use dwcp_proto::time::Nanos;
use std::fmt::Debug;
use std::os::fd::BorrowedFd;

/// A stream's place in its link's fixed table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamSlot(pub u16);

impl StreamSlot {
    /// The place as an index.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// What a link reports while it is polled.
#[derive(Debug)]
pub enum LinkEvent<'a> {
    /// A record arrived and was opened.
    Record {
        /// The stream.
        stream: StreamSlot,
        /// Its plaintext: whole frames.
        plain: &'a [u8],
    },
    /// The stream is gone; its slot may be used again.
    Down {
        /// The stream.
        stream: StreamSlot,
        /// Why.
        cause: StreamEnd,
    },
    /// What was watched is ready, or its watch ended.
    Ready {
        /// What the watch was named.
        name: u32,
    },
}

/// How a stream fared when its transport was asked last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathState {
    /// The transport was still looking for the path's rate. To find it, it has to be given more
    /// than it sends.
    pub in_startup: bool,
    /// The path's rate as the transport takes it, in bytes per second; 0: it does not say.
    pub rate: u64,
    /// The path's round trip as the transport takes it, which looks for it itself again and again;
    /// 0: it does not say.
    pub rtt_path: Nanos,
    /// The transport finds the path's rate whatever is lost: one stream fills the path.
    pub fills_alone: bool,
    /// Since the time before, a buffer at either end was mostly what held it back.
    pub is_buffer_bound: bool,
    /// Bytes that the peer's kernel acknowledged since the time before.
    pub acked_bytes: u64,
    /// Bytes that were sent again since the time before.
    pub resent_bytes: u64,
    /// What the transport lets be under way; 0: it does not say.
    pub window_bytes: u64,
    /// The smoothed round trip, less what it varies by: what is longer than the least one is a
    /// queue.
    pub rtt: Nanos,
    /// The least round trip of the last minutes.
    pub rtt_least: Nanos,
}

/// Where a shard reads the time: its transport's clock, since a simulated fabric has its own.
pub trait Clock: Clone + Debug {
    /// The time since an epoch that stays the same while the shard lives. Never goes back.
    fn now(&self) -> Nanos;
}

/// The machine's monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct Monotonic;

impl Clock for Monotonic {
    fn now(&self) -> Nanos {
        Nanos(monotonic_now())
    }
}

/// A transport as a shard sees it.
pub trait Link {
    /// The clock of all that the transport carries.
    type Clock: Clock;

    /// A handle on that clock, asked for once.
    fn clock(&self) -> Self::Clock;

    /// Takes over a connected stream.
    ///
    /// # Errors
    /// The table is full, no memory is left for it, or the kernel refuses the socket.
    fn add_stream(&mut self, setup: StreamSetup) -> Result<StreamSlot, StreamEnd>;

    /// Closes a stream; [`LinkEvent::Down`] follows with `cause`.
    fn close_stream(&mut self, stream: StreamSlot, cause: StreamEnd);

    /// Memory for one record, registered with the transport; `None` while all is in flight.
    fn lease(&mut self) -> Option<Lease>;

    /// True when [`Link::post`] would take a record for this stream.
    fn can_post(&self, stream: StreamSlot) -> bool;

    /// Seals the first `plain_bytes` after the record header in `lease` and sends them. The
    /// operation owns the lease until the transport is done with it. Returns the sealed length.
    ///
    /// # Errors
    /// The stream's queue is full or the stream is gone: the lease comes back.
    fn post(
        &mut self,
        stream: StreamSlot,
        lease: Lease,
        plain_bytes: usize,
    ) -> Result<usize, Full<Lease>>;

    /// Watches a local socket once, beside the streams; [`LinkEvent::Ready`] follows. The socket
    /// stays open until the next poll; its owner shuts it down before closing it, which ends the
    /// watch. False when the transport can't take it now.
    fn watch(&mut self, socket: BorrowedFd<'_>, name: u32, interest: Interest) -> bool;

    /// Moves data both ways and reports, for at most a bounded number of records. Returns true when
    /// anything happened.
    fn poll(&mut self, wait: Wait, on_event: impl FnMut(LinkEvent<'_>)) -> bool;

    /// Shows a stream's newest round trip and what is in flight on it in its counters.
    fn note(&mut self, stream: StreamSlot, rtt: Nanos, in_flight_bytes: u64);

    /// Asks the transport how each stream fares and shows it in its counters: a system call each,
    /// for a few times a second.
    fn sample(&mut self);

    /// Keeps streams that look for the path's rate from overrunning it: some system calls for each
    /// of them, some tens of times a second.
    fn curb(&mut self, now: Nanos);

    /// How a stream fared when [`Link::sample`] asked last.
    fn path_state(&self, stream: StreamSlot) -> PathState;

    /// How many leases are free.
    fn free_leases(&self) -> usize;

    /// Zeroes memory that nobody holds, between sessions.
    fn scrub(&mut self);
}

#[cfg(test)]
mod contract;
