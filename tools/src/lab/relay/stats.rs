//! What a direction of a link has done: counters that one thread writes and anybody reads.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// The counters themselves.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) packets: AtomicU64,
    pub(super) segments: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) delivered: AtomicU64,
    pub(super) lost: AtomicU64,
    pub(super) queue_full: AtomicU64,
    pub(super) memory_full: AtomicU64,
    pub(super) down: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) queue_bytes_max: AtomicU64,
    pub(super) memory_bytes_max: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) late_ns: AtomicU64,
    pub(super) late_ns_max: AtomicU64,
}

impl Counters {
    /// Adds to a counter; only the direction's own thread does.
    pub(super) fn add(counter: &AtomicU64, more: u64) {
        counter.store(counter.load(Ordering::Relaxed) + more, Ordering::Relaxed);
    }

    /// Raises a counter to a maximum.
    pub(super) fn raise(counter: &AtomicU64, to: u64) {
        counter.store(counter.load(Ordering::Relaxed).max(to), Ordering::Relaxed);
    }

    /// All of them, now.
    pub(super) fn snapshot(&self) -> LinkStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LinkStats {
            packets: load(&self.packets),
            segments: load(&self.segments),
            bytes: load(&self.bytes),
            delivered: load(&self.delivered),
            lost: load(&self.lost),
            queue_full: load(&self.queue_full),
            memory_full: load(&self.memory_full),
            down: load(&self.down),
            refused: load(&self.refused),
            queue_bytes_max: load(&self.queue_bytes_max),
            memory_bytes_max: load(&self.memory_bytes_max),
            late_us: load(&self.late_ns) as f64 / 1e3 / load(&self.writes).max(1) as f64,
            late_us_max: load(&self.late_ns_max) as f64 / 1e3,
        }
    }
}

/// What a direction of a link has done so far. Every segment that came was delivered, was dropped
/// for one of five reasons, or is still under way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkStats {
    /// Packets that came, large ones uncut.
    pub packets: u64,
    /// Segments in them.
    pub segments: u64,
    /// Bytes of IP in them, counted as the kernel counts them for the device: the headers that
    /// cutting adds are not in it.
    pub bytes: u64,
    /// Segments that arrived at the other end.
    pub delivered: u64,
    /// Segments lost by chance.
    pub lost: u64,
    /// Segments dropped because the queue was full.
    pub queue_full: u64,
    /// Segments dropped because the link's memory was used up: it asked for too much.
    pub memory_full: u64,
    /// Segments dropped because the link was down.
    pub down: u64,
    /// Segments that the other end's kernel refused.
    pub refused: u64,
    /// The most bytes that waited at once.
    pub queue_bytes_max: u64,
    /// The most memory that was used at once.
    pub memory_bytes_max: u64,
    /// How late packets left on average; judge nothing when this is above 5 % of the delay.
    pub late_us: f64,
    /// How late the latest was.
    pub late_us_max: f64,
}

impl fmt::Display for LinkStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "packets={} segments={} bytes={} delivered={} lost={} queue_full={} memory_full={} \
             down={} refused={} queue_bytes_max={} memory_bytes_max={} late_us={:.1} \
             late_us_max={:.0}",
            self.packets,
            self.segments,
            self.bytes,
            self.delivered,
            self.lost,
            self.queue_full,
            self.memory_full,
            self.down,
            self.refused,
            self.queue_bytes_max,
            self.memory_bytes_max,
            self.late_us,
            self.late_us_max
        )
    }
}
