//! One guest and one link, and one migration after another.
//!
//! Runs on the caller's thread. The guest is booted once: every mode meets it as the others left
//! it. One that was hurt is booted anew, and must not accuse the next mode.

use super::bench::Bench;
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

/// The guest and where it is.
#[derive(Debug)]
pub struct Course {
    /// None before the first migration and after the loss of the guest.
    // First, so that QEMU has ended when its disk and its host go.
    vm: Option<Vm>,
    guest: Guest,
    net: Net,
    /// It runs on node `b`.
    is_away: bool,
    migrations: u16,
    limit: Duration,
    /// What every row says: the guest's words, the link's, QEMU's version.
    words: [(&'static str, String); 3],
}

impl Course {
    pub(super) fn start(bench: &Bench) -> Result<Self, LabError> {
        let lab = Lab::find()?;
        let mut net_spec = NetSpec::pair(&bench.link)?;
        if let Some(name) = &bench.congestion {
            net_spec = net_spec.with_congestion(name);
        }
        let mut guest = Guest::new(&lab, &bench.guest)?;
        if let Some(ram_mib) = bench.ram_mib {
            guest = guest.with_ram_mib(ram_mib);
        }
        let version = format!("QEMU {}", lab.qemu_version()?);
        let words =
            [("guest", bench.guest.clone()), ("link", bench.link.clone()), ("qemu", version)];
        let (net, limit) = (Net::up(&net_spec)?, bench.limit);
        Ok(Self { vm: None, guest, net, is_away: false, migrations: 0, limit, words })
    }

    /// The two hosts, `a` and `b`, and the link between them.
    #[must_use]
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// The names of the hosts: where the guest is, and where it moves next.
    #[must_use]
    pub fn hosts(&self) -> [&'static str; 2] {
        if self.is_away { ["b", "a"] } else { ["a", "b"] }
    }

    /// Lets the guest work for so long where it is, and moves it to the other host.
    ///
    /// # Errors
    /// The guest, the network or the lab failed; a migration that fails is a row.
    pub fn measure(&mut self, mode: &Mode, settle: Duration) -> Result<Row, LabError> {
        let mut source = match self.vm.take() {
            Some(vm) => vm,
            None => self.boot()?,
        };
        rest(settle)?;
        let names = self.hosts();
        let [source_node, sink_node] = names.map(|name| self.net.node(name));
        // QEMU's own modes let the guest run at once; all others decide by themselves.
        let paused = !matches!(mode.path, Path::Direct);
        let config =
            VmConfig { node: Some(sink_node), incoming: true, paused, ..VmConfig::default() };
        let mut sink = Vm::start(&self.guest, config)?;
        let folder = crate::lab::scratch("peers")?;
        let port = PORT_FIRST + self.migrations;
        self.migrations += 1;
        let way = self.net.way(&names.concat());
        let before = way.stats();
        let migration = Migration {
            mode,
            source: &mut source,
            sink: &mut sink,
            source_node,
            sink_node,
            port,
            folder: folder.path(),
            limit: self.limit,
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
        row.set("mode", mode.text());
        row.set("ram_mib", self.guest.ram_mib());
        for (name, text) in &self.words {
            row.set(name, text.as_str());
        }
        Ok(row)
    }

    fn boot(&mut self) -> Result<Vm, LabError> {
        let node = self.net.node(if self.is_away { "b" } else { "a" });
        let config = VmConfig { node: Some(node), ..VmConfig::default() };
        let mut vm = Vm::start(&self.guest, config)?;
        vm.wait_ready(&self.guest)?;
        Ok(vm)
    }
}

fn rest(time: Duration) -> Result<(), LabError> {
    let end = Instant::now() + time;
    let bound = time + Duration::from_secs(1);
    wait_for("rest", bound, || Ok((Instant::now() >= end).then_some(())))
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
