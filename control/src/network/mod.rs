//! What the daemon shows of itself to the network it runs in, and how it listens there.

pub(crate) mod accept;
pub(crate) mod metrics;
