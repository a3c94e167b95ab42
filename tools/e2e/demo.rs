//! `dwcp demo` and what it leaves behind.

use crate::harness::{SOON, wait_for, wait_until};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// A process by its number and the time of its start, so that a number given anew is not mistaken.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    id: u32,
    started: String,
}

/// Fields of `/proc/ID/stat` behind the name, which may hold anything but comes first.
const STATE: usize = 0;
const PARENT: usize = 1;
const STARTED: usize = 19;

impl Process {
    /// The process as it is now, with its state and parent; `None` if there is none.
    fn read(id: u32) -> Option<(Self, String, u32)> {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let started = (*fields.get(STARTED)?).to_owned();
        Some((Self { id, started }, (*fields.get(STATE)?).to_owned(), fields[PARENT].parse().ok()?))
    }

    /// True until it ended; nobody may have reaped it yet.
    fn runs(&self) -> bool {
        Self::read(self.id).is_some_and(|(it, state, _)| it == *self && state != "Z")
    }

    /// The daemons that a process has started.
    fn daemons_of(parent: u32) -> Vec<Self> {
        let all = std::fs::read_dir("/proc").expect("a proc file system").flatten();
        let ids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        ids.filter_map(Self::read)
            .filter(|(it, _, of)| *of == parent && it.words().get(1).is_some_and(|w| w == "daemon"))
            .map(|(it, ..)| it)
            .collect()
    }

    fn words(&self) -> Vec<String> {
        let line = std::fs::read_to_string(format!("/proc/{}/cmdline", self.id));
        line.unwrap_or_default().split('\0').map(str::to_owned).collect()
    }
}

/// A demo that moves a small region; ended when dropped, with the daemons known by then.
struct Demo {
    child: Child,
    daemons: Vec<Process>,
    _folder: TempDir,
}

impl Demo {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let mut command = Command::new(env!("CARGO_BIN_EXE_dwcp"));
        command.args(["demo", "--size", "64MiB", "--json"]).env("TMPDIR", folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("it starts");
        Self { child, daemons: Vec::new(), _folder: folder }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for daemon in self.daemons.iter().filter(|daemon| daemon.runs()) {
            let _ = Command::new("kill").args(["-9", &daemon.id.to_string()]).status();
        }
    }
}

#[test]
fn a_demo_that_is_killed_leaves_no_daemon_behind() {
    let mut demo = Demo::start();
    let parent = demo.child.id();
    demo.daemons = wait_for("both daemons", SOON, || {
        let daemons = Process::daemons_of(parent);
        (daemons.len() == 2).then_some(daemons)
    });
    assert!(Path::new(&format!("/proc/{parent}")).exists(), "the demo still runs");
    demo.child.kill().expect("our own child");
    demo.child.wait().expect("our own child");
    wait_until("the end of both daemons", SOON, || !demo.daemons.iter().any(Process::runs));
}
