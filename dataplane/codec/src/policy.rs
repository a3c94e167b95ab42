//! The thresholds between the classes, each with where it comes from.
//!
//! Constants only: which class is cheapest is decided here by size alone, at levels of zstd that
//! are fast enough for the links in question. Measures of the link and the core come in from the
//! caller as the level.

use crate::page::PAGE_BYTES;

/// The lowest zstd level that is taken.
pub const ZSTD_LEVEL_MIN: i32 = 1;
/// The highest zstd level that is taken. An extent of text took 1.4 ms of a core at level 1, 11 ms
/// at 9 and 31 ms at 11, for a result that is 2 % smaller at 9 and 3 % at 11: nothing is to be had
/// beyond.
pub const ZSTD_LEVEL_MAX: i32 = 9;

/// A page whose runs take more than this is tried with its base as zstd prefix instead. Half a
/// kilobyte holds twice the median of what changes in a changed page of real guests (225 bytes).
pub const RUNS_PAGE_BYTES_MAX: usize = 512;

/// Equal bytes between two runs that are sent as if they had changed: a run costs two bytes, so
/// shorter gaps don't pay.
pub(crate) const RUNS_GAP_BYTES_MIN: usize = 3;

/// The level of the prefix code. On groups of 16 pages, 2 and 3 gave results from 9 % larger to
/// 14 % smaller and took 1.4 to 3 times as long.
pub(crate) const PREFIX_LEVEL: i32 = 1;

/// Most coded bytes per page of kind prefix: beyond three quarters the page has so little in common
/// with its base that it goes to the zstd pages of the extent, where it shares a wider window.
pub(crate) const PREFIX_CODED_BYTES_MAX: usize = PAGE_BYTES / 4 * 3;

/// A page that looks random is tried with its base as prefix only if so many of its 512 words of
/// eight bytes are as in the base: what gains is what is equal, and the gain must be a quarter.
pub(crate) const PREFIX_EQUAL_WORDS_MIN: usize =
    (PAGE_BYTES - PREFIX_CODED_BYTES_MAX) / size_of::<u64>();

/// A page looks random if the squares of the counts of its sampled bytes sum to no more than this.
/// For N = 1024 bytes spread evenly over 256 values the sum is N + N(N-1)/256 = 5116 on average
/// with a deviation of 90; bytes of 7.76 bits of entropy, where coding gains 3 %, give 6400. The
/// bound is six deviations above the first, so that hardly any page of noise is tried in vain.
pub(crate) const RANDOM_SQUARES_MAX: u32 = 5660;
const _: () = assert!(crate::sample::SAMPLE_BYTES == 1024);

/// The most bytes that a zstd section of `bytes` plain bytes may take: it must gain 3 %, else the
/// pages go raw and the sink is spared the decompression.
pub(crate) const fn zstd_coded_bytes_max(bytes: usize) -> usize {
    bytes * 97 / 100
}

/// Runs of fewer bytes than this aren't compressed: of 192 bytes of text zstd-1 saves 63, of 64
/// bytes one, and most runs are less regular than text.
pub(crate) const RUNS_ZSTD_BYTES_MIN: usize = 192;

/// Whether a long window is searched by zstd's long distance matching too. At level 3 it made the
/// result of 2 to 16 MiB of window 0.3 to 1.6 % smaller, for 7 to 20 % of the speed. The tables of
/// a level reach no further than some MiB: without it, 128 MiB of window are worth no more than
/// 16; with it, 13 to 17 % of the result at every level, for no time that could be measured at
/// level 3 and above. Level 1 is for links that are faster than the core: there it costs a third of
/// the speed, and the link has room for a quarter more bytes.
pub(crate) const fn searches_far(window_log: u32, level: i32) -> bool {
    level == 2 || level > 2 && window_log > 24
}

/// The window of a level that does not search far, as a power of two: level 1 found no less in a
/// guest's memory than with 128 MiB, and was a quarter faster.
pub(crate) const NEAR_WINDOW_LOG: u32 = 20;
