//! What a carrier is told at start.
//!
//! Plain values.

use crate::api::PeerAddress;
use std::path::PathBuf;

/// Which end of the link a carrier is.
#[derive(Clone, Debug)]
pub enum CarrySide {
    /// VMMs connect to a Unix socket here; what they send goes to a peer.
    Source {
        /// The socket that is made.
        listen_unix: PathBuf,
        /// The peer.
        to: PeerAddress,
    },
    /// Peers send; a VMM here takes it on its Unix socket.
    Sink {
        /// The VMM's socket.
        connect_unix: PathBuf,
        /// Names of the hosts that may send; empty for all that can prove their name.
        accept_from: Vec<String>,
    },
}

/// What a carrier is told at start.
#[derive(Clone, Debug)]
pub struct CarryConfig {
    /// Which end it is.
    pub side: CarrySide,
    /// Source: carry every byte as it is.
    pub passthrough: bool,
}
