//! Cores: how many this process may use, and whether the kernel keeps others away from them.
//!
//! Main thread; reads, changes nothing.

use super::check::Check;
use dwcp_ffi::cpu;

/// All checks of cores.
pub(super) fn checks() -> Vec<Check> {
    let allowed = cpu::allowed_cores();
    let isolated = cpu::isolated_cores();
    vec![count(&allowed), isolation(&isolated)]
}

fn count(allowed: &[usize]) -> Check {
    const NAME: &str = "cores";
    let found = format!("this process may use {}: {}", allowed.len(), list(allowed));
    if allowed.len() >= 2 {
        return Check::ok(NAME, found);
    }
    let cure = "give the daemon a second core, for control, or run it with --poll park";
    Check::warn(NAME, found, cure)
}

/// Isolation helps the last per cent of latency; without it nothing is wrong.
fn isolation(isolated: &[usize]) -> Check {
    const NAME: &str = "isolated cores";
    if isolated.is_empty() {
        return Check::ok(NAME, "none; --cores works, shards share their cores with others");
    }
    Check::ok(NAME, format!("{}: give these to --cores", list(isolated)))
}

fn list(cores: &[usize]) -> String {
    cores.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}
