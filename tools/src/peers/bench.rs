//! Moves one guest to and fro, once per mode and round, and collects the rows.
//!
//! Runs on the caller's thread. Modes take turns, so that what changes on the machine in the
//! meantime hits all of them. The guest is booted once: every mode meets it as the others left it.

use super::migration::Migration;
use super::mode::{Mode, Path};
use super::row::Row;
use crate::lab::{Guest, Lab, LabError, Net, NetSpec, Vm, VmConfig, wait_for};
use serde_json::json;
use std::time::{Duration, Instant};

/// Ports of the migrations count from here.
const PORT_FIRST: u16 = 41_000;

/// How long a guest is watched for being resumed by its QEMU after a migration that failed.
const RESUME_MAX: Duration = Duration::from_secs(10);

/// What is measured.
#[derive(Clone, Debug)]
pub struct Bench {
    /// The guest's words, see [`Guest::HELP`].
    pub guest: String,
    /// Its memory, if not the workload's own choice.
    pub ram_mib: Option<u32>,
    /// The ways to move it.
    pub modes: Vec<Mode>,
    /// The link's words, see [`crate::lab::LinkSpec::HELP`].
    pub link: String,
    /// TCP's congestion control, if not the machine's.
    pub congestion: Option<String>,
    /// How often each mode is measured.
    pub repeat: u32,
    /// After so long a migration counts as not converged.
    pub limit: Duration,
    /// Rest before each migration, in which the guest changes its memory.
    pub settle: Duration,
}

impl Bench {
    /// Runs everything and hands over each row as it is there.
    ///
    /// # Errors
    /// The guest, the network or the lab failed; migrations that fail are rows.
    pub fn run(&self, mut each: impl FnMut(&Row)) -> Result<Vec<Row>, LabError> {
        let lab = Lab::find()?;
        let mut net_spec = NetSpec::pair(&self.link)?;
        if let Some(name) = &self.congestion {
            net_spec = net_spec.with_congestion(name);
        }
        let net = Net::up(&net_spec)?;
        let mut guest = Guest::new(&lab, &self.guest)?;
        if let Some(ram_mib) = self.ram_mib {
            guest = guest.with_ram_mib(ram_mib);
        }
        let version = format!("QEMU {}", lab.qemu_version()?);
        let mut state = State {
            bench: self,
            net: &net,
            guest: &guest,
            vm: None,
            is_away: false,
            migrations: 0,
        };
        let mut rows = Vec::new();
        for round in 1..=self.repeat {
            for mode in &self.modes {
                let mut row = state.measure(mode)?;
                row.set("mode", mode.text());
                row.set("run", round);
                row.set("guest", self.guest.as_str());
                row.set("ram_mib", guest.ram_mib());
                row.set("link", self.link.as_str());
                row.set("qemu", version.as_str());
                each(&row);
                rows.push(row);
            }
        }
        Ok(rows)
    }
}

/// The guest and where it is.
struct State<'a> {
    bench: &'a Bench,
    net: &'a Net,
    guest: &'a Guest,
    /// None before the first migration and after the loss of the guest.
    vm: Option<Vm>,
    /// It runs on node `b`.
    is_away: bool,
    migrations: u16,
}

impl State<'_> {
    /// One migration from where the guest is to the other node.
    fn measure(&mut self, mode: &Mode) -> Result<Row, LabError> {
        let (net, guest) = (self.net, self.guest);
        let mut source = match self.vm.take() {
            Some(vm) => vm,
            None => self.boot()?,
        };
        self.settle()?;
        let names = if self.is_away { ["b", "a"] } else { ["a", "b"] };
        let [source_node, sink_node] = names.map(|name| net.node(name));
        // QEMU's own modes let the guest run at once; all others decide by themselves.
        let paused = !matches!(mode.path, Path::Direct);
        let config =
            VmConfig { node: Some(sink_node), incoming: true, paused, ..VmConfig::default() };
        let mut sink = Vm::start(guest, config)?;
        let folder = crate::lab::scratch("peers")?;
        let port = PORT_FIRST + self.migrations;
        self.migrations += 1;
        let way = net.way(&names.concat());
        let before = way.stats();
        let migration = Migration {
            mode,
            source: &mut source,
            sink: &mut sink,
            source_node,
            sink_node,
            port,
            folder: folder.path(),
            limit: self.bench.limit,
        };
        let mut row = migration.run()?;
        let after = way.stats();
        row.set("link_lost", after.lost - before.lost);
        row.set("link_queue_full", after.queue_full - before.queue_full);
        row.set_rounded("link_late_us", Some(after.late_us), 1);
        row.set_rounded("load", load(), 1);
        if row.is_ok() {
            drop(source);
            self.is_away = !self.is_away;
            let state = arrived(&mut sink)?;
            // A guest that was hurt must not accuse the next mode.
            self.vm = Some(sink).filter(|_| state == "ok");
            row.set("guest_ok", state);
        } else {
            drop(sink);
            let state = stayed(&mut source)?;
            self.vm = Some(source).filter(|_| state == "stayed");
            row.set("guest_ok", state);
        }
        Ok(row)
    }

    fn boot(&mut self) -> Result<Vm, LabError> {
        let node = self.net.node(if self.is_away { "b" } else { "a" });
        let config = VmConfig { node: Some(node), ..VmConfig::default() };
        let mut vm = Vm::start(self.guest, config)?;
        vm.wait_ready(self.guest)?;
        Ok(vm)
    }

    fn settle(&self) -> Result<(), LabError> {
        let end = Instant::now() + self.bench.settle;
        let bound = self.bench.settle + Duration::from_secs(1);
        wait_for("rest", bound, || Ok((Instant::now() >= end).then_some(())))
    }
}

/// What the guest says of itself after it arrived.
fn arrived(vm: &mut Vm) -> Result<String, LabError> {
    match vm.checked() {
        Ok(trouble) => Ok(trouble.unwrap_or_else(|| "ok".to_owned())),
        Err(LabError::Interrupted) => Err(LabError::Interrupted),
        Err(error) => Ok(format!("DEAD: {error}")),
    }
}

/// Sees to it that a guest that stayed runs; what it says of itself.
fn stayed(vm: &mut Vm) -> Result<String, LabError> {
    let resumed = wait_for("guest at the source", RESUME_MAX, || {
        Ok((vm.qmp().status()? == "running").then_some(()))
    });
    let outcome = match resumed {
        Err(LabError::TooSlow { .. }) => vm.qmp().execute("cont", json!({})).map(drop),
        other => other,
    };
    match outcome {
        Ok(()) => Ok(vm.trouble().unwrap_or_else(|| "stayed".to_owned())),
        Err(LabError::Interrupted) => Err(LabError::Interrupted),
        Err(error) => Ok(format!("DEAD: {error}")),
    }
}

/// How many threads wanted to run in the last minute.
fn load() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().next()?.parse().ok()
}
