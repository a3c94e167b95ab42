//! The virtual machines that operators attached, by name.
//!
//! Pure table, the mirror of what the journal keeps.

use crate::api::{ApiCode, ApiError, Role};
use crate::limits::VMS_MAX;
use crate::state::AttachedVm;
use dwcp_proto::ids::SessionId;
use std::collections::BTreeMap;

/// An attached virtual machine and who uses it.
#[derive(Debug)]
pub(crate) struct VmEntry {
    pub(crate) vm: AttachedVm,
    /// The session that uses it.
    pub(crate) used_by: Option<SessionId>,
}

/// All virtual machines.
#[derive(Debug, Default)]
pub(crate) struct Vms(BTreeMap<String, VmEntry>);

impl Vms {
    /// Takes over what the journal kept.
    pub(crate) fn restore(vms: Vec<AttachedVm>) -> Self {
        let entry = |vm: AttachedVm| (vm.name.clone(), VmEntry { vm, used_by: None });
        Self(vms.into_iter().map(entry).collect())
    }

    /// Whether a virtual machine of this name may be added.
    pub(crate) fn check_name(&self, name: &str) -> Result<(), ApiError> {
        match self.0.get(name) {
            Some(entry) if entry.used_by.is_some() => Err(busy(name, entry)),
            Some(entry) if !entry.vm.left => {
                let message = format!("a virtual machine named {name} is attached already");
                Err(ApiError::new(ApiCode::VmExists, message))
            }
            None if self.0.len() >= VMS_MAX => {
                let message = format!("{VMS_MAX} virtual machines are attached already");
                Err(ApiError::new(ApiCode::Busy, message))
            }
            _ => Ok(()),
        }
    }

    /// Adds a virtual machine, in place of one whose guest has left.
    pub(crate) fn attach(&mut self, vm: AttachedVm) -> Result<(), ApiError> {
        self.check_name(&vm.name)?;
        self.0.insert(vm.name.clone(), VmEntry { vm, used_by: None });
        Ok(())
    }

    /// Forgets a virtual machine that no session uses.
    pub(crate) fn detach(&mut self, name: &str) -> Result<(), ApiError> {
        self.free(name)?;
        self.0.remove(name);
        Ok(())
    }

    /// Takes a free virtual machine that fits the end of a session.
    pub(crate) fn take(
        &mut self,
        name: &str,
        role: Role,
        session: SessionId,
    ) -> Result<&AttachedVm, ApiError> {
        let entry = self.free(name)?;
        if entry.vm.left {
            let message = format!("the guest of {name} runs at another host; attach it anew");
            return Err(ApiError::new(ApiCode::VmRole, message));
        }
        if entry.vm.incoming != (role == Role::Sink) {
            let message = match entry.vm.incoming {
                true => format!("virtual machine {name} waits for a guest to come"),
                false => format!("virtual machine {name} runs a guest here already"),
            };
            return Err(ApiError::new(ApiCode::VmRole, message));
        }
        entry.used_by = Some(session);
        Ok(&entry.vm)
    }

    /// The guest of a session's virtual machine has so much memory.
    pub(crate) fn learn(&mut self, session: SessionId, ram_bytes: u64) {
        let mut entries = self.0.values_mut();
        if let Some(entry) = entries.find(|entry| entry.used_by == Some(session)) {
            entry.vm.ram_bytes = Some(ram_bytes);
        }
    }

    /// Lets a session that a restart found use its virtual machine again, if it is still attached.
    pub(crate) fn retake(&mut self, name: &str, session: SessionId) {
        if let Some(entry) = self.0.get_mut(name) {
            entry.used_by.get_or_insert(session);
        }
    }

    /// Ends a session's use and changes what became of the machine; returns it if there was a use.
    pub(crate) fn give_back(
        &mut self,
        name: &str,
        session: SessionId,
        change: impl FnOnce(&mut AttachedVm),
    ) -> Option<&AttachedVm> {
        let entry = self.0.get_mut(name).filter(|entry| entry.used_by == Some(session))?;
        entry.used_by = None;
        change(&mut entry.vm);
        Some(&entry.vm)
    }

    /// A virtual machine by name.
    pub(crate) fn find(&self, name: &str) -> Option<&VmEntry> {
        self.0.get(name)
    }

    /// All of them by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &VmEntry> {
        self.0.values()
    }

    fn free(&mut self, name: &str) -> Result<&mut VmEntry, ApiError> {
        let unknown =
            || ApiError::new(ApiCode::VmUnknown, format!("there is no virtual machine {name}"));
        let entry = self.0.get_mut(name).ok_or_else(unknown)?;
        match entry.used_by {
            None => Ok(entry),
            Some(_) => Err(busy(name, entry)),
        }
    }
}

fn busy(name: &str, entry: &VmEntry) -> ApiError {
    let session = entry.used_by.map(|session| session.to_string()).unwrap_or_default();
    let message = format!("session {session} uses virtual machine {name}");
    ApiError::new(ApiCode::VmBusy, message).with("session", session)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(incoming: bool) -> AttachedVm {
        AttachedVm {
            name: "vm".to_owned(),
            qmp: "/run/vm.qmp".into(),
            incoming,
            spawn: None,
            accept_from: Vec::new(),
            trust_domain: None,
            ram_bytes: None,
            left: false,
        }
    }

    #[test]
    fn a_machine_serves_one_session_at_a_time_and_one_end() {
        let mut vms = Vms::default();
        vms.attach(vm(false)).unwrap();
        let (one, two) = (SessionId([1; 16]), SessionId([2; 16]));
        let code = |refused: Result<&AttachedVm, ApiError>| refused.map(|_| ()).unwrap_err().code;
        assert_eq!(code(vms.take("other", Role::Source, one)), ApiCode::VmUnknown);
        assert_eq!(code(vms.take("vm", Role::Sink, one)), ApiCode::VmRole);
        vms.take("vm", Role::Source, one).unwrap();
        assert_eq!(code(vms.take("vm", Role::Source, two)), ApiCode::VmBusy);
        assert_eq!(vms.detach("vm").unwrap_err().code, ApiCode::VmBusy);
        assert_eq!(vms.attach(vm(true)).unwrap_err().code, ApiCode::VmBusy);
        assert!(vms.give_back("vm", two, |_| ()).is_none(), "it is not the one that uses it");
        assert!(vms.give_back("vm", one, |_| ()).is_some());
        assert_eq!(vms.attach(vm(true)).unwrap_err().code, ApiCode::VmExists);
    }

    #[test]
    fn a_guest_that_left_leaves_a_name_to_attach_anew_and_one_that_came_may_go_on() {
        let mut vms = Vms::default();
        let session = SessionId([1; 16]);
        vms.attach(vm(false)).unwrap();
        vms.take("vm", Role::Source, session).unwrap();
        vms.give_back("vm", session, |vm| vm.left = true);
        assert_eq!(vms.take("vm", Role::Source, session).unwrap_err().code, ApiCode::VmRole);
        vms.attach(vm(true)).unwrap();
        vms.take("vm", Role::Sink, session).unwrap();
        vms.give_back("vm", session, AttachedVm::arrive);
        assert!(vms.take("vm", Role::Source, session).is_ok());
    }
}
