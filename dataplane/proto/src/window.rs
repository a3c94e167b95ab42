//! How many bytes a lane may have in flight: estimated from acks alone.
//!
//! Rate: the most that was delivered per second over the last ten round trips (at least one
//! second); a sample from a sender that did not fill its window can raise the estimate and never
//! lowers it. Round trip: the least of the last ten seconds; when it grows old, the window shrinks
//! to half of a bandwidth-delay product for a moment, so that a standing queue drains and can't
//! pass for distance. From both: window = the larger of some bandwidth-delay products (two, where
//! nothing waits for the queue's end) and one plus the allowed backlog at the current rate, within
//! bounds. Until the rate stops growing, the
//! window also doubles with every round trip in which it was full, so that a fast path is never
//! held back by its own small beginning.
//!
//! Runs on the shard that owns the lane, called for every frame sent and every ack. Never
//! allocates.

use crate::time::Nanos;
use crate::wire::limits::{BACKLOG_DEFAULT, WINDOW_BYTES_FLOOR, WINDOW_BYTES_START};

/// Slices of the sliding maximum: the estimate forgets a rate after ten of them.
const RATE_SLICES: usize = 10;
/// The least span of the sliding maximum.
const RATE_SPAN_MIN: Nanos = Nanos::SECOND;
/// How long a least round trip counts.
const RTT_AGE_MAX: Nanos = Nanos(10 * Nanos::SECOND.0);
/// How long the window shrinks to measure the round trip anew, at least.
const PROBE_MIN: Nanos = Nanos::from_millis(200);
/// Full round trips in a row without a quarter more rate, after which start-up ends.
const START_PLATEAU_ROUNDS: u8 = 2;

/// The bounds of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowConfig {
    /// The window never gets smaller.
    pub floor_bytes: u64,
    /// The window before anything was measured.
    pub start_bytes: u64,
    /// The window never gets larger: what the lane's arena can hold.
    pub max_bytes: u64,
    /// The window is never less than so many bandwidth-delay products.
    pub products: u64,
    /// Backlog allowed beyond one bandwidth-delay product, as time at the current rate.
    pub backlog: Nanos,
}

impl WindowConfig {
    /// The default window below a bound.
    #[must_use]
    pub const fn with_max(max_bytes: u64) -> Self {
        Self {
            floor_bytes: lesser(WINDOW_BYTES_FLOOR, max_bytes),
            start_bytes: lesser(WINDOW_BYTES_START, max_bytes),
            max_bytes,
            products: 2,
            backlog: BACKLOG_DEFAULT,
        }
    }

    /// The window below a bound of what stands in front of a guest's downtime: what the path holds
    /// and this backlog, no more.
    #[must_use]
    pub const fn with_backlog(max_bytes: u64, backlog: Nanos) -> Self {
        Self { products: 1, backlog, ..Self::with_max(max_bytes) }
    }
}

/// What the window remembers of a frame in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendMark {
    sent_at: Nanos,
    /// Bytes delivered before the frame was sent, and when the last of them was acknowledged.
    delivered_bytes: u64,
    delivered_at: Nanos,
    /// Nothing else was in flight: the frame met no queue of ours.
    alone: bool,
    /// The window was nearly full: the sender was held back by it.
    full: bool,
}

/// Growth before the rate is known.
#[derive(Clone, Copy, Debug)]
struct Start {
    window_bytes: u64,
    grown_at: Nanos,
    rate: u64,
    plateau_rounds: u8,
}

/// A short time with a small window, to see the round trip without a queue.
#[derive(Clone, Copy, Debug)]
struct Probe {
    until: Nanos,
    rtt_min: Option<Nanos>,
}

/// The window of one lane.
#[derive(Clone, Debug)]
pub struct Window {
    config: WindowConfig,
    start: Option<Start>,
    probe: Option<Probe>,
    /// Highest rate (bytes per second) of each slice of time, the newest first.
    rates: [u64; RATE_SLICES],
    slice_began: Nanos,
    rtt_min: Option<Nanos>,
    rtt_min_at: Nanos,
    delivered_bytes: u64,
    delivered_at: Nanos,
    window_bytes: u64,
}

impl Window {
    /// A window that has seen nothing yet.
    ///
    /// # Panics
    /// When the bounds are not in order, or zero.
    #[must_use]
    pub fn new(config: WindowConfig) -> Self {
        let WindowConfig { floor_bytes, start_bytes, max_bytes, .. } = config;
        assert!(floor_bytes > 0 && floor_bytes <= start_bytes && start_bytes <= max_bytes);
        let start =
            Start { window_bytes: start_bytes, grown_at: Nanos(0), rate: 0, plateau_rounds: 0 };
        Self {
            config,
            start: Some(start),
            probe: None,
            rates: [0; RATE_SLICES],
            slice_began: Nanos(0),
            rtt_min: None,
            rtt_min_at: Nanos(0),
            delivered_bytes: 0,
            delivered_at: Nanos(0),
            window_bytes: start_bytes,
        }
    }

    /// How many bytes may be in flight.
    #[must_use]
    pub const fn window_bytes(&self) -> u64 {
        self.window_bytes
    }

    /// The estimated rate; zero before the first ack.
    #[must_use]
    pub fn rate_bytes_per_second(&self) -> u64 {
        self.rates.iter().copied().max().unwrap_or(0)
    }

    /// The least round trip; `None` before the first ack.
    #[must_use]
    pub const fn rtt_min(&self) -> Option<Nanos> {
        self.rtt_min
    }

    /// One bandwidth-delay product; zero before the first ack.
    #[must_use]
    pub fn bdp_bytes(&self) -> u64 {
        self.rtt_min.map_or(0, |rtt| bytes_in(self.rate_bytes_per_second(), rtt))
    }

    /// What is in flight beyond one bandwidth-delay product: the backlog.
    #[must_use]
    pub fn backlog_bytes(&self, in_flight_bytes: u64) -> u64 {
        in_flight_bytes.saturating_sub(self.bdp_bytes())
    }

    /// To be called for each frame sent; `in_flight_bytes` counts without that frame, `bytes` is
    /// the frame's.
    #[must_use]
    pub fn on_sent(&mut self, now: Nanos, in_flight_bytes: u64, bytes: u64) -> SendMark {
        let alone = in_flight_bytes == 0;
        if alone {
            // The pipe was empty: time without work must not count as slow delivery.
            self.delivered_at = now;
        }
        SendMark {
            sent_at: now,
            delivered_bytes: self.delivered_bytes,
            delivered_at: self.delivered_at,
            alone,
            full: in_flight_bytes + bytes >= self.window_bytes / 8 * 7,
        }
    }

    /// To be called for each ack: `bytes` became acknowledged, `newest` is the mark of the newest
    /// frame among them. Returns the round trip.
    pub fn on_acked(&mut self, now: Nanos, bytes: u64, newest: SendMark) -> Nanos {
        self.delivered_bytes += bytes;
        self.delivered_at = now;
        let rtt = now.since(newest.sent_at);
        self.learn_rtt(now, rtt, newest.alone);
        // At least one round trip long, so that acks in a bunch don't look like a fast path.
        let span = now.since(newest.delivered_at);
        if span > Nanos(0) {
            let delivered = u128::from(self.delivered_bytes - newest.delivered_bytes);
            let rate = delivered * u128::from(Nanos::SECOND.0) / u128::from(span.0);
            self.learn_rate(now, u64::try_from(rate).unwrap_or(u64::MAX), newest.full);
        }
        self.grow_at_start(now, rtt, newest.full);
        self.window_bytes = self.target_bytes();
        rtt
    }

    fn learn_rtt(&mut self, now: Nanos, rtt: Nanos, alone: bool) {
        let shortest = self.rtt_min.is_none_or(|least| rtt <= least);
        let aged = now.since(self.rtt_min_at) > RTT_AGE_MAX;
        if shortest || (aged && alone) {
            self.rtt_min = Some(rtt);
            self.rtt_min_at = now;
        } else if aged && self.probe.is_none() {
            let span = PROBE_MIN.max(Nanos(rtt.0.saturating_mul(2)));
            self.probe = Some(Probe { until: now + span, rtt_min: None });
        }
        if let Some(probe) = &mut self.probe {
            probe.rtt_min = Some(probe.rtt_min.map_or(rtt, |least| least.min(rtt)));
            if now >= probe.until {
                self.rtt_min = probe.rtt_min;
                self.rtt_min_at = now;
                self.probe = None;
            }
        }
    }

    fn learn_rate(&mut self, now: Nanos, rate: u64, full: bool) {
        if !full && rate < self.rate_bytes_per_second() {
            return;
        }
        let ten_round_trips = Nanos(self.rtt_min.map_or(0, |rtt| rtt.0.saturating_mul(10)));
        let slice = Nanos(RATE_SPAN_MIN.max(ten_round_trips).0 / RATE_SLICES as u64);
        // One step for each sample at most: after a silence the old rate is still the best guess.
        if now.since(self.slice_began) >= slice {
            self.rates.rotate_right(1);
            self.rates[0] = 0;
            self.slice_began = now;
        }
        self.rates[0] = self.rates[0].max(rate);
    }

    fn grow_at_start(&mut self, now: Nanos, rtt: Nanos, full: bool) {
        let rate = self.rate_bytes_per_second();
        let Some(start) = &mut self.start else { return };
        // A queue of more than a round trip and the backlog allowed: the path is full already.
        let least = self.rtt_min.unwrap_or(rtt);
        if rtt > Nanos(least.0.saturating_mul(2)) + self.config.backlog {
            self.start = None;
            return;
        }
        // The round trip with its queue: what the last step did has to show before the next one.
        if !full || now.since(start.grown_at) < rtt {
            return;
        }
        if rate / 5 * 4 > start.rate {
            start.plateau_rounds = 0;
        } else {
            start.plateau_rounds += 1;
        }
        start.rate = start.rate.max(rate);
        start.grown_at = now;
        if start.plateau_rounds >= START_PLATEAU_ROUNDS {
            self.start = None;
            return;
        }
        start.window_bytes = start.window_bytes.saturating_mul(2).min(self.config.max_bytes);
    }

    fn target_bytes(&self) -> u64 {
        let WindowConfig { floor_bytes, max_bytes, products, backlog, .. } = self.config;
        let bdp_bytes = self.bdp_bytes();
        if self.probe.is_some() {
            return (bdp_bytes / 2).clamp(floor_bytes, max_bytes);
        }
        let backlog_bytes = bytes_in(self.rate_bytes_per_second(), backlog);
        let steady =
            bdp_bytes.saturating_mul(products).max(bdp_bytes.saturating_add(backlog_bytes));
        let start = self.start.map_or(0, |start| start.window_bytes);
        steady.max(start).clamp(floor_bytes, max_bytes)
    }
}

/// What a rate delivers in a time.
fn bytes_in(bytes_per_second: u64, time: Nanos) -> u64 {
    let bytes = u128::from(bytes_per_second) * u128::from(time.0) / u128::from(Nanos::SECOND.0);
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

const fn lesser(a: u64, b: u64) -> u64 {
    if a < b { a } else { b }
}
