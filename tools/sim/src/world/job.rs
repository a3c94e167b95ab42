//! A job: a region that has to move, the writer that changes it, and the client that asks for
//! sessions until one commits.
//!
//! The writer stands still from the last round's beginning until the session has ended without a
//! commit, as the owner of a real region must.

use crate::plan::JobPlan;
use dwcp_dataplane::link::sim::Rng;
use dwcp_dataplane::port::DirtyPages;
use dwcp_ffi::dirty::DirtyBitmap;
use dwcp_ffi::region::{HugePages, Region, RegionError};
use dwcp_proto::ids::SessionId;
use dwcp_proto::time::Nanos;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Bytes of a page, and its words.
pub(crate) const PAGE_BYTES: usize = 4096;
const PAGE_WORDS: u64 = 512;

/// What the client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClientState {
    /// No session; one is asked for then.
    Idle { retry_at: Nanos },
    /// A session is under way.
    Moving(SessionId),
    /// The sink owns the region.
    Done(SessionId),
}

#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) plan: JobPlan,
    pub(crate) source: Arc<Region>,
    pub(crate) sink: Arc<Region>,
    bitmap: Option<Arc<DirtyBitmap>>,
    rng: Rng,
    pub(crate) client: ClientState,
    /// The owner has stopped writing.
    pub(crate) paused: bool,
    pub(crate) rounds_left: u32,
    /// Pages of the sink that nobody wrote and that are not as the last session left them.
    pub(crate) corrupted: BTreeSet<u64>,
}

impl Job {
    pub(crate) fn new(plan: JobPlan, mut rng: Rng) -> Result<Self, RegionError> {
        let bytes = plan.pages * PAGE_BYTES as u64;
        let bitmap = if plan.compares { None } else { Some(DirtyBitmap::create(plan.pages)?) };
        let job = Self {
            plan,
            source: Arc::new(Region::create("sim-source", bytes, HugePages::Never)?),
            sink: Arc::new(Region::create("sim-sink", bytes, HugePages::Never)?),
            bitmap: bitmap.map(Arc::new),
            rng: rng.fork(),
            client: ClientState::Idle { retry_at: Nanos(0) },
            paused: false,
            rounds_left: 0,
            corrupted: BTreeSet::new(),
        };
        for page in 0..plan.pages {
            fill(&job.source, page, &mut rng);
        }
        Ok(job)
    }

    pub(crate) fn dirty(&self) -> DirtyPages {
        match &self.bitmap {
            Some(bitmap) => DirtyPages::Bitmap(Arc::clone(bitmap)),
            None => DirtyPages::Compare,
        }
    }

    /// The owner changes some pages, unless it stands still.
    pub(crate) fn write(&mut self) {
        if self.paused {
            return;
        }
        // Half of the writes hit few pages, so that some change again while they travel.
        let hot = self.plan.pages.min(8);
        for _ in 0..self.rng.within(1, self.plan.burst) {
            let among = if self.rng.chance(1, 2) { hot } else { self.plan.pages };
            let page = self.rng.below(among);
            if self.rng.chance(1, 20) {
                fill(&self.source, page, &mut self.rng);
            } else {
                scribble(&self.source, page, &mut self.rng);
            }
            if let Some(bitmap) = &self.bitmap {
                bitmap.set(page);
            }
        }
    }

    /// Changes a word of a page at the sink behind everybody's back.
    pub(crate) fn corrupt(&mut self) -> u64 {
        let page = self.rng.below(self.plan.pages);
        scribble(&self.sink, page, &mut self.rng);
        self.corrupted.insert(page);
        page
    }

    /// The first page that differs between the two ends and did not change by itself.
    pub(crate) fn first_difference(&self) -> Option<u64> {
        let (mut near, mut far) = ([0; PAGE_BYTES], [0; PAGE_BYTES]);
        (0..self.plan.pages).filter(|page| !self.corrupted.contains(page)).find(|&page| {
            self.source.read_pages(page, &mut near);
            self.sink.read_pages(page, &mut far);
            near != far
        })
    }
}

/// Gives a page new content: zeroes, something that compresses, or noise.
fn fill(region: &Region, page: u64, rng: &mut Rng) {
    let kind = rng.below(3);
    let base = rng.draw();
    for word in 0..PAGE_WORDS {
        let value = match kind {
            0 => 0,
            1 => base ^ (word % 16),
            _ => rng.draw(),
        };
        region.store_u64((page * PAGE_WORDS + word) * 8, value);
    }
}

/// Changes some words of a page.
fn scribble(region: &Region, page: u64, rng: &mut Rng) {
    for _ in 0..rng.within(1, 6) {
        let at = (page * PAGE_WORDS + rng.below(PAGE_WORDS)) * 8;
        region.store_u64(at, region.load_u64(at) ^ (rng.draw() | 1));
    }
}
