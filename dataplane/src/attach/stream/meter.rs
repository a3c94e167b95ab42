//! The rate at which the VMM at the sink takes what is sent: an average, for forecasts.
//!
//! The window's own estimate is the best of the last second, so that it never holds the sender
//! back; a forecast of the guest's pause needs what is really carried. Pure; owned by a stream
//! source. Time in which nothing was under way does not count.

use dwcp_proto::time::Nanos;

/// The least span of a sample: several round trips of most paths, and short beside the pause that
/// is forecast.
const SPAN_MIN: Nanos = Nanos::from_millis(100);

/// Measures the rate of delivery.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meter {
    /// Until when time was counted.
    seen: Nanos,
    /// The time and the bytes of the sample so far.
    span: Nanos,
    bytes: u64,
    rate: u64,
}

impl Meter {
    pub(super) const fn new() -> Self {
        Self { seen: Nanos(0), span: Nanos(0), bytes: 0, rate: 0 }
    }

    /// Something is sent after nothing was under way.
    pub(super) const fn start(&mut self, now: Nanos) {
        self.seen = now;
    }

    /// So many bytes were delivered.
    pub(super) fn delivered(&mut self, now: Nanos, bytes: u64) {
        self.bytes += bytes;
        self.span = self.span + now.since(self.seen);
        self.seen = now;
        if self.span < SPAN_MIN {
            return;
        }
        let rate = u128::from(self.bytes) * u128::from(Nanos::SECOND.0) / u128::from(self.span.0);
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        // Half of the newest: a change of the path shows within some samples.
        self.rate = if self.rate == 0 { rate } else { self.rate / 2 + rate / 2 };
        (self.span, self.bytes) = (Nanos(0), 0);
    }

    /// Bytes per second; 0 before the first sample.
    pub(super) const fn rate_bytes_per_second(&self) -> u64 {
        self.rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_follows_the_path_and_not_its_bursts() {
        let mut meter = Meter::new();
        let at = |ms: u64| Nanos::from_millis(ms);
        meter.start(at(1000));
        // 10 MB/s, in bursts of 10 ms.
        for turn in 1..=100 {
            meter.delivered(at(1000 + turn * 10), 50_000);
            meter.delivered(at(1000 + turn * 10), 50_000);
        }
        let rate = meter.rate_bytes_per_second();
        assert!((9_500_000..10_500_000).contains(&rate), "{rate}");
        // Time without work is not a slow path: 1 MB/s in short pieces.
        for turn in 1..=100 {
            meter.start(at(turn * 3_600_000));
            meter.delivered(at(turn * 3_600_000 + 10), 10_000);
        }
        let rate = meter.rate_bytes_per_second();
        assert!((950_000..1_050_000).contains(&rate), "{rate}");
    }
}
