//! Why the control thread could not start or go on: one line for people, a stable code, a cure and
//! the class that decides the binary's exit code.
//!
//! Built where the fault is found; only the binary prints it.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Which exit code of the binary an error belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitClass {
    /// Usage or configuration: exit code 2.
    Configuration,
    /// This machine lacks something, such as a file, a port or a right: exit code 3.
    Machine,
    /// The daemon failed while it ran: exit code 1.
    Failure,
}

/// Why the control thread could not start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// A live daemon answers on the control socket.
    #[error("another daemon is listening on {}", path.display())]
    SocketInUse {
        /// The socket.
        path: PathBuf,
    },
    /// The path of the control socket names something else.
    #[error("{} exists and is not a socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The control socket can't be made.
    #[error("the control socket {} can't be made: {source}", path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The path of a carrier's socket is not free.
    #[error("{} exists and is {by}", path.display())]
    CarrySocketTaken {
        /// The path.
        path: PathBuf,
        /// What is there.
        by: &'static str,
    },
    /// A carrier's socket can't be made.
    #[error("the socket {} can't be made: {source}", path.display())]
    CarrySocket {
        /// The path.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Somebody else listens on the port.
    #[error("{address} is in use")]
    PortInUse {
        /// The address.
        address: SocketAddr,
    },
    /// The address can't be listened on.
    #[error("{address} can't be listened on: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A file with certificates or a key is missing or can't be used.
    #[error(transparent)]
    Pki(#[from] crate::peer::PkiError),
    /// The journal can't be used.
    #[error(transparent)]
    Journal(#[from] crate::state::JournalError),
    /// The store of what guests leave can't be used.
    #[error(transparent)]
    Kept(#[from] crate::kept::KeptOpenError),
    /// The asynchronous runtime or a thread of the control plane can't start.
    #[error("the control thread can't start: {source}")]
    Runtime {
        /// The kernel's reason.
        source: io::Error,
    },
    /// A daemon without data-plane shards moves nothing.
    #[error("no data-plane shard was given")]
    NoShards,
    /// A shard's loop ended although nobody asked it to.
    #[error("data-plane shard {shard} ended unexpectedly")]
    ShardLost {
        /// The shard's number.
        shard: usize,
    },
}

impl ControlError {
    /// The stable name of the fault.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::SocketInUse { .. } => "socket_in_use",
            Self::NotASocket { .. } => "socket_path_taken",
            Self::Socket { .. } => "socket_failed",
            Self::CarrySocketTaken { .. } => "carry_socket_taken",
            Self::CarrySocket { .. } => "carry_socket_failed",
            Self::PortInUse { .. } => "port_in_use",
            Self::Listen { .. } => "listen_failed",
            Self::Pki(error) => error.code(),
            Self::Journal(error) => error.code(),
            Self::Kept(error) => error.code(),
            Self::Runtime { .. } => "runtime_failed",
            Self::NoShards => "no_shards",
            Self::ShardLost { .. } => "shard_lost",
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn cure(&self) -> &'static str {
        match self {
            Self::SocketInUse { .. } => "stop the other daemon or give another --socket",
            Self::NotASocket { .. } => "remove the file or give another --socket",
            Self::Socket { .. } => "make the directory, or give a --socket in one you may write to",
            Self::CarrySocketTaken { .. } => "give another --listen-unix, or end what uses it",
            Self::CarrySocket { .. } => {
                "give a shorter --listen-unix path in a folder that you may write to"
            }
            Self::PortInUse { .. } => "stop the other program or give another port",
            Self::Listen { .. } => "give an address of this machine and a port you may use",
            Self::Pki(error) => error.cure(),
            Self::Journal(error) => error.cure(),
            Self::Kept(error) => error.cure(),
            Self::Runtime { .. } => "raise the limits on descriptors and threads (ulimit -n, -u)",
            Self::NoShards => "give at least one core with --cores",
            Self::ShardLost { .. } => "read the lines above, then start the daemon again",
        }
    }

    /// Which exit code of the binary it belongs to.
    #[must_use]
    pub fn exit_class(&self) -> ExitClass {
        match self {
            Self::NoShards => ExitClass::Configuration,
            Self::ShardLost { .. } => ExitClass::Failure,
            _ => ExitClass::Machine,
        }
    }
}
