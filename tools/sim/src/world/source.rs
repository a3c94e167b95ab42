//! The source's sessions: the clients that ask for them, the real machine, and its orders.
//!
//! In place of the product's driver, by the rules in `proto::session`.

use super::job::ClientState;
use super::{Record, World};
use crate::fact::Fact;
use dwcp_control::link::LinkPhase;
use dwcp_dataplane::link::sim::Side;
use dwcp_dataplane::port::{Coding, Command, Event, SourceSetup};
use dwcp_dataplane::stats::SessionStatsReader;
use dwcp_ffi::counters::{counters, histogram};
use dwcp_proto::ids::{LaneId, LinkId, SessionId, SessionKey};
use dwcp_proto::session::record::SourceRecord;
use dwcp_proto::session::source::{
    SourceAction, SourceInput, SourceReport, SourceSession, SourceSpec, SourceWhat,
};
use dwcp_proto::session::timing::SessionTiming;
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::peer::{PeerCoding, PeerMessage, RegionName};

/// How long a client waits before it asks for another session.
const RETRY: Nanos = Nanos(300_000_000);

/// The source's side of a session.
pub(crate) struct SourceSide {
    pub(crate) machine: SourceSession,
    pub(crate) job: usize,
    pub(crate) key: Option<SessionKey>,
    link: Option<LinkId>,
    lanes: u16,
    /// Lanes whose shard holds something of it.
    held: u64,
    opened: u64,
    pub(crate) readers: Vec<SessionStatsReader>,
}

impl World {
    /// Lets every client do what it can.
    pub(super) fn tick_sources(&mut self) {
        let host_now = self.host(Side::Near).now();
        let due: Vec<SessionId> = self
            .host(Side::Near)
            .sources
            .iter()
            .filter(|(_, it)| it.machine.deadline().is_some_and(|deadline| deadline <= host_now))
            .map(|(id, _)| *id)
            .collect();
        due.into_iter().for_each(|id| self.source_step(id, SourceInput::Tick));
        let waits = self.host(Side::Near).sources.values().any(|it| it.link.is_none());
        let idle = |client| matches!(client, ClientState::Idle { .. });
        if waits || self.jobs.iter().any(|job| idle(job.client)) {
            self.want_link();
        }
        for job in 0..self.jobs.len() {
            self.open_source(job);
        }
    }

    /// A client asks for a session, if there is a link and none is left of the last one.
    fn open_source(&mut self, job: usize) {
        let now = self.now();
        let ClientState::Idle { retry_at } = self.jobs[job].client else { return };
        if retry_at > now || self.host(Side::Near).sources.values().any(|it| it.job == job) {
            return;
        }
        let Some(id) = self.dialled_link() else { return };
        let session = SessionId(self.rng.bytes());
        let host_now = self.host(Side::Near).now();
        let host = self.host_mut(Side::Near);
        let Some(entry) = host.links.get_mut(&id) else { return };
        if entry.link.phase() != LinkPhase::Ready {
            return;
        }
        let number = entry.next_number;
        entry.next_number = number.next();
        let lanes = entry.link.lanes();
        let pages = self.jobs[job].plan.pages;
        let region = RegionName::cut(&job.to_string());
        let what = SourceWhat::Region { region, pages, coding: PeerCoding::Full };
        let spec = SourceSpec { session, number, what, lanes };
        let (machine, actions) = SourceSession::open(spec, SessionTiming::default(), host_now);
        let key = SessionKey { link: id, number };
        let side = SourceSide {
            machine,
            job,
            key: Some(key),
            link: Some(id),
            lanes,
            held: 0,
            opened: 0,
            readers: Vec::new(),
        };
        self.host_mut(Side::Near).sources.insert(session, side);
        self.sessions.push((session, job));
        self.jobs[job].client = ClientState::Moving(session);
        self.jobs[job].paused = false;
        self.note(Fact::Began { session, key, job });
        self.do_source(session, actions);
    }

    /// After a restart: clients whose sessions are gone ask again.
    pub(super) fn restart_clients(&mut self) {
        let now = self.now();
        for job in 0..self.jobs.len() {
            if let ClientState::Moving(session) = self.jobs[job].client
                && !self.host(Side::Near).sources.contains_key(&session)
            {
                self.jobs[job].client = ClientState::Idle { retry_at: now + RETRY };
                self.jobs[job].paused = false;
            }
        }
    }

    pub(super) fn restore_source(&mut self, session: SessionId, record: SourceRecord) {
        let Some(job) = self.job_of(session) else { return };
        let (machine, actions) = SourceSession::restore(session, record, SessionTiming::default());
        let side = SourceSide {
            machine,
            job,
            key: None,
            link: None,
            lanes: 0,
            held: 0,
            opened: 0,
            readers: Vec::new(),
        };
        self.host_mut(Side::Near).sources.insert(session, side);
        if record == SourceRecord::Done {
            self.jobs[job].client = ClientState::Done(session);
        }
        self.do_source(session, actions);
    }

    /// Feeds a source's machine with something that it never refuses.
    pub(super) fn source_step(&mut self, id: SessionId, input: SourceInput) {
        self.source_request(id, input);
    }

    /// Feeds a source's machine; what it refuses changes nothing.
    pub(super) fn source_request(&mut self, id: SessionId, input: SourceInput) {
        let now = self.host(Side::Near).now();
        let Some(side) = self.host_mut(Side::Near).sources.get_mut(&id) else { return };
        if let Ok(actions) = side.machine.step(now, input) {
            self.do_source(id, actions);
        }
    }

    fn do_source(&mut self, id: SessionId, actions: Vec<SourceAction>) {
        for action in actions {
            match action {
                SourceAction::Send(message) => self.source_send(id, &message),
                SourceAction::OpenLanes => self.open_source_lanes(id),
                SourceAction::StartRound { round, last } => {
                    self.order_source(id, |session| Command::StartRound { session, round, last });
                }
                SourceAction::Verify => {
                    self.order_source(id, |session| Command::Verify { session });
                }
                SourceAction::CloseLanes => self.close_source_lanes(id),
                SourceAction::Journal(record) => {
                    self.write_record(Side::Near, id, Record::Source(record));
                }
                SourceAction::Reconnect => {
                    if let Some(side) = self.host_mut(Side::Near).sources.get_mut(&id) {
                        side.link = None;
                    }
                }
                SourceAction::Report(report) => self.source_report(id, report),
                SourceAction::Ignored { .. } => {}
            }
        }
        self.retire_source(id);
    }

    fn source_send(&mut self, id: SessionId, message: &PeerMessage) {
        let link = self.host(Side::Near).sources.get(&id).and_then(|side| side.link);
        if let Some(link) = link {
            self.send_on(Side::Near, link, message);
        }
    }

    fn open_source_lanes(&mut self, id: SessionId) {
        let host = self.host_mut(Side::Near);
        let Some(side) = host.sources.get_mut(&id) else { return };
        let Some(session) = side.key else { return };
        let Some(entry) = host.links.get(&session.link) else { return };
        let (lanes, job, hash_key) = (side.lanes, side.job, entry.hash_key.clone());
        let mut readers = Vec::new();
        for lane in (0..lanes).map(LaneId) {
            let (stats, reader) = counters();
            readers.push(reader);
            let (region, dirty) = (self.jobs[job].source.clone(), self.jobs[job].dirty());
            let setup = Box::new(SourceSetup {
                session,
                region,
                dirty,
                lane,
                lane_count: lanes,
                base_pages_max: self.jobs[job].plan.base_pages,
                hash_key: hash_key.clone(),
                coding: Coding::Full { zstd_level: 1 },
                measure_baseline: false,
                stats,
                frame_rtt_ns: histogram().0,
            });
            self.send(Side::Near, lane, Command::OpenSource(setup));
        }
        if let Some(side) = self.host_mut(Side::Near).sources.get_mut(&id) {
            side.held = (1 << lanes) - 1;
            side.readers = readers;
        }
    }

    fn order_source(&mut self, id: SessionId, order: impl Fn(SessionKey) -> Command) {
        let Some(side) = self.host(Side::Near).sources.get(&id) else { return };
        let (Some(key), lanes) = (side.key, side.lanes) else { return };
        (0..lanes).for_each(|lane| self.send(Side::Near, LaneId(lane), order(key)));
    }

    fn close_source_lanes(&mut self, id: SessionId) {
        let Some(side) = self.host(Side::Near).sources.get(&id) else { return };
        let (Some(session), held) = (side.key, side.held) else { return };
        for lane in (0..side.lanes).map(LaneId).filter(|lane| held & (1 << lane.0) != 0) {
            self.send(Side::Near, lane, Command::CloseSession { session });
        }
    }

    fn source_report(&mut self, id: SessionId, report: SourceReport) {
        let now = self.now();
        let Some(job) = self.job_of(id) else { return };
        match report {
            SourceReport::Opened => {
                self.jobs[job].rounds_left = self.jobs[job].plan.rounds;
                self.next_round(id, job);
            }
            SourceReport::RoundDone { .. } => self.next_round(id, job),
            SourceReport::Committed => {
                self.note(Fact::Committed { side: Side::Near, session: id });
                self.jobs[job].client = ClientState::Done(id);
            }
            SourceReport::InDoubt(reason) => {
                self.note(Fact::Ended { side: Side::Near, session: id, reason });
            }
            SourceReport::Ended(reason) => {
                self.note(Fact::Ended { side: Side::Near, session: id, reason });
                if self.jobs[job].client == ClientState::Moving(id) {
                    self.jobs[job].client = ClientState::Idle { retry_at: now + RETRY };
                    self.jobs[job].paused = false;
                }
            }
            SourceReport::Conflict(conflict) => {
                panic!("a conflict without an operator: {conflict:?}")
            }
        }
    }

    /// The client asks for another round, or pauses the writer and asks for the last one.
    fn next_round(&mut self, id: SessionId, job: usize) {
        if self.jobs[job].client != ClientState::Moving(id) || self.jobs[job].paused {
            return;
        }
        let left = &mut self.jobs[job].rounds_left;
        *left = left.saturating_sub(1);
        if *left > 0 {
            return self.source_request(id, SourceInput::Round);
        }
        self.jobs[job].paused = true;
        self.source_request(id, SourceInput::Finish);
    }

    pub(super) fn source_event(&mut self, key: SessionKey, lane: LaneId, event: Event) {
        let sources = &mut self.host_mut(Side::Near).sources;
        let found = sources.iter_mut().find(|(_, side)| side.key == Some(key));
        let Some((&id, side)) = found else { return };
        let bit = 1 << lane.0;
        let input = match event {
            Event::Opened { .. } => {
                side.opened |= bit;
                SourceInput::LaneOpened(lane)
            }
            Event::RoundDone { round, .. } => SourceInput::LaneRoundDone { lane, round },
            Event::Verified { .. } => SourceInput::LaneVerified(lane),
            Event::Failed { cause, .. } => {
                if side.opened & bit == 0 {
                    side.held &= !bit;
                }
                SourceInput::LaneFailed { lane, code: super::faults::code_of(&cause) }
            }
            _ => {
                side.held &= !bit;
                return self.retire_source(id);
            }
        };
        self.source_step(id, input);
    }

    pub(super) fn source_message(&mut self, id: SessionId, message: PeerMessage) {
        self.source_step(id, SourceInput::Peer(message));
    }

    pub(super) fn source_written(&mut self, id: SessionId, record: SourceRecord, fails: bool) {
        let input = match fails {
            false => SourceInput::JournalWritten(record),
            true => SourceInput::JournalFailed(record),
        };
        self.source_step(id, input);
    }

    /// There is a channel again: what waits for one asks.
    pub(super) fn sources_link_up(&mut self, link: LinkId) {
        let mut waiting = Vec::new();
        for (id, side) in &mut self.host_mut(Side::Near).sources {
            if side.link.is_none() {
                side.link = Some(link);
                waiting.push(*id);
            }
        }
        waiting.into_iter().for_each(|id| self.source_step(id, SourceInput::LinkUp));
        let host = self.host(Side::Near);
        let settled: Vec<SessionId> = host
            .disk
            .records()
            .filter(|(id, record)| is_settled(*record) && !host.sources.contains_key(id))
            .map(|(id, _)| id)
            .collect();
        for session in settled {
            self.send_on(Side::Near, link, &PeerMessage::Settled { session });
        }
    }

    pub(super) fn sources_link_lost(&mut self, link: LinkId) {
        let sources = &self.host(Side::Near).sources;
        let lost = sources.iter().filter(|(_, side)| side.link == Some(link)).map(|(id, _)| *id);
        for id in lost.collect::<Vec<_>>() {
            if let Some(side) = self.host_mut(Side::Near).sources.get_mut(&id) {
                side.link = None;
            }
            self.source_step(id, SourceInput::LinkLost);
        }
    }

    /// A session that is over, and that no shard holds, is history.
    fn retire_source(&mut self, id: SessionId) {
        let Some(side) = self.host(Side::Near).sources.get(&id) else { return };
        if !side.machine.is_over() || side.held != 0 {
            return;
        }
        if let Some(side) = self.host_mut(Side::Near).sources.remove(&id) {
            self.note_counts(Side::Near, id, &side.readers);
        }
    }
}

const fn is_settled(record: Record) -> bool {
    matches!(record, Record::Source(SourceRecord::Done | SourceRecord::Kept))
}
