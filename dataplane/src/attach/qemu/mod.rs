//! QEMU's migration stream: read at the source, written again at the sink.
//!
//! [`Parser`] cuts what a source QEMU writes into page records and bytes that are carried as they
//! are; [`Emitter`] makes page records of them for the destination QEMU. Called by a shard's stream
//! sessions. Pure: bytes in, items out; no I/O, no clock; all memory is taken at construction.
//!
//! What holds at all times: the items of a parser, with each page written again by an emitter,
//! are the stream that was read, in its order and with its meaning. Whatever the parser does
//! not know it never interprets: from there on every byte is opaque.
//!
//! The stream: a head, then sections. Only the section `ram` is read, since sections carry no
//! length and only the RAM section's format is known. All numbers are big-endian. A page's record
//! is a word (offset in its block, and flags), the block's name unless it is that of the record
//! before, and the page's bytes or one zero byte.

mod blocks;
mod emit;
mod error;
mod format;
mod item;
mod parse;
mod trouble;

#[cfg(test)]
mod stream_for_tests;
#[cfg(test)]
mod tests;

pub use blocks::{BLOCKS_MAX, Block, Blocks};
pub use emit::Emitter;
pub use error::EmitError;
pub use format::RECORD_BYTES_MAX;
pub use item::Item;
pub use parse::Parser;
pub use trouble::Trouble;
