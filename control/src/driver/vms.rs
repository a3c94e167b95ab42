//! The core's virtual machines: attaching, detaching, listing.
//!
//! Part of [`Core`], on the control thread. A QEMU that an operator names is asked what it is
//! before it is attached, so that a wrong path is found now and not when a guest should move.

use super::core::Core;
use crate::api::{ApiCode, ApiError, Reply, VmAttach};
use crate::limits::SOCKET_PATH_BYTES_MAX;
use crate::state::{AttachedVm, Change};
use crate::vm::{VmError, VmFacts, check_command, shell_words};
use dwcp_proto::ids::SessionId;
use dwcp_proto::wire::limits::PAGE_BYTES;
use serde_json::{Value, json};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// What a QEMU that is to be attached said of itself.
#[derive(Debug)]
pub(crate) struct Probed {
    vm: AttachedVm,
    outcome: Result<VmFacts, VmError>,
    reply: Reply,
}

impl Core {
    pub(super) fn vm_attach(&mut self, attach: VmAttach, reply: Reply) {
        let checked = self.vms.check_name(&attach.name).and_then(|()| self.attached(attach));
        let vm = match checked {
            Ok(vm) => vm,
            Err(error) => return self.answer(reply, Err(error)),
        };
        if vm.spawn.is_some() {
            let attached = self.vm_keep(vm).map(|vm| vm_view(&vm));
            return self.answer(reply, attached);
        }
        let (probe, probes) = (self.vm_host.probe(vm.qmp.clone()), self.probes.clone());
        tokio::task::spawn_local(async move {
            let outcome = probe.await;
            // A daemon that has ended answers nobody.
            let _ = probes.send(Probed { vm, outcome, reply }).await;
        });
    }

    fn attached(&self, attach: VmAttach) -> Result<AttachedVm, ApiError> {
        let VmAttach { name, qmp, incoming, spawn, accept_from, trust_domain } = attach;
        if incoming && accept_from.is_empty() && self.identity.is_secure() {
            let message = "accept_from must name the hosts that may send this machine";
            return Err(ApiError::new(ApiCode::ParamsInvalid, message));
        }
        let words = |text: String| {
            let words = shell_words(&text)?;
            check_command(&words).map(|()| words)
        };
        let spawn = spawn.map(words).transpose().map_err(|error| {
            ApiError::new(ApiCode::ParamsInvalid, error.to_string()).with("cure", error.cure())
        })?;
        let qmp = match qmp {
            Some(qmp) => PathBuf::from(qmp),
            None => self.vm_directory()?.join(format!("{name}.qmp")),
        };
        if qmp.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            let message = format!("the QMP socket {} would be too long", qmp.display());
            return Err(ApiError::new(ApiCode::ParamsInvalid, message)
                .with("cure", "give the virtual machine a shorter name"));
        }
        let (ram_bytes, left) = (None, false);
        Ok(AttachedVm { name, qmp, incoming, spawn, accept_from, trust_domain, ram_bytes, left })
    }

    /// The private directory of sockets between QEMUs and this daemon. One that an operator made
    /// keeps its rights.
    pub(super) fn vm_directory(&self) -> Result<PathBuf, ApiError> {
        let socket = self.config.socket.as_ref().ok_or_else(|| {
            let message = "this process drives no virtual machines";
            ApiError::new(ApiCode::VmUnusable, message)
        })?;
        directory_beside(&socket.path).map_err(|error| {
            let path = socket.path.with_extension("vm");
            let message = format!("the directory {} can't be made: {error}", path.display());
            ApiError::new(ApiCode::VmUnusable, message)
        })
    }

    /// A QEMU that is to be attached has answered, or not.
    pub(crate) fn on_probed(&mut self, probed: Probed) {
        let Probed { mut vm, outcome, reply } = probed;
        let attached = match outcome {
            Ok(facts) => {
                vm.ram_bytes = Some(facts.ram_bytes);
                self.vm_keep(vm).map(|vm| {
                    let mut view = vm_view(&vm);
                    view["qemu"] = json!({
                        "version": facts.version.to_string(), "run_state": facts.run_state,
                        "machine": facts.machine, "ram_bytes": facts.ram_bytes,
                        "cpu_count": facts.cpu_count,
                    });
                    view
                })
            }
            Err(error) => Err(vm_error(&error)),
        };
        self.answer(reply, attached);
    }

    fn vm_keep(&mut self, vm: AttachedVm) -> Result<AttachedVm, ApiError> {
        self.vms.attach(vm.clone())?;
        tracing::info!(vm = %vm.name, qmp = %vm.qmp.display(), incoming = vm.incoming, "attached");
        self.note(Change::Vm { name: vm.name.clone(), vm: Some(vm.clone()) });
        self.want_memory();
        Ok(vm)
    }

    pub(super) fn vm_detach(&mut self, name: String) -> Result<Value, ApiError> {
        self.vms.detach(&name)?;
        tracing::info!(vm = %name, "detached");
        self.note(Change::Vm { name, vm: None });
        self.want_memory();
        Ok(json!({}))
    }

    /// A session's guest has said how much memory it has.
    pub(super) fn vm_has_memory(&mut self, id: SessionId, ram_bytes: u64) {
        self.vms.learn(id, ram_bytes);
        self.want_memory();
    }

    /// Has page memory ready for one session of the largest guest here that may move. To be called
    /// whenever that may be another one: what is asked for already changes nothing.
    pub(super) fn want_memory(&self) {
        let bases_bytes = self.live.get().base_pages_max.saturating_mul(PAGE_BYTES as u64);
        let most = bases_bytes.min(self.config.memory.sessions_bytes);
        let may_move = self.vms.iter().filter(|entry| !entry.vm.left);
        let largest = may_move.filter_map(|entry| entry.vm.ram_bytes).max().unwrap_or(0);
        self.config.pages.want_ready(largest.min(most));
    }

    pub(super) fn vm_list(&self) -> Value {
        let view = |entry: &crate::migration::VmEntry| {
            let mut view = vm_view(&entry.vm);
            view["state"] = json!(match (entry.used_by, entry.vm.left) {
                (Some(_), _) => "busy",
                (None, true) => "left",
                (None, false) => "free",
            });
            if let Some(session) = entry.used_by {
                view["session"] = json!(session);
            }
            view
        };
        Value::Array(self.vms.iter().map(view).collect())
    }
}

/// Makes the directory beside the control socket if it is not there; its path from the root, since
/// QEMU does not share this process's current directory.
fn directory_beside(socket: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(socket.with_extension("vm"))?;
    if !path.is_dir() {
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
    }
    Ok(path)
}

fn vm_view(vm: &AttachedVm) -> Value {
    json!({
        "name": vm.name, "qmp": vm.qmp, "incoming": vm.incoming, "spawn": vm.spawn,
        "accept_from": vm.accept_from, "trust_domain": vm.trust_domain,
    })
}

/// What a client is told of a QEMU that can't be used.
pub(super) fn vm_error(error: &VmError) -> ApiError {
    ApiError::new(ApiCode::VmUnusable, error.to_string())
        .with("reason", error.code())
        .with("cure", error.cure())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_of_a_relative_socket_is_named_from_the_root() {
        let folder = tempfile::tempdir_in(".").unwrap();
        let socket = Path::new(folder.path().file_name().unwrap()).join("dwcp.sock");
        assert!(socket.is_relative());
        let directory = directory_beside(&socket).unwrap();
        assert!(directory.is_absolute() && directory.is_dir());
        assert_eq!(directory.file_name(), Some("dwcp.vm".as_ref()));
        assert_eq!(directory_beside(&socket).unwrap(), directory, "it may be there");
    }
}
