//! Programs that are measured, or that measure: started, waited for, ended with their owner.

use super::error::{BenchError, io};
use dwcp_tools::lab::{LabError, wait_for};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// How long a program may take until it works.
const READY_MAX: Duration = Duration::from_secs(30);

/// How much of a failed program's output an error shows.
const SHOWN_BYTES: usize = 600;

/// The kernel's unit of processor time in `/proc`, which is the same everywhere.
const TICKS_PER_SECOND: f64 = 100.0;

/// The same command as one that the kernel ends with the thread that started it.
#[must_use]
pub fn mortal(command: &Command) -> Command {
    let mut mortal = Command::new("setpriv");
    mortal.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program());
    mortal.args(command.get_args()).stdin(Stdio::null());
    if let Some(folder) = command.get_current_dir() {
        mortal.current_dir(folder);
    }
    mortal
}

/// Runs a program to its end and returns what it printed.
///
/// # Errors
/// It could not be started, or failed.
pub fn run(program: &'static str, command: &Command) -> Result<String, BenchError> {
    let output = mortal(command).output().map_err(io(program))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = [output.stdout, output.stderr].concat();
    let said = tail(&String::from_utf8_lossy(&said)).to_owned();
    Err(BenchError::Ended { program, status: output.status.to_string(), said })
}

/// A process that ends with its owner; what it prints goes to a file.
#[derive(Debug)]
pub struct Running {
    child: Child,
    program: &'static str,
    log: PathBuf,
}

impl Running {
    /// Starts it.
    ///
    /// # Errors
    /// It could not be started.
    pub fn start(
        command: &Command,
        program: &'static str,
        log: PathBuf,
    ) -> Result<Self, BenchError> {
        let file = File::create(&log).map_err(io("a log"))?;
        let mut command = mortal(command);
        command.stdout(file.try_clone().map_err(io("a log"))?).stderr(file);
        let child = command.spawn().map_err(io(program))?;
        Ok(Self { child, program, log })
    }

    /// Waits until it works.
    ///
    /// # Errors
    /// It ended, or does not within a bound.
    pub fn wait_until(
        &mut self,
        what: &str,
        mut works: impl FnMut(&Self) -> bool,
    ) -> Result<(), BenchError> {
        let mut ended = None;
        wait_for(what, READY_MAX, || {
            ended = self.try_wait()?;
            Ok((works(self) || ended.is_some()).then_some(()))
        })?;
        match ended {
            Some(status) if !works(self) => Err(self.has_ended(status.to_string())),
            _ => Ok(()),
        }
    }

    /// Waits until it has printed this.
    ///
    /// # Errors
    /// It ended, or does not within a bound.
    pub fn wait_for_word(&mut self, word: &str) -> Result<(), BenchError> {
        self.wait_until(word, |running| running.said().contains(word))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It failed, or does not end within `bound`.
    pub fn finish(mut self, bound: Duration) -> Result<String, BenchError> {
        let status = wait_for(self.program, bound, || self.try_wait())?;
        if status.success() { Ok(self.said()) } else { Err(self.has_ended(status.to_string())) }
    }

    /// What it has printed so far.
    #[must_use]
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The processor time that it has taken, user and system, of all its threads.
    ///
    /// # Errors
    /// It is gone.
    pub fn cpu_seconds(&self) -> Result<f64, BenchError> {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = std::fs::read_to_string(path).map_err(io("the process's times"))?;
        let what = "its processor time";
        cpu_seconds(&stat).ok_or(BenchError::Answer { program: self.program, what, answer: stat })
    }

    fn try_wait(&mut self) -> Result<Option<ExitStatus>, LabError> {
        let path = || PathBuf::from(self.program);
        self.child.try_wait().map_err(|source| LabError::File { path: path(), source })
    }

    fn has_ended(&self, status: String) -> BenchError {
        let said = tail(&self.said()).to_owned();
        BenchError::Ended { program: self.program, status, said }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// User and system time of a line of `/proc/PID/stat`.
fn cpu_seconds(stat: &str) -> Option<f64> {
    /// The place of the user time behind the name; the system time follows.
    const USER: usize = 11;
    let ticks = |at: usize| field(stat, at)?.parse::<f64>().ok();
    Some((ticks(USER)? + ticks(USER + 1)?) / TICKS_PER_SECOND)
}

/// A field behind the name, which may hold anything.
fn field(stat: &str, at: usize) -> Option<&str> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(at)
}

/// The processor time of each process that has this parent.
#[must_use]
pub fn children_cpu_seconds(parent: u32) -> BTreeMap<u32, f64> {
    /// The place of the parent behind the name.
    const PARENT: usize = 1;
    let parent = parent.to_string();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let child = |id: u32| {
        // It may be gone by now.
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        let is_child = field(&stat, PARENT) == Some(&parent);
        cpu_seconds(&stat).filter(|_| is_child).map(|seconds| (id, seconds))
    };
    ids.filter_map(child).collect()
}

fn tail(text: &str) -> &str {
    let text = text.trim();
    let from = text.len().saturating_sub(SHOWN_BYTES);
    let from = (from..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    &text[from..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 1";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(cpu_seconds("7 (a"), None);
    }

    #[test]
    fn children_are_found_by_their_parent() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sleep");
        command.arg("60");
        let running = Running::start(&command, "sleep", folder.path().join("log")).unwrap();
        assert!(children_cpu_seconds(std::process::id()).contains_key(&running.id()));
        assert!(!children_cpu_seconds(running.id()).contains_key(&running.id()));
    }

    #[test]
    fn a_program_that_fails_is_an_error_with_its_words() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo why; exit 3"]);
        let mut running = Running::start(&command, "sh", folder.path().join("log")).unwrap();
        let error = running.wait_for_word("never").unwrap_err().to_string();
        assert!(error.contains("why") && error.contains('3'), "{error}");
        assert!(run("sh", &command).is_err());
    }
}
