//! The shards as the core uses them: commands that are never lost, events in order.
//!
//! Runs on the control thread. A command that finds its shard's ring full waits here, in order, and
//! goes out when there is room; so many may wait that reaching the bound means a dead shard.

use super::placement::{Placement, ShardIndex};
use crate::limits::{COMMANDS_WAITING_MAX, EVENTS_PER_TURN};
use dwcp_dataplane::port::{Command, Event, ShardPort};
use dwcp_proto::ids::{LaneId, LinkId};
use std::collections::VecDeque;

/// A shard and what waits for it.
#[derive(Debug)]
struct Shard {
    port: ShardPort,
    waiting: VecDeque<Command>,
    stopped: bool,
}

/// All shards of the daemon.
#[derive(Debug)]
pub(crate) struct Shards {
    shards: Vec<Shard>,
}

impl Shards {
    pub(crate) fn new(ports: Vec<ShardPort>) -> Self {
        let shard = |port| Shard { port, waiting: VecDeque::new(), stopped: false };
        Self { shards: ports.into_iter().map(shard).collect() }
    }

    /// How many there are: the most lanes of a link.
    pub(crate) fn count(&self) -> u16 {
        u16::try_from(self.shards.len()).unwrap_or(u16::MAX)
    }

    /// Which of them owns which lane.
    pub(super) fn placement(&self) -> Placement {
        Placement::of(self.count())
    }

    /// Gives an order to the shard that owns a lane of a link.
    pub(crate) fn send(&mut self, link: LinkId, lane: LaneId, command: Command) {
        self.give(self.placement().shard_of(link, lane), command);
    }

    /// Gives an order to every shard.
    pub(crate) fn send_all(&mut self, make: impl Fn() -> Command) {
        (0..self.count()).for_each(|index| self.give(ShardIndex(index), make()));
    }

    fn give(&mut self, ShardIndex(index): ShardIndex, command: Command) {
        let shard = &mut self.shards[usize::from(index)];
        shard.waiting.push_back(command);
        assert!(shard.waiting.len() <= COMMANDS_WAITING_MAX, "shard {index} takes no commands");
        shard.flush();
    }

    /// Hands waiting commands over where there is room now.
    pub(crate) fn flush(&mut self) {
        self.shards.iter_mut().for_each(Shard::flush);
    }

    /// Takes a bounded number of events of each shard; true if there may be more.
    pub(super) fn take_events(&mut self, events: &mut Vec<(ShardIndex, Event)>) -> bool {
        let mut more = false;
        for (index, shard) in (0..).zip(&mut self.shards) {
            for _ in 0..EVENTS_PER_TURN {
                let Some(event) = shard.port.events.pop() else { break };
                shard.stopped |= event == Event::Stopped;
                events.push((ShardIndex(index), event));
            }
            more |= !shard.port.events.is_empty();
        }
        more
    }

    /// The first shard whose loop ended, told or not.
    pub(crate) fn first_lost(&self) -> Option<usize> {
        self.shards.iter().position(Shard::is_lost)
    }

    /// Every shard whose loop ended.
    pub(super) fn lost(&self) -> impl Iterator<Item = ShardIndex> {
        let lost = (0..).zip(&self.shards).filter(|(_, shard)| shard.is_lost());
        lost.map(|(index, _)| ShardIndex(index))
    }

    /// True when no shard runs any more, and everything that it told has been read.
    pub(crate) fn all_stopped(&self) -> bool {
        self.shards.iter().all(Shard::is_lost)
    }

    /// The ports, for reading counters.
    pub(crate) fn ports(&self) -> impl Iterator<Item = &ShardPort> {
        self.shards.iter().map(|shard| &shard.port)
    }
}

impl Shard {
    fn is_lost(&self) -> bool {
        self.stopped || (self.port.events.is_closed() && self.port.events.is_empty())
    }

    fn flush(&mut self) {
        while let Some(command) = self.waiting.pop_front() {
            if let Err(full) = self.port.send(command) {
                self.waiting.push_front(full.0);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_ffi::counters::{counters, histogram};
    use dwcp_ffi::poll::waker;
    use dwcp_ffi::spsc::ring;
    use dwcp_proto::ids::{SessionKey, SessionNumber};

    #[test]
    fn a_shard_has_stopped_only_when_its_last_words_are_read() {
        let ((commands, _ordered), (mut shard, events)) = (ring(1), ring(2));
        let (wake_shard, _woken) = waker().unwrap();
        let (stats, encode_ns) = (counters().1, histogram().1);
        let port = ShardPort { commands, events, wake_shard, stats, encode_ns };
        let mut shards = Shards::new(vec![port]);
        let session = SessionKey { link: LinkId(1), number: SessionNumber(1) };
        let told = [Event::Closed { session }, Event::Stopped];
        for event in told {
            shard.push(event).unwrap();
        }
        // Its thread ends before anybody looks.
        drop(shard);
        assert!(!shards.all_stopped());
        let mut heard = Vec::new();
        assert!(!shards.take_events(&mut heard));
        assert_eq!(heard, told.map(|event| (ShardIndex(0), event)));
        assert!(shards.all_stopped());
    }
}
