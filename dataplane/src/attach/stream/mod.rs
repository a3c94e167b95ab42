//! Stream sessions: a VMM's own migration stream, carried by one shard at each end.

pub mod store;
