//! What the repository checks about itself, for `cargo xtask`.
//!
//! Owns the rules of `tidy`. Called by the `xtask` binary on its main thread. It reads the tree and
//! asks cargo for metadata; it never changes a file and never depends on a crate of the product, so
//! that it builds within seconds.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod tidy;
