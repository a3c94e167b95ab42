//! The kernel's page-map scan with write-protection: which pages of a mapped region changed.
//!
//! Runs in the process that writes the region, on any one thread; other threads keep writing. A
//! userfaultfd in its asynchronous write-protect mode makes the kernel itself note the first write
//! to each page, without a fault handler; PAGEMAP_SCAN reports the noted pages and protects them
//! again in one atomic step per page, so that a write either is in this report or in the next.
//!
//! It sees writes through THIS process's mapping of the region only. Writes by other processes that
//! map the same file, by `write(2)` on the file, and by devices or vhost threads that pinned the
//! pages before are not seen: those need the bitmap of whoever makes them.

use super::DirtyBitmap;
use crate::PAGE_BYTES;
use crate::mapping::Mapping;
use crate::region::Region;
use nix::errno::Errno;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

/// Layouts and numbers of the kernel's interface: linux/userfaultfd.h and linux/fs.h. They never
/// change; `libc` does not have them.
mod abi {
    pub(super) const UFFD_USER_MODE_ONLY: libc::c_int = 1;
    pub(super) const UFFD_API: u64 = 0xAA;
    pub(super) const UFFD_FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
    pub(super) const UFFD_FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
    pub(super) const UFFD_FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
    pub(super) const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
    pub(super) const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;
    pub(super) const UFFDIO_WRITEPROTECT_MODE_WP: u64 = 1 << 0;
    pub(super) const PAGE_IS_WRITTEN: u64 = 1 << 1;
    pub(super) const PM_SCAN_WP_MATCHING: u64 = 1 << 0;
    pub(super) const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;

    /// `_IOWR(kind, number, argument of this size)`.
    const fn read_write(kind: u8, number: u8, bytes: usize) -> libc::c_ulong {
        (3 << 30) | ((bytes as libc::c_ulong) << 16) | ((kind as u64) << 8) | number as u64
    }

    #[repr(C)]
    pub(super) struct Api {
        pub(super) api: u64,
        pub(super) features: u64,
        pub(super) ioctls: u64,
    }
    #[repr(C)]
    pub(super) struct Register {
        pub(super) start: u64,
        pub(super) len: u64,
        pub(super) mode: u64,
        pub(super) ioctls: u64,
    }
    #[repr(C)]
    pub(super) struct WriteProtect {
        pub(super) start: u64,
        pub(super) len: u64,
        pub(super) mode: u64,
    }
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default)]
    pub(super) struct PageRange {
        pub(super) start: u64,
        pub(super) end: u64,
        pub(super) categories: u64,
    }
    #[repr(C)]
    #[derive(Default)]
    pub(super) struct Scan {
        pub(super) size: u64,
        pub(super) flags: u64,
        pub(super) start: u64,
        pub(super) end: u64,
        pub(super) walk_end: u64,
        pub(super) vec: u64,
        pub(super) vec_len: u64,
        pub(super) max_pages: u64,
        pub(super) category_inverted: u64,
        pub(super) category_mask: u64,
        pub(super) category_anyof_mask: u64,
        pub(super) return_mask: u64,
    }

    pub(super) const UFFDIO_API: libc::c_ulong = read_write(0xAA, 0x3F, size_of::<Api>());
    pub(super) const UFFDIO_REGISTER: libc::c_ulong = read_write(0xAA, 0, size_of::<Register>());
    pub(super) const UFFDIO_WRITEPROTECT: libc::c_ulong =
        read_write(0xAA, 6, size_of::<WriteProtect>());
    pub(super) const PAGEMAP_SCAN: libc::c_ulong = read_write(b'f', 16, size_of::<Scan>());

    const _: () = assert!(UFFDIO_API == 0xC018_AA3F);
    const _: () = assert!(UFFDIO_REGISTER == 0xC020_AA00);
    const _: () = assert!(UFFDIO_WRITEPROTECT == 0xC018_AA06);
    const _: () = assert!(PAGEMAP_SCAN == 0xC060_6610);
}

/// How many ranges one scan reports: 24 KiB of them. More changed ranges take more scans.
const RANGES_PER_SCAN: usize = 1024;

/// Why dirty pages can't be tracked.
#[derive(Debug, thiserror::Error)]
pub enum DirtyError {
    /// The kernel does not have a feature.
    #[error("the kernel lacks {feature} (Linux 6.7 has it, if configured)")]
    Missing {
        /// The feature's name in the kernel's interface.
        feature: &'static str,
    },
    /// This process may not use userfaultfd at all.
    #[error(
        "userfaultfd is not permitted; set vm.unprivileged_userfaultfd or drop the seccomp rule"
    )]
    NotPermitted,
    /// Another tracker watches the region already.
    #[error("another userfaultfd watches this region already")]
    Busy,
    /// The bitmap has fewer pages than the region.
    #[error("the bitmap speaks of {bitmap_pages} pages, the region has {region_pages}")]
    BitmapSize {
        /// Pages of the bitmap.
        bitmap_pages: u64,
        /// Pages of the region.
        region_pages: u64,
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
fn kernel(call: &'static str) -> impl FnOnce(io::Error) -> DirtyError {
    move |source| DirtyError::Kernel { call, source }
}

/// Watches one region for writes through this process's mapping.
#[derive(Debug)]
pub struct PagemapTracker {
    /// Ends the watch when it is closed, so it goes before the mapping.
    _watch: OwnedFd,
    pagemap: File,
    ranges: Box<[abi::PageRange]>,
    mapping: Arc<Mapping>,
}

impl PagemapTracker {
    /// Starts to watch. Writes before this are not reported: send all pages after it.
    ///
    /// # Errors
    /// [`DirtyError`]: the kernel lacks a feature or the right, or the region is watched already.
    pub fn new(region: &Region) -> Result<Self, DirtyError> {
        let mapping = Arc::clone(region.mapping());
        let watch = open_watch()?;
        enable_features(&watch)?;
        protect(&watch, &mapping)?;
        let pagemap = File::open("/proc/self/pagemap").map_err(kernel("open pagemap"))?;
        let ranges = vec![abi::PageRange::default(); RANGES_PER_SCAN].into_boxed_slice();
        let mut tracker = Self { _watch: watch, pagemap, ranges, mapping };
        // One scan of a page now, so that a kernel without it is refused here and not in the first
        // round. Without write-protection it takes nothing away from the first collect.
        tracker.scan(0, PAGE_BYTES as u64, abi::PM_SCAN_CHECK_WPASYNC).map_err(|error| {
            match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
                Errno::ENOTTY | Errno::EINVAL => DirtyError::Missing { feature: "PAGEMAP_SCAN" },
                _ => kernel("PAGEMAP_SCAN")(error),
            }
        })?;
        Ok(tracker)
    }

    /// Sets the bit of every page that was written since the last call (or since the start), and
    /// protects those pages again. Returns how many there were.
    ///
    /// # Errors
    /// [`DirtyError`]: the bitmap is too small, or the kernel refused. Pages that were scanned
    /// before a refusal are in the bitmap.
    pub fn collect(&mut self, bitmap: &DirtyBitmap) -> Result<u64, DirtyError> {
        let region_pages = (self.mapping.bytes() / PAGE_BYTES) as u64;
        if bitmap.page_count() < region_pages {
            let bitmap_pages = bitmap.page_count();
            return Err(DirtyError::BitmapSize { bitmap_pages, region_pages });
        }
        let bytes = self.mapping.bytes() as u64;
        let flags = abi::PM_SCAN_WP_MATCHING | abi::PM_SCAN_CHECK_WPASYNC;
        let base = self.mapping.address();
        let mut next = 0;
        let mut pages = 0;
        while next < bytes {
            let (count, end) = self.scan(next, bytes, flags).map_err(kernel("PAGEMAP_SCAN"))?;
            for range in &self.ranges[..count] {
                let first = (range.start - base) / PAGE_BYTES as u64;
                let length = (range.end - range.start) / PAGE_BYTES as u64;
                bitmap.set_range(first, length);
                pages += length;
            }
            assert!(end > next && end <= bytes, "a page-map scan that does not go forward");
            next = end;
        }
        Ok(pages)
    }

    /// One scan from byte `start` to at most byte `end` of the region: how many ranges of
    /// `self.ranges` it filled, and the byte where it stopped.
    fn scan(&mut self, start: u64, end: u64, flags: u64) -> io::Result<(usize, u64)> {
        let base = self.mapping.address();
        let mut scan = abi::Scan {
            size: size_of::<abi::Scan>() as u64,
            flags,
            start: base + start,
            end: base + end,
            vec: self.ranges.as_mut_ptr() as u64,
            vec_len: self.ranges.len() as u64,
            category_mask: abi::PAGE_IS_WRITTEN,
            return_mask: abi::PAGE_IS_WRITTEN,
            ..abi::Scan::default()
        };
        // SAFETY: the kernel writes at most `vec_len` ranges to `vec`, which is ours alone through
        // `&mut self`, and protects only pages of a mapping that this tracker keeps alive.
        let count = unsafe { call(self.pagemap.as_raw_fd(), abi::PAGEMAP_SCAN, &mut scan) }?;
        Ok((count as usize, scan.walk_end - base))
    }
}

/// A userfaultfd for faults of user mode.
fn open_watch() -> Result<OwnedFd, DirtyError> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | abi::UFFD_USER_MODE_ONLY;
    // SAFETY: the call takes one integer and returns a new descriptor or an error.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    let raw = Errno::result(fd).map_err(|errno| match errno {
        Errno::ENOSYS => DirtyError::Missing { feature: "userfaultfd" },
        Errno::EPERM => DirtyError::NotPermitted,
        other => kernel("userfaultfd")(other.into()),
    })?;
    // SAFETY: the kernel just returned this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw as RawFd) })
}

/// Asks for the features; a kernel that lacks one is asked what it has, to name the missing one.
fn enable_features(watch: &OwnedFd) -> Result<(), DirtyError> {
    const WANTED: [(u64, &str); 4] = [
        (abi::UFFD_FEATURE_PAGEFAULT_FLAG_WP, "UFFD_FEATURE_PAGEFAULT_FLAG_WP"),
        (abi::UFFD_FEATURE_WP_HUGETLBFS_SHMEM, "UFFD_FEATURE_WP_HUGETLBFS_SHMEM"),
        (abi::UFFD_FEATURE_WP_UNPOPULATED, "UFFD_FEATURE_WP_UNPOPULATED"),
        (abi::UFFD_FEATURE_WP_ASYNC, "UFFD_FEATURE_WP_ASYNC"),
    ];
    let features = WANTED.iter().fold(0, |all, &(bit, _)| all | bit);
    let mut api = abi::Api { api: abi::UFFD_API, features, ioctls: 0 };
    // SAFETY: UFFDIO_API reads and writes one `Api`.
    let agreed = unsafe { call(watch.as_raw_fd(), abi::UFFDIO_API, &mut api) };
    let Err(refusal) = agreed else { return Ok(()) };
    let probe = open_watch()?;
    let mut api = abi::Api { api: abi::UFFD_API, features: 0, ioctls: 0 };
    // SAFETY: UFFDIO_API reads and writes one `Api`.
    unsafe { call(probe.as_raw_fd(), abi::UFFDIO_API, &mut api) }.map_err(kernel("UFFDIO_API"))?;
    let missing = WANTED.iter().find(|&&(bit, _)| api.features & bit == 0);
    Err(missing.map_or_else(
        || kernel("UFFDIO_API")(refusal),
        |&(_, feature)| DirtyError::Missing { feature },
    ))
}

/// Registers the mapping and protects all of it, pages that do not exist yet included.
fn protect(watch: &OwnedFd, mapping: &Mapping) -> Result<(), DirtyError> {
    let (start, len) = (mapping.address(), mapping.bytes() as u64);
    let mode = abi::UFFDIO_REGISTER_MODE_WP;
    let mut register = abi::Register { start, len, mode, ioctls: 0 };
    // SAFETY: UFFDIO_REGISTER reads and writes one `Register`; in asynchronous mode the watch
    // changes no contents and blocks no access.
    unsafe { call(watch.as_raw_fd(), abi::UFFDIO_REGISTER, &mut register) }.map_err(|error| {
        match error.raw_os_error() {
            Some(libc::EBUSY) => DirtyError::Busy,
            _ => kernel("UFFDIO_REGISTER")(error),
        }
    })?;
    let mode = abi::UFFDIO_WRITEPROTECT_MODE_WP;
    let mut range = abi::WriteProtect { start, len, mode };
    // SAFETY: UFFDIO_WRITEPROTECT reads one `WriteProtect`; it protects pages of the mapping that
    // was registered above, and the kernel lifts the protection at the first write.
    unsafe { call(watch.as_raw_fd(), abi::UFFDIO_WRITEPROTECT, &mut range) }
        .map_err(kernel("UFFDIO_WRITEPROTECT"))?;
    Ok(())
}

/// An ioctl with a structure as its argument, repeated when a signal interrupts it.
///
/// # Safety
/// The request must read and write exactly a `T` at the argument, and what it does beyond that must
/// be sound for the caller's memory.
unsafe fn call<T>(fd: RawFd, request: libc::c_ulong, argument: &mut T) -> io::Result<i32> {
    loop {
        // SAFETY: the caller promises that the request takes a `T`; the reference is exclusive and
        // lives over the call.
        let result = unsafe { libc::ioctl(fd, request, std::ptr::from_mut(argument)) };
        match Errno::result(result) {
            Ok(value) => return Ok(value),
            Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
