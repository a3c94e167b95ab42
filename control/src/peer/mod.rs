//! Peers: who they are, the control channel to each, the listener, and what becomes of a link.
//!
//! Runs on the control thread. `link` is pure; `tls`, `channel`, `listener` and `dial` do the I/O
//! and hand what they got to the core. A refused peer costs a counter and at most a log line.

mod channel;
mod connection;
mod dial;
mod error;
mod exporter;
mod handshake;
mod link;
mod listener;
mod pending;
mod pki;
mod tls;

pub use error::PeerError;
pub use link::{Link, LinkInput, LinkOutput, LinkPhase};
pub use pki::PkiError;

pub(crate) use channel::ChannelHandle;
pub(crate) use connection::ConnectionId;
pub(crate) use dial::{dial_peer, dial_stream};
pub(crate) use handshake::{Established, Identity};
pub(crate) use listener::{Gate, Listener, PeerInput};
pub(crate) use pki::{host_key, random};

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::{read_message, write_message};
