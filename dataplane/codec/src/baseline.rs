//! What plain zstd-1 makes of single pages: the yardstick that results are shown beside.
//!
//! Owns a compression context of its own; never part of what is sent. Called on a shard, only if a
//! session asks for the comparison.

use crate::page::{PAGE_BYTES, Page};
use std::fmt;
use zstd_safe::CCtx;

/// Counts what plain zstd at level 1 makes of single pages.
pub struct Baseline {
    context: CCtx<'static>,
    coded: Box<[u8; PAGE_BYTES]>,
}

impl Baseline {
    /// Takes all memory that it will need.
    #[must_use]
    pub fn new() -> Self {
        Self { context: CCtx::create(), coded: Box::new([0; PAGE_BYTES]) }
    }

    /// The bytes of the page's zstd-1 frame, or a page's bytes if the frame isn't smaller.
    pub fn page_bytes(&mut self, page: &Page) -> usize {
        // The room is a page, so an error means that the frame would be longer.
        self.context.compress(&mut self.coded[..], page, 1).unwrap_or(PAGE_BYTES)
    }
}

impl Default for Baseline {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Baseline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Baseline")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_counts_at_most_its_own_size() {
        let mut baseline = Baseline::new();
        assert!(baseline.page_bytes(&[7; PAGE_BYTES]) < 64);
        let mut state = 1u64;
        let noise = std::array::from_fn(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        });
        assert_eq!(baseline.page_bytes(&noise), PAGE_BYTES);
    }
}
