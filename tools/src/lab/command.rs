//! Programs of the system: run to their end, or started as children that never outlive the lab.
//!
//! A child gets the kernel's parent-death signal, so that a killed test leaves no QEMU behind. The
//! kernel ties that signal to the thread that forked, hence one thread of this module starts all
//! children and lives as long as the process. Called from any thread.

use super::error::LabError;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{LazyLock, Mutex, PoisonError};

/// How much of a failed program's output an error shows.
const SHOWN_BYTES: usize = 600;

type Order = (Command, Sender<io::Result<Child>>);

static STARTER: LazyLock<Mutex<Sender<Order>>> = LazyLock::new(|| {
    let (orders, received) = channel::<Order>();
    std::thread::spawn(move || {
        for (mut command, answer) in received {
            // Whoever asked may be gone; then the child is dropped and runs on until we end.
            drop(answer.send(command.spawn()));
        }
    });
    Mutex::new(orders)
});

/// A command that dies with this process, however it ends.
pub(crate) fn mortal(words: &[String]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).args(words).stdin(Stdio::null());
    command
}

/// Starts a command on the thread that lives as long as the process.
pub(crate) fn spawn(command: Command) -> Result<Child, LabError> {
    let line = format!("{command:?}");
    let (answer, received) = channel();
    let sent = STARTER.lock().unwrap_or_else(PoisonError::into_inner).send((command, answer));
    assert!(sent.is_ok(), "the thread that starts children never ends");
    let outcome = received.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()));
    outcome.map_err(|source| LabError::Start { command: line, source })
}

/// Runs a program to its end and returns what it printed; an error unless it succeeds.
pub(crate) fn run(words: &[&str]) -> Result<String, LabError> {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::null());
    finish(&mut command)
}

/// Like [`run`], for a command with settings.
pub(crate) fn finish(command: &mut Command) -> Result<String, LabError> {
    let line = format!("{command:?}").replace('"', "");
    let output =
        command.output().map_err(|source| LabError::Start { command: line.clone(), source })?;
    if !output.status.success() {
        return Err(LabError::Failed {
            command: line,
            status: output.status,
            output: tail(&output),
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn tail(output: &Output) -> String {
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    last_of(text.trim(), SHOWN_BYTES).to_owned()
}

/// The end of a text, cut at a character.
pub(crate) fn last_of(text: &str, bytes: usize) -> &str {
    let from = text.len().saturating_sub(bytes);
    let from = (from..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    &text[from..]
}

/// The place of a program; the folders of administration count too.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let administration = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let folders = std::env::split_paths(&path).chain(administration);
    folders.map(|folder| folder.join(program)).find(|place| place.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_program_shows_the_end_of_its_output() {
        let error = run(&["sh", "-c", "echo long; echo why >&2; exit 3"]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("why") && text.contains('3'), "{text}");
        assert_eq!(run(&["echo", "a"]).unwrap(), "a\n");
    }

    #[test]
    fn the_end_of_a_text_is_cut_at_a_character() {
        assert_eq!(last_of("aäb", 2), "b");
        assert_eq!(last_of("ab", 9), "ab");
    }
}
