//! The demo's two daemons: child processes of the same binary, killed and reaped with their value.
//! A demo that is killed itself can't do that; then the kernel ends them.
//!
//! Lives on the main thread, inside its small runtime, so that a wait here never keeps Ctrl-C
//! waiting. Only processes started here are ever signalled.

use super::error::{DemoError, LogTail};
use super::options::Options;
use crate::settings::value::{GIB, MIB};
use std::fmt;
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a daemon may take to open its control socket.
const READY_WITHIN: Duration = Duration::from_secs(15);
/// The step in which a starting daemon and its end are looked for.
const LOOK: Duration = Duration::from_millis(20);
/// Ports that are tried when others take them between the choice and the daemon's bind.
const PORT_ATTEMPTS: u32 = 5;
/// Bytes of the log's end that are read for a message, and lines of it that are shown.
const LOG_BYTES: u64 = 8192;
const LOG_LINES: usize = 8;
/// The kernel's limit for the path of a Unix socket, with its closing zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Which end a daemon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Where the memory comes from.
    Source,
    /// Where it goes.
    Sink,
}

impl Role {
    /// The name of the daemon's folder, its certificate and its region.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Sink => "sink",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where a daemon is reached, for threads that don't own it.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// Which one.
    pub(crate) role: Role,
    /// Its control socket.
    pub(crate) socket: PathBuf,
    /// Where peers reach it.
    pub(crate) listen: SocketAddr,
    /// Its log.
    pub(crate) log: PathBuf,
}

impl Endpoint {
    /// The last lines of the daemon's log.
    pub(crate) fn log_tail(&self) -> LogTail {
        // A log that can't be read is shown as empty: the failure itself matters more.
        LogTail { lines: last_lines(&self.log).unwrap_or_default() }
    }
}

/// A running daemon.
#[derive(Debug)]
pub(crate) struct Daemon {
    endpoint: Endpoint,
    child: Child,
}

impl Daemon {
    /// Starts a daemon with its keys in `keys` and its files in `folder`, and waits until it is
    /// ready.
    ///
    /// # Errors
    /// It can't be started, ends, or is not ready in time.
    pub(crate) async fn start(
        role: Role,
        folder: &Path,
        keys: &Path,
        options: &Options,
    ) -> Result<Self, DemoError> {
        make_folder(folder)?;
        let log = match &options.keep_logs {
            Some(kept) => kept.join(format!("{role}.log")),
            None => folder.join("daemon.log"),
        };
        let socket = folder.join("control.sock");
        if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return Err(DemoError::SocketPath { path: socket });
        }
        let mut attempt = 1;
        loop {
            let endpoint =
                Endpoint { role, socket: socket.clone(), listen: free_port()?, log: log.clone() };
            let child = spawn(&endpoint, folder, keys, options)?;
            let mut daemon = Self { endpoint, child };
            match daemon.ready().await {
                Ok(()) => return Ok(daemon),
                // Somebody took the port between our choice and the daemon's bind.
                Err(DemoError::DaemonEnded { .. })
                    if attempt < PORT_ATTEMPTS && taken(daemon.endpoint.listen) =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Where it is reached.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Returns when the daemon has ended, with the error that says so.
    pub(crate) async fn ended(&mut self) -> DemoError {
        loop {
            if let Some(error) = self.failure() {
                return error;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The error that tells of the daemon's end, if it has ended.
    fn failure(&mut self) -> Option<DemoError> {
        let role = self.endpoint.role;
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => {
                Some(DemoError::DaemonEnded { role, status, log: self.endpoint.log_tail() })
            }
            Err(source) => Some(DemoError::Spawn { role, source }),
        }
    }

    /// Waits until the control socket takes connections.
    async fn ready(&mut self) -> Result<(), DemoError> {
        let deadline = Instant::now() + READY_WITHIN;
        while UnixStream::connect(&self.endpoint.socket).is_err() {
            if let Some(error) = self.failure() {
                return Err(error);
            }
            if Instant::now() > deadline {
                let (role, log) = (self.endpoint.role, self.endpoint.log_tail());
                return Err(DemoError::NotReady { role, within: READY_WITHIN, log });
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Ends the daemon at once: all that it could still write goes away with the demo's folder.
    fn kill(&mut self) -> io::Result<ExitStatus> {
        self.child.kill()?;
        self.child.wait()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            let (role, pid) = (self.endpoint.role, self.child.id());
            eprintln!("dwcp demo: the {role} daemon (process {pid}) may still run: {error}");
        }
    }
}

fn spawn(
    endpoint: &Endpoint,
    folder: &Path,
    keys: &Path,
    options: &Options,
) -> Result<Child, DemoError> {
    let role = endpoint.role;
    let failed = |source| DemoError::Spawn { role, source };
    let log = File::create(&endpoint.log)
        .map_err(|source| DemoError::File { path: endpoint.log.clone(), source })?;
    let binary = std::env::current_exe().map_err(failed)?;
    let mut command = Command::new(binary);
    command.arg("daemon").arg("--socket").arg(&endpoint.socket);
    command.arg("--listen").arg(endpoint.listen.to_string());
    command.arg("--pki").arg(keys).arg("--state").arg(folder.join("state"));
    command.arg("--streams").arg(options.streams.to_string());
    command.arg("--poll").arg(options.poll);
    command.arg("--memory").arg(format!("{}MiB", memory_bytes(options.size_bytes) / MIB));
    let cores = match role {
        Role::Source => &options.source_cores,
        Role::Sink => &options.sink_cores,
    };
    if !cores.is_empty() {
        let cores: Vec<String> = cores.iter().map(usize::to_string).collect();
        command.arg("--cores").arg(cores.join(","));
    }
    command.stdin(Stdio::null()).stdout(log.try_clone().map_err(failed)?).stderr(log);
    dwcp_ffi::sys::end_with_parent(&mut command);
    command.spawn().map_err(failed)
}

/// What a daemon may use for a region of this size: a quarter of it as bases, tables, arenas.
pub(crate) fn memory_bytes(size_bytes: u64) -> u64 {
    (size_bytes / 2 + GIB / 2).max(GIB).next_multiple_of(MIB)
}

/// A loopback port that nobody uses now.
fn free_port() -> Result<SocketAddr, DemoError> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let address = listener.and_then(|listener| listener.local_addr());
    address.map_err(|source| DemoError::Machine { what: "loopback port", source })
}

fn taken(address: SocketAddr) -> bool {
    TcpListener::bind(address).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

/// Makes a folder, and its `state`, that only this user can enter.
fn make_folder(folder: &Path) -> Result<(), DemoError> {
    let path = folder.join("state");
    let made = DirBuilder::new().mode(0o700).recursive(true).create(&path);
    made.map_err(|source| DemoError::File { path, source })
}

fn last_lines(log: &Path) -> io::Result<Vec<String>> {
    let mut file = File::open(log)?;
    let bytes = file.metadata()?.len();
    file.seek(SeekFrom::Start(bytes.saturating_sub(LOG_BYTES)))?;
    let mut tail = Vec::new();
    file.take(LOG_BYTES).read_to_end(&mut tail)?;
    let text = String::from_utf8_lossy(&tail);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    Ok(lines[lines.len().saturating_sub(LOG_LINES)..].iter().map(|&line| line.to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::super::scratch::Scratch;
    use super::*;

    #[test]
    fn a_taken_port_is_told_from_a_free_one() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        assert!(taken(address));
        assert_ne!(free_port().unwrap(), address);
    }

    #[test]
    fn the_log_tail_is_the_last_lines_of_a_long_log() {
        let scratch = Scratch::create().unwrap();
        let log = scratch.path().join("log");
        let lines: Vec<String> = (0..10_000).map(|line| format!("line {line}\n")).collect();
        std::fs::write(&log, lines.concat()).unwrap();
        let tail = last_lines(&log).unwrap();
        assert_eq!(tail.len(), LOG_LINES);
        assert_eq!(tail[LOG_LINES - 1], "line 9999");
        assert!(last_lines(&scratch.path().join("none")).is_err());
    }

    #[test]
    fn a_daemon_s_memory_grows_with_the_region() {
        assert_eq!(memory_bytes(MIB), GIB);
        assert_eq!(memory_bytes(GIB), GIB);
        assert_eq!(memory_bytes(4 * GIB), 5 * GIB / 2);
    }
}
