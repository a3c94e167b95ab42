//! What a stream session costs in memory at either end: for the control thread's budget, before it
//! gives the order to open one.

use super::reorder::reorder_bytes;
use super::retain::retained_bytes;
use dwcp_proto::wire::limits::{CHANNELS_MAX, REPLY_BYTES_MAX};

/// Buffers of replies when every channel is open.
const REPLIES_BYTES: usize = CHANNELS_MAX as usize * REPLY_BYTES_MAX;

/// Memory of a stream session at the source.
#[must_use]
pub const fn stream_source_bytes(undelivered_bytes_max: u64) -> u64 {
    (retained_bytes(undelivered_bytes_max) + REPLIES_BYTES) as u64
}

/// Memory of a stream session at the sink.
#[must_use]
pub const fn stream_sink_bytes(undelivered_bytes_max: u64) -> u64 {
    (reorder_bytes(undelivered_bytes_max) + REPLIES_BYTES) as u64
}
