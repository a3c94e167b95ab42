//! The stream attach point: a VMM's own migration stream, taken from a local socket at the source
//! and written to one at the sink.
//!
//! Owned by a shard's loop and used on its thread. Each connection of the VMM is a channel. Its
//! bytes go as parts in total order: the sink handles them exactly in the order of their positions,
//! whatever order they come in, so both ends see the same history. An ack of a part means that the
//! sink holds it; `Delivered` tells what the VMM took. The way back (the VMM's replies) is one part
//! at a time. Nothing here waits, and nothing grows after the session was opened.

mod before;
mod block;
mod budget;
mod cut;
mod digest;
mod error;
mod held;
mod level;
mod meter;
mod pipe;
mod pool;
mod rebuild;
mod reorder;
mod reply;
mod retain;
mod sink;
mod source;
pub mod store;
mod versions;

pub use before::{
    BEFORE_GUEST_PAGE_BYTES, BEFORE_PAGE_BYTES, Before, BeforeError, Heir, PagesLeft,
};
pub use budget::{StreamSizes, stream_sink_bytes, stream_source_bytes};
pub use held::{HELD_PAGE_BYTES, HeldChunk, TOLD_PAGE_BYTES};
pub(crate) use pipe::Pipes;
pub(crate) use sink::StreamSink;
pub(crate) use source::{Produced, Step, StreamSource};

use dwcp_codec::WindowError;
use dwcp_ffi::arena::ArenaError;
use dwcp_ffi::region::RegionError;

/// Why a stream session can't be opened: its memory can't be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoMemory {
    #[error(transparent)]
    Arena(#[from] ArenaError),
    #[error(transparent)]
    Store(#[from] RegionError),
    #[error(transparent)]
    Window(#[from] WindowError),
}
