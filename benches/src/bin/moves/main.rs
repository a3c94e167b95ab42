//! What it costs to move a real guest, the first time and back again, beside QEMU's own ways.
//!
//! One guest goes to and fro over one emulated link: by each of QEMU's ways, then by the daemons
//! while nothing is kept of it, and after a minute of work back by the daemons. Another guest of
//! its image follows, which both hosts know by the first, or only the one that it moves to. The
//! daemons run only around their own moves and begin each without a link; what their stores keep
//! outlives them. All is measured by the bench of peers, so that nobody judges himself.
#![forbid(unsafe_code)]

mod verdict;

use dwcp_benches::transport::{self, BenchError, Options, Rows, Running, dwcp, io, run};
use dwcp_tools::lab::{Lab, wait_for};
use dwcp_tools::peers::{Bench, Course, Mode, Mover, Row, table};
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;
use tempfile::TempDir;
use verdict::{AT_SINK, BACK, COLD, Moved, Path, QEMU, SIBLING};

const HELP: &str = "\
Usage: cargo run --release -p dwcp-benches --bin moves -- [OPTION..]
Needs QEMU 9 or newer and the lab's real guests (cargo xtask lab setup --real). A round of one guest
on one path takes about twelve minutes. Cases are such as `redis, 100 Mbit/s, 100 ms`.";

const GUESTS: [&str; 2] = ["redis", "web"];

const PATHS: [Path; 2] = [
    Path {
        name: "100 Mbit/s, 100 ms",
        words: "rate=100m,delay=50ms",
        rtt_ms: 100.0,
        cold_bytes: Some(0.75),
        cold_time: Some(0.8),
        cold_pause_ms: Some(50.0),
        back_time: None,
        sibling: Some((0.3, 0.35)),
    },
    Path {
        name: "1 Gbit/s, 40 ms",
        words: "rate=1g,delay=20ms",
        rtt_ms: 40.0,
        cold_bytes: None,
        cold_time: Some(1.1),
        cold_pause_ms: None,
        back_time: Some(0.6),
        sibling: None,
    },
];

/// Rest before a move, in which the guest changes its memory.
const SETTLE: Duration = Duration::from_secs(3);
/// The guest's work at the other host before it comes back.
const WORK: Duration = Duration::from_secs(60);
/// A move that takes longer has not converged.
const MOVE_MAX: Duration = Duration::from_secs(150);
/// Both hosts keep what was left at a disk's pace.
const KEEP_MAX: Duration = Duration::from_secs(120);

const PORT: u16 = 7411;
const HOSTS: [&str; 2] = ["a", "b"];
/// All share the cores: nobody may spin. Memory is that of a host for guests of 512 MiB.
const FLAGS: [&str; 4] = ["--poll", "park", "--memory", "2GiB"];

/// Before the clock starts: both daemons are told of the guest, and have memory ready, as they have
/// where a guest is attached long before it moves. Hosts are named by their addresses.
const ATTACH: &str = "\
    \"$DWCP\" vm attach $VM --trust-domain lab --qmp \"$DWCP_LAB_SOURCE_QMP\" \
        --socket \"$KEEP/$DWCP_LAB_SOURCE_ADDRESS.socket\" && \
    \"$DWCP\" vm attach $VM --trust-domain lab --qmp \"$DWCP_LAB_SINK_QMP\" --incoming \
        --accept-from \"$DWCP_LAB_SOURCE_ADDRESS\" \
        --socket \"$KEEP/$DWCP_LAB_SINK_ADDRESS.socket\" && \
    for host in \"$DWCP_LAB_SOURCE_ADDRESS\" \"$DWCP_LAB_SINK_ADDRESS\"; do \
        until \"$DWCP\" status --socket \"$KEEP/$host.socket\" | \
            grep -Eq '^memory +(.+) ready of \\1,'; do sleep 0.1; done; \
    done";

const MIGRATE: &str = "\
    exec \"$DWCP\" migrate $VM --to \"$DWCP_LAB_SINK_ADDRESS:$PORT\" --json \
        --socket \"$KEEP/$DWCP_LAB_SOURCE_ADDRESS.socket\" >\"$KEEP/told\"";

fn main() -> ExitCode {
    transport::main("moves", HELP, |options, rows| {
        for path in &PATHS {
            for guest in GUESTS {
                let case = format!("{guest}, {}", path.name);
                if options.takes(&case) {
                    measure(&case, guest, path, options, rows)?;
                }
            }
        }
        Ok(())
    })
}

fn measure(
    case: &str,
    guest: &str,
    path: &Path,
    options: &Options,
    rows: &mut Rows,
) -> Result<(), BenchError> {
    let bench = bench(guest, path)?;
    let mut course = bench.start()?;
    let hosts = Hosts::make(&course)?;
    let mut moves = Vec::new();
    for round in 0..options.repeats_or(5) {
        by_qemu(&bench, &mut course, (round, &mut moves))?;
        let cold = hosts.measure(&mut course, COLD, SETTLE, options)?;
        let has_arrived = cold.figure("guest_ok") == "ok";
        note((round, &mut moves), cold);
        // A guest that was lost or stayed has nothing to come back from.
        if has_arrived {
            let back = hosts.measure(&mut course, BACK, WORK, options)?;
            note((round, &mut moves), back);
        }
    }
    tell(case, verdict::rows(case, path, &moves), &moves, rows)?;
    drop(course);
    hosts.save_stores()?;
    let bench = self::bench(&format!("{guest}:2"), path)?;
    let mut course = bench.start()?;
    let mut moves = Vec::new();
    for round in 0..options.repeats_or(5) {
        by_qemu(&bench, &mut course, (round, &mut moves))?;
        for name in [SIBLING, AT_SINK] {
            hosts.restore_stores(name, course.hosts())?;
            let row = hosts.measure(&mut course, name, SETTLE, options)?;
            note((round, &mut moves), row);
        }
    }
    tell(case, verdict::sibling_rows(case, path, &moves), &moves, rows)
}

fn bench(guest: &str, path: &Path) -> Result<Bench, BenchError> {
    let ram_mib = dwcp_tools::lab::Guest::new(&Lab::find()?, guest)?.ram_mib();
    let modes = |word: &&str| Mode::parse(word, &[], &[], ram_mib);
    Ok(Bench {
        guest: guest.to_owned(),
        ram_mib: Some(ram_mib),
        modes: QEMU.iter().map(modes).collect::<Result<_, _>>()?,
        link: path.words.to_owned(),
        congestion: None,
        repeat: 1,
        limit: MOVE_MAX,
        settle: SETTLE,
    })
}

/// One move in each of QEMU's own ways.
fn by_qemu(
    bench: &Bench,
    course: &mut Course,
    (round, moves): (usize, &mut Vec<Moved>),
) -> Result<(), BenchError> {
    for mode in &bench.modes {
        let row = course.measure(mode, SETTLE)?;
        note((round, moves), row);
    }
    Ok(())
}

fn note((round, moves): (usize, &mut Vec<Moved>), row: Row) {
    println!("{}", row.json());
    moves.push((round, row));
}

fn tell(
    case: &str,
    verdict: Vec<transport::Row>,
    moves: &[Moved],
    rows: &mut Rows,
) -> Result<(), BenchError> {
    let all: Vec<Row> = moves.iter().map(|(_, row)| row.clone()).collect();
    println!("\n{case}\n\n{}", table(&all));
    verdict.iter().try_for_each(|row| rows.add(row))
}

/// What the daemons call the guest of a move.
fn vm_of(name: &str) -> &'static str {
    if [SIBLING, AT_SINK].contains(&name) { "sibling" } else { "guest" }
}

/// Both hosts' certificates and folders; daemons only while they are needed.
struct Hosts {
    folder: TempDir,
    addresses: [Ipv4Addr; 2],
}

impl Hosts {
    fn make(course: &Course) -> Result<Self, BenchError> {
        let folder = tempfile::tempdir().map_err(io("a folder"))?;
        let addresses = HOSTS.map(|host| course.net().node(host).address());
        let pki = folder.path().join("pki");
        let mut command = Command::new(dwcp()?);
        run("dwcp pki", command.args(["pki", "init"]).arg(&pki))?;
        for address in addresses {
            let mut command = Command::new(dwcp()?);
            run("dwcp pki", command.args(["pki", "host", &address.to_string()]).arg(&pki))?;
        }
        Ok(Self { folder, addresses })
    }

    /// A file of one host's.
    fn at(&self, host: Ipv4Addr, name: &str) -> PathBuf {
        self.folder.path().join(format!("{host}.{name}"))
    }

    /// What the first guest left, for another one to find. No daemon runs.
    fn save_stores(&self) -> Result<(), BenchError> {
        for host in self.addresses {
            let (kept, saved) = (self.at(host, "state").join("store"), self.at(host, "saved"));
            run("cp", Command::new("cp").arg("-a").args([kept, saved]))?;
        }
        Ok(())
    }

    /// Both hosts know the first guest alone, or only the one that the next move goes to does.
    fn restore_stores(&self, name: &str, [source, _]: [&str; 2]) -> Result<(), BenchError> {
        for (host, address) in HOSTS.into_iter().zip(self.addresses) {
            let store = self.at(address, "state").join("store");
            std::fs::remove_dir_all(&store).map_err(io("a store"))?;
            if name == SIBLING || host != source {
                let saved = self.at(address, "saved");
                run("cp", Command::new("cp").arg("-a").args([saved, store]))?;
            }
        }
        Ok(())
    }

    /// One move by the daemons; nothing is kept of the guest before a cold one, and after it both
    /// hosts have kept it.
    fn measure(
        &self,
        course: &mut Course,
        name: &str,
        settle: Duration,
        options: &Options,
    ) -> Result<Row, BenchError> {
        let mut daemons = Vec::new();
        for (host, address) in HOSTS.into_iter().zip(self.addresses) {
            let mut command = course.net().node(host).command(dwcp()?);
            command.args(["daemon", "--listen", &format!("{address}:{PORT}")]);
            command.arg("--socket").arg(self.at(address, "socket"));
            command.arg("--state").arg(self.at(address, "state"));
            command.arg("--pki").arg(self.folder.path().join("pki").join(address.to_string()));
            command.args(FLAGS).args(&options.flags);
            let mut daemon = Running::start(&command, "dwcp daemon", self.at(address, "log"))?;
            let socket = self.at(address, "socket");
            daemon.wait_until("the daemon", |_| UnixStream::connect(&socket).is_ok())?;
            daemons.push(daemon);
        }
        if name == COLD {
            for host in self.addresses {
                self.tell(host, &["store", "rm", "--all"])?;
            }
        }
        let row = course.measure(&self.mode(name)?, settle)?;
        if row.is_ok() {
            let cpu = daemons.iter().map(Running::cpu_seconds).collect::<Result<Vec<_>, _>>()?;
            println!("{}", self.told(&cpu)?);
            self.wait_kept()?;
        }
        self.detach(vm_of(name))?;
        Ok(row)
    }

    /// What explains a move's figures, of what dwcp told of it; the daemons' processor time is that
    /// since their start.
    fn told(&self, cpu_s: &[f64]) -> Result<Value, BenchError> {
        let answer = std::fs::read_to_string(self.folder.path().join("told"));
        let answer = answer.map_err(io("what dwcp told"))?;
        let (program, what) = ("dwcp migrate", "JSON");
        let told: Value = serde_json::from_str(&answer).map_err(|_| BenchError::Answer {
            program,
            what,
            answer,
        })?;
        let counters = &told["counters"];
        Ok(json!({
            "daemons_cpu_s": cpu_s, "before_pages": told["before_pages"],
            "held_pages": counters["held_pages"], "told_bytes": counters["told_bytes"],
            "seconds": told["seconds"], "blackout_ms": told["blackout_ms"],
            "zstd_level": counters["zstd_level"], "coded_bytes": counters["coded_bytes"],
            "vmm_in_bytes": counters["vmm_in_bytes"], "zstd_pages": counters["zstd_pages"],
            "delta_pages": counters["delta_pages"], "raw_pages": counters["raw_pages"],
        }))
    }

    /// The mode that is a move by the daemons.
    fn mode(&self, name: &str) -> Result<Mode, BenchError> {
        let (program, keep) = (dwcp()?, self.folder.path());
        let vm = vm_of(name);
        let (dwcp, keep) = (program.display(), keep.display());
        let words = format!("DWCP='{dwcp}' KEEP='{keep}' PORT={PORT} VM={vm}; ");
        let (prepare, command) = (words.clone() + ATTACH, words + MIGRATE);
        let mover = Mover { name: name.to_owned(), prepare, command };
        Ok(Mode::parse(name, &[], &[mover], 0)?)
    }

    /// An operator's command, and its answer.
    fn tell(&self, host: Ipv4Addr, words: &[&str]) -> Result<Value, BenchError> {
        let mut command = Command::new(dwcp()?);
        command.args(words).args(["--json", "--socket"]).arg(self.at(host, "socket"));
        let answer = run("dwcp", &command)?;
        let (program, what) = ("dwcp", "JSON");
        serde_json::from_str(&answer).map_err(|_| BenchError::Answer { program, what, answer })
    }

    /// Daemons count from their start, and each sees one move.
    fn wait_kept(&self) -> Result<(), BenchError> {
        let has_kept = |host| {
            let stats = self.tell(host, &["store", "stats"])?;
            Ok(stats["landed"].as_u64() >= Some(1))
        };
        self.wait_both("both hosts to keep what the guest left", has_kept)
    }

    /// Forgets the guest, which the next move attaches anew; one that is being settled is busy.
    fn detach(&self, vm: &str) -> Result<(), BenchError> {
        let is_free = |host| match self.tell(host, &["vm", "detach", vm]) {
            Err(BenchError::Ended { said, .. }) => Ok(!said.contains("busy")),
            other => other.map(|_| true),
        };
        self.wait_both("the guest to be free", is_free)
    }

    fn wait_both(
        &self,
        what: &str,
        holds: impl Fn(Ipv4Addr) -> Result<bool, BenchError>,
    ) -> Result<(), BenchError> {
        for host in self.addresses {
            let mut failed = None;
            wait_for(what, KEEP_MAX, || {
                let held = holds(host).unwrap_or_else(|error| {
                    failed = Some(error);
                    true
                });
                Ok(held.then_some(()))
            })?;
            failed.map_or(Ok(()), Err)?;
        }
        Ok(())
    }
}
