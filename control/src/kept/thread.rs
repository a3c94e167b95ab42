//! The thread that owns the store of what guests leave.

use super::held::Holding;
use super::image::Adding;
use super::list::{Entry, ListError, ListReader, ListWriter};
use super::note::Note;
use super::{AddJob, KeepJob, KeptError, KeptJob, KeptNews, Known, LoadJob, ReadBefore};
use crate::api::KeptName;
use crate::limits::{HELD_AHEAD, KEPT_QUEUE};
use dwcp_dataplane::port::{Before, Page, PageHash, PageHasher, PagesLeft};
use dwcp_ffi::memory::PagePool;
use dwcp_proto::ids::SessionId;
use dwcp_proto::wire::token::PagesDigest;
use dwcp_proto::wire::vm::PagesBefore;
use dwcp_store::{DomainId, Kind, SegmentId, SegmentInfo, SegmentView, Store, StoreError};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;

/// How long to wait for a core that has not taken what was read before.
const HELD_WAIT: Duration = Duration::from_millis(10);

/// A shard gives what a session leaves before it says that it closed it; so this is long.
const LEFT_WITHIN: Duration = Duration::from_secs(5);

/// What a store keeps, the newest last.
pub(super) fn known(store: &Store) -> Vec<Known> {
    let mut segments: Vec<SegmentView> = store.list().collect();
    segments.sort_by_key(|segment| segment.last_used);
    let known = segments.into_iter().filter_map(|segment| {
        let Note { before, trust_domain, .. } = Note::of(&segment)?;
        let SegmentView { id, name, kind, pages, .. } = segment;
        Some(Known { name, kind, trust_domain, before, segment: id, pages })
    });
    known.collect()
}

/// Does jobs until nobody can ask any more. What takes long is done in turns while nobody asks.
/// What is read goes into memory of the pool.
pub(super) fn serve(
    store: Store,
    pool: PagePool,
    jobs: &Receiver<KeptJob>,
    told: &mpsc::Sender<KeptNews>,
    ended: &AtomicBool,
) {
    let mut desk = Desk { store, pool, holding: VecDeque::new(), adding: None };
    while !ended.load(Ordering::Relaxed) {
        let waiting = KEPT_QUEUE - told.capacity();
        let may_hold = waiting < HELD_AHEAD;
        let news = match desk.next_job(jobs, may_hold) {
            Ok(Some(job)) => desk.job(job, ended),
            Ok(None) => desk.turn(may_hold),
            Err(NobodyAsks) => break,
        };
        for fault in desk.store.take_faults() {
            tracing::warn!(file = %fault.path.display(), reason = %fault.reason, "the store");
        }
        // News that nobody waits for belong to a daemon that stops.
        let _ = news.map(|news| told.blocking_send(news).is_ok());
    }
}

/// The core's end is gone.
struct NobodyAsks;

/// What the thread works with.
struct Desk {
    store: Store,
    pool: PagePool,
    /// What is being read for sessions that run.
    holding: VecDeque<Holding>,
    /// The image that is being added.
    adding: Option<Adding>,
}

impl Desk {
    /// Waits for a job, unless there is something else to do.
    fn next_job(
        &self,
        jobs: &Receiver<KeptJob>,
        may_hold: bool,
    ) -> Result<Option<KeptJob>, NobodyAsks> {
        if self.adding.is_none() && self.holding.is_empty() {
            return jobs.recv().map(Some).map_err(|_| NobodyAsks);
        }
        if self.adding.is_none() && !may_hold {
            return match jobs.recv_timeout(HELD_WAIT) {
                Ok(job) => Ok(Some(job)),
                Err(RecvTimeoutError::Timeout) => Ok(None),
                Err(RecvTimeoutError::Disconnected) => Err(NobodyAsks),
            };
        }
        match jobs.try_recv() {
            Ok(job) => Ok(Some(job)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(NobodyAsks),
        }
    }

    fn job(&mut self, job: KeptJob, ended: &AtomicBool) -> Option<KeptNews> {
        let store = &mut self.store;
        Some(match job {
            KeptJob::Keep(job) => {
                let outcome = keep(store, &job, ended);
                let KeepJob { session, vm, .. } = *job;
                KeptNews::Kept { session, vm, outcome }
            }
            KeptJob::Load(job) => {
                let outcome = load(store, &self.pool, &job);
                let LoadJob { session, before: PagesBefore { session: left, .. }, .. } = *job;
                KeptNews::Loaded { session, left, outcome }
            }
            KeptJob::Hold(job) => {
                self.holding.push_back(Holding::begin(*job));
                return None;
            }
            KeptJob::Add(job) => return self.add(*job),
            KeptJob::List(reply) => {
                let labelled = |it: SegmentView| {
                    let label = Note::of(&it).and_then(|note| note.trust_domain);
                    (it, label)
                };
                KeptNews::Listed(store.list().map(labelled).collect(), reply)
            }
            KeptJob::Stats(reply) => KeptNews::Stats(store.stats(), reply),
            KeptJob::Remove(name, reply) => {
                let outcome = remove(store, &name).map_err(KeptError::Store);
                KeptNews::Removed(name, outcome, reply)
            }
            KeptJob::Expire => {
                store.expire(SystemTime::now());
                return None;
            }
        })
    }

    /// Begins to add an image. One at a time: each may take all of the store's room on disk.
    fn add(&mut self, job: AddJob) -> Option<KeptNews> {
        let name = job.name.clone();
        let begun = match &self.adding {
            Some(_) => Err((KeptError::Adding, job.reply)),
            None => Adding::begin(&self.store, job),
        };
        match begun {
            Ok(adding) => self.adding = Some(adding),
            Err((error, reply)) => {
                return Some(KeptNews::Added { name, outcome: Err(error), reply });
            }
        }
        None
    }

    /// A turn of what takes long; sessions come first.
    fn turn(&mut self, may_hold: bool) -> Option<KeptNews> {
        match self.holding.pop_front_if(|_| may_hold) {
            Some(holding) => Some(self.hold(holding)),
            None => self.add_more(),
        }
    }

    /// Reads the next pages for a session.
    fn hold(&mut self, mut holding: Holding) -> KeptNews {
        let session = holding.job.session;
        let outcome = match holding.turn(&mut self.store, &self.pool) {
            Ok(Some(chunk)) => {
                self.holding.push_back(holding);
                return KeptNews::Held { session, chunk };
            }
            Ok(None) => Ok(holding.pages()),
            Err(error) => Err(error),
        };
        KeptNews::HeldAll { session, outcome, gone: holding.gone }
    }

    /// Reads more of the image.
    fn add_more(&mut self) -> Option<KeptNews> {
        let mut adding = self.adding.take()?;
        let name = adding.name.clone();
        let (outcome, reply) = match adding.turn() {
            Ok(true) => {
                self.adding = Some(adding);
                return None;
            }
            Ok(false) => adding.land(&mut self.store),
            Err(error) => (Err(error), adding.reply),
        };
        Some(KeptNews::Added { name, outcome: outcome.map(Box::new), reply })
    }
}

/// Removes what something newer took the place of.
pub(super) fn remove_older(store: &mut Store, name: &str, older: Vec<SegmentId>) {
    for segment in older {
        // It goes when the next one is kept, or to make room.
        if let Err(error) = store.remove(segment) {
            tracing::warn!(name, %error, "the store");
        }
    }
}

fn remove(store: &mut Store, name: &KeptName) -> Result<u64, StoreError> {
    let KeptName::Name(name) = name else { return store.purge_all() };
    let segments: Vec<SegmentView> = store.named(name).collect();
    let mut removed = 0;
    for segment in segments {
        removed += u64::from(store.remove(segment.id)?);
    }
    Ok(removed)
}

/// Keeps what a session left, in place of what there was of its guest.
fn keep(store: &mut Store, job: &KeepJob, ended: &AtomicBool) -> Result<Known, KeptError> {
    let left = job.left.recv_timeout(LEFT_WITHIN).map_err(|_| KeptError::Nothing)?;
    let guests = store.named(&job.vm).filter(|segment| segment.kind == Kind::Guest);
    let older = guests.map(|segment| segment.id).collect();
    let known = write(store, job, &left, ended)?;
    remove_older(store, &job.vm, older);
    Ok(known)
}

fn write(
    store: &mut Store,
    job: &KeepJob,
    left: &PagesLeft,
    ended: &AtomicBool,
) -> Result<Known, KeptError> {
    let hasher = PageHasher::new(&job.hash_key);
    let info = SegmentInfo {
        domain: DomainId(job.session.0),
        hash_key: job.hash_key.clone(),
        name: job.vm.clone(),
        kind: Kind::Guest,
        note: Vec::new(),
    };
    let mut writer = store.begin(info)?;
    let (mut list, mut pages) = (ListWriter::default(), 0);
    for (number, (name, block_pages)) in (0..).zip(left.blocks()) {
        list.block(name, block_pages);
        left.pages(number, |page, hash, bytes| {
            list.page(page, hash);
            pages += 1;
            if ended.load(Ordering::Relaxed) || job.gives_way.load(Ordering::Relaxed) {
                return Err(KeptError::Stopped);
            }
            writer.push(hash, bytes)?;
            Ok(())
        })?;
    }
    let first = list.finish(|page| {
        let hash = hasher.hash(page);
        writer.push(hash, page).map(|_| hash)
    })?;
    let digest = PagesDigest(left.digest().0);
    let before = Some(PagesBefore { session: job.session, digest, pages });
    let trust_domain = job.trust_domain.clone();
    let list = Some(SessionId(first.0));
    let note = Note { before, trust_domain: trust_domain.clone(), list };
    writer.set_note(note.to_bytes())?;
    let pages = writer.pages();
    let segment = store.land(writer, SystemTime::now())?;
    let (name, kind) = (job.vm.clone(), Kind::Guest);
    Ok(Known { name, kind, trust_domain, before, segment, pages })
}

/// Reads what a session left: the first so many pages.
fn load(store: &mut Store, pool: &PagePool, job: &LoadJob) -> Result<ReadBefore, KeptError> {
    let PagesBefore { session, digest, pages } = job.before;
    let is_it =
        |it: &PagesBefore| it.session == session && it.digest == digest && it.pages >= pages;
    let mut notes = store.list().filter_map(|segment| Note::of(&segment));
    let note = notes.find(|note| note.before.as_ref().is_some_and(is_it));
    let list = note.and_then(|note| note.list).ok_or(KeptError::Gone)?;
    drop(notes);
    let domain = DomainId(session.0);
    let list = read_list(store, domain, PageHash(list.0), pages)?;
    let hash_key = store.domain_key(domain).ok_or(KeptError::Gone)?;
    let mut before = Before::with_room(pool, pages)?;
    let mut room = [0; size_of::<Page>()];
    for entry in list {
        match entry {
            Entry::Block { name, pages } => before.add_block(&name, pages),
            Entry::Page { number, hash } => {
                if !store.read(domain, &hash, &mut room) {
                    return Err(KeptError::Gone);
                }
                before.add_page(number, hash, &room)?;
            }
        }
    }
    if before.pages() != pages {
        return Err(KeptError::Gone);
    }
    store.used(domain, SystemTime::now());
    Ok(ReadBefore { before: job.before, pages: Box::new(before), hash_key })
}

/// The list up to so many pages. Bounded by what this host has written itself.
fn read_list(
    store: &mut Store,
    domain: DomainId,
    first: PageHash,
    pages: u64,
) -> Result<Vec<Entry>, KeptError> {
    let mut list =
        ListReader::new(first, |hash: &PageHash, out: &mut Page| store.read(domain, hash, out));
    let (mut entries, mut count) = (Vec::new(), 0);
    while let Some(entry) = list.next().map_err(|_: ListError| KeptError::Gone)? {
        if matches!(entry, Entry::Page { .. }) {
            if count == pages {
                break;
            }
            count += 1;
        }
        entries.push(entry);
    }
    Ok(entries)
}
