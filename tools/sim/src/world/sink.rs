//! The sink's sessions: the real machine and its orders.
//!
//! In place of the product's driver, by the rules in `proto::session`.

use super::{Record, World};
use crate::fact::Fact;
use dwcp_dataplane::link::sim::Side;
use dwcp_dataplane::port::{Command, Event, SinkSetup};
use dwcp_dataplane::stats::{SessionCounter, SessionStatsReader};
use dwcp_ffi::counters::counters;
use dwcp_proto::ids::{LaneId, LinkId, SessionId, SessionKey, SessionNumber};
use dwcp_proto::session::record::SinkRecord;
use dwcp_proto::session::sink::{SinkAction, SinkInput, SinkReport, SinkSession, SinkSpec};
use dwcp_proto::session::timing::SessionTiming;
use dwcp_proto::wire::peer::{Code, Message, PeerMessage};
use dwcp_proto::wire::vm::PeerFindings;

/// The sink's side of a session.
pub(crate) struct SinkSide {
    pub(crate) machine: SinkSession,
    pub(crate) job: usize,
    pub(crate) key: Option<SessionKey>,
    link: Option<LinkId>,
    lanes: u16,
    /// Lanes whose shard holds something of it, and those that have found all pages equal.
    held: u64,
    opened: u64,
    pub(crate) verified: u64,
    pub(crate) readers: Vec<SessionStatsReader>,
}

impl SinkSide {
    /// Every lane has checked all its pages.
    pub(crate) fn is_verified(&self) -> bool {
        self.verified == (1 << self.lanes) - 1
    }
}

impl World {
    pub(super) fn tick_sinks(&mut self) {
        let now = self.host(Side::Far).now();
        let due: Vec<SessionId> = self
            .host(Side::Far)
            .sinks
            .iter()
            .filter(|(_, it)| it.machine.deadline().is_some_and(|deadline| deadline <= now))
            .map(|(id, _)| *id)
            .collect();
        due.into_iter().for_each(|id| self.sink_step(id, SinkInput::Tick));
    }

    pub(super) fn sink_message(&mut self, link: LinkId, id: SessionId, message: PeerMessage) {
        if let PeerMessage::SessionOpen { number, .. } = message {
            return self.open_sink(link, id, number);
        }
        if !self.host(Side::Far).sinks.contains_key(&id) {
            self.revive_sink(id, &message);
        }
        let Some(side) = self.host_mut(Side::Far).sinks.get_mut(&id) else { return };
        if side.link != Some(link) {
            if side.link.replace(link).is_some() {
                // The peer came back before the end of its old connection was noticed.
                self.sink_step(id, SinkInput::LinkLost);
            }
            if !self.host(Side::Far).sinks.contains_key(&id) {
                return self.sink_message(link, id, message);
            }
        }
        self.sink_step(id, SinkInput::Peer(message));
    }

    /// A source asks about, or settles, a session that is not known any more.
    fn revive_sink(&mut self, id: SessionId, message: &PeerMessage) {
        let host = self.host(Side::Far);
        let record = match host.disk.record(id) {
            Some(Record::Sink(record)) => Some(record),
            _ => None,
        };
        let asks = matches!(message, PeerMessage::Query { .. } | PeerMessage::Yield { .. });
        let settles = matches!(message, PeerMessage::Settled { .. }) && record.is_some();
        let Some(job) = self.job_of(id).filter(|_| asks || settles) else { return };
        let machine = SinkSession::restore(id, record, host.disk.id);
        let side = SinkSide {
            machine,
            job,
            key: None,
            link: None,
            lanes: 0,
            held: 0,
            opened: 0,
            verified: 0,
            readers: Vec::new(),
        };
        self.host_mut(Side::Far).sinks.insert(id, side);
    }

    fn open_sink(&mut self, link: LinkId, session: SessionId, number: SessionNumber) {
        let Some(job) = self.job_of(session) else { return };
        let now = self.host(Side::Far).now();
        let host = self.host(Side::Far);
        let Some(entry) = host.links.get(&link) else { return };
        if host.sinks.values().any(|it| it.job == job) {
            let (code, message) = (Code::cut("region_busy"), Message::cut("region_busy"));
            let findings = PeerFindings::default();
            let refuse = PeerMessage::SessionRefuse { session, number, code, message, findings };
            return self.send_on(Side::Far, link, &refuse);
        }
        let (lanes, journal) = (entry.link.lanes(), host.disk.id);
        let spec = SinkSpec { session, number, lanes, journal, vm: None };
        let (machine, actions) = SinkSession::open(spec, SessionTiming::default(), now);
        let side = SinkSide {
            machine,
            job,
            key: Some(SessionKey { link, number }),
            link: Some(link),
            lanes,
            held: 0,
            opened: 0,
            verified: 0,
            readers: Vec::new(),
        };
        self.host_mut(Side::Far).sinks.insert(session, side);
        self.jobs[job].corrupted.clear();
        self.do_sink(session, actions);
    }

    pub(super) fn sink_step(&mut self, id: SessionId, input: SinkInput) {
        let now = self.host(Side::Far).now();
        let Some(side) = self.host_mut(Side::Far).sinks.get_mut(&id) else { return };
        if let Ok(actions) = side.machine.step(now, input) {
            self.do_sink(id, actions);
        }
    }

    fn do_sink(&mut self, id: SessionId, actions: Vec<SinkAction>) {
        for action in actions {
            match action {
                SinkAction::Send(message) => {
                    let link = self.host(Side::Far).sinks.get(&id).and_then(|side| side.link);
                    if let Some(link) = link {
                        self.send_on(Side::Far, link, &message);
                    }
                }
                SinkAction::OpenLanes => self.open_sink_lanes(id),
                SinkAction::CloseLanes => self.close_sink_lanes(id),
                SinkAction::Journal(record) => {
                    self.write_record(Side::Far, id, Record::Sink(record));
                }
                SinkAction::Report(report) => self.sink_report(id, report),
                SinkAction::Forget => {
                    self.note(Fact::Forgot { session: id });
                    self.host_mut(Side::Far).disk.forget(id);
                }
                SinkAction::Ignored { .. } => {}
            }
        }
        self.retire_sink(id);
    }

    fn open_sink_lanes(&mut self, id: SessionId) {
        let host = self.host_mut(Side::Far);
        let Some(side) = host.sinks.get_mut(&id) else { return };
        let Some(session) = side.key else { return };
        let Some(entry) = host.links.get(&session.link) else { return };
        let (lanes, job, hash_key) = (side.lanes, side.job, entry.hash_key.clone());
        let mut readers = Vec::new();
        for lane in (0..lanes).map(LaneId) {
            let (stats, reader) = counters();
            readers.push(reader);
            let region = self.jobs[job].sink.clone();
            let hash_key = hash_key.clone();
            let setup = SinkSetup { session, region, lane, lane_count: lanes, hash_key, stats };
            self.send(Side::Far, lane, Command::OpenSink(Box::new(setup)));
        }
        if let Some(side) = self.host_mut(Side::Far).sinks.get_mut(&id) {
            side.held = (1 << lanes) - 1;
            side.readers = readers;
        }
    }

    fn close_sink_lanes(&mut self, id: SessionId) {
        let Some(side) = self.host(Side::Far).sinks.get(&id) else { return };
        let (Some(session), held) = (side.key, side.held) else { return };
        for lane in (0..side.lanes).map(LaneId).filter(|lane| held & (1 << lane.0) != 0) {
            self.send(Side::Far, lane, Command::CloseSession { session });
        }
    }

    fn sink_report(&mut self, session: SessionId, report: SinkReport) {
        let side = Side::Far;
        match report {
            SinkReport::Opened | SinkReport::Verified => {}
            SinkReport::Committed => self.note(Fact::Committed { side, session }),
            SinkReport::InDoubt(reason) | SinkReport::Ended(reason) => {
                self.note(Fact::Ended { side, session, reason });
            }
            SinkReport::Conflict(conflict) => {
                panic!("a conflict without an operator: {conflict:?}")
            }
        }
    }

    pub(super) fn sink_event(&mut self, key: SessionKey, lane: LaneId, event: Event) {
        let sinks = &mut self.host_mut(Side::Far).sinks;
        let found = sinks.iter_mut().find(|(_, side)| side.key == Some(key));
        let Some((&id, side)) = found else { return };
        let bit = 1 << lane.0;
        let input = match event {
            Event::Opened { .. } => {
                side.opened |= bit;
                SinkInput::LaneOpened(lane)
            }
            Event::Verified { .. } => {
                side.verified |= bit;
                SinkInput::LaneVerified(lane)
            }
            Event::Failed { cause, .. } => {
                if side.opened & bit == 0 {
                    side.held &= !bit;
                }
                SinkInput::LaneFailed { lane, code: super::faults::code_of(&cause) }
            }
            _ => {
                side.held &= !bit;
                return self.retire_sink(id);
            }
        };
        self.sink_step(id, input);
    }

    pub(super) fn sink_written(&mut self, id: SessionId, record: SinkRecord, fails: bool) {
        let input = match fails {
            false => SinkInput::JournalWritten(record),
            true => SinkInput::JournalFailed(record),
        };
        self.sink_step(id, input);
    }

    pub(super) fn sinks_link_lost(&mut self, link: LinkId) {
        let sinks = &self.host(Side::Far).sinks;
        let lost = sinks.iter().filter(|(_, side)| side.link == Some(link)).map(|(id, _)| *id);
        for id in lost.collect::<Vec<_>>() {
            if let Some(side) = self.host_mut(Side::Far).sinks.get_mut(&id) {
                side.link = None;
            }
            self.sink_step(id, SinkInput::LinkLost);
        }
    }

    fn retire_sink(&mut self, id: SessionId) {
        let Some(side) = self.host(Side::Far).sinks.get(&id) else { return };
        if !side.machine.is_over() || side.held != 0 {
            return;
        }
        if let Some(side) = self.host_mut(Side::Far).sinks.remove(&id) {
            self.note_counts(Side::Far, id, &side.readers);
        }
    }

    /// Writes down what a session's lanes counted, when nothing is left of it on a side.
    pub(super) fn note_counts(
        &mut self,
        side: Side,
        session: SessionId,
        readers: &[SessionStatsReader],
    ) {
        if readers.is_empty() {
            // It was made again from the journal and had no lanes.
            return;
        }
        let sum = |counter: SessionCounter| {
            readers.iter().map(|reader| reader.snapshot()[counter.index()]).sum()
        };
        let frames = sum(SessionCounter::Frames);
        let nacks = sum(SessionCounter::Nacks);
        let requeued = sum(SessionCounter::PagesRequeued);
        self.note(Fact::Retired { side, session, frames, nacks, requeued });
    }
}
