//! When the sink orders its commit, its memory is the source's, page by page.
//!
//! The owner stands still by then. Pages that changed by themselves at the sink are left out: what
//! happens to memory that nobody is allowed to write is not promised.

use super::{Invariant, Verdict};
use crate::fact::Fact;
use crate::world::{Record, World};
use dwcp_proto::session::record::SinkRecord;

pub(super) struct NoPageLost;

impl Invariant for NoPageLost {
    fn name(&self) -> &'static str {
        "no_page_lost"
    }

    fn see(&mut self, fact: &Fact, world: &World) -> Verdict {
        let Fact::Journal { session, record: Record::Sink(SinkRecord::Committed), .. } = fact
        else {
            return Ok(());
        };
        let job = world.job_of(*session).and_then(|job| world.jobs.get(job));
        let Some(job) = job else { return Err("a commit of an unknown session".to_owned()) };
        match job.first_difference() {
            Some(page) => Err(format!("page {page} of {} differs at the commit", job.plan.pages)),
            None => Ok(()),
        }
    }
}
