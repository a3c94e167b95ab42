//! Which segments a link loses: runs of kept and of lost ones, one after the other.
//!
//! Pure; the random numbers are its own and start with the link's seed. A run has a geometric
//! length, so that loss without bursts is independent for each segment and loss with bursts is the
//! simple Gilbert model with the same share.

/// A small generator of random numbers (splitmix64).
#[derive(Clone, Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number between 0 and 1, both excluded.
    pub(super) fn unit(&mut self) -> f64 {
        ((self.word() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// How many tries it takes until one with this chance succeeds: 1 or more.
    fn tries(&mut self, chance: f64) -> u64 {
        if chance >= 1.0 { 1 } else { (self.unit().ln() / (1.0 - chance).ln()) as u64 + 1 }
    }
}

/// The loss process of one direction.
#[derive(Debug)]
pub(super) struct Loss {
    random: Random,
    share: f64,
    /// Chance that a kept segment is followed by a lost one, and the other way round.
    to_lost: f64,
    to_kept: f64,
    loses: bool,
    left: u64,
}

impl Loss {
    pub(super) fn new(seed: u64) -> Self {
        let random = Random(seed);
        Self { random, share: 0.0, to_lost: 0.0, to_kept: 1.0, loses: false, left: 0 }
    }

    /// Takes another share and mean burst; bursts of 0 mean that each segment is on its own.
    pub(super) fn set(&mut self, share: f64, burst: f64) {
        let independent = 1.0 / (1.0 - share);
        let burst = if burst > 0.0 { burst.max(1.0) } else { independent };
        self.share = share;
        self.to_kept = 1.0 / burst;
        self.to_lost = (share * self.to_kept / (1.0 - share)).min(1.0);
        self.loses = false;
        self.left = if self.is_mixed() { self.random.tries(self.to_lost) } else { 0 };
    }

    /// The beginning of the next `count` segments that has one fate: how many, and are they lost.
    pub(super) fn run(&mut self, count: u64) -> (u64, bool) {
        if !self.is_mixed() {
            return (count, self.share >= 1.0);
        }
        if self.left == 0 {
            self.loses = !self.loses;
            let chance = if self.loses { self.to_kept } else { self.to_lost };
            self.left = self.random.tries(chance);
        }
        let run = count.min(self.left);
        self.left -= run;
        (run, self.loses)
    }

    fn is_mixed(&self) -> bool {
        self.share > 0.0 && self.share < 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENTS: u64 = 2_000_000;

    /// Lost segments, and runs of them.
    fn lost(share: f64, burst: f64, seed: u64) -> (u64, u64) {
        let mut loss = Loss::new(seed);
        loss.set(share, burst);
        let (mut done, mut lost, mut runs, mut was_lost) = (0, 0, 0, false);
        while done < SEGMENTS {
            let (run, is_lost) = loss.run((SEGMENTS - done).min(44));
            done += run;
            lost += if is_lost { run } else { 0 };
            runs += u64::from(is_lost && !was_lost);
            was_lost = is_lost;
        }
        (lost, runs)
    }

    #[test]
    fn the_share_is_kept_with_and_without_bursts() {
        for (share, burst) in [(0.001, 0.0), (0.01, 0.0), (0.5, 0.0), (0.01, 5.0), (0.1, 20.0)] {
            let (lost, runs) = lost(share, burst, 11);
            let found = lost as f64 / SEGMENTS as f64;
            assert!((found / share - 1.0).abs() < 0.1, "share {share} burst {burst}: {found}");
            if burst > 0.0 {
                let mean = lost as f64 / runs as f64;
                assert!((mean / burst - 1.0).abs() < 0.1, "burst {burst}: {mean}");
            }
        }
    }

    #[test]
    fn nothing_and_everything_are_exact() {
        assert_eq!(lost(0.0, 0.0, 1).0, 0);
        assert_eq!(lost(1.0, 0.0, 1).0, SEGMENTS);
    }

    #[test]
    fn the_same_seed_loses_the_same() {
        assert_eq!(lost(0.01, 3.0, 5), lost(0.01, 3.0, 5));
        assert_ne!(lost(0.01, 3.0, 5), lost(0.01, 3.0, 6));
    }
}
