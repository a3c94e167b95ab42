//! How much arrived when: bytes in equal steps of time.
//!
//! Pure.

/// Bytes per step, from the first step on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Curve {
    /// The length of a step.
    pub step_s: f64,
    /// Bytes that arrived in each.
    pub bytes: Vec<u64>,
}

impl Curve {
    /// Mean rate between two times, in bits per second; 0 where nothing is.
    #[must_use]
    pub fn rate_bits(&self, from_s: f64, to_s: f64) -> f64 {
        let (from, to) = (self.step_at(from_s), self.step_at(to_s));
        let bytes: u64 = self.bytes[from..to.max(from)].iter().sum();
        if to <= from { 0.0 } else { bytes as f64 * 8.0 / ((to - from) as f64 * self.step_s) }
    }

    /// The whole time.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.bytes.len() as f64 * self.step_s
    }

    /// When the mean over a window first reached a rate: the end of the first such window that
    /// begins at `from_s` or later, less `from_s`.
    #[must_use]
    pub fn reached_s(&self, from_s: f64, level_bits: f64, window_s: f64) -> Option<f64> {
        let length = self.step_at(window_s).max(1);
        let first = self.step_at(from_s);
        let mut ends = first + length..=self.bytes.len();
        let end = ends.find(|end| {
            let bytes: u64 = self.bytes[end - length..*end].iter().sum();
            bytes as f64 * 8.0 / (length as f64 * self.step_s) >= level_bits
        })?;
        Some((end - first) as f64 * self.step_s)
    }

    /// When the curve came to rest near a level: the end of the last window between two times whose
    /// mean is further away than a share of it, less `from_s`.
    #[must_use]
    pub fn settled_s(&self, from_s: f64, to_s: f64, level_bits: f64, share: f64) -> f64 {
        /// BBR's look for the round trip, a fifth of a second, is no more than a dent in it.
        const WINDOW_S: f64 = 1.0;
        let length = self.step_at(WINDOW_S).max(1);
        let (first, end) = (self.step_at(from_s), self.step_at(to_s));
        let is_away = |at: &usize| {
            let bytes: u64 = self.bytes[*at..at + length].iter().sum();
            let rate = bytes as f64 * 8.0 / (length as f64 * self.step_s);
            (rate / level_bits - 1.0).abs() > share
        };
        let last = (first..(end + 1).saturating_sub(length)).rev().find(is_away);
        last.map_or(0.0, |at| (at + length - first) as f64 * self.step_s)
    }

    /// The longest time between two times in which nothing arrived.
    #[must_use]
    pub fn longest_silence_s(&self, from_s: f64, to_s: f64) -> f64 {
        let steps = &self.bytes[self.step_at(from_s)..self.step_at(to_s)];
        let silences = steps.split(|bytes| *bytes > 0).map(<[u64]>::len);
        silences.max().unwrap_or(0) as f64 * self.step_s
    }

    /// Rates in Mbit/s over steps of another length, for a drawing.
    #[must_use]
    pub fn megabits(&self, step_s: f64) -> Vec<f64> {
        let steps = (self.seconds() / step_s + 1e-9) as usize;
        let rate = |at: usize| self.rate_bits(at as f64 * step_s, (at + 1) as f64 * step_s);
        (0..steps).map(|at| rate(at) / 1e6).collect()
    }

    fn step_at(&self, seconds: f64) -> usize {
        ((seconds / self.step_s).round().max(0.0) as usize).min(self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One second at a megabit, one silent, two at two.
    fn curve() -> Curve {
        let bytes = [12_500, 0, 25_000, 25_000].map(|bytes| vec![bytes; 10]).concat();
        Curve { step_s: 0.1, bytes }
    }

    #[test]
    fn rates_are_means_over_a_span() {
        let curve = curve();
        assert_eq!(curve.seconds(), 4.0);
        assert!((curve.rate_bits(0.0, 1.0) - 1e6).abs() < 1.0);
        assert!((curve.rate_bits(0.0, 4.0) - 1.25e6).abs() < 1.0);
        assert_eq!(curve.rate_bits(9.0, 10.0), 0.0);
        assert_eq!(curve.megabits(1.0).len(), 4);
    }

    #[test]
    fn a_level_is_reached_at_the_end_of_its_window() {
        let curve = curve();
        assert!((curve.reached_s(0.0, 0.99e6, 1.0).unwrap() - 1.0).abs() < 1e-9);
        assert!((curve.reached_s(1.0, 1.99e6, 1.0).unwrap() - 2.0).abs() < 1e-9);
        assert_eq!(curve.reached_s(0.0, 3e6, 1.0), None);
    }

    #[test]
    fn settled_is_what_stays() {
        let curve = curve();
        let settled = curve.settled_s(1.0, 4.0, 2e6, 0.25);
        assert!((settled - 1.7).abs() < 1e-9, "{settled}");
        assert_eq!(curve.settled_s(2.0, 4.0, 2e6, 0.25), 0.0);
        assert!((curve.settled_s(0.0, 4.0, 1e6, 0.25) - 4.0).abs() < 1e-9, "it left again");
    }

    #[test]
    fn a_silence_is_as_long_as_its_steps() {
        assert!((curve().longest_silence_s(0.0, 4.0) - 1.0).abs() < 1e-9);
        assert_eq!(curve().longest_silence_s(2.0, 4.0), 0.0);
    }
}
