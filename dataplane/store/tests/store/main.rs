//! The store as its owner sees it, and as a crash, a bad disk or a stranger leaves it.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bounds;
mod damage;
mod images;
mod pages;
mod round_trip;
mod trouble;
