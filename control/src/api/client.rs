//! One client of the control socket as the core sees it: a number and a bounded queue of lines.
//!
//! Runs on the control thread. A client that lets its queue overflow does not read: it is dropped,
//! and nobody else waits for it.

use crate::limits::{CLIENT_QUEUE_BYTES, CLIENT_QUEUE_LINES};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{Notify, mpsc};

/// A client's number, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ClientId(pub(crate) u64);

/// The sending side of a client's queue.
#[derive(Clone, Debug)]
pub(crate) struct ClientHandle {
    id: ClientId,
    lines: mpsc::Sender<Vec<u8>>,
    queued: Arc<Queued>,
}

/// What waits for one client. Shared by tasks of one thread; atomics only because tokio's handles
/// ask for `Send`.
#[derive(Debug, Default)]
struct Queued {
    bytes: AtomicUsize,
    overflow: Notify,
}

/// The receiving side, drained by the client's writer.
#[derive(Debug)]
pub(crate) struct ClientQueue {
    lines: mpsc::Receiver<Vec<u8>>,
    queued: Arc<Queued>,
}

/// Both sides of a new client's queue.
pub(crate) fn client_queue(id: ClientId) -> (ClientHandle, ClientQueue) {
    let (sender, receiver) = mpsc::channel(CLIENT_QUEUE_LINES);
    let queued = Arc::new(Queued::default());
    let handle = ClientHandle { id, lines: sender, queued: Arc::clone(&queued) };
    (handle, ClientQueue { lines: receiver, queued })
}

impl ClientHandle {
    /// The client's number.
    pub(crate) fn id(&self) -> ClientId {
        self.id
    }

    /// Queues a line. When it does not fit the client is dropped; when the client is gone already
    /// the line goes with it.
    pub(crate) fn send(&self, line: Vec<u8>) {
        let bytes = line.len();
        let queued = self.queued.bytes.load(Ordering::Relaxed) + bytes;
        if queued > CLIENT_QUEUE_BYTES && queued > bytes {
            self.queued.overflow.notify_one();
            return;
        }
        self.queued.bytes.store(queued, Ordering::Relaxed);
        if let Err(mpsc::error::TrySendError::Full(_)) = self.lines.try_send(line) {
            self.queued.overflow.notify_one();
        }
    }
}

impl ClientQueue {
    /// The next line; `None` when nobody can send any more.
    pub(crate) async fn next(&mut self) -> Option<Vec<u8>> {
        let line = self.lines.recv().await?;
        self.queued.bytes.fetch_sub(line.len(), Ordering::Relaxed);
        Some(line)
    }

    /// Lets further lines be refused as the client ends, and keeps what waits.
    pub(crate) fn close(&mut self) {
        self.lines.close();
    }

    /// Resolves when a line did not fit.
    pub(crate) fn overflow(&self) -> impl Future<Output = ()> + 'static {
        let queued = Arc::clone(&self.queued);
        async move { queued.overflow.notified().await }
    }
}
