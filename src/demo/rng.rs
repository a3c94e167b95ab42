//! The demo's random numbers: xoshiro256++ seeded through splitmix64.
//!
//! Plain values, used by the filler and the writer. The same seed gives the same numbers on each
//! machine and in each release, so that a run can be repeated. Never used for keys or secrets.

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub(crate) struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// The stream of `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        let mut mixer = seed;
        let mut next = || {
            mixer = mixer.wrapping_add(0x9e37_79b9_7f4a_7c15);
            mix(mixer)
        };
        Self { state: [next(), next(), next(), next()] }
    }

    /// The stream of one subject (a page, a version, a thread) of `seed`.
    pub(crate) fn of(seed: u64, subject: u64, version: u64) -> Self {
        Self::new(mix(mix(seed ^ mix(subject)).wrapping_add(version)))
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        let s = &mut self.state;
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let shifted = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= shifted;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number below `bound`, by multiplication: the bias is below `bound` / 2^32.
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        // The product of two 32-bit numbers, shifted by 32, fits in 32 bits.
        (((self.next() >> 32) * u64::from(bound)) >> 32) as u32
    }
}

/// The finalizer of splitmix64: each bit of the result depends on each bit of `value`.
pub(crate) const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_names_one_stream() {
        let numbers = |seed| {
            let mut rng = Rng::new(seed);
            [rng.next(), rng.next(), rng.next()]
        };
        assert_eq!(numbers(7), numbers(7));
        assert_ne!(numbers(7), numbers(8));
        assert_ne!(Rng::of(1, 2, 3).next(), Rng::of(1, 3, 2).next());
    }

    #[test]
    fn numbers_below_a_bound_reach_each_value_and_never_the_bound() {
        let mut rng = Rng::new(1);
        let mut seen = [0_u32; 10];
        for _ in 0..10_000 {
            seen[rng.below(10) as usize] += 1;
        }
        assert!(seen.iter().all(|&count| (800..1200).contains(&count)), "{seen:?}");
    }
}
