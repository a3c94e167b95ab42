//! Two hosts with carriers in both directions, and a manager that moves a guest through them.
//!
//! The manager does what the chapter on carrier mode says and nothing else, on monitors of its own;
//! dropping it is its death. Every piece ends what it started when it is dropped.

use super::harness::{At, MOVE_MAX, path};
use super::pair::Pair;
use crate::harness::carrier::Carrier;
use crate::harness::pki::Pki;
use crate::harness::{SOON, wait_until};
use dwcp_tools::lab::{Guest, Lab, Net, NetSpec, Node, Qmp, Vm, VmConfig};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// Both hosts.
pub(super) struct Carried {
    ways: [Way; 2],
    net: Net,
    pub(super) lab: Lab,
    // Last, so that the carriers have ended when it goes.
    _folder: TempDir,
}

/// The two carriers of one direction, in foreground processes of their own.
pub(super) struct Way {
    pub(super) source: Carrier,
    pub(super) sink: Carrier,
    /// What starts each of them again, and their logs.
    again: [(Vec<String>, PathBuf); 2],
    /// Where the source's QEMU connects to.
    out: PathBuf,
    /// Where the sink's QEMU listens.
    into: PathBuf,
    nodes: [Node; 2],
}

impl Carried {
    /// Brings both up over such a link; None when this machine can't, which is said.
    pub(super) fn up(link: &str) -> Option<Self> {
        Self::up_with(link, &[])
    }

    /// The same with further flags of all carriers.
    pub(super) fn up_with(link: &str, flags: &[&str]) -> Option<Self> {
        let lab = Lab::for_test()?;
        if !lab.qemu_keeps_pages() {
            let version = lab.qemu_version().unwrap_or_default();
            eprintln!("PASSED OVER: QEMU {version} loses pages of emulated guests by itself");
            return None;
        }
        let net = Net::up(&NetSpec::pair(link).unwrap()).unwrap();
        let folder = tempfile::tempdir().expect("a folder");
        let pki = Pki::init(folder.path().join("pki"));
        let certificates = [At::A, At::B].map(|at| pki.host(at.host()));
        let way = |from: At| {
            let nodes = [from, from.other()].map(|at| net.node(letter(at)).clone());
            let own = [from, from.other()].map(|at| certificates[index(at)].clone());
            Way::start(&folder.path().join(from.host()), nodes, own, flags)
        };
        let ways = [way(At::A), way(At::B)];
        Some(Self { ways, net, lab, _folder: folder })
    }

    /// The carriers of a guest that leaves a host.
    pub(super) fn way(&self, from: At) -> &Way {
        &self.ways[index(from)]
    }

    /// The same, to be killed and started.
    pub(super) fn way_mut(&mut self, from: At) -> &mut Way {
        &mut self.ways[index(from)]
    }

    /// Changes both directions of the link.
    pub(super) fn link(&self, words: &str) {
        self.net.link("ab").set(words).expect("words of a link");
    }

    /// Bytes of IP that have left a host.
    pub(super) fn sent_bytes(&self, at: At) -> u64 {
        self.net.node(letter(at)).sent_bytes().unwrap()
    }

    /// Boots a guest at a host, with a QEMU that waits for it at the other.
    pub(super) fn boot<'a>(&self, guest: &'a Guest, from: At) -> Pair<'a> {
        let sink = self.wait_at(guest, from.other());
        let mut source = Vm::start(guest, self.config(from)).unwrap();
        source.wait_ready(guest).unwrap();
        Pair::of(guest, from, &[], (source, sink))
    }

    /// The guest has arrived: its QEMU is the source of the next migration, to a new one.
    pub(super) fn turn<'a>(&self, pair: Pair<'a>) -> Pair<'a> {
        let Pair { guest, from, source, sink, .. } = pair;
        drop(source);
        let waiting = self.wait_at(guest, from);
        Pair::of(guest, from.other(), &[], (sink, waiting))
    }

    /// The guest stayed; a new QEMU waits for it.
    pub(super) fn renew_sink<'a>(&self, pair: Pair<'a>) -> Pair<'a> {
        let Pair { guest, from, source, sink, .. } = pair;
        drop(sink);
        let waiting = self.wait_at(guest, from.other());
        Pair::of(guest, from, &[], (source, waiting))
    }

    fn wait_at(&self, guest: &Guest, at: At) -> Vm {
        let config = VmConfig { incoming: true, paused: true, ..self.config(at) };
        Vm::start(guest, config).unwrap()
    }

    fn config(&self, at: At) -> VmConfig<'_> {
        VmConfig { node: Some(self.net.node(letter(at))), ram_file: true, ..VmConfig::default() }
    }
}

fn index(at: At) -> usize {
    usize::from(at == At::B)
}

fn letter(at: At) -> &'static str {
    ["a", "b"][index(at)]
}

impl Way {
    /// Starts both, the sink first, as the chapter says.
    fn start(folder: &Path, nodes: [Node; 2], own: [PathBuf; 2], more: &[&str]) -> Self {
        std::fs::create_dir(folder).expect("a folder");
        let (out, into) = (folder.join("out"), folder.join("in"));
        let logs = [folder.join("source.log"), folder.join("sink.log")];
        let words = |own: &PathBuf, flags: &[&str]| {
            let command = Carrier::command(Some(own), &[flags, more].concat());
            let words = [command.get_program()].into_iter().chain(command.get_args());
            words.map(|word| word.to_str().expect("our words are text").to_owned()).collect()
        };
        let any = format!("{}:0", nodes[1].address());
        let first: Vec<String> = words(&own[1], &["--listen", &any, "--connect-unix", path(&into)]);
        let sink = Carrier::start(on(&nodes[1], &first), logs[1].clone());
        let listen = sink.event("ready")["listen"].as_str().expect("an address").to_owned();
        let to: Vec<String> = words(&own[0], &["--listen-unix", path(&out), "--to", &listen]);
        let source = Carrier::start(on(&nodes[0], &to), logs[0].clone());
        source.event("ready");
        // The port is the same from now on: the source has been told it.
        let from = words(&own[1], &["--listen", &listen, "--connect-unix", path(&into)]);
        let [source_log, sink_log] = logs;
        let again = [(to, source_log), (from, sink_log)];
        Self { source, sink, again, out, into, nodes }
    }

    /// Where the source's QEMU connects to.
    pub(super) fn out(&self) -> &Path {
        &self.out
    }

    /// Starts a carrier that was killed with the words that it had.
    pub(super) fn restart(&mut self, at_source: bool) {
        let index = usize::from(!at_source);
        let (words, log) = &self.again[index];
        let fresh = Carrier::start(on(&self.nodes[index], words), log.clone());
        fresh.event("ready");
        *(if at_source { &mut self.source } else { &mut self.sink }) = fresh;
    }
}

/// A command on a host.
fn on(node: &Node, words: &[String]) -> Command {
    let mut command = node.command(&words[0]);
    command.args(&words[1..]);
    command
}

/// Whoever drives both QEMUs and decides which of them runs the guest.
pub(super) struct Manager {
    source: Qmp,
    sink: Qmp,
}

impl Manager {
    /// A manager that begins, or that comes back: it knows nothing but what the QEMUs say.
    pub(super) fn connect(pair: &Pair<'_>) -> Self {
        let connect = |vm: &Vm| Qmp::connect(&vm.qmp_path()).unwrap();
        Self { source: connect(&pair.source), sink: connect(&pair.sink) }
    }

    /// Sets the capabilities that differ from QEMU's defaults, at both ends, and begins.
    pub(super) fn begin(&mut self, way: &Way, capabilities: &[&str]) {
        self.begin_by(way.out(), way, capabilities);
    }

    /// The same by another socket than the carrier's.
    pub(super) fn begin_by(&mut self, out: &Path, way: &Way, capabilities: &[&str]) {
        let set = |name: &str, state: bool| json!({"capability": name, "state": state});
        let chosen = |name: &str| set(name, capabilities.contains(&name));
        let both = [chosen("multifd")];
        let own = [chosen("multifd"), chosen("pause-before-switchover"), set("return-path", true)];
        let name = "migrate-set-capabilities";
        let uri = |path: &Path| json!({"uri": format!("unix:{}", path.display())});
        self.sink.execute(name, json!({"capabilities": both})).unwrap();
        self.sink.execute("migrate-incoming", uri(&way.into)).unwrap();
        self.source.execute(name, json!({"capabilities": own})).unwrap();
        self.source.execute("migrate", uri(out)).unwrap();
    }

    /// What the source says of its migration.
    pub(super) fn migration(&mut self) -> Value {
        self.source.execute("query-migrate", json!({})).unwrap()
    }

    /// Waits until the source says so of its migration.
    pub(super) fn wait_status(&mut self, wanted: &str) {
        wait_until(wanted, MOVE_MAX, || {
            let told = self.migration();
            let status = told["status"].as_str().unwrap_or_default();
            assert!(status == wanted || !is_end(status), "{wanted}: {told}");
            status == wanted
        });
    }

    /// Waits for an end of the migration, whatever it is.
    pub(super) fn wait_end(&mut self) -> String {
        let mut status = String::new();
        wait_until("the end of the migration", MOVE_MAX, || {
            self.migration()["status"].as_str().unwrap_or_default().clone_into(&mut status);
            is_end(&status)
        });
        status
    }

    /// Lets a migration go on that was held before its switchover.
    pub(super) fn go_on(&mut self) {
        let state = json!({"state": "pre-switchover"});
        self.source.execute("migrate-continue", state).unwrap();
    }

    /// Runs the guest at the sink; only to be done when the source has completed.
    pub(super) fn run_at_sink(&mut self) {
        assert_eq!(self.migration()["status"], "completed");
        self.sink.execute("cont", json!({})).unwrap();
        wait_until("the guest at the sink", SOON, || self.sink.status().unwrap() == "running");
    }
}

fn is_end(status: &str) -> bool {
    ["completed", "failed", "cancelled"].contains(&status)
}
