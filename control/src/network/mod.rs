//! What the daemon shows of itself to the network it runs in.

pub(crate) mod metrics;
