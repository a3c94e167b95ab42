//! The core's opening of sessions: what is checked and reserved before a machine exists.
//!
//! Part of [`Core`], on the control thread. A peer that may not write to a region is not told
//! whether it exists.

use super::core::Core;
use super::core::unix_ms;
use super::links::LinkWaiter;
use crate::api::{ApiCode, ApiError, CodingName, Role};
use crate::limits::SESSIONS_LIVE_MAX;
use crate::migration::{Machine, Plan, Session, Waiting, WaitingFor};
use crate::state::SessionRecord;
use dwcp_dataplane::port::Coding;
use dwcp_proto::ids::{LinkId, SessionId, SessionKey, SessionNumber};
use dwcp_proto::session::sink::{SinkAction, SinkSession, SinkSpec};
use dwcp_proto::session::source::{SourceSession, SourceSpec, SourceWhat};
use dwcp_proto::session::timing::SessionTiming;
use dwcp_proto::wire::hello::{FEATURE_PAGES_DELTA, FEATURE_PAGES_ZSTD, FEATURE_RESUME_REGIONS};
use dwcp_proto::wire::peer::{Code, Message, PeerCoding, PeerMessage, RegionName};
use dwcp_proto::wire::vm::{PeerFinding, PeerFindings};
use serde_json::Value;

impl Core {
    /// Opens a session on a link that is ready.
    pub(super) fn open_source(&mut self, link: LinkId, waiter: LinkWaiter) {
        let LinkWaiter { session, open, memory, memory_bytes, reply } = waiter;
        let now = self.now();
        let live = self.live.get();
        let Some(entry) = self.links.get_mut(&link) else { return };
        let (lanes, features) = (entry.link.lanes(), entry.features());
        let number = entry.next_number;
        entry.next_number = number.next();
        let sink_region = open.sink_region.as_deref().unwrap_or(&open.region);
        let (coding, peer_coding) = match open.coding {
            CodingName::Passthrough => (Coding::Passthrough, PeerCoding::Passthrough),
            CodingName::Full => {
                let zstd_level = open.zstd_level.unwrap_or(live.zstd_level.or_lowest());
                (Coding::Full { zstd_level }, PeerCoding::Full)
            }
        };
        let spec = SourceSpec {
            session,
            number,
            what: SourceWhat::Region {
                region: RegionName::cut(sink_region),
                pages: memory.region.page_count(),
                coding: peer_coding,
            },
            lanes,
        };
        let pages = memory.region.page_count();
        let mut record = new_record(session, Role::Source, &open.region, pages);
        record.peer.clone_from(&entry.peer_name);
        record.peer_address = Some(open.peer.to_string());
        let (machine, actions) = SourceSession::open(spec, SessionTiming::default(), now);
        let mut state = Session::new(Machine::Source(machine), record);
        // What the peer can't decode is not sent: deltas need bases, so none are kept.
        let has = |feature| features & feature != 0;
        let base_pages = if has(FEATURE_PAGES_DELTA) { live.base_pages_max } else { 0 };
        let base_pages = base_pages / u64::from(lanes.max(1));
        let coding = if has(FEATURE_PAGES_ZSTD) { coding } else { Coding::Passthrough };
        state.plan = Some(Plan {
            memory,
            lanes,
            coding,
            measure_baseline: open.measure_baseline,
            base_pages_max: usize::try_from(base_pages).unwrap_or(usize::MAX),
        });
        state.link = Some(link);
        state.resumes = has(FEATURE_RESUME_REGIONS);
        state.key = Some(SessionKey { link, number });
        state.memory_bytes = memory_bytes;
        state.waiting = Some(Waiting { what: WaitingFor::Open, reply });
        self.add_session(state);
        self.source_actions(session, actions);
    }

    pub(super) fn on_session_open(&mut self, link: LinkId, peer: &str, message: &PeerMessage) {
        let PeerMessage::SessionOpen { session, number, region, pages, coding } = message else {
            return;
        };
        match self.open_sink(link, peer, (*session, *number), region.as_str(), *pages, *coding) {
            Ok(actions) => self.sink_actions(*session, actions),
            Err(error) => self.refuse_session(link, *session, *number, &error),
        }
    }

    /// Says no to a session that a peer asked for.
    pub(super) fn refuse_session(
        &mut self,
        link: LinkId,
        session: SessionId,
        number: SessionNumber,
        error: &ApiError,
    ) {
        self.counters.sessions_refused.add(error.code.name());
        let findings = findings_of(error);
        // Each finding has its own cure.
        let text = match findings.is_empty() {
            true => format!("{error}; {}", error.cure()),
            false => error.to_string(),
        };
        let refuse = PeerMessage::SessionRefuse {
            session,
            number,
            code: Code::cut(error.code.name()),
            message: Message::cut(&text),
            findings,
        };
        self.send_peer(link, refuse);
    }

    fn open_sink(
        &mut self,
        link: LinkId,
        peer: &str,
        (id, number): (SessionId, SessionNumber),
        region: &str,
        pages: u64,
        _coding: PeerCoding,
    ) -> Result<Vec<SinkAction>, ApiError> {
        let entry = self.links.get(&link);
        let lanes = entry.map_or(0, |entry| entry.link.lanes());
        let resumes = entry.is_some_and(|entry| entry.features() & FEATURE_RESUME_REGIONS != 0);
        let known = self.sessions.contains_key(&id) || self.history.find(id).is_some();
        if lanes == 0 || known || self.keys.contains_key(&SessionKey { link, number }) {
            return Err(ApiError::new(ApiCode::SessionState, "this session is known already"));
        }
        self.check_room()?;
        let not_for = || {
            let message = format!("region {region} does not accept data from {peer}");
            let cure = format!("register it at the sink with {peer} in accept_from");
            ApiError::new(ApiCode::NotAllowed, message).with("cure", cure)
        };
        // Whether a region exists is told only to those who may write to it.
        let entry = self.regions.find(region).ok_or_else(not_for)?;
        let any_peer = entry.accept_from.is_empty() && !self.identity.is_secure();
        if !any_peer && !entry.accept_from.iter().any(|name| name == peer) {
            return Err(not_for());
        }
        let have = entry.memory.region.page_count();
        if have != pages {
            let message = format!("region {region} has {have} pages, the source's has {pages}");
            return Err(ApiError::new(ApiCode::PeerRefused, message));
        }
        let memory_bytes = pages * self.config.memory.sink_bytes_per_page;
        self.check_memory(memory_bytes)?;
        let memory = self.regions.take(region, Role::Sink, id)?.memory.clone();
        let journal = self.journal.id();
        let spec = SinkSpec { session: id, number, lanes, journal, vm: None };
        let (machine, actions) = SinkSession::open(spec, SessionTiming::default(), self.now());
        let mut record = new_record(id, Role::Sink, region, pages);
        record.peer = peer.to_owned();
        let mut session = Session::new(Machine::Sink(machine), record);
        let coding = Coding::Passthrough;
        session.plan =
            Some(Plan { memory, lanes, coding, measure_baseline: false, base_pages_max: 0 });
        session.link = Some(link);
        session.resumes = resumes;
        session.key = Some(SessionKey { link, number });
        session.memory_bytes = memory_bytes;
        self.add_session(session);
        Ok(actions)
    }

    /// Whether another session may live.
    pub(super) fn check_room(&self) -> Result<(), ApiError> {
        self.check_not_draining()?;
        let waiting: usize = self.links.values().map(|entry| entry.waiters.len()).sum();
        let waiting = waiting + self.vm_sources.len() + self.vm_sinks.len();
        if self.sessions.len() + waiting < SESSIONS_LIVE_MAX {
            return Ok(());
        }
        let message = format!("{SESSIONS_LIVE_MAX} sessions are running already");
        Err(ApiError::new(ApiCode::Busy, message))
    }

    /// Whether a session may reserve so much more; what is only being kept makes room for it.
    pub(super) fn check_memory(&self, wanted: u64) -> Result<(), ApiError> {
        let waiting = self.links.values().flat_map(|entry| &entry.waiters);
        let reserved = self.sessions.values().map(|session| session.memory_bytes).sum::<u64>()
            + waiting.map(|waiter| waiter.memory_bytes).sum::<u64>()
            + self.vm_sources.values().map(|source| source.memory_bytes).sum::<u64>();
        let total = self.config.memory.sessions_bytes;
        let needed = reserved.saturating_add(wanted);
        if needed <= total {
            if needed.saturating_add(self.keeping_bytes()) > total {
                self.stop_keeping();
            }
            return Ok(());
        }
        let message = format!(
            "this session needs {wanted} bytes; {reserved} of {total} bytes are reserved already"
        );
        Err(ApiError::new(ApiCode::MemoryBudget, message)
            .with("wanted_bytes", wanted)
            .with("reserved_bytes", reserved)
            .with("total_bytes", total))
    }
}

/// The findings that an error carries for the client of the source.
fn findings_of(error: &ApiError) -> PeerFindings {
    let findings = error.details.get("findings").and_then(Value::as_array);
    let text = |finding: &Value, member: &str| {
        finding.get(member).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    PeerFindings::cut(findings.into_iter().flatten().map(|finding| PeerFinding {
        code: Code::cut(&text(finding, "code")),
        message: Message::cut(&text(finding, "message")),
        cure: Message::cut(&text(finding, "cure")),
    }))
}

/// The record of a session that begins now.
pub(super) fn new_record(
    session: SessionId,
    role: Role,
    region: &str,
    pages: u64,
) -> SessionRecord {
    SessionRecord::new(session, role, region, pages, unix_ms())
}
