//! Passthrough over loopback beside `iperf3 -P` with the same number of streams, in one run.
//!
//! `cargo run --release -p dwcp-benches --bin link -- [STREAMS] [REPEATS]`. Runs the two in turn
//! and prints each rate and the ratio of the medians. The region's first round is what is measured:
//! all pages as they are, sealed, hashed and written at the sink; iperf3 moves bytes that nobody
//! looks at and encrypts nothing, so the ratio says what safety costs.
#![forbid(unsafe_code)]

use serde_json::Value;
use std::process::{Child, Command, ExitCode, Stdio};

const SIZE: &str = "1GiB";
const IPERF_SECONDS: &str = "4";
const IPERF_PORT: &str = "52010";

/// Why there is no figure.
#[derive(Debug, thiserror::Error)]
enum BenchError {
    #[error("{program} can't be started: {source} ({cure})")]
    Start { program: &'static str, source: std::io::Error, cure: &'static str },
    #[error("{program} failed: {stderr}")]
    Failed { program: &'static str, stderr: String },
    #[error("{program} printed no JSON: {source}")]
    Json { program: &'static str, source: serde_json::Error },
    #[error("{program}'s answer has no {field}")]
    Field { program: &'static str, field: &'static str },
    #[error("{0} is not a number from 1 to 64")]
    Argument(String),
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("link: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), BenchError> {
    let streams = argument(1, 4)?;
    let repeats = argument(2, 3)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..repeats {
        ours.push(passthrough(streams)?);
        theirs.push(iperf(streams)?);
        let last = (ours.last(), theirs.last());
        if let (Some(ours), Some(theirs)) = last {
            println!("dwcp {ours:6.2} Gbit/s   iperf3 -P {streams} {theirs:6.2} Gbit/s");
        }
    }
    let (ours, theirs) = (median(&mut ours), median(&mut theirs));
    println!("median of {repeats}: dwcp {ours:.2}, iperf3 {theirs:.2}, ratio {:.3}", ours / theirs);
    Ok(())
}

fn argument(index: usize, default: u32) -> Result<u32, BenchError> {
    let Some(text) = std::env::args().nth(index) else { return Ok(default) };
    let number = text.parse().ok().filter(|number| (1..=64).contains(number));
    number.ok_or(BenchError::Argument(text))
}

fn median(rates: &mut [f64]) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// The rate of a first round in Gbit/s.
fn passthrough(streams: u32) -> Result<f64, BenchError> {
    const PROGRAM: &str = "cargo run --release -- demo";
    let streams = streams.to_string();
    let mut command = Command::new("cargo");
    command.args(["run", "--release", "--quiet", "--package", "dwcp", "--", "demo", "--json"]);
    command.args(["--coding", "passthrough", "--no-baseline", "--dirty-rate", "0"]);
    command.args(["--size", SIZE, "--streams", &streams]);
    let answer = json(PROGRAM, "run it in the project's folder", &mut command)?;
    let round = &answer["precopy_rounds"][0];
    let number = |field: &'static str| {
        round[field].as_f64().ok_or(BenchError::Field { program: PROGRAM, field })
    };
    Ok(number("wire_bytes")? * 8e-9 / number("seconds")?)
}

/// The rate of iperf3 in Gbit/s.
fn iperf(streams: u32) -> Result<f64, BenchError> {
    const PROGRAM: &str = "iperf3";
    const CURE: &str = "install the package iperf3";
    let mut server = iperf_server()?;
    let streams = streams.to_string();
    let mut client = Command::new("iperf3");
    client.args(["--client", "127.0.0.1", "--port", IPERF_PORT, "--json"]);
    client.args(["--time", IPERF_SECONDS, "--parallel", &streams, "--connect-timeout", "3000"]);
    let answer = json(PROGRAM, CURE, &mut client);
    // The server ends after one test; after a failed one it has to be told.
    let _ = server.kill();
    let _ = server.wait();
    let rate = answer?["end"]["sum_received"]["bits_per_second"].as_f64();
    let field = "end.sum_received.bits_per_second";
    rate.map(|bits| bits * 1e-9).ok_or(BenchError::Field { program: PROGRAM, field })
}

/// Starts a server and waits until it says that it listens.
fn iperf_server() -> Result<Child, BenchError> {
    let mut command = Command::new("iperf3");
    command.args(["--server", "--one-off", "--port", IPERF_PORT, "--forceflush"]);
    let cure = "install the package iperf3";
    let start = |source| BenchError::Start { program: "iperf3", source, cure };
    let mut server = command.stdout(Stdio::piped()).spawn().map_err(start)?;
    if let Some(stdout) = server.stdout.take() {
        let lines = std::io::BufRead::lines(std::io::BufReader::new(stdout));
        let listening = |line: &std::io::Result<String>| {
            line.as_ref().is_ok_and(|line| line.contains("listening"))
        };
        if !lines.into_iter().any(|line| listening(&line)) {
            return Err(BenchError::Failed {
                program: "iperf3 --server",
                stderr: "it ended".into(),
            });
        }
    }
    Ok(server)
}

fn json(
    program: &'static str,
    cure: &'static str,
    command: &mut Command,
) -> Result<Value, BenchError> {
    let output = command.output().map_err(|source| BenchError::Start { program, source, cure })?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(BenchError::Failed { program, stderr });
    }
    serde_json::from_slice(&output.stdout).map_err(|source| BenchError::Json { program, source })
}
