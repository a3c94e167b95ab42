//! The control socket's I/O: one task that accepts, one task per client.
//!
//! Runs on the control thread. Every client is bounded: bytes per request, requests without an
//! answer, lines not yet read. Whatever one client does, the others are served.

use super::client::{ClientHandle, ClientId, ClientQueue, client_queue};
use super::errors::{ApiCode, ApiError};
use super::framing::{Line, LineBuffer};
use super::memory::{ClientMemory, PartialShare};
use super::method::parse_line;
use super::request::Request;
use super::response::{Reply, response_line};
use crate::config::SocketConfig;
use crate::error::ControlError;
use crate::limits::{
    CLIENT_READ_BYTES, CLIENT_REQUESTS_IN_FLIGHT, CLIENT_WRITE_TIMEOUT, REQUEST_DESCRIPTORS_MAX,
};
use crate::network::accept::Acceptor;
use crate::tally::Tally;
use serde_json::Value;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

/// A valid request, with its descriptors and the right to answer it.
#[derive(Debug)]
pub(crate) struct ApiCall {
    pub(crate) request: Request,
    pub(crate) descriptors: Vec<OwnedFd>,
    pub(crate) reply: Reply,
}

/// What the control socket tells the core.
#[derive(Debug)]
pub(crate) enum ApiInput {
    /// A client asks.
    Call(ApiCall),
    /// A client went away, or no longer reads.
    Gone(ClientId),
}

/// What the control socket counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct ApiCounters {
    /// Valid requests by method.
    pub(crate) requests: Tally,
    /// Error answers by code that never reached the core.
    pub(crate) errors: Tally,
    /// Connections dropped or refused, by reason.
    pub(crate) dropped: Tally,
    clients: Rc<std::cell::Cell<usize>>,
}

impl ApiCounters {
    /// Clients connected now.
    pub(crate) fn clients(&self) -> usize {
        self.clients.get()
    }
}

/// The bound control socket. Its file goes away with it.
#[derive(Debug)]
pub(crate) struct ApiServer {
    listener: UnixListener,
    config: SocketConfig,
    counters: ApiCounters,
    group_id: u32,
    file: SocketFile,
}

/// Removes the socket's file when dropped, if it is still the one that we made.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if std::fs::symlink_metadata(&self.path).is_ok_and(|m| m.ino() == self.inode) {
            // The file may be gone by now, which is what is wanted.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl ApiServer {
    /// Binds the socket. A file left by a dead daemon is replaced; a live daemon's is not touched.
    ///
    /// # Errors
    /// The path is taken or can't be used.
    pub(crate) fn bind(config: SocketConfig, counters: ApiCounters) -> Result<Self, ControlError> {
        let path = config.path.clone();
        refuse_live_socket(&path)?;
        let fail = |source| ControlError::Socket { path: path.clone(), source };
        // The socket gets its rights under another name, so that it is never open to all.
        let mut staged = path.clone().into_os_string();
        staged.push(".new");
        let staged = PathBuf::from(staged);
        let _ = std::fs::remove_file(&staged);
        let listener = UnixListener::bind(&staged).map_err(fail)?;
        let finish = || {
            if config.group_id.is_some() {
                std::os::unix::fs::chown(&staged, None, config.group_id)?;
            }
            std::fs::set_permissions(&staged, std::fs::Permissions::from_mode(config.mode))?;
            let metadata = std::fs::symlink_metadata(&staged)?;
            std::fs::rename(&staged, &path)?;
            Ok(metadata)
        };
        let metadata = finish().map_err(|source| {
            let _ = std::fs::remove_file(&staged);
            fail(source)
        })?;
        let file = SocketFile { path: config.path.clone(), inode: metadata.ino() };
        Ok(Self { listener, config, counters, group_id: metadata.gid(), file })
    }

    /// Accepts clients until the core no longer listens; `failures` counts what could not be
    /// accepted.
    pub(crate) async fn serve(self, inputs: mpsc::Sender<ApiInput>, failures: Tally) {
        let _file = &self.file;
        let memory = ClientMemory::default();
        let mut next_id = 0;
        let mut acceptor = Acceptor::new("control_socket", failures);
        loop {
            let (stream, _) = tokio::select! {
                accepted = acceptor.next(|| self.listener.accept()) => accepted,
                () = inputs.closed() => return,
            };
            next_id += 1;
            if let Err(error) = self.admit(&stream) {
                self.counters.dropped.add(error.code.name());
                let _ = stream.try_write(&response_line(&Value::Null, Err(error)));
                continue;
            }
            let client = Client {
                id: ClientId(next_id),
                stream,
                inputs: inputs.clone(),
                request_bytes_max: self.config.request_bytes_max,
                counters: self.counters.clone(),
                memory: memory.clone(),
            };
            self.counters.clients.set(self.counters.clients.get() + 1);
            tokio::task::spawn_local(client.run());
        }
    }

    /// Whether a new client may stay. The kernel has checked the socket's permission bits; this
    /// checks the same rule again, against a socket passed on or a directory opened by mistake.
    fn admit(&self, stream: &UnixStream) -> Result<(), ApiError> {
        let not_allowed = || {
            ApiError::new(ApiCode::NotAllowed, "this user may not use the daemon's control socket")
        };
        let peer = stream.peer_cred().map_err(|_| not_allowed())?;
        let own_uid = std::fs::metadata("/proc/self").map_err(|_| not_allowed())?.uid();
        let in_group = || {
            peer.gid() == self.group_id
                || peer.pid().is_some_and(|pid| groups_of(pid).contains(&self.group_id))
        };
        if peer.uid() != 0 && peer.uid() != own_uid && !in_group() {
            return Err(not_allowed());
        }
        if self.counters.clients.get() >= self.config.clients_max {
            let message = format!("{} clients are connected already", self.config.clients_max);
            return Err(ApiError::new(ApiCode::ClientsTooMany, message));
        }
        Ok(())
    }
}

/// The supplementary groups of a process, or none when it is gone.
fn groups_of(pid: i32) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    groups.split_whitespace().filter_map(|group| group.parse().ok()).collect()
}

fn refuse_live_socket(path: &Path) -> Result<(), ControlError> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(ControlError::Socket { path: path.to_owned(), source }),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            Err(ControlError::NotASocket { path: path.to_owned() })
        }
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            Err(source) if source.kind() != io::ErrorKind::WouldBlock => {
                Err(ControlError::Socket { path: path.to_owned(), source })
            }
            _ => Err(ControlError::SocketInUse { path: path.to_owned() }),
        },
    }
}

/// One connected client.
struct Client {
    id: ClientId,
    stream: UnixStream,
    inputs: mpsc::Sender<ApiInput>,
    request_bytes_max: usize,
    counters: ApiCounters,
    memory: ClientMemory,
}

impl Client {
    async fn run(self) {
        let (handle, mut queue) = client_queue(self.id, self.memory.clone());
        let overflow = queue.overflow();
        let dropped = tokio::select! {
            reason = self.read_until_end(handle) => Ok(reason),
            reason = self.write_until_end(&mut queue) => Err(reason),
            () = overflow => Err("does_not_read"),
        };
        // After this the core holds no subscription of the client; answers still owed go out.
        let _ = self.inputs.send(ApiInput::Gone(self.id)).await;
        match dropped {
            Ok(reason) => {
                if let Some(reason) = reason {
                    self.counters.dropped.add(reason);
                    queue.close();
                }
                if !self.peer_closed_both_ways().await {
                    self.write_until_end(&mut queue).await;
                }
            }
            Err(reason) => self.counters.dropped.add(reason),
        }
        self.counters.clients.set(self.counters.clients.get() - 1);
    }

    /// Reads requests until the client closes its side (`None`) or must be dropped (the reason).
    async fn read_until_end(&self, handle: ClientHandle) -> Option<&'static str> {
        let places = Arc::new(Semaphore::new(CLIENT_REQUESTS_IN_FLIGHT));
        let mut buffer = vec![0; CLIENT_READ_BYTES];
        let mut framing = LineBuffer::new(self.request_bytes_max);
        let mut lines = VecDeque::new();
        let share: PartialShare = self.memory.partial_share(self.id);
        loop {
            let read = tokio::select! {
                biased;
                () = share.given_up() => {
                    let message = "all clients together send more than the daemon holds, and this \
                                   request is the longest";
                    return self.refuse_all(&handle, ApiCode::RequestMemory, message);
                }
                read = read_some(&self.stream, &mut buffer) => read,
            };
            let (bytes, descriptors) = match read {
                Ok((0, _)) => return None,
                Ok(read) => read,
                Err(_) => return Some("read_failed"),
            };
            if let Err(error) = framing.push(&buffer[..bytes], descriptors, &mut lines) {
                return self.refuse_all(&handle, ApiCode::RequestTooLong, &error.to_string());
            }
            share.set(framing.partial_bytes());
            while let Some(line) = lines.pop_front() {
                let place = Arc::clone(&places).acquire_owned().await.ok()?;
                if let Some(input) = self.call(line, &handle, place)
                    && self.inputs.send(input).await.is_err()
                {
                    return Some("stopping");
                }
            }
        }
    }

    /// Tells a client why it is dropped; returns the reason under which that is counted.
    fn refuse_all(
        &self,
        handle: &ClientHandle,
        code: ApiCode,
        message: &str,
    ) -> Option<&'static str> {
        self.counters.errors.add(code.name());
        let error = ApiError::new(code, message);
        handle.send(response_line(&Value::Null, Err(error)));
        Some(code.name())
    }

    /// Turns a line into a call, or answers it here if it is none.
    fn call(
        &self,
        line: Line,
        handle: &ClientHandle,
        place: tokio::sync::OwnedSemaphorePermit,
    ) -> Option<ApiInput> {
        let refuse = |reply: Reply, error: ApiError| {
            self.counters.errors.add(error.code.name());
            reply.send(Err(error));
            None
        };
        let envelope = match parse_line(&line.bytes) {
            Ok(envelope) => envelope,
            Err(error) => {
                let reply = Reply::new(handle.clone(), Some(Value::Null), place);
                return refuse(reply, error);
            }
        };
        let reply = Reply::new(handle.clone(), envelope.id, place);
        match envelope.request {
            Ok(request) => {
                self.counters.requests.add(request.method());
                let descriptors = line.descriptors;
                Some(ApiInput::Call(ApiCall { request, descriptors, reply }))
            }
            Err(error) => refuse(reply, error),
        }
    }

    /// Writes queued lines until no more can come or the client can't be written to.
    async fn write_until_end(&self, queue: &mut ClientQueue) -> &'static str {
        while let Some(line) = queue.next().await {
            match timeout(CLIENT_WRITE_TIMEOUT, write_all(&self.stream, &line)).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return "write_failed",
                Err(_) => return "does_not_read",
            }
        }
        "ended"
    }

    async fn peer_closed_both_ways(&self) -> bool {
        let ready = self.stream.ready(tokio::io::Interest::WRITABLE).await;
        ready.is_ok_and(|ready| ready.is_write_closed())
    }
}

async fn write_all(stream: &UnixStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.writable().await?;
        match stream.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads once; no bytes means that the client closed its side.
async fn read_some(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    debug_assert!(buffer.len() <= CLIENT_READ_BYTES);
    stream
        .async_io(Interest::READABLE, || {
            Ok(dwcp_ffi::scm::recv_with_fds(stream.as_fd(), buffer, REQUEST_DESCRIPTORS_MAX)?)
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

    /// A server on a socket of its own whose core answers every call with what it got.
    struct Fixture {
        directory: tempfile::TempDir,
        counters: ApiCounters,
    }

    impl Fixture {
        fn run<F: Future<Output = ()>>(
            change: fn(&mut SocketConfig),
            test: impl FnOnce(Self) -> F,
        ) {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            tokio::task::LocalSet::new().block_on(&runtime, async {
                let directory = tempfile::tempdir().unwrap();
                let mut config = SocketConfig::new(directory.path().join("s"));
                change(&mut config);
                let counters = ApiCounters::default();
                let server = ApiServer::bind(config, counters.clone()).unwrap();
                let (sender, mut inputs) = mpsc::channel(16);
                tokio::task::spawn_local(server.serve(sender, Tally::default()));
                tokio::task::spawn_local(async move {
                    while let Some(input) = inputs.recv().await {
                        let ApiInput::Call(call) = input else { continue };
                        let big = call.request == Request::SessionList;
                        let result = json!({
                            "method": call.request.method(),
                            "descriptors": call.descriptors.len(),
                            "padding": "x".repeat(if big { 1 << 20 } else { 0 }),
                        });
                        call.reply.send(Ok(result));
                    }
                });
                let test = test(Self { directory, counters });
                timeout(Duration::from_secs(60), test).await.expect("the test hangs");
            });
        }

        async fn connect(&self) -> BufReader<UnixStream> {
            BufReader::new(UnixStream::connect(self.directory.path().join("s")).await.unwrap())
        }

        async fn ask(&self, client: &mut BufReader<UnixStream>, line: &str) -> Value {
            client.write_all(line.as_bytes()).await.unwrap();
            client.write_all(b"\n").await.unwrap();
            next_line(client).await
        }

        async fn still_serves(&self) {
            let answer = self.ask(&mut self.connect().await, STATUS).await;
            assert_eq!(answer["result"]["method"], "status");
        }
    }

    const STATUS: &str = r#"{"jsonrpc":"2.0","id":1,"method":"status"}"#;
    const LIST: &str = r#"{"jsonrpc":"2.0","id":1,"method":"session.list"}"#;

    async fn next_line(client: &mut BufReader<UnixStream>) -> Value {
        let mut line = String::new();
        client.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    #[test]
    fn garbage_is_answered_and_the_client_goes_on() {
        Fixture::run(
            |_| {},
            |fixture| async move {
                let mut client = fixture.connect().await;
                let answer = fixture.ask(&mut client, "garbage").await;
                assert_eq!(answer["error"]["code"], -32700);
                assert_eq!(answer["id"], Value::Null);
                let wrong = r#"{"jsonrpc":"2.0","id":7,"method":"status","params":{"x":1}}"#;
                let answer = fixture.ask(&mut client, wrong).await;
                assert_eq!((&answer["error"]["code"], &answer["id"]), (&json!(-32602), &json!(7)));
                assert_eq!(fixture.ask(&mut client, STATUS).await["result"]["method"], "status");
            },
        );
    }

    #[test]
    fn a_huge_request_is_refused_and_its_client_dropped() {
        Fixture::run(
            |config| config.request_bytes_max = 1000,
            |fixture| async move {
                let mut client = fixture.connect().await;
                client.write_all(&[b' '; 1001]).await.unwrap();
                let answer = next_line(&mut client).await;
                assert_eq!(answer["error"]["data"]["code"], "request_too_long");
                assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
                assert_eq!(fixture.counters.dropped.count("request_too_long"), 1);
                fixture.still_serves().await;
            },
        );
    }

    #[test]
    fn of_too_many_partial_requests_the_longest_is_refused_and_others_are_served() {
        Fixture::run(
            |_| {},
            |fixture| async move {
                let mut small = fixture.connect().await;
                let (head, tail) = STATUS.split_at(10);
                small.write_all(head.as_bytes()).await.unwrap();
                // Each within its own bound, all together far above that of all clients.
                let mut large = Vec::new();
                for _ in 0..2 * (crate::limits::CLIENTS_PARTIAL_BYTES >> 20) {
                    let mut client = fixture.connect().await;
                    let part = vec![b' '; 900 << 10];
                    // A client that is refused meanwhile may be gone before it has sent all.
                    let _ = client.write_all(&part).await;
                    large.push(client);
                }
                let mut line = String::new();
                while fixture.counters.dropped.count("request_memory") == 0 {
                    fixture.still_serves().await;
                }
                for client in &mut large {
                    let read = client.read_line(&mut line);
                    if timeout(Duration::from_millis(50), read).await.is_ok() && !line.is_empty() {
                        break;
                    }
                }
                let answer: Value = serde_json::from_str(&line).unwrap();
                assert_eq!(answer["error"]["data"]["code"], "request_memory", "{answer}");
                let answer = fixture.ask(&mut small, tail).await;
                assert_eq!(answer["result"]["method"], "status", "little is never given up");
            },
        );
    }

    #[test]
    fn a_client_that_does_not_read_is_dropped_and_others_are_served() {
        Fixture::run(
            |_| {},
            |fixture| async move {
                let mut client = fixture.connect().await;
                // Answers of 1 MiB each: the bound in bytes is reached long before that in lines.
                for _ in 0..CLIENT_REQUESTS_IN_FLIGHT {
                    if client.write_all(format!("{LIST}\n").as_bytes()).await.is_err() {
                        break;
                    }
                }
                while fixture.counters.dropped.count("does_not_read") == 0 {
                    fixture.still_serves().await;
                }
            },
        );
    }

    #[test]
    fn a_slow_client_does_not_hold_up_others() {
        Fixture::run(
            |_| {},
            |fixture| async move {
                let mut slow = fixture.connect().await;
                let (head, tail) = STATUS.split_at(10);
                slow.write_all(head.as_bytes()).await.unwrap();
                fixture.still_serves().await;
                assert_eq!(fixture.ask(&mut slow, tail).await["result"]["method"], "status");
            },
        );
    }

    #[test]
    fn one_client_too_many_is_told_so() {
        Fixture::run(
            |config| config.clients_max = 2,
            |fixture| async move {
                let (mut one, mut two) = (fixture.connect().await, fixture.connect().await);
                fixture.ask(&mut one, STATUS).await;
                fixture.ask(&mut two, STATUS).await;
                let mut three = fixture.connect().await;
                let answer = next_line(&mut three).await;
                assert_eq!(answer["error"]["data"]["code"], "clients_too_many");
                drop(one);
                // The place is free as soon as the server has seen the end.
                while fixture.counters.clients() > 1 {
                    tokio::task::yield_now().await;
                }
                fixture.still_serves().await;
            },
        );
    }

    #[test]
    fn a_half_closed_client_still_gets_its_answer() {
        Fixture::run(
            |_| {},
            |fixture| async move {
                let mut client = fixture.connect().await;
                client.write_all(format!("{STATUS}\n").as_bytes()).await.unwrap();
                client.shutdown().await.unwrap();
                assert_eq!(next_line(&mut client).await["result"]["method"], "status");
                assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
            },
        );
    }

    #[test]
    fn descriptors_come_with_their_request() {
        Fixture::run(
            |_| {},
            |fixture| async move {
                use std::os::fd::AsFd;
                let mut client = fixture.connect().await;
                let file = std::fs::File::open("/dev/null").unwrap();
                let line = r#"{"jsonrpc":"2.0","id":1,"method":"region.register",
                "params":{"name":"r","role":"source"}}"#
                    .replace('\n', "");
                let line = format!("{line}\n");
                let fds = [file.as_fd()];
                dwcp_ffi::scm::send_with_fds(client.get_ref().as_fd(), line.as_bytes(), &fds)
                    .unwrap();
                assert_eq!(next_line(&mut client).await["result"]["descriptors"], 1);
            },
        );
    }

    #[test]
    fn a_live_socket_is_not_taken_over_and_a_dead_one_is() {
        Fixture::run(
            |_| {},
            |fixture| async move {
                let path = fixture.directory.path().join("s");
                let bind = |path: &Path| {
                    let config = SocketConfig::new(path.to_owned());
                    ApiServer::bind(config, ApiCounters::default())
                };
                assert_eq!(bind(&path).unwrap_err().code(), "socket_in_use");
                let dead = fixture.directory.path().join("dead");
                drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
                let server = bind(&dead).unwrap();
                let mode = std::fs::metadata(&dead).unwrap().permissions().mode();
                assert_eq!(mode & 0o777, 0o660);
                drop(server);
                assert!(!dead.exists());
                let file = fixture.directory.path().join("file");
                std::fs::write(&file, "").unwrap();
                assert_eq!(bind(&file).unwrap_err().code(), "socket_path_taken");
            },
        );
    }
}
