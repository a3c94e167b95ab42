//! The local sockets of a carrier: the one that a source's VMM connects to, and the connections to
//! a sink's VMM.
//!
//! Runs on the control thread: one task that accepts, one short task per connection that is made.

use crate::error::ControlError;
use dwcp_ffi::hangup::has_peer_closed;
use dwcp_proto::ids::SessionId;
use std::fs::Permissions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

/// How long a VMM may take to accept a connection: its socket's queue is full so long.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// What the local sockets tell the core.
#[derive(Debug)]
pub(crate) enum CarryInput {
    /// Source: the VMM connected.
    Accepted(OwnedFd),
    /// Sink: a connection to the VMM was made, or not.
    Connected {
        /// For which session.
        session: SessionId,
        /// For which of its channels.
        channel: u16,
        /// The connection.
        outcome: io::Result<OwnedFd>,
    },
}

/// The socket that a source's VMM connects to; its file goes with it.
#[derive(Debug)]
pub(crate) struct CarrySocket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl CarrySocket {
    /// Makes the socket, for its owner alone. A file left by a dead process is replaced; a live
    /// one's is not touched.
    ///
    /// # Errors
    /// The path is taken or can't be used.
    pub(crate) fn bind(path: &Path) -> Result<Self, ControlError> {
        let fail = |source| ControlError::CarrySocket { path: path.to_owned(), source };
        refuse_taken(path)?;
        // The socket gets its rights under another name, so that it is never open to all.
        let mut staged = path.to_owned().into_os_string();
        staged.push(".new");
        let staged = PathBuf::from(staged);
        // Left by a process that died just then.
        let _ = std::fs::remove_file(&staged);
        let listener = UnixListener::bind(&staged).map_err(fail)?;
        let finish = || {
            std::fs::set_permissions(&staged, Permissions::from_mode(0o600))?;
            let inode = std::fs::symlink_metadata(&staged)?.ino();
            std::fs::rename(&staged, path)?;
            Ok(inode)
        };
        let inode = finish().map_err(|source| {
            let _ = std::fs::remove_file(&staged);
            fail(source)
        })?;
        Ok(Self { listener, path: path.to_owned(), inode })
    }

    /// Accepts until the core no longer listens.
    pub(crate) async fn serve(self, inputs: mpsc::Sender<CarryInput>) {
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = inputs.closed() => return,
            };
            let socket = accepted.and_then(|(stream, _)| stream.into_std()).map(OwnedFd::from);
            match socket {
                Ok(socket) => {
                    if inputs.send(CarryInput::Accepted(socket)).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "the VMM's socket can't accept");
                    // Out of descriptors: let other tasks close some before trying again.
                    tokio::time::sleep(crate::limits::TICK).await;
                }
            }
        }
    }
}

impl Drop for CarrySocket {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|m| m.ino() == self.inode) {
            // The file may be gone by now, which is what is wanted.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Second handles of a VMM's connections: they tell which of them it has closed.
#[derive(Debug, Default)]
pub(crate) struct VmmHandles(Vec<OwnedFd>);

impl VmmHandles {
    /// Keeps a handle of this connection.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub(crate) fn add(&mut self, socket: &OwnedFd) -> io::Result<()> {
        self.0.push(socket.try_clone()?);
        Ok(())
    }

    /// True while the VMM holds one open.
    pub(crate) fn any_open(&self) -> bool {
        self.0.iter().any(|socket| matches!(has_peer_closed(socket.as_fd()), Ok(false)))
    }
}

fn refuse_taken(path: &Path) -> Result<(), ControlError> {
    let fail = |source| ControlError::CarrySocket { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(fail(source)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            Err(ControlError::CarrySocketTaken { path: path.to_owned(), by: "no socket" })
        }
        // A socket of another type never gets through, so that a live owner sees no connection.
        Ok(_) => match UnixDatagram::unbound().and_then(|probe| probe.connect(path)) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            Err(source) if source.kind() == io::ErrorKind::PermissionDenied => Err(fail(source)),
            _ => {
                let by = "the socket of a process that lives";
                Err(ControlError::CarrySocketTaken { path: path.to_owned(), by })
            }
        },
    }
}

/// Connects to the VMM; the outcome comes back as an input.
pub(crate) fn connect(
    path: PathBuf,
    session: SessionId,
    channel: u16,
    inputs: mpsc::Sender<CarryInput>,
) {
    tokio::task::spawn_local(async move {
        let stream = match tokio::time::timeout(CONNECT_WITHIN, UnixStream::connect(&path)).await {
            Ok(stream) => stream,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        let outcome = stream.and_then(UnixStream::into_std).map(OwnedFd::from);
        // The core is gone only when the process ends.
        let _ = inputs.send(CarryInput::Connected { session, channel, outcome }).await;
    });
}
