//! When each segment of a packet leaves the link, if ever: loss, then a queue before the rate, then
//! the delay.
//!
//! Pure: the time is an argument. The rate is a clock of its own that says when the last accepted
//! byte will have left; how far it is ahead is the queue. A segment that has its time keeps it,
//! whatever is changed afterwards.

use super::loss::{Loss, Random};
use super::packet::Shape;
use crate::lab::link_spec::LinkSpec;

/// A packet is cut where passing it whole would hold back the wire for longer. A shorter time is
/// nearer to a wire, and costs: with a quarter of it the emulator, and the acks that each piece
/// calls for, took a quarter of a machine of two cores at 100 Mbit/s.
const QUANTUM_NS: u64 = 1_000_000;

/// How late the emulator's thread may come without the rate being lost.
const SLACK_NS: u64 = 500_000;

/// Bits and nanoseconds per byte and second.
const BIT_NS: u128 = 8_000_000_000;

/// Segments of one packet that leave together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: u64,
    pub(super) end: u64,
    /// When they leave.
    pub(super) due_ns: u64,
}

/// Segments of one packet that never leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Dropped {
    /// By chance.
    pub(super) lost: u64,
    /// Because the queue was full.
    pub(super) queue_full: u64,
    /// Because the link was down.
    pub(super) down: u64,
}

/// The state of one direction.
#[derive(Debug)]
pub(super) struct Shaper {
    spec: LinkSpec,
    loss: Loss,
    random: Random,
    /// When the rate's wire becomes free.
    free_ns: u64,
    /// When the last packet leaves, so that none overtakes it.
    last_due_ns: u64,
    /// The longest that the queue was.
    queue_bytes_max: u64,
}

impl Shaper {
    pub(super) fn new(spec: LinkSpec) -> Self {
        let mut loss = Loss::new(spec.seed);
        loss.set(spec.loss, spec.burst);
        let random = Random(!spec.seed);
        Self { spec, loss, random, free_ns: 0, last_due_ns: 0, queue_bytes_max: 0 }
    }

    /// Takes another description; what waits drains at the new rate.
    pub(super) fn set(&mut self, spec: LinkSpec, now_ns: u64) {
        let backlog_ns = self.free_ns.saturating_sub(now_ns);
        if spec.rate_bits == 0 {
            self.free_ns = 0;
        } else if backlog_ns > 0 {
            let scaled = u128::from(backlog_ns) * u128::from(self.spec.rate_bits)
                / u128::from(spec.rate_bits);
            self.free_ns = now_ns.saturating_add(u64::try_from(scaled).unwrap_or(u64::MAX));
        }
        if spec.seed != self.spec.seed {
            self.loss = Loss::new(spec.seed);
        }
        if (spec.loss, spec.burst, spec.seed) != (self.spec.loss, self.spec.burst, self.spec.seed) {
            self.loss.set(spec.loss, spec.burst);
        }
        self.spec = spec;
    }

    pub(super) fn queue_bytes_max(&self) -> u64 {
        self.queue_bytes_max
    }

    /// Decides on one packet that came at `now_ns`; what leaves is added to `runs`.
    pub(super) fn admit(&mut self, shape: &Shape, now_ns: u64, runs: &mut Vec<Run>) -> Dropped {
        let count = shape.segments();
        let mut dropped = Dropped::default();
        if !self.spec.is_up {
            dropped.down = count;
            return dropped;
        }
        let quantum = self.bytes_in(QUANTUM_NS).map_or(u64::MAX, |bytes| shape.fitting(bytes));
        let quantum = quantum.max(1);
        let mut first = 0;
        while first < count {
            let (length, is_lost) = self.loss.run((count - first).min(quantum));
            let end = first + length;
            if is_lost {
                dropped.lost += length;
            } else {
                let accepted = self.enqueue(shape, first, end, now_ns);
                dropped.queue_full += end - first - accepted;
                if accepted > 0 {
                    let due_ns = self.due_ns(now_ns);
                    runs.push(Run { first, end: first + accepted, due_ns });
                }
            }
            first = end;
        }
        dropped
    }

    /// Takes as many of the segments as the queue has room for; returns how many.
    fn enqueue(&mut self, shape: &Shape, first: u64, end: u64, now_ns: u64) -> u64 {
        if self.spec.rate_bits == 0 {
            return end - first;
        }
        let start_ns = self.free_ns.max(now_ns.saturating_sub(SLACK_NS));
        let waiting = self.bytes_in(start_ns.saturating_sub(now_ns)).unwrap_or(0);
        let mut accepted = end - first;
        // An idle wire always takes one run, however small the queue is.
        if self.spec.queue_bytes > 0 && waiting > 0 {
            let room = self.spec.queue_bytes.saturating_sub(waiting);
            accepted = accepted.min(shape.fitting(room));
        }
        let bytes = shape.wire_bytes(first..first + accepted);
        let wire_ns = u128::from(bytes) * BIT_NS / u128::from(self.spec.rate_bits);
        self.free_ns = start_ns.saturating_add(u64::try_from(wire_ns).unwrap_or(u64::MAX));
        self.queue_bytes_max = self.queue_bytes_max.max(waiting + bytes);
        accepted
    }

    /// When what was just taken arrives at the other end.
    fn due_ns(&mut self, now_ns: u64) -> u64 {
        let sent_ns = if self.spec.rate_bits == 0 { now_ns } else { self.free_ns.max(now_ns) };
        let mut due_ns = sent_ns.saturating_add(self.spec.delay_ns);
        if self.spec.jitter_ns > 0 {
            let earliest_ns = due_ns.saturating_sub(self.spec.jitter_ns).max(now_ns);
            let span_ns = 2.0 * self.spec.jitter_ns as f64;
            due_ns = earliest_ns + (self.random.unit() * span_ns) as u64;
        }
        if !self.spec.reorders {
            due_ns = due_ns.max(self.last_due_ns);
            self.last_due_ns = due_ns;
        }
        due_ns
    }

    /// Bytes that pass at the rate in some time; None without a rate.
    fn bytes_in(&self, time_ns: u64) -> Option<u64> {
        let bits_ns = u128::from(time_ns) * u128::from(self.spec.rate_bits);
        let bytes = u64::try_from(bits_ns / BIT_NS).unwrap_or(u64::MAX);
        (self.spec.rate_bits > 0).then_some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_ffi::lab::VNET_HEADER_BYTES;

    const MS: u64 = 1_000_000;
    const START: u64 = 1_000 * MS;

    /// Offers so many packets of 1000 bytes at once; returns their times in ms and the drops.
    fn offer(shaper: &mut Shaper, count: usize, now_ns: u64) -> (Vec<f64>, Dropped) {
        let shape = Shape::of(&vec![0; VNET_HEADER_BYTES + 1000]);
        let (mut runs, mut total) = (Vec::new(), Dropped::default());
        for _ in 0..count {
            let dropped = shaper.admit(&shape, now_ns, &mut runs);
            total.lost += dropped.lost;
            total.queue_full += dropped.queue_full;
            total.down += dropped.down;
        }
        let times = runs.iter().map(|run| (run.due_ns - now_ns) as f64 / MS as f64).collect();
        (times, total)
    }

    fn shaper(words: &str) -> Shaper {
        Shaper::new(LinkSpec::parse(words).unwrap())
    }

    #[test]
    fn packets_leave_at_the_rate_and_arrive_after_the_delay() {
        // 8 Mbit/s are 1 ms for each of these packets.
        let (times, dropped) = offer(&mut shaper("rate=8m,delay=20ms"), 10, START);
        assert_eq!(dropped, Dropped::default());
        for (at, time) in times.iter().enumerate() {
            // The first may have begun as early as the slack allows.
            assert!((*time - (21.0 + at as f64)).abs() <= 0.5, "{times:?}");
        }
    }

    #[test]
    fn a_full_queue_drops_and_an_empty_one_does_not() {
        let mut shaper = shaper("rate=8m,queue=5000");
        let (times, dropped) = offer(&mut shaper, 20, START);
        assert_eq!(times.len() as u64 + dropped.queue_full, 20);
        assert!((4..=6).contains(&times.len()), "{times:?}");
        assert!(shaper.queue_bytes_max() <= 6000);
        assert_eq!(offer(&mut shaper, 1, START + 10 * MS).1, Dropped::default());
    }

    #[test]
    fn a_change_of_the_rate_rescales_what_waits() {
        let mut shaper = shaper("rate=8m,queue=1m");
        offer(&mut shaper, 10, START);
        let mut spec = shaper.spec.clone();
        spec.apply("rate=800k").unwrap();
        shaper.set(spec, START);
        let (times, _) = offer(&mut shaper, 1, START);
        assert!((times[0] - 105.0).abs() <= 6.0, "{times:?}");
    }

    #[test]
    fn order_is_kept_unless_overtaking_is_allowed() {
        let is_sorted = |words: &str| {
            let (times, _) = offer(&mut shaper(words), 100, START);
            assert!(times.iter().all(|time| (15.0..=25.0).contains(time)), "{times:?}");
            times.is_sorted()
        };
        assert!(is_sorted("delay=20ms,jitter=5ms"));
        assert!(!is_sorted("delay=20ms,jitter=5ms,reorder=1"));
    }

    #[test]
    fn a_link_that_is_down_drops_all_and_heals() {
        let mut shaper = shaper("up=0");
        assert_eq!(offer(&mut shaper, 3, START).1.down, 3);
        shaper.set(LinkSpec::default(), START);
        assert_eq!(offer(&mut shaper, 3, START).0.len(), 3);
    }
}
