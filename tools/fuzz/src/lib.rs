//! What each fuzz target does with its bytes, and what must hold for any of them.
//!
//! Pure functions over a slice, one per parser that reads what a peer, a client or a disk gives. A
//! target panics exactly when the product is wrong: it crashed, or accepted bytes that it would not
//! write itself. `src/bin` ties each function to libFuzzer; `examples/seeds.rs` writes the inputs
//! that every run starts from.
#![forbid(unsafe_code)]

pub mod codec;
pub mod control;
pub mod qemu;
pub mod wire;

// The control crate's pure modules refer to its limits by this path; see `control`.
#[path = "../../../control/src/limits.rs"]
#[expect(unused, reason = "most limits belong to the parts of their crate that are left out")]
mod limits;
