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
use crate::state::{SessionRecord, SessionState, VmRecord};
use crate::vm::{GuestState, VmOrder};
use dwcp_proto::ids::{LinkId, SessionId};
use dwcp_proto::session::reason::{EndReason, StepError};
use dwcp_proto::session::resolve::{Conflict, RunAt};
use dwcp_proto::session::sink::{SinkInput, SinkReport};
use dwcp_proto::session::source::{SourceInput, SourceReport};
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::peer::{Outcome, PeerMessage};
use serde_json::{Value, json};
use std::time::Duration;

/// What to do about a guest that nobody may run for now.
const DOUBT_CURE: &str = "start the guest at neither end: the daemons settle it as soon as they \
    can talk; dwcp resolve decides it if they won't";

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
                let unheard = reason == EndReason::LinkLost || self.is_link_parked(id);
                let Some(session) = self.sessions.get_mut(&id) else { return };
                session.set_reason(&reason, Some(vm_cure(session, &reason)));
                if let Some(vm) = &mut session.record.vm {
                    vm.abort_owed = unheard || may_be_unheard(&reason);
                }
                if unheard {
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
                let cure = match reason {
                    EndReason::LinkLost | EndReason::TimedOut => DOUBT_CURE,
                    _ => reason.cure(),
                };
                session.set_reason(&reason, Some(cure));
                session.reconnect.get_or_insert((now, Nanos(REDIAL_WAIT_NS.0)));
                let code = match session.waiting.as_ref().map(|waiting| waiting.what) {
                    Some(WaitingFor::Resolve) => ApiCode::JournalFailed,
                    _ => ApiCode::SessionInDoubt,
                };
                let error = session.end_error(code, &reason).with("cure", cure);
                let error = error.with("session", id.to_string());
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
                    EndReason::LinkLost => Some(DOUBT_CURE),
                    _ => None,
                };
                session.set_reason(&reason, cure);
                self.note_record(id);
                let message = "the decision could not be written";
                self.answer_resolve(id, Err(ApiError::new(ApiCode::JournalFailed, message)));
            }
            SinkReport::Ended(reason) => {
                let Some(session) = self.sessions.get_mut(&id) else { return };
                session.set_reason(&reason, Some(vm_cure(session, &reason)));
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
        self.lose_link(link, &PeerError::Timeout { what: "the answer to the yield" });
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
            true => error.with("cure", session.record.cure.clone()),
            false => error.with("findings", json!(findings)),
        }
    }

    /// A task is over.
    pub(super) fn on_vm_ended(&mut self, id: SessionId, guest: GuestState) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let settled = is_settled(&session.record, session.state(), guest);
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
        let Some(outcome) = &part.outcome else { return };
        // Once it is told, the machine is free for the next.
        let in_use = part.task.is_some() || session.lanes_held != 0;
        let waits = in_use || (outcome.is_ok() && !resumed);
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
        if let Some(waiting) = &session.waiting {
            // Who waits for the end of a session is answered when it is in doubt.
            let phase = session.state().name();
            let error = match waiting.what {
                WaitingFor::Resolve => {
                    ApiError::new(ApiCode::SessionState, "another request of it is running")
                }
                _ => self.resolve_refused(id, StepError::NotNow { request: "resolve", phase }),
            };
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
            let error = self.resolve_refused(id, refused);
            self.answer_resolve(id, Err(error));
        } else {
            tracing::warn!(session = %id, %run, "an operator decided");
        }
    }

    /// Why an operator's word is not taken now, and when it will be.
    fn resolve_refused(&self, id: SessionId, refused: StepError) -> ApiError {
        let error = step_error(refused);
        let Some(session) = self.sessions.get(&id) else { return error };
        let error = error.with("state", session.state().name());
        let left = match (session.role(), session.state()) {
            (Role::Source, SessionState::Yielded) => {
                session.deadline().map(|at| Duration::from_nanos(at.since(self.now()).0))
            }
            (Role::Sink, SessionState::Verified) => self.silence_left(session),
            _ => None,
        };
        let Some(left) = left else {
            let cure = "only a session in doubt is resolved; dwcp cancel ends one under way";
            return error.with("cure", cure);
        };
        let (peer, seconds) = (&session.record.peer, left.as_secs() + 1);
        let message = format!(
            "session {id} is not in doubt yet: {peer} may still say how it ends, and is waited for \
             for {seconds} s more unless it is heard"
        );
        let cure = format!(
            "if the hosts can't talk, give dwcp resolve again in {seconds} s; else there will be \
             nothing to resolve"
        );
        ApiError { message, ..error.with("wait_s", seconds).with("cure", cure) }
    }

    /// For how long a session's peer may still be silent before its link is given up.
    fn silence_left(&self, session: &Session) -> Option<Duration> {
        let channel = self.links.get(&session.link?)?.channel.as_ref()?;
        let live = self.live.get();
        // It is looked at once every ping.
        let given_up = live.peer_dead_after + live.peer_ping_every;
        Some(given_up.saturating_sub(channel.heard().elapsed()))
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

/// Whether the QEMU at an end is where the session's end wants it.
pub(super) fn is_settled(record: &SessionRecord, state: SessionState, guest: GuestState) -> bool {
    let may_stand = || record.vm.as_ref().is_some_and(|vm| vm.may_stand(record.role));
    let here = guest == GuestState::Running || (guest == GuestState::Paused && may_stand());
    match (record.role, state) {
        (Role::Source, SessionState::Committed) => true,
        (Role::Sink, SessionState::Committed) => here,
        // Gone for good is as far as it gets.
        (Role::Source, _) => here || guest == GuestState::Gone,
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

/// What to do about the end of a virtual machine's session: its QEMU may know better than the
/// reason, whose own words speak of regions too.
fn vm_cure(session: &Session, reason: &EndReason) -> &'static str {
    let own = session.vm.as_ref().and_then(|part| part.cure);
    match reason {
        EndReason::VmFailed { .. } => own.unwrap_or(reason.cure()),
        EndReason::PeerFailed { code, .. } if code.as_str() == "load_failed" => {
            "the guest stays at the source. The standard error of the sink's QEMU names what it \
             can't take: give both QEMUs the same devices and options, start the sink's anew and \
             migrate again"
        }
        EndReason::PeerFailed { code, .. } if code.as_str() == "load_ended" => {
            "the guest stays at the source. See the standard error of the sink's QEMU and that \
             host's kernel log (a kill for want of memory is there), start QEMU anew and migrate \
             again"
        }
        EndReason::ClientAborted | EndReason::PeerAborted { .. } | EndReason::NotCommitted => {
            "the guest stays at the source; migrate it again when wanted"
        }
        EndReason::Refused { .. } => "do what the sink's words say, then migrate again",
        EndReason::LinkLost
        | EndReason::TimedOut
        | EndReason::LaneFailed { .. }
        | EndReason::PeerFailed { .. }
        | EndReason::Restarted => {
            "the guest stays at the source; migrate it again when the cause is mended"
        }
        EndReason::Journal
        | EndReason::OutcomeUnknown
        | EndReason::Resolved { .. }
        | EndReason::Violation { .. } => reason.cure(),
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
        "paused": vm.stays_paused, "opaque": vm.opaque,
        "before_pages": vm.before_pages, "warnings": vm.warnings,
        "verify_ms": seconds(session.verify_ns) * 1e3,
        "commit_ms": seconds(now.since(session.times.commit).0) * 1e3,
        "counters": record.counters,
    })
}
