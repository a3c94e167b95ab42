//! One session as the core keeps it: the machine that decides, the record that is told, and what
//! waits for it.
//!
//! Plain values on the control thread.

use super::regions::Memory;
use super::vm_part::{Silence, VmPart};
use crate::api::{Reply, Role};
use crate::state::{SessionRecord, SessionState};
use dwcp_dataplane::port::{Coding, RoundStats, SessionEnd};
use dwcp_dataplane::stats::{SESSION_COUNTERS, SessionStatsReader};
use dwcp_ffi::counters::HistogramReader;
use dwcp_proto::ids::{LaneId, LinkId, SessionId, SessionKey};
use dwcp_proto::session::sink::SinkSession;
use dwcp_proto::session::source::SourceSession;
use dwcp_proto::time::Nanos;

/// The machine of either end.
#[derive(Debug)]
pub(crate) enum Machine {
    /// This host sends.
    Source(SourceSession),
    /// This host receives.
    Sink(SinkSession),
}

/// What a session's lanes are opened with.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) memory: Memory,
    pub(crate) lanes: u16,
    pub(crate) coding: Coding,
    pub(crate) measure_baseline: bool,
    /// Of this lane, at a source.
    pub(crate) base_pages_max: usize,
}

/// Which request a client waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitingFor {
    Open,
    Round,
    Finish,
    Migrate,
    Resolve,
}

/// A client that waits for news of a session.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) what: WaitingFor,
    pub(crate) reply: Reply,
}

/// When the parts of the end began, to tell how long each took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Times {
    pub(crate) round: Nanos,
    pub(crate) verify: Nanos,
    pub(crate) commit: Nanos,
}

/// One session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) machine: Machine,
    pub(crate) record: SessionRecord,
    /// The link that carries it now.
    pub(crate) link: Option<LinkId>,
    /// Of a region: both ends have it wait for the next connection of a lost link.
    pub(crate) resumes: bool,
    /// Source: the peer's silence while what it moves stands still.
    pub(crate) silence: Silence,
    /// How its shards name it, while they hold memory for it.
    pub(crate) key: Option<SessionKey>,
    /// Of a region; `None` for a session made again from the journal.
    pub(crate) plan: Option<Plan>,
    /// Of a virtual machine, while its QEMU is driven.
    pub(crate) vm: Option<Box<VmPart>>,
    pub(crate) stats: Vec<SessionStatsReader>,
    pub(crate) frame_rtt_ns: Vec<HistogramReader>,
    /// A bit for each lane that was ordered open and has not said yet that it holds nothing of the
    /// session: its shard may still read or write the region.
    pub(crate) lanes_held: u64,
    /// A bit for each lane that said that it is open.
    pub(crate) lanes_opened: u64,
    /// Lanes that are asked to close, or were.
    pub(crate) closing: bool,
    pub(crate) waiting: Option<Waiting>,
    pub(crate) round_stats: RoundStats,
    pub(crate) times: Times,
    /// When its machine was made.
    pub(crate) opened_at: Nanos,
    /// Of the last round and the verification, in nanoseconds, once known.
    pub(crate) last_round_ns: u64,
    pub(crate) verify_ns: u64,
    /// What a lane said when it failed.
    pub(crate) lane_failure: Option<SessionEnd>,
    /// How the link ended that carried it, in words and as a stable code.
    pub(crate) link_failure: Option<(String, &'static str)>,
    /// What the journal held of it when a peer's question made it live again.
    pub(crate) revived: Option<SessionRecord>,
    pub(crate) memory_bytes: u64,
    pub(crate) progress_at: Nanos,
    pub(crate) progress_bytes: u64,
    /// When to dial the peer again, and the wait after that.
    pub(crate) reconnect: Option<(Nanos, Nanos)>,
}

impl Session {
    /// A session without lanes.
    pub(crate) fn new(machine: Machine, record: SessionRecord) -> Self {
        Self {
            machine,
            record,
            link: None,
            resumes: false,
            silence: Silence::default(),
            key: None,
            plan: None,
            vm: None,
            stats: Vec::new(),
            frame_rtt_ns: Vec::new(),
            lanes_held: 0,
            lanes_opened: 0,
            closing: false,
            waiting: None,
            round_stats: RoundStats::default(),
            times: Times::default(),
            opened_at: Nanos(0),
            last_round_ns: 0,
            verify_ns: 0,
            lane_failure: None,
            link_failure: None,
            revived: None,
            memory_bytes: 0,
            progress_at: Nanos(0),
            progress_bytes: 0,
            reconnect: None,
        }
    }

    /// The session's name.
    pub(crate) fn id(&self) -> SessionId {
        self.record.session
    }

    /// Which end this host is.
    pub(crate) fn role(&self) -> Role {
        self.record.role
    }

    /// Where the machine stands.
    pub(crate) fn state(&self) -> SessionState {
        match &self.machine {
            Machine::Source(machine) => machine.phase().into(),
            Machine::Sink(machine) => machine.phase().into(),
        }
    }

    /// True when nothing more happens to it here and no shard touches its region any more.
    pub(crate) fn is_over(&self) -> bool {
        let over = match &self.machine {
            Machine::Source(machine) => machine.is_over(),
            Machine::Sink(machine) => machine.is_over(),
        };
        let vm_over = self.vm.as_ref().is_none_or(|vm| vm.is_over());
        over && vm_over && self.lanes_held == 0
    }

    /// True while a lost connection costs nothing but time, if another one comes.
    pub(crate) fn may_park(&self) -> bool {
        let may = match &self.machine {
            Machine::Source(machine) => machine.may_park(),
            Machine::Sink(machine) => machine.may_park(),
        };
        may && (self.is_vm() || self.resumes) && !self.closing
    }

    /// True for a session of a virtual machine.
    pub(crate) fn is_vm(&self) -> bool {
        self.record.vm.is_some()
    }

    /// When the machine wants to hear of the time.
    pub(crate) fn deadline(&self) -> Option<Nanos> {
        match &self.machine {
            Machine::Source(machine) => machine.deadline(),
            Machine::Sink(machine) => machine.deadline(),
        }
    }

    /// The lane that the machine knows: a virtual machine's is its only one.
    pub(crate) fn machine_lane(&self, lane: LaneId) -> LaneId {
        if self.is_vm() { LaneId(0) } else { lane }
    }

    /// A counter by its place in the table, summed over the lanes.
    pub(crate) fn count(&self, index: usize) -> u64 {
        self.stats.iter().map(|reader| reader.get(index)).sum()
    }

    /// Brings the record up to what the machine and the counters say.
    pub(crate) fn update_record(&mut self) {
        self.record = self.fresh_record();
    }

    /// The record as the machine and the counters make it now.
    pub(crate) fn fresh_record(&self) -> SessionRecord {
        let mut record = self.record.clone();
        record.state = self.state();
        if let Machine::Source(machine) = &self.machine {
            record.round = machine.round().0.max(record.round);
        }
        if !self.stats.is_empty() {
            let counts = (0..).zip(SESSION_COUNTERS);
            record.counters = counts
                .map(|(index, info)| (short_name(info.name).to_owned(), self.count(index)))
                .collect();
        }
        record
    }

    /// Notes that the shard of a lane holds nothing of the session any more; true if it was the
    /// last one.
    pub(crate) fn lane_is_free(&mut self, lane: LaneId) -> bool {
        let before = self.lanes_held;
        self.lanes_held &= !(1 << lane.0);
        before != 0 && self.lanes_held == 0
    }

    /// Each lane of the session.
    pub(crate) fn lanes(&self) -> impl Iterator<Item = LaneId> + use<> {
        let own = self.vm.as_ref().map(|vm| vm.lane.0);
        let count = self.plan.as_ref().map_or(0, |plan| plan.lanes);
        own.map_or(0..count, |lane| lane..lane + 1).map(LaneId)
    }
}

/// A counter's name without what is the same for all of them.
fn short_name(name: &str) -> &str {
    let name = name.strip_prefix("session_").unwrap_or(name);
    name.strip_suffix("_total").unwrap_or(name)
}

/// The stable code of a lane's failure.
pub(crate) const fn lane_failure(end: &SessionEnd) -> &'static str {
    match end {
        SessionEnd::LinkLost(_) => "lane_link_lost",
        SessionEnd::PageMismatch => "lane_page_mismatch",
        SessionEnd::Peer { .. } => "lane_ended_by_peer",
        SessionEnd::Protocol { code, .. } => code,
        SessionEnd::TableFull => "lane_table_full",
        SessionEnd::NoMemory => "lane_no_memory",
    }
}
