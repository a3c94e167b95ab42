//! The core's opening of a virtual machine's session at the sink: may this peer send it, does it
//! fit, is there memory.
//!
//! Part of [`Core`], on the control thread. A peer that may not send a machine is not told whether
//! it exists. Nothing is promised before the QEMU here has told its facts and they fit.

use super::core::Core;
use super::kept::BeforeRead;
use super::opening::new_record;
use super::vm_opening::{VmSink, lane_of};
use super::vms::vm_error;
use crate::api::{ApiCode, ApiError, Role};
use crate::limits::VM_FACTS_TIMEOUT_NS;
use crate::migration::{Machine, Session, VmMemory, VmPart, window_log};
use crate::state::VmRecord;
use crate::vm::{Finding, Severity, VmFacts, VmNews, VmOrder, preflight};
use dwcp_proto::ids::{LaneId, LinkId, SessionId, SessionKey};
use dwcp_proto::session::sink::{SinkAction, SinkInput, SinkSession, SinkSpec};
use dwcp_proto::session::timing::SessionTiming;
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::limits::FINDINGS_MAX;
use dwcp_proto::wire::peer::{Code, Message, PeerMessage};
use dwcp_proto::wire::vm::{PeerFindings, VmOffer};
use serde_json::{Value, json};

impl Core {
    pub(super) fn on_vm_open(&mut self, link: LinkId, peer: &str, message: &PeerMessage) {
        let PeerMessage::VmOpen { session, number, vm } = message else { return };
        let key = SessionKey { link, number: *number };
        let admitted = self.admit_vm(link, peer, *session, key, vm);
        if let Err(error) = admitted {
            self.refuse_session(link, *session, *number, &error);
        }
    }

    fn admit_vm(
        &mut self,
        link: LinkId,
        peer: &str,
        id: SessionId,
        key: SessionKey,
        offer: &VmOffer,
    ) -> Result<(), ApiError> {
        self.check_vm_new(id, key)?;
        self.check_room()?;
        let name = offer.name.as_str();
        let not_for = || {
            let message = format!("virtual machine {name} is not accepted from {peer}");
            let cure = format!("attach it at the sink with --incoming --accept-from {peer}");
            ApiError::new(ApiCode::NotAllowed, message).with("cure", cure)
        };
        let entry = self.vms.find(name).ok_or_else(not_for)?;
        let any_peer = entry.vm.accept_from.is_empty() && !self.identity.is_secure();
        if !entry.vm.incoming || !(any_peer || entry.vm.accept_from.iter().any(|n| n == peer)) {
            return Err(not_for());
        }
        if let Some(used_by) = entry.used_by {
            self.supersede_parked(used_by, peer);
        }
        let vm = self.vms.take(name, Role::Sink, id)?;
        let (qmp, target) = (vm.qmp.clone(), vm.target());
        let sink = VmSink {
            link,
            peer: peer.to_owned(),
            number: key.number,
            offer: Box::new(offer.clone()),
            qmp,
            task: self.vm_host.sink(id, target, None),
            before: BeforeRead::Unasked,
            deadline: self.now() + Nanos(VM_FACTS_TIMEOUT_NS),
        };
        self.vm_sinks.insert(id, sink);
        Ok(())
    }

    /// A source that offers its machine anew owns it: what is parked here is of no use any more.
    fn supersede_parked(&mut self, id: SessionId, peer: &str) {
        let parked = self.sessions.get(&id).is_some_and(|session| {
            let doubts = matches!(&session.machine, Machine::Sink(sink) if sink.is_parked());
            (doubts || self.parked_view(session).is_some()) && session.record.peer == peer
        });
        if parked {
            let abort = PeerMessage::Abort {
                session: id,
                code: Code::cut("session_superseded"),
                message: Message::cut("the source runs the guest and offers it anew"),
            };
            self.sink_step(id, SinkInput::Peer(abort));
        }
    }

    fn check_vm_new(&self, id: SessionId, key: SessionKey) -> Result<(), ApiError> {
        let lanes = self.links.get(&key.link).map_or(0, |entry| entry.link.lanes());
        let asked = self.vm_sinks.values().any(|s| s.link == key.link && s.number == key.number);
        let known = self.sessions.contains_key(&id)
            || self.vm_sinks.contains_key(&id)
            || self.vm_settling.contains_key(&id)
            || self.history.find(id).is_some();
        if lanes == 0 || asked || known || self.keys.contains_key(&key) {
            return Err(ApiError::new(ApiCode::SessionState, "this session is known already"));
        }
        Ok(())
    }

    /// The task of a sink without a machine tells something.
    pub(super) fn on_vm_sink(&mut self, id: SessionId, news: VmNews) {
        match news {
            VmNews::Facts(facts) => {
                self.vm_has_memory(id, facts.ram_bytes);
                self.take_vm(id, &facts);
            }
            VmNews::Failed(error) => self.refuse_vm_sink(id, &vm_error(&error)),
            VmNews::Ended { .. } => {
                let message = "the task of this virtual machine ended";
                self.refuse_vm_sink(id, &ApiError::new(ApiCode::VmUnusable, message));
                self.vm_settled(id);
            }
            _ => {}
        }
    }

    /// Accepts a machine that fits, or says no.
    pub(super) fn take_vm(&mut self, id: SessionId, facts: &VmFacts) {
        match self.accept_vm(id, facts) {
            Ok(actions) => self.sink_actions(id, actions),
            Err(error) => self.refuse_vm_sink(id, &error),
        }
    }

    fn accept_vm(&mut self, id: SessionId, facts: &VmFacts) -> Result<Vec<SinkAction>, ApiError> {
        let Some(sink) = self.vm_sinks.get(&id) else { return Ok(Vec::new()) };
        let source: VmFacts = serde_json::from_str(sink.offer.facts.as_str()).map_err(|error| {
            let message = format!("the source's facts are not understood: {error}");
            ApiError::new(ApiCode::PeerRefused, message)
        })?;
        let findings = preflight(&source, facts);
        let (errors, warnings): (Vec<_>, Vec<_>) =
            findings.into_iter().partition(|finding| finding.severity == Severity::Error);
        if !errors.is_empty() {
            return Err(unfit(&errors));
        }
        let live = self.live.get();
        let (link, name) = (sink.link, sink.offer.name.as_str().to_owned());
        let mut terms = sink.offer.terms;
        let own = window_log(u64::MAX, self.config.memory.sessions_bytes);
        terms.window_log = terms.window_log.min(own);
        terms.base_pages = terms.base_pages.min(live.base_pages_max);
        if self.reads_before_at_sink(id, &terms, facts) {
            return Ok(Vec::new());
        }
        let before = self.vm_sinks.get_mut(&id).and_then(|sink| sink.before.taken());
        terms.before = before.as_ref().map(|read| read.before);
        terms.held = match terms.before {
            Some(_) => None,
            None => self.held_pages(link, &name, &terms),
        };
        let memory = VmMemory::of(&terms, Role::Sink);
        self.check_vm_memory(&memory)?;
        let Some(sink) = self.vm_sinks.remove(&id) else { return Ok(Vec::new()) };
        let VmSink { link, peer, number, offer, qmp, task, .. } = sink;
        let lanes = self.links.get(&link).map_or(1, |entry| entry.link.lanes());
        let told = PeerFindings::cut(warnings.iter().map(Finding::for_peer));
        let journal = self.journal.id();
        let spec = SinkSpec { session: id, number, lanes: 1, journal, vm: Some(terms) };
        let (machine, actions) = SinkSession::open(spec, SessionTiming::default(), self.now());
        let mut record = new_record(id, Role::Sink, "", terms.pages_max);
        record.peer = peer;
        record.vm = Some(VmRecord {
            name: offer.name.as_str().to_owned(),
            qmp,
            guest: Some(crate::vm::GuestState::Empty),
            stays_paused: offer.paused,
            warnings: warnings.into_iter().take(FINDINGS_MAX).collect(),
            ..VmRecord::default()
        });
        let mut part = VmPart::new(task, LaneId(lane_of(number, lanes)));
        part.terms = Some(terms);
        part.before = before;
        let mut session = Session::new(Machine::Sink(machine), record);
        session.vm = Some(Box::new(part));
        session.link = Some(link);
        session.key = Some(SessionKey { link, number });
        session.memory_bytes = memory.total();
        self.outdate_history(offer.name.as_str());
        self.add_session(session);
        if !told.is_empty() {
            self.send_session(id, PeerMessage::VmWarnings { session: id, findings: told });
        }
        Ok(actions)
    }

    /// Says no to a source whose machine was looked at.
    pub(super) fn refuse_vm_sink(&mut self, id: SessionId, error: &ApiError) {
        let Some(sink) = self.vm_sinks.remove(&id) else { return };
        self.refuse_session(sink.link, id, sink.number, error);
        let name = sink.offer.name.as_str().to_owned();
        self.settle_vm(id, name, sink.task, VmOrder::Discard);
    }

    /// A link is gone, and with it the offers that came over it.
    pub(super) fn vm_sinks_link_lost(&mut self, link: LinkId) {
        for (id, sink) in
            self.vm_sinks.extract_if(.., |_, sink| sink.link == link).collect::<Vec<_>>()
        {
            let name = sink.offer.name.as_str().to_owned();
            self.settle_vm(id, name, sink.task, VmOrder::Discard);
        }
    }
}

fn unfit(errors: &[Finding]) -> ApiError {
    let first = errors.first().map_or("", |finding| finding.message.as_str());
    let more = match errors.len() {
        0 | 1 => String::new(),
        count => format!(" (and {} more)", count - 1),
    };
    let findings: Vec<Value> = errors
        .iter()
        .map(|f| json!({ "code": f.code, "message": f.message, "cure": f.cure }))
        .collect();
    ApiError::new(ApiCode::VmUnfit, format!("the virtual machine does not fit: {first}{more}"))
        .with("findings", findings)
}
