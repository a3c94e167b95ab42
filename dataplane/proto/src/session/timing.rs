//! How long the machines wait before they act by themselves.

use crate::time::Nanos;
use crate::wire::limits::{COMMIT_TIMEOUT, OPEN_TIMEOUT, QUERY_INTERVAL};

/// The waits of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionTiming {
    /// From the request to open until all lanes are open.
    pub open_timeout: Nanos,
    /// From `Yield` to `Committed`, before the session is called in doubt.
    pub commit_timeout: Nanos,
    /// Between two questions of a session in doubt.
    pub query_interval: Nanos,
}

impl Default for SessionTiming {
    fn default() -> Self {
        Self {
            open_timeout: OPEN_TIMEOUT,
            commit_timeout: COMMIT_TIMEOUT,
            query_interval: QUERY_INTERVAL,
        }
    }
}
