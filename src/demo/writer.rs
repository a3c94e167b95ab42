//! The writer: the guest whose memory moves. One thread that changes pages of the source region
//! at a settable rate until it is stopped.
//!
//! Started and stopped by the pre-copy loop; nobody else writes to the source region meanwhile.
//! The pattern follows what a busy database was seen to do (225 bytes changed in the median
//! changed page):
//!
//! - nine writes of ten go to a hot set: one block of each 64, the first ones more often;
//!   the tenth goes anywhere;
//! - a text page gets a new line or two, a table one to three new rows, a page of counters 8 to 40
//!   increments, a heap 8 to 40 new slots, an untouched page its first row;
//! - random pages, and 3 % of all others, are written anew as a whole.
//!
//! The writer never catches up more than [`CATCH_UP`]: a rate that the machine can't reach is
//! reported as what was reached.

use super::generator::{BLOCK_PAGES, Generator, PAGE_BYTES, PageKind, RECORD_BYTES};
use super::generator::{counter, pointer};
use super::rng::Rng;
use dwcp_ffi::region::Region;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The writer's own stream of random numbers: no page has this number.
const WRITER: u64 = (1 << 63) | 3;
/// One block of so many is hot.
const BLOCKS_PER_HOT_BLOCK: u64 = 64;
/// Writes to the hot set, of 100.
const HOT_PERCENT: u32 = 90;
/// Pages written anew as a whole, of 100.
const WHOLE_PERCENT: u32 = 3;
/// Pages between two looks at the clock and the stop flag.
const BATCH_PAGES: u64 = 32;
/// How long the writer sleeps when it is ahead of its rate.
const NAP: Duration = Duration::from_millis(1);
/// Writes that were missed for longer than this are not made up for.
const CATCH_UP: Duration = Duration::from_millis(50);

/// What the writer did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Written {
    /// Pages changed; a page that was changed twice counts twice.
    pub(crate) pages: u64,
    /// From its start to its last write.
    pub(crate) seconds: f64,
}

/// A running writer.
#[derive(Debug)]
pub(crate) struct Writer {
    stop: Arc<AtomicBool>,
    /// None once it was joined.
    thread: Option<JoinHandle<Written>>,
}

impl Writer {
    /// Starts changing `region` at `pages_per_second`; 0 leaves it alone.
    ///
    /// # Errors
    /// The kernel gave no thread.
    pub(crate) fn start(
        region: Arc<Region>,
        generator: Generator,
        pages_per_second: u64,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("demo-writer".to_owned())
            .spawn(move || run(Pattern::new(generator, region), pages_per_second, &stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Ends the writer: no write happens after this returns.
    pub(crate) fn stop(mut self) -> Written {
        self.join()
    }

    fn join(&mut self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else { return Written::default() };
        thread.thread().unpark();
        match thread.join() {
            Ok(written) => written,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Writer {
    /// A run that fails leaves no writer behind.
    fn drop(&mut self) {
        if !thread::panicking() {
            self.join();
        }
    }
}

/// The writer's loop.
fn run(mut pattern: Pattern, pages_per_second: u64, stop: &AtomicBool) -> Written {
    let started = Instant::now();
    let slack_pages = (pages_per_second as f64 * CATCH_UP.as_secs_f64()) as u64;
    // Writes that were due and given up, so that a stall is not followed by a burst.
    let mut missed_pages = 0;
    let mut pages = 0;
    while !stop.load(Ordering::Relaxed) {
        let due = (started.elapsed().as_secs_f64() * pages_per_second as f64) as u64;
        let behind = due.saturating_sub(pages + missed_pages);
        missed_pages += behind.saturating_sub(slack_pages.max(BATCH_PAGES));
        for _ in 0..behind.min(BATCH_PAGES) {
            pattern.change_a_page();
        }
        pages += behind.min(BATCH_PAGES);
        if behind == 0 {
            thread::park_timeout(NAP);
        }
    }
    Written { pages, seconds: started.elapsed().as_secs_f64() }
}

/// Which page is changed next, and how.
#[derive(Debug)]
struct Pattern {
    rng: Rng,
    generator: Generator,
    region: Arc<Region>,
    page: Vec<u8>,
}

impl Pattern {
    fn new(generator: Generator, region: Arc<Region>) -> Self {
        let rng = Rng::of(generator.seed(), WRITER, 0);
        Self { rng, generator, region, page: vec![0; PAGE_BYTES] }
    }

    fn change_a_page(&mut self) {
        let page = self.choose();
        let kind = self.generator.kind(page);
        if kind == PageKind::Random || self.rng.below(100) < WHOLE_PERCENT {
            // Version 0 is what the page held at first.
            let version = self.rng.next() | 1;
            self.generator.fill(page, version, &mut self.page);
            self.region.write_pages(page, &self.page);
            return;
        }
        match kind {
            PageKind::Text | PageKind::Duplicate => self.change_text(page),
            PageKind::Records => {
                for _ in 0..1 + self.rng.below(3) {
                    self.change_record(page);
                }
            }
            PageKind::Zero | PageKind::Random => self.change_record(page),
            PageKind::Counters => {
                for _ in 0..8 + self.rng.below(33) {
                    let at = self.slot(page);
                    let step = u64::from_le_bytes(counter(&mut self.rng)) & 0xff;
                    self.region.store_u64(at, self.region.load_u64(at).wrapping_add(step + 1));
                }
            }
            PageKind::Pointers => {
                for _ in 0..8 + self.rng.below(33) {
                    let at = self.slot(page);
                    let value = pointer(&mut self.rng, self.generator.arena());
                    self.region.store_u64(at, u64::from_le_bytes(value));
                }
            }
        }
    }

    /// The page to change: nine times of ten a hot one.
    fn choose(&mut self) -> u64 {
        let pages = self.region.page_count();
        let groups = pages.div_ceil(BLOCKS_PER_HOT_BLOCK * BLOCK_PAGES);
        let draw = self.rng.next();
        if self.rng.below(100) >= HOT_PERCENT {
            return draw % pages;
        }
        // The product of two draws favours the first groups.
        let skewed = ((draw & 0xffff) * ((draw >> 16) & 0xffff)) >> 16;
        let group = (skewed * groups) >> 16;
        let block = Rng::of(self.generator.seed(), WRITER, group + 1).next() % BLOCKS_PER_HOT_BLOCK;
        let page =
            (group * BLOCKS_PER_HOT_BLOCK + block) * BLOCK_PAGES + (draw >> 32) % BLOCK_PAGES;
        page % pages
    }

    /// A random eight bytes of the page, as their offset in the region.
    fn slot(&mut self, page: u64) -> u64 {
        page * PAGE_BYTES as u64 + u64::from(self.rng.below(512)) * 8
    }

    fn change_text(&mut self, page: u64) {
        let bytes = 64 + 8 * self.rng.below(33) as usize;
        let mut line = std::mem::take(&mut self.page);
        self.generator.text(&mut self.rng, &mut line[..bytes]);
        let at = 8 * u64::from(self.rng.below(((PAGE_BYTES - bytes) / 8) as u32));
        self.store(page * PAGE_BYTES as u64 + at, &line[..bytes]);
        self.page = line;
    }

    fn change_record(&mut self, page: u64) {
        let mut row = [0; RECORD_BYTES];
        let place = u64::from(self.rng.below((PAGE_BYTES / RECORD_BYTES) as u32));
        let id = page * (PAGE_BYTES / RECORD_BYTES) as u64 + place;
        self.generator.record(&mut self.rng, id, &mut row);
        self.store(page * PAGE_BYTES as u64 + place * RECORD_BYTES as u64, &row);
    }

    /// Writes whole words from the offset `at` of the region on.
    fn store(&self, at: u64, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks();
        assert!(rest.is_empty(), "the writer writes whole words");
        for (place, word) in (0_u64..).zip(words) {
            self.region.store_u64(at + place * 8, u64::from_le_bytes(*word));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_ffi::region::HugePages;

    const PAGES: u64 = 4096;

    fn filled(generator: &Generator) -> Arc<Region> {
        let bytes = PAGES * PAGE_BYTES as u64;
        let region = Region::create("demo-writer-test", bytes, HugePages::Never).unwrap();
        let mut page = vec![0; PAGE_BYTES];
        for index in 0..PAGES {
            generator.fill(index, 0, &mut page);
            region.write_pages(index, &page);
        }
        Arc::new(region)
    }

    fn read(region: &Region, page: u64) -> Vec<u8> {
        let mut bytes = vec![0; PAGE_BYTES];
        region.read_pages(page, &mut bytes);
        bytes
    }

    #[test]
    fn most_changes_are_small_and_most_writes_are_hot() {
        let seed = 5;
        let generator = Generator::new(seed);
        let region = filled(&generator);
        let mut pattern = Pattern::new(generator.clone(), Arc::clone(&region));
        for _ in 0..10_000 {
            pattern.change_a_page();
        }
        let mut before = vec![0; PAGE_BYTES];
        let mut changed_bytes = Vec::new();
        for index in 0..PAGES {
            generator.fill(index, 0, &mut before);
            let after = read(&region, index);
            let bytes = before.iter().zip(&after).filter(|(old, new)| old != new).count();
            if bytes > 0 {
                changed_bytes.push(bytes);
            }
        }
        // 10 % of 10,000 writes hit cold pages; the hot set is 64 pages.
        let changed = changed_bytes.len();
        assert!((600..1_300).contains(&changed), "seed {seed}: {changed} changed pages");
        changed_bytes.sort_unstable();
        let median = changed_bytes[changed / 2];
        assert!((40..600).contains(&median), "seed {seed}: median {median} bytes");
    }

    #[test]
    fn no_write_happens_after_stop() {
        let generator = Generator::new(6);
        let region = filled(&generator);
        let writer = Writer::start(Arc::clone(&region), generator.clone(), 1_000_000).unwrap();
        let mut page = vec![0; PAGE_BYTES];
        // Wait, with a bound, until the writer has done something.
        let deadline = Instant::now() + Duration::from_secs(20);
        let changed = |page: &mut Vec<u8>| {
            (0..PAGES).any(|index| {
                generator.fill(index, 0, page);
                *page != read(&region, index)
            })
        };
        while !changed(&mut page) {
            assert!(Instant::now() < deadline, "the writer never wrote");
            thread::yield_now();
        }
        let written = writer.stop();
        assert!(written.pages > 0 && written.seconds > 0.0);
        let still: Vec<Vec<u8>> = (0..PAGES).map(|index| read(&region, index)).collect();
        thread::yield_now();
        assert!((0..PAGES).all(|index| still[index as usize] == read(&region, index)));
    }

    #[test]
    fn a_rate_of_zero_changes_nothing() {
        let generator = Generator::new(7);
        let region = filled(&generator);
        let writer = Writer::start(Arc::clone(&region), generator.clone(), 0).unwrap();
        assert_eq!(writer.stop().pages, 0);
        let mut page = vec![0; PAGE_BYTES];
        for index in 0..PAGES {
            generator.fill(index, 0, &mut page);
            assert_eq!(page, read(&region, index), "page {index}");
        }
    }
}
