//! The core's account of what the shards have room for: links, and the streams on each lane.
//!
//! Part of [`Core`], on the control thread. A shard counts for itself and drops what is too much
//! without a word, so that the control thread must never order it: a link keeps its room until the
//! shards have reported the end of its last stream.

use super::core::Core;
use crate::limits::RESUMES_MAX;
use crate::peer::{ChannelHandle, Established, PeerError};
use dwcp_dataplane::port::{Command, LaneSetup, RETIRE_AFTER, Spread};
use dwcp_proto::ids::{LaneId, LinkId};
use dwcp_proto::wire::hello::FEATURE_RETIRE;
use dwcp_proto::wire::peer::{Code, Message, PeerMessage};
use std::net::SocketAddr;

/// Streams of one link that shards hold, by lane. Empty before lanes were ordered.
#[derive(Debug, Default)]
pub(super) struct StreamsHeld(Vec<usize>);

impl StreamsHeld {
    /// None on any of so many lanes.
    pub(super) fn none_of(lanes: u16) -> Self {
        Self(vec![0; usize::from(lanes)])
    }

    /// The lanes that were ordered.
    pub(super) fn lanes(&self) -> impl Iterator<Item = LaneId> + use<> {
        (0..self.lane_count()).map(LaneId)
    }

    fn lane_count(&self) -> u16 {
        u16::try_from(self.0.len()).unwrap_or(u16::MAX)
    }

    /// A stream was handed to the shard of a lane.
    pub(super) fn add(&mut self, lane: LaneId) {
        if let Some(count) = self.0.get_mut(usize::from(lane.0)) {
            *count += 1;
        }
    }

    /// The shard of a lane reported a stream's end.
    pub(super) fn remove(&mut self, lane: LaneId) {
        if let Some(count) = self.0.get_mut(usize::from(lane.0)) {
            *count = count.saturating_sub(1);
        }
    }

    fn on_lane(&self, lane: LaneId) -> usize {
        self.0.get(usize::from(lane.0)).copied().unwrap_or_default()
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|count| *count == 0)
    }
}

impl Core {
    /// Whether the shards have lanes for another link.
    pub(super) fn check_links(&self) -> Result<(), PeerError> {
        let links_max = self.config.links_max;
        if self.links.len() + self.closing_links.len() < links_max {
            return Ok(());
        }
        Err(PeerError::LinksTooMany { links_max })
    }

    /// Whether a peer that dials may say what it wants. One whose link may be lost may take it up
    /// again, for which no room is needed.
    pub(super) fn check_accept(&self, peer: &str) -> Result<(), PeerError> {
        let resumable = self
            .links
            .values()
            .any(|e| e.peer_name == peer && !e.link.is_dialled() && e.link.may_resume());
        let links_max = self.config.links_max;
        if resumable && self.links.len() + self.closing_links.len() < links_max + RESUMES_MAX {
            return Ok(());
        }
        self.check_links()
    }

    /// Whether the shards have lanes for a link that is there.
    pub(super) fn check_lanes(&self, link: LinkId) -> Result<(), PeerError> {
        let others = self.links.iter().filter(|(id, _)| **id != link);
        let with_lanes = others.filter(|(_, entry)| entry.link.lanes() > 0).count();
        let links_max = self.config.links_max;
        if with_lanes + self.closing_links.len() < links_max {
            return Ok(());
        }
        Err(PeerError::LinksTooMany { links_max })
    }

    /// The number of a new link, by which its lanes lie where there are the fewest.
    pub(super) fn number_of_link(&self) -> LinkId {
        let live = self.links.iter().map(|(id, entry)| (*id, entry.link.lanes()));
        let closing = self.closing_links.iter().map(|(id, held)| (*id, held.lane_count()));
        self.shards.placement().number(self.next_link, live.chain(closing))
    }

    /// Makes the shards' parts of a link whose lanes were just agreed on.
    pub(super) fn add_lanes(&mut self, link: LinkId, lanes: u16) -> Result<(), PeerError> {
        self.check_lanes(link)?;
        self.check_streams(link, lanes)?;
        if let Some(entry) = self.links.get_mut(&link) {
            entry.streams_held = StreamsHeld::none_of(lanes);
        }
        let entry = self.links.get(&link);
        // Which streams carry pages is for the end to choose that sends them.
        let chooses = entry.is_some_and(|entry| entry.link.is_dialled());
        let spread = if chooses { self.live.get().spread } else { Spread::All };
        let streams_max =
            |lane| entry.map_or(1, |entry| entry.link.streams_of(lane).clamp(1, 256) as u16);
        let may_retire = entry.is_some_and(|entry| entry.features() & FEATURE_RETIRE != 0);
        let retire_after = may_retire.then_some(RETIRE_AFTER);
        let places: Vec<(LaneId, u16)> =
            (0..lanes).map(LaneId).map(|lane| (lane, streams_max(lane))).collect();
        let window_bytes_max = self.live.get().window_bytes_max / u64::from(lanes.max(1));
        for (lane, streams_max) in places {
            let setup =
                LaneSetup { link, lane, window_bytes_max, streams_max, spread, retire_after };
            self.shards.send(link, lane, Command::AddLane(Box::new(setup)));
        }
        Ok(())
    }

    /// Whether the shards have room for the streams of a link whose lanes were just agreed on.
    pub(super) fn check_streams(&self, link: LinkId, lanes: u16) -> Result<(), PeerError> {
        let Some(entry) = self.links.get(&link) else { return Ok(()) };
        let shards = usize::from(self.shards.count()).max(1);
        let share = (usize::from(self.config.streams_per_link_max) / shards).max(1);
        let shard_max = self.config.links_max * share;
        let placement = self.shards.placement();
        for lane in (0..lanes).map(LaneId) {
            let shard = placement.shard_of(link, lane);
            let there = |other: &LinkId| placement.lane_on(*other, shard);
            let others = self.links.iter().filter(|(id, _)| **id != link);
            let used = others.map(|(id, other)| other.link.streams_of(there(id))).sum::<usize>();
            let closing = self.closing_links.iter().map(|(id, held)| held.on_lane(there(id)));
            let free = shard_max.saturating_sub(used + closing.sum::<usize>());
            if entry.link.streams_of(lane) > free {
                let streams = u16::try_from(entry.link.streams().count()).unwrap_or(u16::MAX);
                let streams_max = u16::try_from(free * usize::from(lanes)).unwrap_or(u16::MAX);
                return Err(PeerError::StreamsTooMany { streams, streams_max });
            }
        }
        Ok(())
    }

    /// Keeps the room of a dropped link until its last stream has ended.
    pub(super) fn close_link(&mut self, link: LinkId, held: StreamsHeld) {
        if !held.is_empty() {
            self.closing_links.insert(link, held);
        }
    }

    /// A stream ended on the shard of `lane`, or all of them with the shard itself.
    pub(super) fn stream_left(&mut self, link: LinkId, lane: LaneId) {
        if let Some(entry) = self.links.get_mut(&link) {
            entry.streams_held.remove(lane);
        } else if let Some(held) = self.closing_links.get_mut(&link) {
            held.remove(lane);
            if held.is_empty() {
                self.closing_links.remove(&link);
            }
        }
    }

    /// Says no to a peer that dialled while there is no room for its link. Its channel ends as soon
    /// as that is written.
    pub(super) fn refuse_link(&mut self, peer: Established, error: &PeerError) {
        // Of no link: what it says is not heard.
        let connection = self.next_connection;
        self.next_connection = connection.next();
        let address = peer.address;
        let channel = ChannelHandle::start(connection, peer, self.peers.clone(), self.live.clone());
        // Whether it arrives is the peer's concern: the link ends in any case.
        let _ = channel.send(refusal(error));
        self.refuse_peer(address, error);
    }

    /// Counts a connection that is not taken, and says why.
    pub(super) fn refuse_peer(&mut self, address: SocketAddr, error: &PeerError) {
        let code = error.code();
        self.counters.refused.add(code);
        let now = self.now();
        if let Some(suppressed) = self.peer_log.allow(now) {
            tracing::warn!(%address, code, %error, suppressed, "refused a connection");
        }
    }

    /// Ends a link that can't be served; a peer that dialled it is told why.
    pub(super) fn end_link(&mut self, link: LinkId, error: &PeerError) {
        let asked = self.links.get(&link).is_some_and(|entry| !entry.link.is_dialled());
        if asked && is_room(error) {
            self.send_peer(link, refusal(error));
        }
        self.drop_link(link, error);
    }
}

/// True for what a peer may mend by asking for less, or later.
fn is_room(error: &PeerError) -> bool {
    matches!(error, PeerError::StreamsTooMany { .. } | PeerError::LinksTooMany { .. })
}

pub(super) fn refusal(error: &PeerError) -> PeerMessage {
    PeerMessage::LinkRefuse {
        code: Code::cut(error.code()),
        message: Message::cut(&error.to_string()),
    }
}
