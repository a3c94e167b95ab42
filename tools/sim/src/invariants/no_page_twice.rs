//! Every frame is applied exactly once: on a link that lost no stream, a committed session's source
//! has sent as many frames as its sink has applied and refused.

use super::{Invariant, Verdict};
use crate::fact::Fact;
use crate::world::World;
use dwcp_dataplane::link::sim::Side;
use dwcp_dataplane::port::Event;
use dwcp_proto::ids::SessionId;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
pub(super) struct NoPageTwice {
    /// Sessions whose frames can't be counted: a stream died meanwhile.
    uncounted: BTreeSet<SessionId>,
    /// Sessions under way.
    open: BTreeSet<SessionId>,
    committed: BTreeSet<SessionId>,
    /// What the first side to end has counted.
    counted: BTreeMap<SessionId, u64>,
}

impl Invariant for NoPageTwice {
    fn name(&self) -> &'static str {
        "no_page_twice"
    }

    fn see(&mut self, fact: &Fact, _world: &World) -> Verdict {
        match fact {
            Fact::Began { session, .. } => {
                self.open.insert(*session);
            }
            Fact::Reported { event: Event::StreamDown { .. }, .. } | Fact::Crashed(_) => {
                self.uncounted.extend(&self.open);
            }
            Fact::Committed { side: Side::Far, session } => {
                self.committed.insert(*session);
            }
            Fact::Retired { side, session, frames, nacks, .. } => {
                let settled = match side {
                    Side::Near => *frames,
                    Side::Far => frames + nacks,
                };
                let is_counted =
                    self.committed.contains(session) && !self.uncounted.contains(session);
                match self.counted.remove(session) {
                    Some(other) if is_counted && other != settled => {
                        return Err(format!("{other} frames at one end, {settled} at the other"));
                    }
                    Some(_) => {
                        self.open.remove(session);
                    }
                    None => {
                        self.counted.insert(*session, settled);
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}
