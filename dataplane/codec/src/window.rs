//! The long window: one zstd stream over all batches of a channel of a stream session.
//!
//! Frames of such a channel are decoded in total order, so the zstd section of a batch may refer
//! to the pages of all batches before it, as far as the window reaches. Owned by the session's
//! shard at either end, one of each per channel, and handed to the coder with each batch. All
//! memory is taken at construction: what it comes to is told by `memory_bytes`.
//!
//! The decoder takes untrusted bytes: it never gives more than the batch's pages, never takes more
//! memory than its window, and is spent after the first error, since a stream with a gap can't be
//! continued. Another level begins with another frame of zstd, and with an empty window: zstd takes
//! one nowhere else. So the stream is a row of frames, of which the last is never whole.

use crate::error::DecodeError;
use crate::policy::{NEAR_WINDOW_LOG, ZSTD_LEVEL_MAX, ZSTD_LEVEL_MIN, searches_far};
use std::fmt;
use std::ops::RangeInclusive;
use zstd_safe::zstd_sys::ZSTD_EndDirective::{ZSTD_e_end, ZSTD_e_flush};
use zstd_safe::{
    CCtx, CParameter, DCtx, DParameter, InBuffer, OutBuffer, ResetDirective, SafeResult,
};

/// The smallest window, as a power of two: zstd's own bound.
pub const WINDOW_LOG_MIN: u32 = 10;
/// The largest window, as a power of two: 128 MiB, what zstd itself calls the most that a sink
/// should take without being asked.
pub const WINDOW_LOG_MAX: u32 = 27;

/// The most bytes that a section of a long window is longer than its pages: three for the head of
/// each block, the end of a frame, and the head of the next. A block is as long as the window or
/// 128 KiB, whichever is less, so there are at most 256 in a batch, and one more if it begins in
/// the middle of a block.
pub const WINDOW_EXTRA_BYTES_MAX: usize = 1024;
const _: () = assert!(
    (crate::page::EXTENT_BYTES / (1 << WINDOW_LOG_MIN) + 1) * 3 + 2 * 18 <= WINDOW_EXTRA_BYTES_MAX
);

/// Why there is no long window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// The window is too small or too large.
    #[error("a window of 2^{window_log} bytes: from 2^10 to 2^27 are possible")]
    WindowLog {
        /// The power of two that was asked for.
        window_log: u32,
    },
    /// zstd could not get its memory.
    #[error("zstd got no memory for a window of 2^{window_log} bytes")]
    NoMemory {
        /// The power of two that was asked for.
        window_log: u32,
    },
}

impl WindowError {
    /// The stable name for counters and logs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::WindowLog { .. } => "codec-window-log",
            Self::NoMemory { .. } => "codec-window-memory",
        }
    }
}

const WINDOW_LOGS: RangeInclusive<u32> = WINDOW_LOG_MIN..=WINDOW_LOG_MAX;

/// The lowest level that searches any window by long distance matching.
const LEVEL_FAR: i32 = 2;

/// The source's end of a long window.
pub struct LongWindowEncoder {
    context: CCtx<'static>,
    window_log: u32,
    levels: RangeInclusive<i32>,
    /// Of the frame that is open.
    level: i32,
    /// Of what is coded next.
    level_next: i32,
}

impl LongWindowEncoder {
    /// Takes the memory of a window of 2^`window_log` bytes for any of `levels` (kept between
    /// [`ZSTD_LEVEL_MIN`] and [`ZSTD_LEVEL_MAX`]); the lowest is the first.
    ///
    /// # Errors
    /// [`WindowError`]: no such window, or no memory for it.
    pub fn new(window_log: u32, levels: RangeInclusive<i32>) -> Result<Self, WindowError> {
        if !WINDOW_LOGS.contains(&window_log) {
            return Err(WindowError::WindowLog { window_log });
        }
        let no_memory = |_| WindowError::NoMemory { window_log };
        let bounded = |level: &i32| (*level).clamp(ZSTD_LEVEL_MIN, ZSTD_LEVEL_MAX);
        let (least, most) = (bounded(levels.start()), bounded(levels.end()));
        let mut context = CCtx::try_create().ok_or(WindowError::NoMemory { window_log })?;
        for parameter in [CParameter::ChecksumFlag(false), CParameter::ContentSizeFlag(false)] {
            context.set_parameter(parameter).map_err(no_memory)?;
        }
        // The highest level first, then the first that searches far: what these need is enough for
        // the others.
        let far = LEVEL_FAR.clamp(least, most);
        for level in [most, far, least] {
            context.reset(ResetDirective::SessionOnly).map_err(no_memory)?;
            set_level(&mut context, window_log, level).map_err(no_memory)?;
            // A flush before any input gives no bytes, but starts the frame and takes its memory.
            let mut none = [0; 32];
            let mut output = OutBuffer::around(&mut none[..]);
            context.flush_stream(&mut output).map_err(no_memory)?;
            assert!(output.pos() == 0, "a flush of nothing gives nothing");
        }
        Ok(Self { context, window_log, levels: least..=most, level: least, level_next: least })
    }

    /// Codes what comes next at another level, or the nearest that there is memory for.
    pub fn set_level(&mut self, level: i32) {
        self.level_next = level.clamp(*self.levels.start(), *self.levels.end());
    }

    /// All memory that zstd holds for it.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.context.sizeof()
    }

    /// Appends `plain` to the stream and returns how many bytes of `room` that took. The room must
    /// be [`WINDOW_EXTRA_BYTES_MAX`] longer than the input.
    pub(crate) fn compress(&mut self, plain: &[u8], room: &mut [u8]) -> usize {
        assert!(room.len() >= plain.len() + WINDOW_EXTRA_BYTES_MAX);
        let mut output = OutBuffer::around(room);
        if self.level != self.level_next {
            let mut nothing = InBuffer::around(&[]);
            let left = self.context.compress_stream2(&mut output, &mut nothing, ZSTD_e_end);
            assert!(left == Ok(0), "zstd ends its frame at once");
            let taken = set_level(&mut self.context, self.window_log, self.level_next);
            assert!(taken.is_ok(), "between two frames zstd takes any level");
            self.level = self.level_next;
        }
        let mut input = InBuffer::around(plain);
        let left = self.context.compress_stream2(&mut output, &mut input, ZSTD_e_flush);
        // All memory is taken and the room is beyond what zstd can need.
        assert!(left == Ok(0) && input.pos() == plain.len(), "zstd keeps nothing back");
        output.pos()
    }
}

/// Sets the level of the next frame.
fn set_level(context: &mut CCtx<'static>, window_log: u32, level: i32) -> SafeResult {
    context.set_parameter(CParameter::CompressionLevel(level))?;
    let long = searches_far(window_log, level);
    let window_log =
        if level == ZSTD_LEVEL_MIN { window_log.min(NEAR_WINDOW_LOG) } else { window_log };
    context.set_parameter(CParameter::WindowLog(window_log))?;
    context.set_parameter(CParameter::EnableLongDistanceMatching(long))
}

impl fmt::Debug for LongWindowEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LongWindowEncoder")
    }
}

/// The sink's end of a long window.
pub struct LongWindowDecoder {
    context: DCtx<'static>,
    spent: bool,
}

impl LongWindowDecoder {
    /// Takes the memory of a window of 2^`window_log_max` bytes; a stream that asks for more is
    /// refused.
    ///
    /// # Errors
    /// [`WindowError`]: no such window, or no memory for it.
    pub fn new(window_log_max: u32) -> Result<Self, WindowError> {
        if !WINDOW_LOGS.contains(&window_log_max) {
            return Err(WindowError::WindowLog { window_log: window_log_max });
        }
        let no_memory = |_| WindowError::NoMemory { window_log: window_log_max };
        let mut context =
            DCtx::try_create().ok_or(WindowError::NoMemory { window_log: window_log_max })?;
        context.set_parameter(DParameter::WindowLogMax(window_log_max)).map_err(no_memory)?;
        // An empty frame of the largest window makes zstd take all memory now: magic, a descriptor
        // without content size and checksum, the window, and a last raw block of no bytes.
        let window = (window_log_max - WINDOW_LOG_MIN) as u8 * 8;
        let empty = [0x28, 0xb5, 0x2f, 0xfd, 0, window, 1, 0, 0];
        let mut none = [0; 1];
        let mut input = InBuffer::around(&empty);
        let left = context.decompress_stream(&mut OutBuffer::around(&mut none[..]), &mut input);
        assert!(left.map_err(no_memory)? == 0, "the empty frame is whole");
        Ok(Self { context, spent: false })
    }

    /// All memory that zstd holds for it.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.context.sizeof()
    }

    /// True until [`Self::finish`] is called for the batch that began now; the batch before it
    /// must have been whole.
    pub(crate) const fn begin(&mut self) -> bool {
        !std::mem::replace(&mut self.spent, true)
    }

    /// The batch was whole: the next one may come.
    pub(crate) const fn finish(&mut self) {
        self.spent = false;
    }

    /// Continues the stream by `coded`, which must exactly fill `room`.
    pub(crate) fn decompress(
        &mut self,
        coded: &[u8],
        room: &mut [u8],
        section: &'static str,
    ) -> Result<(), DecodeError> {
        let all = (coded.len(), room.len());
        let mut output = OutBuffer::around(room);
        let mut input = InBuffer::around(coded);
        let mut at = (0, 0);
        while at != all {
            // Each call moves on, be it over the end of a frame only.
            let gone = self.context.decompress_stream(&mut output, &mut input);
            let now = (input.pos(), output.pos());
            if gone.is_err() || now == at {
                return Err(DecodeError::Decompress { section });
            }
            at = now;
        }
        Ok(())
    }
}

impl fmt::Debug for LongWindowDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LongWindowDecoder").field("spent", &self.spent).finish()
    }
}
