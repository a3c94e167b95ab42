//! The core's opening of a virtual machine's session at the source: first the QEMU's facts, then
//! the link, then the offer to the sink.
//!
//! Part of [`Core`], on the control thread. Until the offer is out there is no machine; the client
//! can end the session all the same, and the guest has not been touched.

use super::core::{Core, unix_ms};
use super::held::held_offer;
use super::kept::BeforeRead;
use super::opening::new_record;
use super::vms::vm_error;
use crate::api::{ApiCode, ApiError, CodingName, OnTimeoutName, Reply, Role, Topic, VmMigrate};
use crate::limits::{STREAM_PAGES_EXTRA, VM_FACTS_TIMEOUT_NS};
use crate::migration::{Machine, Session, VmMemory, VmPart, Waiting, WaitingFor, window_log};
use crate::peer::random;
use crate::state::{SessionRecord, VmRecord};
use crate::vm::{
    GuestState, MigrateOptions, OnTimeout, VmFacts, VmNews, VmOrder, VmTarget, VmTask,
};
use dwcp_dataplane::port::StreamCoding;
use dwcp_proto::ids::{LaneId, LinkId, SessionId, SessionKey, SessionNumber};
use dwcp_proto::session::source::{SourceSession, SourceSpec, SourceWhat};
use dwcp_proto::session::timing::SessionTiming;
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::hello::{FEATURE_PAGES_DELTA, FEATURE_PAGES_ZSTD, FEATURE_STREAM};
use dwcp_proto::wire::limits::{PAGE_BYTES, REGION_PAGES_MAX, UNDELIVERED_BYTES_MAX};
use dwcp_proto::wire::peer::{PeerCoding, RegionName};
use dwcp_proto::wire::vm::{FactsText, VmOffer, VmTerms};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A source that waits for its QEMU's facts or for its link.
#[derive(Debug)]
pub(super) struct VmSource {
    migrate: VmMigrate,
    qmp: PathBuf,
    task: VmTask,
    reply: Reply,
    /// Once the facts are there.
    pub(super) offer: Option<Box<VmOffer>>,
    /// What the facts say.
    guest: Option<GuestState>,
    pub(super) memory_bytes: u64,
    /// What both ends may hold from before.
    pub(super) before: BeforeRead<()>,
    /// For the facts, or for what is from before.
    pub(super) deadline: Nanos,
    started_unix_ms: u64,
}

/// All sources that wait.
pub(super) type VmSources = BTreeMap<SessionId, VmSource>;

/// A sink that waits for its QEMU's facts.
#[derive(Debug)]
pub(super) struct VmSink {
    pub(super) link: LinkId,
    pub(super) peer: String,
    pub(super) number: SessionNumber,
    pub(super) offer: Box<VmOffer>,
    pub(super) qmp: PathBuf,
    pub(super) task: VmTask,
    /// What both ends may hold from before; with the facts, while it is read.
    pub(super) before: BeforeRead<Box<VmFacts>>,
    pub(super) deadline: Nanos,
}

/// All sinks that wait.
pub(super) type VmSinks = BTreeMap<SessionId, VmSink>;

impl Core {
    pub(super) fn vm_migrate(&mut self, migrate: VmMigrate, reply: Reply) {
        let session = SessionId(random());
        let room = self.check_room();
        let taken = room.and_then(|()| self.vms.take(&migrate.name, Role::Source, session));
        let qmp = match taken {
            Ok(vm) => vm.qmp.clone(),
            Err(error) => return self.answer(reply, Err(error)),
        };
        let target = VmTarget::Monitor { qmp: qmp.clone() };
        let task = self.vm_host.source(session, target, None);
        let deadline = self.now() + Nanos(VM_FACTS_TIMEOUT_NS);
        let name = migrate.name.clone();
        let source = VmSource {
            migrate,
            qmp,
            task,
            reply,
            offer: None,
            guest: None,
            memory_bytes: 0,
            before: BeforeRead::Unasked,
            deadline,
            started_unix_ms: unix_ms(),
        };
        self.vm_sources.insert(session, source);
        tracing::info!(%session, vm = %name, "migration asked for");
        let params = json!({
            "session": session, "role": Role::Source, "state": "opening", "reason": null,
            "vm": name,
        });
        self.notify(Topic::SessionState, session, &params);
    }

    /// The task of a source without a machine tells something.
    pub(super) fn on_vm_source(&mut self, id: SessionId, news: VmNews) {
        match news {
            VmNews::Facts(facts) => {
                self.vm_has_memory(id, facts.ram_bytes);
                if let Err(error) = self.offer_vm(id, &facts) {
                    self.fail_vm_source(id, error);
                }
            }
            VmNews::Failed(error) => self.fail_vm_source(id, vm_error(&error)),
            VmNews::Ended { .. } => {
                let message = "the task of this virtual machine ended";
                self.fail_vm_source(id, ApiError::new(ApiCode::VmUnusable, message));
                self.vm_settled(id);
            }
            _ => {}
        }
    }

    /// Makes the offer and asks for the link.
    fn offer_vm(&mut self, id: SessionId, facts: &VmFacts) -> Result<(), ApiError> {
        let terms = self.vm_terms(facts);
        let Some(source) = self.vm_sources.get(&id) else { return Ok(()) };
        let unusable = |message: String| ApiError::new(ApiCode::VmUnusable, message);
        let text = serde_json::to_string(facts).map_err(|e| unusable(e.to_string()))?;
        let stands = facts.is_paused();
        let facts = FactsText::new(&text)
            .map_err(|e| unusable(format!("the facts of this virtual machine: {e}")))?;
        let coding = match source.migrate.mode {
            CodingName::Full => PeerCoding::Full,
            CodingName::Passthrough => PeerCoding::Passthrough,
        };
        let name = RegionName::cut(&source.migrate.name);
        let memory = VmMemory::of(&terms, Role::Source);
        self.check_vm_memory(&memory)?;
        if let Some(source) = self.vm_sources.get_mut(&id) {
            // A guest that its user has paused is paused wherever it is.
            let paused = source.migrate.paused || stands;
            source.guest = Some(if stands { GuestState::Paused } else { GuestState::Running });
            source.offer = Some(Box::new(VmOffer { name, facts, coding, terms, paused }));
            source.memory_bytes = memory.total();
            source.deadline = Nanos(u64::MAX);
        }
        self.link_vm_source(id)
    }

    /// Goes on with an offer as soon as there is a link to the sink.
    pub(super) fn link_vm_source(&mut self, id: SessionId) -> Result<(), ApiError> {
        let Some(source) = self.vm_sources.get(&id) else { return Ok(()) };
        let peer = source.migrate.peer.clone();
        let link = self.link_to(&peer).map_err(|e| e.to_api())?;
        let Some(entry) = self.links.get_mut(&link) else { return Ok(()) };
        if entry.link.takes_offers() {
            self.open_vm_source(link, id);
        } else {
            entry.vm_waiters.push(id);
        }
        Ok(())
    }

    /// What this end would reserve for such a guest.
    fn vm_terms(&self, facts: &VmFacts) -> VmTerms {
        let live = self.live.get();
        let page = u64::try_from(PAGE_BYTES).unwrap_or(u64::MAX);
        let pages_max = facts.ram_bytes / page + STREAM_PAGES_EXTRA;
        let pages_max = pages_max.min(REGION_PAGES_MAX);
        VmTerms {
            window_log: window_log(facts.ram_bytes, self.config.memory.sessions_bytes),
            pages_max,
            base_pages: live.base_pages_max.min(pages_max),
            undelivered_bytes_max: live.window_bytes_max.clamp(1 << 20, UNDELIVERED_BYTES_MAX),
            before: None,
            held: None,
        }
    }

    /// Whether a session may reserve this, with the parts in the refusal.
    pub(super) fn check_vm_memory(&self, memory: &VmMemory) -> Result<(), ApiError> {
        self.check_memory(memory.total()).map_err(|mut error| {
            error.message = format!("{}: {memory}", error.message);
            error
                .with("tables_bytes", memory.tables_bytes)
                .with("bases_bytes", memory.bases_bytes)
                .with("undelivered_bytes", memory.held_bytes)
                .with("window_bytes", memory.window_bytes)
        })
    }

    /// Opens the session of a virtual machine on a link that is ready.
    pub(super) fn open_vm_source(&mut self, link: LinkId, id: SessionId) {
        let now = self.now();
        let live = self.live.get();
        let Some(entry) = self.links.get(&link) else { return };
        let (lanes, features) = (entry.link.lanes(), entry.features());
        let has = |feature| features & feature != 0;
        if !has(FEATURE_STREAM) {
            let message = format!("{} can't carry virtual machines", entry.peer_name);
            return self.fail_vm_source(id, ApiError::new(ApiCode::VmUnsupported, message));
        }
        if self.reads_before(link, id) {
            return;
        }
        // An aborted one does not wait any more.
        let Some(mut source) = self.vm_sources.remove(&id) else { return };
        let Some(mut offer) = source.offer else { return };
        let before = source.before.taken();
        offer.terms.before = before.as_ref().map(|read| read.before);
        let Some(entry) = self.links.get_mut(&link) else { return };
        let number = entry.next_number;
        entry.next_number = number.next();
        // What the peer can't decode is not sent: deltas need bases, so none are kept.
        let full = offer.coding == PeerCoding::Full && has(FEATURE_PAGES_ZSTD);
        if !full {
            offer.coding = PeerCoding::Passthrough;
        }
        if !(full && has(FEATURE_PAGES_DELTA)) {
            offer.terms.base_pages = 0;
        }
        offer.terms.held = held_offer(features, offer.terms.base_pages);
        let pages = offer.terms.pages_max;
        let mut record = new_record(id, Role::Source, "", pages);
        record.peer.clone_from(&entry.peer_name);
        record.peer_address = Some(source.migrate.peer.to_string());
        record.started_unix_ms = source.started_unix_ms;
        record.vm = Some(VmRecord {
            name: source.migrate.name.clone(),
            qmp: source.qmp,
            guest: source.guest,
            stays_paused: offer.paused,
            ..VmRecord::default()
        });
        let spec = SourceSpec { session: id, number, what: SourceWhat::Vm(offer), lanes: 1 };
        let (machine, actions) = SourceSession::open(spec, SessionTiming::default(), now);
        let mut part = VmPart::new(source.task, LaneId(lane_of(number, lanes)));
        part.coding = match full {
            true => StreamCoding::Pages { level: live.zstd_level, window_log: 0 },
            false => StreamCoding::Passthrough,
        };
        part.before = before;
        part.options = options(&source.migrate);
        let mut session = Session::new(Machine::Source(machine), record);
        session.vm = Some(Box::new(part));
        session.link = Some(link);
        session.key = Some(SessionKey { link, number });
        session.memory_bytes = source.memory_bytes;
        session.waiting = Some(Waiting { what: WaitingFor::Migrate, reply: source.reply });
        self.outdate_history(&source.migrate.name);
        self.add_session(session);
        self.source_actions(id, actions);
    }

    /// The record of a session that has no machine yet.
    pub(super) fn vm_source_record(&self, id: SessionId) -> Option<SessionRecord> {
        let source = self.vm_sources.get(&id)?;
        let mut record = new_record(id, Role::Source, "", 0);
        record.peer_address = Some(source.migrate.peer.to_string());
        record.started_unix_ms = source.started_unix_ms;
        let (name, qmp) = (source.migrate.name.clone(), source.qmp.clone());
        record.vm = Some(VmRecord { name, qmp, ..VmRecord::default() });
        Some(record)
    }

    /// Ends a session that has no machine yet; the guest was not touched.
    pub(super) fn fail_vm_source(&mut self, id: SessionId, error: ApiError) {
        let Some(source) = self.vm_sources.remove(&id) else { return };
        let VmSource { migrate, task, reply, .. } = source;
        for entry in self.links.values_mut() {
            entry.vm_waiters.retain(|waiter| *waiter != id);
        }
        let state = if error.code == ApiCode::SessionAborted { "aborted" } else { "failed" };
        let params = json!({
            "session": id, "role": Role::Source, "state": state, "reason": error.message,
            "vm": migrate.name, "ended_unix_ms": unix_ms(),
        });
        self.notify(Topic::SessionState, id, &params);
        self.settle_vm(id, migrate.name, task, VmOrder::Keep);
        self.answer(reply, Err(error.with("session", id.to_string())));
    }

    /// A client gives up a session that has no machine yet; false if there is none.
    pub(super) fn abort_vm_source(&mut self, id: SessionId) -> bool {
        if !self.vm_sources.contains_key(&id) {
            return false;
        }
        let message = "a client ended the session";
        self.fail_vm_source(id, ApiError::new(ApiCode::SessionAborted, message));
        true
    }

    /// Ends what waits too long for its QEMU's facts.
    pub(super) fn tick_vm_openings(&mut self, now: Nanos) {
        let late = |deadline: Nanos| deadline <= now;
        let sources = self.vm_sources.iter().filter(|(_, source)| late(source.deadline));
        for id in sources.map(|(id, _)| *id).collect::<Vec<_>>() {
            if self.does_without_before(id) {
                continue;
            }
            let message = "QEMU did not tell what it is in time";
            self.fail_vm_source(id, ApiError::new(ApiCode::VmUnusable, message));
        }
        let sinks = self.vm_sinks.iter().filter(|(_, sink)| late(sink.deadline));
        for id in sinks.map(|(id, _)| *id).collect::<Vec<_>>() {
            if self.does_without_before(id) {
                continue;
            }
            let message = "QEMU at the sink did not tell what it is in time";
            self.refuse_vm_sink(id, &ApiError::new(ApiCode::VmUnusable, message));
        }
    }
}

/// The lane that serves a virtual machine's session, the same at both ends.
pub(super) fn lane_of(number: SessionNumber, lanes: u16) -> u16 {
    u16::try_from(number.0 % u32::from(lanes.max(1))).unwrap_or(0)
}

fn options(migrate: &VmMigrate) -> MigrateOptions {
    MigrateOptions {
        downtime_limit_ms: migrate.downtime_limit_ms,
        bandwidth_bytes_per_second: migrate.bandwidth_bytes_per_second,
        timeout_ms: migrate.timeout_ms,
        on_timeout: match migrate.on_timeout.unwrap_or_default() {
            OnTimeoutName::Abort => OnTimeout::Abort,
            OnTimeoutName::Throttle => OnTimeout::Throttle,
            OnTimeoutName::Ramp => OnTimeout::Ramp,
        },
    }
}
