//! Will a migration end? A guest outruns the link when it writes more than that carries. One that
//! changes the same pages again and again does not even need to: QEMU counts a page once a round,
//! so such a guest writes, by QEMU's figures, just what the last round carried. It shows by rounds
//! that find as much as the one before.

use super::task::Verdict;

/// How many figures in a row must say so before a migration is called hopeless: 2 s.
const HOPELESS_FIGURES: u32 = 10;

/// How many rounds in a row must find hardly less than before.
const STALLED_ROUNDS: u64 = 3;

/// Less than this much of what an earlier round found is nearer to the end, in percent.
const NEARER_PERCENT: u64 = 90;

/// What is known of the rounds so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Convergence {
    round: u64,
    /// The most that was left in this round, that is at its beginning.
    round_bytes: u64,
    /// What the round found that came nearer to the end last; none before the second round.
    nearest_bytes: Option<u64>,
    /// How many rounds began since.
    stalled_rounds: u64,
    /// How many figures came since.
    stalled_figures: u32,
    /// How many figures in a row said that the guest writes more than is carried.
    outrun_figures: u32,
}

/// What a round is judged by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Speeds {
    /// What the guest writes.
    pub(super) dirty_bytes_per_second: u64,
    /// What the link carries of it.
    pub(super) carried_bytes_per_second: u64,
    /// What may be left when the guest is stopped.
    pub(super) allowed_bytes: u64,
}

impl Convergence {
    /// Takes what QEMU tells of its rounds.
    pub(super) fn observe(&mut self, round: u64, remaining_bytes: u64) {
        if round != self.round {
            self.stalled_rounds =
                self.stalled_rounds.saturating_add(round.saturating_sub(self.round));
            self.round = round;
            self.round_bytes = 0;
        }
        self.stalled_figures = self.stalled_figures.saturating_add(1);
        if remaining_bytes <= self.round_bytes {
            return;
        }
        self.round_bytes = remaining_bytes;
        if self.is_first_round() {
            return;
        }
        let is_nearer = self.nearest_bytes.is_none_or(|nearest| {
            u128::from(remaining_bytes) * 100 < u128::from(nearest) * u128::from(NEARER_PERCENT)
        });
        if is_nearer {
            self.nearest_bytes = Some(remaining_bytes);
            self.stalled_rounds = 0;
            self.stalled_figures = 0;
        }
    }

    /// Its pages are sent for the first time.
    pub(super) fn is_first_round(&self) -> bool {
        self.round < 2
    }

    /// What this round began with.
    pub(super) fn round_bytes(&self) -> u64 {
        self.round_bytes
    }

    /// Will it end? `downtime_needed_ms` is the pause that this whole round would take.
    pub(super) fn verdict(&mut self, speeds: Speeds, downtime_needed_ms: Option<u64>) -> Verdict {
        let Speeds { dirty_bytes_per_second, carried_bytes_per_second, allowed_bytes } = speeds;
        // In the first round nothing is known of what the guest writes.
        if self.is_first_round() || carried_bytes_per_second == 0 {
            return Verdict::Unknown;
        }
        let fits = self.round_bytes <= allowed_bytes;
        let is_outrun = !fits && dirty_bytes_per_second >= carried_bytes_per_second;
        self.outrun_figures = if is_outrun { self.outrun_figures.saturating_add(1) } else { 0 };
        let is_stalled = !fits
            && self.stalled_rounds >= STALLED_ROUNDS
            && self.stalled_figures >= HOPELESS_FIGURES;
        if is_stalled || self.outrun_figures >= HOPELESS_FIGURES {
            return Verdict::WillNotConverge {
                dirty_bytes_per_second,
                carried_bytes_per_second,
                round_bytes: self.round_bytes,
                downtime_needed_ms: downtime_needed_ms.unwrap_or(u64::MAX),
            };
        }
        if is_outrun { Verdict::Unknown } else { Verdict::Converging }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARRIED: u64 = 2_400_000;
    const ALLOWED: u64 = 400_000;
    /// Five figures a second.
    const FIGURES: u64 = 5;

    /// The verdicts over rounds that begin with these bytes while the guest writes so much.
    fn verdicts(rounds: &[u64], dirty: impl Fn(u64) -> u64) -> Vec<Verdict> {
        let (mut convergence, mut verdicts) = (Convergence::default(), Vec::new());
        for (round, &begin) in (1..).zip(rounds) {
            let mut left = begin;
            while left > 0 {
                convergence.observe(round, left);
                let speeds = Speeds {
                    dirty_bytes_per_second: dirty(u64::try_from(verdicts.len()).unwrap()),
                    carried_bytes_per_second: CARRIED,
                    allowed_bytes: ALLOWED,
                };
                verdicts.push(convergence.verdict(speeds, Some(5000)));
                left = left.saturating_sub(CARRIED / FIGURES);
            }
        }
        verdicts
    }

    fn is_hopeless(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::WillNotConverge { .. })
    }

    #[test]
    fn a_guest_that_outruns_the_link_is_hopeless_after_two_seconds() {
        let said = verdicts(&[40_000_000, 12_000_000], |_| 2 * CARRIED);
        let first = said.iter().position(|it| *it != Verdict::Unknown).expect("it is said");
        let rounds = usize::try_from(40_000_000_u64.div_ceil(CARRIED / FIGURES)).unwrap();
        assert_eq!(first + 1 - rounds, usize::try_from(HOPELESS_FIGURES).unwrap());
        assert!(said[first..].iter().all(is_hopeless));
    }

    #[test]
    fn a_guest_that_changes_the_same_pages_again_and_again_is_hopeless_after_some_rounds() {
        // Its rate swings around what is carried, never above it for as much as two seconds.
        let dirty = |step| if step % 7 < 4 { CARRIED + 90_000 } else { CARRIED - 90_000 };
        let rounds = [40_000_000, 12_800_000, 12_300_000, 12_500_000, 12_100_000, 12_400_000];
        let said = verdicts(&rounds, dirty);
        assert!(said.last().is_some_and(is_hopeless), "{said:?}");
        let before: u64 = rounds[..4].iter().map(|it| it.div_ceil(CARRIED / FIGURES)).sum();
        let before = usize::try_from(before).unwrap();
        assert!(!said[..before].iter().any(is_hopeless), "too early: {said:?}");
        assert!(said[before..].iter().all(is_hopeless), "{said:?}");
    }

    #[test]
    fn rounds_that_shrink_converge_however_slowly() {
        let mut rounds = vec![40_000_000, 12_800_000];
        while *rounds.last().unwrap() > ALLOWED {
            rounds.push(rounds.last().unwrap() * 19 / 20);
        }
        let said = verdicts(&rounds, |_| CARRIED * 19 / 20);
        assert!(!said.iter().any(is_hopeless));
        assert_eq!(said.last(), Some(&Verdict::Converging));
    }

    #[test]
    fn a_guest_that_is_slowed_down_converges_again() {
        let stalled = [40_000_000, 12_800_000, 12_300_000, 12_500_000, 12_100_000];
        let slowed = [stalled.as_slice(), &[9_000_000, 4_000_000]].concat();
        assert!(verdicts(&stalled, |_| CARRIED - 1).last().is_some_and(is_hopeless));
        assert_eq!(verdicts(&slowed, |_| CARRIED / 2).last(), Some(&Verdict::Converging));
    }
}
