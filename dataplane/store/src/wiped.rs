//! A buffer that is wiped when it is dropped.
//!
//! Pages are guests' memory: they must not stay in ours once nobody needs them.

use std::fmt;
use zeroize::Zeroize;

/// A buffer that is wiped when it is dropped.
pub(crate) struct Wiped<const BYTES: usize>(pub(crate) Box<[u8; BYTES]>);

impl<const BYTES: usize> Wiped<BYTES> {
    pub(crate) fn new() -> Self {
        Self(Box::new([0; BYTES]))
    }

    pub(crate) fn wipe(&mut self) {
        self.0.zeroize();
    }
}

impl<const BYTES: usize> Drop for Wiped<BYTES> {
    fn drop(&mut self) {
        self.wipe();
    }
}

impl<const BYTES: usize> fmt::Debug for Wiped<BYTES> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wiped(redacted)")
    }
}
