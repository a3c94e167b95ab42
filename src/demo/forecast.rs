//! When to stop the writer: a forecast of the last round from the rounds so far.
//!
//! Pure; asked once after each round by the pre-copy loop.

use std::time::Duration;

/// Rounds after which the writer is stopped in any case.
const ROUNDS_MAX: u32 = 30;
/// Rounds in a row without progress after which more are of no use.
const STALLED_ROUNDS_MAX: u32 = 3;
/// A round makes progress when its forecast is below this share of the best one before.
const PROGRESS: f64 = 0.9;
/// A round with fewer pages says more about round trips than about the time per page.
const PAGES_MIN: u64 = 512;

/// What to do after a round.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Verdict {
    /// Another round with the writer running.
    Continue,
    /// The last round is short enough.
    StopWriter,
    /// It isn't, and more rounds won't make it so.
    WillNotConverge {
        /// How long the last round should take.
        forecast_seconds: f64,
    },
}

/// The forecast.
#[derive(Debug)]
pub(crate) struct Forecast {
    target_seconds: f64,
    seconds_per_page: f64,
    best_seconds: f64,
    stalled_rounds: u32,
    rounds: u32,
}

impl Forecast {
    /// For a last round that should take no longer than `target`.
    pub(crate) fn new(target: Duration) -> Self {
        Self {
            target_seconds: target.as_secs_f64(),
            seconds_per_page: 0.0,
            best_seconds: f64::INFINITY,
            stalled_rounds: 0,
            rounds: 0,
        }
    }

    /// Takes in a round that sent so many pages in so many seconds and left `pending_pages` that
    /// changed meanwhile.
    pub(crate) fn after_round(
        &mut self,
        pages_sent: u64,
        seconds: f64,
        pending_pages: u64,
    ) -> Verdict {
        self.rounds += 1;
        if pages_sent >= PAGES_MIN || self.rounds == 1 {
            self.seconds_per_page = seconds / pages_sent.max(1) as f64;
        }
        let forecast_seconds = pending_pages as f64 * self.seconds_per_page;
        if forecast_seconds <= self.target_seconds {
            return Verdict::StopWriter;
        }
        let progress = forecast_seconds < self.best_seconds * PROGRESS;
        self.stalled_rounds = if progress { 0 } else { self.stalled_rounds + 1 };
        self.best_seconds = self.best_seconds.min(forecast_seconds);
        if self.stalled_rounds >= STALLED_ROUNDS_MAX || self.rounds >= ROUNDS_MAX {
            return Verdict::WillNotConverge { forecast_seconds };
        }
        Verdict::Continue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: Duration = Duration::from_millis(50);

    /// Runs rounds with a link of `link` and a writer of `writer` pages per second.
    fn rounds(link: f64, writer: f64) -> (u32, Verdict) {
        let mut forecast = Forecast::new(TARGET);
        let mut pages = 262_144.0_f64;
        loop {
            let seconds = pages / link;
            let pending = (seconds * writer).min(262_144.0).floor();
            let verdict = forecast.after_round(pages as u64, seconds, pending as u64);
            if verdict != Verdict::Continue {
                return (forecast.rounds, verdict);
            }
            pages = pending;
        }
    }

    #[test]
    fn a_slow_writer_converges_in_few_rounds() {
        let (count, verdict) = rounds(100_000.0, 20_000.0);
        assert_eq!(verdict, Verdict::StopWriter);
        assert!(count <= 4, "{count} rounds");
    }

    #[test]
    fn a_writer_faster_than_the_link_is_told_after_a_few_rounds() {
        let (count, verdict) = rounds(100_000.0, 300_000.0);
        let Verdict::WillNotConverge { forecast_seconds } = verdict else { panic!("{verdict:?}") };
        assert!(forecast_seconds > 1.0);
        assert!(count <= 5, "{count} rounds");
    }

    #[test]
    fn slow_progress_ends_at_the_bound_on_rounds() {
        let mut forecast = Forecast::new(TARGET);
        let mut pending = 1e15;
        let mut count = 0;
        loop {
            count += 1;
            pending *= 0.8;
            if forecast.after_round(1000, 1.0, pending as u64) != Verdict::Continue {
                break;
            }
        }
        assert_eq!(count, ROUNDS_MAX);
    }

    #[test]
    fn an_idle_guest_needs_one_round() {
        assert_eq!(Forecast::new(TARGET).after_round(0, 0.0, 0), Verdict::StopWriter);
        assert_eq!(Forecast::new(TARGET).after_round(262_144, 3.0, 0), Verdict::StopWriter);
    }

    #[test]
    fn a_tiny_round_does_not_spoil_the_time_per_page() {
        let mut forecast = Forecast::new(Duration::from_millis(10));
        assert_eq!(forecast.after_round(100_000, 1.0, 2000), Verdict::Continue);
        // 3 pages in 2 ms are round trips, not 0.7 ms per page.
        assert_eq!(forecast.after_round(3, 0.002, 900), Verdict::StopWriter);
    }
}
