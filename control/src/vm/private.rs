//! The migration socket of one session, in a folder that only QEMU's user can enter.
//!
//! Runs on the control thread in a VM task. Whoever can open this socket can read the guest's
//! memory or give it another one, so the folder is made for the session with mode 0700 and belongs
//! to the user that QEMU runs as; folder and socket go when the value is dropped.

use super::error::VmError;
use super::host;
use super::qmp::Qmp;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use tokio::net::{UnixListener, UnixStream};

/// A path for a socket in its own folder.
#[derive(Debug)]
pub(super) struct PrivateSocket {
    path: PathBuf,
    /// The user that QEMU runs as, if that can be told.
    user: Option<u32>,
}

impl PrivateSocket {
    /// Makes the folder of the path; one that a daemon that died left behind is taken over.
    pub(super) fn new(path: PathBuf, qmp: &Qmp) -> Result<Self, VmError> {
        let (pid, listener) = qmp.owner()?;
        let user = pid.and_then(host::user_of).or(Some(listener));
        // From here on a failure removes what was made.
        let socket = Self { path, user };
        let made = socket.make_folder();
        made.map_err(|source| VmError::Listen { path: socket.path.clone(), source })?;
        Ok(socket)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Listens for QEMU.
    pub(super) fn listen(&self) -> Result<UnixListener, VmError> {
        let bound = || {
            let listener = UnixListener::bind(&self.path)?;
            fs::set_permissions(&self.path, Permissions::from_mode(0o600))?;
            self.give(&self.path)?;
            Ok(listener)
        };
        bound().map_err(|source| VmError::Listen { path: self.path.clone(), source })
    }

    /// Connects to QEMU.
    pub(super) async fn connect(&self) -> Result<OwnedFd, VmError> {
        let stream = UnixStream::connect(&self.path).await;
        let socket = stream.and_then(UnixStream::into_std).map(OwnedFd::from);
        socket.map_err(|source| VmError::Connect { path: self.path.clone(), source })
    }

    /// Takes a connection that was accepted, if it is QEMU's user's (or root's).
    pub(super) fn admit(&self, stream: UnixStream) -> Result<OwnedFd, VmError> {
        let failed = |source| VmError::Listen { path: self.path.clone(), source };
        let peer = stream.peer_cred().map_err(failed)?;
        if peer.uid() != 0 && self.user.is_some_and(|user| user != peer.uid()) {
            return Err(VmError::Stranger { pid: peer.pid().unwrap_or(0), uid: peer.uid() });
        }
        Ok(stream.into_std().map_err(failed)?.into())
    }

    fn folder(&self) -> io::Result<&Path> {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        folder.ok_or(io::ErrorKind::InvalidInput.into())
    }

    fn make_folder(&self) -> io::Result<()> {
        let folder = self.folder()?;
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        fs::set_permissions(folder, Permissions::from_mode(0o700))?;
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.give(folder)
    }

    /// Makes QEMU's user the owner, if that is another one than ours.
    fn give(&self, path: &Path) -> io::Result<()> {
        match self.user {
            Some(user) if Some(user) != host::own_user() => chown(path, Some(user), None),
            _ => Ok(()),
        }
    }
}

impl Drop for PrivateSocket {
    fn drop(&mut self) {
        // QEMU may have removed its socket; a folder with something else in it is not ours.
        let _ = fs::remove_file(&self.path);
        if let Ok(folder) = self.folder() {
            let _ = fs::remove_dir(folder);
        }
    }
}
