//! Whole control planes in one process, with fake shards in place of the data plane.

mod doubt;
mod fake;
mod limits;
mod session;
