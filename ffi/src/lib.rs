//! dwcp-ffi: everything that touches raw memory, raw descriptors or the kernel's rings.
//!
//! This is the only crate with `unsafe`. Each unsafe contract is closed here: what other crates see
//! is safe to call in any order and from any thread that the types let them use. Misuse that is the
//! caller's bug (an index out of range, a lease of a foreign arena) is an assertion; what the
//! kernel or the machine refuses is a typed error.
//!
//! Nothing here logs, and nothing allocates after construction on the paths that a shard's loop
//! calls: rings, arenas, tables and counters are sized when they are made.

// The workspace denies unsafe code; this crate exists to hold all of it. Every block still has one
// operation and names the invariant that it rests on (clippy checks both).
#![allow(unsafe_code)]
#![deny(unsafe_op_in_unsafe_fn)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
compile_error!("dwcp runs on 64-bit Linux only");

pub mod arena;
pub mod counters;
pub mod cpu;
pub mod dirty;
pub mod hangup;
#[cfg(feature = "lab")]
pub mod lab;
mod mapping;
pub mod memory;
pub mod poll;
pub mod region;
pub mod scm;
pub mod spsc;
pub mod sys;
pub mod uring;

/// The unit of memory everywhere: a page is 4 KiB, whatever the size of the kernel's own pages.
pub const PAGE_BYTES: usize = 4096;
