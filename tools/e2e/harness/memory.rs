//! Live memory: a region whose every page can be told from its number and version, and a writer.
//!
//! The writer counts the versions, so that a test can say of a source region that nobody but the
//! writer has touched it.

use super::Rng;
use dwcp_ffi::dirty::DirtyBitmap;
use dwcp_ffi::region::{HugePages, Region};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;
/// One mebibyte.
pub(crate) const MIB: u64 = 1 << 20;

/// A region with known content.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    region: Arc<Region>,
    bitmap: Option<Arc<DirtyBitmap>>,
    /// The newest version of each page.
    versions: Arc<Vec<AtomicU32>>,
    seed: u64,
    random: bool,
}

impl Memory {
    /// A region filled with a mix of pages; with a bitmap of changes if asked for.
    pub(crate) fn filled(seed: u64, bytes: u64, with_bitmap: bool) -> Self {
        let this = Self::new(seed, bytes, with_bitmap, false);
        (0..this.pages()).for_each(|page| this.write(page, 0));
        this
    }

    /// A region filled with bytes that nothing compresses.
    pub(crate) fn random(seed: u64, bytes: u64) -> Self {
        let this = Self::new(seed, bytes, false, true);
        (0..this.pages()).for_each(|page| this.write(page, 0));
        this
    }

    /// A region of zeroes, for a sink.
    pub(crate) fn empty(bytes: u64) -> Self {
        Self::new(0, bytes, false, false)
    }

    fn new(seed: u64, bytes: u64, with_bitmap: bool, random: bool) -> Self {
        let region = Region::create("dwcp-e2e", bytes, HugePages::Never).expect("a memfd");
        let pages = region.page_count();
        let bitmap = with_bitmap.then(|| Arc::new(DirtyBitmap::create(pages).expect("a memfd")));
        let versions = (0..pages).map(|_| AtomicU32::new(0)).collect();
        Self { region: Arc::new(region), bitmap, versions: Arc::new(versions), seed, random }
    }

    /// How many pages it has.
    pub(crate) fn pages(&self) -> u64 {
        self.region.page_count()
    }

    /// The descriptors for `region.register`.
    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let bitmap = self.bitmap.iter().map(|bitmap| bitmap.fd());
        std::iter::once(self.region.fd()).chain(bitmap).collect()
    }

    /// Whether changes are told by a bitmap.
    pub(crate) fn has_bitmap(&self) -> bool {
        self.bitmap.is_some()
    }

    /// Changes a page to its next version.
    pub(crate) fn touch(&self, page: u64) {
        let version = &self.versions[usize::try_from(page).expect("pages fit")];
        let next = version.load(Ordering::Relaxed) + 1;
        version.store(next, Ordering::Relaxed);
        self.write(page, next);
    }

    /// Changes many pages, spread over the region.
    pub(crate) fn touch_some(&self, rng: &mut Rng, count: u64) {
        (0..count).for_each(|_| self.touch(rng.below(self.pages())));
    }

    fn write(&self, page: u64, version: u32) {
        self.region.write_pages(page, &self.content(page, version));
        // After the bytes: whoever takes the bit then reads them.
        if let Some(bitmap) = &self.bitmap {
            bitmap.set(page);
        }
    }

    /// What a page holds in a version: zeroes, counters in a constant text, or noise.
    fn content(&self, page: u64, version: u32) -> Vec<u8> {
        let mut bytes = vec![0; PAGE];
        let kind = if self.random { 7 } else { page % 8 };
        let mut rng = Rng(self.seed ^ (page << 20));
        match kind {
            0 if version == 0 => return bytes,
            7 => {
                rng.0 ^= u64::from(version) << 50;
                for word in bytes.chunks_exact_mut(8) {
                    word.copy_from_slice(&rng.next().to_le_bytes());
                }
            }
            _ => {
                for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
                    let value = rng.next() & 0x0f0f_0f00;
                    let value = if index % 3 == 0 { value } else { page };
                    word.copy_from_slice(&value.to_le_bytes());
                }
            }
        }
        bytes[1024..1028].copy_from_slice(&version.to_le_bytes());
        bytes[1032..1040].copy_from_slice(&page.to_le_bytes());
        bytes
    }

    /// The pages that hold anything but what the writer wrote last.
    pub(crate) fn foreign_pages(&self) -> Vec<u64> {
        let version = |page: u64| {
            self.versions[usize::try_from(page).expect("pages fit")].load(Ordering::Relaxed)
        };
        let wrong = |page: &u64| self.page(*page) != self.content(*page, version(*page));
        (0..self.pages()).filter(wrong).collect()
    }

    /// The pages in which two regions differ.
    pub(crate) fn differing_pages(&self, other: &Self) -> Vec<u64> {
        assert_eq!(self.pages(), other.pages());
        (0..self.pages()).filter(|page| self.page(*page) != other.page(*page)).collect()
    }

    /// The pages that are not all zero.
    pub(crate) fn written_pages(&self) -> Vec<u64> {
        (0..self.pages()).filter(|page| !self.region.is_zero_page(*page)).collect()
    }

    fn page(&self, page: u64) -> Vec<u8> {
        let mut bytes = vec![0; PAGE];
        self.region.read_pages(page, &mut bytes);
        bytes
    }

    /// Starts a writer that changes so many pages each millisecond.
    pub(crate) fn start_writer(&self, seed: u64, pages_per_ms: u64) -> Writer {
        let memory = self.clone();
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut rng = Rng(seed);
            while !told.load(Ordering::Relaxed) {
                memory.touch_some(&mut rng, pages_per_ms);
                std::thread::park_timeout(Duration::from_millis(1));
            }
        });
        Writer { stop, thread: Some(thread) }
    }
}

/// A thread that changes memory until it is stopped or dropped.
#[derive(Debug)]
pub(crate) struct Writer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Stops it; afterwards nothing changes any more.
    pub(crate) fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the writer does not panic");
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.end();
    }
}
