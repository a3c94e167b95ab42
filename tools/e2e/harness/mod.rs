//! What the tests share: daemons, certificates, clients, memory, and the proxy between daemons.
//!
//! Each piece ends what it started when it is dropped. Waiting is always for a condition and always
//! bounded.

pub(crate) mod binary;
pub(crate) mod carrier;
pub(crate) mod client;
pub(crate) mod daemon;
pub(crate) mod lab;
pub(crate) mod memory;
pub(crate) mod metrics;
pub(crate) mod pki;
pub(crate) mod proxy;
pub(crate) mod qemu;
pub(crate) mod records;
pub(crate) mod stranger;

use std::time::{Duration, Instant};

/// The bound of a wait for something that takes milliseconds on an idle machine.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// Waits until `look` finds what it looks for; fails the test after `bound`.
pub(crate) fn wait_for<T>(what: &str, bound: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + bound;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {} s", bound.as_secs_f64());
        std::thread::park_timeout(LOOK);
    }
}

/// Waits until a condition holds; fails the test after `bound`.
pub(crate) fn wait_until(what: &str, bound: Duration, mut holds: impl FnMut() -> bool) {
    wait_for(what, bound, || holds().then_some(()));
}

/// Checks again and again, for so long, that what must hold all the time does.
pub(crate) fn observe(time: Duration, mut check: impl FnMut()) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        check();
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// A small generator of numbers: the same seed, the same numbers.
#[derive(Clone, Debug)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}
