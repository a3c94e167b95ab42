//! The commands that run beside a migration: relays and movers, each a group of processes.
//!
//! Owns the processes; they are ended when it is dropped. Their output goes to files in the
//! migration's folder, of which a failed row shows the end.

use super::cpu;
use crate::lab::command::{last_of, mortal, spawn};
use crate::lab::{LabError, wait_for};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

/// How long a command may take to end when told to.
const END_MAX: Duration = Duration::from_secs(5);

/// How much of each log is shown.
const SHOWN_BYTES: usize = 300;

/// Commands that run now.
#[derive(Debug)]
pub(super) struct Helpers<'a> {
    folder: &'a Path,
    children: Vec<Child>,
    /// So many of them ran to their end.
    past: usize,
    logs: Vec<PathBuf>,
}

impl<'a> Helpers<'a> {
    pub(super) fn new(folder: &'a Path) -> Self {
        Self { folder, children: Vec::new(), past: 0, logs: Vec::new() }
    }

    /// Starts a line for the shell, behind the words that choose its node.
    pub(super) fn start(
        &mut self,
        node: &[String],
        line: &str,
        settings: &[(&str, String)],
    ) -> Result<(), LabError> {
        let path = self.folder.join(format!("helper-{}.log", self.children.len()));
        let log = File::create(&path).map_err(LabError::file(&path))?;
        let errors = log.try_clone().map_err(LabError::file(&path))?;
        let shell = ["sh", "-c", line].map(str::to_owned);
        let mut command = mortal(&[node, &shell].concat());
        command.envs(settings.iter().map(|(name, value)| (name, value)));
        command.stdout(log).stderr(errors).process_group(0);
        self.children.push(spawn(command)?);
        self.logs.push(path);
        Ok(())
    }

    /// Runs a line for the shell to its end and returns its exit code; what it leaves in the
    /// background goes on.
    pub(super) fn run(
        &mut self,
        line: &str,
        settings: &[(&str, String)],
        limit: Duration,
    ) -> Result<i32, LabError> {
        self.start(&[], line, settings)?;
        let code = wait_for("end of a command", limit, || Ok(self.ended()))?;
        self.past = self.children.len();
        Ok(code)
    }

    /// How the first command that has ended did, of those that were started and not run to their
    /// end: its exit code, or what a shell makes of a signal. The process stays in the kernel's
    /// books, so that its time can be read.
    pub(super) fn ended(&self) -> Option<i32> {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        let code = |child: &Child| {
            let id = Pid::from_raw(i32::try_from(child.id()).ok()?);
            match waitid(Id::Pid(id), flags) {
                Ok(WaitStatus::Exited(_, code)) => Some(code),
                Ok(WaitStatus::Signaled(_, signal, _)) => Some(128 + signal as i32),
                _ => None,
            }
        };
        self.children[self.past..].iter().find_map(code)
    }

    /// Processor time of all of their processes so far.
    pub(super) fn cpu_s(&self) -> f64 {
        self.children.iter().map(|child| cpu::group_s(child.id())).sum()
    }

    /// The ends of their logs.
    pub(super) fn said(&self) -> String {
        let texts = self.logs.iter().map(|path| std::fs::read(path).unwrap_or_default());
        let texts = texts.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
        let ends: Vec<String> = texts.map(|text| last_of(&text, SHOWN_BYTES).to_owned()).collect();
        ends.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(" | ")
    }
}

impl Drop for Helpers<'_> {
    fn drop(&mut self) {
        for child in &mut self.children {
            let Ok(id) = i32::try_from(child.id()) else { continue };
            // The group outlives its first process if that left others behind.
            let group = Pid::from_raw(id);
            let _ = killpg(group, Signal::SIGTERM);
            let ended = || Ok(matches!(child.try_wait(), Ok(Some(_))).then_some(()));
            drop(wait_for("end of a command", END_MAX, ended));
            let _ = killpg(group, Signal::SIGKILL);
            drop(child.wait());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn commands_are_told_their_settings_and_end_with_us() {
        let folder = tempfile::tempdir().unwrap();
        let mut helpers = Helpers::new(folder.path());
        let settings = [("WORD", "hello".to_owned())];
        helpers.start(&[], "echo $WORD; exit 3", &settings).unwrap();
        assert_eq!(wait_for("end", SOON, || Ok(helpers.ended())).unwrap(), 3);
        assert_eq!(helpers.said(), "hello");

        let mut helpers = Helpers::new(folder.path());
        assert_eq!(helpers.run("sleep 1000 & exit 4", &[], SOON).unwrap(), 4);
        assert_eq!(helpers.ended(), None, "it was taken note of");
        helpers.start(&[], "sleep 1000 & echo $!; wait", &[]).unwrap();
        let path = folder.path().join("helper-1.log");
        let id = wait_for("id", SOON, || {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            Ok(text.trim().parse::<u32>().ok())
        })
        .unwrap();
        drop(helpers);
        let is_gone = || !Path::new("/proc").join(id.to_string()).join("exe").exists();
        wait_for("end of the child", SOON, || Ok(is_gone().then_some(()))).unwrap();
    }
}
