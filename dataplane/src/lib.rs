//! dwcp-dataplane: the threads that move pages.
//!
//! A [`shard::Shard`] is one pinned thread with its own transport, tables and codec. It takes
//! commands from the control thread over a bounded ring and reports events the same way ([`port`]);
//! it counts into one-writer counters ([`stats`]). Those two modules are all that `control` sees.
//!
//! The way of a page: [`attach`] finds it dirty and copies it once, `dwcp-codec` codes it with its
//! extent, `dwcp-proto` gives it a sequence and a window, [`link`] seals and sends it; at the peer
//! the same folders in the other direction.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod attach;
mod level;
pub mod link;
mod pages;
pub mod port;
pub mod shard;
pub mod stats;
mod stripe;
mod table;

const _: () = assert!(size_of::<usize>() == 8, "page numbers and memory sizes are 64 bits wide");
