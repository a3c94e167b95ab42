//! Every order that a shard accepted has its end, once: a session opens or fails, a round is done
//! or its session fails, a close is answered, unless the daemon itself ends before.

use super::{Invariant, Verdict};
use crate::fact::{Fact, Order};
use crate::world::World;
use dwcp_dataplane::link::sim::Side;
use dwcp_dataplane::port::Event;
use dwcp_proto::ids::{LaneId, SessionKey};
use std::collections::BTreeMap;

/// What one lane owes about one session.
#[derive(Clone, Copy, Debug, Default)]
struct Owed {
    is_open: bool,
    opening: bool,
    round: Option<u32>,
    verifying: bool,
    closing: bool,
    failed: bool,
}

type Place = (Side, LaneId, SessionKey);

#[derive(Default)]
pub(super) struct CommandsEnd {
    owed: BTreeMap<Place, Owed>,
}

impl CommandsEnd {
    fn ordered(&mut self, place: Place, order: Order) {
        let owed = self.owed.entry(place).or_default();
        match order {
            Order::Open => owed.opening = true,
            Order::Close => owed.closing = true,
            // A session that failed does nothing more; its orders are dropped and counted.
            _ if owed.failed => {}
            Order::Round(round) => owed.round = Some(round),
            Order::Verify => owed.verifying = place.0 == Side::Near,
        }
    }

    fn reported(&mut self, side: Side, lane: LaneId, event: Event) -> Verdict {
        let (Event::Opened { session }
        | Event::RoundDone { session, .. }
        | Event::Verified { session }
        | Event::Failed { session, .. }
        | Event::Closed { session }) = event
        else {
            return Ok(());
        };
        let Some(owed) = self.owed.get_mut(&(side, lane, session)) else {
            return Err(format!("{event:?} of a session that was never opened there"));
        };
        let was_due = match event {
            Event::Opened { .. } => {
                owed.is_open = true;
                std::mem::take(&mut owed.opening)
            }
            Event::RoundDone { round, .. } => owed.round.take() == Some(round.0),
            Event::Verified { .. } => side == Side::Far || std::mem::take(&mut owed.verifying),
            Event::Failed { .. } => {
                let first = !std::mem::replace(&mut owed.failed, true);
                (owed.opening, owed.round, owed.verifying) = (false, None, false);
                first
            }
            _ => {
                let due = owed.closing && owed.is_open;
                self.owed.remove(&(side, lane, session));
                due
            }
        };
        if was_due { Ok(()) } else { Err(format!("{event:?} was not due, or came twice")) }
    }
}

impl Invariant for CommandsEnd {
    fn name(&self) -> &'static str {
        "commands_end"
    }

    fn see(&mut self, fact: &Fact, _world: &World) -> Verdict {
        match *fact {
            Fact::Ordered { side, lane, session, order } => {
                self.ordered((side, lane, session), order);
                Ok(())
            }
            Fact::Reported { side, lane, event } => self.reported(side, lane, event),
            Fact::Crashed(side) => {
                self.owed.retain(|(of, ..), _| *of != side);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn end(&mut self, _world: &World) -> Verdict {
        let refused = |owed: &Owed| owed.failed && !owed.is_open;
        match self.owed.iter().find(|(_, owed)| !refused(owed)) {
            Some((place, owed)) => Err(format!("{place:?} still owes {owed:?}")),
            None => Ok(()),
        }
    }
}
