//! What all clients together may keep in the control thread's memory: partly received requests, and
//! answers that wait to be read.
//!
//! Used on the control thread alone; clones share the same account. Who would exceed the bound on
//! answers is dropped; of partly received requests the longest is given up, whoever's bytes were
//! too many, so that a client that sends little is served beside one that sends much.

use super::client::ClientId;
use crate::limits::{CLIENTS_PARTIAL_BYTES, CLIENTS_QUEUE_BYTES};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// The account of all clients. Atomics and the mutex are there only because tokio's handles ask for
/// `Send`; nobody else takes them.
#[derive(Clone, Debug, Default)]
pub(super) struct ClientMemory {
    queued: Arc<AtomicUsize>,
    partial: Arc<Mutex<BTreeMap<ClientId, Partial>>>,
}

/// A client's partly received request.
#[derive(Debug, Default)]
struct Partial {
    bytes: usize,
    given_up: Arc<Notify>,
}

/// One client's part of the account of received bytes; it ends with this value.
#[derive(Debug)]
pub(super) struct PartialShare {
    memory: ClientMemory,
    client: ClientId,
    given_up: Arc<Notify>,
}

impl ClientMemory {
    /// Reserves room for a line that waits to be read by its client; false if there is none.
    pub(super) fn reserve_line(&self, bytes: usize) -> bool {
        let queued = self.queued.load(Ordering::Relaxed).saturating_add(bytes);
        let fits = queued <= CLIENTS_QUEUE_BYTES;
        if fits {
            self.queued.store(queued, Ordering::Relaxed);
        }
        fits
    }

    /// Gives back the room of lines that were read or are lost.
    pub(super) fn release_line(&self, bytes: usize) {
        self.queued.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// What waits to be read by all clients.
    #[cfg(test)]
    pub(super) fn queued_bytes(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// Opens the account of a client's partly received request.
    pub(super) fn partial_share(&self, client: ClientId) -> PartialShare {
        let partial = Partial::default();
        let given_up = Arc::clone(&partial.given_up);
        self.lock().insert(client, partial);
        PartialShare { memory: self.clone(), client, given_up }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ClientId, Partial>> {
        // Its holders don't panic between two changes that belong together.
        self.partial.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PartialShare {
    /// Notes what the client's partial request takes now. When all of them take too much, the
    /// longest is given up.
    pub(super) fn set(&self, bytes: usize) {
        let mut partial = self.memory.lock();
        if let Some(own) = partial.get_mut(&self.client) {
            own.bytes = bytes;
        }
        while partial.values().map(|partial| partial.bytes).sum::<usize>() > CLIENTS_PARTIAL_BYTES {
            let Some(longest) = partial.values_mut().max_by_key(|partial| partial.bytes) else {
                return;
            };
            longest.bytes = 0;
            longest.given_up.notify_one();
        }
    }

    /// Resolves when this client's request is the one that is given up.
    pub(super) fn given_up(&self) -> impl Future<Output = ()> + 'static {
        let given_up = Arc::clone(&self.given_up);
        async move { given_up.notified().await }
    }
}

impl Drop for PartialShare {
    fn drop(&mut self) {
        self.memory.lock().remove(&self.client);
    }
}
