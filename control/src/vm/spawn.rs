//! Starting and ending the QEMU of a sink that dwcp starts itself.
//!
//! Runs on the control thread in a sink's task. The QEMU is a process group of its own and
//! survives the daemon: once the guest runs in it, nothing but its monitor ties it to dwcp. What
//! it says on stderr is kept in a file beside its monitor.
//!
//! Invariants: no shell is involved; a QEMU in which a guest runs or stands paused is never ended
//! to make room; a process is ended through its own handle or its own monitor, never by a number.

use super::ending::seen;
use super::error::{QmpError, VmError};
use super::gather::run_state;
use super::qmp::Qmp;
use super::task::GuestState;
use serde_json::Value;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

/// How long QEMU may take to open its monitor: it allocates and preallocates memory before.
const START_WAIT: Duration = Duration::from_secs(60);

/// How often that is tried.
const START_EVERY: Duration = Duration::from_millis(20);

/// How long QEMU may take to end by its own `quit`.
const QUIT_WAIT: Duration = Duration::from_secs(5);

/// How much of QEMU's last words is told.
const STDERR_BYTES_MAX: u64 = 600;

/// All that is known of a QEMU that went and is nobody's child here.
pub(super) const MONITOR_CLOSED: &str = "its monitor closed";

/// Checks a command line of `vm.attach --spawn`.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_command(command: &[String]) -> Result<(), VmError> {
    let has = |flag: &str| {
        let double = format!("-{flag}");
        command.iter().any(|word| word == flag || *word == double)
    };
    let incoming: Vec<&str> = command
        .windows(2)
        .filter(|pair| matches!(pair[0].as_str(), "-incoming" | "--incoming"))
        .map(|pair| pair[1].as_str())
        .collect();
    // QEMU heeds the last of them.
    let why = match (has("-S"), incoming.last()) {
        _ if command.first().is_none_or(String::is_empty) => "it is empty",
        (_, Some(other)) if *other != "defer" => "its -incoming is not defer",
        (false, None) => "it lacks -S and -incoming defer",
        (false, Some(_)) => "it lacks -S",
        (true, None) => "it lacks -incoming defer",
        (true, Some(_)) if has("-daemonize") => {
            "it has -daemonize, but dwcp keeps hold of the process"
        }
        (true, Some(_)) => return Ok(()),
    };
    Err(VmError::SpawnCommand { why })
}

/// A QEMU that this daemon has started.
#[derive(Debug)]
pub(super) struct Spawned {
    child: Child,
    stderr: PathBuf,
}

/// Starts a QEMU with a monitor at `qmp` and connects to it. An old QEMU there that holds no
/// guest is ended first.
pub(super) async fn start(command: &[String], qmp: &Path) -> Result<(Spawned, Qmp), VmError> {
    check_command(command)?;
    make_room(qmp).await?;
    let stderr = qmp.with_extension("stderr");
    let child = launch(command, qmp, &stderr).map_err(|source| VmError::Spawn { source })?;
    let mut spawned = Spawned { child, stderr };
    match timeout(START_WAIT, spawned.monitor(qmp)).await {
        Ok(Ok(qmp)) => Ok((spawned, qmp)),
        Ok(Err(error)) => {
            spawned.kill().await;
            Err(error)
        }
        Err(_) => {
            spawned.kill().await;
            Err(QmpError::Timeout { command: "its start", within: START_WAIT }.into())
        }
    }
}

impl Spawned {
    /// What QEMU said last, for people.
    pub(super) fn last_words(&self) -> String {
        last_words(&self.stderr).unwrap_or_default()
    }

    /// How a QEMU whose monitor is closed ended, and its last words.
    pub(super) async fn ended(&mut self) -> String {
        let status = match timeout(QUIT_WAIT, self.child.wait()).await {
            Ok(Ok(status)) => status.to_string(),
            _ => MONITOR_CLOSED.to_owned(),
        };
        let words = self.last_words();
        if words.is_empty() { status } else { format!("{status}: {words}") }
    }

    /// Ends QEMU: by its monitor if there is one, by a signal otherwise.
    pub(super) async fn end(mut self, qmp: Option<Qmp>) {
        if let Some(mut qmp) = qmp {
            // It answers or just goes; the wait below sees either.
            let _ = timeout(QUIT_WAIT, qmp.execute("quit", Value::Null)).await;
        }
        if timeout(QUIT_WAIT, self.child.wait()).await.is_err() {
            self.kill().await;
        }
    }

    async fn kill(&mut self) {
        if let Err(error) = self.child.kill().await {
            tracing::warn!(%error, "a QEMU that dwcp started can't be ended");
        }
    }

    /// Waits for the monitor, or for QEMU's early end.
    async fn monitor(&mut self, path: &Path) -> Result<Qmp, VmError> {
        loop {
            match Qmp::connect(path).await {
                Ok(qmp) => return Ok(qmp),
                Err(QmpError::Missing { .. } | QmpError::NobodyListens { .. }) => {}
                // It ended between its greeting and its answer: the status tells more.
                Err(QmpError::Closed) => {}
                Err(error) => return Err(error.into()),
            }
            if let Some(status) =
                self.child.try_wait().map_err(|source| VmError::Spawn { source })?
            {
                let (status, stderr) = (status.to_string(), self.last_words());
                return Err(VmError::SpawnEnded { status, stderr });
            }
            sleep(START_EVERY).await;
        }
    }
}

fn launch(command: &[String], qmp: &Path, stderr: &Path) -> io::Result<Child> {
    let (program, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    if let Some(folder) = qmp.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    match fs::remove_file(qmp) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // QEMU's options know a comma in a value as two.
    let monitor = qmp.to_str().ok_or(io::ErrorKind::InvalidInput)?.replace(',', ",,");
    Command::new(program)
        .args(arguments)
        .arg("-qmp")
        .arg(format!("unix:{monitor},server=on,wait=off"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(stderr)?)
        .process_group(0)
        .kill_on_drop(false)
        .spawn()
}

/// Ends an old QEMU at this monitor if no guest is in it.
async fn make_room(path: &Path) -> Result<(), VmError> {
    let mut qmp = match Qmp::connect(path).await {
        Ok(qmp) => qmp,
        Err(QmpError::Missing { .. } | QmpError::NobodyListens { .. }) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let run_state = run_state(&mut qmp).await?;
    if seen(&run_state) != GuestState::Empty {
        return Err(VmError::NotIncoming { run_state });
    }
    match qmp.execute("quit", Value::Null).await {
        Ok(_) | Err(QmpError::Closed) => {}
        Err(error) => return Err(error.into()),
    }
    // Its images are free only when it is gone.
    let gone = async { while qmp.next().await.is_ok() {} };
    timeout(QUIT_WAIT, gone)
        .await
        .map_err(|_| QmpError::Timeout { command: "quit", within: QUIT_WAIT }.into())
}

fn last_words(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let bytes = file.metadata()?.len();
    file.seek(SeekFrom::Start(bytes.saturating_sub(STDERR_BYTES_MAX)))?;
    let mut text = Vec::new();
    file.take(STDERR_BYTES_MAX).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_without_what_a_sink_needs_is_refused() {
        let words = |text: &str| crate::vm::shell_words(text).unwrap();
        for (text, lacks) in [
            ("qemu -S -incoming defer", ""),
            ("qemu --S --incoming defer", ""),
            ("", "empty"),
            ("qemu", "-S and -incoming defer"),
            ("qemu -incoming defer", "lacks -S"),
            ("qemu -S", "lacks -incoming defer"),
            ("qemu -S -incoming", "lacks -incoming defer"),
            ("qemu -S -incoming tcp:0:1", "not defer"),
            ("qemu -S -incoming defer -incoming tcp:0:1", "not defer"),
            ("qemu -S -incoming defer -daemonize", "-daemonize"),
        ] {
            let checked = check_command(&words(text)).map_err(|error| error.to_string());
            assert_eq!(checked.is_ok(), lacks.is_empty(), "{text}: {checked:?}");
            assert!(checked.err().is_none_or(|said| said.contains(lacks)), "{text}: {lacks}");
        }
    }
}
