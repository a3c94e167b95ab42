//! One child process: what is run, how long it may take, and its output passed on line by line.
//!
//! Called by every step on the main thread. A reader thread per output keeps a child that prints on
//! two streams from stalling. Invariants: no child gets a standard input; a child past its limit is
//! killed, with everything that it started when no person is at a terminal.

use crate::error::TaskError;
use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// How often a child without output is looked after.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// How long output may still come after the end of the child; a process that it left behind may
/// keep the pipe open for ever.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// Where a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Out,
    Err,
}

/// A command to run from the root of the repository.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    words: Vec<String>,
    settings: Vec<(String, String)>,
    limit: Duration,
}

impl Call {
    /// A command by its words; it may take ten minutes.
    pub(crate) fn new(words: &[&str]) -> Self {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        Self { words, settings: Vec::new(), limit: Duration::from_secs(600) }
    }

    /// Adds words.
    pub(crate) fn with<S: Into<String>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.words.extend(words.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable.
    pub(crate) fn set(mut self, name: &str, value: impl Into<String>) -> Self {
        self.settings.push((name.to_owned(), value.into()));
        self
    }

    /// Gives it another limit.
    pub(crate) fn within(mut self, seconds: u64) -> Self {
        self.limit = Duration::from_secs(seconds);
        self
    }

    /// The command as a person would type it at the root.
    pub(crate) fn line(&self) -> String {
        let settings =
            self.settings.iter().map(|(name, value)| format!("{name}={}", quoted(value)));
        settings.chain(self.words.iter().map(|word| quoted(word))).collect::<Vec<_>>().join(" ")
    }

    /// Runs it with its output going where ours goes.
    pub(crate) fn run(&self, root: &Path) -> Result<(), TaskError> {
        println!("$ {}", self.line());
        let child = self.start(root, Stdio::inherit(), Stdio::inherit())?;
        self.follow(child, None, &mut |_, _| {})
    }

    /// Runs it and hands every line of its output to `each` as it comes.
    pub(crate) fn run_with(
        &self,
        root: &Path,
        each: &mut dyn FnMut(Stream, &str),
    ) -> Result<(), TaskError> {
        println!("$ {}", self.line());
        let mut child = self.start(root, Stdio::piped(), Stdio::piped())?;
        let (sender, lines) = channel();
        read_lines(child.stdout.take(), Stream::Out, &sender);
        read_lines(child.stderr.take(), Stream::Err, &sender);
        drop(sender);
        self.follow(child, Some(lines), each)
    }

    /// Starts it and leaves it running.
    pub(crate) fn start(&self, root: &Path, out: Stdio, err: Stdio) -> Result<Child, TaskError> {
        let (program, arguments) = self.words.split_first().unwrap_or_else(|| {
            unreachable!("a call is made of at least one word");
        });
        let mut command = Command::new(program);
        command.args(arguments).current_dir(root).stdin(Stdio::null()).stdout(out).stderr(err);
        for name in own_cargo_settings() {
            command.env_remove(name);
        }
        command.envs(self.settings.iter().map(|(name, value)| (name, value)));
        if is_unattended() {
            command.process_group(0);
        }
        command.spawn().map_err(|source| TaskError::Start { command: self.line(), source })
    }

    fn follow(
        &self,
        mut child: Child,
        lines: Option<Receiver<(Stream, String)>>,
        each: &mut dyn FnMut(Stream, &str),
    ) -> Result<(), TaskError> {
        let deadline = Instant::now() + self.limit;
        let mut ended: Option<(ExitStatus, Instant)> = None;
        // Without pipes there is nothing to receive, so a channel that stays silent paces the loop.
        let (_silent, nothing) = channel();
        let is_piped = lines.is_some();
        let lines = lines.unwrap_or(nothing);
        let status = loop {
            match lines.recv_timeout(LOOK_INTERVAL) {
                Ok((stream, line)) => {
                    each(stream, &line);
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) if ended.is_none() => {
                    std::thread::park_timeout(LOOK_INTERVAL);
                }
                Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => {}
            }
            if let Some((status, since)) = ended {
                let is_drained = lines
                    .try_recv()
                    .is_err_and(|error| error == std::sync::mpsc::TryRecvError::Disconnected);
                if !is_piped || is_drained || since.elapsed() > DRAIN_MAX {
                    break status;
                }
                continue;
            }
            let waited = child.try_wait();
            let waited =
                waited.map_err(|source| TaskError::Wait { command: self.line(), source })?;
            ended = waited.map(|status| (status, Instant::now()));
            if ended.is_none() && Instant::now() > deadline {
                end(&mut child);
                let seconds = self.limit.as_secs();
                return Err(TaskError::TooSlow { command: self.line(), seconds });
            }
        };
        if status.success() {
            return Ok(());
        }
        Err(TaskError::Failed { command: self.line(), status })
    }
}

/// Ends a child, and its whole group if it leads one.
pub(crate) fn end(child: &mut Child) {
    if is_unattended() {
        let group = format!("-{}", child.id());
        let mut kill = Command::new("kill");
        kill.args(["-KILL", "--", &group]).stdin(Stdio::null()).stderr(Stdio::null());
        // Whether or not the group could be ended, the child itself is ended below.
        drop(kill.status());
    }
    // An error here means that it has ended by itself.
    drop(child.kill());
    drop(child.wait());
}

/// Without a person at a terminal, a child leads a process group of its own, so that all of it can
/// be ended; with one, it stays in ours, so that Ctrl-C reaches it.
fn is_unattended() -> bool {
    !std::io::stdin().is_terminal()
}

/// Settings that cargo made for xtask itself and that must not leak into other builds.
fn own_cargo_settings() -> impl Iterator<Item = String> {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    names.filter(|name| {
        name.starts_with("CARGO_PKG_")
            || name.starts_with("CARGO_MANIFEST_")
            || ["CARGO_BIN_NAME", "CARGO_CRATE_NAME", "CARGO_PRIMARY_PACKAGE"]
                .contains(&name.as_str())
    })
}

fn read_lines<R: Read + Send + 'static>(
    source: Option<R>,
    stream: Stream,
    sender: &Sender<(Stream, String)>,
) {
    let Some(source) = source else { return };
    let sender = sender.clone();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(source);
        let mut bytes = Vec::new();
        while reader.read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
            let line = String::from_utf8_lossy(bytes.trim_ascii_end()).into_owned();
            if sender.send((stream, line)).is_err() {
                return;
            }
            bytes.clear();
        }
    });
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./=:,+@%".contains(&byte);
    if !word.is_empty() && word.bytes().all(is_plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, seconds: u64) -> (Result<(), TaskError>, Vec<(Stream, String)>) {
        let mut lines = Vec::new();
        let call = Call::new(&["sh", "-c", script]).within(seconds);
        let outcome = call
            .run_with(Path::new("."), &mut |stream, line| lines.push((stream, line.to_owned())));
        (outcome, lines)
    }

    #[test]
    fn lines_of_both_streams_arrive() {
        let (outcome, lines) = run("echo a; echo b >&2; printf c", 60);
        assert!(outcome.is_ok());
        assert!(lines.contains(&(Stream::Out, "a".to_owned())));
        assert!(lines.contains(&(Stream::Err, "b".to_owned())));
        assert!(lines.contains(&(Stream::Out, "c".to_owned())));
    }

    #[test]
    fn a_failed_command_names_itself() {
        let (outcome, _) = run("exit 3", 60);
        let text = outcome.unwrap_err().to_string();
        assert!(text.contains("sh -c 'exit 3'") && text.contains('3'), "{text}");
    }

    #[test]
    fn a_command_past_its_limit_is_ended() {
        let started = Instant::now();
        let (outcome, _) = run("sleep 600", 0);
        assert!(matches!(outcome, Err(TaskError::TooSlow { .. })));
        assert!(started.elapsed() < Duration::from_secs(300));
    }

    #[test]
    fn a_process_left_behind_does_not_hold_us_up() {
        let started = Instant::now();
        let (outcome, _) = run("sleep 20 & echo $!", 300);
        assert!(outcome.is_ok());
        assert!(started.elapsed() < Duration::from_secs(15));
    }

    #[test]
    fn lines_can_be_pasted_into_a_shell() {
        let call = Call::new(&["a b", "it's", ""]).set("X", "1 2").with(["c"]);
        assert_eq!(call.line(), "X='1 2' 'a b' 'it'\\''s' '' c");
    }
}
