//! A group of processes that may have little memory, for a host that runs out of it: a control
//! group of the kernel, made beside or below this process's own and removed when it is dropped.
//!
//! Both interfaces of the kernel are known: one tree for all resources, or one for memory alone.
//! Where neither may be used a test passes over, visibly. Settings of other groups stay as they
//! are.

use crate::harness::{SOON, wait_until};
use std::fs;
use std::path::{Path, PathBuf};

/// Where the kernel's trees are, by the custom of all distributions.
const TREES: &str = "/sys/fs/cgroup";

/// The group.
pub(super) struct MemoryGroup {
    folder: PathBuf,
    /// Where the kernel counts its kills.
    events: &'static str,
}

impl MemoryGroup {
    /// Makes a group whose processes may have so many bytes together; None when this machine does
    /// not let us, which is said.
    pub(super) fn new(bytes: u64) -> Option<Self> {
        let made = Self::of_memory_tree(bytes).or_else(|| Self::of_common_tree(bytes));
        if made.is_none() {
            eprintln!("PASSED OVER: no control group for memory can be made here");
        }
        made
    }

    /// In the tree for memory alone every group may have groups below it.
    fn of_memory_tree(bytes: u64) -> Option<Self> {
        let own = own_group(|kind| kind.split(',').any(|name| name == "memory"))?;
        let parent = Path::new(TREES).join("memory").join(own);
        let limits = [("memory.swappiness", 0), ("memory.limit_in_bytes", bytes)];
        Self::make(&parent, "memory.oom_control", &limits)
    }

    /// In the common tree a group with processes has none below it, so ours is beside.
    fn of_common_tree(bytes: u64) -> Option<Self> {
        let own = own_group(str::is_empty)?;
        let parent = Path::new(TREES).join(own.parent().unwrap_or(&own));
        let below = fs::read_to_string(parent.join("cgroup.subtree_control")).ok()?;
        if !below.split_whitespace().any(|name| name == "memory") {
            return None;
        }
        let limits = [("memory.swap.max", 0), ("memory.max", bytes)];
        Self::make(&parent, "memory.events", &limits)
    }

    fn make(parent: &Path, events: &'static str, limits: &[(&str, u64)]) -> Option<Self> {
        let folder = parent.join(format!("dwcp-e2e-{}", std::process::id()));
        fs::create_dir(&folder).ok()?;
        let group = Self { folder, events };
        for (name, value) in limits {
            let written = fs::write(group.folder.join(name), value.to_string());
            // A kernel without swap has no limit for it.
            if written.is_err() && !name.contains("swap") {
                return None;
            }
        }
        Some(group)
    }

    /// Moves a process into the group; what it holds already is not counted.
    pub(super) fn take(&self, pid: u32) {
        fs::write(self.folder.join("cgroup.procs"), pid.to_string()).expect("our own child moves");
    }

    /// How often the kernel has killed in the group for want of memory.
    pub(super) fn kills(&self) -> u64 {
        let events = fs::read_to_string(self.folder.join(self.events)).expect("our own group");
        let kills = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills.expect("the kernel counts them").trim().parse().expect("a number")
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // Its processes may be ending still; a test that fails shall not fail twice.
        if !std::thread::panicking() {
            wait_until("the control group to go", SOON, || fs::remove_dir(&self.folder).is_ok());
        }
        let _ = fs::remove_dir(&self.folder);
    }
}

/// The group of this process in the tree of a kind, below the tree's root.
fn own_group(is_kind: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    groups.lines().find_map(|line| {
        let (kind, path) = line.split_once(':')?.1.split_once(':')?;
        is_kind(kind).then(|| PathBuf::from(path.trim_start_matches('/')))
    })
}
