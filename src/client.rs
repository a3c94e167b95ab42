//! A client of the control socket: JSON-RPC 2.0, one document per line, descriptors beside it.
//!
//! Blocking, for one thread at a time; used by the client commands, the demo and the end-to-end
//! tests. Every wait has a bound. Notifications that arrive while an answer is awaited are kept, in
//! a bounded queue, for [`Client::next_notification`]. It never starts a daemon and never retries.

use dwcp_ffi::scm;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The longest line that a daemon may answer with: a full session list has less.
const LINE_BYTES_MAX: usize = 16 << 20;
/// Notifications kept while an answer is awaited; older ones make room and are counted.
const NOTIFICATIONS_MAX: usize = 1024;
/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;

/// A notification of the daemon.
#[derive(Clone, Debug)]
pub(crate) struct Notification {
    /// Its method, such as `session.state`.
    pub(crate) method: String,
    /// Its parameters.
    pub(crate) params: Value,
}

/// Why the daemon gave no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// Nobody listens.
    #[error(
        "no daemon listens on {}: start it with 'dwcp daemon', or name its socket with --socket",
        path.display()
    )]
    NoDaemon { path: PathBuf },
    /// The socket belongs to somebody else.
    #[error(
        "access to {} is denied: run as root or as a member of the socket's group",
        path.display()
    )]
    Denied { path: PathBuf },
    /// The socket can't be used.
    #[error("the socket {} can't be used ({source}): give another --socket", path.display())]
    Socket { path: PathBuf, source: io::Error },
    /// The answer did not come in time.
    #[error(
        "the daemon did not answer '{method}' within {} s: look at its log", within.as_secs()
    )]
    Timeout { method: String, within: Duration },
    /// The daemon ended the connection.
    #[error("the daemon closed the connection: look at its log")]
    Closed,
    /// The connection failed.
    #[error("the connection to the daemon failed ({0}): look at its log")]
    Io(#[source] io::Error),
    /// The answer is no JSON-RPC.
    #[error("the daemon's answer is no JSON-RPC ({detail}): is {} dwcp's socket?", path.display())]
    Protocol { path: PathBuf, detail: &'static str },
    /// The daemon understood and refused.
    #[error("{0}")]
    Refused(Box<Refusal>),
}

/// A refusal of the daemon.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    /// The JSON-RPC error number.
    pub(crate) number: i64,
    /// What is wrong.
    pub(crate) message: String,
    /// The stable name of the fault, if the daemon gave one.
    pub(crate) code: Option<String>,
    /// What to do about it, if the daemon knows.
    pub(crate) cure: Option<String>,
    /// Everything that was found not to fit, each with what to do about it.
    pub(crate) findings: Vec<String>,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        if let Some(cure) = &self.cure {
            write!(f, ": {cure}")?;
        }
        match &self.code {
            Some(code) => write!(f, " [{code}]")?,
            None => write!(f, " [{}]", self.number)?,
        }
        self.findings.iter().try_for_each(|finding| write!(f, "\n  {finding}"))
    }
}

impl ClientError {
    /// The stable name of the fault, when the daemon refused.
    pub(crate) fn code(&self) -> Option<&str> {
        match self {
            Self::Refused(refusal) => refusal.code.as_deref(),
            _ => None,
        }
    }

    /// Whether the daemon answered, with a no.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_))
    }
}

/// A connection to the daemon.
#[derive(Debug)]
pub(crate) struct Client {
    stream: UnixStream,
    path: PathBuf,
    /// What was read and not yet taken as a line.
    buffer: Vec<u8>,
    notifications: VecDeque<Notification>,
    notifications_lost: u64,
    next_id: u64,
    timeout: Duration,
}

impl Client {
    /// Connects to the daemon at `path`; each later answer may take `timeout`.
    ///
    /// # Errors
    /// Nobody listens there, or the socket may not be used.
    pub(crate) fn connect(path: &Path, timeout: Duration) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).map_err(|source| {
            let path = path.to_owned();
            match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                    ClientError::NoDaemon { path }
                }
                io::ErrorKind::PermissionDenied => ClientError::Denied { path },
                _ => ClientError::Socket { path, source },
            }
        })?;
        stream.set_write_timeout(Some(timeout)).map_err(ClientError::Io)?;
        Ok(Self {
            stream,
            path: path.to_owned(),
            buffer: Vec::new(),
            notifications: VecDeque::new(),
            notifications_lost: 0,
            next_id: 1,
            timeout,
        })
    }

    /// Changes how long each later answer may take.
    pub(crate) fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Notifications that were dropped because nobody took them.
    pub(crate) fn notifications_lost(&self) -> u64 {
        self.notifications_lost
    }

    /// Calls a method and waits for its result.
    ///
    /// # Errors
    /// The daemon refused, is gone, or did not answer in time.
    pub(crate) fn call(&mut self, method: &str, params: &Value) -> Result<Value, ClientError> {
        self.call_with_fds(method, params, &[])
    }

    /// Calls a method, passing descriptors along with the first byte of the request.
    ///
    /// # Errors
    /// The daemon refused, is gone, or did not answer in time.
    pub(crate) fn call_with_fds(
        &mut self,
        method: &str,
        params: &Value,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Value, ClientError> {
        let id = self.start(method, params, descriptors)?;
        let within = self.timeout;
        let answer = self.answer(id, within)?;
        answer.ok_or_else(|| ClientError::Timeout { method: method.to_owned(), within })
    }

    /// Calls a method whose answer [`Client::answer`] waits for.
    ///
    /// # Errors
    /// The daemon is gone.
    pub(crate) fn start(
        &mut self,
        method: &str,
        params: &Value,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<u64, ClientError> {
        let id = self.next_id;
        self.next_id += 1;
        let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        self.send(format!("{request}\n").as_bytes(), descriptors, method)?;
        Ok(id)
    }

    /// The result of a call, or nothing when none comes within the given time.
    ///
    /// # Errors
    /// The daemon refused or is gone.
    pub(crate) fn answer(
        &mut self,
        id: u64,
        within: Duration,
    ) -> Result<Option<Value>, ClientError> {
        let deadline = Instant::now() + within;
        while let Some(mut line) = self.next_line(deadline)? {
            if line.get("id").is_none_or(Value::is_null) && line.get("method").is_some() {
                self.keep(line)?;
                continue;
            }
            // A null id with an error answers a request that the daemon could not read.
            let answers = line.get("id").is_none_or(|of| of.is_null() || *of == json!(id));
            if answers && let Some(error) = line.get("error") {
                return Err(ClientError::Refused(Box::new(refusal(error))));
            }
            if line.get("id") == Some(&json!(id)) {
                let result = line.get_mut("result").map(Value::take);
                return result.map(Some).ok_or(self.protocol("neither result nor error"));
            }
            // The late answer to a call that timed out before.
        }
        Ok(None)
    }

    /// The oldest notification that came while an answer was awaited.
    pub(crate) fn kept_notification(&mut self) -> Option<Notification> {
        self.notifications.pop_front()
    }

    /// The next notification, or nothing when none comes within the given time.
    ///
    /// # Errors
    /// The daemon is gone.
    pub(crate) fn next_notification(
        &mut self,
        within: Duration,
    ) -> Result<Option<Notification>, ClientError> {
        let deadline = Instant::now() + within;
        while self.notifications.is_empty() {
            match self.next_line(deadline)? {
                Some(line) if line.get("method").is_some() => self.keep(line)?,
                Some(_) => {}
                None => return Ok(None),
            }
        }
        Ok(self.notifications.pop_front())
    }

    fn send(
        &mut self,
        request: &[u8],
        descriptors: &[BorrowedFd<'_>],
        method: &str,
    ) -> Result<(), ClientError> {
        let timeout = self.timeout;
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                ClientError::Timeout { method: method.to_owned(), within: timeout }
            }
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ClientError::Closed,
            _ => ClientError::Io(error),
        };
        let sent = if descriptors.is_empty() {
            0
        } else {
            scm::send_with_fds(self.stream.as_fd(), request, descriptors)
                .map_err(|error| failed(error.into()))?
        };
        self.stream.write_all(&request[sent..]).map_err(failed)
    }

    fn keep(&mut self, mut line: Value) -> Result<(), ClientError> {
        let method = line.get("method").and_then(Value::as_str).map(str::to_owned);
        let method = method.ok_or(self.protocol("the method is no text"))?;
        let params = line.get_mut("params").map_or(Value::Null, Value::take);
        if self.notifications.len() == NOTIFICATIONS_MAX {
            self.notifications.pop_front();
            self.notifications_lost += 1;
        }
        self.notifications.push_back(Notification { method, params });
        Ok(())
    }

    /// One line as JSON, or nothing when the deadline passes before it is whole.
    fn next_line(&mut self, deadline: Instant) -> Result<Option<Value>, ClientError> {
        let mut searched = 0;
        loop {
            let end = self.buffer[searched..].iter().position(|byte| *byte == b'\n');
            if let Some(end) = end {
                let line: Vec<u8> = self.buffer.drain(..=searched + end).collect();
                let value = serde_json::from_slice(&line);
                return value.map(Some).map_err(|_| self.protocol("a line is no JSON"));
            }
            searched = self.buffer.len();
            if searched > LINE_BYTES_MAX {
                return Err(self.protocol("a line never ends"));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            if !self.read_some(left)? {
                return Ok(None);
            }
        }
    }

    /// Reads what there is; false when nothing came within the given time.
    fn read_some(&mut self, within: Duration) -> Result<bool, ClientError> {
        self.stream.set_read_timeout(Some(within)).map_err(ClientError::Io)?;
        let mut bytes = [0; READ_BYTES];
        match self.stream.read(&mut bytes) {
            Ok(0) => Err(ClientError::Closed),
            Ok(count) => {
                self.buffer.extend_from_slice(&bytes[..count]);
                Ok(true)
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Ok(false),
                io::ErrorKind::Interrupted => Ok(true),
                io::ErrorKind::ConnectionReset => Err(ClientError::Closed),
                _ => Err(ClientError::Io(error)),
            },
        }
    }

    fn protocol(&self, detail: &'static str) -> ClientError {
        ClientError::Protocol { path: self.path.clone(), detail }
    }
}

fn refusal(error: &Value) -> Refusal {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let data = error.get("data");
    let findings = data.and_then(|data| data.get("findings")).and_then(Value::as_array);
    let finding = |found: &Value| {
        let (message, cure) = (text(found.get("message")), text(found.get("cure")));
        Some(format!("{}: {}", message?, cure?))
    };
    Refusal {
        number: error.get("code").and_then(Value::as_i64).unwrap_or_default(),
        message: text(error.get("message")).unwrap_or_else(|| "the daemon refused".to_owned()),
        code: text(data.and_then(|data| data.get("code"))),
        cure: text(data.and_then(|data| data.get("cure"))),
        findings: findings.into_iter().flatten().filter_map(finding).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::net::UnixListener;
    use std::thread::JoinHandle;

    const WAIT: Duration = Duration::from_secs(10);

    /// A daemon that answers the n-th line with the n-th script; `ID` stands for the request's id.
    fn daemon(scripts: &'static [&'static str]) -> (tempfile::TempDir, PathBuf, JoinHandle<()>) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).expect("the socket is bound");
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
            for script in scripts {
                let mut line = String::new();
                reader.read_line(&mut line).expect("a request");
                let request: Value = serde_json::from_str(&line).expect("the request is JSON");
                let id = request["id"].to_string();
                stream.write_all(script.replace("ID", &id).as_bytes()).expect("the answer leaves");
            }
        });
        (folder, path, thread)
    }

    #[test]
    fn notifications_before_the_answer_are_kept_in_order() {
        let (_folder, path, thread) = daemon(&[concat!(
            "{\"jsonrpc\":\"2.0\",\"method\":\"a\",\"params\":{\"n\":1}}\n",
            "{\"jsonrpc\":\"2.0\",\"id\":99,\"result\":0}\n",
            "{\"jsonrpc\":\"2.0\",\"method\":\"b\"}\n",
            "{\"jsonrpc\":\"2.0\",\"id\":ID,\"result\":{\"x\":7}}\n"
        )]);
        let mut client = Client::connect(&path, WAIT).expect("the daemon listens");
        let result = client.call("m", &json!({})).expect("an answer");
        assert_eq!(result, json!({"x": 7}));
        let next = |client: &mut Client| {
            client.next_notification(WAIT).expect("connected").expect("a notification").method
        };
        assert_eq!([next(&mut client), next(&mut client)], ["a", "b"]);
        assert_eq!(client.notifications_lost(), 0);
        thread.join().expect("the daemon ends well");
        assert!(matches!(client.next_notification(WAIT), Err(ClientError::Closed)));
    }

    #[test]
    fn a_refusal_keeps_code_and_cure() {
        let (_folder, path, thread) = daemon(&[concat!(
            "{\"jsonrpc\":\"2.0\",\"id\":ID,\"error\":{\"code\":-32001,\"message\":\"no session\",",
            "\"data\":{\"code\":\"session_unknown\",\"cure\":\"list them\",\"findings\":",
            "[{\"message\":\"4 is not 5\",\"cure\":\"add 1\"}]}}}\n"
        )]);
        let mut client = Client::connect(&path, WAIT).expect("the daemon listens");
        let error = client.call("m", &Value::Null).unwrap_err();
        assert_eq!(error.code(), Some("session_unknown"));
        let expected = "no session: list them [session_unknown]\n  4 is not 5: add 1";
        assert_eq!(error.to_string(), expected);
        thread.join().expect("the daemon ends well");
    }

    #[test]
    fn silence_ends_with_a_timeout_that_names_the_method() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("socket");
        let _listener = UnixListener::bind(&path).expect("the socket is bound");
        let mut client = Client::connect(&path, Duration::from_millis(50)).expect("it listens");
        let error = client.call("session.list", &Value::Null).unwrap_err();
        assert!(error.to_string().contains("'session.list'"), "{error}");
    }

    #[test]
    fn a_missing_daemon_and_garbage_are_told_apart() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let error = Client::connect(&folder.path().join("none"), WAIT).unwrap_err();
        assert!(matches!(error, ClientError::NoDaemon { .. }), "{error}");
        let (_folder, path, thread) = daemon(&["HTTP/1.1 400 Bad Request\n"]);
        let mut client = Client::connect(&path, WAIT).expect("it listens");
        let error = client.call("m", &Value::Null).unwrap_err();
        assert!(matches!(error, ClientError::Protocol { .. }), "{error}");
        thread.join().expect("the daemon ends well");
    }
}
