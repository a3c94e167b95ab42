//! Counters and histograms as Prometheus text, served over HTTP on an address of the operator's.
//!
//! `text` is pure: families in, text out. `http` is its I/O, on the control thread. `families`
//! gathers; it only reads one-writer counters, so a scrape never disturbs a shard.

mod histogram;
mod http;
mod text;

pub(crate) use histogram::summary_of;
pub(crate) use http::{MetricsServer, Scrape};
pub(crate) use text::{Kind, TextBuilder};
