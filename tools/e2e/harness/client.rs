//! A blocking client of the control socket, for tests alone.
//!
//! Every wait has a bound. Bad answers fail the test; refusals are values.

use super::SOON;
use dwcp_ffi::scm;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long an order may take that moves a region.
const ORDER_WITHIN: Duration = Duration::from_secs(90);

/// Why a call gave no result.
#[derive(Clone, Debug)]
pub(crate) enum CallError {
    /// The daemon said no: the stable name of the fault, and all that it said.
    Refused { code: String, error: Value },
    /// The daemon closed the connection.
    Closed,
    /// No answer within the bound.
    Late,
}

impl CallError {
    /// The stable name of the fault.
    pub(crate) fn code(&self) -> &str {
        match self {
            Self::Refused { code, .. } => code,
            Self::Closed => "connection closed",
            Self::Late => "no answer in time",
        }
    }

    /// A member of `error.data`.
    pub(crate) fn detail(&self, name: &str) -> String {
        match self {
            Self::Refused { error, .. } => {
                error["data"][name].as_str().unwrap_or_default().to_owned()
            }
            _ => String::new(),
        }
    }
}

/// The outcome of a call.
pub(crate) type Answer = Result<Value, CallError>;

/// A connection to a daemon.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    buffer: Vec<u8>,
    notifications: VecDeque<Value>,
    next_id: u64,
}

impl Client {
    /// Connects; the daemon must be there.
    pub(crate) fn connect(socket: &Path) -> Self {
        Self::try_connect(socket).unwrap_or_else(|e| panic!("connect {}: {e}", socket.display()))
    }

    /// Connects, if somebody listens.
    pub(crate) fn try_connect(socket: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_write_timeout(Some(SOON))?;
        Ok(Self { stream, buffer: Vec::new(), notifications: VecDeque::new(), next_id: 1 })
    }

    /// Calls a method.
    pub(crate) fn call(&mut self, method: &str, params: Value) -> Answer {
        self.call_with_fds(method, params, &[])
    }

    /// Calls a method that must succeed.
    pub(crate) fn must(&mut self, method: &str, params: Value) -> Value {
        self.call(method, params).unwrap_or_else(|error| panic!("{method}: {error:?}"))
    }

    /// Calls a method with descriptors.
    pub(crate) fn call_with_fds(
        &mut self,
        method: &str,
        params: Value,
        descriptors: &[BorrowedFd<'_>],
    ) -> Answer {
        let id = self.next_id;
        self.next_id += 1;
        let line = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        self.send(format!("{line}\n").as_bytes(), descriptors).map_err(|_| CallError::Closed)?;
        let deadline = Instant::now() + ORDER_WITHIN;
        loop {
            let mut answer = self.next_line(deadline)?;
            if answer.get("method").is_some() {
                self.notifications.push_back(answer);
            } else if answer["id"] == json!(id) {
                return outcome(&mut answer);
            }
        }
    }

    /// Sends bytes as they are.
    pub(crate) fn send(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let sent =
            if fds.is_empty() { 0 } else { scm::send_with_fds(self.stream.as_fd(), bytes, fds)? };
        self.stream.write_all(&bytes[sent..])
    }

    /// The next line, answer or notification.
    pub(crate) fn line(&mut self, within: Duration) -> Answer {
        self.next_line(Instant::now() + within)
    }

    /// The next notification, as `(method, params)`.
    pub(crate) fn notification(&mut self, within: Duration) -> Option<(String, Value)> {
        let mut found = match self.notifications.pop_front() {
            Some(found) => found,
            None => self.line(within).ok()?,
        };
        let method = found["method"].as_str().expect("a notification").to_owned();
        Some((method, found["params"].take()))
    }

    fn next_line(&mut self, deadline: Instant) -> Answer {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Ok(serde_json::from_slice(&line).expect("a daemon's line is JSON"));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CallError::Late);
            }
            self.stream.set_read_timeout(Some(left)).expect("a time that is not zero");
            let mut bytes = [0; 64 << 10];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(CallError::Closed),
                Ok(count) => self.buffer.extend_from_slice(&bytes[..count]),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                    _ => return Err(CallError::Closed),
                },
            }
        }
    }
}

fn outcome(answer: &mut Value) -> Answer {
    match answer.get("error") {
        None => Ok(answer["result"].take()),
        Some(error) => {
            let code = error["data"]["code"].as_str().expect("an error has a stable code");
            assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()), "{error}");
            assert!(error["data"]["cure"].as_str().is_some_and(|cure| !cure.is_empty()), "{error}");
            Err(CallError::Refused { code: code.to_owned(), error: error.clone() })
        }
    }
}

/// A call that runs while the test does something else.
#[derive(Debug)]
pub(crate) struct Pending(JoinHandle<Answer>);

impl Pending {
    /// Starts a call on a connection of its own.
    pub(crate) fn start(socket: &Path, method: &'static str, params: Value) -> Self {
        let mut client = Client::connect(socket);
        Self(std::thread::spawn(move || client.call(method, params)))
    }

    /// Whether it has ended.
    pub(crate) fn is_over(&self) -> bool {
        self.0.is_finished()
    }

    /// Its outcome; bounded by the call's own bound.
    pub(crate) fn finish(self) -> Answer {
        self.0.join().expect("the caller does not panic")
    }
}
