//! dwcp-benches: what is measured, and how; never part of the product.
//!
//! [`kernel`] and [`data`] are the codec's kernels over fixed, seeded data, for instruction counts
//! and rough times: the same kernel does the same work in every run, without clock or randomness.
//! [`transport`] is what the benches of the transport share: dwcp beside others on emulated links.
//! [`chart`] draws what they measured.
#![forbid(unsafe_code)]

pub mod chart;
pub mod data;
pub mod kernel;
pub mod transport;
