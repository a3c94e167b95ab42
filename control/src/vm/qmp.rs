//! A client of QEMU's monitor (QMP): commands out, answers and events in, over a Unix socket.
//!
//! Runs on the control thread inside one VM task, which owns it alone; there is no task of its own
//! and no channel. [`Qmp::ask`] and [`Qmp::next`] let a task watch orders and QEMU at once;
//! [`Qmp::execute`] is for the phases in which nothing else can happen.
//!
//! Invariants: no line longer than [`LINE_BYTES_MAX`] is held, events that come while an answer is
//! waited for are kept in order, an answer that nobody waits for any more is dropped by its number.

use super::error::QmpError;
use serde_json::{Map, Value, json};
use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{sleep, timeout};

/// The longest line taken. Answers grow with the machine: `query-machines` of an ARM build has
/// 80 KB, a `query-block` of a hundred images some 200 KB.
const LINE_BYTES_MAX: usize = 4 << 20;

/// How much is read at once.
const READ_BYTES: usize = 64 << 10;

/// The most events kept while an answer is waited for. QEMU limits the frequent ones itself.
const EVENTS_KEPT_MAX: usize = 1024;

/// How long a monitor may take to greet. QEMU greets at once; a busy one never does.
const GREETING_WAIT: Duration = Duration::from_secs(3);

/// How often a monitor is tried that others wait for.
const DIAL_EVERY: Duration = Duration::from_millis(10);

/// How long a command may take. QEMU's main loop stands still while it writes the last state.
pub(super) const COMMAND_WAIT: Duration = Duration::from_secs(30);

/// Something that QEMU told by itself.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct QmpEvent {
    /// Its name, such as `STOP`.
    pub(super) name: String,
    /// Its data, empty if it has none.
    pub(super) data: Value,
    /// When, by the clock of QEMU's host.
    pub(super) at_unix_us: u64,
}

impl QmpEvent {
    /// The state that a `MIGRATION` event tells.
    pub(super) fn migration_status(&self) -> Option<&str> {
        if self.name == "MIGRATION" { self.data.get("status")?.as_str() } else { None }
    }
}

/// The number of a command that was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct QmpId(u64);

/// What the monitor says next.
#[derive(Debug)]
pub(super) enum QmpItem {
    /// An event.
    Event(QmpEvent),
    /// An answer.
    Answer {
        /// To which command.
        id: QmpId,
        /// Its value, or QEMU's class and words.
        outcome: Result<Value, (String, String)>,
    },
}

/// A connection to a monitor that is ready for commands.
#[derive(Debug)]
pub(super) struct Qmp {
    stream: UnixStream,
    buffer: Vec<u8>,
    /// How much of the buffer was searched for a line's end already.
    searched: usize,
    events: VecDeque<QmpEvent>,
    last_id: u64,
}

impl Qmp {
    /// Connects, takes the greeting and leaves the negotiation mode.
    pub(super) async fn connect(path: &Path) -> Result<Self, QmpError> {
        let owned = || path.to_path_buf();
        let stream = timeout(GREETING_WAIT, dial(path)).await;
        let stream = stream
            .map_err(|_| QmpError::Busy { path: owned() })?
            .map_err(|source| failed(path, source))?;
        let mut qmp =
            Self { stream, buffer: Vec::new(), searched: 0, events: VecDeque::new(), last_id: 0 };
        // A monitor that serves somebody else accepts the connection and says nothing.
        let greeting = timeout(GREETING_WAIT, qmp.line()).await;
        let greeting = greeting.map_err(|_| QmpError::Busy { path: owned() })?;
        match greeting {
            Ok(greeting) if greeting.contains_key("QMP") => {}
            Ok(_) | Err(QmpError::NotJson | QmpError::LineTooLong { .. }) => {
                return Err(QmpError::NotQmp { path: owned() });
            }
            Err(error) => return Err(error),
        }
        qmp.execute("qmp_capabilities", Value::Null).await?;
        Ok(qmp)
    }

    /// The process at the other end and its user, as the kernel saw them when it began to listen.
    pub(super) fn owner(&self) -> Result<(Option<i32>, u32), QmpError> {
        let credentials = self.stream.peer_cred().map_err(QmpError::Io)?;
        // A process of another namespace shows as 0.
        Ok((credentials.pid().filter(|pid| *pid > 0), credentials.uid()))
    }

    /// Sends a command; the answer comes by [`Qmp::next`].
    pub(super) async fn ask(
        &mut self,
        command: &'static str,
        arguments: Value,
    ) -> Result<QmpId, QmpError> {
        self.last_id += 1;
        let mut message = json!({ "execute": command, "id": self.last_id });
        if !arguments.is_null() {
            message["arguments"] = arguments;
        }
        let mut line = message.to_string().into_bytes();
        line.push(b'\n');
        let sent = timeout(COMMAND_WAIT, self.stream.write_all(&line)).await;
        sent.map_err(|_| QmpError::Timeout { command, within: COMMAND_WAIT })?
            .map_err(io_failed)?;
        Ok(QmpId(self.last_id))
    }

    /// Waits for the next event or answer. Dropping the wait loses nothing.
    pub(super) async fn next(&mut self) -> Result<QmpItem, QmpError> {
        match self.events.pop_front() {
            Some(event) => Ok(QmpItem::Event(event)),
            None => self.fresh().await,
        }
    }

    /// Sends a command and waits for its answer.
    pub(super) async fn execute(
        &mut self,
        command: &'static str,
        arguments: Value,
    ) -> Result<Value, QmpError> {
        let asked = self.ask(command, arguments).await?;
        let answered = timeout(COMMAND_WAIT, self.answer(asked)).await;
        let outcome =
            answered.map_err(|_| QmpError::Timeout { command, within: COMMAND_WAIT })??;
        outcome.map_err(|(class, desc)| QmpError::Refused { command, class, desc })
    }

    async fn answer(&mut self, asked: QmpId) -> Result<Result<Value, (String, String)>, QmpError> {
        loop {
            match self.fresh().await? {
                QmpItem::Answer { id, outcome } if id == asked => return Ok(outcome),
                QmpItem::Answer { .. } => {}
                QmpItem::Event(event) => {
                    if self.events.len() == EVENTS_KEPT_MAX {
                        self.events.pop_front();
                        tracing::warn!("QEMU sent more events than are kept during one command");
                    }
                    self.events.push_back(event);
                }
            }
        }
    }

    /// The next item from the socket itself.
    async fn fresh(&mut self) -> Result<QmpItem, QmpError> {
        loop {
            let mut line = self.line().await?;
            if let Some(name) = line.get("event").and_then(Value::as_str) {
                let name = name.to_owned();
                let at_unix_us = stamp(line.get("timestamp"));
                let data = line.remove("data").unwrap_or(Value::Null);
                return Ok(QmpItem::Event(QmpEvent { name, data, at_unix_us }));
            }
            // An answer without a number is to something that we did not send.
            let Some(id) = line.get("id").and_then(Value::as_u64).map(QmpId) else { continue };
            if let Some(value) = line.remove("return") {
                return Ok(QmpItem::Answer { id, outcome: Ok(value) });
            }
            if let Some(error) = line.get("error") {
                let text = |field| error.get(field).and_then(Value::as_str).unwrap_or_default();
                let outcome = Err((text("class").to_owned(), text("desc").to_owned()));
                return Ok(QmpItem::Answer { id, outcome });
            }
        }
    }

    /// The next line. What was read stays in the buffer when the wait is dropped.
    async fn line(&mut self) -> Result<Map<String, Value>, QmpError> {
        loop {
            let fresh = self.buffer.get(self.searched..).unwrap_or_default();
            if let Some(offset) = fresh.iter().position(|byte| *byte == b'\n') {
                let end = self.searched + offset;
                let parsed = serde_json::from_slice(self.buffer.get(..end).unwrap_or_default());
                self.buffer.drain(..=end);
                self.searched = 0;
                return match parsed {
                    Ok(Value::Object(line)) => Ok(line),
                    Ok(_) | Err(_) => Err(QmpError::NotJson),
                };
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(QmpError::LineTooLong { bytes_max: LINE_BYTES_MAX });
            }
            self.buffer.reserve(READ_BYTES);
            if self.stream.read_buf(&mut self.buffer).await.map_err(io_failed)? == 0 {
                return Err(QmpError::Closed);
            }
        }
    }
}

/// A field of an answer that must be there.
pub(super) fn field<'a, T>(
    command: &'static str,
    value: &'a Value,
    field: &'static str,
    take: impl FnOnce(&'a Value) -> Option<T>,
) -> Result<T, QmpError> {
    value.get(field).and_then(take).ok_or(QmpError::Shape { command, field })
}

/// Connects. QEMU keeps two connections waiting; while they do, others are turned away at once.
async fn dial(path: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(DIAL_EVERY).await,
            connected => return connected,
        }
    }
}

fn stamp(timestamp: Option<&Value>) -> u64 {
    let part = |name| timestamp.and_then(|stamp| stamp.get(name)).and_then(Value::as_u64);
    // QEMU says -1 when it has no clock; such an event happened at a time that nobody knows.
    part("seconds")
        .zip(part("microseconds"))
        .and_then(|(seconds, micros)| seconds.checked_mul(1_000_000)?.checked_add(micros))
        .unwrap_or(0)
}

fn io_failed(source: io::Error) -> QmpError {
    match source.kind() {
        io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::UnexpectedEof => QmpError::Closed,
        _ => QmpError::Io(source),
    }
}

fn failed(path: &Path, source: io::Error) -> QmpError {
    let path = path.to_path_buf();
    match source.kind() {
        io::ErrorKind::NotFound => QmpError::Missing { path },
        io::ErrorKind::PermissionDenied => QmpError::Denied { path },
        io::ErrorKind::ConnectionRefused => QmpError::NobodyListens { path },
        _ => QmpError::Io(source),
    }
}
