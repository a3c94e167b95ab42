//! dwcp-codec: what is sent for some pages, and how the sink gets the pages back.
//!
//! Owns the page hash, the digests, the coding of an extent or a batch ([`encode::Encoder`]), its
//! decoding ([`decode::Decoder`]) and the window that batches may share ([`window`]). Pure:
//! bytes in, bytes out; no I/O, no clock, no threads. A shard calls it
//! between taking pages from a region and handing a frame to the link. The sizes of all buffers are
//! fixed at construction; encode and decode take no memory from the Rust heap (zstd may resize
//! its own bounded workspace when the sizes of the payloads change for long).
//!
//! The decoder takes untrusted bytes: any input gives pages that match the digest, or a typed
//! error. It never panics on input and never decompresses more than 64 pages.
//!
//! The format is documented in [`layout`].
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod cursor;
mod head;
mod many;

pub mod baseline;
pub mod decode;
pub mod digest;
pub mod encode;
pub mod error;
pub mod hash;
pub mod input;
pub mod layout;
pub mod page;
pub mod policy;
pub mod runs;
pub mod sample;
pub mod stats;
pub mod window;

pub use baseline::Baseline;
pub use decode::{Bases, DecodedBatch, DecodedExtent, Decoder};
pub use digest::{Digest, DigestBuilder, DigestKind};
pub use encode::{Encoded, Encoder, EncoderConfig};
pub use error::DecodeError;
pub use hash::{HashKey, PageHash, PageHasher, hash_page};
pub use input::{BaseIn, BatchInput, Coding, ExtentInput};
pub use layout::ENCODED_BYTES_MAX;
pub use page::{Class, EXTENT_BYTES, EXTENT_PAGES, PAGE_BYTES, Page};
pub use stats::{ClassStats, ExtentStats};
pub use window::{LongWindowDecoder, LongWindowEncoder, WindowError};
