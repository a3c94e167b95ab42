//! A real QEMU with an empty guest that never runs, for tests of its migration stream.

use super::{SOON, wait_for};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// The binary that is asked for.
const BINARY: &str = "qemu-system-x86_64";

/// A running QEMU and its monitor.
#[derive(Debug)]
pub(crate) struct Qemu {
    child: Child,
    monitor: BufReader<UnixStream>,
}

impl Qemu {
    /// True when this machine has one.
    pub(crate) fn is_installed() -> bool {
        let mut command = Command::new(BINARY);
        command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }

    /// Starts one with 64 MiB and its monitor in `folder`.
    pub(crate) fn start(folder: &Path, name: &str, flags: &[&str]) -> Self {
        let path = folder.join(format!("{name}.qmp"));
        let mut command = Command::new(BINARY);
        command.args(["-machine", "pc", "-accel", "tcg", "-m", "64", "-nodefaults", "-S"]);
        command.args(["-display", "none", "-qmp"]);
        command.arg(format!("unix:{},server=on,wait=off", path.display())).args(flags);
        let child = command.stdin(Stdio::null()).spawn().expect("it was there a moment ago");
        let stream = wait_for("QEMU's monitor", SOON, || UnixStream::connect(&path).ok());
        stream.set_read_timeout(Some(SOON)).expect("a bound");
        let mut this = Self { child, monitor: BufReader::new(stream) };
        this.read();
        this.call("qmp_capabilities", json!({}));
        this
    }

    /// Has a command carried out that must succeed.
    pub(crate) fn call(&mut self, command: &str, arguments: Value) -> Value {
        let answer = self.try_call(command, arguments);
        answer.unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// Has a command carried out; QEMU's error if it refuses.
    fn try_call(&mut self, command: &str, arguments: Value) -> Result<Value, Value> {
        let mut line = json!({"execute": command, "arguments": arguments}).to_string();
        line.push('\n');
        self.monitor.get_mut().write_all(line.as_bytes()).expect("QEMU reads");
        loop {
            let mut answer = self.read();
            if !answer["error"].is_null() {
                return Err(answer);
            }
            if !answer["return"].is_null() {
                return Ok(answer["return"].take());
            }
        }
    }

    /// Switches capabilities of migrations on.
    pub(crate) fn set_capabilities(&mut self, names: &[&str]) {
        let on = |name: &&str| json!({"capability": name, "state": true});
        let capabilities: Vec<Value> = names.iter().map(on).collect();
        self.call("migrate-set-capabilities", json!({ "capabilities": capabilities }));
    }

    /// Waits for the end of a migration; its status.
    pub(crate) fn migration_ended(&mut self) -> String {
        wait_for("the end of the migration", SOON, || {
            let status = self.call("query-migrate", json!({}))["status"].take();
            let ended = ["completed", "failed", "cancelled"].iter().find(|end| status == **end);
            ended.map(|end| (*end).to_owned())
        })
    }

    fn read(&mut self) -> Value {
        let mut line = String::new();
        self.monitor.read_line(&mut line).expect("QEMU answers");
        serde_json::from_str(&line).expect("QEMU writes JSON")
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
