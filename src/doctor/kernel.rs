//! The kernel: its version, io_uring part by part, and the dirty-page scan.
//!
//! Main thread; makes a small ring and a one-page region of its own and drops both.

use super::check::{Check, kernel_file};
use dwcp_ffi::dirty::{DirtyBitmap, PagemapTracker};
use dwcp_ffi::region::{HugePages, Region};
use dwcp_ffi::sys;
use dwcp_ffi::uring::Probe;

/// The oldest kernel with all that is required of io_uring.
const KERNEL_LEAST: (u32, u32) = (6, 1);

/// All checks of the kernel.
pub(super) fn checks() -> Vec<Check> {
    let mut checks = vec![version()];
    checks.extend(io_uring());
    checks.push(page_map_scan());
    checks.push(huge_pages());
    checks
}

fn version() -> Check {
    let (major, minor) = KERNEL_LEAST;
    let cure = format!("boot Linux {major}.{minor} or newer");
    match sys::kernel_version() {
        Some(found) if (found.major, found.minor) >= KERNEL_LEAST => {
            Check::ok("kernel", format!("Linux {}.{}", found.major, found.minor))
        }
        Some(found) => {
            Check::fail("kernel", format!("Linux {}.{}", found.major, found.minor), cure)
        }
        None => Check::warn("kernel", "the version can't be read", cure),
    }
}

/// One line for what is required together, one for each thing that is missing.
fn io_uring() -> Vec<Check> {
    let probe = match Probe::run() {
        Ok(probe) => probe,
        Err(error) => {
            let cure = "set kernel.io_uring_disabled to 0 and allow io_uring in the container's \
                        seccomp profile, or boot another kernel";
            return vec![Check::fail("io_uring", error.to_string(), cure)];
        }
    };
    let missing = probe.features().iter().filter(|feature| !feature.present);
    let mut checks: Vec<Check> = missing
        .map(|feature| {
            let found = format!("{} is missing", feature.name);
            if feature.required {
                let cure = format!("boot Linux {} or newer", feature.since);
                Check::fail("io_uring", found, cure)
            } else {
                let cure = format!("sends are copied; Linux {} can do without", feature.since);
                Check::warn("io_uring", found, cure)
            }
        })
        .collect();
    let present = probe.features().len() - checks.len();
    let found = format!("{present} of {} parts that dwcp uses", probe.features().len());
    if checks.is_empty() {
        checks.push(Check::ok("io_uring", found));
    }
    checks
}

fn page_map_scan() -> Check {
    const NAME: &str = "page-map scan";
    let tracked = Region::create("dwcp-doctor", dwcp_ffi::PAGE_BYTES as u64, HugePages::Never)
        .map_err(|error| error.to_string())
        .and_then(|region| {
            let bitmap = DirtyBitmap::create(region.page_count()).map_err(|e| e.to_string())?;
            let mut tracker = PagemapTracker::new(&region).map_err(|e| e.to_string())?;
            tracker.collect(&bitmap).map_err(|e| e.to_string())
        });
    match tracked {
        Ok(_) => Check::ok(NAME, "write-protect tracking of regions in this process works"),
        Err(error) => Check::warn(
            NAME,
            error,
            "dirty pages are found by bitmap or comparison; for the scan boot Linux 6.7 or newer \
             and set vm.unprivileged_userfaultfd to 1 or run as root",
        ),
    }
}

fn huge_pages() -> Check {
    const NAME: &str = "huge pages";
    let count = |text: Option<String>| text.and_then(|text| text.parse::<u64>().ok());
    match count(kernel_file("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")) {
        Some(0) => Check::ok(NAME, "none reserved; regions use 4 KiB pages, which works"),
        Some(free) => Check::ok(NAME, format!("{free} of 2 MiB are free")),
        None => Check::ok(NAME, "this kernel has none of 2 MiB; regions use 4 KiB pages"),
    }
}
