//! A QEMU that the daemon starts itself: nobody's child here, so it is reached and ended by the
//! monitor of the lab.

use super::harness::{At, Hosts, NAME};
use dwcp_tools::lab::{Guest, Qmp, Vm, VmConfig};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::Pid;
use serde_json::json;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use tempfile::TempDir;

/// The QEMU of a guest that was attached with `--spawn`, whenever there is one.
pub(super) struct Spawned {
    folder: TempDir,
}

impl Spawned {
    /// Attaches the guest at a host, where a QEMU with these further words is to be started.
    pub(super) fn attach(hosts: &Hosts, guest: &Guest, at: At, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = VmConfig { incoming: true, paused: true, options, ..hosts.config(at) };
        let words = Vm::words(guest, config, folder.path(), Some(&folder.path().join("ram")));
        let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
        hosts.detach(at);
        let from = at.other().host();
        let words = ["vm", "attach", NAME, "--incoming", "--accept-from", from, "--spawn"];
        hosts.must(at, &[words.as_slice(), &[&quoted.join(" ")]].concat());
        Self { folder }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("lab.qmp")
    }

    /// Its monitor; `None` when there is no QEMU.
    pub(super) fn qmp(&self) -> Option<Qmp> {
        Qmp::connect(&self.socket()).ok()
    }

    /// Ends it as a crash would.
    pub(super) fn kill(&self) {
        let stream = UnixStream::connect(self.socket()).expect("its monitor is there");
        let owner = getsockopt(&stream, sockopt::PeerCredentials).expect("a local socket");
        kill(Pid::from_raw(owner.pid()), Signal::SIGKILL).expect("it runs");
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        if let Some(mut qmp) = self.qmp() {
            // It ends before it answers, or after.
            let _ = qmp.execute("quit", json!({}));
        }
    }
}
