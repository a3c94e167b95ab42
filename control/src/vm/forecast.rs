//! The forecast of a migration, and the decision when QEMU may stop the guest.
//!
//! Pure: figures of QEMU and of the data plane in, progress and a setting out. QEMU judges by how
//! fast its local socket drains, which coding distorts: pages that shrink tenfold make the link
//! look ten times as fast, and the last pages, the busiest ones, shrink least. So the raw
//! bandwidth is stated with the worst ratio of the last seconds, and the first round says nothing
//! of the pages that the guest changes: until some of those were coded, none is taken to shrink.

use super::convergence::{Convergence, Speeds};
use super::task::{LinkFigures, MigrationProgress, Stage};
use serde_json::Value;
use std::collections::VecDeque;

/// How many ratios are remembered: 3 s at five figures a second, so a few rounds near the end.
const RATIOS_KEPT: usize = 15;

/// The ratio of pages that do not shrink.
const NO_SHRINKING_MILLI: u32 = 1000;

/// The figures that come first after the first round may be of pages of both rounds.
const FIGURES_OF_BOTH_ROUNDS: u32 = 1;

/// Device state in coded bytes: 110 to 280 KB were seen, and it hardly shrinks.
const DEVICE_STATE_BYTES: u64 = 300_000;

/// Journals are written at both ends between the stop and the resumption.
const COMMIT_MS: u64 = 10;

/// The data path, the return path and the commit take a round trip each, of which the first half
/// overlaps with the last pages.
const ROUND_TRIPS: u64 = 2;

/// QEMU takes 0 as "estimate it yourself", and versions divide by 1000 as whole numbers.
const BANDWIDTH_MIN: u64 = 1000;

/// A downtime limit that QEMU meets only when next to nothing is left.
const HELD_LIMIT_MS: u64 = 1;

/// What QEMU tells of its migration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct QemuFigures {
    pub(super) total_bytes: u64,
    pub(super) remaining_bytes: u64,
    pub(super) transferred_bytes: u64,
    pub(super) rounds: u64,
    pub(super) dirty_pages_per_second: u64,
    pub(super) page_bytes: u64,
    /// What QEMU believes that its socket takes.
    pub(super) socket_bytes_per_second: u64,
    pub(super) throttle_percent: u32,
}

impl QemuFigures {
    /// Reads an answer to `query-migrate`. What is not there counts as 0.
    pub(super) fn parse(answer: &Value) -> Self {
        let ram = answer.get("ram");
        let number = |name| ram.and_then(|ram| ram.get(name)).and_then(Value::as_u64).unwrap_or(0);
        let megabits = ram.and_then(|ram| ram.get("mbps")).and_then(Value::as_f64).unwrap_or(0.0);
        let throttle = answer.get("cpu-throttle-percentage").and_then(Value::as_u64).unwrap_or(0);
        Self {
            total_bytes: number("total"),
            remaining_bytes: number("remaining"),
            transferred_bytes: number("transferred"),
            rounds: number("dirty-sync-count"),
            dirty_pages_per_second: number("dirty-pages-rate"),
            page_bytes: number("page-size").max(1),
            // Saturating: a float cast of ours can't wrap.
            socket_bytes_per_second: (megabits.max(0.0) * 125_000.0) as u64,
            throttle_percent: u32::try_from(throttle).unwrap_or(u32::MAX),
        }
    }
}

/// What QEMU is to be told, so that it stops the guest when the pause fits and not before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Switchover {
    /// The raw bandwidth of the switchover, for a QEMU that can be told.
    Bandwidth {
        /// To set.
        bytes_per_second: u64,
    },
    /// The downtime limit, for an older QEMU.
    Limit {
        /// To set.
        ms: u64,
    },
}

/// What was concluded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outlook {
    pub(super) progress: MigrationProgress,
    pub(super) switchover: Switchover,
}

/// The state of the forecast of one migration.
#[derive(Clone, Debug)]
pub(super) struct Forecast {
    limit_ms: u64,
    /// QEMU can be told the bandwidth.
    can_state: bool,
    /// Of the first round until it is over, then of the pages that were changed.
    ratios_milli: VecDeque<u32>,
    /// What came last, to tell new figures from ones that are looked at again.
    link: LinkFigures,
    /// How many came since the first round.
    figures_later: u32,
    convergence: Convergence,
}

impl Forecast {
    /// For a pause of at most `limit_ms`.
    pub(super) fn new(limit_ms: u64, can_state: bool) -> Self {
        Self {
            limit_ms,
            can_state,
            ratios_milli: VecDeque::with_capacity(RATIOS_KEPT),
            link: LinkFigures::default(),
            figures_later: 0,
            convergence: Convergence::default(),
        }
    }

    /// The downtime limit that is aimed at.
    pub(super) fn limit_ms(&self) -> u64 {
        self.limit_ms
    }

    /// Aims at another downtime limit from now on.
    pub(super) fn set_limit_ms(&mut self, limit_ms: u64) {
        self.limit_ms = limit_ms.max(1);
    }

    /// Takes new figures.
    pub(super) fn step(&mut self, qemu: &QemuFigures, link: &LinkFigures) -> Outlook {
        let was_first = self.convergence.is_first_round();
        self.convergence.observe(qemu.rounds, qemu.remaining_bytes);
        if was_first && !self.convergence.is_first_round() {
            self.ratios_milli.clear();
        }
        self.remember(link);

        let rate = link.rate_bytes_per_second;
        let (lowest, mean) = self.ratios();
        let careful = scaled(rate, lowest, 1000);
        let carried = scaled(rate, mean, 1000);
        let dirty = qemu.dirty_pages_per_second.saturating_mul(qemu.page_bytes);
        let overhead_ms = overhead_ms(link);
        // The link's own share may eat the whole limit. A quarter stays for pages, or a short
        // limit on a long link would never be tried at all; the forecast tells the true pause.
        let pages_ms = self.limit_ms.saturating_sub(overhead_ms).max(self.limit_ms / 4).max(1);
        let allowed = scaled(careful, pages_ms, 1000);
        let fits = qemu.remaining_bytes <= allowed;
        let switchover = self.switchover(allowed, fits, qemu.socket_bytes_per_second);
        let pause = |bytes, speed| millis(bytes, speed).map(|ms| ms.saturating_add(overhead_ms));
        let needed = pause(self.convergence.round_bytes(), careful);
        let speeds = Speeds {
            dirty_bytes_per_second: dirty,
            carried_bytes_per_second: carried,
            allowed_bytes: allowed,
        };
        let progress = MigrationProgress {
            stage: Stage::Precopy,
            total_bytes: qemu.total_bytes,
            remaining_bytes: qemu.remaining_bytes,
            transferred_bytes: qemu.transferred_bytes,
            rounds: qemu.rounds,
            dirty_bytes_per_second: dirty,
            carried_bytes_per_second: carried,
            end_in_ms: end_in_ms(qemu.remaining_bytes, carried, dirty, allowed)
                .map(|ms| ms.saturating_add(overhead_ms)),
            pause_ms: pause(qemu.remaining_bytes, careful),
            throttle_percent: qemu.throttle_percent,
            downtime_limit_ms: self.limit_ms,
            verdict: self.convergence.verdict(speeds, needed),
        };
        Outlook { progress, switchover }
    }

    /// Takes the ratio of new figures.
    fn remember(&mut self, link: &LinkFigures) {
        if !self.convergence.is_first_round() && *link != self.link {
            self.figures_later = self.figures_later.saturating_add(1);
        }
        self.link = *link;
        if !self.convergence.is_first_round() && self.figures_later <= FIGURES_OF_BOTH_ROUNDS {
            return;
        }
        if self.ratios_milli.len() == RATIOS_KEPT {
            self.ratios_milli.pop_front();
        }
        // Nothing coded yet: no shrinking is promised.
        let ratio = if link.ratio_milli == 0 { NO_SHRINKING_MILLI } else { link.ratio_milli };
        self.ratios_milli.push_back(ratio);
    }

    /// What the pages that are left may be relied upon to shrink by, and what pages shrank by
    /// lately.
    fn ratios(&self) -> (u64, u64) {
        let all = || self.ratios_milli.iter().copied().map(u64::from);
        let unknown = u64::from(NO_SHRINKING_MILLI);
        let lowest = all().min().unwrap_or(unknown);
        let count = u64::try_from(self.ratios_milli.len()).unwrap_or(u64::MAX);
        let mean = all().sum::<u64>().checked_div(count).unwrap_or(unknown);
        (if self.convergence.is_first_round() { lowest.min(unknown) } else { lowest }, mean)
    }

    fn switchover(&self, allowed: u64, fits: bool, socket: u64) -> Switchover {
        if self.can_state {
            // QEMU stops when what is left <= bandwidth x limit: with this one that is `allowed`.
            let bytes_per_second = scaled(allowed, 1000, self.limit_ms).max(BANDWIDTH_MIN);
            return Switchover::Bandwidth { bytes_per_second };
        }
        // QEMU multiplies the limit by its own estimate, so the limit is chosen to make that
        // `allowed`, never above the user's.
        let ms = if !fits {
            HELD_LIMIT_MS
        } else {
            millis(allowed, socket).unwrap_or(self.limit_ms).clamp(HELD_LIMIT_MS, self.limit_ms)
        };
        Switchover::Limit { ms }
    }
}

/// What a pause takes beside the pages.
fn overhead_ms(link: &LinkFigures) -> u64 {
    let round_trips = ROUND_TRIPS.saturating_mul(link.rtt_ns).div_ceil(1_000_000);
    let queued = link.backlog_bytes.saturating_add(DEVICE_STATE_BYTES);
    let drain = millis(queued, link.rate_bytes_per_second).unwrap_or(0);
    round_trips.saturating_add(drain).saturating_add(COMMIT_MS)
}

/// The time until what is left fits: each round copies what the guest wrote during the one before.
fn end_in_ms(remaining: u64, carried: u64, dirty: u64, allowed: u64) -> Option<u64> {
    // More rounds than this say that the end can't be foretold.
    const ROUNDS_MAX: u32 = 64;
    let mut left = remaining;
    let mut sum: u64 = 0;
    for _ in 0..ROUNDS_MAX {
        let round = millis(left, carried)?;
        sum = sum.saturating_add(round);
        if left <= allowed {
            return Some(sum);
        }
        if dirty >= carried {
            return None;
        }
        left = scaled(dirty, round, 1000);
    }
    None
}

/// Rounded up, so that a limit of this time has room for these bytes.
fn millis(bytes: u64, bytes_per_second: u64) -> Option<u64> {
    let millis = (u128::from(bytes) * 1000).div_ceil(u128::from(bytes_per_second.max(1)));
    (bytes_per_second > 0).then(|| u64::try_from(millis).unwrap_or(u64::MAX))
}

/// `value * times / parts`, saturating.
fn scaled(value: u64, times: u64, parts: u64) -> u64 {
    let product = u128::from(value) * u128::from(times) / u128::from(parts.max(1));
    u64::try_from(product).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::task::Verdict;

    const RATE: u64 = 12_000_000;
    const LINK: LinkFigures = LinkFigures {
        rate_bytes_per_second: RATE,
        ratio_milli: 4000,
        rtt_ns: 20_000_000,
        backlog_bytes: 100_000,
    };

    fn qemu(remaining_bytes: u64, rounds: u64, dirty_pages_per_second: u64) -> QemuFigures {
        QemuFigures {
            total_bytes: 512 << 20,
            remaining_bytes,
            transferred_bytes: 1 << 20,
            rounds,
            dirty_pages_per_second,
            page_bytes: 4096,
            socket_bytes_per_second: 4 * RATE,
            throttle_percent: 0,
        }
    }

    /// Would QEMU stop the guest now? By its own rule.
    fn stops(outlook: &Outlook, qemu: &QemuFigures, limit_ms: u64) -> bool {
        let threshold = match outlook.switchover {
            Switchover::Bandwidth { bytes_per_second } => bytes_per_second / 1000 * limit_ms,
            Switchover::Limit { ms } => qemu.socket_bytes_per_second / 1000 * ms,
        };
        qemu.remaining_bytes <= threshold
    }

    #[test]
    fn a_ratio_that_collapses_at_the_end_never_makes_a_longer_pause_than_allowed() {
        const LIMIT_MS: u64 = 500;
        for can_state in [true, false] {
            let mut forecast = Forecast::new(LIMIT_MS, can_state);
            // Rounds shrink; the pages that are left are the busiest ones and shrink no more.
            let series = [
                (400 << 20, 1, 4200),
                (160 << 20, 1, 4100),
                (30 << 20, 2, 3900),
                (18 << 20, 3, 3000),
                (9 << 20, 4, 1050),
                (8 << 20, 5, 1050),
                (5 << 20, 6, 1050),
                (4 << 20, 7, 1050),
                (2 << 20, 8, 1050),
                (1 << 20, 9, 1050),
            ];
            let mut stopped = None;
            for (remaining, rounds, ratio_milli) in series {
                let figures = qemu(remaining, rounds, 900);
                let link = LinkFigures { ratio_milli, ..LINK };
                let outlook = forecast.step(&figures, &link);
                if stops(&outlook, &figures, LIMIT_MS) {
                    let pages_ms = remaining * 1000 / (RATE * u64::from(ratio_milli) / 1000);
                    stopped = Some(pages_ms + overhead_ms(&link));
                    break;
                }
            }
            let pause_ms = stopped.expect("it ends");
            assert!(pause_ms <= LIMIT_MS, "{pause_ms} ms with can_state={can_state}");
        }
    }

    #[test]
    fn the_first_round_promises_nothing_of_the_pages_that_the_guest_changes() {
        const LIMIT_MS: u64 = 300;
        let mut forecast = Forecast::new(LIMIT_MS, true);
        // In the form of recorded ones: pages that are nearly empty, of which a tenth is filled
        // with random bytes meanwhile. QEMU's second pass comes between two figures of ours.
        let series = [
            (90 << 20, 1, 31_000),
            (50 << 20, 1, 29_000),
            (10 << 20, 2, 29_000),
            (9 << 20, 2, 9_000),
            (7 << 20, 2, 1_010),
            (4 << 20, 3, 1_005),
            (2 << 20, 4, 1_004),
            (1 << 20, 5, 1_006),
        ];
        let (mut pauses, mut stopped) = (Vec::new(), None);
        for (remaining, rounds, ratio_milli) in series {
            let figures = qemu(remaining, rounds, 1800);
            let outlook = forecast.step(&figures, &LinkFigures { ratio_milli, ..LINK });
            pauses.push(outlook.progress.pause_ms.expect("the rate is known"));
            if stops(&outlook, &figures, LIMIT_MS) {
                stopped = Some(remaining);
                break;
            }
        }
        assert_eq!(stopped, Some(2 << 20), "{pauses:?}");
        assert!(pauses[2] > 2 * LIMIT_MS, "{pauses:?}");
    }

    #[test]
    fn changed_pages_that_shrink_are_relied_upon_once_some_were_coded() {
        let mut forecast = Forecast::new(300, true);
        forecast.step(&qemu(90 << 20, 1, 0), &LinkFigures { ratio_milli: 1000, ..LINK });
        let mut pauses = Vec::new();
        for ratio_milli in [7000, 7001, 8000] {
            let link = LinkFigures { ratio_milli, ..LINK };
            let progress = forecast.step(&qemu(8 << 20, 2, 1800), &link).progress;
            pauses.push(progress.pause_ms.expect("the rate is known"));
        }
        // 8 MiB at 12 MB/s take 700 ms, a seventh of that once it is known.
        assert!(pauses[0] > 700 && pauses[1] < 200 && pauses[1] == pauses[2], "{pauses:?}");
    }

    #[test]
    fn an_old_qemu_is_held_until_the_rest_fits() {
        let mut forecast = Forecast::new(300, false);
        let far = forecast.step(&qemu(100 << 20, 2, 10), &LINK);
        assert_eq!(far.switchover, Switchover::Limit { ms: 1 });
        let near = forecast.step(&qemu(1 << 20, 3, 10), &LINK);
        let Switchover::Limit { ms } = near.switchover else { panic!("{near:?}") };
        assert!(ms > 1 && ms <= 300, "{ms}");
    }

    #[test]
    fn without_figures_of_the_link_nothing_is_stopped() {
        let none = LinkFigures::default();
        let new = Forecast::new(300, true).step(&qemu(1 << 20, 1, 0), &none);
        assert_eq!(new.switchover, Switchover::Bandwidth { bytes_per_second: BANDWIDTH_MIN });
        assert_eq!(new.progress.end_in_ms, None);
        assert_eq!(new.progress.verdict, Verdict::Unknown);
        let old = Forecast::new(300, false).step(&qemu(1 << 20, 1, 0), &none);
        assert_eq!(old.switchover, Switchover::Limit { ms: 1 });
    }

    #[test]
    fn a_guest_that_writes_faster_than_the_link_carries_is_called_hopeless_with_its_cure() {
        let mut forecast = Forecast::new(300, true);
        let slow = LinkFigures { ratio_milli: 1000, ..LINK };
        let busy = qemu(80 << 20, 3, 5000);
        let mut verdict = || forecast.step(&busy, &slow).progress.verdict;
        (0..9).for_each(|_| assert_eq!(verdict(), Verdict::Unknown));
        let last = verdict();
        let Verdict::WillNotConverge { downtime_needed_ms, .. } = last else { panic!("{last:?}") };
        // With the limit that is named it ends.
        forecast.set_limit_ms(downtime_needed_ms);
        let outlook = forecast.step(&busy, &slow);
        assert_eq!(outlook.progress.verdict, Verdict::Converging);
        assert!(last.because().unwrap().contains("--downtime-limit"));
    }

    #[test]
    fn the_end_is_foretold_by_the_rounds_to_come() {
        // 100 MB at 10 MB/s while 1 MB/s is written: 10 s, then 1 s, then 0.1 s.
        assert_eq!(end_in_ms(100_000_000, 10_000_000, 1_000_000, 1_000_000), Some(11_100));
        assert_eq!(end_in_ms(100, 10, 10, 1), None);
        assert_eq!(end_in_ms(5, 10, 100, 5), Some(500));
        assert_eq!(end_in_ms(5, 0, 0, 5), None);
    }

    #[test]
    fn wild_figures_neither_wrap_nor_panic() {
        let wild = QemuFigures {
            total_bytes: u64::MAX,
            remaining_bytes: u64::MAX,
            dirty_pages_per_second: u64::MAX,
            page_bytes: u64::MAX,
            rounds: 9,
            ..QemuFigures::default()
        };
        let link = LinkFigures {
            rate_bytes_per_second: u64::MAX,
            ratio_milli: u32::MAX,
            rtt_ns: u64::MAX / 4,
            backlog_bytes: u64::MAX,
        };
        for can_state in [true, false] {
            let mut forecast = Forecast::new(u64::MAX, can_state);
            forecast.step(&wild, &link);
            forecast.step(&QemuFigures::default(), &LinkFigures::default());
        }
        assert_eq!(QemuFigures::parse(&Value::Null).page_bytes, 1);
    }
}
