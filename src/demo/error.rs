//! Why the demo failed: one variant per cause, each with what a person needs to go on.
//!
//! Made on any of the demo's threads, printed by the main thread.

use super::daemons::Role;
use crate::client::ClientError;
use crate::pki::PkiError;
use crate::settings::value::show_bytes;
use dwcp_ffi::dirty::DirtyError;
use dwcp_ffi::region::RegionError;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

/// Why the demo failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DemoError {
    /// Ctrl-C or a request to end.
    #[error("interrupted; both daemons and all files of the run are gone")]
    Interrupted,
    /// Two regions and two daemons don't fit in the machine.
    #[error(
        "{} are needed (twice --size and 1 GiB for the daemons) and {} are available: \
         give a smaller --size", show_bytes(*needed_bytes), show_bytes(*available_bytes)
    )]
    Memory { needed_bytes: u64, available_bytes: u64 },
    /// The folder of the run can't be made.
    #[error("no folder for temporary files ({0}): set TMPDIR to one that can be written")]
    Scratch(#[source] io::Error),
    /// Unix sockets have short names.
    #[error("{} is too long for a socket: set TMPDIR to a shorter path", path.display())]
    SocketPath { path: PathBuf },
    /// A file of the run can't be written.
    #[error("{} can't be written: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    /// The certificates can't be made.
    #[error("the certificates can't be made: {0}")]
    Pki(#[source] PkiError),
    /// The kernel gives no thread, signal handler or loopback port.
    #[error("this machine gives no {what}: {source}")]
    Machine { what: &'static str, source: io::Error },
    /// A daemon can't be started.
    #[error("the {role} daemon can't be started: {source}")]
    Spawn { role: Role, source: io::Error },
    /// A daemon ended by itself.
    #[error("the {role} daemon ended ({status}){log}")]
    DaemonEnded { role: Role, status: ExitStatus, log: LogTail },
    /// A daemon opened no socket.
    #[error("the {role} daemon is not ready after {} s{log}", within.as_secs())]
    NotReady { role: Role, within: Duration, log: LogTail },
    /// A daemon refused or stopped answering.
    #[error("the {role} daemon failed at {method}: {source}{log}")]
    Call { role: Role, method: &'static str, source: ClientError, log: LogTail },
    /// A daemon's answer isn't what the control interface promises.
    #[error("the {role} daemon's answer to {method} lacks something: {source}")]
    Answer { role: Role, method: &'static str, source: serde_json::Error },
    /// The session ended without a commit.
    #[error("the session ended as '{state}', not as committed")]
    NotCommitted { state: String },
    /// A region can't be made.
    #[error("no memory region: {0}")]
    Region(#[source] RegionError),
    /// The dirty pages can't be found.
    #[error("the dirty pages can't be found: {0}")]
    Dirty(#[source] DirtyError),
}

/// The last lines of a daemon's log, for the end of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogTail {
    /// The lines, oldest first.
    pub(crate) lines: Vec<String>,
}

impl std::fmt::Display for LogTail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.lines.is_empty() {
            return f.write_str("; it wrote no log");
        }
        f.write_str("; its last words:")?;
        self.lines.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

impl DemoError {
    /// The exit code, as the manual lists them.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Interrupted => 130,
            Self::Memory { .. }
            | Self::Scratch(_)
            | Self::SocketPath { .. }
            | Self::File { .. }
            | Self::Machine { .. } => 3,
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_ends_with_the_log_or_says_that_there_is_none() {
        let tail = LogTail { lines: vec!["one".to_owned(), "two".to_owned()] };
        assert_eq!(tail.to_string(), "; its last words:\n  one\n  two");
        assert_eq!(LogTail::default().to_string(), "; it wrote no log");
    }

    #[test]
    fn exit_codes_tell_an_interrupt_a_poor_machine_and_a_failure_apart() {
        let memory = DemoError::Memory { needed_bytes: 3 << 30, available_bytes: 1 << 30 };
        assert_eq!(memory.code(), 3);
        assert!(memory.to_string().starts_with("3GiB are needed"), "{memory}");
        assert_eq!(DemoError::Interrupted.code(), 130);
    }
}
