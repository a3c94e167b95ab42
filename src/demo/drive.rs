//! The pre-copy loop: what a VMM does with dwcp, from filling the memory to comparing it.
//!
//! Runs on a thread of its own and blocks there; the main thread watches the daemons and Ctrl-C
//! meanwhile, and ends a blocked call by ending the daemons. Nothing here owns a process or a file.
//!
//! Rounds go on until the last one, with the writer stopped, is forecast to take no longer than the
//! target: so many dirty pages at the newest round's time per page. If the forecast stops falling,
//! the writer is faster than the link and more rounds would only cost time: the writer is stopped
//! all the same and the pause is as long as it is.

use super::daemons::{Endpoint, Role};
use super::error::DemoError;
use super::forecast::{Forecast, Verdict};
use super::generator::{Generator, PAGE_BYTES};
use super::options::Options;
use super::progress::Progress;
use super::remote::{FinishReply, Remote, RoundReply};
use super::report::{Report, Timing};
use super::writer::{Writer, Written};
use dwcp_ffi::dirty::{DirtyBitmap, PagemapTracker};
use dwcp_ffi::region::{HugePages, Region};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Pages that are filled or compared between two looks at the cancel flag: 1 MiB.
const CHUNK_PAGES: u64 = 256;

/// How the demo learns which pages changed.
enum DirtySource {
    /// From the kernel, into a bitmap that the source daemon reads.
    Kernel { tracker: PagemapTracker, bitmap: DirtyBitmap },
    /// Not at all: the source daemon compares every page.
    Compare,
}

/// All that one run needs.
pub(crate) struct Drive<'a> {
    options: &'a Options,
    cancel: &'a AtomicBool,
    progress: Progress,
    source: Remote,
    sink: Remote,
}

/// What the rounds came to.
struct Rounds {
    replies: Vec<RoundReply>,
    converged: bool,
}

impl<'a> Drive<'a> {
    /// Connects to both daemons.
    ///
    /// # Errors
    /// One of them takes no connection.
    pub(crate) fn new(
        options: &'a Options,
        cancel: &'a AtomicBool,
        source: Endpoint,
        sink: Endpoint,
    ) -> Result<Self, DemoError> {
        let progress = Progress::new();
        let (source, sink) = (Remote::connect(source)?, Remote::connect(sink)?);
        Ok(Self { options, cancel, progress, source, sink })
    }

    /// Moves a region with a running writer from the source to the sink, and compares both.
    ///
    /// # Errors
    /// A daemon failed or refused, or the demo was cancelled. Pages that differ are no error:
    /// the report says so.
    pub(crate) fn run(mut self) -> Result<Report, DemoError> {
        let source = Arc::new(create_region(Role::Source, self.options)?);
        let sink = create_region(Role::Sink, self.options)?;
        let generator = Generator::new(self.options.seed);
        self.fill(&generator, &source)?;
        let mut dirty = self.watch(&source)?;
        let bitmap = match &dirty {
            DirtySource::Kernel { bitmap, .. } => Some(bitmap),
            DirtySource::Compare => None,
        };
        self.source.register_source(&source, bitmap)?;
        self.sink.register_sink(&sink, Role::Source.name())?;
        let rate = self.options.dirty_pages_per_second;
        let writer = Writer::start(Arc::clone(&source), generator, rate)
            .map_err(|source| DemoError::Machine { what: "writer thread", source })?;

        let started = Instant::now();
        let session = self.source.open(self.options, self.sink.endpoint().listen)?;
        self.progress
            .follow(&self.source.endpoint().socket, &session)
            .map_err(|source| DemoError::Machine { what: "progress thread", source })?;
        let rounds = self.rounds(&session, &mut dirty)?;
        self.progress.step("last round, verify, commit", 0);
        let paused = Instant::now();
        let written = writer.stop();
        collect(&mut dirty)?;
        let finish = self.source.finish(&session)?;
        let timing = Timing {
            seconds: started.elapsed().as_secs_f64(),
            pause_seconds: paused.elapsed().as_secs_f64(),
        };

        let pages_differing = self.compare(&source, &sink)?;
        let kernel = matches!(dirty, DirtySource::Kernel { .. });
        Ok(self.report(&rounds, &finish, timing, written, kernel, pages_differing))
    }

    fn report(
        &self,
        rounds: &Rounds,
        finish: &FinishReply,
        timing: Timing,
        written: Written,
        kernel_scan: bool,
        pages_differing: u64,
    ) -> Report {
        let mut report = Report::new(self.options, &rounds.replies, finish, timing);
        report.converged = rounds.converged;
        report.dirty_source = if kernel_scan { "page-map scan" } else { "compare" };
        report.written_pages = written.pages;
        report.dirty_rate_reached = super::report::per_second(written.pages, written.seconds);
        report.pages_differing = pages_differing;
        report.verified = pages_differing == 0;
        report
    }

    /// Runs rounds until the last one is forecast to be short, or further ones are of no use.
    fn rounds(&self, session: &str, dirty: &mut DirtySource) -> Result<Rounds, DemoError> {
        let mut forecast = Forecast::new(self.options.pause_target);
        let mut replies: Vec<RoundReply> = Vec::new();
        let mut pending_pages = self.options.size_bytes / PAGE_BYTES as u64;
        loop {
            let name = format!("round {}", replies.len() + 1);
            self.progress.step(name, pending_pages * PAGE_BYTES as u64);
            let reply = self.source.round(session)?;
            self.check_cancel()?;
            // Without the kernel's help the next round is taken to be as large as this one.
            pending_pages = collect(dirty)?.unwrap_or(reply.pages_sent);
            let verdict = forecast.after_round(reply.pages_sent, reply.seconds, pending_pages);
            replies.push(reply);
            let converged = match verdict {
                Verdict::Continue => continue,
                Verdict::StopWriter => true,
                Verdict::WillNotConverge { forecast_seconds } => {
                    self.progress.note(&format!(
                        "will not converge: the writer is faster than the link, and the last \
                         round stays at {:.0} ms against a target of {:.0} ms. The writer is \
                         stopped now; the pause is longer, nothing else changes.",
                        forecast_seconds * 1e3,
                        self.options.pause_target.as_secs_f64() * 1e3,
                    ));
                    false
                }
            };
            return Ok(Rounds { replies, converged });
        }
    }

    /// Writes the first content of all pages.
    fn fill(&self, generator: &Generator, region: &Region) -> Result<(), DemoError> {
        self.progress.step("fill", region.bytes());
        let mut chunk = vec![0; CHUNK_PAGES as usize * PAGE_BYTES];
        for (first, pages) in chunks(region.page_count()) {
            self.check_cancel()?;
            let bytes = &mut chunk[..pages as usize * PAGE_BYTES];
            for (page, out) in (first..).zip(bytes.chunks_exact_mut(PAGE_BYTES)) {
                generator.fill(page, 0, out);
            }
            region.write_pages(first, bytes);
            self.progress.at((first + pages) * PAGE_BYTES as u64);
        }
        Ok(())
    }

    /// Has the kernel note writes to the region from now on, where it can.
    fn watch(&self, region: &Region) -> Result<DirtySource, DemoError> {
        match PagemapTracker::new(region) {
            Ok(tracker) => {
                let bitmap = DirtyBitmap::create(region.page_count()).map_err(DemoError::Region)?;
                Ok(DirtySource::Kernel { tracker, bitmap })
            }
            Err(error) => {
                self.progress.note(&format!(
                    "{error}: the daemon compares all pages in each round instead, which takes \
                     longer"
                ));
                Ok(DirtySource::Compare)
            }
        }
    }

    /// Counts the pages that differ, reading all of both regions.
    fn compare(&self, source: &Region, sink: &Region) -> Result<u64, DemoError> {
        self.progress.step("compare", source.bytes());
        let mut ours = vec![0; CHUNK_PAGES as usize * PAGE_BYTES];
        let mut theirs = ours.clone();
        let mut differing = 0;
        for (first, pages) in chunks(source.page_count()) {
            self.check_cancel()?;
            let bytes = pages as usize * PAGE_BYTES;
            source.read_pages(first, &mut ours[..bytes]);
            sink.read_pages(first, &mut theirs[..bytes]);
            let pairs = ours[..bytes].chunks_exact(PAGE_BYTES).zip(theirs.chunks_exact(PAGE_BYTES));
            differing += pairs.filter(|(our, their)| our != their).count() as u64;
            self.progress.at((first + pages) * PAGE_BYTES as u64);
        }
        Ok(differing)
    }

    fn check_cancel(&self) -> Result<(), DemoError> {
        if self.cancel.load(Ordering::Relaxed) { Err(DemoError::Interrupted) } else { Ok(()) }
    }
}

/// Puts what changed since the last call into the bitmap; returns how many pages, if known.
fn collect(dirty: &mut DirtySource) -> Result<Option<u64>, DemoError> {
    match dirty {
        DirtySource::Kernel { tracker, bitmap } => {
            tracker.collect(bitmap).map(Some).map_err(DemoError::Dirty)
        }
        DirtySource::Compare => Ok(None),
    }
}

fn create_region(role: Role, options: &Options) -> Result<Region, DemoError> {
    let name = format!("dwcp-demo-{role}");
    Region::create(&name, options.size_bytes, HugePages::Never).map_err(DemoError::Region)
}

/// The region in pieces of at most [`CHUNK_PAGES`]: first page and count.
fn chunks(page_count: u64) -> impl Iterator<Item = (u64, u64)> {
    let firsts = (0..page_count).step_by(CHUNK_PAGES as usize);
    firsts.map(move |first| (first, CHUNK_PAGES.min(page_count - first)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_each_page_once() {
        for pages in [1, 255, 256, 257, 1000] {
            let mut next = 0;
            for (first, count) in chunks(pages) {
                assert_eq!(first, next);
                assert!((1..=CHUNK_PAGES).contains(&count));
                next = first + count;
            }
            assert_eq!(next, pages);
        }
    }
}
