//! A commit is the last link of a chain on two disks: the source's `Yielded` is durable and every
//! lane of the sink is verified before the sink orders its own record, and the sink forgets only
//! what the source has durably ended.

use super::{Invariant, Verdict};
use crate::fact::Fact;
use crate::world::{Record, World};
use dwcp_dataplane::link::sim::Side;
use dwcp_proto::session::record::{SinkRecord, SourceRecord};

pub(super) struct CommitOrder;

impl Invariant for CommitOrder {
    fn name(&self) -> &'static str {
        "commit_order"
    }

    fn see(&mut self, fact: &Fact, world: &World) -> Verdict {
        let near = &world.host(Side::Near).disk;
        match fact {
            Fact::Journal { session, record: Record::Sink(SinkRecord::Committed), .. } => {
                let yielded = near.record(*session);
                if !matches!(yielded, Some(Record::Source(SourceRecord::Yielded { .. }))) {
                    return Err(format!("a commit is ordered while the source has {yielded:?}"));
                }
                let sink = world.host(Side::Far).sinks.get(session);
                if !sink.is_some_and(|sink| sink.is_verified()) {
                    return Err("a commit is ordered before every lane is verified".to_owned());
                }
                Ok(())
            }
            Fact::Forgot { session } => match near.record(*session) {
                Some(Record::Source(SourceRecord::Done | SourceRecord::Kept)) => Ok(()),
                other => Err(format!("the sink forgets while the source has {other:?}")),
            },
            _ => Ok(()),
        }
    }
}
