//! Two hosts with daemons, QEMUs beside them, and the commands of an operator.
//!
//! Every piece ends what it started when it is dropped; every wait has a bound.

use crate::harness::client::Client;
use crate::harness::daemon::{Daemon, DaemonSpec};
use crate::harness::pki::Pki;
use crate::harness::{SOON, binary, wait_for};
use dwcp_tools::lab::{Guest, Lab, Net, NetSpec, Vm, VmConfig};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// The guest's name at both hosts.
pub(super) const NAME: &str = "web1";
/// The hosts' letters in the network.
const NODES: [&str; 2] = ["a", "b"];
/// The hosts' names in their certificates.
pub(super) const HOSTS: [&str; 2] = ["host-a", "host-b"];
/// A migration of a small guest, under emulation on a busy machine.
pub(super) const MOVE_MAX: Duration = Duration::from_secs(150);

/// One of the two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    A,
    B,
}

impl At {
    /// The other one.
    pub(super) fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    fn index(self) -> usize {
        match self {
            Self::A => 0,
            Self::B => 1,
        }
    }

    /// Its name in its certificate.
    pub(super) fn host(self) -> &'static str {
        HOSTS[self.index()]
    }
}

/// Both hosts.
pub(super) struct Hosts {
    daemons: [Daemon; 2],
    pub(super) net: Arc<Net>,
    pub(super) lab: Lab,
    // Last, so that the daemons have ended when it goes.
    folder: TempDir,
}

impl Hosts {
    /// Brings both up over such a link; None when this machine can't, which is said.
    pub(super) fn up(link: &str) -> Option<Self> {
        Self::up_with(link, &[])
    }

    /// Like [`Self::up`], with further flags for both daemons.
    pub(super) fn up_with(link: &str, flags: &[&str]) -> Option<Self> {
        Self::up_of(link, &[binary::today(), binary::today()], flags)
    }

    /// Like [`Self::up_with`], with daemons of these binaries.
    pub(super) fn up_of(link: &str, of: &[PathBuf; 2], flags: &[&str]) -> Option<Self> {
        let lab = Lab::for_test()?;
        if !lab.qemu_keeps_pages() {
            let version = lab.qemu_version().unwrap_or_default();
            eprintln!("PASSED OVER: QEMU {version} loses pages of emulated guests by itself");
            return None;
        }
        let net = Arc::new(Net::up(&NetSpec::pair(link).unwrap()).unwrap());
        let folder = tempfile::tempdir().expect("a folder");
        let pki = Pki::init(folder.path().join("pki"));
        let start = |at: At| {
            let own = pki.host(at.host());
            let spec = DaemonSpec::new(&folder.path().join(NODES[at.index()]), Some(own));
            let spec = spec.with(&["--memory", "1GiB"]).with(flags);
            Daemon::start(spec.of(&of[at.index()]).on(&net, NODES[at.index()]))
        };
        let daemons = [start(At::A), start(At::B)];
        Some(Self { daemons, net, lab, folder })
    }

    /// The daemon of a host.
    pub(super) fn daemon(&self, at: At) -> &Daemon {
        &self.daemons[at.index()]
    }

    /// The daemon of a host, to be killed and started.
    pub(super) fn daemon_mut(&mut self, at: At) -> &mut Daemon {
        &mut self.daemons[at.index()]
    }

    /// Changes both ways of the link.
    pub(super) fn link(&self, words: &str) {
        self.net.link("ab").set(words).expect("words of a link");
    }

    /// Changes the way from one host to the other alone.
    pub(super) fn way(&self, from: At, words: &str) {
        let name = NODES[from.index()].to_owned() + NODES[from.other().index()];
        self.net.way(&name).set(words).expect("words of a link");
    }

    /// Settings of a QEMU on a host.
    pub(super) fn config(&self, at: At) -> VmConfig<'_> {
        let node = Some(self.net.node(NODES[at.index()]));
        VmConfig { node, ram_file: true, ..VmConfig::default() }
    }

    /// Boots a guest on a host and makes it known to the daemon there.
    pub(super) fn boot(&self, guest: &Guest, at: At, options: &[&str]) -> Vm {
        let mut vm = Vm::start(guest, VmConfig { options, ..self.config(at) }).unwrap();
        vm.wait_ready(guest).unwrap();
        self.attach_source(&vm, at);
        vm
    }

    /// Starts a QEMU that waits for the guest and makes it known to the daemon there.
    pub(super) fn wait_at(&self, guest: &Guest, at: At, options: &[&str]) -> Vm {
        let config = VmConfig { incoming: true, paused: true, options, ..self.config(at) };
        let vm = Vm::start(guest, config).unwrap();
        self.attach_sink(&vm, at);
        vm
    }

    pub(super) fn attach_source(&self, vm: &Vm, at: At) {
        self.detach(at);
        self.must(at, &["vm", "attach", NAME, "--qmp", path(&vm.qmp_path())]);
    }

    pub(super) fn attach_sink(&self, vm: &Vm, at: At) {
        self.detach(at);
        let qmp = vm.qmp_path();
        let from = at.other().host();
        let words = ["vm", "attach", NAME, "--qmp", path(&qmp), "--incoming"];
        self.must(at, &[words.as_slice(), &["--accept-from", from]].concat());
    }

    /// Forgets what was attached; nothing may have been. A guest that is being settled is waited
    /// for.
    pub(super) fn detach(&self, at: At) {
        wait_for("the guest to be free", MOVE_MAX, || {
            let answer = self.daemon(at).call("vm.detach", json!({"name": NAME}));
            match answer {
                Err(error) if error.code() == "vm_busy" => None,
                _ => Some(()),
            }
        });
    }

    /// The client's command.
    fn command(&self, at: At, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dwcp"));
        command.args(words).arg("--socket").arg(self.daemon(at).spec.socket());
        command.stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub(super) fn run(&self, at: At, words: &[&str]) -> Output {
        self.command(at, words).output().expect("the binary runs")
    }

    /// Runs a command that must succeed, and returns its JSON.
    pub(super) fn must(&self, at: At, words: &[&str]) -> Value {
        let output = self.run(at, &[words, &["--json"]].concat());
        assert!(output.status.success(), "{words:?}: {output:?}");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// Starts `dwcp migrate` towards the other host.
    pub(super) fn start_migrate(&self, from: At, flags: &[&str]) -> Migrate {
        let to = self.daemon(from.other()).listen.to_string();
        let words = [&["migrate", NAME, "--to", &to, "--json"], flags].concat();
        let file = |name| File::create(self.folder.path().join(name)).expect("a file");
        let mut command = self.command(from, &words);
        let child = command.stdout(file("stdout")).stderr(file("stderr")).spawn();
        let read = |name| self.folder.path().join(name);
        Migrate { child: child.expect("the binary runs"), files: [read("stdout"), read("stderr")] }
    }

    /// Migrates; it must commit. Returns what the command said.
    pub(super) fn migrate(&self, from: At, flags: &[&str]) -> Value {
        let told = self.start_migrate(from, flags).finish();
        let logs = || format!("{}\n{}", self.tail(At::A), self.tail(At::B));
        assert_eq!(told.code, Some(0), "{told:?}\n{}", logs());
        assert_eq!(told.json["state"], "committed", "{told:?}");
        told.json
    }

    /// The end of a daemon's log.
    pub(super) fn tail(&self, at: At) -> String {
        let log = self.daemon(at).log();
        let lines: Vec<&str> = log.lines().collect();
        let from = lines.len().saturating_sub(25);
        format!("log of {}:\n{}", at.host(), lines[from..].join("\n"))
    }

    /// The newest record of the guest at a host.
    pub(super) fn record(&self, at: At) -> Option<Value> {
        let list = self.daemon(at).must("session.list", json!({}));
        let of_guest = |record: &&Value| record["vm"]["name"] == json!(NAME);
        list.as_array().expect("a list").iter().find(of_guest).cloned()
    }

    /// Waits until a host's newest record of the guest is in this state, and returns it.
    pub(super) fn wait_record(&self, at: At, state: &str) -> Value {
        wait_for(&format!("{state} at {}", at.host()), MOVE_MAX, || {
            self.record(at).filter(|record| record["state"] == state)
        })
    }

    /// The numbers of all sessions that a host knows.
    pub(super) fn sessions(&self, at: At) -> Vec<Value> {
        let list = self.daemon(at).must("session.list", json!({}));
        list.as_array().expect("a list").iter().map(|record| record["session"].clone()).collect()
    }

    /// Listens to what a daemon tells of sessions.
    pub(super) fn listen(&self, at: At) -> Client {
        let mut client = self.daemon(at).client();
        let topics = json!({"topics": ["session.state", "session.progress"]});
        client.must("subscribe", topics);
        client
    }
}

/// Waits until a daemon tells something of a session.
pub(super) fn told(client: &mut Client, what: &str, holds: impl Fn(&str, &Value) -> bool) -> Value {
    wait_for(what, MOVE_MAX, || {
        let (method, params) = client.notification(SOON)?;
        holds(&method, &params).then_some(params)
    })
}

/// A path as a word of a command.
pub(super) fn path(path: &Path) -> &str {
    path.to_str().expect("our paths are text")
}

/// A `dwcp migrate` that runs.
#[derive(Debug)]
pub(super) struct Migrate {
    child: Child,
    files: [std::path::PathBuf; 2],
}

/// How it ended.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) code: Option<i32>,
    pub(super) json: Value,
    pub(super) stderr: String,
}

impl Migrate {
    /// Ctrl-C.
    pub(super) fn interrupt(&self) {
        let pid = i32::try_from(self.child.id()).expect("process numbers are small");
        kill(Pid::from_raw(pid), Signal::SIGINT).expect("our own child takes signals");
    }

    /// True once it has ended.
    pub(super) fn is_over(&mut self) -> bool {
        self.child.try_wait().expect("our own child").is_some()
    }

    /// Waits for its end.
    pub(super) fn finish(mut self) -> Told {
        let status = wait_for("the end of `dwcp migrate`", MOVE_MAX, || {
            self.child.try_wait().expect("our own child")
        });
        let [stdout, stderr] = self
            .files
            .each_ref()
            .map(|file| std::fs::read_to_string(file).expect("a file of ours"));
        let json = serde_json::from_str(&stdout).unwrap_or(Value::Null);
        Told { code: status.code(), json, stderr }
    }
}

impl Drop for Migrate {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
