//! A shard's ring of asynchronous socket operations.
//!
//! Made and used by one thread: the kernel is told that there is a single issuer and that
//! completions are worked off only when that thread asks, and the type is not `Send`. The
//! arena is registered once as one buffer, sockets live in a registered table. Below
//! [`Uring::poll`] nothing allocates and the loop is bounded.
//!
//! The invariant: an operation in flight owns its lease, in a table of this ring, until the kernel
//! has said that it is done with the memory. Dropping the ring cancels everything and waits for
//! that; memory that the kernel will not let go within a bound is leaked, never reused. The ring
//! shares the arena's memory, so it does not matter in which order ring, arena and leases are
//! dropped.

mod buffers;
mod drain;
mod error;
mod probe;
mod reap;
mod table;

pub use error::UringError;
pub use probe::{Feature, Probe};
pub use table::SocketIndex;

use crate::arena::{self, Arena, Lease};
use crate::poll::WakeReceiver;
use crate::spsc::Full;
use buffers::Buffers;
use error::{kernel, registration_error, setup_error};
use io_uring::{IoUring, opcode, squeue, types};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{Shutdown, shutdown};
use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;
use table::{Multishot, Op, Ops, Sockets};

/// The only group of provided buffers.
const BUFFER_GROUP: u16 = 0;

/// The arena's place in the table of registered buffers.
const ARENA_BUFFER: u16 = 0;

/// The kernel's bound on the entries of a completion queue.
const COMPLETION_ENTRIES_MAX: u32 = 1 << 16;

/// The kernel's bound on the entries of a submission queue.
const ENTRIES_MAX: u32 = 1 << 15;

/// The sizes of a ring. They come from a checked configuration: a wrong one is an assertion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UringConfig {
    /// Operations that can be queued between two polls, 1 to 32768.
    pub entries: u32,
    /// Sockets that can be open at once, 1 to 32768.
    pub sockets_max: u32,
    /// Buffers that multishot receives share: a power of two, at most 32768; 0 for none.
    pub data_buffers: u16,
    /// Bytes of each of them.
    pub data_buffer_bytes: u32,
    /// The most completions of the kernel that one poll works off.
    pub completions_max: u32,
    /// Watches of other descriptors that can be in flight at once.
    pub watches_max: u32,
    /// Register the arena, which counts as locked memory. Without it every send is a plain one.
    pub register_arena: bool,
}

impl Default for UringConfig {
    fn default() -> Self {
        Self {
            entries: 256,
            sockets_max: 64,
            data_buffers: 64,
            data_buffer_bytes: 4096,
            completions_max: 256,
            watches_max: 0,
            register_arena: true,
        }
    }
}

/// How long a poll may wait for the first completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    No,
    /// At most this long. A wake-up or any completion ends it.
    Until(Duration),
}

/// What a watch of a descriptor waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// There is something to read, or the end.
    Readable,
    /// There is room to write.
    Writable,
}

/// What happened. Errors are the kernel's error numbers.
#[derive(Debug)]
pub enum Completion<'a> {
    /// A send is over: the socket takes the next one. Fewer bytes than given mean that the
    /// connection ended or was closed in between. The lease comes back with `Released`.
    Sent {
        /// The socket.
        socket: SocketIndex,
        /// How many bytes went, or the error number.
        result: Result<usize, i32>,
    },
    /// The kernel is done with a send's memory.
    Released {
        /// The socket.
        socket: SocketIndex,
        /// The slot that was sent from.
        lease: Lease,
        /// For zero-copy sends, whether the kernel copied after all; None for plain sends and for
        /// those that failed before any byte went.
        copied: Option<bool>,
    },
    /// A receive into a lease is over; `Ok(0)` is the peer's end of stream.
    Received {
        /// The socket.
        socket: SocketIndex,
        /// The slot that was received into.
        lease: Lease,
        /// How many bytes came, or the error number.
        result: Result<usize, i32>,
    },
    /// A multishot receive brought bytes. They must be taken or copied now.
    Data {
        /// The socket.
        socket: SocketIndex,
        /// The bytes, never empty.
        bytes: &'a [u8],
    },
    /// A multishot receive is over: `Ok` when the peer ended the stream.
    RecvEnded {
        /// The socket.
        socket: SocketIndex,
        /// The end, or the error number.
        result: Result<(), i32>,
    },
    /// The socket is closed, nothing of it is in flight, and its name is void.
    Closed {
        /// The socket.
        socket: SocketIndex,
    },
    /// A watched descriptor is ready, or its watch ended with an error: try it.
    Ready {
        /// What the watch was named.
        name: u32,
    },
    /// A waker was used. Look at every input.
    Woken,
}

/// A ring and all that is in flight on it.
///
/// The order of the fields is the order in which they are dropped: the ring before all memory that
/// is registered with it.
pub struct Uring {
    ring: IoUring,
    ops: Ops,
    sockets: Sockets,
    buffers: Option<Buffers>,
    arena: Rc<arena::Shared>,
    wake: WakeReceiver,
    wake_armed: bool,
    /// A socket is closing or its multishot receive must be armed.
    attention: bool,
    zero_copy: bool,
    /// The ring is being dropped.
    draining: bool,
    config: UringConfig,
}

impl Uring {
    /// Makes a ring for the calling thread, registers the arena and the table of sockets, and
    /// watches for wake-ups.
    ///
    /// # Errors
    /// [`UringError`]: no io_uring, a part of it is missing, or a limit is too low.
    ///
    /// # Panics
    /// When a size of the configuration is out of its bounds.
    pub fn new(
        config: UringConfig,
        arena: &Arena,
        wake: &WakeReceiver,
    ) -> Result<Self, UringError> {
        let UringConfig { entries, sockets_max, data_buffers, data_buffer_bytes, .. } = config;
        let watches_max = config.watches_max;
        assert!((1..=ENTRIES_MAX).contains(&entries), "{entries} entries");
        assert!((1..=ENTRIES_MAX).contains(&sockets_max), "{sockets_max} sockets");
        assert!(config.completions_max > 0, "a poll that takes no completion");
        let probe = Probe::run()?;
        probe.require()?;
        // Every lease, a multishot receive for each socket, the watches and the wake-up may be in
        // flight at once; a zero-copy send completes twice.
        let leases = arena.slot_count() as u32;
        let operations = leases + sockets_max + watches_max + 1;
        let completions = (2 * operations + u32::from(data_buffers))
            .next_power_of_two()
            .clamp(2 * entries.next_power_of_two(), COMPLETION_ENTRIES_MAX);
        let ring = builder(completions).build(entries).map_err(|e| setup_error(e, entries))?;
        let shared = Rc::clone(arena.shared());
        if config.register_arena {
            register_arena(&ring, &shared)?;
        }
        ring.submitter()
            .register_files_sparse(sockets_max)
            .map_err(kernel("IORING_REGISTER_FILES2"))?;
        let buffers = match data_buffers {
            0 => None,
            count => Some(Buffers::register(&ring, count, data_buffer_bytes)?),
        };
        let mut uring = Self {
            ring,
            ops: Ops::new(operations),
            sockets: Sockets::new(sockets_max),
            buffers,
            arena: shared,
            wake: wake.share(),
            wake_armed: false,
            attention: false,
            zero_copy: config.register_arena && probe.zero_copy(),
            draining: false,
            config,
        };
        uring.arm_wake();
        Ok(uring)
    }

    /// True when zero-copy sends are possible and reported. Otherwise every send is a plain one.
    #[must_use]
    pub fn zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// How many operations the kernel holds, the wake-up's poll included.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.ops.len()
    }

    /// Takes over a connected stream socket.
    ///
    /// # Errors
    /// [`UringError`]: the table is full, or the kernel refused; the socket is closed then.
    pub fn add_socket(&mut self, socket: OwnedFd) -> Result<SocketIndex, UringError> {
        let sockets_max = self.config.sockets_max;
        let slot = self.sockets.vacant().ok_or(UringError::SocketsFull { sockets_max })?;
        // On a socket that is set not to block, an operation would fail at once instead of waiting.
        let flags = fcntl(&socket, FcntlArg::F_GETFL).map_err(|e| kernel("F_GETFL")(e.into()))?;
        let blocking = OFlag::from_bits_retain(flags) & !OFlag::O_NONBLOCK;
        fcntl(&socket, FcntlArg::F_SETFL(blocking)).map_err(|e| kernel("F_SETFL")(e.into()))?;
        self.register_file(slot, socket.as_raw_fd())?;
        Ok(self.sockets.insert(slot, socket))
    }

    /// The socket itself, to measure it or to set its options.
    ///
    /// # Panics
    /// When the socket was closed.
    #[must_use]
    pub fn socket_fd(&self, socket: SocketIndex) -> BorrowedFd<'_> {
        self.sockets.fd(self.sockets.slot(socket))
    }

    /// Sends a part of a lease: all of it, unless the connection ends. Zero copy, where it is
    /// possible, keeps the lease until the peer has acknowledged the bytes.
    ///
    /// # Errors
    /// The queue is full: the lease comes back. Poll, then try again.
    ///
    /// # Panics
    /// When the socket is closed, sends already, or the lease is of another arena.
    pub fn send(
        &mut self,
        socket: SocketIndex,
        lease: Lease,
        range: Range<usize>,
        zero_copy: bool,
    ) -> Result<(), Full<Lease>> {
        let slot = self.sockets.slot(socket);
        let state = self.sockets.at(slot);
        assert!(!state.closing, "a send on a socket that is being closed");
        assert!(!state.sending, "a second send in flight on one socket");
        assert!(lease.is_of(&self.arena), "a lease of another arena");
        let (address, length) = (lease.part(&range).as_ptr(), range.len() as u32);
        if !self.make_room() {
            return Err(Full(lease));
        }
        let name = self.ops.insert(Op::Send { socket: slot, lease });
        self.sockets.at(slot).sending = true;
        let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        let entry = if zero_copy && self.zero_copy {
            opcode::SendZc::new(types::Fixed(slot), address, length)
                .buf_index(Some(ARENA_BUFFER))
                .flags(flags)
                .zc_flags(probe::ZC_REPORT_USAGE)
                .build()
        } else {
            opcode::Send::new(types::Fixed(slot), address, length).flags(flags).build()
        };
        self.queue(&entry.user_data(name));
        Ok(())
    }

    /// Receives what comes next into a part of a lease.
    ///
    /// # Errors
    /// The queue is full: the lease comes back. Poll, then try again.
    ///
    /// # Panics
    /// When the socket is closed, receives already, or the lease is of another arena.
    pub fn recv(
        &mut self,
        socket: SocketIndex,
        lease: Lease,
        range: Range<usize>,
    ) -> Result<(), Full<Lease>> {
        let slot = self.sockets.slot(socket);
        let state = self.sockets.at(slot);
        assert!(!state.closing, "a receive on a socket that is being closed");
        let receives = state.receiving || state.multishot != Multishot::Off;
        assert!(!receives, "a second receive in flight on one socket");
        assert!(lease.is_of(&self.arena), "a lease of another arena");
        let (address, length) = (lease.part(&range).as_ptr(), range.len() as u32);
        if !self.make_room() {
            return Err(Full(lease));
        }
        let name = self.ops.insert(Op::Receive { socket: slot, lease });
        self.sockets.at(slot).receiving = true;
        let entry = opcode::Recv::new(types::Fixed(slot), address, length).build();
        self.queue(&entry.user_data(name));
        Ok(())
    }

    /// Receives whatever comes from now on into provided buffers, until the stream ends or the
    /// socket is closed. When the buffers run out, it goes on as soon as one is back.
    ///
    /// # Panics
    /// When the ring has no provided buffers, or the socket is closed or receives already.
    pub fn recv_multishot(&mut self, socket: SocketIndex) {
        assert!(self.buffers.is_some(), "a ring without provided buffers");
        let slot = self.sockets.slot(socket);
        let state = self.sockets.at(slot);
        assert!(!state.closing, "a receive on a socket that is being closed");
        let receives = state.receiving || state.multishot != Multishot::Off;
        assert!(!receives, "a second receive in flight on one socket");
        state.multishot = Multishot::Wanted;
        self.arm_multishot(slot);
    }

    /// Watches a descriptor that is not the ring's, once: [`Completion::Ready`] with this name
    /// follows. The kernel keeps the open file until then, so an owner who closes the descriptor
    /// shuts the socket down first, which ends the watch. False when the queue is full.
    ///
    /// The descriptor must stay open until the next poll. If it does not, the watch may be of
    /// whatever has its number then, or report at once: a wrong report, never wrong memory.
    ///
    /// # Panics
    /// When more watches are in flight than the configuration allows.
    pub fn watch(&mut self, fd: BorrowedFd<'_>, name: u32, interest: Interest) -> bool {
        if !self.make_room() {
            return false;
        }
        let events = match interest {
            Interest::Readable => libc::POLLIN,
            Interest::Writable => libc::POLLOUT,
        };
        let entry = opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), events as u32).build();
        let operation = self.ops.insert(Op::Watch { name });
        self.queue(&entry.user_data(operation));
        true
    }

    /// Ends the sending direction: the peer sees the end of the stream after all that was sent.
    ///
    /// # Errors
    /// The connection is gone already.
    ///
    /// # Panics
    /// When the socket was closed.
    pub fn shutdown_socket(&mut self, socket: SocketIndex) -> io::Result<()> {
        let slot = self.sockets.slot(socket);
        Ok(shutdown(self.sockets.at(slot).fd.as_raw_fd(), Shutdown::Write)?)
    }

    /// Closes a socket: what is in flight is cancelled and completes with an error, then `Closed`
    /// comes. A connection that holds memory of ours, since a send or the release of one is
    /// outstanding, is reset. For an orderly end, shut down first and close after all is released.
    ///
    /// # Panics
    /// When the socket was closed before.
    pub fn close(&mut self, socket: SocketIndex) {
        let slot = self.sockets.slot(socket);
        let state = self.sockets.at(slot);
        assert!(!state.closing, "a socket closed twice");
        state.closing = true;
        self.attention = true;
        self.cancel_socket(slot);
    }

    /// Puts a socket into, or with -1 out of, the kernel's table.
    fn register_file(&self, slot: u32, raw: i32) -> Result<(), UringError> {
        let updated = self.ring.submitter().register_files_update(slot, &[raw]);
        updated.map(drop).map_err(kernel("IORING_REGISTER_FILES_UPDATE"))
    }

    /// Queues the poll of the wake-up descriptor; false when the queue is full.
    fn arm_wake(&mut self) -> bool {
        if !self.make_room() {
            return false;
        }
        let fd = types::Fd(self.wake.as_fd().as_raw_fd());
        let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).build();
        let name = self.ops.insert(Op::Wake);
        self.wake_armed = true;
        self.queue(&entry.user_data(name));
        true
    }

    /// Queues a wanted multishot receive; when the queue is full, the next poll does.
    fn arm_multishot(&mut self, slot: u32) {
        if !self.make_room() {
            self.attention = true;
            return;
        }
        let name = self.ops.insert(Op::Multishot { socket: slot });
        self.sockets.at(slot).multishot = Multishot::Armed;
        let entry = opcode::RecvMulti::new(types::Fixed(slot), BUFFER_GROUP).build();
        self.queue(&entry.user_data(name));
    }

    /// Makes sure that one entry fits, submitting what is queued when it must.
    fn make_room(&mut self) -> bool {
        if !self.ring.submission().is_full() {
            return true;
        }
        // What the kernel could not take shows in the queue; its reason comes again at the poll.
        let _refused = self.ring.submit();
        !self.ring.submission().is_full()
    }

    /// Queues an operation of the table. There is room: the caller made it.
    fn queue(&mut self, entry: &squeue::Entry) {
        let mut queue = self.ring.submission();
        // SAFETY: the memory that the entry names is in the arena, owned by a lease that the table
        // of operations holds until the kernel's last completion of it; descriptors are in the
        // sockets' table, or are the wake-up's, which this ring shares, or are only polled.
        let queued = unsafe { queue.push(entry) };
        assert!(queued.is_ok(), "no room after room was made");
    }
}

/// The kind of ring that this crate uses.
fn builder(completion_entries: u32) -> io_uring::Builder {
    let mut builder = IoUring::builder();
    builder
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .setup_cqsize(completion_entries)
        .dontfork();
    builder
}

/// Registers the arena's memory as one buffer.
fn register_arena(ring: &IoUring, arena: &arena::Shared) -> Result<(), UringError> {
    let (base, bytes) = (arena.mapping().base(), arena.mapping().bytes());
    let whole = libc::iovec { iov_base: base.as_ptr().cast(), iov_len: bytes };
    // SAFETY: the range is the arena's live mapping; the ring holds the arena, and its field order
    // drops the ring first.
    let registered = unsafe { ring.submitter().register_buffers(&[whole]) };
    registered.map_err(|error| registration_error(error, bytes as u64))
}

impl fmt::Debug for Uring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uring")
            .field("config", &self.config)
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
