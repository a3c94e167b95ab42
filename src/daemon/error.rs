//! Why the daemon can't start or go on; each text ends with the cure.
//!
//! Made by the assembly, printed by the command line.

use crate::exit::Exit;
use dwcp_control::{ControlError, ExitClass};
use dwcp_dataplane::shard::ShardError;
use dwcp_ffi::region::RegionError;
use dwcp_ffi::uring::UringError;
use std::io;

/// Why the daemon ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    /// The kernel has no usable io_uring.
    #[error("{0}: 'dwcp doctor' shows all that is missing")]
    Uring(#[source] UringError),
    /// A shard can't start.
    #[error("shard {index} can't start: {source}: 'dwcp doctor' checks this machine")]
    Shard { index: usize, source: ShardError },
    /// Descriptors can't be had.
    #[error("the limit of descriptors can't be raised ({0}): raise it with 'ulimit -n'")]
    Descriptors(#[source] io::Error),
    /// Core dumps can't be switched off.
    #[error(
        "the process can't be kept out of core dumps ({0}): allow prctl in its seccomp profile"
    )]
    CoreDumps(#[source] io::Error),
    /// The control thread can't be woken.
    #[error("no descriptor to wake the control thread ({0}): raise the limit with 'ulimit -n'")]
    Waker(#[source] io::Error),
    /// The memory of sessions can't be mapped.
    #[error("the memory of sessions can't be mapped ({0}): raise 'ulimit -v', or lower --memory")]
    Pages(#[source] RegionError),
    /// The thread that has memory ready can't start.
    #[error("the thread of the memory can't start ({0}): raise the limit on threads (ulimit -u)")]
    Caretaker(#[source] io::Error),
    /// The control thread can't start or go on.
    #[error("{source}: {}", source.cure())]
    Control { source: ControlError },
}

impl DaemonError {
    /// The exit code that belongs to it.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Control { source } => match source.exit_class() {
                ExitClass::Configuration => Exit::Usage,
                ExitClass::Machine => Exit::Machine,
                ExitClass::Failure => Exit::Failed,
            },
            _ => Exit::Machine,
        }
    }
}
