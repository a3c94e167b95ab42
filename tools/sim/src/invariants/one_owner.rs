//! Never do both ends own a region, and in the end exactly one does.
//!
//! The source owns while none of the region's sessions has given it up, by its machine or, while
//! its daemon is down, by its journal. The sink owns from the moment that a commit is on its disk.

use super::{Invariant, Verdict};
use crate::world::{Record, World};
use dwcp_dataplane::link::sim::Side;
use dwcp_proto::ids::SessionId;
use dwcp_proto::session::record::SourceRecord;
use std::collections::BTreeSet;

#[derive(Default)]
pub(super) struct OneOwner {
    /// Jobs whose sink had a commit on its disk.
    taken: BTreeSet<usize>,
}

/// Whether this session leaves its region with the source.
fn keeps(world: &World, session: SessionId) -> bool {
    let near = world.host(Side::Near);
    if let Some(side) = near.sources.get(&session) {
        return side.machine.phase().owns_region();
    }
    match near.disk.record(session) {
        Some(Record::Source(record)) => record == SourceRecord::Kept,
        _ => true,
    }
}

impl OneOwner {
    fn owners(&mut self, world: &World, job: usize) -> (bool, bool) {
        let mut source = true;
        for (session, _) in world.sessions.iter().filter(|(_, of)| *of == job) {
            source &= keeps(world, *session);
            if let Some(Record::Sink(record)) = world.host(Side::Far).disk.record(*session)
                && record.owns()
            {
                self.taken.insert(job);
            }
        }
        (source, self.taken.contains(&job))
    }
}

impl Invariant for OneOwner {
    fn name(&self) -> &'static str {
        "one_owner"
    }

    fn look(&mut self, world: &World) -> Verdict {
        for job in 0..world.jobs.len() {
            if self.owners(world, job) == (true, true) {
                return Err(format!("both ends own the region of job {job}"));
            }
        }
        Ok(())
    }

    fn end(&mut self, world: &World) -> Verdict {
        for job in 0..world.jobs.len() {
            if self.owners(world, job) != (false, true) {
                return Err(format!("the sink does not own the region of job {job} in the end"));
            }
        }
        Ok(())
    }
}
