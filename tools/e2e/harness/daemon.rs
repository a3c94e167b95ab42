//! A daemon as a child process: start, signals, restart, end.
//!
//! The child is killed by its own process number when its owner is dropped; a failing test prints
//! the end of its log.

use super::client::{Answer, Client, Pending};
use super::metrics::Metrics;
use super::{SOON, binary, wait_for, wait_until};
use dwcp_tools::lab::{Net, Node};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;

/// Where a daemon on a host of its own listens: nobody else is there.
const PORT: u16 = 7411;

/// What a daemon is started with.
#[derive(Clone, Debug)]
pub(crate) struct DaemonSpec {
    /// Its folder: socket, state, log.
    pub(crate) folder: PathBuf,
    /// Where its certificates are; plaintext without.
    pub(crate) pki: Option<PathBuf>,
    /// Further flags, after the usual ones.
    pub(crate) flags: Vec<String>,
    /// The host that it runs on; without one, the machine itself, on loopback.
    pub(crate) place: Option<(Arc<Net>, &'static str)>,
    /// What it runs.
    pub(crate) binary: PathBuf,
}

impl DaemonSpec {
    /// The usual daemon.
    pub(crate) fn new(folder: &Path, pki: Option<PathBuf>) -> Self {
        let (folder, binary) = (folder.to_owned(), binary::today());
        Self { folder, pki, flags: Vec::new(), place: None, binary }
    }

    /// Adds flags.
    pub(crate) fn with(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().map(|&flag| flag.to_owned()));
        self
    }

    /// Has it run another binary than today's.
    pub(crate) fn of(self, binary: &Path) -> Self {
        Self { binary: binary.to_owned(), ..self }
    }

    /// Puts it on a host of a network.
    pub(crate) fn on(self, net: &Arc<Net>, node: &'static str) -> Self {
        Self { place: Some((Arc::clone(net), node)), ..self }
    }

    fn node(&self) -> Option<&Node> {
        self.place.as_ref().map(|(net, node)| net.node(node))
    }

    /// Runs a closure on the daemon's host.
    fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        match self.node() {
            Some(node) => node.enter(inside).expect("the host is there"),
            None => inside(),
        }
    }

    fn free_address(&self) -> SocketAddr {
        self.enter(free_address)
    }

    /// The whole command.
    pub(crate) fn command(&self, metrics: SocketAddr) -> Command {
        let binary = &self.binary;
        let node = self.node();
        let mut command = node.map_or_else(|| Command::new(binary), |node| node.command(binary));
        let listen = match self.node() {
            Some(node) => format!("{}:{PORT}", node.address()),
            None => "127.0.0.1:0".to_owned(),
        };
        command.arg("daemon").arg("--socket").arg(self.socket());
        command.arg("--state").arg(self.folder.join("state"));
        command.args(["--listen", &listen, "--metrics", &metrics.to_string()]);
        match &self.pki {
            Some(folder) => command.arg("--pki").arg(folder),
            None => command.arg("--insecure-plaintext"),
        };
        let has = |name: &str| self.flags.iter().any(|flag| flag == name);
        let usual = [
            ("--poll", "park"),
            ("--streams", "2"),
            ("--window", "8MiB"),
            ("--memory", "256MiB"),
            ("--arena", "24MiB"),
        ];
        for (name, value) in usual.iter().filter(|(name, _)| !has(name)) {
            command.args([name, value]);
        }
        command.args(&self.flags);
        command
    }

    /// Its control socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }

    /// Its log.
    pub(crate) fn log(&self) -> PathBuf {
        self.folder.join("log")
    }
}

/// A running daemon.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) spec: DaemonSpec,
    child: Child,
    pub(crate) metrics_address: SocketAddr,
    pub(crate) listen: SocketAddr,
}

impl Daemon {
    /// Starts a daemon and waits until it serves.
    pub(crate) fn start(spec: DaemonSpec) -> Self {
        std::fs::create_dir_all(&spec.folder).expect("the daemon's folder");
        let metrics_address = spec.free_address();
        let child = spawn(&spec, metrics_address);
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let mut this = Self { spec, child, metrics_address, listen };
        this.wait_ready();
        this
    }

    fn wait_ready(&mut self) {
        let socket = self.spec.socket();
        let mut client = wait_for("the daemon's socket", SOON, || {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                let log = self.log();
                // Somebody took the port for metrics between our look and the daemon's start.
                let taken = format!("{} is in use", self.metrics_address);
                assert!(log.contains(&taken), "the daemon ended ({status}):\n{log}");
                self.metrics_address = self.spec.free_address();
                self.child = spawn(&self.spec, self.metrics_address);
            }
            Client::try_connect(&socket).ok()
        });
        let info = client.must("daemon.info", json!({}));
        let listen = info["listen"].as_str().expect("an address");
        self.listen = listen.parse().expect("an address");
        assert_eq!(info["pid"], json!(self.child.id()));
    }

    /// A new connection to it.
    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.spec.socket())
    }

    /// One call on a connection of its own.
    pub(crate) fn call(&self, method: &str, params: Value) -> Answer {
        self.client().call(method, params)
    }

    /// One call that must succeed.
    pub(crate) fn must(&self, method: &str, params: Value) -> Value {
        self.client().must(method, params)
    }

    /// A call that runs in the background.
    pub(crate) fn pending(&self, method: &'static str, params: Value) -> Pending {
        Pending::start(&self.spec.socket(), method, params)
    }

    /// Its metrics now.
    pub(crate) fn metrics(&self) -> Metrics {
        self.spec.enter(|| Metrics::scrape(self.metrics_address))
    }

    /// Waits until it has counted something of a family under one of these words.
    pub(crate) fn wait_counted(&self, family: &str, words: &[&str]) {
        let counted = || {
            let metrics = self.metrics();
            words.iter().any(|word| metrics.sum(family, &[&format!("=\"{word}\"")]) >= 1.0)
        };
        wait_until(&format!("{family} of {words:?}"), SOON, counted);
    }

    /// The records of sessions of a region, newest first.
    pub(crate) fn sessions_of(&self, region: &str) -> Vec<Value> {
        let list = self.must("session.list", json!({}));
        let records = list.as_array().expect("a list").iter();
        records.filter(|record| record["region"] == json!(region)).cloned().collect()
    }

    /// The record of one session, if the daemon knows it.
    pub(crate) fn session(&self, id: &str) -> Option<Value> {
        self.call("session.show", json!({"session": id})).ok()
    }

    /// The state of one session, or "unknown".
    pub(crate) fn state_of(&self, id: &str) -> String {
        let record = self.session(id).unwrap_or(Value::Null);
        record["state"].as_str().unwrap_or("unknown").to_owned()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("process numbers are small");
        kill(Pid::from_raw(pid), signal).expect("our own child takes signals");
    }

    /// Bounds how many descriptors it may open from now on; what is open stays.
    pub(crate) fn bound_descriptors(&self, most: u64) {
        let mut command = Command::new("prlimit");
        command.args(["--pid", &self.child.id().to_string(), &format!("--nofile={most}:")]);
        assert!(command.status().expect("prlimit is there").success(), "{command:?}");
    }

    /// Stops it with SIGSTOP and waits until it is.
    pub(crate) fn stop(&self) {
        self.signal(Signal::SIGSTOP);
        let path = format!("/proc/{}/stat", self.child.id());
        wait_until("the daemon stops", SOON, || {
            let stat = std::fs::read_to_string(&path).expect("our child is there");
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
        });
    }

    /// Lets a stopped one go on.
    pub(crate) fn go_on(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
    }

    /// Waits until it has ended by itself.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        wait_for("the daemon ends", SOON, || self.child.try_wait().expect("our own child"))
    }

    /// True while it runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().expect("our own child").is_none()
    }

    /// Starts it again after its end, with the same folder and so the same journal.
    pub(crate) fn restart(&mut self) {
        assert!(!self.runs(), "it must have ended before");
        self.metrics_address = self.spec.free_address();
        self.child = spawn(&self.spec, self.metrics_address);
        self.wait_ready();
    }

    /// A line of `/proc/PID/status` in bytes.
    pub(crate) fn memory_bytes(&self, line: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.expect("our child is there");
        let found = status.lines().find_map(|of| of.strip_prefix(line)?.strip_prefix(':'));
        let kib = found.and_then(|text| text.trim().strip_suffix(" kB")).expect("a size in kB");
        kib.trim().parse::<u64>().expect("a number") << 10
    }

    /// The processor time that one of its threads has used, in the kernel's ticks.
    pub(crate) fn thread_ticks(&self, name: &str) -> u64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let mut stats = tasks.expect("our child is there").filter_map(|task| {
            let stat = std::fs::read_to_string(task.ok()?.path().join("stat")).ok()?;
            let (head, rest) = stat.rsplit_once(") ")?;
            head.ends_with(&format!("({name}")).then(|| rest.to_owned())
        });
        let stat = stats.next().unwrap_or_else(|| panic!("no thread is named {name}"));
        // What follows the name begins with the third field; these are the 14th and the 15th.
        let used = stat.split(' ').skip(11).take(2);
        used.map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
    }

    /// How many descriptors it has open.
    pub(crate) fn descriptors(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.child.id());
        std::fs::read_dir(folder).expect("our child is there").count()
    }

    /// What it has written.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.spec.log()).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(30)..].join("\n");
            eprintln!("log of {}:\n{tail}", self.spec.folder.display());
        }
    }
}

fn spawn(spec: &DaemonSpec, metrics: SocketAddr) -> Child {
    let log = File::options().create(true).append(true).open(spec.log()).expect("the log");
    let mut command = spec.command(metrics);
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("a descriptor")).stderr(log);
    command.spawn().expect("the binary starts")
}

/// A loopback address that nobody uses now.
pub(crate) fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("a bound socket has an address")
}
