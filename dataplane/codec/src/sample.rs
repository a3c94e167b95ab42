//! A quick guess whether a page is worth the compressor's time.
//!
//! Pages of encrypted or already compressed data cost zstd as much as others and give nothing.
//! A histogram over a quarter of the page tells them apart. Plain functions, used on shards.

use crate::page::Page;
use crate::policy::RANDOM_SQUARES_MAX;

/// Bytes taken of every [`STRIDE_BYTES`].
const TAKEN_BYTES: usize = 8;
const STRIDE_BYTES: usize = 32;
/// Bytes that are looked at.
pub(crate) const SAMPLE_BYTES: u32 = (crate::PAGE_BYTES / STRIDE_BYTES * TAKEN_BYTES) as u32;

/// True if the byte values of the page are spread so evenly that no entropy coder gains from them.
/// A page of even spread that repeats itself is taken for random too.
#[must_use]
pub fn looks_random(page: &Page) -> bool {
    let mut counts = [0u16; 256];
    for stride in page.as_chunks::<STRIDE_BYTES>().0 {
        for byte in &stride[..TAKEN_BYTES] {
            counts[usize::from(*byte)] += 1;
        }
    }
    let squares: u32 = counts.iter().map(|count| u32::from(*count) * u32::from(*count)).sum();
    squares <= RANDOM_SQUARES_MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::PAGE_BYTES;

    fn page_of(mut byte: impl FnMut(u64) -> u8) -> Page {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        std::array::from_fn(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            byte(state >> 24)
        })
    }

    #[test]
    fn noise_looks_random_and_text_records_and_counters_do_not() {
        assert!(looks_random(&page_of(|noise| noise as u8)));
        assert!(!looks_random(&[0; PAGE_BYTES]));
        assert!(!looks_random(&page_of(|noise| b"etaoin shrdlu,.\n"[noise as usize % 16])));
        // Base64: six bits of eight.
        assert!(!looks_random(&page_of(|noise| b'0' + (noise % 64) as u8)));
        // Seven eighths noise, one eighth zeros.
        assert!(!looks_random(&page_of(|noise| if noise % 8 == 0 {
            0
        } else {
            (noise >> 8) as u8
        })));
    }
}
