//! The core's answers to clients.
//!
//! Part of [`Core`], on the control thread. A request arrives valid in form; what is legal now is
//! asked of the tables and the machines. Nothing that takes time is waited for: the reply waits
//! with the session or the link.

use super::core::Core;
use super::links::LinkWaiter;
use crate::api::{
    ApiCall, ApiCode, ApiError, DirtyName, RegionRegister, Reply, Request, Role, SessionOpen,
    Subscription, Topic, openrpc_document,
};
use crate::config::SettingRefused;
use crate::kept::KeptJob;
use crate::migration::{Machine, Memory, RegionEntry, Waiting, WaitingFor};
use crate::peer::random;
use crate::state::SessionState;
use dwcp_dataplane::port::DirtyPages;
use dwcp_ffi::dirty::DirtyBitmap;
use dwcp_ffi::region::{Region, RegionError};
use dwcp_proto::ids::SessionId;
use dwcp_proto::session::reason::StepError;
use dwcp_proto::session::sink::SinkInput;
use dwcp_proto::session::source::SourceInput;
use serde_json::{Value, json};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// What a client may do about a region's source in doubt that it wants to end. A sink's doubt has
/// causes of its own, as a guest's has ends: their records tell what to do.
const IN_DOUBT_CURE: &str = "change neither copy, and mend the link between the hosts: the daemons \
    settle the session as soon as they can talk; dwcp status shows when";

/// What a client may do about a session that it wants to end in the middle of its commit.
const COMMITTING_CURE: &str = "wait for its end, which is near; dwcp status shows it";

impl Core {
    /// A client's request.
    pub(super) fn on_call(&mut self, call: ApiCall) {
        let ApiCall { request, descriptors, reply } = call;
        if self.stopping {
            let error = ApiError::new(ApiCode::Stopping, "the daemon is stopping");
            return self.answer(reply, Err(error));
        }
        let takes_descriptors =
            matches!(request, Request::RegionRegister(_) | Request::StoreAdd { .. });
        if !descriptors.is_empty() && !takes_descriptors {
            let message = format!("{} takes no descriptors", request.method());
            let error = ApiError::new(ApiCode::DescriptorCount, message);
            return self.answer(reply, Err(error));
        }
        let outcome = match request {
            Request::SessionOpen(open) => return self.session_open(open, reply),
            Request::SessionRound { session } => {
                return self.session_wait(session, SourceInput::Round, WaitingFor::Round, reply);
            }
            Request::SessionFinish { session } => {
                return self.session_wait(session, SourceInput::Finish, WaitingFor::Finish, reply);
            }
            Request::SessionResolve { session, run } => {
                return self.session_resolve(session, run, reply);
            }
            Request::VmAttach(attach) => return self.vm_attach(*attach, reply),
            Request::VmMigrate(migrate) => return self.vm_migrate(*migrate, reply),
            Request::StoreAdd { name, trust_domain } => {
                return self.store_add((name, trust_domain), descriptors, reply);
            }
            Request::StoreList => return self.ask_store(KeptJob::List, reply),
            Request::StoreStats => return self.ask_store(KeptJob::Stats, reply),
            Request::StoreRemove(name) => return self.store_remove(name, reply),
            Request::VmDetach { name } => self.vm_detach(name),
            Request::VmList => Ok(self.vm_list()),
            Request::Subscribe { topics, session } => Ok(self.subscribe(&reply, topics, session)),
            Request::Unsubscribe => {
                self.subscribers.remove(&reply.client().id());
                Ok(json!({}))
            }
            Request::RegionRegister(register) => self.region_register(register, descriptors),
            Request::RegionRelease { name } => self.regions.release(&name).map(|()| json!({})),
            Request::SessionAbort { session } => self.session_abort(session),
            Request::SessionShow { session } => self.session_show(session),
            Request::ConfigSet { name, value } => self.config_set(&name, &value),
            Request::RegionList => Ok(self.region_list()),
            Request::SessionList => Ok(self.session_list()),
            Request::Status => Ok(self.status()),
            Request::DaemonInfo => Ok(self.daemon_info()),
            Request::NetShow => Ok(self.net_show()),
            Request::ConfigGet => Ok(json!(self.settings.list())),
            Request::Discover => Ok(openrpc_document(&self.config.facts.version)),
        };
        self.answer(reply, outcome);
    }

    fn subscribe(
        &mut self,
        reply: &Reply,
        topics: Vec<Topic>,
        session: Option<SessionId>,
    ) -> Value {
        let client = reply.client();
        let result = json!({ "topics": topics });
        let subscription = Subscription { topics, session };
        self.subscribers.insert(client.id(), (client.clone(), subscription));
        result
    }

    fn region_register(
        &mut self,
        register: RegionRegister,
        mut descriptors: Vec<OwnedFd>,
    ) -> Result<Value, ApiError> {
        let RegionRegister { name, role, dirty, accept_from } = register;
        let with_bitmap = dirty == Some(DirtyName::Bitmap);
        let wanted = 1 + usize::from(with_bitmap);
        if descriptors.len() != wanted {
            let message = format!("{wanted} descriptors are needed, {} came", descriptors.len());
            return Err(ApiError::new(ApiCode::DescriptorCount, message));
        }
        if role == Role::Sink && accept_from.is_empty() && self.identity.is_secure() {
            let message = "accept_from must name the hosts that may send into this region";
            return Err(ApiError::new(ApiCode::ParamsInvalid, message));
        }
        let bitmap = if with_bitmap { descriptors.pop() } else { None };
        let Some(memory) = descriptors.pop() else {
            return Err(ApiError::new(ApiCode::DescriptorCount, "the memory is missing"));
        };
        let region = Region::from_fd(memory).map_err(|e| unusable("memory", &e))?;
        if role == Role::Sink && !region.writable() {
            return Err(unusable("memory", &RegionError::ReadOnly));
        }
        let dirty = match bitmap {
            Some(bitmap) => DirtyBitmap::from_fd(bitmap, region.page_count())
                .map(|bitmap| DirtyPages::Bitmap(Arc::new(bitmap)))
                .map_err(|e| unusable("bitmap", &e))?,
            None => DirtyPages::Compare,
        };
        let (pages, bytes) = (region.page_count(), region.bytes());
        let memory = Memory { region: Arc::new(region), dirty };
        let entry = RegionEntry { role, memory, accept_from, used_by: None, spent_by: None };
        self.regions.add(name.clone(), entry)?;
        Ok(json!({ "name": name, "role": role, "pages": pages, "bytes": bytes }))
    }

    fn session_open(&mut self, open: SessionOpen, reply: Reply) {
        let session = SessionId(random());
        let prepared = self.prepare_open(&open, session);
        let (memory, memory_bytes) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => return self.answer(reply, Err(error)),
        };
        let region = open.region.clone();
        let link = match self.link_to(&open.peer) {
            Ok(link) => link,
            Err(error) => {
                self.regions.give_back(&region, session, false);
                return self.answer(reply, Err(error.to_api()));
            }
        };
        let waiter = LinkWaiter { session, open, memory, memory_bytes, reply };
        let Some(entry) = self.links.get_mut(&link) else { return };
        if entry.link.takes_offers() {
            self.open_source(link, waiter);
        } else {
            entry.waiters.push(waiter);
        }
    }

    fn prepare_open(
        &mut self,
        open: &SessionOpen,
        session: SessionId,
    ) -> Result<(Memory, u64), ApiError> {
        self.check_room()?;
        let pages = self.regions.find(&open.region).map_or(0, |r| r.memory.region.page_count());
        let bases = self.live.get().base_pages_max.min(pages) * 4096;
        let wanted = pages * self.config.memory.source_bytes_per_page + bases;
        self.check_memory(wanted)?;
        let entry = self.regions.take(&open.region, Role::Source, session)?;
        Ok((entry.memory.clone(), wanted))
    }

    /// Gives a session an order whose outcome the client waits for.
    fn session_wait(&mut self, id: SessionId, input: SourceInput, what: WaitingFor, reply: Reply) {
        let Some(session) = self.sessions.get_mut(&id) else {
            let error = self.ended_or_unknown(id);
            return self.answer(reply, Err(error));
        };
        if session.is_vm() {
            let message = "a virtual machine's session runs by itself";
            return self.answer(reply, Err(ApiError::new(ApiCode::SessionState, message)));
        }
        if session.role() != Role::Source || session.waiting.is_some() {
            let error = ApiError::new(ApiCode::SessionState, "another request of it is running");
            return self.answer(reply, Err(error));
        }
        session.waiting = Some(Waiting { what, reply });
        if let Err(refused) = self.source_request(id, input) {
            let waiting = self.sessions.get_mut(&id).and_then(|s| s.waiting.take());
            if let Some(waiting) = waiting {
                self.answer(waiting.reply, Err(step_error(refused)));
            }
        }
    }

    fn session_abort(&mut self, id: SessionId) -> Result<Value, ApiError> {
        if self.abort_vm_source(id) {
            return Ok(json!({ "session": id, "state": "aborted" }));
        }
        let is_source = match self.sessions.get(&id).map(|session| &session.machine) {
            None => return Err(self.ended_or_unknown(id)),
            Some(Machine::Source(_)) => true,
            Some(Machine::Sink(_)) => false,
        };
        let outcome = if is_source {
            self.source_request(id, SourceInput::Abort)
        } else {
            self.sink_request(id, SinkInput::Abort)
        };
        outcome.map_err(|refused| self.abort_refused(id, refused))?;
        let state = self.record_of(id).map(|record| record.state);
        Ok(json!({ "session": id, "state": state }))
    }

    /// Why a session can't be ended, and what there is to do instead.
    fn abort_refused(&self, id: SessionId, refused: StepError) -> ApiError {
        let record = self.record_of(id);
        let error = step_error(refused);
        let Some(record) = record else { return error };
        let error = error.with("state", record.state.name());
        match (record.state, refused) {
            (SessionState::InDoubt, _) => {
                let own = record.cure.filter(|_| record.role == Role::Sink || record.vm.is_some());
                let cure = own.unwrap_or_else(|| IN_DOUBT_CURE.to_owned());
                let message = format!("session {id} is in doubt and can't be ended by hand");
                ApiError { message, ..error.with("cure", cure) }
            }
            (_, StepError::TooLate) => error.with("cure", COMMITTING_CURE),
            _ => error,
        }
    }

    fn session_show(&self, id: SessionId) -> Result<Value, ApiError> {
        self.session_view(id).ok_or_else(|| unknown(id))
    }

    /// Why a session takes no more orders.
    pub(super) fn ended_or_unknown(&self, id: SessionId) -> ApiError {
        match self.history.find(id) {
            Some(record) => {
                let message = format!("session {id} is {}", record.state.name());
                ApiError::new(ApiCode::SessionState, message).with("state", record.state.name())
            }
            None => unknown(id),
        }
    }

    fn config_set(&mut self, name: &str, value: &Value) -> Result<Value, ApiError> {
        let view = self.settings.set(name, value).map_err(|refused| {
            let code = match refused {
                SettingRefused::Unknown { .. } => ApiCode::SettingUnknown,
                SettingRefused::Fixed { .. } => ApiCode::SettingFixed,
                SettingRefused::Invalid { .. } => ApiCode::SettingInvalid,
            };
            ApiError::new(code, refused.to_string())
        })?;
        self.live.set(self.settings.live());
        self.want_memory();
        tracing::info!(name, %value, "setting changed");
        Ok(json!(view))
    }
}

fn unknown(id: SessionId) -> ApiError {
    ApiError::new(ApiCode::SessionUnknown, format!("there is no session {id}"))
}

fn unusable(what: &str, error: &RegionError) -> ApiError {
    ApiError::new(ApiCode::DescriptorUnusable, format!("the {what} can't be used: {error}"))
}

pub(super) fn step_error(refused: StepError) -> ApiError {
    ApiError::new(ApiCode::SessionState, refused.to_string()).with("reason", refused.code())
}
