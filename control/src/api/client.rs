//! One client of the control socket as the core sees it: a number and a bounded queue of lines.
//!
//! Runs on the control thread. A client that lets its queue overflow does not read: it is dropped,
//! and nobody else waits for it. The queues of all clients together are bounded too: the line that
//! finds no room costs its client the connection.

use super::memory::ClientMemory;
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

/// What waits for one client, the line being written included. Shared by tasks of one thread;
/// atomics only because tokio's handles ask for `Send`.
#[derive(Debug)]
struct Queued {
    bytes: AtomicUsize,
    overflow: Notify,
    memory: ClientMemory,
}

impl Queued {
    fn release(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.memory.release_line(bytes);
    }
}

/// The receiving side, drained by the client's writer. What it leaves unread is given back with it.
#[derive(Debug)]
pub(crate) struct ClientQueue {
    lines: mpsc::Receiver<Vec<u8>>,
    queued: Arc<Queued>,
    /// Of the line that is being written.
    writing_bytes: usize,
}

/// Both sides of a new client's queue, in the account of all clients.
pub(super) fn client_queue(id: ClientId, memory: ClientMemory) -> (ClientHandle, ClientQueue) {
    let (sender, receiver) = mpsc::channel(CLIENT_QUEUE_LINES);
    let queued = Queued { bytes: AtomicUsize::new(0), overflow: Notify::new(), memory };
    let queued = Arc::new(queued);
    let handle = ClientHandle { id, lines: sender, queued: Arc::clone(&queued) };
    (handle, ClientQueue { lines: receiver, queued, writing_bytes: 0 })
}

impl ClientHandle {
    /// The client's number.
    pub(crate) fn id(&self) -> ClientId {
        self.id
    }

    /// Queues a line. When it does not fit the client is dropped; when the client is gone already
    /// the line goes with it. One line alone may be longer than a client's queue.
    pub(crate) fn send(&self, line: Vec<u8>) {
        let bytes = line.len();
        let before = self.queued.bytes.load(Ordering::Relaxed);
        let fits = before == 0 || before + bytes <= CLIENT_QUEUE_BYTES;
        match self.lines.try_reserve() {
            Ok(place) if fits && self.queued.memory.reserve_line(bytes) => {
                self.queued.bytes.store(before + bytes, Ordering::Relaxed);
                place.send(line);
            }
            Err(mpsc::error::TrySendError::Closed(())) => {}
            Ok(_) | Err(mpsc::error::TrySendError::Full(())) => self.queued.overflow.notify_one(),
        }
    }
}

impl ClientQueue {
    /// The next line; `None` when nobody can send any more. The one before counts as written.
    pub(crate) async fn next(&mut self) -> Option<Vec<u8>> {
        self.queued.release(std::mem::take(&mut self.writing_bytes));
        let line = self.lines.recv().await?;
        self.writing_bytes = line.len();
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

impl Drop for ClientQueue {
    fn drop(&mut self) {
        self.lines.close();
        self.queued.release(self.queued.bytes.load(Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::CLIENTS_QUEUE_BYTES;

    fn overflows(queue: &ClientQueue) -> bool {
        let mut overflow = Box::pin(queue.overflow());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        overflow.as_mut().poll(&mut context).is_ready()
    }

    #[test]
    fn the_queues_of_all_clients_together_are_bounded_and_give_back_what_they_took() {
        let memory = ClientMemory::default();
        let line = || vec![b'x'; CLIENT_QUEUE_BYTES];
        let clients = CLIENTS_QUEUE_BYTES / CLIENT_QUEUE_BYTES;
        let mut full: Vec<_> = (0..)
            .map(ClientId)
            .take(clients)
            .map(|id| {
                let (handle, queue) = client_queue(id, memory.clone());
                handle.send(line());
                assert!(!overflows(&queue));
                (handle, queue)
            })
            .collect();
        assert_eq!(memory.queued_bytes(), CLIENTS_QUEUE_BYTES);
        let (late, late_queue) = client_queue(ClientId(1000), memory.clone());
        late.send(line());
        assert!(overflows(&late_queue), "who exceeds the bound is dropped");
        assert!(full.iter().all(|(_, queue)| !overflows(queue)), "the others stay");
        let (handle, queue) = full.pop().unwrap();
        drop(queue);
        handle.send(line());
        late.send(line());
        assert!(!overflows(&late_queue), "room that a lost client leaves can be used");
        drop((full, late_queue));
        assert_eq!(memory.queued_bytes(), 0);
    }

    #[test]
    fn a_client_has_at_most_one_line_above_its_own_bound() {
        let (handle, queue) = client_queue(ClientId(1), ClientMemory::default());
        handle.send(vec![0; CLIENT_QUEUE_BYTES + 1]);
        assert!(!overflows(&queue));
        handle.send(vec![0; 1]);
        assert!(overflows(&queue));
    }
}
