//! Harm, its end, and the healing of a world.

use super::agenda::Task;
use super::job::ClientState;
use super::{SIDES, World, WorldError, index};
use crate::fact::Fact;
use crate::plan::Fault;
use dwcp_dataplane::link::sim::{ConnectionId, Side};
use dwcp_dataplane::port::SessionEnd;
use dwcp_proto::session::phase::SinkPhase;
use dwcp_proto::session::source::SourceInput;
use dwcp_proto::time::Nanos;

/// What a healthy disk takes at the most.
const DISK_LATENCY: Nanos = Nanos(2_000_000);

impl World {
    pub(super) fn harm(&mut self, fault: Fault) -> Result<(), WorldError> {
        self.note(Fact::Harm(fault));
        let now = self.now();
        let mut over = now;
        match fault {
            Fault::CutStream => {
                let open = self.fabric.connections();
                let at = self.rng.below(open.len() as u64) as usize;
                open.get(at).into_iter().for_each(|connection| self.cut_stream(*connection));
            }
            Fault::CutStreams => {
                self.fabric.connections().into_iter().for_each(|it| self.cut_stream(it));
            }
            Fault::CutChannel => self.cut_channels(),
            Fault::Partition { near, far, lasts } => {
                self.set_ways(!near, !far);
                over = now + lasts;
            }
            Fault::Hold { side, lasts } => {
                let open = self.fabric.connections();
                let at = self.rng.below(open.len() as u64) as usize;
                over = now + lasts;
                open.get(at).into_iter().for_each(|it| self.fabric.hold(*it, side, over));
            }
            Fault::Crash { side, down } => {
                self.crash(side);
                over = now + down;
                self.agenda.add(over, Task::Restart { side });
            }
            Fault::Leap { side, by } => self.host(side).clock.leap(by),
            Fault::Disk { side, latency, failures, lasts } => {
                let disk = &mut self.host_mut(side).disk;
                (disk.latency_max, disk.failures) = (latency, failures);
                over = now + lasts;
            }
            Fault::Slow { side, lasts } => {
                self.host_mut(side).is_slow = true;
                over = now + lasts;
            }
            Fault::Corrupt => self.corrupt(),
            Fault::Abort => self.abort_one(),
        }
        if over > now {
            self.agenda.add(over, Task::EndHarm(fault));
        }
        self.heal_if_last(over);
        Ok(())
    }

    pub(super) fn end_harm(&mut self, fault: Fault) {
        match fault {
            Fault::Partition { .. } => self.set_ways(true, true),
            Fault::Disk { side, .. } => {
                let disk = &mut self.host_mut(side).disk;
                (disk.latency_max, disk.failures) = (DISK_LATENCY, 0);
            }
            Fault::Slow { side, .. } => self.host_mut(side).is_slow = false,
            _ => {}
        }
    }

    /// After the last harm the world heals.
    fn heal_if_last(&mut self, over: Nanos) {
        let left = self.agenda.has(|task| matches!(task, Task::Harm { .. }));
        if !left {
            let ends =
                self.agenda.latest(|task| matches!(task, Task::EndHarm(_) | Task::Restart { .. }));
            self.agenda.add(ends.unwrap_or(over).max(over), Task::Heal);
        }
    }

    /// A sink whose journal failed can't know what it holds until its daemon starts again: in a
    /// healed world somebody sees to that.
    pub(super) fn restart_if_in_doubt(&mut self) -> Result<(), WorldError> {
        let doubts = |phase| phase == SinkPhase::InDoubt;
        let any = self.host(Side::Far).sinks.values().any(|it| doubts(it.machine.phase()));
        if self.healed_at.is_some() && any {
            self.crash(Side::Far);
            self.restart(Side::Far)?;
        }
        Ok(())
    }

    /// Nothing bad happens from now on.
    pub(super) fn heal(&mut self) -> Result<(), WorldError> {
        self.set_ways(true, true);
        for side in SIDES {
            let disk = &mut self.host_mut(side).disk;
            (disk.latency_max, disk.failures) = (DISK_LATENCY, 0);
            self.host_mut(side).is_slow = false;
            self.restart(side)?;
        }
        self.healed_at = Some(self.now());
        self.note(Fact::Healed);
        Ok(())
    }

    fn set_ways(&mut self, near: bool, far: bool) {
        for (side, is_up) in SIDES.into_iter().zip([near, far]) {
            let conditions = self.plan.conditions[index(side)];
            let way = dwcp_dataplane::link::sim::Conditions { is_up, ..conditions };
            self.fabric.set_conditions(side, way);
            // What waited for the way arrives now.
            let now = self.now();
            self.agenda.add(now, Task::Channel { side: side.across() });
        }
    }

    /// One end may go on for a while with what the other has given up.
    fn cut_stream(&mut self, connection: ConnectionId) {
        let now = self.now();
        let learnt_at = SIDES.map(|_| now + Nanos(self.rng.below(100_000_000)));
        self.fabric.cut(connection, learnt_at);
    }

    fn cut_channels(&mut self) {
        let now = self.now();
        for channel in self.channels.ids() {
            let due = SIDES.map(|_| now + Nanos(self.rng.below(400_000_000)));
            self.channels.cut(channel, due);
            for (side, due) in SIDES.into_iter().zip(due) {
                self.agenda.add(due, Task::Channel { side });
            }
        }
    }

    /// A page at the sink of a session that is under way changes.
    fn corrupt(&mut self) {
        let moving = |client| matches!(client, ClientState::Moving(_));
        let jobs: Vec<usize> =
            (0..self.jobs.len()).filter(|job| moving(self.jobs[*job].client)).collect();
        let at = self.rng.below(jobs.len() as u64) as usize;
        if let Some(&job) = jobs.get(at) {
            let page = self.jobs[job].corrupt();
            self.note(Fact::Corrupted { job, page });
        }
    }

    /// A client gives up what it has.
    fn abort_one(&mut self) {
        let sessions: Vec<_> = self.host(Side::Near).sources.keys().copied().collect();
        let at = self.rng.below(sessions.len() as u64) as usize;
        if let Some(&session) = sessions.get(at) {
            self.source_request(session, SourceInput::Abort);
        }
    }
}

/// The code of a lane's failure, for the machine.
pub(super) const fn code_of(cause: &SessionEnd) -> &'static str {
    match cause {
        SessionEnd::LinkLost(_) => "link_lost",
        SessionEnd::PageMismatch => "page_mismatch",
        SessionEnd::Peer { .. } => "peer_ended",
        SessionEnd::Protocol { code, .. } => code,
        SessionEnd::TableFull => "table_full",
        SessionEnd::NoMemory => "no_memory",
    }
}
