//! Which cores this process may use, and on which of them, and when, a thread runs.
//!
//! Called at start by the thread that is to be pinned, and by the part that checks the
//! configuration. Nothing here runs in a loop.

use core_affinity::CoreId;
use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::fs;

/// The most cores that a list from the kernel may name: what `cpu_set_t` holds.
pub const CORES_MAX: usize = 1024;

/// Why a thread was not pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// The process may not use this core, or the machine does not have it.
    #[error("core {core} is not among the cores that this process may use")]
    NotAllowed {
        /// The core.
        core: usize,
    },
    /// The kernel refused, though the core is allowed.
    #[error("the kernel refused to pin the thread to core {core}")]
    Refused {
        /// The core.
        core: usize,
    },
}

/// The cores that the calling thread may use, in order; empty when the kernel does not say. Ask
/// before pinning: a pinned thread sees its own core only.
#[must_use]
pub fn allowed_cores() -> Vec<usize> {
    let ids = core_affinity::get_core_ids().unwrap_or_default();
    ids.into_iter().map(|core| core.id).collect()
}

/// Keeps the calling thread on one core from now on.
///
/// # Errors
/// [`PinError`].
pub fn pin_current_thread(core: usize) -> Result<(), PinError> {
    if core >= CORES_MAX {
        return Err(PinError::NotAllowed { core });
    }
    if core_affinity::set_for_current(CoreId { id: core }) {
        return Ok(());
    }
    Err(if allowed_cores().contains(&core) {
        PinError::Refused { core }
    } else {
        PinError::NotAllowed { core }
    })
}

/// Keeps the calling thread off some cores, unless it may use no others.
///
/// # Errors
/// The kernel refused.
pub fn keep_current_thread_off(cores: &[usize]) -> nix::Result<()> {
    let mut left = CpuSet::new();
    let mut any = false;
    for core in allowed_cores().into_iter().filter(|core| !cores.contains(core)) {
        left.set(core)?;
        any = true;
    }
    if any { sched_setaffinity(Pid::from_raw(0), &left) } else { Ok(()) }
}

/// Has the calling thread run only while nobody else wants its core.
///
/// # Errors
/// The kernel refused.
pub fn lower_current_thread() -> nix::Result<()> {
    // SAFETY: a structure of numbers, for which zeroes are a value.
    let parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: the call reads the structure, which outlives it, and changes the calling thread's
    // scheduling alone.
    let outcome = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) };
    Errno::result(outcome).map(drop)
}

/// The cores that the kernel keeps other tasks away from (`isolcpus=`), in order; empty when there
/// are none or the kernel does not say.
#[must_use]
pub fn isolated_cores() -> Vec<usize> {
    let list = fs::read_to_string("/sys/devices/system/cpu/isolated").unwrap_or_default();
    parse_core_list(&list)
}

/// The kernel's list format: `0-3,8,10-11`. What can't be read is left out, and so are cores beyond
/// [`CORES_MAX`].
fn parse_core_list(list: &str) -> Vec<usize> {
    let mut cores = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) {
            cores.extend(first..=last.min(CORES_MAX - 1));
        }
        if cores.len() >= CORES_MAX {
            break;
        }
    }
    cores.sort_unstable();
    cores.dedup();
    cores
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn a_pinned_thread_runs_on_its_core_only() {
        let cores = allowed_cores();
        assert!(!cores.is_empty());
        for core in cores {
            let seen = thread::spawn(move || {
                pin_current_thread(core).unwrap();
                allowed_cores()
            });
            assert_eq!(seen.join().unwrap(), [core]);
        }
    }

    #[test]
    fn a_thread_keeps_off_cores_unless_there_are_no_others() {
        let cores = allowed_cores();
        let (first, others) = cores.split_first().unwrap();
        for (avoided, expected) in [
            (vec![*first, CORES_MAX + 1], if others.is_empty() { &cores[..] } else { others }),
            (vec![], &cores[..]),
            (cores.clone(), &cores[..]),
        ] {
            let seen = thread::spawn(move || {
                keep_current_thread_off(&avoided).unwrap();
                allowed_cores()
            });
            assert_eq!(seen.join().unwrap(), expected);
        }
    }

    #[test]
    fn a_lowered_thread_is_idle_class_and_no_other_is() {
        let policy = || {
            // SAFETY: the call takes numbers and answers with one.
            unsafe { libc::sched_getscheduler(0) }
        };
        let lowered = thread::spawn(move || {
            lower_current_thread().unwrap();
            policy()
        });
        assert_eq!(lowered.join().unwrap(), libc::SCHED_IDLE);
        assert_ne!(policy(), libc::SCHED_IDLE);
    }

    #[test]
    fn a_core_that_is_not_there_is_refused_by_number() {
        for core in [CORES_MAX - 1, CORES_MAX, usize::MAX] {
            assert_eq!(pin_current_thread(core), Err(PinError::NotAllowed { core }));
        }
    }

    #[test]
    fn core_lists_are_read_and_bounded() {
        assert_eq!(parse_core_list("\n"), []);
        assert_eq!(parse_core_list("2-4,8,3\n"), [2, 3, 4, 8]);
        assert_eq!(parse_core_list("x,5,7-,4-3"), [5]);
        assert!(parse_core_list("0-99999999999").len() <= CORES_MAX);
        assert!(isolated_cores().len() <= CORES_MAX);
    }
}
