//! What every listening socket of the daemon has in common: binding a TCP port, and accepting on
//! through errors.
//!
//! On the control thread, used by the tasks that serve the control socket, the peer port and the
//! metrics port. An error of accept never ends a listener: it is counted, logged at a bounded rate
//! and waited out.

use crate::error::ControlError;
use crate::limits::TICK;
use crate::log_limit::LogLimit;
use crate::tally::Tally;
use dwcp_proto::time::Nanos;
use std::io;
use std::net::SocketAddr;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

/// Listens on `address`.
///
/// # Errors
/// The port is taken, or the address is not this host's.
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener, ControlError> {
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ControlError::PortInUse { address },
        _ => ControlError::Listen { address, source },
    })
}

/// Takes connections from one listener.
#[derive(Debug)]
pub(crate) struct Acceptor {
    listener: &'static str,
    failures: Tally,
    started: Instant,
    log: LogLimit,
}

impl Acceptor {
    /// `listener` is its name in the log and in `failures`, which counts what was not accepted.
    pub(crate) fn new(listener: &'static str, failures: Tally) -> Self {
        Self { listener, failures, started: Instant::now(), log: LogLimit::default() }
    }

    /// The next connection, however many times `accept` fails before it. No connection is lost when
    /// this is dropped while it waits.
    pub(crate) async fn next<T>(&mut self, accept: impl AsyncFn() -> io::Result<T>) -> T {
        loop {
            let error = match accept().await {
                Ok(connection) => return connection,
                Err(error) => error,
            };
            self.failures.add(self.listener);
            let elapsed = self.started.elapsed().as_nanos();
            let now = Nanos(u64::try_from(elapsed).unwrap_or(u64::MAX));
            if let Some(suppressed) = self.log.allow(now) {
                let listener = self.listener;
                tracing::warn!(listener, %error, suppressed, "connections can't be accepted");
            }
            // Out of descriptors: let other tasks close some before trying again.
            sleep(TICK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_listener_goes_on_after_errors_and_waits_between_them() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let failures = Cell::new(3);
        let accept = async || match failures.replace(failures.get() - 1) {
            0 => Ok("a connection"),
            _ => Err(io::Error::from(io::ErrorKind::OutOfMemory)),
        };
        let started = std::time::Instant::now();
        let failures = Tally::default();
        let mut acceptor = Acceptor::new("a test", failures.clone());
        assert_eq!(runtime.block_on(acceptor.next(accept)), "a connection");
        assert!(started.elapsed() >= 3 * TICK);
        assert_eq!(failures.count("a test"), 3);
    }
}
