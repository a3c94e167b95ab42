//! What a stream session costs in memory at either end: for the control thread's budget, before it
//! gives the order to open one.
//!
//! Pure arithmetic over the same sizes that the session is made of. Tables and bases of pages are
//! address space at first and get memory as the guest's pages come; what is said here is the most.

use super::before::{BEFORE_GUEST_PAGE_BYTES, BEFORE_PAGE_BYTES, Before};
use super::cut::INPUT_BYTES;
use super::held::{HELD_PAGE_BYTES, TOLD_PAGE_BYTES};
use super::rebuild::OUTPUT_BYTES;
use super::reorder::reorder_bytes;
use super::retain::retained_bytes;
use super::store::{STORE_PAGE_BYTES, STORE_SLOT_BYTES};
use crate::port::{StreamCoding, StreamSinkSetup, StreamSourceSetup};
use dwcp_proto::wire::limits::{CHANNELS_MAX, REPLY_BYTES_MAX, STREAM_PAYLOAD_BYTES_MAX};

/// Buffers of replies when every channel is open.
const REPLIES_BYTES: u64 = CHANNELS_MAX as u64 * REPLY_BYTES_MAX as u64;

/// What zstd takes beside the bytes of a long window to code one, at the highest level, and to
/// decode one: tables for matches, buffers of a block, its state. The table of far matches grows
/// with the window. A test compares them with what zstd says that it holds.
const WINDOW_ENCODER_BYTES: u64 = 13 << 20;
const WINDOW_DECODER_BYTES: u64 = 1 << 20;

/// The sizes that both ends agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamSizes {
    /// The most guest pages that the session's table holds.
    pub pages_max: u64,
    /// How many page versions are kept as bases.
    pub base_pages: u64,
    /// How many of these are from an earlier session.
    pub before_pages: u64,
    /// How many of these the sink alone may hold.
    pub held_pages: u64,
    /// The binary logarithm of the long window, 0 for none.
    pub window_log: u8,
    /// The most coded bytes that are sent and not delivered.
    pub undelivered_bytes_max: u64,
}

impl From<&StreamSinkSetup> for StreamSizes {
    fn from(setup: &StreamSinkSetup) -> Self {
        let &StreamSinkSetup { pages_max, base_pages, window_log, .. } = setup;
        let undelivered_bytes_max = setup.undelivered_bytes_max;
        let before_pages = setup.before.as_deref().map_or(0, Before::pages);
        let held_pages = setup.held_pages;
        Self { pages_max, base_pages, before_pages, held_pages, window_log, undelivered_bytes_max }
    }
}

impl From<&StreamSourceSetup> for StreamSizes {
    fn from(setup: &StreamSourceSetup) -> Self {
        let &StreamSourceSetup { pages_max, base_pages, undelivered_bytes_max, .. } = setup;
        match setup.coding {
            StreamCoding::Pages { window_log, .. } => {
                let before_pages = setup.before.as_deref().map_or(0, Before::pages);
                let held_pages = setup.held_pages;
                Self {
                    pages_max,
                    base_pages,
                    before_pages,
                    held_pages,
                    window_log,
                    undelivered_bytes_max,
                }
            }
            StreamCoding::Passthrough => Self {
                pages_max: 0,
                base_pages: 0,
                before_pages: 0,
                held_pages: 0,
                window_log: 0,
                undelivered_bytes_max,
            },
        }
    }
}

/// The most memory of a stream session at the source.
#[must_use]
pub const fn stream_source_bytes(sizes: StreamSizes) -> u64 {
    REPLIES_BYTES
        + INPUT_BYTES as u64
        + retained_bytes(sizes.undelivered_bytes_max) as u64
        + store_bytes(sizes)
        + sizes.held_pages.saturating_mul(TOLD_PAGE_BYTES)
        + window_bytes(sizes, encoder_bytes(sizes.window_log))
}

/// The most memory of a stream session at the sink.
#[must_use]
pub const fn stream_sink_bytes(sizes: StreamSizes) -> u64 {
    REPLIES_BYTES
        + (OUTPUT_BYTES + STREAM_PAYLOAD_BYTES_MAX) as u64
        + reorder_bytes(sizes.undelivered_bytes_max) as u64
        + store_bytes(sizes)
        + sizes.held_pages.saturating_mul(HELD_PAGE_BYTES)
        + window_bytes(sizes, WINDOW_DECODER_BYTES)
}

const fn store_bytes(sizes: StreamSizes) -> u64 {
    let table = sizes.pages_max.saturating_mul(STORE_PAGE_BYTES);
    let own = sizes.base_pages.saturating_sub(sizes.before_pages);
    let own = own.saturating_sub(sizes.held_pages);
    let slots = if own < sizes.pages_max { own } else { sizes.pages_max };
    table.saturating_add(slots.saturating_mul(STORE_SLOT_BYTES)).saturating_add(before_bytes(sizes))
}

const fn before_bytes(sizes: StreamSizes) -> u64 {
    if sizes.before_pages == 0 {
        return 0;
    }
    let places = sizes.pages_max.saturating_mul(BEFORE_GUEST_PAGE_BYTES);
    places.saturating_add(sizes.before_pages.saturating_mul(BEFORE_PAGE_BYTES))
}

const fn encoder_bytes(window_log: u8) -> u64 {
    WINDOW_ENCODER_BYTES + (1 << window_log) / 8
}

const fn window_bytes(sizes: StreamSizes, extra_bytes: u64) -> u64 {
    if sizes.window_log == 0 { 0 } else { (1 << sizes.window_log) + extra_bytes }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_codec::policy::{ZSTD_LEVEL_MAX, ZSTD_LEVEL_MIN};
    use dwcp_codec::window::{WINDOW_LOG_MAX, WINDOW_LOG_MIN};
    use dwcp_codec::{LongWindowDecoder, LongWindowEncoder};

    #[test]
    fn a_window_never_takes_more_than_is_said() {
        for log in WINDOW_LOG_MIN..=WINDOW_LOG_MAX {
            let sizes = StreamSizes {
                pages_max: 0,
                base_pages: 0,
                before_pages: 0,
                held_pages: 0,
                window_log: log as u8,
                undelivered_bytes_max: 0,
            };
            let said = window_bytes(sizes, encoder_bytes(log as u8));
            for level in [ZSTD_LEVEL_MIN, 3, ZSTD_LEVEL_MAX] {
                let taken = LongWindowEncoder::new(log, ZSTD_LEVEL_MIN..=level)
                    .unwrap()
                    .memory_bytes() as u64;
                assert!(taken <= said, "2^{log} at level {level}: {taken} of {said}");
            }
            let said = window_bytes(sizes, WINDOW_DECODER_BYTES);
            let taken = LongWindowDecoder::new(log).unwrap().memory_bytes() as u64;
            assert!(taken <= said, "2^{log}: {taken} of {said}");
        }
    }

    #[test]
    fn the_sum_is_dominated_by_what_was_asked_for() {
        let sizes = StreamSizes {
            pages_max: 1 << 18,
            base_pages: 1 << 16,
            before_pages: 0,
            held_pages: 0,
            window_log: 0,
            undelivered_bytes_max: 32 << 20,
        };
        let asked = (1 << 18) * 32 + (1 << 16) * 4104 + (32 << 20);
        for said in [stream_source_bytes(sizes), stream_sink_bytes(sizes)] {
            assert!((asked..asked + (8 << 20)).contains(&said), "{said} for {asked}");
        }
        // What the sink alone holds is part of the bases, and the source has no bytes of it.
        let with = StreamSizes { held_pages: 1 << 15, ..sizes };
        assert!(stream_source_bytes(with) < stream_source_bytes(sizes) - (100 << 20));
        let more = stream_sink_bytes(with) - stream_sink_bytes(sizes);
        assert!(more < 1 << 20, "{more}");
    }
}
