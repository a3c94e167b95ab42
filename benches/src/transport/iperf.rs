//! `iperf3` beside us: the same link, as many streams and the congestion control that is asked for.

use super::curve::Curve;
use super::error::{BenchError, io};
use super::process::Running;
use dwcp_tools::lab::Node;
use serde_json::Value;
use std::time::Duration;
use tempfile::TempDir;

const STEP_S: f64 = 0.1;

/// How long it may take beyond its own time.
const END_MAX: Duration = Duration::from_secs(60);

/// What iperf3 is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Iperf {
    /// Connections side by side.
    pub streams: u32,
    /// Their congestion control.
    pub congestion: &'static str,
    /// Where the server listens.
    pub port: u16,
}

/// A run that is under way.
#[derive(Debug)]
pub struct IperfRun {
    server: Running,
    client: Running,
    seconds: u32,
    _folder: TempDir,
}

impl Iperf {
    /// Its name in tables.
    #[must_use]
    pub fn name(&self) -> String {
        format!("iperf3 {} x{}", self.congestion, self.streams)
    }

    /// Starts server and client; the client begins at once.
    ///
    /// # Errors
    /// iperf3 is not there, or does not listen.
    pub fn start(&self, source: &Node, sink: &Node, seconds: u32) -> Result<IperfRun, BenchError> {
        let folder = tempfile::tempdir().map_err(io("a folder"))?;
        let port = self.port.to_string();
        let mut command = sink.command("iperf3");
        let step = STEP_S.to_string();
        command.args(["--server", "--one-off", "--json", "--interval", &step, "--port", &port]);
        let log = folder.path().join("server");
        let mut server = Running::start(&command, "iperf3 --server", log)?;
        server.wait_until("iperf3's server", |_| listens(sink, self.port))?;
        let mut command = source.command("iperf3");
        command.args(["--client", &sink.address().to_string(), "--port", &port, "--json"]);
        command.args(["--congestion", self.congestion, "--parallel", &self.streams.to_string()]);
        command.args(["--time", &seconds.to_string()]);
        let client = Running::start(&command, "iperf3", folder.path().join("client"))?;
        Ok(IperfRun { server, client, seconds, _folder: folder })
    }

    /// Runs for so many seconds; what arrived at the server.
    ///
    /// # Errors
    /// As [`Self::start`] and [`IperfRun::finish`].
    pub fn run(&self, source: &Node, sink: &Node, seconds: u32) -> Result<Curve, BenchError> {
        self.start(source, sink, seconds)?.finish()
    }
}

impl IperfRun {
    /// Waits for the end.
    ///
    /// # Errors
    /// It failed.
    pub fn finish(self) -> Result<Curve, BenchError> {
        let bound = Duration::from_secs(self.seconds.into()) + END_MAX;
        self.client.finish(bound)?;
        arrived(&self.server.finish(END_MAX)?)
    }
}

/// Bytes per step out of the server's words.
fn arrived(answer: &str) -> Result<Curve, BenchError> {
    let json: Value = serde_json::from_str(answer).unwrap_or(Value::Null);
    let intervals = json["intervals"].as_array();
    let sum = |interval: &Value| interval["sum"]["bytes"].as_u64();
    let bytes: Option<Vec<u64>> = intervals.and_then(|all| all.iter().map(sum).collect());
    let bytes = bytes.filter(|bytes| !bytes.is_empty());
    let missing = || BenchError::Answer {
        program: "iperf3 --server",
        what: "what arrived",
        answer: answer.to_owned(),
    };
    Ok(Curve { step_s: STEP_S, bytes: bytes.ok_or_else(missing)? })
}

/// Whether somebody listens on a port of a host.
fn listens(node: &Node, port: u16) -> bool {
    // `/proc/net` would show the namespace of the process, not of the thread.
    const TABLES: [&str; 2] = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];
    let tables = node.enter(|| TABLES.map(std::fs::read_to_string));
    let is_there = |table: String| table.lines().any(|line| is_listener(line, port));
    tables.is_ok_and(|tables| tables.into_iter().flatten().any(is_there))
}

/// A line of the kernel's table of connections that is a listener on the port.
fn is_listener(line: &str, port: u16) -> bool {
    let mut words = line.split_whitespace().skip(1);
    let (local, state) = (words.next().unwrap_or_default(), words.nth(1).unwrap_or_default());
    local.ends_with(&format!(":{port:04X}")) && state == "0A"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_intervals_are_the_curve() {
        let answer = r#"{"intervals": [{"sum": {"bytes": 7}}, {"sum": {"bytes": 0}}], "end": {}}"#;
        assert_eq!(arrived(answer).unwrap().bytes, [7, 0]);
        for answer in ["", "{}", r#"{"intervals": []}"#, r#"{"intervals": [{"sum": 1}]}"#] {
            assert!(arrived(answer).is_err(), "{answer}");
        }
    }

    #[test]
    fn a_listener_is_told_from_a_connection() {
        let line = |state| format!("  0: 00000000:CB2A 00000000:0000 {state} 00000000:00000000");
        assert!(is_listener(&line("0A"), 52010));
        assert!(!is_listener(&line("01"), 52010) && !is_listener(&line("0A"), 52011));
    }
}
