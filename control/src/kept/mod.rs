//! What guests leave at this host when they come or go, kept on disk for the next time.
//!
//! After a commit both ends hold the same page versions ([`PagesLeft`]). A thread of its own
//! (`dwcp-store`) puts them into the host's [`Store`], and when the guest is to move again it reads
//! them back for both ends' next session. The control thread hands jobs over a bounded queue and
//! hears of them as [`KeptNews`]; it never waits for the disk. Nothing depends on what is kept:
//! what can't be kept or read is not used, and a counter says why.
//!
//! What a session leaves may serve the same guest, and others of the same label (`--trust-domain`),
//! which both ends have to know; never anybody else.

mod list;
mod thread;

use crate::api::Reply;
use crate::limits::KEPT_QUEUE;
use dwcp_dataplane::port::{Before, HashKey, PagesLeft};
use dwcp_proto::ids::SessionId;
use dwcp_proto::wire::vm::PagesBefore;
use dwcp_store::{OpenReport, SegmentView, Store, StoreError, StoreKey, StoreLimits, StoreStats};
use std::io;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::SystemTime;
use tokio::sync::mpsc;

/// What the thread is asked for.
#[derive(Debug)]
pub(crate) enum KeptJob {
    /// Keep what a session left, in place of what there is of the same guest.
    Keep(Box<KeepJob>),
    /// Read what is kept of a guest.
    Load(Box<LoadJob>),
    /// List the segments.
    List(Reply),
    /// Tell the counters.
    Stats(Reply),
    /// Remove a segment, or all of a guest's name, or everything.
    Remove(KeptName, Reply),
    /// Remove what was of no use for too long.
    Expire,
}

/// What is to be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeptName {
    /// All segments of this name.
    Name(String),
    /// Everything.
    All,
}

/// What a session left, to be kept.
#[derive(Debug)]
pub(crate) struct KeepJob {
    pub(crate) session: SessionId,
    pub(crate) vm: String,
    /// Whose guests it may serve besides this one.
    pub(crate) trust_domain: Option<String>,
    pub(crate) hash_key: HashKey,
    /// Where its shard has put it.
    pub(crate) left: Receiver<PagesLeft>,
}

/// What is to be read for a session.
#[derive(Debug)]
pub(crate) struct LoadJob {
    /// The session that it is for.
    pub(crate) session: SessionId,
    /// Exactly this.
    pub(crate) before: PagesBefore,
}

/// What was read for a session.
#[derive(Debug)]
pub(crate) struct ReadBefore {
    pub(crate) before: PagesBefore,
    pub(crate) pages: Box<Before>,
    /// The key of their hashes, which the session takes for its own pages too: both ends have it
    /// from the session that left them.
    pub(crate) hash_key: HashKey,
}

/// What the thread tells.
#[derive(Debug)]
pub(crate) enum KeptNews {
    /// What a session left is on disk, or why it is not; its memory is free.
    Kept { session: SessionId, vm: String, outcome: Result<Known, KeptError> },
    /// What was to be read for a session.
    Loaded {
        session: SessionId,
        /// Whose pages those are.
        left: SessionId,
        outcome: Result<ReadBefore, KeptError>,
    },
    /// All segments.
    Listed(Vec<SegmentView>, Reply),
    /// The counters.
    Stats(StoreStats, Reply),
    /// So many segments were removed.
    Removed(KeptName, Result<u64, KeptError>, Reply),
}

/// What is kept of a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) vm: String,
    pub(crate) trust_domain: Option<String>,
    pub(crate) before: PagesBefore,
}

impl Known {
    /// Whether it may serve a guest.
    fn serves(&self, vm: &str, trust_domain: Option<&str>) -> bool {
        let same_label = trust_domain.is_some() && self.trust_domain.as_deref() == trust_domain;
        self.vm == vm || same_label
    }
}

/// Why something is not kept, or not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeptError {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The session's shard did not leave anything.
    #[error("the session left nothing")]
    Nothing,
    /// It is not kept, or not all of it any more.
    #[error("what was kept is not there any more")]
    Gone,
    /// Memory for it can't be had.
    #[error("no memory for it: {0}")]
    Memory(#[from] dwcp_dataplane::port::BeforeError),
}

impl KeptError {
    /// The stable name of the fault.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Store(error) => error.code(),
            Self::Nothing => "kept_nothing",
            Self::Gone => "kept_gone",
            Self::Memory(_) => "kept_memory",
        }
    }
}

/// Why the store can't be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeptOpenError {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its thread can't start.
    #[error("the store's thread can't start: {0}")]
    Thread(io::Error),
}

impl KeptOpenError {
    /// The stable name of the fault.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Store(error) => error.code(),
            Self::Thread(_) => "store_thread",
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn cure(&self) -> &'static str {
        match self {
            Self::Store(error) => error.cure().unwrap_or("start with --store-bytes 0"),
            Self::Thread(_) => "raise the limit on threads (ulimit -u)",
        }
    }
}

/// The control thread's end. Dropping it ends the thread after the job that it is at.
#[derive(Debug)]
pub(crate) struct Keeper {
    queue: Option<SyncSender<KeptJob>>,
    thread: Option<std::thread::JoinHandle<()>>,
    /// What is kept of each guest, as far as is known here, the newest last.
    known: Vec<Known>,
}

impl Keeper {
    /// Opens the store in a directory of its own and starts its thread.
    ///
    /// # Errors
    /// [`KeptOpenError`].
    pub(crate) fn open(
        directory: &Path,
        key: StoreKey,
        limits: StoreLimits,
    ) -> Result<(Self, mpsc::Receiver<KeptNews>, OpenReport), KeptOpenError> {
        let (store, report) = Store::open(directory, key, limits, SystemTime::now())?;
        let known = thread::known(&store);
        let (queue, jobs) = sync_channel(KEPT_QUEUE);
        let (told, news) = mpsc::channel(KEPT_QUEUE);
        let thread = std::thread::Builder::new()
            .name("dwcp-store".to_owned())
            .spawn(move || thread::serve(store, &jobs, &told))
            .map_err(KeptOpenError::Thread)?;
        Ok((Self { queue: Some(queue), thread: Some(thread), known }, news, report))
    }

    /// What serves a guest best: what it left itself, else what another one of its label did last.
    pub(crate) fn best(&self, vm: &str, trust_domain: Option<&str>) -> Option<PagesBefore> {
        let own = self.known.iter().rfind(|known| known.vm == vm);
        let other = || self.known.iter().rfind(|known| known.serves(vm, trust_domain));
        own.or_else(other).map(|known| known.before)
    }

    /// What a peer speaks of, if it may serve a guest.
    pub(crate) fn find(
        &self,
        vm: &str,
        trust_domain: Option<&str>,
        before: &PagesBefore,
    ) -> Option<PagesBefore> {
        let named = |known: &&Known| known.before.session == before.session;
        let found = self.known.iter().find(named)?;
        found.serves(vm, trust_domain).then_some(found.before)
    }

    /// Hands a job over; gives it back when the thread has too many, or is gone.
    pub(crate) fn ask(&self, job: KeptJob) -> Result<(), KeptJob> {
        match &self.queue {
            Some(queue) => queue.try_send(job).map_err(|error| match error {
                std::sync::mpsc::TrySendError::Full(job)
                | std::sync::mpsc::TrySendError::Disconnected(job) => job,
            }),
            None => Err(job),
        }
    }

    /// Takes note of what became of a guest's pages.
    pub(crate) fn note(&mut self, news: &KeptNews) {
        match news {
            KeptNews::Kept { outcome: Ok(known), .. } => {
                self.known.retain(|other| other.vm != known.vm);
                self.known.push(known.clone());
            }
            KeptNews::Loaded { left, outcome: Err(KeptError::Gone), .. } => {
                self.known.retain(|known| known.before.session != *left);
            }
            KeptNews::Removed(KeptName::All, ..) => self.known.clear(),
            KeptNews::Removed(KeptName::Name(vm), ..) => self.known.retain(|it| it.vm != *vm),
            _ => {}
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was reported there; here only the end matters.
            let _ = thread.join();
        }
    }
}
