//! The thread that owns the store of what guests leave.

use super::list::{Entry, ListError, ListReader, ListWriter};
use super::{KeepJob, KeptError, KeptJob, KeptNews, Known, LoadJob, ReadBefore};
use crate::api::KeptName;
use dwcp_dataplane::port::{Before, Page, PageHash, PageHasher, PagesLeft};
use dwcp_proto::ids::SessionId;
use dwcp_proto::wire::token::PagesDigest;
use dwcp_proto::wire::vm::PagesBefore;
use dwcp_store::{DomainId, Kind, SegmentInfo, SegmentView, Store, StoreError};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;

/// A shard gives what a session leaves before it says that it closed it; so this is long.
const LEFT_WITHIN: Duration = Duration::from_secs(5);

/// What is noted of a segment.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    before: PagesBefore,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trust_domain: Option<String>,
    /// The first page of the list.
    list: SessionId,
}

impl Note {
    fn of(segment: &SegmentView) -> Option<Self> {
        serde_json::from_slice(&segment.note).ok()
    }
}

/// What a store keeps of each guest, the newest last.
pub(super) fn known(store: &Store) -> Vec<Known> {
    let mut segments: Vec<SegmentView> = store.list().collect();
    segments.sort_by_key(|segment| segment.last_used);
    let known = segments.into_iter().filter_map(|segment| {
        let Note { before, trust_domain, .. } = Note::of(&segment)?;
        Some(Known { vm: segment.name, trust_domain, before })
    });
    known.collect()
}

/// Does jobs until nobody can ask any more.
pub(super) fn serve(
    mut store: Store,
    jobs: &Receiver<KeptJob>,
    told: &mpsc::Sender<KeptNews>,
    ended: &AtomicBool,
) {
    while let Ok(job) = jobs.recv()
        && !ended.load(Ordering::Relaxed)
    {
        let news = match job {
            KeptJob::Keep(job) => {
                let outcome = keep(&mut store, &job, ended);
                let KeepJob { session, vm, .. } = *job;
                KeptNews::Kept { session, vm, outcome }
            }
            KeptJob::Load(job) => {
                let outcome = load(&mut store, &job);
                let LoadJob { session, before: PagesBefore { session: left, .. }, .. } = *job;
                KeptNews::Loaded { session, left, outcome }
            }
            KeptJob::List(reply) => KeptNews::Listed(store.list().collect(), reply),
            KeptJob::Stats(reply) => KeptNews::Stats(store.stats(), reply),
            KeptJob::Remove(name, reply) => {
                let outcome = remove(&mut store, &name).map_err(KeptError::Store);
                KeptNews::Removed(name, outcome, reply)
            }
            KeptJob::Expire => {
                store.expire(SystemTime::now());
                continue;
            }
        };
        for fault in store.take_faults() {
            tracing::warn!(file = %fault.path.display(), reason = %fault.reason, "the store");
        }
        // News that nobody waits for belong to a daemon that stops.
        let _ = told.blocking_send(news);
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
    let older: Vec<SegmentView> = store.named(&job.vm).collect();
    let before = write(store, job, &left, ended)?;
    for segment in older {
        // It goes when the next one is kept, or to make room.
        if let Err(error) = store.remove(segment.id) {
            tracing::warn!(vm = job.vm, %error, "the store");
        }
    }
    Ok(Known { vm: job.vm.clone(), trust_domain: job.trust_domain.clone(), before })
}

fn write(
    store: &mut Store,
    job: &KeepJob,
    left: &PagesLeft,
    ended: &AtomicBool,
) -> Result<PagesBefore, KeptError> {
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
    let before = PagesBefore { session: job.session, digest, pages };
    let trust_domain = job.trust_domain.clone();
    let note = Note { before, trust_domain, list: SessionId(first.0) };
    let Ok(note) = serde_json::to_vec(&note) else {
        unreachable!("names and a number always become JSON")
    };
    writer.set_note(note)?;
    store.land(writer, SystemTime::now())?;
    Ok(before)
}

/// Reads what a session left: the first so many pages.
fn load(store: &mut Store, job: &LoadJob) -> Result<ReadBefore, KeptError> {
    let PagesBefore { session, digest, pages } = job.before;
    let is_it = |note: &Note| {
        note.before.session == session && note.before.digest == digest && note.before.pages >= pages
    };
    let note = store.list().find_map(|it| Note::of(&it).filter(is_it));
    let note = note.ok_or(KeptError::Gone)?;
    let domain = DomainId(session.0);
    let list = read_list(store, domain, PageHash(note.list.0), pages)?;
    let hash_key = store.domain_key(domain).ok_or(KeptError::Gone)?;
    let mut before = Before::with_room(pages)?;
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
