//! The payload of a pages frame: the exact format, its constants, its bounds.
//!
//! Little-endian throughout. There are two forms, which differ in the place alone: an extent holds
//! neighbours, a batch any pages. The two ends know which one comes. `d` is the number of delta
//! pages; pages are always in ascending order in an extent, and in that of the list in a batch.
//! "varint" is LEB128 of at most ten bytes, in its shortest form.
//!
//! ```text
//! place     of an extent:
//!           first_page   u64   a multiple of 64
//!           mask         u64   bit i: page first_page + i is in the payload; not 0
//!           of a batch:
//!           count        u8    1 to 64
//!           numbers            varint of the first page's number, then for each further one the
//!                              varint of the zigzag-coded wrapping difference to the one before;
//!                              no number comes twice
//! head      digest       16 B  of kind Extent, over the new pages (index, hash)
//!           classes            2 bits per page, low bits first, padded with 0 to a whole byte:
//!                              0 zero, 1 delta, 2 zstd, 3 raw
//! delta     only if d > 0
//!           digest       16 B  of kind Bases, over the base pages (index, hash)
//!           versions           varint of the first delta page's base version, then for each
//!                              further one the varint of the zigzag-coded wrapping difference
//!                              to the version before it
//!           kinds              1 bit per delta page, padded as above: 0 runs, 1 prefix
//!   runs    only if some delta page is of kind runs
//!           plain_bytes  u16   length of the runs before compression
//!           coded_bytes  u16   length in the payload; equal: not compressed; less: one zstd frame
//!           runs               see below
//!   prefix  only if some delta page is of kind prefix; once per group of 16 of these (the last
//!           group may be smaller)
//!           coded_bytes  u24   length of the zstd frame
//!           frame              the group's new pages, joined; its dictionary is 8 zero bytes and
//!                              the group's base pages, joined
//! zstd      only if some page is of class zstd
//!           coded_bytes  u24   length of the zstd frame or of the stream's next bytes
//!           frame              all zstd pages, joined; in a batch with a long window the flushed
//!                              continuation of the stream: of its frame, or the end of
//!                              that and the beginning of another, with an empty window
//! raw       the raw pages, joined; the payload ends here
//! ```
//!
//! The runs of a page: one byte with the number of runs (0: the page equals its base), then for
//! each the varint of the number of bytes that are as in the base since the end of the last run,
//! the varint of the length minus one, and the new bytes.
//!
//! zstd frames carry their content size, which must be the exact size of their pages; the stream of
//! a long window carries none. They have neither checksum nor dictionary id: the digest is the
//! check. The 8 zero bytes keep a base page
//! that begins with zstd's dictionary magic from being taken for a trained dictionary.

use crate::digest::DIGEST_BYTES;
use crate::page::{EXTENT_BYTES, EXTENT_PAGES, PAGE_BYTES};
use crate::policy::{PREFIX_CODED_BYTES_MAX, RUNS_PAGE_BYTES_MAX};
use crate::window::WINDOW_EXTRA_BYTES_MAX;

/// Bytes of an extent's head before the classes.
pub const HEAD_BYTES: usize = 8 + 8 + DIGEST_BYTES;
/// Most bytes of a varint.
pub(crate) const VARINT_BYTES_MAX: usize = 10;
/// Bytes of the length in front of a zstd frame.
pub(crate) const FRAME_LENGTH_BYTES: usize = 3;
/// Bytes of the two lengths in front of the runs.
pub(crate) const RUNS_HEAD_BYTES: usize = 4;
/// Pages of kind prefix that share one zstd frame. Measured on text, records and noise with
/// replaced, inserted and scattered bytes: the tables of zstd-1 hold enough of the bases of 16
/// pages, and the frame is 3 to 37 % smaller than 16 frames of one page; with all 64 pages in one
/// frame the tables overflow and the frame is more than three times as large.
pub(crate) const GROUP_PAGES: usize = 16;
/// Zero bytes in front of the base pages of a group.
pub(crate) const PREFIX_PAD_BYTES: usize = 8;
/// Most bytes of all runs of an extent before compression.
pub(crate) const RUNS_BYTES_MAX: usize = EXTENT_PAGES * RUNS_PAGE_BYTES_MAX;

/// Bytes of the class list of `pages` pages.
#[must_use]
pub const fn classes_bytes(pages: usize) -> usize {
    pages.div_ceil(4)
}

/// The longest payload that the encoder makes of an extent of `pages` pages: all of them raw.
/// Every other class
/// is taken only where it is smaller than raw by more than all that it adds beside the page.
#[must_use]
pub const fn encoded_bytes_max(pages: usize) -> usize {
    HEAD_BYTES + classes_bytes(pages) + pages * PAGE_BYTES
}

/// The longest payload that the encoder makes of a batch of `pages` pages: what is said above holds
/// but for the zstd section of a long window, which is sent even if it gains nothing.
#[must_use]
pub const fn batch_bytes_max(pages: usize) -> usize {
    let head_bytes = 1 + pages * VARINT_BYTES_MAX + DIGEST_BYTES + classes_bytes(pages);
    head_bytes + FRAME_LENGTH_BYTES + WINDOW_EXTRA_BYTES_MAX + pages * PAGE_BYTES
}

/// The longest payload of all.
pub const ENCODED_BYTES_MAX: usize = batch_bytes_max(EXTENT_PAGES);
const _: () = assert!(encoded_bytes_max(EXTENT_PAGES) <= ENCODED_BYTES_MAX);

// A frame and its record must fit in an arena slot made for an extent and one page more.
const _: () = assert!(ENCODED_BYTES_MAX <= EXTENT_BYTES + PAGE_BYTES);
// The lengths of the runs are u16.
const _: () = assert!(RUNS_BYTES_MAX <= u16::MAX as usize);
// The lengths of zstd frames are u24.
const _: () = assert!(EXTENT_BYTES < 1 << 24);
// A single delta page with all that comes with it is smaller than the raw page.
const DELTA_EXTRA_BYTES: usize =
    DIGEST_BYTES + VARINT_BYTES_MAX + 1 + RUNS_HEAD_BYTES + FRAME_LENGTH_BYTES;
const _: () = assert!(RUNS_PAGE_BYTES_MAX + DELTA_EXTRA_BYTES < PAGE_BYTES);
const _: () = assert!(PREFIX_CODED_BYTES_MAX + DELTA_EXTRA_BYTES < PAGE_BYTES);
