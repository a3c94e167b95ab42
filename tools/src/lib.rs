//! What the repository checks about itself, and the lab that its end-to-end tests run in.
//!
//! Owns the rules of [`tidy`], called by the `xtask` binary on its main thread: they read the tree
//! and ask cargo for metadata and never change a file. Owns the [`lab`] and the bench of [`peers`],
//! called by `xtask` and by end-to-end tests. Of the product's crates only `ffi` is used, for the
//! few calls of the kernel that have no safe form, so that all of this builds within seconds.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod lab;
pub mod peers;
pub mod tidy;
