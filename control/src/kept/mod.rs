//! What guests leave at this host when they come or go, and images that operators add, kept on
//! disk for the next time.
//!
//! After a commit both ends hold the same page versions ([`PagesLeft`]). A thread of its own
//! (`dwcp-store`) puts them into the host's [`Store`], and when the guest is to move again it reads
//! them back for both ends' next session. The control thread hands jobs over a bounded queue and
//! hears of them as [`KeptNews`]; it never waits for the disk. Nothing depends on what is kept:
//! what can't be kept or read is not used, and a counter says why.
//!
//! What a session leaves may serve the same guest, and others of the same label (`--trust-domain`),
//! which both ends have to know; never anybody else.

mod held;
mod image;
mod list;
mod note;
mod thread;

use crate::api::{KeptName, Reply};
use crate::limits::KEPT_QUEUE;
use dwcp_dataplane::port::{Before, HashKey, HeldChunk, PagesLeft};
use dwcp_ffi::memory::PagePool;
use dwcp_proto::ids::SessionId;
use dwcp_proto::wire::vm::PagesBefore;
use dwcp_store::{
    Kind, OpenReport, SegmentId, SegmentView, Store, StoreError, StoreKey, StoreLimits, StoreStats,
};
use note::Note;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::time::SystemTime;
use tokio::sync::mpsc;

/// Memory of the store's index for each page on disk.
pub const STORE_INDEX_BYTES_PER_PAGE: u64 = dwcp_store::limits::INDEX_BYTES_PER_PAGE as u64;

/// Memory for each page while it is on its way to the disk, besides what its session had: the
/// list's and the segment's.
pub(crate) const KEEPING_BYTES_PER_PAGE: u64 =
    25 + dwcp_store::limits::WRITER_BYTES_PER_PAGE as u64;

/// Memory at a sink for each page that it alone holds, besides what its shard has: its part of the
/// set of those that were read, also while that grows.
pub(crate) const HOLDING_BYTES_PER_PAGE: u64 = 32;

/// What the thread is asked for.
#[derive(Debug)]
pub(crate) enum KeptJob {
    /// Keep what a session left, in place of what there is of the same guest.
    Keep(Box<KeepJob>),
    /// Read what is kept of a guest.
    Load(Box<LoadJob>),
    /// Read what this end alone holds for a session that runs.
    Hold(Box<HoldJob>),
    /// Keep an image.
    Add(Box<AddJob>),
    /// List the segments.
    List(Reply),
    /// Tell the counters.
    Stats(Reply),
    /// Remove a segment, or all of a guest's name, or everything.
    Remove(KeptName, Reply),
    /// Remove what was of no use for too long.
    Expire,
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
    /// Its memory is wanted for something else.
    pub(crate) gives_way: Arc<AtomicBool>,
}

/// What is to be read for a session that runs, whose other end does not hold it.
#[derive(Debug)]
pub(crate) struct HoldJob {
    pub(crate) session: SessionId,
    /// The session's.
    pub(crate) hash_key: HashKey,
    /// Of which segments, in this order.
    pub(crate) segments: Vec<SegmentId>,
    /// At most so many pages.
    pub(crate) pages: u64,
    /// Gone when the session needs no more.
    pub(crate) wanted: Weak<()>,
}

/// An image that is to be kept.
#[derive(Debug)]
pub(crate) struct AddJob {
    pub(crate) file: File,
    pub(crate) name: String,
    /// Whose guests it may serve.
    pub(crate) trust_domain: String,
    pub(crate) reply: Reply,
}

/// An image that is kept.
#[derive(Debug)]
pub(crate) struct Added {
    pub(crate) known: Known,
    /// The file's length, and what the segment takes on disk.
    pub(crate) read_bytes: u64,
    pub(crate) bytes: u64,
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
    /// Some of what this end alone holds for a session.
    Held { session: SessionId, chunk: Box<HeldChunk> },
    /// All of it is read, so many pages, or why no more. These segments were not there any more.
    HeldAll { session: SessionId, outcome: Result<u64, KeptError>, gone: Vec<SegmentId> },
    /// An image is kept, or why not.
    Added { name: String, outcome: Result<Box<Added>, KeptError>, reply: Reply },
    /// All segments, with their labels.
    Listed(Vec<(SegmentView, Option<String>)>, Reply),
    /// The counters.
    Stats(StoreStats, Reply),
    /// So many segments were removed.
    Removed(KeptName, Result<u64, KeptError>, Reply),
}

/// A segment that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    /// The guest's name, or the image's.
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) trust_domain: Option<String>,
    /// Of a guest: how both ends call it.
    pub(crate) before: Option<PagesBefore>,
    pub(crate) segment: SegmentId,
    /// Different pages.
    pub(crate) pages: u64,
}

impl Known {
    /// Whether it may serve a guest.
    fn serves(&self, vm: &str, trust_domain: Option<&str>) -> bool {
        let same_label = trust_domain.is_some() && self.trust_domain.as_deref() == trust_domain;
        self.is_of(vm) || same_label
    }

    /// Whether it is what a guest left itself.
    fn is_of(&self, vm: &str) -> bool {
        self.kind == Kind::Guest && self.name == vm
    }

    /// Whether it is what a session left.
    fn left_by(&self, session: SessionId) -> bool {
        self.before.is_some_and(|before| before.session == session)
    }

    /// Whether one of the two takes the other's place.
    fn same_place(&self, other: &Self) -> bool {
        let same_label = self.kind == Kind::Guest || self.trust_domain == other.trust_domain;
        self.kind == other.kind && self.name == other.name && same_label
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
    /// The daemon ends, or another session needs the memory.
    #[error("its memory is needed, or the daemon ends")]
    Stopped,
    /// What is to be added can't be.
    #[error("this is not a regular file")]
    NotAFile,
    /// An image is added already.
    #[error("another image is being added")]
    Adding,
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
            Self::Stopped => "kept_stopped",
            Self::NotAFile => "image_not_a_file",
            Self::Adding => "image_busy",
            Self::Memory(_) => "kept_memory",
        }
    }

    /// What to do about it, where there is something.
    pub(crate) fn cure(&self) -> Option<&'static str> {
        match self {
            Self::Store(StoreError::TooLarge { .. } | StoreError::TooManyPages { .. }) => {
                Some("raise --store-bytes, or give a smaller image")
            }
            Self::Store(error) => error.cure(),
            Self::NotAFile => Some("give a raw image or memory snapshot in a file"),
            Self::Adding => Some("wait until it is done, then add this one"),
            _ => None,
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

/// The control thread's end. Dropping it ends the thread in the middle of what it is at, which
/// leaves the store as it was.
#[derive(Debug)]
pub(crate) struct Keeper {
    queue: Option<SyncSender<KeptJob>>,
    thread: Option<std::thread::JoinHandle<()>>,
    /// Nobody waits for the thread's work any more.
    ended: Arc<AtomicBool>,
    /// What is kept, as far as is known here, the newest last.
    known: Vec<Known>,
}

impl Keeper {
    /// Opens the store in a directory of its own and starts its thread, which takes memory for what
    /// it reads from a pool.
    ///
    /// # Errors
    /// [`KeptOpenError`].
    pub(crate) fn open(
        directory: &Path,
        key: StoreKey,
        limits: StoreLimits,
        pool: PagePool,
    ) -> Result<(Self, mpsc::Receiver<KeptNews>, OpenReport), KeptOpenError> {
        let (store, report) = Store::open(directory, key, limits, SystemTime::now())?;
        let known = thread::known(&store);
        let (queue, jobs) = sync_channel(KEPT_QUEUE);
        let (told, news) = mpsc::channel(KEPT_QUEUE);
        let ended = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&ended);
        let thread = std::thread::Builder::new()
            .name("dwcp-store".to_owned())
            .spawn(move || thread::serve(store, pool, &jobs, &told, &over))
            .map_err(KeptOpenError::Thread)?;
        Ok((Self { queue: Some(queue), thread: Some(thread), ended, known }, news, report))
    }

    /// What serves a guest best: what it left itself, else what another one of its label did last.
    pub(crate) fn best(&self, vm: &str, trust_domain: Option<&str>) -> Option<PagesBefore> {
        let guests = || self.known.iter().filter(|known| known.before.is_some());
        let own = guests().rfind(|known| known.is_of(vm));
        let other = || guests().rfind(|known| known.serves(vm, trust_domain));
        own.or_else(other).and_then(|known| known.before)
    }

    /// What a peer speaks of, if it may serve a guest.
    pub(crate) fn find(
        &self,
        vm: &str,
        trust_domain: Option<&str>,
        before: &PagesBefore,
    ) -> Option<PagesBefore> {
        let found = self.known.iter().find(|known| known.left_by(before.session))?;
        found.before.filter(|_| found.serves(vm, trust_domain))
    }

    /// What may serve a guest at this end alone, and how many pages that is: what it left itself,
    /// then what else there is of its label, the newest first.
    pub(crate) fn alone(&self, vm: &str, trust_domain: Option<&str>) -> (Vec<SegmentId>, u64) {
        let serves = |known: &&Known| known.serves(vm, trust_domain);
        let (own, others): (Vec<&Known>, Vec<&Known>) =
            self.known.iter().rev().filter(serves).partition(|known| known.is_of(vm));
        let all = || own.iter().chain(&others);
        let pages = all().map(|known| known.pages).fold(0, u64::saturating_add);
        (all().map(|known| known.segment).collect(), pages)
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
            KeptNews::Kept { outcome: Ok(known), .. } => self.learn(known),
            KeptNews::Added { outcome: Ok(added), .. } => self.learn(&added.known),
            KeptNews::HeldAll { gone, .. } => {
                self.known.retain(|known| !gone.contains(&known.segment));
            }
            KeptNews::Loaded { left, outcome: Ok(_), .. } => {
                // It was of use last.
                self.known.sort_by_key(|known| known.left_by(*left));
            }
            KeptNews::Loaded { left, outcome: Err(KeptError::Gone), .. } => {
                self.known.retain(|known| !known.left_by(*left));
            }
            KeptNews::Removed(KeptName::All, ..) => self.known.clear(),
            KeptNews::Removed(KeptName::Name(name), ..) => {
                self.known.retain(|it| it.name != *name);
            }
            _ => {}
        }
    }

    fn learn(&mut self, known: &Known) {
        self.known.retain(|other| !other.same_place(known));
        self.known.push(known.clone());
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.queue = None;
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there was reported there; here only the end matters.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_proto::wire::token::PagesDigest;

    fn known(vm: &str, trust_domain: Option<&str>, session: u8) -> Known {
        let session = SessionId([session; 16]);
        let before = Some(PagesBefore { session, digest: PagesDigest([0; 16]), pages: 1 });
        let segment = SegmentId::parse(&session.to_string()).unwrap();
        let (name, trust_domain) = (vm.to_owned(), trust_domain.map(str::to_owned));
        Known { name, kind: Kind::Guest, trust_domain, before, segment, pages: 1 }
    }

    fn image(name: &str, trust_domain: &str, number: u8) -> Known {
        let known = known(name, Some(trust_domain), number);
        Known { kind: Kind::Image, before: None, ..known }
    }

    fn keeper(known: Vec<Known>) -> Keeper {
        Keeper { queue: None, thread: None, ended: Arc::default(), known }
    }

    #[test]
    fn a_guest_gets_its_own_pages_first_and_others_of_its_label_alone() {
        let keeper = keeper(vec![
            known("web1", Some("blue"), 1),
            known("web2", Some("blue"), 2),
            known("db1", Some("red"), 3),
            known("lone", None, 4),
            // No session left an image, so both ends can't hold it alike.
            image("web4", "blue", 5),
        ]);
        let best = |vm, label| keeper.best(vm, label).map(|before| before.session.0[0]);
        assert_eq!(best("web1", Some("blue")), Some(1));
        assert_eq!(best("web1", None), Some(1), "its own, whatever its label is now");
        assert_eq!(best("web3", Some("blue")), Some(2), "the newest");
        assert_eq!(best("web3", Some("green")), None);
        assert_eq!(best("web3", None), None, "no label is none in common");
        let find = |vm, label, session| {
            let asked = known("", None, session).before.unwrap();
            keeper.find(vm, label, &asked).map(|before| before.session.0[0])
        };
        assert_eq!(find("web3", Some("blue"), 1), Some(1));
        assert_eq!(find("web3", Some("red"), 1), None);
        assert_eq!(find("web3", None, 4), None);
        assert_eq!(find("lone", None, 4), Some(4));
        assert_eq!(find("lone", None, 5), None);
        let alone = |vm, label| {
            let (segments, pages) = keeper.alone(vm, label);
            let numbers = segments.iter().map(|it| it.to_string()[..2].to_owned());
            (numbers.collect::<Vec<_>>().join(" "), pages)
        };
        let told = |numbers: &str, pages| (numbers.to_owned(), pages);
        assert_eq!(alone("web1", Some("blue")), told("01 05 02", 3), "its own first");
        assert_eq!(alone("web4", Some("blue")), told("05 02 01", 3));
        assert_eq!(alone("web1", None), told("01", 1));
        assert_eq!(alone("web3", Some("green")), told("", 0));
        assert_eq!(alone("web4", None), told("", 0), "an image is nobody's own");
    }

    #[test]
    fn what_is_new_takes_the_place_of_the_old_and_what_is_gone_is_forgotten() {
        let mut keeper = keeper(vec![known("a", None, 1), known("b", None, 2)]);
        let session = SessionId([9; 16]);
        let news = |name: &str, number| {
            let (vm, outcome) = (name.to_owned(), Ok(known(name, None, number)));
            KeptNews::Kept { session, vm, outcome }
        };
        keeper.note(&news("a", 3));
        assert_eq!(keeper.best("a", None).unwrap().session, SessionId([3; 16]));
        let gone = |outcome| KeptNews::Loaded { session, left: SessionId([3; 16]), outcome };
        keeper.note(&gone(Err(KeptError::Stopped)));
        assert!(keeper.best("a", None).is_some(), "it may be there yet");
        keeper.note(&gone(Err(KeptError::Gone)));
        assert_eq!(keeper.best("a", None), None);
        assert!(keeper.best("b", None).is_some());
        assert!(keeper.ask(KeptJob::Expire).is_err(), "nobody would do it");
    }

    #[test]
    fn an_image_takes_the_place_of_the_one_of_its_name_and_label_alone() {
        let mut keeper = keeper(vec![known("a", Some("blue"), 1), image("a", "red", 2)]);
        keeper.learn(&image("a", "blue", 3));
        keeper.learn(&image("a", "blue", 4));
        let left = |keeper: &Keeper| {
            keeper.known.iter().map(|it| it.segment.to_string()).collect::<String>()
        };
        let numbers = |numbers: &[&str]| numbers.iter().map(|it| it.repeat(16)).collect::<String>();
        assert_eq!(left(&keeper), numbers(&["01", "02", "04"]));
        keeper.learn(&known("a", None, 5));
        assert_eq!(left(&keeper), numbers(&["02", "04", "05"]));
    }
}
