//! A page is never coded against a version that the sink does not hold: with memory that nobody
//! touched and streams that live, no frame is ever refused, and no session fails for what its pages
//! are. (A frame on a dying stream may come after its pages were sent again on others.)

use super::{Invariant, Verdict};
use crate::fact::Fact;
use crate::world::World;
use dwcp_dataplane::port::{Event, SessionEnd};
use dwcp_proto::ids::SessionId;
use std::collections::BTreeSet;

#[derive(Default)]
pub(super) struct NoPageStale {
    /// Memory of a sink was changed by nobody.
    corrupted: bool,
    open: BTreeSet<SessionId>,
    /// Sessions that lost a stream.
    cut: BTreeSet<SessionId>,
}

impl Invariant for NoPageStale {
    fn name(&self) -> &'static str {
        "no_page_stale"
    }

    fn see(&mut self, fact: &Fact, _world: &World) -> Verdict {
        match fact {
            Fact::Corrupted { .. } => self.corrupted = true,
            Fact::Began { session, .. } => {
                self.open.insert(*session);
            }
            Fact::Reported { event: Event::StreamDown { .. }, .. } | Fact::Crashed(_) => {
                self.cut.extend(&self.open);
            }
            Fact::Retired { session, nacks, .. } => {
                let is_excused = self.corrupted || self.cut.contains(session);
                if *nacks > 0 && !is_excused {
                    return Err(format!("{nacks} frames were refused"));
                }
            }
            Fact::Reported { event: Event::Failed { cause, session }, .. } => {
                let by_link = matches!(cause, SessionEnd::LinkLost(_));
                if !by_link && !self.corrupted {
                    return Err(format!("session {session:?} failed: {cause}"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}
