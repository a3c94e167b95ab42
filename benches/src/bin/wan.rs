//! Random bytes through two carriers over an emulated link, beside one stream of `iperf3` under BBR
//! over the same link, in turn.
//!
//! `cargo run --release -p dwcp-benches --bin wan -- [LINK] [MIB] [REPEATS]`, as root, with dwcp
//! built for release. What is measured is how a path is filled from its first byte on: from the
//! VMM's first byte to the last at the other end, and the segments that the path's queue dropped.
//! The carriers' link stands before, as iperf3's control connection does.
#![forbid(unsafe_code)]

use dwcp_tools::lab::{LabError, Net, NetSpec, Node, end_waits_on_signals};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::time::Instant;

const LINK: &str = "rate=100m,delay=50ms";
const PORT: u16 = 41_000;
const IPERF_PORT: &str = "52010";

/// Why there is no figure.
#[derive(Debug, thiserror::Error)]
enum BenchError {
    #[error("the emulated link: {0}")]
    Lab(#[from] LabError),
    #[error("{what}: {source}")]
    Io { what: &'static str, source: std::io::Error },
    #[error("{program} ended before it was ready")]
    Ended { program: &'static str },
    #[error("the bytes that arrived are not those that were sent")]
    Differs,
    #[error("iperf3 did not say how it went: {0}")]
    Json(String),
    #[error("{0} is not a number from 1 to 4096")]
    Argument(String),
}

/// Names what failed.
fn io(what: &'static str) -> impl Fn(std::io::Error) -> BenchError {
    move |source| BenchError::Io { what, source }
}

/// A process that ends with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Starts it and waits for a line of its output with this word.
    fn start(
        mut command: Command,
        program: &'static str,
        ready: &str,
    ) -> Result<(Self, BufReader<ChildStdout>), BenchError> {
        let mut child = command.stdout(Stdio::piped()).spawn().map_err(io(program))?;
        let stdout = child.stdout.take().ok_or(BenchError::Ended { program })?;
        let (running, mut stdout) = (Self(child), BufReader::new(stdout));
        let mut line = String::new();
        while !line.contains(ready) {
            line.clear();
            if stdout.read_line(&mut line).map_err(io(program))? == 0 {
                return Err(BenchError::Ended { program });
            }
        }
        Ok((running, stdout))
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wan: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), BenchError> {
    end_waits_on_signals();
    let link = std::env::args().nth(1).unwrap_or_else(|| LINK.to_owned());
    let data = random_bytes(argument(2, 48)? << 20);
    let repeats = argument(3, 3)?;
    let net = Net::up(&NetSpec::pair(&link.replace(',', " "))?)?;
    let dropped = || net.way("ab").stats().queue_full;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..repeats {
        let before = dropped();
        let seconds = carry(net.node("a"), net.node("b"), &data)?;
        let between = dropped();
        let their_seconds = iperf(net.node("a"), net.node("b"), data.len())?;
        let (our_drops, their_drops) = (between - before, dropped() - between);
        println!(
            "dwcp {seconds:6.2} s, {our_drops:5} segments dropped   \
             iperf3 {their_seconds:6.2} s, {their_drops:5} segments dropped"
        );
        ours.push(seconds);
        theirs.push(their_seconds);
    }
    let (ours, theirs) = (median(&mut ours), median(&mut theirs));
    println!("median of {repeats}: dwcp {ours:.2} s, iperf3 {theirs:.2} s, {:.3}", ours / theirs);
    Ok(())
}

fn argument(index: usize, default: usize) -> Result<usize, BenchError> {
    let Some(text) = std::env::args().nth(index) else { return Ok(default) };
    let number = text.parse().ok().filter(|number| (1..=4096).contains(number));
    number.ok_or(BenchError::Argument(text))
}

fn median(seconds: &mut [f64]) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// Bytes that can't be made smaller (xorshift64).
fn random_bytes(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..count / 8).flat_map(|_| next()).collect()
}

/// How long the bytes took through a pair of carriers.
fn carry(source: &Node, sink: &Node, data: &[u8]) -> Result<f64, BenchError> {
    let folder = tempfile::tempdir().map_err(io("a folder for sockets"))?;
    let (entry, exit) = (folder.path().join("entry"), folder.path().join("exit"));
    let listener = UnixListener::bind(&exit).map_err(io("the sink's socket"))?;
    let mut there = carrier(sink)?;
    there.args(["--listen", &format!("0.0.0.0:{PORT}"), "--connect-unix"]).arg(&exit);
    let _there = Running::start(there, "dwcp carry (sink)", "ready")?;
    let mut here = carrier(source)?;
    here.args(["--to", &format!("{}:{PORT}", sink.address()), "--listen-unix"]).arg(&entry);
    let _here = Running::start(here, "dwcp carry (source)", "linked")?;
    let arrived = std::thread::scope(|scope| {
        let started = Instant::now();
        let sending = scope.spawn(|| send(&entry, data));
        let (mut stream, _) = listener.accept().map_err(io("the sink's socket"))?;
        let mut arrived = vec![0; data.len()];
        stream.read_exact(&mut arrived).map_err(io("reading at the sink"))?;
        let seconds = started.elapsed().as_secs_f64();
        let _open = sending.join().map_err(|_| BenchError::Ended { program: "the sender" })??;
        Ok::<_, BenchError>((arrived == data).then_some(seconds))
    })?;
    arrived.ok_or(BenchError::Differs)
}

/// Sends and leaves the connection open: a VMM ends it once it was told to.
fn send(entry: &Path, data: &[u8]) -> Result<UnixStream, BenchError> {
    let mut stream = UnixStream::connect(entry).map_err(io("the source's socket"))?;
    stream.write_all(data).map_err(io("writing at the source"))?;
    Ok(stream)
}

/// The release build beside this program.
fn carrier(node: &Node) -> Result<Command, BenchError> {
    let own = std::env::current_exe().map_err(io("this program's path"))?;
    let mut command = node.command(own.with_file_name("dwcp"));
    command.args(["carry", "--insecure-plaintext", "--poll", "park", "--json"]);
    command.stderr(Stdio::null());
    Ok(command)
}

/// How long as many bytes take iperf3.
fn iperf(source: &Node, sink: &Node, bytes: usize) -> Result<f64, BenchError> {
    let mut server = sink.command("iperf3");
    server.args(["--server", "--one-off", "--port", IPERF_PORT, "--forceflush"]);
    let (mut server, mut said) = Running::start(server, "iperf3 --server", "listening")?;
    let mut client = source.command("iperf3");
    client.args(["--client", &sink.address().to_string(), "--port", IPERF_PORT, "--json"]);
    client.args(["--congestion", "bbr", "--bytes", &bytes.to_string()]);
    let answer = client.output().map_err(io("iperf3 --client"))?;
    let text = String::from_utf8_lossy(&answer.stdout);
    let end: Value = serde_json::from_str(&text).map_err(|e| BenchError::Json(e.to_string()))?;
    let mut rest = String::new();
    said.read_to_string(&mut rest).map_err(io("iperf3 --server"))?;
    server.0.wait().map_err(io("iperf3 --server"))?;
    let seconds = end["end"]["sum_received"]["seconds"].as_f64();
    let received = end["end"]["sum_received"]["bytes"].as_u64().unwrap_or(0);
    // The server stops counting when the client has sent all: what is then under way is not in it.
    let part = received as f64 / bytes as f64;
    seconds
        .filter(|_| part > 0.0)
        .map(|seconds| seconds / part)
        .ok_or(BenchError::Json(text.into()))
}
