//! One memory mapping, unmapped when it is dropped.
//!
//! Owned by a region, private pages, an arena or a ring of provided buffers, which decide who may
//! touch the bytes. A mapping never moves, never changes its size and hands out its address only:
//! it reads and writes nothing itself.

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use std::num::NonZeroUsize;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

/// A mapped range of this process's address space.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    bytes: NonZeroUsize,
}

// SAFETY: a mapping belongs to the process, not to a thread, and the type itself never reads or
// writes the bytes; its owners (Region by atomics, Arena by exclusive leases, PrivatePages by
// borrows) order the accesses.
unsafe impl Send for Mapping {}
// SAFETY: as above; every method takes `&self` and only reads the two immutable fields.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Private zeroed memory.
    pub(crate) fn anonymous(bytes: NonZeroUsize) -> nix::Result<Self> {
        Self::private(bytes, MapFlags::MAP_PRIVATE)
    }

    /// Private zeroed memory that may be larger than the machine's: only what is touched counts.
    pub(crate) fn sparse(bytes: NonZeroUsize) -> nix::Result<Self> {
        Self::private(bytes, MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE)
    }

    fn private(bytes: NonZeroUsize, flags: MapFlags) -> nix::Result<Self> {
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: no address is asked for, so the kernel picks a free range and nothing that
        // exists is replaced.
        let base = unsafe { mmap_anonymous(None, bytes, protection, flags) }?;
        Ok(Self { base: base.cast(), bytes })
    }

    /// The first `bytes` of a file, shared with everyone who maps it.
    pub(crate) fn shared(
        file: BorrowedFd<'_>,
        bytes: NonZeroUsize,
        writable: bool,
    ) -> nix::Result<Self> {
        let protection = if writable {
            ProtFlags::PROT_READ | ProtFlags::PROT_WRITE
        } else {
            ProtFlags::PROT_READ
        };
        // SAFETY: no address is asked for, so the kernel picks a free range and nothing that
        // exists is replaced.
        let base = unsafe { mmap(None, bytes, protection, MapFlags::MAP_SHARED, file, 0) }?;
        Ok(Self { base: base.cast(), bytes })
    }

    /// The first byte.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// The length.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.get()
    }

    /// The address of the first byte, for the kernel's interfaces that take numbers.
    pub(crate) fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// The address `offset` bytes in. The offset must lie in the mapping or at its end.
    pub(crate) fn at(&self, offset: usize) -> NonNull<u8> {
        assert!(offset <= self.bytes.get(), "an address outside the mapping");
        // SAFETY: the sum stays in the mapping or one past it (asserted above), and a mapping is
        // smaller than isize::MAX on 64-bit Linux.
        unsafe { self.base.add(offset) }
    }

    /// Advice on the whole range. Only advice that never changes contents is passed in this crate.
    pub(crate) fn advise(&self, advice: MmapAdvise) -> nix::Result<()> {
        let changes_contents = matches!(
            advice,
            MmapAdvise::MADV_DONTNEED | MmapAdvise::MADV_REMOVE | MmapAdvise::MADV_FREE
        );
        assert!(!changes_contents, "this advice would throw contents away");
        // SAFETY: the range is exactly this live mapping, and the advice keeps its contents
        // (asserted above).
        unsafe { madvise(self.base.cast(), self.bytes.get(), advice) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by this value, is unmapped once, and every slice made from
        // it borrows its owner, so none is left.
        let unmapped = unsafe { munmap(self.base.cast(), self.bytes.get()) };
        assert!(unmapped.is_ok(), "munmap refused a range that mmap returned");
    }
}
