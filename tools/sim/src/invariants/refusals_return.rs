//! A frame that the sink refused is never taken for held: the refusal reaches the source, and its
//! pages are sent again, unless a stream died meanwhile.

use super::{Invariant, Verdict};
use crate::fact::Fact;
use crate::world::World;
use dwcp_dataplane::link::sim::Side;
use dwcp_dataplane::port::Event;
use dwcp_proto::ids::SessionId;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
pub(super) struct RefusalsReturn {
    open: BTreeSet<SessionId>,
    /// Sessions whose refusals may have been lost: a stream died, or they did not end well.
    excused: BTreeSet<SessionId>,
    sink_nacks: BTreeMap<SessionId, u64>,
    source_nacks: BTreeMap<SessionId, u64>,
}

impl Invariant for RefusalsReturn {
    fn name(&self) -> &'static str {
        "refusals_return"
    }

    fn see(&mut self, fact: &Fact, _world: &World) -> Verdict {
        match fact {
            Fact::Began { session, .. } => {
                self.open.insert(*session);
            }
            Fact::Reported { event: Event::StreamDown { .. }, .. } | Fact::Crashed(_) => {
                self.excused.extend(&self.open);
            }
            Fact::Ended { session, .. } => {
                self.excused.insert(*session);
            }
            Fact::Retired { side: Side::Near, session, nacks, requeued, .. } => {
                if requeued < nacks {
                    return Err(format!("{nacks} refusals came, {requeued} pages went again"));
                }
                self.source_nacks.insert(*session, *nacks);
            }
            Fact::Retired { side: Side::Far, session, nacks, .. } => {
                self.sink_nacks.insert(*session, *nacks);
            }
            _ => return Ok(()),
        }
        Ok(())
    }

    fn end(&mut self, _world: &World) -> Verdict {
        for (session, refused) in &self.sink_nacks {
            let heard = self.source_nacks.get(session).copied().unwrap_or(*refused);
            if heard != *refused && !self.excused.contains(session) {
                return Err(format!("{refused} frames were refused, the source heard of {heard}"));
            }
        }
        Ok(())
    }
}
