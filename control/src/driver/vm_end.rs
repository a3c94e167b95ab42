//! The core's ends of virtual machines' sessions: what the task is told, when the client is
//! answered, what an operator may decide.
//!
//! Part of [`Core`], on the control thread. The guest is resumed at the sink only in the step that
//! has the commit's record on disk, and kept at the source only by an end that leaves it there.

use super::core::Core;
use super::reports::{end_code, seconds};
use super::requests::step_error;
use crate::api::{ApiCode, ApiError, Reply, Role};
use crate::limits::{REDIAL_WAIT_NS, VM_END_TIMEOUT_NS, VM_RESUMED_TIMEOUT_NS};
use crate::migration::{Machine, Session, Waiting, WaitingFor};
use crate::peer::PeerError;
use crate::state::{SessionState, VmRecord};
use crate::vm::{GuestState, VmOrder};
use dwcp_proto::ids::{LinkId, SessionId};
use dwcp_proto::session::reason::EndReason;
use dwcp_proto::session::resolve::{Conflict, RunAt};
use dwcp_proto::session::sink::{SinkInput, SinkReport};
use dwcp_proto::session::source::{SourceInput, SourceReport};
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::peer::{Outcome, PeerMessage};
use serde_json::{Value, json};

impl Core {
    /// The source's machine tells something about a virtual machine.
    pub(super) fn report_vm_source(&mut self, id: SessionId, report: SourceReport) {
        let now = self.now();
        match report {
            SourceReport::Opened => self.begin_vm(id),
            SourceReport::RoundDone { .. } => {}
            SourceReport::Committed => {
                self.end_vm(id, VmOrder::Release, now + Nanos(VM_RESUMED_TIMEOUT_NS), Ok(()));
            }
            SourceReport::Ended(reason) => {
                let Some(session) = self.sessions.get_mut(&id) else { return };
                session.set_reason(&reason, vm_cure(session, &reason));
                if let Some(vm) = &mut session.record.vm {
                    vm.abort_owed = may_be_unheard(&reason);
                }
                if reason == EndReason::LinkLost {
                    let record = session.record.clone();
                    self.owe_abort(&record);
                }
                let order = match reason {
                    EndReason::ClientAborted => VmOrder::Cancel,
                    _ => VmOrder::Keep,
                };
                let error = self.vm_end_error(id, &reason);
                self.end_vm(id, order, now + Nanos(VM_END_TIMEOUT_NS), Err(error));
            }
            SourceReport::InDoubt(reason) => {
                let Some(session) = self.sessions.get_mut(&id) else { return };
                session.set_reason(&reason, Some(ApiCode::SessionInDoubt.cure()));
                session.reconnect.get_or_insert((now, Nanos(REDIAL_WAIT_NS.0)));
                let code = match session.waiting.as_ref().map(|waiting| waiting.what) {
                    Some(WaitingFor::Resolve) => ApiCode::JournalFailed,
                    _ => ApiCode::SessionInDoubt,
                };
                let error = session.end_error(code, &reason).with("session", id.to_string());
                if let Some(waiting) = session.waiting.take() {
                    self.answer(waiting.reply, Err(error));
                }
            }
            SourceReport::Conflict(conflict) => self.note_conflict(id, conflict),
        }
    }

    /// The sink's machine tells something about a virtual machine.
    pub(super) fn report_vm_sink(&mut self, id: SessionId, report: SinkReport) {
        let end_by = self.now() + Nanos(VM_END_TIMEOUT_NS);
        match report {
            SinkReport::Opened | SinkReport::Verified => {}
            SinkReport::Committed => {
                let vm = self.sessions.get(&id).and_then(|session| session.record.vm.as_ref());
                let order = vm.map_or(VmOrder::Resume, VmRecord::arrival);
                self.end_vm(id, order, end_by, Ok(()));
            }
            SinkReport::InDoubt(reason) => {
                let Some(session) = self.sessions.get_mut(&id) else { return };
                let cure = match reason {
                    EndReason::LinkLost => Some(ApiCode::SessionInDoubt.cure()),
                    _ => None,
                };
                session.set_reason(&reason, cure);
                self.note_record(id);
                let message = "the decision could not be written";
                self.answer_resolve(id, Err(ApiError::new(ApiCode::JournalFailed, message)));
            }
            SinkReport::Ended(reason) => {
                let Some(session) = self.sessions.get_mut(&id) else { return };
                session.set_reason(&reason, vm_cure(session, &reason));
                self.end_vm(id, VmOrder::Discard, end_by, Ok(()));
            }
            SinkReport::Conflict(conflict) => self.note_conflict(id, conflict),
        }
    }

    /// Tells the task how to end and answers who waits for a decision; the client of a migration is
    /// answered when the guest is where it belongs.
    fn end_vm(&mut self, id: SessionId, order: VmOrder, by: Nanos, outcome: Result<(), ApiError>) {
        self.drive_again(id);
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let migrate = session.waiting.as_ref().is_some_and(|w| w.what == WaitingFor::Migrate);
        match &mut session.vm {
            Some(part) => {
                part.end(order);
                part.give_up_at = Some(by);
                part.outcome = migrate.then_some(outcome);
            }
            // One that ended before this daemon began, or was only asked about.
            None => return,
        }
        let state = session.state();
        self.answer_resolve(id, Ok(json!({ "session": id, "state": state })));
        self.finish_vm(id);
    }

    /// A yield that is still on its way must not arrive after a decision against it: its connection
    /// ends before the decision is written, and a new one begins with the decision.
    fn forget_yield(&mut self, link: LinkId) {
        if let Some(channel) = self.links.get(&link).and_then(|entry| entry.channel.as_ref()) {
            channel.abort();
        }
        self.drop_link(link, &PeerError::Timeout { what: "the answer to the yield" });
    }

    fn answer_resolve(&mut self, id: SessionId, outcome: Result<Value, ApiError>) {
        let waiting = self.sessions.get_mut(&id).and_then(|session| {
            session.waiting.take_if(|waiting| waiting.what == WaitingFor::Resolve)
        });
        if let Some(waiting) = waiting {
            self.answer(waiting.reply, outcome);
        }
    }

    fn vm_end_error(&self, id: SessionId, reason: &EndReason) -> ApiError {
        let Some(session) = self.sessions.get(&id) else {
            return ApiError::new(ApiCode::SessionFailed, reason.to_string());
        };
        let findings = session.vm.as_ref().map(|part| part.findings.as_slice()).unwrap_or_default();
        let code = match findings.is_empty() {
            true => end_code(reason),
            false => ApiCode::VmUnfit,
        };
        let error = session.end_error(code, reason);
        // The code's own cure speaks of regions.
        let error = match code {
            ApiCode::SessionFailed => error.with("cure", session.record.cure.clone()),
            _ => error,
        };
        let error = match reason {
            EndReason::VmFailed { code, .. } => error.with("vm_code", *code),
            EndReason::PeerFailed { code, .. } | EndReason::Refused { code, .. } => {
                error.with("peer_code", code.as_str())
            }
            _ => error,
        };
        match findings.is_empty() {
            true => error,
            false => error.with("findings", json!(findings)),
        }
    }

    /// A task is over.
    pub(super) fn on_vm_ended(&mut self, id: SessionId, guest: GuestState) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let paused = session.record.vm.as_ref().is_some_and(|vm| vm.stays_paused);
        let settled = is_settled(session.role(), session.state(), paused, guest);
        let Some(part) = &mut session.vm else { return };
        part.task = None;
        let told = part.ending;
        if let Some(vm) = &mut session.record.vm {
            vm.guest = Some(guest);
            vm.settled |= told && settled;
            if vm.settled {
                vm.saved = None;
            }
        }
        if !told {
            self.vm_failed(id, "vm_task_ended", "nobody drives this QEMU any more");
        }
        self.finish_vm(id);
        self.release_use(id);
        self.retire_if_over(id);
    }

    /// Answers the client of a migration once there is nothing left to wait for.
    pub(super) fn finish_vm(&mut self, id: SessionId) {
        let now = self.now();
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let resumed = |vm: &VmRecord| vm.stays_paused || vm.resumed_at_unix_us.is_some();
        let resumed = session.record.vm.as_ref().is_some_and(resumed);
        let Some(part) = &mut session.vm else { return };
        let late = part.give_up_at.is_some_and(|by| by <= now);
        let waits = match &part.outcome {
            None => return,
            Some(Ok(())) => part.task.is_some() || !resumed,
            Some(Err(_)) => part.task.is_some(),
        };
        if waits && !late {
            return;
        }
        let Some(outcome) = part.outcome.take() else { return };
        session.update_record();
        let guest = session.record.vm.as_ref().and_then(|vm| vm.guest);
        let outcome = match outcome {
            Ok(()) => Ok(migrate_value(session, now)),
            Err(error) => Err(error.with("session", id.to_string()).with("guest", json!(guest))),
        };
        if let Some(waiting) = session.waiting.take() {
            self.answer(waiting.reply, outcome);
        }
        self.retire_if_over(id);
    }

    /// Stops waiting for guests that can't be brought to where they belong.
    pub(super) fn tick_vm_ends(&mut self, now: Nanos) {
        let late = |session: &&Session| {
            let part = session.vm.as_ref();
            part.is_some_and(|part| part.give_up_at.is_some_and(|by| by <= now))
        };
        let late: Vec<SessionId> = self.sessions.values().filter(late).map(Session::id).collect();
        for id in late {
            let Some(session) = self.sessions.get_mut(&id) else { continue };
            if let Some(part) = &mut session.vm
                && part.task.take().is_some()
            {
                tracing::error!(session = %id, "a guest could not be brought to where it belongs");
                if let Some(vm) = &mut session.record.vm {
                    vm.guest = Some(GuestState::Unknown);
                }
            }
            self.finish_vm(id);
            if let Some(part) = self.sessions.get_mut(&id).and_then(|s| s.vm.as_mut()) {
                part.give_up_at = None;
            }
            self.retire_if_over(id);
        }
    }

    /// An operator ends a doubt.
    pub(super) fn session_resolve(&mut self, id: SessionId, run: RunAt, reply: Reply) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return self.resolve_ended(id, run, reply);
        };
        if session.waiting.is_some() {
            let error = ApiError::new(ApiCode::SessionState, "another request of it is running");
            return self.answer(reply, Err(error));
        }
        session.waiting = Some(Waiting { what: WaitingFor::Resolve, reply });
        let link = session.link.filter(|_| session.state() == SessionState::InDoubt);
        if let (Machine::Source(_), RunAt::Source, Some(link)) = (&session.machine, run, link) {
            self.forget_yield(link);
        }
        let Some(session) = self.sessions.get(&id) else { return };
        let refused = match session.machine {
            Machine::Source(_) => self.source_request(id, SourceInput::Resolve(run)),
            Machine::Sink(_) => self.sink_request(id, SinkInput::Resolve(run)),
        };
        if let Err(refused) = refused {
            self.answer_resolve(id, Err(step_error(refused)));
        } else {
            tracing::warn!(session = %id, %run, "an operator decided");
        }
    }

    /// The end of a session and what an operator decided contradict each other.
    pub(super) fn note_conflict(&mut self, id: SessionId, conflict: Conflict) {
        self.counters.conflicts.add(conflict.name());
        let kind = conflict.name();
        tracing::error!(session = %id, kind, "the peer's journal contradicts an operator");
        if let Some(session) = self.sessions.get_mut(&id) {
            session.record.conflict = Some(conflict);
        }
        self.tell_state(id);
    }

    /// A sink says of an ended session that it runs what this end kept; true if that is news.
    pub(super) fn hear_late(&mut self, id: SessionId, peer: &str, message: &PeerMessage) -> bool {
        let runs = matches!(
            message,
            PeerMessage::Committed { .. }
                | PeerMessage::Outcome { outcome: Outcome::Committed, .. }
        );
        let kept = self.history.find(id).is_some_and(|record| {
            let ours = record.peer == peer && record.role == Role::Source;
            ours && record.state != SessionState::Committed && record.conflict.is_none()
        });
        if runs && kept {
            let conflict = Conflict::BothRun;
            self.counters.conflicts.add(conflict.name());
            tracing::error!(session = %id, "the peer runs what was kept here");
            self.change_history(id, |record| record.conflict = Some(conflict));
        }
        runs && kept
    }
}

/// Whether the QEMU at an end is where the session's end wants it; `paused`: it may stand still.
pub(super) fn is_settled(role: Role, state: SessionState, paused: bool, guest: GuestState) -> bool {
    match (role, state) {
        (Role::Source, SessionState::Committed) => true,
        (Role::Sink, SessionState::Committed) => {
            guest == GuestState::Running || (paused && guest == GuestState::Paused)
        }
        // Gone for good is as far as it gets.
        (Role::Source, _) => matches!(guest, GuestState::Running | GuestState::Gone),
        (Role::Sink, _) => true,
    }
}

/// Whether the sink may know nothing of this end of the source: its guest may stand loaded there.
fn may_be_unheard(reason: &EndReason) -> bool {
    let said_by_peer = matches!(
        reason,
        EndReason::Refused { .. } | EndReason::PeerFailed { .. } | EndReason::NotCommitted
    );
    !said_by_peer && !matches!(reason, EndReason::Resolved { .. })
}

/// What to do about a virtual machine's end, if its QEMU knows better than the reason does.
fn vm_cure(session: &Session, reason: &EndReason) -> Option<&'static str> {
    let own = session.vm.as_ref().and_then(|part| part.cure);
    match reason {
        EndReason::VmFailed { .. } => own,
        EndReason::PeerFailed { code, .. } if code.as_str() == "load_failed" => Some(
            "the guest stays at the source. The standard error of the sink's QEMU names what it \
             can't take: give both QEMUs the same devices and options, start the sink's anew and \
             migrate again",
        ),
        EndReason::PeerFailed { code, .. } if code.as_str() == "load_ended" => Some(
            "the guest stays at the source. See the standard error of the sink's QEMU and that \
             host's kernel log (a kill for want of memory is there), start QEMU anew and migrate \
             again",
        ),
        EndReason::LinkLost | EndReason::LaneFailed { .. } | EndReason::PeerFailed { .. } => {
            Some("the guest stays at the source; migrate it again when the cause is mended")
        }
        _ => None,
    }
}

/// The answer of `vm.migrate`.
fn migrate_value(session: &Session, now: Nanos) -> Value {
    let record = &session.record;
    let vm = record.vm.clone().unwrap_or_default();
    let (stopped, resumed) = (vm.stopped_at_unix_us, vm.resumed_at_unix_us);
    let blackout_us = stopped.zip(resumed).map(|(from, to)| to.saturating_sub(from));
    json!({
        "session": session.id(), "state": record.state, "vm": vm.name, "peer_name": record.peer,
        "seconds": seconds(now.since(session.opened_at).0),
        "stopped_at_unix_us": stopped, "resumed_at_unix_us": resumed,
        "blackout_ms": blackout_us.map(|us| us.div_ceil(1000)),
        "opaque": vm.opaque,
        "verify_ms": seconds(session.verify_ns) * 1e3,
        "commit_ms": seconds(now.since(session.times.commit).0) * 1e3,
        "counters": record.counters,
    })
}
