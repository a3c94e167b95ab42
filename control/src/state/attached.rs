//! A virtual machine as its host's operator attached it, kept over restarts.
//!
//! Plain value of the journal and of the table of virtual machines.

use crate::vm::VmTarget;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// An attached virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AttachedVm {
    /// Its name, the same on all hosts.
    pub(crate) name: String,
    /// The QMP socket of its QEMU.
    pub(crate) qmp: PathBuf,
    /// It waits for a guest to come.
    pub(crate) incoming: bool,
    /// How its QEMU is started, if this daemon does that.
    pub(crate) spawn: Option<Vec<String>>,
    /// Hosts that may send a guest.
    pub(crate) accept_from: Vec<String>,
    /// Other guests of this label, here and there, may share pages with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trust_domain: Option<String>,
    /// The memory of its guest, once it was asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ram_bytes: Option<u64>,
    /// Its guest runs at another host now: only attaching anew makes it of use again.
    pub(crate) left: bool,
}

impl AttachedVm {
    /// What its task drives.
    pub(crate) fn target(&self) -> VmTarget {
        let qmp = self.qmp.clone();
        match &self.spawn {
            Some(command) => VmTarget::Spawn { command: command.clone(), qmp },
            None => VmTarget::Monitor { qmp },
        }
    }

    /// A guest has come: its QEMU is like any other that runs one.
    pub(crate) fn arrive(&mut self) {
        self.incoming = false;
        self.spawn = None;
        self.left = false;
    }
}
