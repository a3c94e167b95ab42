//! The core's side of what guests leave: when it is kept, and when a session gets what is from
//! before.
//!
//! Part of [`Core`], on the control thread. The source reads what it has of a guest before it
//! offers it, the sink before it accepts the offer, so that both know what they agree on. Nothing
//! waits long for it, and nothing fails without it.

use super::core::Core;
use super::vm_opening::{VmSink, VmSource};
use crate::api::{ApiCode, ApiError, KeptName, Reply, Role};
use crate::kept::{
    AddJob, Added, KEEPING_BYTES_PER_PAGE, KeepJob, KeptError, KeptJob, KeptNews, Known, LoadJob,
    ReadBefore,
};
use crate::limits::{KEPT_EXPIRE_NS, KEPT_READ_NS, KEPT_SHARE};
use crate::migration::{Machine, Session, VmMemory};
use crate::state::SessionState;
use crate::vm::VmFacts;
use dwcp_proto::ids::{LinkId, SessionId};
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::hello::{FEATURE_BEFORE, FEATURE_PAGES_DELTA, FEATURE_PAGES_ZSTD};
use dwcp_proto::wire::peer::PeerCoding;
use dwcp_proto::wire::vm::{PagesBefore, VmTerms};
use dwcp_store::{SegmentView, StoreStats};
use serde_json::{Value, json};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::UNIX_EPOCH;

/// Memory of an ended session whose pages are on their way to the disk.
#[derive(Debug)]
pub(super) struct Keeping {
    bytes: u64,
    gives_way: Arc<AtomicBool>,
}

/// What a session that is being opened may hold from before.
#[derive(Debug)]
pub(super) enum BeforeRead<T> {
    /// Nobody has looked.
    Unasked,
    /// The store's thread reads it; this is waited with.
    Reading(T),
    /// It is here, or there is none.
    Done(Option<ReadBefore>),
}

impl<T> BeforeRead<T> {
    /// Takes out what there is.
    pub(super) fn taken(&mut self) -> Option<ReadBefore> {
        match self {
            Self::Done(read) => read.take(),
            Self::Unasked | Self::Reading(_) => None,
        }
    }

    /// Takes what was read, and gives back what waited for it.
    fn arrived(&mut self, read: Option<ReadBefore>) -> Option<T> {
        match std::mem::replace(self, Self::Unasked) {
            Self::Reading(waited) => {
                *self = Self::Done(read);
                Some(waited)
            }
            other => {
                *self = other;
                None
            }
        }
    }
}

impl Core {
    /// Has what is kept of a source's guest read, once; true while that is not done. The link is
    /// there, so it is known whether the peer can take it.
    pub(super) fn reads_before(&mut self, link: LinkId, id: SessionId) -> bool {
        let by = self.now() + Nanos(KEPT_READ_NS);
        let Some(entry) = self.links.get(&link) else { return false };
        let features = FEATURE_BEFORE | FEATURE_PAGES_DELTA | FEATURE_PAGES_ZSTD;
        let Some(source) = self.vm_sources.get_mut(&id) else { return false };
        match source.before {
            BeforeRead::Unasked => {}
            BeforeRead::Reading(_) => return true,
            BeforeRead::Done(_) => return false,
        }
        let Some(offer) = &source.offer else { return false };
        if entry.features() & features != features || offer.coding != PeerCoding::Full {
            return false;
        }
        let vm = offer.name.as_str().to_owned();
        let domain = self.vms.find(&vm).and_then(|entry| entry.vm.trust_domain.as_deref());
        let best = self.keeper.as_ref().and_then(|keeper| keeper.best(&vm, domain));
        let Some(before) = best else { return false };
        let most = offer.terms.base_pages * KEPT_SHARE.0 / KEPT_SHARE.1;
        let before = PagesBefore { pages: before.pages.min(most), ..before };
        let terms = VmTerms { before: Some(before), ..offer.terms };
        let reserved = source.memory_bytes;
        let read = self.check_before(&terms, Role::Source, reserved) && self.read_kept(id, before);
        let Some(source) = self.vm_sources.get_mut(&id) else { return false };
        if read {
            source.before = BeforeRead::Reading(());
            source.deadline = by;
            source.memory_bytes = VmMemory::of(&terms, Role::Source).total();
        } else {
            source.before = BeforeRead::Done(None);
        }
        read
    }

    /// Has what the source offers of before read at the sink as well, once, if it is kept here;
    /// true while that is not done.
    pub(super) fn reads_before_at_sink(
        &mut self,
        id: SessionId,
        terms: &VmTerms,
        facts: &VmFacts,
    ) -> bool {
        let by = self.now() + Nanos(KEPT_READ_NS);
        let Some(sink) = self.vm_sinks.get(&id) else { return false };
        let (Some(entry), BeforeRead::Unasked) = (self.links.get(&sink.link), &sink.before) else {
            return matches!(sink.before, BeforeRead::Reading(_));
        };
        let vm = sink.offer.name.as_str().to_owned();
        let offered = sink.offer.terms;
        let domain = self.vms.find(&vm).and_then(|entry| entry.vm.trust_domain.as_deref());
        let Some(before) = offered.before else { return false };
        let kept = self.keeper.as_ref().and_then(|keeper| keeper.find(&vm, domain, &before));
        let Some(kept) = kept else { return false };
        let fits = kept.digest == before.digest
            && kept.pages >= before.pages
            && terms.base_pages == offered.base_pages;
        if !fits
            || entry.features() & FEATURE_BEFORE == 0
            || !self.check_before(terms, Role::Sink, 0)
        {
            return false;
        }
        let read = self.read_kept(id, before);
        if let Some(sink) = self.vm_sinks.get_mut(&id).filter(|_| read) {
            sink.before = BeforeRead::Reading(Box::new(facts.clone()));
            sink.deadline = by;
        }
        read
    }

    /// Whether there is memory for a session with what is from before, of which so many bytes are
    /// reserved.
    fn check_before(&mut self, terms: &VmTerms, role: Role, reserved_bytes: u64) -> bool {
        let some = terms.before.is_some_and(|before| before.pages > 0);
        let bytes = VmMemory::of(terms, role).total().saturating_sub(reserved_bytes);
        let fits = some && self.check_memory(bytes).is_ok();
        if some && !fits {
            self.counters.kept.add("no_memory");
        }
        fits
    }

    fn read_kept(&mut self, session: SessionId, before: PagesBefore) -> bool {
        let job = KeptJob::Load(Box::new(LoadJob { session, before }));
        let asked = self.keeper.as_ref().is_some_and(|keeper| keeper.ask(job).is_ok());
        if !asked {
            self.counters.kept.add("busy");
        }
        asked
    }

    /// An opening that has waited long enough goes on without what is from before; false if that is
    /// not what it waits for.
    pub(super) fn does_without_before(&mut self, id: SessionId) -> bool {
        let waits = |source: &VmSource| matches!(source.before, BeforeRead::Reading(_));
        let waits_at_sink = |sink: &VmSink| matches!(sink.before, BeforeRead::Reading(_));
        let waits = self.vm_sources.get(&id).is_some_and(waits)
            || self.vm_sinks.get(&id).is_some_and(waits_at_sink);
        if waits {
            self.counters.kept.add("late");
            self.before_read(id, None);
        }
        waits
    }

    /// What is from before is read, or is not to be had: the opening goes on.
    fn before_read(&mut self, id: SessionId, read: Option<ReadBefore>) {
        if let Some(source) = self.vm_sources.get_mut(&id) {
            if source.before.arrived(read).is_some() {
                source.deadline = Nanos(u64::MAX);
                if let Err(error) = self.link_vm_source(id) {
                    self.fail_vm_source(id, error);
                }
            }
            return;
        }
        let Some(sink) = self.vm_sinks.get_mut(&id) else { return };
        if let Some(facts) = sink.before.arrived(read) {
            self.take_vm(id, &facts);
        }
    }

    /// A session's lane is closed: what it left is put on disk, if both ends hold it.
    pub(super) fn keep_left(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(terms) = vm_terms_of(session) else { return };
        let memory = VmMemory::of(&terms, session.role());
        let bytes = memory.tables_bytes + memory.bases_bytes;
        let bytes = bytes.saturating_add(terms.pages_max.saturating_mul(KEEPING_BYTES_PER_PAGE));
        let state = session.state();
        let Some(part) = &mut session.vm else { return };
        let Some((left, hash_key)) = part.left.take() else { return };
        let name = session.record.vm.as_ref().map(|vm| vm.name.clone());
        let (Some(vm), SessionState::Committed) = (name, state) else { return };
        let entry = self.vms.find(&vm);
        let trust_domain = entry.and_then(|entry| entry.vm.trust_domain.clone());
        let gives_way = Arc::<AtomicBool>::default();
        let keeping = Keeping { bytes, gives_way: Arc::clone(&gives_way) };
        let job = KeepJob { session: id, vm, trust_domain, hash_key, left, gives_way };
        let job = KeptJob::Keep(Box::new(job));
        match self.keeper.as_ref().map(|keeper| keeper.ask(job)) {
            Some(Ok(())) => drop(self.keeping.insert(id, keeping)),
            _ => self.counters.kept.add("busy"),
        }
    }

    /// Memory of what is on its way to the disk.
    pub(super) fn keeping_bytes(&self) -> u64 {
        self.keeping.values().map(|keeping| keeping.bytes).fold(0, u64::saturating_add)
    }

    /// What is on its way to the disk makes room: no session waits for a cache.
    pub(super) fn stop_keeping(&self) {
        for keeping in self.keeping.values() {
            keeping.gives_way.store(true, Ordering::Relaxed);
        }
    }

    /// The store's thread tells something.
    pub(crate) fn on_kept(&mut self, news: KeptNews) {
        if let Some(keeper) = &mut self.keeper {
            keeper.note(&news);
        }
        match news {
            KeptNews::Kept { session, vm, outcome } => {
                self.keeping.remove(&session);
                self.counters.kept.add(outcome.as_ref().map_or_else(KeptError::code, |_| "kept"));
                match outcome {
                    Ok(Known { pages, .. }) => {
                        tracing::info!(%session, vm, pages, "kept what the guest left");
                    }
                    Err(error) => {
                        tracing::warn!(%session, vm, code = error.code(), %error, "not kept");
                    }
                }
            }
            KeptNews::Loaded { session, outcome, .. } => {
                self.counters.kept.add(outcome.as_ref().map_or_else(KeptError::code, |_| "read"));
                if let Err(error) = &outcome {
                    tracing::warn!(%session, code = error.code(), %error, "not read");
                }
                self.before_read(session, outcome.ok());
            }
            KeptNews::Held { session, chunk } => self.on_held(session, chunk),
            KeptNews::HeldAll { session, outcome, .. } => self.on_held_all(session, outcome),
            KeptNews::Added { name, outcome, reply } => {
                let code = outcome.as_ref().map_or_else(KeptError::code, |_| "added");
                self.counters.kept.add(code);
                let view = outcome.map(|added| added_view(&name, &added));
                self.answer(reply, view.map_err(|error| store_error(&error)));
            }
            KeptNews::Listed(segments, reply) => {
                let views = segments.iter().map(segment_view).collect();
                self.answer(reply, Ok(Value::Array(views)));
            }
            KeptNews::Stats(stats, reply) => self.answer(reply, Ok(stats_view(&stats))),
            KeptNews::Removed(_, outcome, reply) => {
                let outcome = outcome.map(|removed| json!({ "removed": removed }));
                self.answer(reply, outcome.map_err(|error| store_error(&error)));
            }
        }
    }

    /// A client asks for the store.
    pub(super) fn ask_store(&mut self, job: impl FnOnce(Reply) -> KeptJob, reply: Reply) {
        let Some(keeper) = &self.keeper else {
            let message = "this daemon keeps nothing of guests";
            let error = ApiError::new(ApiCode::StoreFailed, message)
                .with("cure", "start it with --pki, --state and --store-bytes above 0");
            return self.answer(reply, Err(error));
        };
        let refused = match keeper.ask(job(reply)) {
            Err(KeptJob::List(reply) | KeptJob::Stats(reply) | KeptJob::Remove(_, reply)) => reply,
            Err(KeptJob::Add(job)) => job.reply,
            _ => return,
        };
        let message = "the store has too much to do; ask again later";
        self.answer(refused, Err(ApiError::new(ApiCode::Busy, message)));
    }

    pub(super) fn store_remove(&mut self, name: KeptName, reply: Reply) {
        self.ask_store(|reply| KeptJob::Remove(name, reply), reply);
    }

    /// A client gives an image.
    pub(super) fn store_add(
        &mut self,
        (name, trust_domain): (String, String),
        mut descriptors: Vec<OwnedFd>,
        reply: Reply,
    ) {
        let (Some(file), 0) = (descriptors.pop(), descriptors.len()) else {
            let message = "store.add takes the descriptor of one file";
            let error = ApiError::new(ApiCode::DescriptorCount, message)
                .with("cure", "pass the image's descriptor beside the request");
            return self.answer(reply, Err(error));
        };
        let file = file.into();
        let job = |reply| KeptJob::Add(Box::new(AddJob { file, name, trust_domain, reply }));
        self.ask_store(job, reply);
    }

    /// Now and then removes what was of no use for too long.
    pub(super) fn tick_kept(&mut self, now: Nanos) {
        if self.next_expiry <= now {
            self.next_expiry = now + Nanos(KEPT_EXPIRE_NS);
            // A full queue is asked again the next time.
            let _ = self.keeper.as_ref().map(|keeper| keeper.ask(KeptJob::Expire));
        }
    }
}

/// What both ends of a virtual machine's session reserve.
fn vm_terms_of(session: &Session) -> Option<VmTerms> {
    match &session.machine {
        Machine::Source(machine) => machine.terms(),
        Machine::Sink(_) => session.vm.as_ref()?.terms,
    }
}

fn added_view(name: &str, added: &Added) -> Value {
    let Added { known: Known { pages, trust_domain, segment, .. }, read_bytes, bytes } = added;
    json!({
        "name": name, "segment": segment.to_string(), "trust_domain": trust_domain,
        "pages": pages, "bytes": bytes, "read_bytes": read_bytes,
    })
}

fn segment_view((segment, trust_domain): &(SegmentView, Option<String>)) -> Value {
    let SegmentView { id, name, kind, pages, bytes, last_used, .. } = segment;
    let used_unix_s = last_used.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    json!({
        "segment": id.to_string(), "name": name, "kind": kind.name(), "pages": pages,
        "trust_domain": trust_domain, "bytes": bytes, "last_used_unix_s": used_unix_s,
    })
}

fn stats_view(stats: &StoreStats) -> Value {
    let StoreStats { segments, pages, bytes, left_alone_bytes, hits, misses, .. } = stats;
    let StoreStats { landed, replaced, evicted, expired, purged, damaged, gone, .. } = stats;
    json!({
        "segments": segments, "pages": pages, "bytes": bytes,
        "left_alone_bytes": left_alone_bytes, "pages_read": hits, "pages_missed": misses,
        "landed": landed, "replaced": replaced, "evicted": evicted, "expired": expired,
        "removed": purged, "damaged": damaged, "gone": gone,
    })
}

fn store_error(error: &KeptError) -> ApiError {
    let answer = ApiError::new(ApiCode::StoreFailed, error.to_string());
    let answer = answer.with("store_code", error.code());
    match error.cure() {
        Some(cure) => answer.with("cure", cure),
        None => answer,
    }
}
