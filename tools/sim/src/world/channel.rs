//! Control channels between the two hosts: messages in order, each with the way's delay, until the
//! connection is cut or an end gives it up.
//!
//! Messages go through the real codec. What is under way on a cut channel is gone, and the two ends
//! may learn it at different times.

use dwcp_dataplane::link::sim::Side;
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::peer::{PeerCodec, PeerMessage};
use std::collections::{BTreeMap, VecDeque};

/// A channel's name in its world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ChannelId(pub(crate) u32);

/// What an end gets from its channel.
#[derive(Debug)]
pub(crate) enum Came {
    Message(Vec<u8>),
    Ended,
}

#[derive(Debug, Default)]
struct Way {
    queue: VecDeque<(Nanos, Came)>,
    last_due: Nanos,
    /// The reader has given it up or read its end.
    closed: bool,
}

#[derive(Debug)]
pub(crate) struct Channel {
    /// What stands for the secrets of its TLS session.
    pub(crate) secret: u64,
    /// By the side that reads.
    ways: [Way; 2],
    is_cut: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Channels {
    open: BTreeMap<ChannelId, Channel>,
    next: ChannelId,
}

const fn index(side: Side) -> usize {
    match side {
        Side::Near => 0,
        Side::Far => 1,
    }
}

impl Channels {
    pub(crate) fn add(&mut self, secret: u64) -> ChannelId {
        let id = self.next;
        self.next = ChannelId(id.0 + 1);
        let channel = Channel { secret, ways: [Way::default(), Way::default()], is_cut: false };
        self.open.insert(id, channel);
        id
    }

    pub(crate) fn secret(&self, id: ChannelId) -> Option<u64> {
        self.open.get(&id).map(|channel| channel.secret)
    }

    pub(crate) fn ids(&self) -> Vec<ChannelId> {
        self.open.keys().copied().collect()
    }

    /// Says something to the other end; tells when it arrives at the soonest.
    pub(crate) fn send(
        &mut self,
        id: ChannelId,
        from: Side,
        due: Nanos,
        message: &PeerMessage,
    ) -> Option<Nanos> {
        let channel = self.open.get_mut(&id).filter(|channel| !channel.is_cut)?;
        let way = &mut channel.ways[index(from.across())];
        way.last_due = way.last_due.max(due);
        way.queue.push_back((way.last_due, Came::Message(PeerCodec::encode(message))));
        Some(way.last_due)
    }

    /// Cuts the connection: each end learns it when it is due there.
    pub(crate) fn cut(&mut self, id: ChannelId, due: [Nanos; 2]) {
        let Some(channel) = self.open.get_mut(&id).filter(|channel| !channel.is_cut) else {
            return;
        };
        channel.is_cut = true;
        for (way, due) in channel.ways.iter_mut().zip(due) {
            way.queue.clear();
            way.queue.push_back((due, Came::Ended));
        }
    }

    /// An end closes; the other one reads what was sent before, and then the end.
    pub(crate) fn close(&mut self, id: ChannelId, side: Side, due: Nanos) {
        let Some(channel) = self.open.get_mut(&id) else { return };
        let own = &mut channel.ways[index(side)];
        own.closed = true;
        own.queue.clear();
        let other = &mut channel.ways[index(side.across())];
        if !channel.is_cut {
            channel.is_cut = true;
            other.last_due = other.last_due.max(due);
            other.queue.push_back((other.last_due, Came::Ended));
        }
        self.drop_closed(id);
    }

    /// The next thing that is due at an end.
    pub(crate) fn take(&mut self, id: ChannelId, side: Side, now: Nanos) -> Option<Came> {
        let way = &mut self.open.get_mut(&id)?.ways[index(side)];
        way.queue.front().filter(|(due, _)| *due <= now)?;
        let (_, came) = way.queue.pop_front()?;
        if matches!(came, Came::Ended) {
            way.closed = true;
            self.drop_closed(id);
        }
        Some(came)
    }

    fn drop_closed(&mut self, id: ChannelId) {
        if self.open.get(&id).is_some_and(|it| it.ways.iter().all(|way| way.closed)) {
            self.open.remove(&id);
        }
    }
}
