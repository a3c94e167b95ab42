//! What happens when: tasks by time, and in the order of asking at the same time.

use super::channel::ChannelId;
use crate::plan::Fault;
use dwcp_dataplane::link::sim::Side;
use dwcp_proto::ids::{LaneId, LinkId};
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::preface::StreamPreface;
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

/// An attempt at a stream.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamDial {
    /// Which life of the dialling host asked.
    pub(crate) life: u32,
    pub(crate) link: LinkId,
    pub(crate) preface: StreamPreface,
}

/// Something to do.
#[derive(Debug)]
pub(crate) enum Task {
    /// A turn of a shard.
    Poll { side: Side, lane: LaneId, life: u32 },
    /// The control thread looks at what its shards report.
    Events { side: Side, life: u32 },
    /// Machines do what is due.
    Tick { side: Side, life: u32 },
    /// Something is due on a control channel.
    Channel { side: Side },
    /// A write may be done.
    Disk { side: Side, life: u32 },
    /// A dialled control channel reaches the listening host.
    Knock { life: u32 },
    /// The dialling host learns what came of it.
    Dialled { life: u32, channel: Option<ChannelId> },
    /// A dialled stream reaches the listening host.
    StreamArrives(StreamDial),
    /// The dialling host learns what came of it.
    StreamDialled { dial: StreamDial, near: Option<OwnedFd> },
    /// A job's owner changes its region.
    Write { job: usize },
    /// The plan's harm.
    Harm { at: usize },
    /// Harm that lasts is over.
    EndHarm(Fault),
    /// A daemon starts again.
    Restart { side: Side },
    /// Nothing bad happens any more.
    Heal,
}

#[derive(Debug, Default)]
pub(super) struct Agenda {
    tasks: BTreeMap<(Nanos, u64), Task>,
    added: u64,
}

impl Agenda {
    pub(super) fn add(&mut self, due: Nanos, task: Task) {
        self.added += 1;
        self.tasks.insert((due, self.added), task);
    }

    pub(super) fn next(&mut self) -> Option<(Nanos, Task)> {
        self.tasks.pop_first().map(|((due, _), task)| (due, task))
    }

    pub(super) fn next_due(&self) -> Option<Nanos> {
        self.tasks.first_key_value().map(|((due, _), _)| *due)
    }

    /// Whether a task of this kind waits.
    pub(super) fn has(&self, kind: impl Fn(&Task) -> bool) -> bool {
        self.tasks.values().any(kind)
    }

    /// When the last task of this kind is due.
    pub(super) fn latest(&self, kind: impl Fn(&Task) -> bool) -> Option<Nanos> {
        let found = self.tasks.iter().rev().find(|(_, task)| kind(task));
        found.map(|((due, _), _)| *due)
    }
}
