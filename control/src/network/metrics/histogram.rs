//! A data-plane histogram in nanoseconds as a Prometheus summary in seconds.
//!
//! Pure, on the control thread. The shard's cells go through an hdrhistogram, which computes the
//! quantiles; the cells' own error (at most 6 %) is larger than what that adds.

use super::text::TextBuilder;
use hdrhistogram::Histogram;

const QUANTILES: [(f64, &str); 4] = [(0.5, "0.5"), (0.9, "0.9"), (0.99, "0.99"), (0.999, "0.999")];

/// Quantiles, sum and count of a histogram.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Summary {
    quantiles: [f64; QUANTILES.len()],
    sum: f64,
    count: u64,
}

/// Summarises cells of (nanoseconds, count).
#[allow(clippy::cast_precision_loss, reason = "a sum in seconds needs no more than 53 bits")]
pub(crate) fn summary_of(cells: impl Iterator<Item = (u64, u64)>) -> Summary {
    let mut sum = 0.0;
    // Two digits keep a scrape small, and are finer than the cells.
    let mut histogram = Histogram::<u64>::new(2).ok();
    let mut total = 0;
    for (nanos, count) in cells.filter(|(_, count)| *count > 0) {
        total += count;
        sum += nanos as f64 * count as f64 / 1e9;
        if let Some(histogram) = &mut histogram {
            // It grows to whatever comes; only memory could fail it, and then a cell is missing.
            let _ = histogram.record_n(nanos.max(1), count);
        }
    }
    let quantiles = QUANTILES.map(|(quantile, _)| match &histogram {
        Some(histogram) if total > 0 => histogram.value_at_quantile(quantile) as f64 / 1e9,
        _ => f64::NAN,
    });
    Summary { quantiles, sum, count: total }
}

impl Summary {
    /// Writes the samples of the family `name`, which is begun already.
    #[allow(clippy::cast_precision_loss, reason = "counts beyond 2^53 do not occur")]
    pub(crate) fn write(&self, text: &mut TextBuilder, name: &str, labels: &[(&str, &str)]) {
        for (value, (_, quantile)) in self.quantiles.iter().zip(QUANTILES) {
            let mut labels = labels.to_vec();
            labels.push(("quantile", quantile));
            text.sample(name, &labels, *value);
        }
        text.sample(&format!("{name}_sum"), labels, self.sum);
        text.sample(&format!("{name}_count"), labels, self.count as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nanoseconds_become_seconds() {
        let summary = summary_of([(1_000_000, 99), (1_000_000_000, 1)].into_iter());
        assert_eq!(summary.count, 100);
        assert!((summary.sum - 1.099).abs() < 1e-9);
        assert!((summary.quantiles[0] - 0.001).abs() < 1e-4);
        assert!((summary.quantiles[3] - 1.0).abs() < 0.02);
    }

    #[test]
    fn an_empty_histogram_has_no_quantiles() {
        let summary = summary_of(std::iter::empty());
        assert_eq!(summary.count, 0);
        assert!(summary.quantiles.iter().all(|q| q.is_nan()));
    }
}
