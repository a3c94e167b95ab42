//! The core's sessions on their lanes: orders to the shards, reports from them.
//!
//! Part of [`Core`], on the control thread. Lanes have the same numbers at both ends; on which
//! shard one lies is each end's own concern ([`super::placement`]).

use super::core::Core;
use super::placement::ShardIndex;
use crate::api::Role;
use crate::migration::{Machine, Session, lane_failure};
use crate::state::SessionState;
use dwcp_dataplane::port::{Command, RoundStats, SessionEnd, SinkSetup, SourceSetup};
use dwcp_ffi::counters::{counters, histogram};
use dwcp_proto::ids::{LaneId, Round, SessionId, SessionKey};
use dwcp_proto::session::sink::SinkInput;
use dwcp_proto::session::source::SourceInput;

impl Core {
    pub(super) fn open_lanes(&mut self, id: SessionId) {
        if self.open_vm_lane(id) {
            return;
        }
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let (Some(key), Some(plan)) = (session.key, &session.plan) else { return };
        let Some(link) = self.links.get(&key.link) else { return };
        let mut commands = Vec::new();
        for lane in session.lanes() {
            session.lanes_held |= 1 << lane.0;
            let (stats, reader) = counters();
            session.stats.push(reader);
            let region = plan.memory.region.clone();
            let (hash_key, lane_count) = (link.hash_key.clone(), plan.lanes);
            commands.push((
                lane,
                match session.machine {
                    Machine::Source(_) => {
                        let (frame_rtt_ns, reader) = histogram();
                        session.frame_rtt_ns.push(reader);
                        Command::OpenSource(Box::new(SourceSetup {
                            session: key,
                            region,
                            dirty: plan.memory.dirty.clone(),
                            lane,
                            lane_count,
                            base_pages_max: plan.base_pages_max,
                            hash_key,
                            coding: plan.coding,
                            measure_baseline: plan.measure_baseline,
                            stats,
                            frame_rtt_ns,
                        }))
                    }
                    Machine::Sink(_) => Command::OpenSink(Box::new(SinkSetup {
                        session: key,
                        region,
                        lane,
                        lane_count,
                        hash_key,
                        stats,
                    })),
                },
            ));
        }
        commands.into_iter().for_each(|(lane, command)| self.shards.send(key.link, lane, command));
        if self.config.break_invariant {
            self.shards.send(key.link, LaneId(0), Command::BreakInvariant);
        }
    }

    /// Gives one order to the shard of each lane.
    fn order_lanes(&mut self, id: SessionId, make: impl Fn(SessionKey) -> Command) {
        let Some(session) = self.sessions.get(&id) else { return };
        let Some(key) = session.key else { return };
        session.lanes().for_each(|lane| self.shards.send(key.link, lane, make(key)));
    }

    pub(super) fn start_round(&mut self, id: SessionId, round: Round, last: bool) {
        let now = self.now();
        if let Some(session) = self.sessions.get_mut(&id) {
            session.round_stats = RoundStats::default();
            session.times.round = now;
            if session.is_vm() {
                // QEMU's own rounds need no order.
                return;
            }
        }
        self.order_lanes(id, |session| Command::StartRound { session, round, last });
    }

    pub(super) fn verify(&mut self, id: SessionId) {
        let now = self.now();
        if let Some(session) = self.sessions.get_mut(&id) {
            session.last_round_ns = now.since(session.times.round).0;
            session.times.verify = now;
        }
        self.order_lanes(id, |session| Command::Verify { session });
    }

    /// Asks every lane that may hold something of the session to let go of it, once.
    pub(super) fn close_lanes(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if std::mem::replace(&mut session.closing, true) {
            return;
        }
        // What is left is of use only where both ends hold it.
        if session.state() != SessionState::Committed
            && let Some(part) = &mut session.vm
        {
            part.left = None;
        }
        let (Some(key), held) = (session.key, session.lanes_held) else { return };
        let lanes = session.lanes().filter(|lane| held & (1 << lane.0) != 0);
        let close = || Command::CloseSession { session: key };
        lanes.for_each(|lane| self.shards.send(key.link, lane, close()));
    }

    pub(super) fn on_lane_opened(&mut self, key: SessionKey, lane: LaneId) {
        let Some((id, role)) = self.lane_session(key) else { return };
        if let Some(session) = self.sessions.get_mut(&id) {
            session.lanes_opened |= 1 << lane.0;
            if session.is_vm() {
                return self.vm_lane_opened(id);
            }
        }
        match role {
            Role::Source => self.source_step(id, SourceInput::LaneOpened(lane)),
            Role::Sink => self.sink_step(id, SinkInput::LaneOpened(lane)),
        }
    }

    pub(super) fn on_lane_round(
        &mut self,
        key: SessionKey,
        lane: LaneId,
        round: Round,
        stats: RoundStats,
    ) {
        let Some((id, _)) = self.lane_session(key) else { return };
        if let Some(session) = self.sessions.get_mut(&id) {
            let sum = &mut session.round_stats;
            sum.pages += stats.pages;
            sum.pages_sent += stats.pages_sent;
            sum.wire_bytes += stats.wire_bytes;
            sum.nanos = sum.nanos.max(stats.nanos);
        }
        self.source_step(id, SourceInput::LaneRoundDone { lane, round });
    }

    pub(super) fn on_lane_verified(&mut self, key: SessionKey, lane: LaneId) {
        match self.lane_session(key) {
            Some((id, Role::Source)) => self.source_step(id, SourceInput::LaneVerified(lane)),
            Some((id, Role::Sink)) => self.sink_step(id, SinkInput::LaneVerified(lane)),
            None => {}
        }
    }

    pub(super) fn on_lane_failed(&mut self, key: SessionKey, lane: LaneId, cause: SessionEnd) {
        let Some((id, role)) = self.lane_session(key) else { return };
        let code = lane_failure(&cause);
        if let Some(session) = self.sessions.get_mut(&id) {
            session.lane_failure.get_or_insert(cause);
            if session.lanes_opened & (1 << lane.0) == 0 {
                // The shard refused to open it: nothing is left there to close.
                self.free_lane(id, lane);
            }
        }
        let lane = self.sessions.get(&id).map_or(lane, |session| session.machine_lane(lane));
        match role {
            Role::Source => self.source_step(id, SourceInput::LaneFailed { lane, code }),
            Role::Sink => self.sink_step(id, SinkInput::LaneFailed { lane, code }),
        }
    }

    pub(super) fn on_lane_closed(&mut self, key: SessionKey, lane: LaneId) {
        let Some((id, _)) = self.lane_session(key) else { return };
        self.keep_left(id);
        self.free_lane(id, lane);
        self.finish_vm(id);
        self.retire_if_over(id);
    }

    /// A shard's loop ended: it touches no region any more.
    pub(super) fn on_shard_stopped(&mut self, shard: ShardIndex) {
        let placement = self.shards.placement();
        let held = |session: &Session| {
            let lane = placement.lane_on(session.key?.link, shard);
            (session.lanes_held & (1 << lane.0) != 0).then(|| (session.id(), lane))
        };
        let sessions: Vec<(SessionId, LaneId)> = self.sessions.values().filter_map(held).collect();
        for (id, lane) in sessions {
            self.free_lane(id, lane);
            self.finish_vm(id);
            self.retire_if_over(id);
        }
    }

    /// The shard of a lane holds nothing of the session; with the last lane its name and its memory
    /// are free.
    fn free_lane(&mut self, id: SessionId, lane: LaneId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if session.lane_is_free(lane) {
            session.memory_bytes = 0;
            if let Some(key) = session.key.take() {
                self.keys.remove(&key);
            }
        }
    }

    fn lane_session(&self, key: SessionKey) -> Option<(SessionId, Role)> {
        let session = self.keys.get(&key).and_then(|id| self.sessions.get(id))?;
        Some((session.id(), session.role()))
    }
}
