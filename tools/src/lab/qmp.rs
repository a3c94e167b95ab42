//! A small client for QEMU's monitor (QMP).
//!
//! Blocks on the caller's thread; every wait has a bound. Events that come while something else is
//! waited for are kept with QEMU's own time stamps. A monitor socket serves one client at a time.

use super::error::LabError;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long QEMU may take to answer; under emulation on a busy machine it takes seconds.
const ANSWER_MAX: Duration = Duration::from_secs(120);

/// Something that QEMU told without being asked.
#[derive(Clone, Debug)]
pub struct Event {
    /// Its name, such as `STOP`.
    pub name: String,
    /// What it says.
    pub data: Value,
    /// When it happened: QEMU's reading of the machine's clock, since the epoch.
    pub at: Duration,
}

/// A connection to a monitor.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    input: BufReader<UnixStream>,
    /// A line that has not come to its end.
    line: Vec<u8>,
    events: Vec<Event>,
}

impl Qmp {
    /// Connects to a monitor's socket and agrees on the protocol.
    ///
    /// # Errors
    /// Nobody listens there, or it is no monitor.
    pub fn connect(path: &Path) -> Result<Self, LabError> {
        let failed = |source| LabError::Monitor { command: "connect".to_owned(), source };
        let stream = UnixStream::connect(path).map_err(failed)?;
        let input = BufReader::new(stream.try_clone().map_err(failed)?);
        let mut qmp = Self { stream, input, line: Vec::new(), events: Vec::new() };
        let greeting = qmp.message("greeting", Instant::now() + ANSWER_MAX)?;
        if greeting.is_none() {
            return Err(too_slow("greeting", ANSWER_MAX));
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and returns what QEMU returns.
    ///
    /// # Errors
    /// QEMU refused it, ended, or did not answer in time.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, LabError> {
        let failed = |source| LabError::Monitor { command: command.to_owned(), source };
        let line = json!({"execute": command, "arguments": arguments}).to_string() + "\n";
        self.stream.write_all(line.as_bytes()).map_err(failed)?;
        let deadline = Instant::now() + ANSWER_MAX;
        loop {
            let Some(mut message) = self.message(command, deadline)? else {
                return Err(too_slow(command, ANSWER_MAX));
            };
            if let Some(error) = message.get("error") {
                let word = |name| error[name].as_str().unwrap_or_default().to_owned();
                return Err(LabError::Refused {
                    command: command.to_owned(),
                    class: word("class"),
                    description: word("desc"),
                });
            }
            if let Some(answer) = message.get_mut("return") {
                return Ok(answer.take());
            }
            self.keep_event(&message);
        }
    }

    /// All events so far, those that came unnoticed included.
    ///
    /// # Errors
    /// QEMU ended.
    pub fn events(&mut self) -> Result<&[Event], LabError> {
        while let Some(message) = self.message("events", Instant::now())? {
            self.keep_event(&message);
        }
        Ok(&self.events)
    }

    /// Waits for an event, which may have come already; the first of that name since the last
    /// [`Qmp::forget_events`].
    ///
    /// # Errors
    /// It did not come in time, or QEMU ended.
    pub fn wait_event(&mut self, name: &str, bound: Duration) -> Result<Event, LabError> {
        let deadline = Instant::now() + bound;
        loop {
            if let Some(event) = self.events.iter().find(|event| event.name == name) {
                return Ok(event.clone());
            }
            match self.message(name, deadline)? {
                Some(message) => self.keep_event(&message),
                None => return Err(too_slow(name, bound)),
            }
        }
    }

    /// When the last event of a name happened, as far as events have been read.
    #[must_use]
    pub fn stamp_of(&self, name: &str) -> Option<Duration> {
        self.events.iter().rev().find(|event| event.name == name).map(|event| event.at)
    }

    /// Forgets all events, before something new is watched.
    ///
    /// # Errors
    /// QEMU ended.
    pub fn forget_events(&mut self) -> Result<(), LabError> {
        self.events()?;
        self.events.clear();
        Ok(())
    }

    /// The state of the guest, such as `running`.
    ///
    /// # Errors
    /// QEMU ended or did not answer in time.
    pub fn status(&mut self) -> Result<String, LabError> {
        let answer = self.execute("query-status", json!({}))?;
        Ok(answer["status"].as_str().unwrap_or_default().to_owned())
    }

    fn keep_event(&mut self, message: &Value) {
        if let Some(name) = message["event"].as_str() {
            let stamp = &message["timestamp"];
            let seconds = Duration::from_secs(stamp["seconds"].as_u64().unwrap_or_default());
            let micros = Duration::from_micros(stamp["microseconds"].as_u64().unwrap_or_default());
            let (name, data) = (name.to_owned(), message["data"].clone());
            self.events.push(Event { name, data, at: seconds + micros });
        }
    }

    /// The next message; None when none came until the deadline.
    fn message(&mut self, command: &str, deadline: Instant) -> Result<Option<Value>, LabError> {
        let failed = |source| LabError::Monitor { command: command.to_owned(), source };
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Zero would mean to wait for ever.
            let wait = left.max(Duration::from_millis(1));
            self.stream.set_read_timeout(Some(wait)).map_err(failed)?;
            match self.input.read_until(b'\n', &mut self.line) {
                Ok(0) => return Err(failed(ErrorKind::UnexpectedEof.into())),
                Ok(_) if self.line.ends_with(b"\n") => {
                    let message = serde_json::from_slice(&self.line);
                    self.line.clear();
                    return message.map(Some).map_err(|error| failed(error.into()));
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_timeout(error.kind()) && left > Duration::ZERO => {}
                Err(error) if is_timeout(error.kind()) => return Ok(None),
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

fn is_timeout(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn too_slow(what: &str, bound: Duration) -> LabError {
    let detail = "QEMU is silent".to_owned();
    LabError::TooSlow { what: what.to_owned(), seconds: bound.as_secs(), detail }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    const SOON: Duration = Duration::from_secs(20);

    /// A monitor that says what it is told after each line that it reads.
    fn monitor(answers: &'static [&'static str]) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"{\"QMP\": {}}\n").unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            for answer in ["{\"return\": {}}\n"].iter().chain(answers) {
                let line = lines.next();
                assert!(line.is_some_and(|line| line.unwrap().starts_with("{\"")));
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        (folder, path)
    }

    #[test]
    fn answers_errors_and_events_are_told_apart() {
        let (_folder, path) = monitor(&[
            "{\"event\":\"STOP\",\"timestamp\":{\"seconds\":7,\"microseconds\":5}}\n\
             {\"return\":{\"status\":\"paused\"}}\n",
            "{\"error\":{\"class\":\"GenericError\",\"desc\":\"no\"}}\n\
             {\"event\":\"RESUME\",\"timestamp\":{\"seconds\":8,\"microseconds\":0}}\n",
        ]);
        let mut qmp = Qmp::connect(&path).unwrap();
        assert_eq!(qmp.status().unwrap(), "paused");
        assert_eq!(qmp.stamp_of("STOP"), Some(Duration::new(7, 5_000)));
        let refused = qmp.execute("x", json!({})).unwrap_err();
        assert!(matches!(refused, LabError::Refused { description, .. } if description == "no"));
        assert_eq!(qmp.wait_event("RESUME", SOON).unwrap().at, Duration::from_secs(8));
        let over = qmp.execute("y", json!({})).unwrap_err();
        assert!(matches!(over, LabError::Monitor { .. }), "{over}");
    }
}
