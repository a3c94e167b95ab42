//! One control channel after its handshake: messages in and out, and the keepalive.
//!
//! Runs on the control thread, one task per channel. The channel ends on any error, when the peer
//! is silent for too long, or when its handle is dropped after what was queued is written; the core
//! hears of it exactly once.

use super::connection::ConnectionId;
use super::error::PeerError;
use super::exporter::Exporter;
use super::handshake::Established;
use super::listener::PeerInput;
use crate::config::LiveSettings;
use crate::limits::{CHANNEL_QUEUE_MESSAGES, LAST_WORDS_WAIT};
use dwcp_proto::wire::limits::{PEER_LENGTH_BYTES, PEER_MESSAGE_BYTES_MAX};
use dwcp_proto::wire::peer::{PeerCodec, PeerMessage};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

/// What the bytes of a channel travel over. Reading, writing and key derivation share it by turns
/// on one thread; no borrow lasts longer than one poll.
pub(crate) enum Transport {
    /// TLS that we opened.
    Client(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    /// TLS that the peer opened.
    Server(Box<tokio_rustls::server::TlsStream<TcpStream>>),
    /// No TLS.
    Plain(TcpStream),
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Client(_) => "Transport::Client(..)",
            Self::Server(_) => "Transport::Server(..)",
            Self::Plain(_) => "Transport::Plain(..)",
        })
    }
}

/// Both directions of a byte stream that may be moved while it is polled.
trait Duplex: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Duplex for T {}

impl Transport {
    fn io(&mut self) -> Pin<&mut dyn Duplex> {
        let io: &mut dyn Duplex = match self {
            Self::Client(tls) => &mut **tls,
            Self::Server(tls) => &mut **tls,
            Self::Plain(tcp) => tcp,
        };
        Pin::new(io)
    }
}

/// Reads once; 0 means that the peer closed.
pub(crate) async fn read_some(
    transport: &RefCell<Transport>,
    buffer: &mut [u8],
) -> Result<usize, PeerError> {
    poll_fn(|context| {
        let mut filled = ReadBuf::new(buffer);
        match transport.borrow_mut().io().poll_read(context, &mut filled) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) => Poll::Ready(Ok(filled.filled().len())),
            Poll::Ready(Err(error)) => Poll::Ready(Err(PeerError::from_io(error))),
        }
    })
    .await
}

/// Writes everything and flushes it.
pub(crate) async fn write_all(
    transport: &RefCell<Transport>,
    mut bytes: &[u8],
) -> Result<(), PeerError> {
    while !bytes.is_empty() {
        let written = poll_fn(|cx| transport.borrow_mut().io().poll_write(cx, bytes)).await;
        match written.map_err(PeerError::from_io)? {
            0 => return Err(PeerError::Closed),
            written => bytes = &bytes[written..],
        }
    }
    let flushed = poll_fn(|cx| transport.borrow_mut().io().poll_flush(cx)).await;
    flushed.map_err(PeerError::from_io)
}

/// The core's hold on a channel. Dropping it closes the channel when its queue is written.
#[derive(Debug)]
pub(crate) struct ChannelHandle {
    messages: mpsc::Sender<PeerMessage>,
    pub(crate) exporter: Exporter,
    heard: Rc<Cell<Instant>>,
    abort: Rc<Notify>,
}

impl ChannelHandle {
    /// Takes an established peer over and starts its task.
    pub(crate) fn start(
        connection: ConnectionId,
        peer: Established,
        inputs: mpsc::Sender<PeerInput>,
        live: Rc<Cell<LiveSettings>>,
    ) -> Self {
        let (messages, queue) = mpsc::channel(CHANNEL_QUEUE_MESSAGES);
        let exporter = peer.exporter.clone();
        let pongs = messages.downgrade();
        let last_heard = Rc::new(Cell::new(Instant::now()));
        let heard = Rc::clone(&last_heard);
        let abort = Rc::new(Notify::new());
        let aborted = Rc::clone(&abort);
        tokio::task::spawn_local(async move {
            let transport = peer.transport;
            let end = tokio::select! {
                biased;
                () = aborted.notified() => {
                    drop(transport);
                    let end = PeerError::Timeout { what: "the answer to the yield" };
                    let _ = inputs.send(PeerInput::Ended { connection, end }).await;
                    return;
                }
                end = read_until_end(connection, (&transport, peer.rest), &inputs, &pongs, &heard)
                    => end,
                end = write_until_end(&transport, queue) => end,
                end = watch(&pongs, &heard, &live) => end,
            };
            // A polite close; whether it arrives makes no difference.
            let close = poll_fn(|cx| transport.borrow_mut().io().poll_shutdown(cx));
            let _ = tokio::time::timeout(crate::limits::TICK, close).await;
            let _ = inputs.send(PeerInput::Ended { connection, end }).await;
        });
        Self { messages, exporter, heard: last_heard, abort }
    }

    /// Ends the channel without a word: what the kernel holds of our messages is not sent any more.
    pub(crate) fn abort(&self) {
        self.abort.notify_one();
    }

    /// When the peer said something last, if only that it is there.
    pub(crate) fn heard(&self) -> Instant {
        self.heard.get()
    }

    /// Queues a message.
    ///
    /// # Errors
    /// The queue is full: the peer does not read. The caller drops the link.
    pub(crate) fn send(&self, message: PeerMessage) -> Result<(), PeerError> {
        match self.messages.try_send(message) {
            Err(mpsc::error::TrySendError::Full(_)) => Err(PeerError::DoesNotRead),
            // A closed channel has told the core already, or is about to.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
        }
    }
}

/// Messages before writing and the watch get their turn. A peer that talks without a pause would
/// use up what tokio grants a task in one go, again and again, and starve both.
const READ_AT_ONCE: u32 = 16;

async fn read_until_end(
    connection: ConnectionId,
    (transport, mut buffer): (&RefCell<Transport>, Vec<u8>),
    inputs: &mpsc::Sender<PeerInput>,
    pongs: &mpsc::WeakSender<PeerMessage>,
    heard: &Cell<Instant>,
) -> PeerError {
    let mut chunk = vec![0; PEER_LENGTH_BYTES + PEER_MESSAGE_BYTES_MAX];
    loop {
        for step in 1.. {
            if step % READ_AT_ONCE == 0 {
                tokio::task::yield_now().await;
            }
            let (message, used) = match PeerCodec::decode(&buffer) {
                Ok(Some(found)) => found,
                Ok(None) => break,
                Err(error) => return error.into(),
            };
            buffer.drain(..used);
            match message {
                PeerMessage::Ping { stamp } => {
                    // Who does not read is not read either, and so falls silent.
                    if let Some(queue) = pongs.upgrade() {
                        let _ = queue.send(PeerMessage::Pong { stamp }).await;
                    }
                }
                PeerMessage::Pong { .. } => {}
                PeerMessage::Goodbye { reason } => {
                    return PeerError::Goodbye { reason: reason.as_str().to_owned() };
                }
                message => {
                    if inputs.send(PeerInput::Message { connection, message }).await.is_err() {
                        return PeerError::Stopping;
                    }
                }
            }
        }
        match read_some(transport, &mut chunk).await {
            Ok(0) => return PeerError::Closed,
            Ok(read) => {
                heard.set(Instant::now());
                buffer.extend_from_slice(&chunk[..read]);
            }
            Err(error) => return error,
        }
    }
}

async fn write_until_end(
    transport: &RefCell<Transport>,
    mut queue: mpsc::Receiver<PeerMessage>,
) -> PeerError {
    while let Some(message) = queue.recv().await {
        if let Err(error) = write_all(transport, &PeerCodec::encode(&message)).await {
            // A peer that has closed said why before that, and it may not be read yet.
            tokio::time::sleep(Duration::from_nanos(LAST_WORDS_WAIT.0)).await;
            return error;
        }
    }
    PeerError::Stopping
}

/// Pings an idle peer, and ends the channel of a silent one, and one that the core has let go of
/// when the peer does not take the last words.
///
/// Silence is counted in waits of our own, not by the clock: a daemon that was stopped for a while
/// itself must not blame its peers for that.
async fn watch(
    pings: &mpsc::WeakSender<PeerMessage>,
    heard: &Cell<Instant>,
    live: &Cell<LiveSettings>,
) -> PeerError {
    let mut stamp = 0;
    let mut last_heard = heard.get();
    let mut silent = Duration::ZERO;
    loop {
        let settings = live.get();
        let wait = settings.peer_ping_every.min(settings.peer_dead_after);
        tokio::time::sleep(wait).await;
        let queue = pings.upgrade();
        if queue.is_some() && heard.get() != last_heard {
            last_heard = heard.get();
            silent = Duration::ZERO;
        } else {
            silent += wait;
        }
        if silent >= settings.peer_dead_after {
            return PeerError::Silent { seconds: silent.as_secs() };
        }
        stamp += 1;
        // A full queue means that the peer does not read; its silence is noticed above.
        if let Some(queue) = queue {
            let _ = queue.try_send(PeerMessage::Ping { stamp });
        }
    }
}
