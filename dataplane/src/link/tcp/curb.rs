//! Keeps BBR from overrunning a path while it looks for the path's rate.
//!
//! In STARTUP, BBR sends 2.89 times what it saw delivered, and goes on for three round trips after
//! the path is full: what the path's queue can't hold is lost and sent again, and all behind a hole
//! waits at the sink. Once a queue of our own shows, a bound of the pacing (SO_MAX_PACING_RATE)
//! holds it back. Unlike a small window, that does not make the sender look as if it had nothing
//! more to send, so BBR takes its three round trips and is done.
//!
//! Runs on the shard's thread, some tens of times a second. Pure.

use dwcp_ffi::sys::tcp::{BbrInfo, TcpInfo};
use dwcp_proto::time::Nanos;

/// A path is full when so much more is in flight than it holds without a queue, in quarters, and no
/// more comes for a round trip. It was not, whatever the reason, when its queue goes again.
const FULL_QUARTERS: u128 = 6;
const DRAINED_QUARTERS: u128 = 5;
/// What a path holds at least before it is curbed: below, a late ack passes for a queue.
const BDP_BYTES_MIN: u128 = 128 << 10;

/// The bound of one stream's pacing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Curb {
    /// In bytes per second.
    bound: Option<u64>,
    /// The rate that BBR saw when it had last grown by a quarter, and when that was.
    rate: u64,
    grown_at: Nanos,
}

impl Curb {
    /// True while a bound is set.
    pub(super) const fn holds(&self) -> bool {
        self.bound.is_some()
    }

    /// Takes what the kernel tells now. Returns the bound to be set, in bytes per second, or that
    /// there is to be none; nothing when it is what it was.
    pub(super) fn adapt(
        &mut self,
        now: Nanos,
        bbr: BbrInfo,
        info: &TcpInfo,
    ) -> Option<Option<u64>> {
        if bbr.rate / 5 * 4 >= self.rate {
            (self.rate, self.grown_at) = (bbr.rate, now);
        }
        let bound = if bbr.in_startup { self.bound_at(now, bbr.rate, info) } else { None };
        (std::mem::replace(&mut self.bound, bound) != bound).then_some(bound)
    }

    fn bound_at(&self, now: Nanos, rate: u64, info: &TcpInfo) -> Option<u64> {
        let TcpInfo { rtt_ns, rtt_ns_min, in_flight_bytes, .. } = *info;
        let bdp = u128::from(rate) * u128::from(rtt_ns_min) / u128::from(Nanos::SECOND.0);
        let quarters = if self.holds() { DRAINED_QUARTERS } else { FULL_QUARTERS };
        let is_queued = u128::from(in_flight_bytes) > bdp / 4 * quarters;
        let is_late = self.holds() || now.since(self.grown_at).0 > rtt_ns;
        // A little more than it sees, so that the queue stays and BBR sees a path that is full.
        (bdp >= BDP_BYTES_MIN && is_queued && is_late).then_some(rate / 16 * 17)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    const MILLI: u64 = 1_000_000;

    /// A path, its queue in round trips' worth of its rate, and what else is on it.
    #[derive(Clone, Copy, Debug)]
    struct Path {
        rate: u64,
        rtt_ms: u64,
        queue: f64,
        /// The round trip seems longer by up to so many thousandths.
        jitter: u64,
        curbed: bool,
    }

    /// What came of BBR's STARTUP on it, in steps of a millisecond.
    #[derive(Debug)]
    struct Outcome {
        lost_bytes: f64,
        /// When BBR had found the rate, in milliseconds, and what it took for it.
        found_ms: u64,
        found_rate: u64,
    }

    fn start_up(path: Path) -> Outcome {
        let rtt = path.rtt_ms;
        let capacity = path.rate as f64 / 1000.0;
        let holds = capacity * rtt as f64 * path.queue;
        let (mut curb, mut bound) = (Curb::default(), None);
        let (mut queue, mut lost) = (0.0, 0.0);
        // What the path delivered in each millisecond, seen a round trip later.
        let mut acks = VecDeque::from(vec![0.0; rtt as usize]);
        let mut seen = VecDeque::from(vec![14_480.0 / rtt as f64; rtt as usize]);
        let (mut full_rate, mut rounds) = (0.0, 0);
        let mut round_ends = 0.0;
        for now in 1..60_000 {
            let rate = seen.iter().sum::<f64>() / rtt as f64;
            let delay = rtt as f64 + queue / capacity;
            let in_flight = acks.iter().sum::<f64>() + queue;
            let window = 2.89 * rate * rtt as f64;
            let paced = (2.89 * rate).min(bound.unwrap_or(f64::INFINITY));
            let sent = paced.min((window - in_flight).max(0.0));
            let arrived = queue + sent;
            let delivered = arrived.min(capacity);
            queue = (arrived - delivered).min(holds);
            lost += arrived - delivered - queue;
            acks.push_back(delivered);
            let acked = acks.pop_front().unwrap();
            // BBR's estimate is the highest of late.
            if seen.iter().skip(1).sum::<f64>() + acked >= seen.iter().sum::<f64>() {
                seen.pop_front();
                seen.push_back(acked);
            }
            if now as f64 > round_ends {
                round_ends = now as f64 + delay;
                rounds = if rate >= full_rate * 1.25 { 0 } else { rounds + 1 };
                full_rate = if rounds == 0 { rate } else { full_rate };
                if rounds == 3 {
                    let found_rate = (rate * 1000.0) as u64;
                    return Outcome { lost_bytes: lost, found_ms: now, found_rate };
                }
            }
            if path.curbed && now % 20 == 0 {
                let jitter = now * 7919 % (path.jitter + 1);
                let info = TcpInfo {
                    rtt_ns: (delay * MILLI as f64) as u64 * (1000 + jitter) / 1000,
                    rtt_ns_min: rtt * MILLI,
                    in_flight_bytes: in_flight as u64,
                    ..TcpInfo::default()
                };
                let bbr = BbrInfo { in_startup: true, rate: (rate * 1000.0) as u64, rtt_ns: 0 };
                if let Some(changed) = curb.adapt(Nanos(now * MILLI), bbr, &info) {
                    bound = changed.map(|bytes_per_second| bytes_per_second as f64 / 1000.0);
                }
            }
        }
        panic!("{path:?}: BBR never found the rate")
    }

    #[test]
    fn a_path_with_a_queue_of_a_round_trip_loses_less_and_its_rate_is_found_as_soon() {
        for rate in [12_500_000, 125_000_000] {
            for rtt_ms in [20, 40, 100, 250] {
                let path = Path { rate, rtt_ms, queue: 1.0, jitter: 0, curbed: false };
                let (plain, curbed) = (start_up(path), start_up(Path { curbed: true, ..path }));
                let words = format!("{path:?}: {plain:?} without, {curbed:?} with it");
                println!("{words}");
                assert!(curbed.lost_bytes * 1.5 < plain.lost_bytes, "{words}");
                assert!(curbed.found_rate > rate / 100 * 95, "{words}");
                assert!(curbed.found_ms <= plain.found_ms + 2 * rtt_ms, "{words}");
            }
        }
    }

    #[test]
    fn jitter_costs_nothing() {
        for rtt_ms in [20, 100] {
            let path = Path { rate: 125_000_000, rtt_ms, queue: 1.0, jitter: 600, curbed: false };
            let (plain, curbed) = (start_up(path), start_up(Path { curbed: true, ..path }));
            let words = format!("{path:?}: {plain:?} without, {curbed:?} with it");
            println!("{words}");
            assert!(curbed.found_rate > path.rate / 100 * 95, "{words}");
            assert!(curbed.found_ms <= plain.found_ms + 2 * rtt_ms, "{words}");
        }
    }

    #[test]
    fn a_stream_that_has_just_begun_is_never_bound() {
        let mut curb = Curb::default();
        for now in 1..1000 {
            let info = TcpInfo {
                rtt_ns: 150 * MILLI,
                rtt_ns_min: 100 * MILLI,
                in_flight_bytes: 200_000,
                ..TcpInfo::default()
            };
            let bbr = BbrInfo { in_startup: true, rate: 1_200_000, rtt_ns: 0 };
            assert_eq!(curb.adapt(Nanos(now * 20 * MILLI), bbr, &info), None);
        }
    }

    #[test]
    fn a_slow_source_in_the_queue_of_others_is_never_bound() {
        let mut curb = Curb::default();
        for now in 1..1000 {
            let info = TcpInfo {
                rtt_ns: (100 + now % 40) * MILLI,
                rtt_ns_min: 100 * MILLI,
                in_flight_bytes: 140_000,
                ..TcpInfo::default()
            };
            let bbr = BbrInfo { in_startup: true, rate: 1_000_000, rtt_ns: 0 };
            assert_eq!(curb.adapt(Nanos(now * 20 * MILLI), bbr, &info), None);
        }
    }

    #[test]
    fn a_full_path_is_curbed_until_bbr_has_found_its_rate_or_the_queue_is_gone() {
        let mut curb = Curb::default();
        let info = TcpInfo {
            rtt_ns: 150 * MILLI,
            rtt_ns_min: 100 * MILLI,
            in_flight_bytes: 3_000_000,
            ..TcpInfo::default()
        };
        let bbr = BbrInfo { in_startup: true, rate: 12_000_000, rtt_ns: 0 };
        assert_eq!(curb.adapt(Nanos(MILLI), bbr, &info), None, "it has grown");
        assert_eq!(curb.adapt(Nanos(100 * MILLI), bbr, &info), None, "less than a round trip ago");
        let bound = curb.adapt(Nanos(200 * MILLI), bbr, &info);
        assert_eq!(bound, Some(Some(12_750_000)));
        assert_eq!(curb.adapt(Nanos(220 * MILLI), bbr, &info), None, "it stays");
        let drained = TcpInfo { in_flight_bytes: 1_400_000, ..info };
        assert_eq!(curb.adapt(Nanos(240 * MILLI), bbr, &drained), Some(None), "no queue, no bound");
        assert_eq!(curb.adapt(Nanos(260 * MILLI), bbr, &info), Some(bound.flatten()));
        let found = BbrInfo { in_startup: false, ..bbr };
        assert_eq!(curb.adapt(Nanos(300 * MILLI), found, &info), Some(None));
        assert_eq!(curb.adapt(Nanos(400 * MILLI), found, &info), None);
        assert!(!curb.holds());
    }
}
