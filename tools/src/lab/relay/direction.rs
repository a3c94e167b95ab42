//! The thread that carries packets one way: reads them from one device, holds them until they are
//! due, writes them to the other.
//!
//! Owns the packets under way, in no more memory than the link's description allows. Sleeps in the
//! kernel until a packet comes, one is due, or the link was changed. Ends when told so or when a
//! device is gone.

use super::packet::{PACKET_BYTES_MAX, Shape};
use super::shaper::{Run, Shaper};
use super::stats::Counters;
use crate::lab::link_spec::LinkSpec;
use dwcp_ffi::poll::WakeReceiver;
use dwcp_ffi::sys::monotonic_now;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::signal::SigSet;
use nix::sys::time::{TimeSpec, TimeValLike};
use std::cmp::Ordering as Order;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Packets that are read, or written, before the other is looked at.
const BATCH: usize = 64;

/// What the thread and the owner of the link share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) spec: Mutex<LinkSpec>,
    /// Goes up with every change of `spec`.
    pub(super) version: AtomicU64,
    pub(super) stops: AtomicBool,
    pub(super) counters: Counters,
}

/// A packet under way.
#[derive(Debug)]
struct Held {
    due_ns: u64,
    /// Keeps packets that are due at once in their order.
    number: u64,
    segments: u64,
    bytes: Vec<u8>,
}

impl Held {
    /// The memory that it takes.
    fn memory_bytes(&self) -> u64 {
        (size_of::<Self>() + self.bytes.capacity()) as u64
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Order::Equal
    }
}

impl Eq for Held {}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}

impl Ord for Held {
    /// The heap gives out its greatest, which must be the one that is due first.
    fn cmp(&self, other: &Self) -> Order {
        (other.due_ns, other.number).cmp(&(self.due_ns, self.number))
    }
}

/// What a turn of the loop found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// There may be more to do at once.
    Busy,
    /// Nothing to do until then, if ever.
    Idle(Option<u64>),
    /// A device is gone.
    Over,
}

/// One direction.
pub(super) struct Direction {
    from: Arc<File>,
    to: Arc<File>,
    shared: Arc<Shared>,
    wake: WakeReceiver,
    shaper: Shaper,
    version: u64,
    held: BinaryHeap<Held>,
    held_bytes: u64,
    memory_bytes: u64,
    number: u64,
    runs: Vec<Run>,
    packet: Vec<u8>,
}

impl Direction {
    pub(super) fn new(
        from: Arc<File>,
        to: Arc<File>,
        shared: Arc<Shared>,
        wake: WakeReceiver,
    ) -> Self {
        let spec = shared.spec.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Self {
            from,
            to,
            version: shared.version.load(Ordering::Acquire),
            shared,
            wake,
            memory_bytes: spec.memory_bytes,
            shaper: Shaper::new(spec),
            held: BinaryHeap::new(),
            held_bytes: 0,
            number: 0,
            runs: Vec::new(),
            packet: vec![0; PACKET_BYTES_MAX],
        }
    }

    /// Carries packets until the end of the link.
    pub(super) fn run(mut self) {
        // Both only make it more punctual; without them the statistics show how late it is.
        let _ = dwcp_ffi::lab::run_before_others();
        let _ = nix::sys::prctl::set_timerslack(1);
        while !self.shared.stops.load(Ordering::Acquire) {
            self.take_change();
            let read = self.read();
            let turn = if read == Turn::Over { Turn::Over } else { self.write() };
            match turn {
                Turn::Over => return,
                Turn::Idle(due_ns) if read != Turn::Busy => self.rest(due_ns),
                _ => {}
            }
        }
    }

    fn take_change(&mut self) {
        let version = self.shared.version.load(Ordering::Acquire);
        if version == self.version {
            return;
        }
        self.version = version;
        let spec = self.shared.spec.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if !spec.is_up && spec.flushes {
            let segments = self.held.drain().map(|held| held.segments).sum();
            Counters::add(&self.shared.counters.down, segments);
            self.held_bytes = 0;
        }
        self.memory_bytes = spec.memory_bytes;
        self.shaper.set(spec, monotonic_now());
    }

    /// Takes in what has come, as far as a batch goes.
    fn read(&mut self) -> Turn {
        for _ in 0..BATCH {
            let length = match (&*self.from).read(&mut self.packet) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Turn::Idle(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return Turn::Over,
            };
            if length > dwcp_ffi::lab::VNET_HEADER_BYTES {
                self.admit(length);
            }
        }
        Turn::Busy
    }

    fn admit(&mut self, length: usize) {
        let packet = &self.packet[..length];
        let shape = Shape::of(packet);
        let counters = &self.shared.counters;
        self.runs.clear();
        let dropped = self.shaper.admit(&shape, monotonic_now(), &mut self.runs);
        Counters::add(&counters.packets, 1);
        Counters::add(&counters.segments, shape.segments());
        Counters::add(&counters.bytes, (length - dwcp_ffi::lab::VNET_HEADER_BYTES) as u64);
        Counters::add(&counters.lost, dropped.lost);
        Counters::add(&counters.queue_full, dropped.queue_full);
        Counters::add(&counters.down, dropped.down);
        Counters::raise(&counters.queue_bytes_max, self.shaper.queue_bytes_max());
        for run in &self.runs {
            let segments = run.end - run.first;
            let bytes = shape.cut(packet, run.first..run.end);
            let held = Held { due_ns: run.due_ns, number: self.number, segments, bytes };
            if self.held_bytes + held.memory_bytes() > self.memory_bytes {
                Counters::add(&counters.memory_full, segments);
                continue;
            }
            self.held_bytes += held.memory_bytes();
            self.number += 1;
            self.held.push(held);
        }
        Counters::raise(&counters.memory_bytes_max, self.held_bytes);
    }

    /// Sends what is due, as far as a batch goes.
    fn write(&mut self) -> Turn {
        let counters = &self.shared.counters;
        for _ in 0..BATCH {
            let now_ns = monotonic_now();
            let Some(next) = self.held.peek() else { return Turn::Idle(None) };
            if next.due_ns > now_ns {
                return Turn::Idle(Some(next.due_ns));
            }
            let Some(held) = self.held.pop() else { return Turn::Idle(None) };
            self.held_bytes -= held.memory_bytes();
            let late_ns = now_ns - held.due_ns;
            Counters::add(&counters.writes, 1);
            Counters::add(&counters.late_ns, late_ns);
            Counters::raise(&counters.late_ns_max, late_ns);
            let is_taken = (&*self.to).write(&held.bytes).is_ok();
            let counter = if is_taken { &counters.delivered } else { &counters.refused };
            Counters::add(counter, held.segments);
        }
        Turn::Busy
    }

    /// Sleeps until a packet comes, one is due or something was changed.
    fn rest(&self, due_ns: Option<u64>) {
        let wait = due_ns.map(|due_ns| due_ns.saturating_sub(monotonic_now()));
        let wait = wait.map(|ns| TimeSpec::nanoseconds(i64::try_from(ns).unwrap_or(i64::MAX)));
        let mut events = [
            PollFd::new(self.from.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
        ];
        // An interrupted wait is a short one; the loop looks at everything again.
        let _ = ppoll(&mut events, wait, None::<SigSet>);
        self.wake.drain();
    }
}
