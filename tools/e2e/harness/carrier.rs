//! Carriers as child processes, and what stands for VMMs at their Unix sockets.
//!
//! A child is killed by its own process number when its owner is dropped; a failing test prints
//! what it said.

use super::proxy::Proxy;
use super::{SOON, binary, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

/// A running carrier.
#[derive(Debug)]
pub(crate) struct Carrier {
    child: Child,
    events: Receiver<Value>,
    log: PathBuf,
}

impl Carrier {
    /// The command of a carrier in a test: plaintext without certificates.
    pub(crate) fn command(pki: Option<&Path>, flags: &[&str]) -> Command {
        Self::command_of(&binary::today(), pki, flags)
    }

    /// The same of another binary than today's.
    pub(crate) fn command_of(binary: &Path, pki: Option<&Path>, flags: &[&str]) -> Command {
        let mut command = Command::new(binary);
        command.arg("carry").args(flags);
        match pki {
            Some(folder) => command.arg("--pki").arg(folder),
            None => command.arg("--insecure-plaintext"),
        };
        command.args(["--poll", "park", "--streams", "2", "--window", "8MiB"]);
        command.args(["--memory", "256MiB", "--arena", "24MiB", "--json"]);
        command
    }

    /// Starts a carrier that writes to `log`.
    pub(crate) fn start(mut command: Command, log: PathBuf) -> Self {
        let file = File::create(&log).expect("the log");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
        let mut child = command.spawn().expect("the binary starts");
        let out = BufReader::new(child.stdout.take().expect("a pipe"));
        let (tell, events) = channel();
        // Ends with the child, whose end of the pipe closes then.
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).expect("each line is JSON");
                if tell.send(event).is_err() {
                    break;
                }
            }
        });
        Self { child, events, log }
    }

    /// Waits for the next event of a kind; others are skipped.
    pub(crate) fn event(&self, kind: &str) -> Value {
        let deadline = Instant::now() + SOON;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = self.events.recv_timeout(left);
            let event = event.unwrap_or_else(|error| panic!("no '{kind}': {error}"));
            if event["event"] == kind {
                return event;
            }
        }
    }

    /// Waits for the end of a session that failed; the stable code of the failure.
    pub(crate) fn failure(&self) -> String {
        let ended = self.event("ended");
        let code = ended["failure"]["code"].as_str();
        code.unwrap_or_else(|| panic!("it should have failed: {ended}")).to_owned()
    }

    /// Waits for the good end of a session.
    pub(crate) fn ended_well(&self) -> Value {
        let ended = self.event("ended");
        assert!(ended["failure"].is_null(), "{ended}");
        ended
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("process numbers are small");
        kill(Pid::from_raw(pid), signal).expect("our own child takes signals");
    }

    /// Waits until it has ended.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        wait_for("the carrier ends", SOON, || self.child.try_wait().expect("our own child"))
    }

    /// What it has written for people.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}:\n{}", self.log.display(), self.log());
        }
    }
}

/// A source and a sink carrier, and the folder of their sockets.
#[derive(Debug)]
pub(crate) struct Carriers {
    pub(crate) source: Carrier,
    pub(crate) sink: Carrier,
    pub(crate) folder: PathBuf,
}

impl Carriers {
    /// Starts both.
    pub(crate) fn start(
        folder: &Path,
        source: (Option<&Path>, &[&str]),
        sink: (Option<&Path>, &[&str]),
    ) -> Self {
        Self::start_both(folder, &[binary::today(), binary::today()], source, sink, |sink| sink)
    }

    /// Starts both with the same flags and a proxy between them.
    pub(crate) fn start_through(
        folder: &Path,
        binaries: &[PathBuf; 2],
        [source, sink]: [&Path; 2],
        flags: &[&str],
    ) -> (Self, Proxy) {
        let mut proxy = None;
        let via = |sink| proxy.insert(Proxy::start(sink)).address();
        let (source, sink) = ((Some(source), flags), (Some(sink), flags));
        let carriers = Self::start_both(folder, binaries, source, sink, via);
        (carriers, proxy.expect("it was started"))
    }

    /// Starts source and sink of these binaries.
    pub(crate) fn start_of(folder: &Path, of: &[PathBuf; 2], [source, sink]: [&Path; 2]) -> Self {
        Self::start_both(folder, of, (Some(source), &[]), (Some(sink), &[]), |sink| sink)
    }

    fn start_both(
        folder: &Path,
        [source_binary, sink_binary]: &[PathBuf; 2],
        (source_pki, source_flags): (Option<&Path>, &[&str]),
        (sink_pki, sink_flags): (Option<&Path>, &[&str]),
        via: impl FnOnce(SocketAddr) -> SocketAddr,
    ) -> Self {
        let path = |name: &str| folder.join(name).to_str().expect("a path in UTF-8").to_owned();
        let (to_vmm, from_vmm) = (path("in"), path("out"));
        let flags = ["--listen", "127.0.0.1:0", "--connect-unix", &to_vmm];
        let mut command = Carrier::command_of(sink_binary, sink_pki, &flags);
        command.args(sink_flags);
        let sink = Carrier::start(command, folder.join("sink.log"));
        let ready = sink.event("ready");
        let listen = ready["listen"].as_str().and_then(|it| it.parse().ok());
        let peer = via(listen.expect("an address")).to_string();
        let mut command = Carrier::command_of(
            source_binary,
            source_pki,
            &["--listen-unix", &from_vmm, "--to", &peer],
        );
        command.args(source_flags);
        let source = Carrier::start(command, folder.join("source.log"));
        source.event("ready");
        Self { source, sink, folder: folder.to_owned() }
    }

    /// Where the source VMM connects.
    pub(crate) fn out_path(&self) -> PathBuf {
        self.folder.join("out")
    }

    /// Where the destination VMM listens.
    pub(crate) fn in_path(&self) -> PathBuf {
        self.folder.join("in")
    }

    /// Begins to listen as a destination VMM.
    pub(crate) fn listen(&self) -> UnixListener {
        let listener = UnixListener::bind(self.in_path()).expect("the path is free");
        listener.set_nonblocking(true).expect("a flag of a socket");
        listener
    }

    /// Connects as a source VMM.
    pub(crate) fn connect(&self) -> UnixStream {
        bounded(UnixStream::connect(self.out_path()).expect("the source listens"))
    }

    /// Both ends of a channel.
    pub(crate) fn channel(&self, listener: &UnixListener) -> (UnixStream, UnixStream) {
        let near = self.connect();
        (near, accept(listener))
    }
}

/// Takes the next connection.
pub(crate) fn accept(listener: &UnixListener) -> UnixStream {
    let (stream, _) = wait_for("a connection to the VMM", SOON, || listener.accept().ok());
    stream.set_nonblocking(false).expect("a flag of a socket");
    bounded(stream)
}

fn bounded(stream: UnixStream) -> UnixStream {
    stream.set_read_timeout(Some(SOON)).expect("a bound");
    stream.set_write_timeout(Some(SOON)).expect("a bound");
    stream
}
