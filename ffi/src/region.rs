//! Regions: memory that a session moves, shared by file descriptor.
//!
//! A region is a sealed memfd mapped into this process. Guests, VMMs and other threads may write it
//! at any moment, so nobody ever gets a plain slice of it: every access is a relaxed atomic load or
//! store of eight bytes, which is sound whatever runs beside it and may only tear between words, or
//! a write to the file, which is the kernel's access and not this program's.
//! Callers that need a page as it was at one instant hash it after copying, or pause the writer.
//!
//! Used by shards (reading, writing pages) and by the control thread (making and taking regions).
//! The file can't shrink under the mapping: a region without the seal against it is refused, as one
//! access past the end would kill the daemon by SIGBUS. Regions are left out of core dumps. What no
//! seal forbids is an owner that punches holes into a file of huge pages while none are free: then
//! an access can still raise SIGBUS, so huge pages are for owners that are trusted to keep them.

use crate::PAGE_BYTES;
use crate::mapping::Mapping;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::MmapAdvise;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::stat::fstat;
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use nix::sys::uio::pwrite;
use nix::unistd::ftruncate;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The largest region: 64 TiB, half of what one process can map on x86-64.
pub const REGION_BYTES_MAX: u64 = 64 << 40;

/// The size of the huge pages that [`HugePages`] asks for: 2 MiB, the size that both x86-64 and
/// AArch64 have.
pub const HUGE_PAGE_BYTES: u64 = 2 << 20;

/// How many 8-byte words a page has.
const PAGE_WORDS: usize = PAGE_BYTES / 8;

/// Whether a new region is made of huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePages {
    /// Small pages.
    Never,
    /// Huge pages if enough are free now, small ones otherwise. [`Region::huge`] tells which.
    Try,
    /// Huge pages or an error.
    Require,
}

/// Why there is no region.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// The size is zero, not a multiple of the page, or beyond [`REGION_BYTES_MAX`].
    #[error(
        "a region of {bytes} bytes: the size must be a multiple of {multiple}, not zero, and at \
         most {REGION_BYTES_MAX}"
    )]
    Size {
        /// The size asked for, or the size of the file.
        bytes: u64,
        /// What it must be a multiple of.
        multiple: u64,
    },
    /// Not enough huge pages are free.
    #[error("no {bytes} bytes of huge pages are free; reserve more in vm.nr_hugepages")]
    HugePages {
        /// The size asked for.
        bytes: u64,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// The descriptor is no memfd, so that nothing can keep its file from shrinking.
    #[error("the descriptor is not a memfd, so its size can't be sealed")]
    NotMemory,
    /// The file may still shrink, and the owner does not let us forbid it.
    #[error(
        "the file can shrink and its owner does not allow sealing; create it with \
         MFD_ALLOW_SEALING, or add F_SEAL_SHRINK"
    )]
    NotSealable,
    /// What must be written to is read-only.
    #[error("the file or its descriptor is read-only")]
    ReadOnly,
    /// A pool of pages has not so many left.
    #[error("a pool of {pool_bytes} bytes has no {bytes} left")]
    PoolExhausted {
        /// The size asked for.
        bytes: u64,
        /// The size of the pool.
        pool_bytes: u64,
    },
    /// The kernel refused a step.
    #[error("{call} failed")]
    Kernel {
        /// The step.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
}

/// Names the step that the kernel refused.
fn kernel(call: &'static str) -> impl FnOnce(Errno) -> RegionError {
    move |source| RegionError::Kernel { call, source }
}

/// Memory that a session moves.
#[derive(Debug)]
pub struct Region {
    /// Shared with a tracker of dirty pages, so that the range stays ours while it is watched.
    mapping: Arc<Mapping>,
    file: OwnedFd,
    writable: bool,
    huge: bool,
    /// Pages may be written through the file.
    by_file: bool,
}

impl Region {
    /// Makes a region of zeroes, sealed against any change of size.
    ///
    /// # Errors
    /// [`RegionError`]: a bad size, or the kernel lacks the memory.
    ///
    /// # Panics
    /// When the name holds a zero byte or is longer than 200 bytes: names are ours.
    pub fn create(name: &str, bytes: u64, huge: HugePages) -> Result<Self, RegionError> {
        assert!(name.len() <= 200 && !name.as_bytes().contains(&0), "a memfd can't have this name");
        match huge {
            HugePages::Never => Self::create_as(name, bytes, false),
            HugePages::Require => Self::create_as(name, bytes, true),
            HugePages::Try => {
                Self::create_as(name, bytes, true).or_else(|_| Self::create_as(name, bytes, false))
            }
        }
    }

    /// Makes a region of one kind of pages.
    fn create_as(name: &str, bytes: u64, huge: bool) -> Result<Self, RegionError> {
        let multiple = if huge { HUGE_PAGE_BYTES } else { PAGE_BYTES as u64 };
        let length = checked_size(bytes, multiple)?;
        let kind =
            if huge { MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB } else { MFdFlags::empty() };
        let refused = |call| {
            move |source| {
                if huge {
                    RegionError::HugePages { bytes, source }
                } else {
                    RegionError::Kernel { call, source }
                }
            }
        };
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING | kind;
        let file = memfd_create(name, flags).map_err(refused("memfd_create"))?;
        let size = i64::try_from(bytes).map_err(|_| RegionError::Size { bytes, multiple })?;
        ftruncate(&file, size).map_err(refused("ftruncate"))?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).map_err(kernel("F_ADD_SEALS"))?;
        // A mapping of huge pages reserves them all, so that a lack shows here, not as a SIGBUS.
        let mapping = Mapping::shared(file.as_fd(), length, true).map_err(refused("mmap"))?;
        mapping.advise(MmapAdvise::MADV_DONTDUMP).map_err(kernel("madvise"))?;
        let by_file = !huge && may_write_file(bytes);
        Ok(Self { mapping: Arc::new(mapping), file, writable: true, huge, by_file })
    }

    /// Takes a region that another process made. The descriptor must be a memfd that is sealed
    /// against shrinking or can be; a descriptor or seal that forbids writing gives a region that
    /// is not [`writable`](Self::writable).
    ///
    /// # Errors
    /// [`RegionError`]: not a memfd, a size that does not fit, or no seal.
    pub fn from_fd(file: OwnedFd) -> Result<Self, RegionError> {
        let seals = seals_of(&file)?;
        if !seals.contains(SealFlag::F_SEAL_SHRINK) {
            fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).map_err(|errno| {
                match errno {
                    // EPERM: sealing was not allowed, or the descriptor is read-only.
                    Errno::EPERM => RegionError::NotSealable,
                    source => RegionError::Kernel { call: "F_ADD_SEALS", source },
                }
            })?;
        }
        // Only now the size is a promise: before the seal it could change between check and use.
        let status = fstat(&file).map_err(kernel("fstat"))?;
        let bytes = u64::try_from(status.st_size).unwrap_or(0);
        // The block size does not tell: with transparent huge pages any memfd may have a huge one.
        let system = fstatfs(&file).map_err(kernel("fstatfs"))?;
        let huge = system.filesystem_type() == HUGETLBFS_MAGIC;
        let block = u64::try_from(status.st_blksize).unwrap_or(0);
        let multiple = if huge { block.max(HUGE_PAGE_BYTES) } else { PAGE_BYTES as u64 };
        let length = checked_size(bytes, multiple)?;
        let mode = fcntl(&file, FcntlArg::F_GETFL).map_err(kernel("F_GETFL"))?;
        let read_write = OFlag::from_bits_retain(mode) & OFlag::O_ACCMODE == OFlag::O_RDWR;
        let no_write = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_FUTURE_WRITE;
        let writable = read_write && !seals.intersects(no_write);
        let mapping = Mapping::shared(file.as_fd(), length, writable).map_err(kernel("mmap"))?;
        mapping.advise(MmapAdvise::MADV_DONTDUMP).map_err(kernel("madvise"))?;
        // Its owner may set the descriptor to append at any time; the seal makes that an error.
        let by_file =
            writable && !huge && seals.contains(SealFlag::F_SEAL_GROW) && may_write_file(bytes);
        Ok(Self { mapping: Arc::new(mapping), file, writable, huge, by_file })
    }

    /// The memory's file, to be given to another process.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// False when the owner forbade writing: then it can be a source only, and stores panic.
    #[must_use]
    pub fn writable(&self) -> bool {
        self.writable
    }

    /// True when the memory is made of huge pages.
    #[must_use]
    pub fn huge(&self) -> bool {
        self.huge
    }

    /// The size.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.mapping.bytes() as u64
    }

    /// The size in pages of 4 KiB.
    #[must_use]
    pub fn page_count(&self) -> u64 {
        self.bytes() / PAGE_BYTES as u64
    }

    /// Copies whole pages out, from page `first` on, as many as `out` holds.
    ///
    /// # Panics
    /// When `out` is not whole pages, or the pages are not all in the region.
    pub fn read_pages(&self, first: u64, out: &mut [u8]) {
        let words = self.page_words(first, out.len());
        let (chunks, _) = out.as_chunks_mut::<8>();
        for (chunk, word) in chunks.iter_mut().zip(words) {
            *chunk = word.load(Ordering::Relaxed).to_ne_bytes();
        }
    }

    /// Copies whole pages in, from page `first` on.
    ///
    /// # Panics
    /// When `data` is not whole pages, the pages are not all in the region, or the region is not
    /// writable.
    pub fn write_pages(&self, first: u64, data: &[u8]) {
        assert!(self.writable, "a store to a region that its owner made read-only");
        store(self.page_words(first, data.len()), data);
    }

    /// Copies whole pages in, from page `first` on, into memory that was probably never touched:
    /// through the file where that is possible, since the kernel then neither zeroes a page before
    /// it is overwritten nor takes a fault for each. The same as [`write_pages`](Self::write_pages)
    /// in all else, to which it also falls back.
    ///
    /// # Panics
    /// As `write_pages`.
    pub fn write_new_pages(&self, first: u64, data: &[u8]) {
        assert!(self.writable, "a store to a region that its owner made read-only");
        let words = self.page_words(first, data.len());
        let mut written = 0;
        while self.by_file && written < data.len() {
            let at = first * PAGE_BYTES as u64 + written as u64;
            match i64::try_from(at).map(|at| pwrite(&self.file, &data[written..], at)) {
                Ok(Ok(bytes @ 1..)) => written += bytes,
                Ok(Err(Errno::EINTR)) => {}
                // Whatever the file refuses, the mapping may take; if not, the page's hash tells.
                _ => break,
            }
        }
        // Whole words again: a write may end inside one.
        let done = written / 8;
        store(&words[done..], &data[done * 8..]);
    }

    /// True when the page holds only zeroes.
    ///
    /// # Panics
    /// When the page is not in the region.
    #[must_use]
    pub fn is_zero_page(&self, page: u64) -> bool {
        let words = self.page_words(page, PAGE_BYTES);
        words.iter().all(|word| word.load(Ordering::Relaxed) == 0)
    }

    /// Loads the word at byte `offset`.
    ///
    /// # Panics
    /// When the offset is not a multiple of 8 in the region.
    #[must_use]
    pub fn load_u64(&self, offset: u64) -> u64 {
        self.word(offset).load(Ordering::Relaxed)
    }

    /// Stores the word at byte `offset`.
    ///
    /// # Panics
    /// When the offset is not a multiple of 8 in the region, or the region is not writable.
    pub fn store_u64(&self, offset: u64, value: u64) {
        assert!(self.writable, "a store to a region that its owner made read-only");
        self.word(offset).store(value, Ordering::Relaxed);
    }

    /// The mapping, for a tracker that must keep it alive.
    pub(crate) fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// All of the memory as atomic words. Of a region that is not writable, words may be loaded
    /// only; the callers in this crate check that.
    pub(crate) fn words(&self) -> &[AtomicU64] {
        let base = self.mapping.base().cast::<AtomicU64>();
        let count = self.mapping.bytes() / 8;
        // SAFETY: the mapping lives as long as `self`, is page-aligned and of this size, and can't
        // lose its file's pages (the seal, kept by both constructors); all accesses in this process
        // are atomic, since no other view of a region is ever made.
        unsafe { std::slice::from_raw_parts(base.as_ptr(), count) }
    }

    /// The word at a byte offset.
    fn word(&self, offset: u64) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8), "offset {offset} is not a multiple of 8");
        assert!(offset < self.bytes(), "offset {offset} is outside the region");
        &self.words()[offset as usize / 8]
    }

    /// The words of the pages from `first` on that fill `bytes`.
    fn page_words(&self, first: u64, bytes: usize) -> &[AtomicU64] {
        assert!(bytes.is_multiple_of(PAGE_BYTES), "{bytes} bytes are not whole pages");
        let count = (bytes / PAGE_BYTES) as u64;
        assert!(
            first <= self.page_count() && count <= self.page_count() - first,
            "pages {first}+{count} are outside the region"
        );
        let start = first as usize * PAGE_WORDS;
        &self.words()[start..start + bytes / 8]
    }
}

/// Stores bytes as words.
fn store(words: &[AtomicU64], data: &[u8]) {
    for (chunk, word) in data.as_chunks::<8>().0.iter().zip(words) {
        word.store(u64::from_ne_bytes(*chunk), Ordering::Relaxed);
    }
}

/// True when the limit of file sizes lets this process write so far into a file: beyond it the
/// kernel would send a signal that ends the process.
fn may_write_file(bytes: u64) -> bool {
    getrlimit(Resource::RLIMIT_FSIZE).is_ok_and(|(limit, _)| limit >= bytes)
}

/// The size as a length that can be mapped.
pub(crate) fn checked_size(bytes: u64, multiple: u64) -> Result<NonZeroUsize, RegionError> {
    let fits = multiple > 0 && bytes.is_multiple_of(multiple) && bytes <= REGION_BYTES_MAX;
    let length = usize::try_from(bytes).ok().filter(|_| fits).and_then(NonZeroUsize::new);
    length.ok_or(RegionError::Size { bytes, multiple })
}

/// The seals of a memfd.
fn seals_of(file: &OwnedFd) -> Result<SealFlag, RegionError> {
    match fcntl(file, FcntlArg::F_GET_SEALS) {
        Ok(bits) => Ok(SealFlag::from_bits_retain(bits)),
        Err(Errno::EINVAL) => Err(RegionError::NotMemory),
        Err(source) => Err(RegionError::Kernel { call: "F_GET_SEALS", source }),
    }
}

#[cfg(test)]
mod tests;
