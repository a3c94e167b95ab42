//! The name of one connection to a peer, dialled or accepted.
//!
//! A link may outlive its connection and go on over another: what comes from a connection is told
//! by this name, so that the last words of an old one are not taken for the link's. Used on the
//! control thread alone, never sent.

use std::fmt;

/// One connection, as long as the daemon runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ConnectionId(pub(crate) u64);

impl ConnectionId {
    /// The name of the next one.
    pub(crate) const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}
