//! What a byte costs in processor time, both ends together: a region of dwcp's beside QEMU's
//! multifd over TLS, over loopback, in turn; and `iperf3`, which seals and looks at nothing.
//!
//! All move the same amount of random bytes by four connections into memory that is new. dwcp has
//! one shard at each end; its daemons' whole lives are counted, start and verification of each page
//! included. QEMU's guest stands still; its time is counted from the order to migrate to the end.
#![forbid(unsafe_code)]

use dwcp_benches::transport::{
    self, BenchError, Options, Row, Rows, Running, Target, children_cpu_seconds, dwcp, io, median,
    random_bytes, run,
};
use dwcp_tools::lab::{LabError, Qmp, wait_for};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

const HELP: &str = "\
Usage: cargo run --release -p dwcp-benches --bin cpu -- [OPTION..]
Needs QEMU and openssl beside what is named below.";

const MIB: u64 = 1 << 20;
const STREAMS: &str = "4";
const PORT: u16 = 41_020;
const IPERF_PORT: &str = "52020";

/// How long one way of moving may take on a busy machine.
const MOVE_MAX: Duration = Duration::from_secs(300);
const READY_MAX: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    transport::main("cpu", HELP, measure)
}

fn measure(options: &Options, rows: &mut Rows) -> Result<(), BenchError> {
    let mib = if options.quick { 512 } else { 2048 };
    let (mut ours, mut theirs, mut bare) = (Vec::new(), Vec::new(), Vec::new());
    // MiB per second of processor time.
    let rate = |seconds: f64| mib as f64 / seconds;
    for _ in 0..options.repeats_or(5) {
        ours.push(rate(region(mib, &options.flags)?));
        theirs.push(rate(multifd(mib)?));
        bare.push(rate(iperf(mib)?));
    }
    let ratios = ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs);
    let what = "bytes per CPU second of QEMU's multifd over TLS";
    let detail = json!({
        "MiB": mib,
        "dwcp_mib_per_cpu_s": median(&ours).round(),
        "multifd_tls_mib_per_cpu_s": median(&theirs).round(),
        "iperf3_mib_per_cpu_s": median(&bare).round(),
    });
    let row = Row::new("loopback, sealed", what, ratios.collect(), "", Target::AtLeast(1.0));
    rows.add(&row.with_detail(detail))
}

/// Seconds of both daemons of a demo that moves a region of random pages.
fn region(mib: u64, flags: &[String]) -> Result<f64, BenchError> {
    const PROGRAM: &str = "dwcp demo";
    let folder = tempfile::tempdir().map_err(io("a folder"))?;
    let mut command = Command::new(dwcp()?);
    command.args(["demo", "--json", "--coding", "passthrough", "--no-baseline"]);
    command.args(["--dirty-rate", "0", "--streams", STREAMS, "--size", &format!("{mib}MiB")]);
    command.args(flags);
    let demo = Running::start(&command, PROGRAM, folder.path().join("log"))?;
    let mut seen = BTreeMap::new();
    wait_for("the demo's daemons", MOVE_MAX, || {
        let now = children_cpu_seconds(demo.id());
        // They are children until they are reaped; what they took last is what they took.
        let are_over = !seen.is_empty() && now.is_empty();
        seen.extend(now);
        Ok(are_over.then_some(()))
    })?;
    let said = demo.finish(MOVE_MAX)?;
    let what = "that the region arrived whole";
    let report: Value = serde_json::from_str(&said).unwrap_or(Value::Null);
    if report["verified"] == true && seen.len() == 2 {
        return Ok(seen.values().sum());
    }
    Err(BenchError::Answer { program: PROGRAM, what, answer: said })
}

/// Seconds of both QEMUs.
fn multifd(mib: u64) -> Result<f64, BenchError> {
    let folder = tempfile::Builder::new().tempdir_in("/dev/shm").map_err(io("memory for QEMU"))?;
    let folder = folder.path();
    certificates(folder)?;
    let memory = folder.join("source.ram");
    let mut file = File::create(&memory).map_err(io("a guest's memory"))?;
    let piece = random_bytes(64 << 20);
    for _ in 0..mib * MIB / piece.len() as u64 {
        file.write_all(&piece).map_err(io("a guest's memory"))?;
    }
    let mut source = qemu("source", "client", mib, folder)?;
    let mut sink = qemu("sink", "server", mib, folder)?;
    let tls = |qmp: &mut Qmp| -> Result<(), LabError> {
        let multifd = json!({"capabilities": [{"capability": "multifd", "state": true}]});
        qmp.execute("migrate-set-capabilities", multifd)?;
        let parameters = json!({
            "multifd-channels": 4, "tls-creds": "tls", "max-bandwidth": 0, "downtime-limit": 2000,
            "tls-hostname": "localhost",
        });
        qmp.execute("migrate-set-parameters", parameters).map(drop)
    };
    tls(&mut source.1)?;
    tls(&mut sink.1)?;
    let address = json!({"uri": format!("tcp:127.0.0.1:{PORT}")});
    sink.1.execute("migrate-incoming", address.clone())?;
    let taken = |source: &Running, sink: &Running| -> Result<f64, BenchError> {
        Ok(source.cpu_seconds()? + sink.cpu_seconds()?)
    };
    let before = taken(&source.0, &sink.0)?;
    source.1.execute("migrate", address)?;
    let end = wait_for("QEMU's migration", MOVE_MAX, || {
        let state = source.1.execute("query-migrate", json!({}))?;
        let is_over = ["completed", "failed"].iter().any(|word| state["status"] == *word);
        Ok(is_over.then_some(state))
    })?;
    if end["status"] != "completed" {
        let (what, answer) = ("that the migration completed", end.to_string());
        return Err(BenchError::Answer { program: "QEMU", what, answer });
    }
    wait_for("the guest at the sink", MOVE_MAX, || {
        Ok((sink.1.status()? != "inmigrate").then_some(()))
    })?;
    Ok(taken(&source.0, &sink.0)? - before)
}

/// A QEMU whose guest stands still, with its monitor.
fn qemu(
    name: &'static str,
    endpoint: &str,
    mib: u64,
    folder: &Path,
) -> Result<(Running, Qmp), BenchError> {
    let at = |ending: &str| folder.join(format!("{name}.{ending}")).display().to_string();
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-machine", "q35,memory-backend=ram", "-accel", "tcg", "-nodefaults", "-S"]);
    command.args(["-display", "none", "-m", &mib.to_string(), "-object"]);
    let memory = at("ram");
    command.arg(format!("memory-backend-file,id=ram,mem-path={memory},share=on,size={mib}M"));
    let dir = folder.display();
    command.arg("-object");
    command.arg(format!("tls-creds-x509,id=tls,dir={dir},endpoint={endpoint},verify-peer=on"));
    command.args(["-qmp", &format!("unix:{},server=on,wait=off", at("qmp"))]);
    if name == "sink" {
        command.args(["-incoming", "defer"]);
    }
    let mut running = Running::start(&command, "QEMU", at("log").into())?;
    let socket = PathBuf::from(at("qmp"));
    running.wait_until("QEMU's monitor", |_| socket.exists())?;
    let qmp = wait_for("QEMU's monitor", READY_MAX, || Ok(Qmp::connect(&socket).ok()))?;
    Ok((running, qmp))
}

/// Certificates by the names that QEMU looks for. Those of `dwcp pki` are for signatures alone,
/// and QEMU takes none that can't encipher keys as well. With a certificate gnutls agrees on
/// AES-256-GCM, which is what dwcp seals with; with a shared key it takes ChaCha20.
fn certificates(folder: &Path) -> Result<(), BenchError> {
    const LEAF: [&str; 4] = [
        "basicConstraints=critical,CA:FALSE",
        "keyUsage=critical,digitalSignature,keyEncipherment",
        "extendedKeyUsage=serverAuth,clientAuth",
        "subjectAltName=DNS:localhost",
    ];
    let authority = ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign"];
    for (name, extensions) in [("ca", &authority[..]), ("server", &LEAF), ("client", &LEAF)] {
        let mut command = Command::new("openssl");
        command.current_dir(folder);
        command.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj"]);
        command.args(["/CN=localhost", "-keyout", &format!("{name}-key.pem")]);
        command.args(["-out", &format!("{name}-cert.pem")]);
        if name != "ca" {
            command.args(["-CA", "ca-cert.pem", "-CAkey", "ca-key.pem"]);
        }
        for extension in extensions {
            command.args(["-addext", extension]);
        }
        run("openssl", &command)?;
    }
    Ok(())
}

/// Seconds of both ends of iperf3.
fn iperf(mib: u64) -> Result<f64, BenchError> {
    let folder = tempfile::tempdir().map_err(io("a folder"))?;
    let mut command = Command::new("iperf3");
    command.args(["--server", "--one-off", "--forceflush", "--port", IPERF_PORT]);
    let mut server = Running::start(&command, "iperf3 --server", folder.path().join("log"))?;
    server.wait_for_word("listening")?;
    let mut command = Command::new("iperf3");
    command.args(["--client", "127.0.0.1", "--port", IPERF_PORT, "--json"]);
    command.args(["--parallel", STREAMS, "--bytes", &(mib * MIB).to_string()]);
    let said = run("iperf3", &command)?;
    server.finish(READY_MAX)?;
    let end: Value = serde_json::from_str(&said).unwrap_or(Value::Null);
    let end = &end["end"];
    let used = &end["cpu_utilization_percent"];
    let percent = used["host_total"].as_f64().zip(used["remote_total"].as_f64());
    let seconds = percent.zip(end["sum_sent"]["seconds"].as_f64());
    let missing = BenchError::Answer { program: "iperf3", what: "its times", answer: said };
    seconds.map(|((here, there), seconds)| (here + there) / 100.0 * seconds).ok_or(missing)
}
