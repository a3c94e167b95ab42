//! What sinks of stream sessions alone hold: taken from the control thread, told to the source.
//!
//! Part of the shard, on its thread. One frame of each session goes out in a turn, when there is a
//! lease that no answer needs; on a stream that dies it is lost, and the source does without.

use super::inbox::Origin;
use super::{Desk, LEASES_FOR_ANSWERS, Shard};
use crate::attach::stream::HeldChunk;
use crate::link::{Clock, Link};
use crate::stats::SessionCounter;
use dwcp_proto::ids::{Sequence, SessionKey, SessionNumber};
use dwcp_proto::wire::frame::{HeldHashes, write_held};
use dwcp_proto::wire::limits::RECORD_HEADER_BYTES;

impl<L: Link> Shard<L> {
    /// Tells what there is to tell.
    pub(super) fn send_held(&mut self) -> bool {
        let mut worked = false;
        for index in 0..self.desk.stream_sinks.len() {
            let session = self.desk.stream_sinks[index].session;
            let Some(lane) = self.desk.lane_of(session) else { continue };
            let Some(held) = self.desk.stream_sinks[index].held() else { continue };
            let Some((number, chunk)) = held.due() else { continue };
            let mut slots = self.desk.lanes[lane].slots();
            let Some(slot) = slots.find(|&slot| self.link.can_post(slot)) else { continue };
            if self.link.free_leases() <= LEASES_FOR_ANSWERS {
                break;
            }
            let Some(mut lease) = self.link.lease() else { break };
            let out = &mut lease[RECORD_HEADER_BYTES..];
            let bytes = write_held(out, session.number, number, chunk.told());
            worked |= self.link.post(slot, lease, bytes).is_ok();
            held.told();
            let stats = &mut self.desk.stream_sinks[index].stats;
            stats.add(SessionCounter::ToldBytes.index(), bytes as u64);
        }
        worked
    }
}

impl<C: Clock> Desk<C> {
    /// Takes over pages that a sink alone holds. False when there is no such sink, or it has as
    /// many as were agreed.
    pub(super) fn add_held(&mut self, session: SessionKey, chunk: HeldChunk) -> bool {
        let mut sinks = self.stream_sinks.iter_mut();
        let held = sinks.find(|sink| sink.session == session).and_then(|sink| sink.held());
        held.is_some_and(|held| held.add(chunk))
    }

    /// The sink tells what it alone holds.
    pub(super) fn held(
        &mut self,
        at: Origin,
        session: SessionNumber,
        (chunk, hashes): (u32, &HeldHashes<'_>),
    ) {
        let key = at.session(session);
        let Some(source) = self.stream_sources.iter_mut().find(|it| it.session == key) else {
            return self.dropped();
        };
        if source.told(chunk, hashes).is_err() {
            self.refuse_peer(at, session, Sequence(0), "held_beyond_terms");
        }
    }
}
