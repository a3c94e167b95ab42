//! What the machine allows this process, as far as the budget needs to know.
//!
//! Main thread, once at start; reads limits and /proc, changes nothing.

use dwcp_ffi::{cpu, sys};

/// `CAP_IPC_LOCK`, linux/capability.h: no limit of locked memory holds for its owner.
const CAP_IPC_LOCK: u32 = 14;

/// What the machine allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    /// All memory.
    pub(crate) memory_bytes: u64,
    /// Memory that may be locked; `u64::MAX` without a limit.
    pub(crate) lockable_bytes: u64,
    /// Descriptors after the soft limit was raised.
    pub(crate) descriptors_max: u64,
    /// Cores that may be used.
    pub(crate) cores: Vec<usize>,
}

impl Machine {
    /// Asks the kernel.
    pub(crate) fn look() -> Self {
        let exempt = may_lock_everything();
        Self {
            memory_bytes: sys::physical_memory_bytes(),
            lockable_bytes: if exempt { u64::MAX } else { sys::memlock_limit() },
            descriptors_max: sys::nofile_limit().1,
            cores: cpu::allowed_cores(),
        }
    }
}

/// Whether the limit of locked memory doesn't hold for this process.
fn may_lock_everything() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    has_capability(&status, CAP_IPC_LOCK)
}

fn has_capability(status: &str, capability: u32) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let set = line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0);
    set >> capability & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_capability_is_read_from_the_effective_set() {
        let status = "CapPrm:\t0000000000000000\nCapEff:\t0000000000004000\n";
        assert!(has_capability(status, CAP_IPC_LOCK));
        assert!(!has_capability("CapPrm:\t0000000000004000\nCapEff:\t0\n", CAP_IPC_LOCK));
        assert!(!has_capability("", CAP_IPC_LOCK));
    }
}
