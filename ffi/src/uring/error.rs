//! What can go wrong with a ring, each with its cause and its cure.

use crate::sys;
use std::io;

/// Why a ring can't be made or used.
#[derive(Debug, thiserror::Error)]
pub enum UringError {
    /// The kernel was built without io_uring, or a seccomp rule says so.
    #[error("the kernel has no io_uring (it must be Linux 6.1 or newer with CONFIG_IO_URING)")]
    Absent,
    /// This process may not use it.
    #[error(
        "io_uring is not permitted: {}",
        match disabled {
            Some(0) | None => "allow it in the seccomp profile or security module".to_owned(),
            Some(value) => format!("kernel.io_uring_disabled is {value}; set it to 0 (sysctl)"),
        }
    )]
    NotPermitted {
        /// The value of the sysctl `kernel.io_uring_disabled`, when the kernel has it. With 0 it is
        /// a seccomp rule or a security module that refuses.
        disabled: Option<u32>,
    },
    /// The kernel has io_uring, but not this part of it.
    #[error("the kernel's io_uring lacks {feature} (Linux {since} has it)")]
    Missing {
        /// The part, as the kernel's interface names it.
        feature: &'static str,
        /// The kernel that brought it.
        since: &'static str,
    },
    /// The arena can't be registered: it would exceed the limit of locked memory.
    #[error(
        "{needed_bytes} bytes must be locked for the arena, the limit is {limit_bytes} (raise \
         RLIMIT_MEMLOCK or give CAP_IPC_LOCK)"
    )]
    LockedMemory {
        /// Bytes of the arena.
        needed_bytes: u64,
        /// The limit of all locked memory; `u64::MAX` when there is none.
        limit_bytes: u64,
    },
    /// The kernel has no memory for the ring.
    #[error(
        "the kernel has no memory for a ring of {entries} entries, or the limit of locked memory \
         ({limit_bytes} bytes) forbids it: raise RLIMIT_MEMLOCK ('ulimit -l')"
    )]
    NoMemory {
        /// Entries asked for.
        entries: u32,
        /// The limit of all locked memory; `u64::MAX` when there is none.
        limit_bytes: u64,
    },
    /// The table of sockets is full.
    #[error("all {sockets_max} places for sockets are taken")]
    SocketsFull {
        /// How many places there are.
        sockets_max: u32,
    },
    /// The kernel refused a step.
    #[error("{call} failed")]
    Kernel {
        /// The step.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Names the step that the kernel refused.
pub(super) fn kernel(call: &'static str) -> impl FnOnce(io::Error) -> UringError {
    move |source| UringError::Kernel { call, source }
}

/// What a refusal of the first ring means.
pub(super) fn setup_error(error: io::Error, entries: u32) -> UringError {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => UringError::Absent,
        Some(libc::EPERM | libc::EACCES) => UringError::NotPermitted { disabled: disabled() },
        Some(libc::ENOMEM) => UringError::NoMemory { entries, limit_bytes: sys::memlock_limit() },
        Some(libc::EINVAL) => {
            UringError::Missing { feature: "IORING_SETUP_DEFER_TASKRUN", since: "6.1" }
        }
        _ => kernel("io_uring_setup")(error),
    }
}

/// What a refusal to register the arena means.
pub(super) fn registration_error(error: io::Error, needed_bytes: u64) -> UringError {
    match error.raw_os_error() {
        Some(libc::ENOMEM | libc::EPERM) => {
            UringError::LockedMemory { needed_bytes, limit_bytes: sys::memlock_limit() }
        }
        _ => kernel("IORING_REGISTER_BUFFERS")(error),
    }
}

/// The sysctl that switches io_uring off.
fn disabled() -> Option<u32> {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?.trim().parse().ok()
}
