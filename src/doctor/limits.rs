//! Limits of this process: locked memory, descriptors, memory; and the clock.
//!
//! Main thread; reads, changes nothing.

use super::check::Check;
use crate::budget::Machine;
use crate::settings::value::{GIB, MIB, show_bytes};
use dwcp_ffi::sys;

/// What a daemon with defaults and one shard locks.
const LOCKED_BYTES_WISHED: u64 = 64 * MIB;
/// What a daemon with four links of four streams needs, rounded up.
const DESCRIPTORS_WISHED: u64 = 1024;

/// All checks of limits.
pub(super) fn checks() -> Vec<Check> {
    let machine = Machine::look();
    vec![locked_memory(&machine), descriptors(&machine), memory(&machine), clock()]
}

fn locked_memory(machine: &Machine) -> Check {
    const NAME: &str = "locked memory";
    match machine.lockable_bytes {
        u64::MAX => Check::ok(NAME, "no limit"),
        limit if limit >= LOCKED_BYTES_WISHED => Check::ok(NAME, show_bytes(limit)),
        limit => Check::warn(
            NAME,
            format!("{}; a shard takes {}", show_bytes(limit), show_bytes(LOCKED_BYTES_WISHED)),
            "raise it ('ulimit -l', LimitMEMLOCK= in the unit) or run with CAP_IPC_LOCK; until \
             then arenas are smaller, and with many streams the daemon doesn't start",
        ),
    }
}

fn descriptors(machine: &Machine) -> Check {
    const NAME: &str = "descriptors";
    let found = format!("{} after raising the soft limit", machine.descriptors_max);
    if machine.descriptors_max >= DESCRIPTORS_WISHED {
        return Check::ok(NAME, found);
    }
    let cure = "raise the hard limit ('ulimit -Hn', LimitNOFILE= in the unit)";
    Check::warn(NAME, found, cure)
}

fn memory(machine: &Machine) -> Check {
    const NAME: &str = "memory";
    let whole = show_bytes(machine.memory_bytes / MIB * MIB);
    match sys::available_memory_bytes() {
        Some(available) if available < GIB => Check::warn(
            NAME,
            format!("{} of {whole} are available", show_bytes(available / MIB * MIB)),
            "free some, or give the daemon a --memory that fits; the default is 1GiB",
        ),
        Some(available) => {
            let available = show_bytes(available / MIB * MIB);
            Check::ok(NAME, format!("{available} of {whole} are available"))
        }
        None => Check::ok(NAME, whole),
    }
}

/// Certificates begin and end by the clock; one that is years off refuses every peer.
fn clock() -> Check {
    const NAME: &str = "clock";
    // Made before this source was: the clock can't be right.
    const SOURCE_UNIX_S: i64 = 1_767_225_600;
    let now = crate::pki::authority::unix_now_s();
    let date = crate::pki::authority::date(now);
    if now < SOURCE_UNIX_S {
        let cure = "set the clock, and keep it by NTP: certificates hold by it";
        return Check::fail(NAME, format!("it says {date}"), cure);
    }
    Check::ok(NAME, format!("it says {date} (UTC); hosts may differ by up to an hour"))
}
