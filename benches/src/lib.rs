//! dwcp-benches: the codec's kernels over fixed data, for instruction counts and for rough times.
//!
//! Owns the seeded data and the list of kernels. Run by the `counts` binary, in one thread; never
//! part of the product. The same kernel does the same work in every run: no clock, no randomness.
#![forbid(unsafe_code)]

pub mod data;
pub mod kernel;
