//! The core's work on virtual machines whose session has no machine here: what a restart finds, and
//! guests of ended sessions on their way to where they belong.
//!
//! Part of [`Core`], on the control thread. What the journal says decides: a source that never
//! yielded runs its guest again, a sink that committed resumes it, a doubt stays one.

use super::core::{Core, Written, unix_ms};
use super::vm_end::is_settled;
use super::vms::vm_error;
use crate::api::{ApiCode, ApiError, Reply, Role};
use crate::limits::{REDIAL_WAIT_NS, VM_END_TIMEOUT_NS};
use crate::migration::{Machine, Session, VmPart};
use crate::state::{AttachedVm, Change, SessionRecord, SessionState, VmRecord, recover};
use crate::vm::{GuestState, VmNews, VmOrder, VmTarget, VmTask};
use dwcp_proto::ids::{LaneId, SessionId};
use dwcp_proto::session::record::SourceRecord;
use dwcp_proto::session::resolve::RunAt;
use dwcp_proto::session::sink::SinkSession;
use dwcp_proto::session::source::SourceSession;
use dwcp_proto::session::timing::SessionTiming;
use dwcp_proto::time::Nanos;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// A task that brings the guest of an ended session to where it belongs.
#[derive(Debug)]
pub(super) struct Settling {
    name: String,
    /// Held so that the task goes on.
    _task: VmTask,
    by: Nanos,
    /// A client that asked for it.
    reply: Option<Reply>,
}

/// All of them.
pub(super) type VmSettling = BTreeMap<SessionId, Settling>;

impl Core {
    /// Settles what the journal left open, the oldest record first. Of one virtual machine only the
    /// newest record says where its guest belongs.
    pub(super) fn recover_all(&mut self, mut records: Vec<SessionRecord>) {
        let mut seen = BTreeSet::new();
        for record in records.iter_mut().rev() {
            if let Some(vm) = &mut record.vm
                && !seen.insert(vm.name.clone())
            {
                vm.settled = true;
            }
        }
        records.into_iter().for_each(|record| self.recover(record));
    }

    /// A new session of a virtual machine: what older ones left to be done is not to be done.
    pub(super) fn outdate_history(&mut self, name: &str) {
        let of_vm = |record: &&SessionRecord| {
            record.vm.as_ref().is_some_and(|vm| vm.name == name && !vm.settled)
        };
        let open: Vec<SessionId> =
            self.history.newest_first().filter(of_vm).map(|record| record.session).collect();
        for id in open {
            self.change_history(id, |record| {
                if let Some(vm) = &mut record.vm {
                    vm.settled = true;
                }
            });
        }
    }

    fn is_newest_of_vm(&self, id: SessionId) -> bool {
        let name = |record: &SessionRecord| record.vm.as_ref().map(|vm| vm.name.clone());
        let Some(wanted) = self.history.find(id).and_then(name) else { return false };
        let live = self.sessions.values().any(|s| name(&s.record).as_ref() == Some(&wanted));
        let of_vm = self.history.newest_first().filter(|r| name(r).as_ref() == Some(&wanted));
        let newest = of_vm.max_by_key(|record| (record.started_unix_ms, record.session));
        !live && newest.is_some_and(|record| record.session == id)
    }

    /// Makes of a journal's record what it means now.
    fn recover(&mut self, mut record: SessionRecord) {
        let changed = recover(&mut record, unix_ms());
        if changed {
            let state = record.state.name();
            tracing::warn!(session = %record.session, state, "found a session of a stopped daemon");
            if let Some(vm) = &mut record.vm
                && record.role == Role::Source
                && record.source_record.is_none()
            {
                vm.abort_owed = true;
            }
            self.write(record.clone(), Vec::new(), Written::Note);
        }
        if record.vm.as_ref().is_some_and(|vm| vm.abort_owed) {
            self.owe_abort(&record);
        }
        let id = record.session;
        let awaited = match record.source_record {
            Some(SourceRecord::Resolved { .. }) => record.source_record,
            written if record.state == SessionState::InDoubt => written,
            _ => None,
        };
        if let Some(written) = awaited {
            let (machine, _) = SourceSession::restore(id, written, SessionTiming::default());
            let mut session = Session::new(Machine::Source(machine), record);
            session.reconnect = Some((Nanos(0), Nanos(REDIAL_WAIT_NS.0)));
            return self.revive_vm(session);
        }
        if record.is_parked() {
            let machine = SinkSession::restore_parked(id, self.journal.id());
            return self.revive_vm(Session::new(Machine::Sink(machine), record));
        }
        self.settle_recovered(&record);
        let forgotten = self.history.push(record.clone());
        if !forgotten.is_empty() {
            self.write(record, forgotten, Written::Note);
        }
    }

    /// A task for the QEMU of a session that a daemon before this one began.
    fn task_again(&self, id: SessionId, role: Role, vm: &VmRecord) -> VmTask {
        let (target, saved) = (VmTarget::Monitor { qmp: vm.qmp.clone() }, vm.saved.clone());
        match role {
            Role::Source => self.vm_host.source(id, target, saved),
            Role::Sink => self.vm_host.sink(id, target, saved),
        }
    }

    /// Makes a session live again, with a task for its QEMU that does nothing yet.
    fn revive_vm(&mut self, mut session: Session) {
        let (id, role) = (session.id(), session.role());
        if let Some(vm) = &session.record.vm
            && !vm.settled
        {
            let task = self.task_again(id, role, vm);
            self.vms.retake(&vm.name, id);
            let mut part = VmPart::new(task, LaneId(0));
            let keeps = session.record.source_record.is_some_and(SourceRecord::keeps);
            let gone = session.record.source_record.is_some_and(SourceRecord::gone);
            if keeps || gone {
                part.end(if keeps { VmOrder::Keep } else { VmOrder::Release });
                part.give_up_at = Some(self.now() + Nanos(VM_END_TIMEOUT_NS));
            }
            session.vm = Some(Box::new(part));
        }
        self.sessions.insert(id, session);
    }

    /// Starts a task anew for a session whose QEMU nobody drives and whose guest has to move.
    pub(super) fn drive_again(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(&id) else { return };
        let (Some(part), Some(vm)) = (&session.vm, &session.record.vm) else { return };
        if part.task.is_some() || part.ending || vm.settled {
            return;
        }
        let task = self.task_again(id, session.role(), vm);
        if let Some(part) = self.sessions.get_mut(&id).and_then(|s| s.vm.as_mut()) {
            part.task = Some(task);
        }
    }

    /// Brings the guest of an ended session to where the journal says that it belongs, unless a
    /// newer session of that machine has moved it since.
    fn settle_recovered(&mut self, record: &SessionRecord) {
        let Some(vm) = record.vm.as_ref().filter(|_| record.guest_waits()) else { return };
        let order = match (record.role, record.state) {
            (Role::Source, SessionState::Committed) => return,
            (Role::Source, _) => VmOrder::Keep,
            (Role::Sink, SessionState::Committed) => vm.arrival(),
            (Role::Sink, _) => VmOrder::Discard,
        };
        let id = record.session;
        let task = self.task_again(id, record.role, vm);
        self.vms.retake(&vm.name, id);
        self.settle_vm(id, vm.name.clone(), task, order);
    }

    /// Lets a task bring its guest to where it belongs.
    pub(super) fn settle_vm(&mut self, id: SessionId, name: String, task: VmTask, order: VmOrder) {
        if let Err(refused) = task.order(order) {
            tracing::debug!(?refused, "a task is over before it was told how to end");
        }
        let by = self.now() + Nanos(VM_END_TIMEOUT_NS);
        self.vm_settling.insert(id, Settling { name, _task: task, by, reply: None });
    }

    /// A task without a live session tells something.
    pub(super) fn on_vm_settling(&mut self, id: SessionId, news: VmNews) {
        match news {
            VmNews::Resumed { at_unix_us } => {
                let change = |record: &mut SessionRecord| {
                    if let Some(vm) = &mut record.vm {
                        vm.resumed_at_unix_us = Some(at_unix_us);
                        vm.guest = Some(GuestState::Running);
                        vm.settled = true;
                    }
                };
                self.change_history(id, change);
            }
            VmNews::Failed(error) => {
                tracing::error!(session = %id, code = error.code(), %error, "a guest of before");
                let (reason, cure) = (format!("{error} ({})", error.code()), error.cure());
                self.change_history(id, |record| {
                    record.reason = Some(reason);
                    record.cure = Some(cure.to_owned());
                });
                let reply = self.vm_settling.get_mut(&id).and_then(|s| s.reply.take());
                if let Some(reply) = reply {
                    self.answer(reply, Err(vm_error(&error)));
                }
            }
            VmNews::Ended { guest } => {
                self.change_history(id, |record| {
                    let settled = is_settled(record, record.state, guest);
                    if let Some(vm) = &mut record.vm {
                        vm.guest = Some(guest);
                        vm.settled |= settled;
                    }
                });
                self.vm_settled(id);
            }
            _ => {}
        }
    }

    pub(super) fn change_history(
        &mut self,
        id: SessionId,
        change: impl FnOnce(&mut SessionRecord),
    ) {
        let Some(record) = self.history.find_mut(id) else { return };
        change(record);
        let record = Box::new(record.clone());
        self.note(Change::Session { record, forget: Vec::new() });
    }

    /// A task is over: its machine is free.
    pub(super) fn vm_settled(&mut self, id: SessionId) {
        let Some(Settling { name, reply, .. }) = self.vm_settling.remove(&id) else { return };
        let record = self.history.find(id).map(|record| (record.role, record.state));
        self.give_back_vm(&name, id, record);
        if let Some(reply) = reply {
            let guest = self.history.find(id).and_then(|r| r.vm.as_ref()).and_then(|vm| vm.guest);
            let state = record.map(|(_, state)| state);
            self.answer(reply, Ok(json!({ "session": id, "state": state, "guest": guest })));
        }
    }

    /// Ends a session's use of its virtual machine and keeps what became of that.
    pub(super) fn give_back_vm(
        &mut self,
        name: &str,
        id: SessionId,
        end: Option<(Role, SessionState)>,
    ) {
        let change = |vm: &mut AttachedVm| match end {
            Some((Role::Source, SessionState::Committed)) => vm.left = true,
            Some((Role::Sink, SessionState::Committed)) => vm.arrive(),
            _ => {}
        };
        if let Some(vm) = self.vms.give_back(name, id, change).cloned() {
            self.note(Change::Vm { name: vm.name.clone(), vm: Some(vm) });
        }
        self.want_memory();
    }

    /// Stops waiting for tasks that do not end.
    pub(super) fn tick_vm_settling(&mut self, now: Nanos) {
        let late = self.vm_settling.iter().filter(|(_, settling)| settling.by <= now);
        for id in late.map(|(id, _)| *id).collect::<Vec<_>>() {
            tracing::error!(session = %id, "a guest could not be brought to where it belongs");
            self.vm_settled(id);
        }
    }

    /// Whether no guest is on its way any more.
    pub(crate) fn vms_are_settled(&self) -> bool {
        let ends = |session: &Session| {
            session.vm.as_ref().is_some_and(|part| part.ending && part.task.is_some())
        };
        self.vm_settling.is_empty() && !self.sessions.values().any(ends)
    }

    /// An operator decides about a session that is not live: a committed guest may be started
    /// again.
    pub(super) fn resolve_ended(&mut self, id: SessionId, run: RunAt, reply: Reply) {
        let waits = self.history.find(id).is_some_and(|record| {
            record.role == Role::Sink && record.guest_waits() && run == RunAt::Sink
        });
        let waits = waits && self.is_newest_of_vm(id);
        if !waits || self.vm_settling.contains_key(&id) {
            let error = match self.vm_settling.contains_key(&id) {
                true => ApiError::new(ApiCode::VmBusy, "its guest is being settled already"),
                false => self.ended_or_unknown(id),
            };
            return self.answer(reply, Err(error));
        }
        let Some(record) = self.history.find(id).cloned() else { return };
        self.settle_recovered(&record);
        if let Some(settling) = self.vm_settling.get_mut(&id) {
            settling.reply = Some(reply);
        }
    }
}
