//! Why a migration stream is coded as it is: where the source's time went lately.
//!
//! Pure, on the control thread; fed with the data plane's counters a few times a second. The level
//! itself is the shard's choice, by the same two shares of the time.

use dwcp_proto::time::Nanos;
use serde_json::{Value, json};

/// How much a new share counts beside what is known: the shares are those of about a second.
const NEWEST: f64 = 0.25;
/// From these shares of the time on, the link or the core is what the rest waits for.
const LINK_SHARE: f64 = 0.25;
const CORE_SHARE: f64 = 0.75;

/// What a source's counters say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CoderCounters {
    /// The zstd level; 0 before the first page.
    pub(crate) level: u64,
    /// Time spent on coding so far.
    pub(crate) coding_ns: u64,
    /// Time spent on waiting for the link so far.
    pub(crate) held_ns: u64,
    /// Coded bytes so far.
    pub(crate) coded_bytes: u64,
}

/// Where the time of a source goes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Coder {
    at: Nanos,
    last: CoderCounters,
    since: Nanos,
    core: f64,
    link: f64,
    bits_per_second: f64,
}

impl Coder {
    /// Takes the newest counters in.
    pub(crate) fn advance(&mut self, now: Nanos, counters: CoderCounters) {
        let span = now.since(self.at).0.max(1) as f64;
        let share = |new: u64, old: u64| (new.saturating_sub(old) as f64 / span).min(1.0);
        let weight = if self.last.level == 0 { 1.0 } else { NEWEST };
        let blend = |known: f64, newest: f64| known + (newest - known) * weight;
        self.core = blend(self.core, share(counters.coding_ns, self.last.coding_ns));
        self.link = blend(self.link, share(counters.held_ns, self.last.held_ns));
        let bytes = counters.coded_bytes.saturating_sub(self.last.coded_bytes) as f64;
        self.bits_per_second = blend(self.bits_per_second, bytes * 8e9 / span);
        if counters.level != self.last.level {
            self.since = now;
        }
        (self.at, self.last) = (now, counters);
    }

    /// What clients see; null before the first page.
    pub(crate) fn view(&self, now: Nanos) -> Value {
        let level = self.last.level;
        if level == 0 {
            return Value::Null;
        }
        let since_s = now.since(self.since).0 as f64 / 1e9;
        let (core, mbit) = (self.core * 100.0, self.bits_per_second / 1e6);
        let (bottleneck, words) = if self.link >= LINK_SHARE {
            ("link", format!("the link, {mbit:.0} Mbit/s, is the bottleneck; the core is at"))
        } else if self.core >= CORE_SHARE {
            (
                "core",
                format!("the core is the bottleneck, the link carries {mbit:.0} Mbit/s; it is at"),
            )
        } else {
            (
                "vmm",
                format!(
                    "the VMMs are the bottleneck, the link carries {mbit:.0} Mbit/s; the core is at"
                ),
            )
        };
        json!({
            "zstd_level": level, "since_s": (since_s * 10.0).round() / 10.0,
            "bottleneck": bottleneck, "bits_per_s": self.bits_per_second.round(),
            "core_share": (self.core * 1000.0).round() / 1000.0,
            "link_wait_share": (self.link * 1000.0).round() / 1000.0,
            "why": format!("zstd-{level} since {since_s:.1} s: {words} {core:.0} %"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds a second of so many milliseconds of coding and of waiting, from `start` on.
    fn second(coder: &mut Coder, start: u64, level: u64, coding_ms: u64, held_ms: u64) {
        for step in 1..=5 {
            let last = coder.last;
            coder.advance(
                Nanos::from_millis(start * 1000 + step * 200),
                CoderCounters {
                    level,
                    coding_ns: last.coding_ns + coding_ms * 200_000,
                    held_ns: last.held_ns + held_ms * 200_000,
                    coded_bytes: last.coded_bytes + 2_400_000,
                },
            );
        }
    }

    #[test]
    fn what_everything_waits_for_is_named_with_the_shares_of_the_time() {
        for (coding_ms, held_ms, bottleneck, words) in [
            (410, 590, "link", "the link, 96 Mbit/s, is the bottleneck; the core is at 41 %"),
            (
                950,
                10,
                "core",
                "the core is the bottleneck, the link carries 96 Mbit/s; it is at 95 %",
            ),
            (300, 50, "vmm", "the VMMs are the bottleneck"),
        ] {
            let mut coder = Coder::default();
            assert_eq!(coder.view(Nanos(0)), Value::Null);
            second(&mut coder, 0, 6, coding_ms, held_ms);
            let view = coder.view(Nanos::from_millis(4300));
            assert_eq!(view["bottleneck"], bottleneck);
            let why = view["why"].as_str().unwrap();
            assert!(why.starts_with("zstd-6 since 4.1 s: ") && why.contains(words), "{why}");
        }
    }

    #[test]
    fn a_new_level_counts_from_its_first_figures_on() {
        let mut coder = Coder::default();
        second(&mut coder, 0, 2, 300, 700);
        second(&mut coder, 1, 7, 700, 300);
        let view = coder.view(Nanos::from_millis(2000));
        assert_eq!((&view["zstd_level"], &view["since_s"]), (&json!(7), &json!(0.8)));
        let share = view["core_share"].as_f64().unwrap();
        assert!((0.5..0.7).contains(&share), "{share}: not at once");
    }
}
