//! What the machine is and allows: limits, memory, kernel version, the monotonic clock; and what
//! the kernel shall do for a process: no core dumps, no child that outlives its parent.
//!
//! Read at start, by the checks of the configuration and by the doctor; the clock is read by the
//! drivers, never by pure code. Options of TCP sockets are in [`tcp`].

pub mod tcp;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::sysinfo::sysinfo;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{getpid, getppid};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::{fs, io};

/// The most memory that this process may lock, in bytes; `u64::MAX` when there is no limit. A
/// process with CAP_IPC_LOCK is not bound by it.
#[must_use]
pub fn memlock_limit() -> u64 {
    getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft)
}

/// How many descriptors this process may have: now, and at most after [`raise_nofile`].
#[must_use]
pub fn nofile_limit() -> (u64, u64) {
    getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((0, 0))
}

/// Raises the number of descriptors to `wanted`, as far as the hard limit allows; never lowers it.
/// Returns the limit that holds now.
///
/// # Errors
/// The kernel refused.
pub fn raise_nofile(wanted: u64) -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let limit = wanted.min(hard).max(soft);
    if limit != soft {
        setrlimit(Resource::RLIMIT_NOFILE, limit, hard)?;
    }
    Ok(limit)
}

/// All memory of the machine, in bytes.
#[must_use]
pub fn physical_memory_bytes() -> u64 {
    sysinfo().map_or(0, |info| info.ram_total())
}

/// Memory that can be had without swapping, as the kernel estimates it, in bytes; None when it does
/// not say. A limit of the process's control group is not part of it.
#[must_use]
pub fn available_memory_bytes() -> Option<u64> {
    parse_available(&fs::read_to_string("/proc/meminfo").ok()?)
}

/// The `MemAvailable` line, in bytes.
fn parse_available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The running kernel's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
}

/// The running kernel's version; None when its text starts with no two numbers.
#[must_use]
pub fn kernel_version() -> Option<KernelVersion> {
    parse_release(nix::sys::utsname::uname().ok()?.release().to_str()?)
}

/// The two leading numbers of a release such as `6.18.44-generic`.
fn parse_release(release: &str) -> Option<KernelVersion> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let major = numbers.next()?.parse().ok()?;
    Some(KernelVersion { major, minor: numbers.next()?.parse().ok()? })
}

/// Keeps this process out of core dumps and away from debuggers of other users: guest memory passes
/// through buffers that are not marked one by one.
///
/// # Errors
/// The kernel refused.
pub fn forbid_core_dumps() -> io::Result<()> {
    Ok(nix::sys::prctl::set_dumpable(false)?)
}

/// Has the kernel kill the process that `command` starts as soon as the thread that starts it ends,
/// however that comes: a parent that is killed itself can't do it. To be called in the process that
/// starts it, before that.
pub fn end_with_parent(command: &mut Command) {
    let parent = getpid();
    let in_child = move || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        // Of a parent that ended before this call the kernel says nothing any more.
        if getppid() == parent { Ok(()) } else { Err(io::Error::from(Errno::ESRCH)) }
    };
    // SAFETY: between fork and exec this makes two system calls and compares two numbers; it takes
    // no lock and no memory, so the state of the parent's other threads does not matter.
    unsafe { command.pre_exec(in_child) };
}

/// Nanoseconds of the monotonic clock: comparable between threads and processes of one boot.
///
/// # Panics
/// When the kernel has no monotonic clock, which no Linux lacks.
#[must_use]
pub fn monotonic_now() -> u64 {
    match clock_gettime(ClockId::CLOCK_MONOTONIC) {
        // Both numbers are never negative on this clock.
        Ok(now) => now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64,
        Err(errno) => panic!("no monotonic clock: {errno}"),
    }
}

/// True for the two errors that mean "try again later" on a socket that does not block.
#[must_use]
pub fn would_block(errno: i32) -> bool {
    let errno = Errno::from_raw(errno);
    errno == Errno::EAGAIN || errno == Errno::EINTR
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_goes_forward_only() {
        let first = monotonic_now();
        assert!(first > 0 && monotonic_now() >= first);
    }

    #[test]
    fn the_machine_has_memory_and_a_version() {
        let total = physical_memory_bytes();
        let available = available_memory_bytes().unwrap();
        assert!(available > 0 && available <= total);
        assert!(kernel_version().unwrap() >= KernelVersion { major: 3, minor: 17 });
        assert!(memlock_limit() > 0);
    }

    #[test]
    fn descriptor_limits_go_up_only_and_not_beyond_the_hard_one() {
        let (soft, hard) = nofile_limit();
        assert_eq!(raise_nofile(0).unwrap(), soft);
        assert_eq!(raise_nofile(u64::MAX).unwrap(), hard);
        assert_eq!(nofile_limit(), (hard, hard));
    }

    #[test]
    fn texts_of_the_kernel_are_read_or_refused() {
        assert_eq!(parse_release("6.1-rc2"), Some(KernelVersion { major: 6, minor: 1 }));
        assert_eq!(parse_release("x"), None);
        assert_eq!(parse_available("MemTotal: 1 kB\nMemAvailable:   2 kB\n"), Some(2048));
        assert_eq!(parse_available("MemAvailable: many kB"), None);
        assert!(would_block(libc::EAGAIN) && !would_block(libc::EPIPE));
    }
}
