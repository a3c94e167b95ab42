//! A link that is black-holed under the migration of a QEMU guest: in pre-copy for a minute, and
//! while the guest stands still.
//!
//! Two daemons on two hosts, with certificates and their default settings, and a guest that changes
//! and checks its own memory. What the guest feels is taken from QEMU's events and the guest's
//! console, not from dwcp.
#![forbid(unsafe_code)]

use dwcp_benches::transport::{
    self, BenchError, Metrics, Options, Place, Row, Rows, Running, Target, dwcp, io, run,
};
use dwcp_tools::lab::{Guest, Lab, LabError, Net, NetSpec, Vm, VmConfig, ram, wait_for};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const HELP: &str = "\
Usage: cargo run --release -p dwcp-benches --bin outage -- [OPTION..]
Needs QEMU 9 or newer and the lab's guests (cargo xtask lab setup).";

const GUEST: &str = "dirty:24,400,3";
const GUEST_MIB: u32 = 96;
const NAME: &str = "guest";
const HOSTS: [&str; 2] = ["a", "b"];
const PORT: u16 = 7411;
const METRICS: &str = "127.0.0.1:7412";

/// Slow enough that the guest's memory is under way for some seconds.
const PRECOPY_LINK: &str = "rate=60m delay=20ms";
const DEAD_FOR: Duration = Duration::from_secs(60);
/// The link dies when so much has arrived.
const BEFORE_BYTES: f64 = 4e6;
/// A second, and two round trips of 40 ms.
const BACK_S: f64 = 1.08;

/// So long a way that the link can be cut between the guest's stop and its commit.
const STOPPED_LINK: &str = "rate=1g delay=100ms";
/// `--blackout-max`, and the period of the pings by which silence is known.
const STOOD_S: f64 = 2.0 + 1.0;
/// The commit may come before the cut; then the guest is moved once more.
const TRIES: usize = 4;

const MOVE_MAX: Duration = Duration::from_secs(300);

fn main() -> ExitCode {
    transport::main("outage", HELP, |options, rows| {
        if options.takes("pre-copy") {
            precopy(options, rows)?;
        }
        if options.takes("stopped") { stopped(options, rows) } else { Ok(()) }
    })
}

/// Two hosts with daemons, a guest on the first, and a QEMU on the other that waits for it.
struct Hosts {
    // In this order: processes end before what they stand on.
    source: Vm,
    sink: Vm,
    _daemons: Vec<Running>,
    net: Net,
    folder: TempDir,
}

impl Hosts {
    fn start(lab: &Lab, link: &str, options: &Options) -> Result<Self, BenchError> {
        let net = Net::up(&NetSpec::pair(link)?)?;
        let folder = tempfile::tempdir().map_err(io("a folder"))?;
        let pki = folder.path().join("pki");
        for words in [&["init"][..], &["host", HOSTS[0]], &["host", HOSTS[1]]] {
            let mut command = Command::new(dwcp()?);
            run("dwcp pki", command.arg("pki").args(words).arg(&pki))?;
        }
        let mut daemons = Vec::new();
        for host in HOSTS {
            let node = net.node(host);
            let at = |name: &str| folder.path().join(format!("{host}.{name}"));
            let mut command = node.command(dwcp()?);
            command.args(["daemon", "--listen", &format!("{}:{PORT}", node.address())]);
            command.arg("--socket").arg(at("socket")).arg("--state").arg(at("state"));
            command.arg("--pki").arg(pki.join(host)).args(["--metrics", METRICS]);
            command.args(&options.flags);
            let mut daemon = Running::start(&command, "dwcp daemon", at("log"))?;
            daemon.wait_until("the daemon", |_| UnixStream::connect(at("socket")).is_ok())?;
            daemons.push(daemon);
        }
        let guest = Guest::new(lab, GUEST)?.with_ram_mib(GUEST_MIB);
        let config = VmConfig { ram_file: true, ..VmConfig::default() };
        let there = VmConfig { node: Some(net.node(HOSTS[1])), incoming: true, ..config };
        let sink = Vm::start(&guest, VmConfig { paused: true, ..there })?;
        let mut source = Vm::start(&guest, VmConfig { node: Some(net.node(HOSTS[0])), ..config })?;
        source.wait_ready(&guest)?;
        let this = Self { source, sink, _daemons: daemons, net, folder };
        let qmp = this.source.qmp_path().display().to_string();
        this.dwcp(HOSTS[0], &["vm", "attach", NAME, "--qmp", &qmp])?;
        let qmp = this.sink.qmp_path().display().to_string();
        let words = ["vm", "attach", NAME, "--qmp", &qmp, "--incoming", "--accept-from", HOSTS[0]];
        this.dwcp(HOSTS[1], &words)?;
        Ok(this)
    }

    fn command(&self, host: &str, words: &[&str]) -> Result<Command, BenchError> {
        let mut command = Command::new(dwcp()?);
        let socket = self.folder.path().join(format!("{host}.socket"));
        command.args(words).arg("--socket").arg(socket);
        Ok(command)
    }

    fn dwcp(&self, host: &str, words: &[&str]) -> Result<String, BenchError> {
        run("dwcp", &self.command(host, words)?)
    }

    fn start_migrate(&self, flags: &[&str]) -> Result<Running, BenchError> {
        let to = format!("{}:{PORT}", self.net.node(HOSTS[1]).address());
        let words = [&["migrate", NAME, "--to", &to, "--json"], flags].concat();
        let log: PathBuf = self.folder.path().join("migrate");
        Running::start(&self.command(HOSTS[0], &words)?, "dwcp migrate", log)
    }

    /// Payload that the sink's QEMU has taken, by the source's word.
    fn delivered_bytes(&self) -> Result<f64, BenchError> {
        let address: SocketAddr = METRICS
            .parse()
            .map_err(|_| BenchError::Argument { word: METRICS.to_owned(), why: "is no address" })?;
        let page = Metrics::scrape(Place::Node(self.net.node(HOSTS[0])), address)?;
        Ok(page.sum("dwcp_session_delivered_bytes_total"))
    }

    /// Waits until more than so much was delivered; how long that took.
    fn wait_delivered(&self, bytes: f64) -> Result<Duration, BenchError> {
        let started = Instant::now();
        // Shorter than the interval of the lab's waits: the time to traffic is what is measured.
        while self.delivered_bytes()? <= bytes {
            if started.elapsed() > MOVE_MAX {
                let (program, what) = ("dwcp daemon", "that anything arrives");
                return Err(BenchError::Answer { program, what, answer: String::new() });
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        Ok(started.elapsed())
    }
}

fn precopy(options: &Options, rows: &mut Rows) -> Result<(), BenchError> {
    let lab = Lab::find()?;
    let (mut back, mut ran, mut wrong, mut ticks) = (vec![], vec![], vec![], vec![]);
    for _ in 0..options.repeats_or(3) {
        let mut hosts = Hosts::start(&lab, PRECOPY_LINK, options)?;
        let migrate = hosts.start_migrate(&["--downtime-limit", "300ms", "--paused"])?;
        hosts.wait_delivered(BEFORE_BYTES)?;
        hosts.net.link("ab").set("up=0 flush=1")?;
        let seen = watch_dead(&mut hosts.source)?;
        let before = hosts.delivered_bytes()?;
        hosts.net.link("ab").set("up=1")?;
        back.push(hosts.wait_delivered(before)?.as_secs_f64());
        migrate.finish(MOVE_MAX)?;
        let events = hosts.source.qmp().events()?;
        let stops = events.iter().filter(|event| event.name == "STOP").count();
        ran.push(if stops == 1 { seen.ran } else { 0.0 });
        ticks.push(seen.ticks);
        wrong.push(differing(&hosts)? as f64);
    }
    let case = "black-holed 60 s in pre-copy";
    let target = Target::AtMost(BACK_S);
    rows.add(&Row::new(case, "seconds from healing to traffic", back, "s", target))?;
    let row = Row::new(case, "time that the guest ran", ran, "", Target::AtLeast(1.0));
    rows.add(&row.with_detail(json!({"guest_clock_ticks": ticks})))?;
    rows.add(&Row::new(case, "pages that differ", wrong, "", Target::AtMost(0.0)))
}

/// What was seen of a guest while its link was dead.
struct Seen {
    /// The share of the looks at which it ran.
    ran: f64,
    /// How often its own clock ticked on its console.
    ticks: usize,
}

fn watch_dead(vm: &mut Vm) -> Result<Seen, BenchError> {
    let ticks = |vm: &Vm| vm.serial().matches("TICK").count();
    let (before, until) = (ticks(vm), Instant::now() + DEAD_FOR);
    let (mut looks, mut running) = (0.0, 0.0);
    wait_for("the link's dead time", DEAD_FOR * 2, || {
        looks += 1.0;
        running += if vm.qmp().status()? == "running" { 1.0 } else { 0.0 };
        Ok((Instant::now() >= until).then_some(()))
    })?;
    Ok(Seen { ran: running / looks, ticks: ticks(vm) - before })
}

/// Pages that are not alike in both memories, while both guests stand still.
fn differing(hosts: &Hosts) -> Result<usize, BenchError> {
    let files = hosts.source.ram_file().zip(hosts.sink.ram_file());
    let (program, what) = ("QEMU", "its memory's file");
    let missing = BenchError::Answer { program, what, answer: String::new() };
    let (near, far) = files.ok_or(missing)?;
    Ok(ram::differing_pages(&near, &far)?.len())
}

fn stopped(options: &Options, rows: &mut Rows) -> Result<(), BenchError> {
    let lab = Lab::find()?;
    let mut stood = Vec::new();
    for _ in 0..options.repeats_or(3) {
        stood.push(cut_while_stopped(&lab, options)?);
    }
    let case = "black-holed while the guest stands still";
    let row =
        Row::new(case, "seconds until the source runs on", stood, "s", Target::AtMost(STOOD_S));
    rows.add(&row.with_detail(json!({"blackout_max_s": 2})))
}

/// Cuts the link behind the guest's stop; how long the guest stood still.
fn cut_while_stopped(lab: &Lab, options: &Options) -> Result<f64, BenchError> {
    let mut said = String::new();
    for _ in 0..TRIES {
        let mut hosts = Hosts::start(lab, STOPPED_LINK, options)?;
        let migrate = hosts.start_migrate(&["--downtime-limit", "2s"])?;
        let source = &mut hosts.source;
        wait_for("the guest's stop", MOVE_MAX, || stamp(source, "STOP"))?;
        hosts.net.link("ab").set("up=0 flush=1")?;
        match migrate.finish(MOVE_MAX) {
            // It had been given up before the link died.
            Ok(committed) => said = committed,
            Err(BenchError::Ended { said: why, .. }) => {
                let resumed = wait_for("the guest at the source", Duration::from_secs(30), || {
                    stamp(&mut hosts.source, "RESUME")
                });
                let stop = stamp(&mut hosts.source, "STOP")?;
                if let Some((resume, stop)) = resumed.ok().zip(stop) {
                    return Ok(resume.saturating_sub(stop).as_secs_f64());
                }
                said = why;
            }
            Err(other) => return Err(other),
        }
    }
    let (program, what) = ("dwcp migrate", "a failure before the commit");
    Err(BenchError::Answer { program, what, answer: Value::String(said).to_string() })
}

/// When the last event of a name came, if one did.
fn stamp(vm: &mut Vm, name: &str) -> Result<Option<Duration>, LabError> {
    vm.qmp().events()?;
    Ok(vm.qmp().stamp_of(name))
}
