//! One migration, from the command to it until the guest runs at the sink, and its figures.
//!
//! Runs on the bench's thread. Both QEMUs are given; what the mode needs beside them is started and
//! ended here. A failure of the migration is a row that says so; only the end of the whole bench is
//! an error.

use super::cpu;
use super::helpers::Helpers;
use super::mode::{Carrier, Mode, Mover, Path};
use super::row::Row;
use crate::lab::{LabError, Node, Vm, wait_for};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// For things that take milliseconds on an idle machine.
const SOON: Duration = Duration::from_secs(30);

/// For the sink to load the devices of a guest.
const LOAD_MAX: Duration = Duration::from_secs(60);

/// Postcopy begins when all of memory was sent once.
const POSTCOPY_ROUND: u64 = 2;

/// The kernel's name for a listening TCP socket.
const LISTENS: &str = "0A";

const NOT_CONVERGED: &str = "NOT CONVERGED";

/// Everything that one migration needs.
pub(super) struct Migration<'a> {
    pub(super) mode: &'a Mode,
    pub(super) source: &'a mut Vm,
    pub(super) sink: &'a mut Vm,
    pub(super) source_node: &'a Node,
    pub(super) sink_node: &'a Node,
    /// No other migration of this bench uses it.
    pub(super) port: u16,
    /// For sockets and logs.
    pub(super) folder: &'a std::path::Path,
    /// After so long it counts as not converged.
    pub(super) limit: Duration,
}

impl Migration<'_> {
    /// Runs it. If the row's status is `ok` the guest runs at the sink, otherwise it stayed.
    pub(super) fn run(mut self) -> Result<Row, LabError> {
        let mut row = Row::default();
        let mut helpers = Helpers::new(self.folder);
        match self.measure(&mut row, &mut helpers) {
            Ok(()) => {}
            Err(LabError::Interrupted) => return Err(LabError::Interrupted),
            Err(error) => row.set("status", format!("FAILED: {error}")),
        }
        if !row.is_ok() {
            let detail = [self.sink.errors(), helpers.said()].join(" ");
            row.set("detail", detail.trim());
        }
        Ok(row)
    }

    fn measure(&mut self, row: &mut Row, helpers: &mut Helpers<'_>) -> Result<(), LabError> {
        self.set_up(helpers)?;
        let cpu = [self.source.pid(), self.sink.pid()].map(cpu::process_s);
        let wire = [self.source_node.sent_bytes()?, self.sink_node.sent_bytes()?];
        let started = Instant::now();
        let mode = self.mode;
        let status = match &mode.path {
            Path::Mover(mover) => self.follow_mover(mover, helpers)?,
            _ => {
                let uri = self.outgoing();
                self.source.qmp().execute("migrate", json!({"uri": uri}))?;
                self.follow_source(started)?
            }
        };
        if status == "ok" {
            self.wait_running()?;
        }
        row.set_rounded("total_s", Some(started.elapsed().as_secs_f64()), 2);
        row.set("status", status.as_str());
        let nodes = [("wire_mb", self.source_node), ("back_mb", self.sink_node)];
        for ((name, node), before) in nodes.into_iter().zip(wire) {
            let sent = node.sent_bytes()? - before;
            row.set_rounded(name, Some(sent as f64 / 1e6), 1);
        }
        row.set_rounded("source_cpu_s", Some(cpu::process_s(self.source.pid()) - cpu[0]), 1);
        row.set_rounded("sink_cpu_s", Some(cpu::process_s(self.sink.pid()) - cpu[1]), 1);
        row.set_rounded("helper_cpu_s", Some(helpers.cpu_s()), 1);
        self.add_blackout(row, &status)?;
        self.add_figures(row)
    }

    /// Everything before the clock starts.
    fn set_up(&mut self, helpers: &mut Helpers<'_>) -> Result<(), LabError> {
        let mode = self.mode;
        for vm in [&mut *self.source, &mut *self.sink] {
            mode.prepare(vm.qmp())?;
            vm.qmp().forget_events()?;
        }
        if let Path::Mover(mover) = &mode.path {
            return self.prepare_mover(mover, helpers);
        }
        let uri = self.incoming();
        self.sink.qmp().execute("migrate-incoming", json!({"uri": uri}))?;
        match &mode.path {
            Path::Carrier(carrier) => self.start_carrier(carrier, helpers),
            _ => Ok(()),
        }
    }

    fn incoming(&self) -> String {
        match self.mode.path {
            Path::Carrier(_) => format!("unix:{}", self.socket("sink").display()),
            _ => format!("tcp:{}:{}", self.sink_node.address(), self.port),
        }
    }

    fn outgoing(&self) -> String {
        match self.mode.path {
            Path::Carrier(_) => format!("unix:{}", self.socket("source").display()),
            _ => format!("tcp:{}:{}", self.sink_node.address(), self.port),
        }
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}{}.sock", self.port))
    }

    /// Starts both commands; they are ready once their sockets are there.
    fn start_carrier(&self, carrier: &Carrier, helpers: &mut Helpers<'_>) -> Result<(), LabError> {
        let fill = |line: &str, name: &str, peer: &Node| {
            let line = line.replace("{sock}", &self.socket(name).to_string_lossy());
            let line = line.replace("{peer}", &peer.address().to_string());
            let line = line.replace("{dir}", &self.folder.to_string_lossy());
            line.replace("{port}", &self.port.to_string())
        };
        if !carrier.sink.is_empty() {
            let line = fill(&carrier.sink, "sink", self.source_node);
            helpers.start(&self.sink_node.words(), &line, &[])?;
        }
        if carrier.sink.contains("{port}") {
            let look = || still_there(helpers).and_then(|()| listens(self.sink_node, self.port));
            wait_for("listener of the sink's command", SOON, look)?;
        }
        if !carrier.source.is_empty() {
            let line = fill(&carrier.source, "source", self.sink_node);
            helpers.start(&self.source_node.words(), &line, &[])?;
        }
        let socket = self.socket("source");
        wait_for("socket of the source's command", SOON, || {
            still_there(helpers)?;
            Ok(socket.exists().then_some(()))
        })
    }

    /// Follows QEMU's own migration; returns `ok` or why it did not arrive.
    fn follow_source(&mut self, started: Instant) -> Result<String, LabError> {
        let (is_postcopy, limit) = (self.mode.is_postcopy(), self.limit);
        let mut has_switched = false;
        // The deadline is judged here and not by the wait, since it is no failure.
        wait_for("end of the migration", limit + SOON + LOAD_MAX, || {
            let qmp = self.source.qmp();
            let info = qmp.execute("query-migrate", json!({}))?;
            let rounds = info["ram"]["dirty-sync-count"].as_u64().unwrap_or(0);
            let status = info["status"].as_str().unwrap_or_default();
            if is_postcopy && !has_switched && status == "active" && rounds >= POSTCOPY_ROUND {
                qmp.execute("migrate-start-postcopy", json!({}))?;
                has_switched = true;
            }
            if started.elapsed() > limit && status != "cancelling" {
                // Refused when it has just ended, which the next look will find.
                drop(qmp.execute("migrate_cancel", json!({})));
            }
            Ok(match status {
                "completed" => Some("ok".to_owned()),
                "cancelled" => Some(NOT_CONVERGED.to_owned()),
                "failed" if started.elapsed() > limit => Some(NOT_CONVERGED.to_owned()),
                "failed" => {
                    let why = info["error-desc"].as_str().unwrap_or("without a word");
                    Some(format!("FAILED: {why}"))
                }
                _ => None,
            })
        })
    }

    fn prepare_mover(&mut self, mover: &Mover, helpers: &mut Helpers<'_>) -> Result<(), LabError> {
        match helpers.run(&mover.prepare, &self.settings(), SOON)? {
            0 => Ok(()),
            code => {
                let (what, status) = ("the mover's preparation".into(), format!("code {code}"));
                Err(LabError::Ended { what, status, detail: helpers.said() })
            }
        }
    }

    /// Lets a mover do it; returns `ok` or why it did not arrive.
    fn follow_mover(
        &mut self,
        mover: &Mover,
        helpers: &mut Helpers<'_>,
    ) -> Result<String, LabError> {
        helpers.start(&[], &mover.command, &self.settings())?;
        let code = match wait_for("end of the mover", self.limit, || Ok(helpers.ended())) {
            Ok(code) => code,
            Err(LabError::TooSlow { .. }) => return Ok(NOT_CONVERGED.to_owned()),
            Err(error) => return Err(error),
        };
        Ok(if code == 0 { "ok".to_owned() } else { format!("FAILED: the mover: code {code}") })
    }

    /// What a mover's commands are told.
    fn settings(&self) -> [(&'static str, String); 8] {
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        [
            ("DWCP_LAB_SOURCE_QMP", text(self.source.qmp_path())),
            ("DWCP_LAB_SINK_QMP", text(self.sink.qmp_path())),
            ("DWCP_LAB_SOURCE_NETNS", self.source_node.namespace().to_owned()),
            ("DWCP_LAB_SINK_NETNS", self.sink_node.namespace().to_owned()),
            ("DWCP_LAB_SOURCE_ADDRESS", self.source_node.address().to_string()),
            ("DWCP_LAB_SINK_ADDRESS", self.sink_node.address().to_string()),
            ("DWCP_LAB_PORT", self.port.to_string()),
            ("DWCP_LAB_FOLDER", text(self.folder.to_owned())),
        ]
    }

    /// Waits until the guest runs at the sink, which a relay's sink is told to here.
    fn wait_running(&mut self) -> Result<(), LabError> {
        let sink = self.sink.qmp();
        if let Path::Carrier(_) = self.mode.path {
            wait_for("loaded guest", LOAD_MAX, || {
                Ok((sink.status()? != "inmigrate").then_some(()))
            })?;
            sink.execute("cont", json!({}))?;
        }
        wait_for("running guest", LOAD_MAX, || Ok((sink.status()? == "running").then_some(())))
    }

    /// From STOP to RESUME by QEMU's own stamps: one machine, one clock.
    fn add_blackout(&mut self, row: &mut Row, status: &str) -> Result<(), LabError> {
        self.source.qmp().events()?;
        self.sink.qmp().events()?;
        let stop = self.source.qmp().stamp_of("STOP");
        let resume = self.sink.qmp().stamp_of("RESUME").filter(|_| status == "ok");
        let blackout = stop.zip(resume).map(|(stop, resume)| resume.saturating_sub(stop));
        row.set_rounded("blackout_ms", blackout.map(|it| it.as_secs_f64() * 1e3), 0);
        Ok(())
    }

    /// What QEMU itself says of it.
    fn add_figures(&mut self, row: &mut Row) -> Result<(), LabError> {
        let info = self.source.qmp().execute("query-migrate", json!({}))?;
        let ram = &info["ram"];
        let mb = |value: &Value| value.as_f64().map(|bytes| bytes / 1e6);
        row.set("downtime_ms", info["downtime"].clone());
        row.set("rounds", ram["dirty-sync-count"].clone());
        row.set("dirty_pages_per_s", ram["dirty-pages-rate"].clone());
        row.set("xbzrle_pages", info["xbzrle-cache"]["pages"].clone());
        row.set("throttle_pct", info["cpu-throttle-percentage"].clone());
        row.set_rounded("qemu_total_s", info["total-time"].as_f64().map(|ms| ms / 1e3), 2);
        row.set_rounded("qemu_mb", mb(&ram["transferred"]), 1);
        row.set_rounded("remaining_mb", mb(&ram["remaining"]), 1);
        row.set_rounded("postcopy_mb", mb(&ram["postcopy-bytes"]), 1);
        Ok(())
    }
}

fn still_there(helpers: &Helpers<'_>) -> Result<(), LabError> {
    match helpers.ended() {
        None => Ok(()),
        Some(code) => {
            let (what, status) = ("a command of the relay".to_owned(), format!("code {code}"));
            Err(LabError::Ended { what, status, detail: helpers.said() })
        }
    }
}

/// Whether somebody listens on a TCP port of a node.
fn listens(node: &Node, port: u16) -> Result<Option<()>, LabError> {
    let tables = node.enter(|| {
        let files = ["tcp", "tcp6"].map(|name| format!("/proc/thread-self/net/{name}"));
        files.map(|file| std::fs::read_to_string(file).unwrap_or_default()).concat()
    })?;
    let local = format!(":{port:04X}");
    let is_it = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let is_port = words.next().is_some_and(|word| word.ends_with(&local));
        is_port && words.nth(1) == Some(LISTENS)
    };
    Ok(tables.lines().any(is_it).then_some(()))
}
