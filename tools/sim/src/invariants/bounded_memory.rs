//! What a peer or a slow path may make a daemon hold is bounded: what is in flight on a lane by its
//! window and one record, the orders that wait for a shard by what its tables can ask for.

use super::{Invariant, Verdict};
use crate::world::{SIDES, World};
use dwcp_proto::ids::LaneId;
use dwcp_proto::wire::limits::RECORD_BYTES_MAX;

/// Orders to one shard that may wait: opening, rounds and closing of all sessions and streams.
const ORDERS_MAX: usize = 64;

pub(super) struct BoundedMemory;

impl Invariant for BoundedMemory {
    fn name(&self) -> &'static str {
        "bounded_memory"
    }

    fn look(&mut self, world: &World) -> Verdict {
        for side in SIDES {
            let host = world.host(side);
            for entry in host.links.values() {
                let lanes = u64::from(entry.link.lanes().max(1));
                let most = world.plan.window_bytes / lanes + RECORD_BYTES_MAX as u64;
                for lane in (0..entry.link.lanes()).map(LaneId) {
                    let bytes = entry.in_flight_bytes(lane);
                    if bytes > most {
                        return Err(format!(
                            "{bytes} bytes in flight on lane {lane}, at most {most}"
                        ));
                    }
                }
            }
            if let Some(orders) = host.orders_waiting().filter(|orders| *orders > ORDERS_MAX) {
                return Err(format!("{orders} orders wait for a shard"));
            }
        }
        Ok(())
    }
}
