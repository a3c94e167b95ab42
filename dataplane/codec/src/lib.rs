//! dwcp-codec: what is sent for an extent of pages, and how the sink gets the pages back.
//!
//! Owns the page hash, the digests, the coding of an extent ([`encode::Encoder`]) and its decoding
//! ([`decode::Decoder`]). Pure: bytes in, bytes out; no I/O, no clock, no threads. A shard calls it
//! between taking pages from a region and handing a frame to the link. The sizes of all buffers are
//! fixed at construction; encode and decode take no memory from the Rust heap (zstd may resize
//! its own bounded workspace when the sizes of the extents change for long).
//!
//! The decoder takes untrusted bytes: any input gives pages that match the digest, or a typed
//! error. It never panics on input and never decompresses more than one extent.
//!
//! The format is documented in [`layout`].
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod cursor;

pub mod baseline;
pub mod decode;
pub mod digest;
pub mod encode;
pub mod error;
pub mod hash;
pub mod layout;
pub mod page;
pub mod policy;
pub mod runs;
pub mod sample;
pub mod stats;

pub use baseline::Baseline;
pub use decode::{Bases, DecodedExtent, Decoder};
pub use digest::{Digest, DigestBuilder, DigestKind};
pub use encode::{BaseIn, Coding, Encoded, Encoder, EncoderConfig, ExtentInput};
pub use error::DecodeError;
pub use hash::{HashKey, PageHash, PageHasher, hash_page};
pub use layout::ENCODED_BYTES_MAX;
pub use page::{Class, EXTENT_BYTES, EXTENT_PAGES, PAGE_BYTES, Page};
pub use stats::{ClassStats, ExtentStats};
