//! Two daemons that keep the protocol never find fault with each other: no stream ends for a record
//! or a frame, no link for a message, and no machine ends its session for a violation.

use super::{Invariant, Verdict};
use crate::fact::Fact;
use crate::world::World;
use dwcp_dataplane::port::{Event, StreamEnd};
use dwcp_proto::session::reason::EndReason;

#[derive(Default)]
pub(super) struct HonestPeers;

/// Ends of links that the network alone explains.
const EXPLAINED: [&str; 8] = [
    "new",
    "ready",
    "parked",
    "resumed",
    "lane_lost",
    "peer_closed",
    "peer_silent",
    "peer_timeout",
];

impl Invariant for HonestPeers {
    fn name(&self) -> &'static str {
        "honest_peers"
    }

    fn see(&mut self, fact: &Fact, _world: &World) -> Verdict {
        match fact {
            Fact::Reported { event: Event::StreamDown { cause, stream, .. }, .. }
                if matches!(cause, StreamEnd::Protocol { .. } | StreamEnd::NoRoom) =>
            {
                Err(format!("stream {stream} ended: {cause}"))
            }
            Fact::Link { state, .. } if !EXPLAINED.contains(state) && *state != "peer_goodbye" => {
                Err(format!("a link ended: {state}"))
            }
            Fact::Ended { reason: reason @ EndReason::Violation { .. }, .. } => {
                Err(format!("a machine ended its session: {reason:?}"))
            }
            _ => Ok(()),
        }
    }
}
