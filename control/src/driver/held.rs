//! The core's side of what a sink alone holds: whether a session is told of it, and the way of the
//! pages from the store to the session's shard.
//!
//! Part of [`Core`], on the control thread. Nothing waits for it, and nothing fails without it.

use super::core::Core;
use crate::api::Role;
use crate::kept::{HoldJob, KeptError, KeptJob};
use crate::limits::HELD_SHARE;
use crate::migration::VmMemory;
use dwcp_dataplane::port::{Command, HeldChunk};
use dwcp_proto::ids::{LinkId, SessionId};
use dwcp_proto::wire::hello::{FEATURE_HELD, FEATURE_PAGES_DELTA, FEATURE_PAGES_ZSTD};
use dwcp_proto::wire::vm::VmTerms;
use std::sync::Arc;

/// What both ends need for it: a name in the place of a base is a delta.
const FEATURES: u64 = FEATURE_HELD | FEATURE_PAGES_DELTA | FEATURE_PAGES_ZSTD;

/// The most pages that a source with so many bases takes from a peer with these features.
pub(super) fn held_offer(features: u64, base_pages: u64) -> Option<u64> {
    let most = base_pages * HELD_SHARE.0 / HELD_SHARE.1;
    (features & FEATURES == FEATURES && most > 0).then_some(most)
}

impl Core {
    /// How many pages this sink may tell of on these terms, which hold nothing from before.
    pub(super) fn held_pages(&mut self, link: LinkId, vm: &str, terms: &VmTerms) -> Option<u64> {
        let features = self.links.get(&link).map_or(0, |entry| entry.features());
        let most = held_offer(features, terms.base_pages)?.min(terms.held?);
        let domain = self.vms.find(vm).and_then(|entry| entry.vm.trust_domain.as_deref());
        let (_, known) = self.keeper.as_ref()?.alone(vm, domain);
        let held = Some(most.min(known)).filter(|pages| *pages > 0);
        let memory = VmMemory::of(&VmTerms { held, ..*terms }, Role::Sink);
        if held.is_some() && self.check_memory(memory.total()).is_err() {
            self.counters.kept.add("no_memory");
            return None;
        }
        held
    }

    /// A sink's lane is ordered open: what it alone holds is read for it.
    pub(super) fn hold_for(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let link = session.key.and_then(|key| self.links.get(&key.link));
        let name = session.record.vm.as_ref().map(|vm| vm.name.clone());
        let (Some(part), Some(link), Some(vm)) = (&mut session.vm, link, name) else { return };
        let Some(pages) = part.terms.and_then(|terms| terms.held) else { return };
        let Some(keeper) = &self.keeper else { return };
        let domain = self.vms.find(&vm).and_then(|entry| entry.vm.trust_domain.as_deref());
        let (segments, _) = keeper.alone(&vm, domain);
        let wants = Arc::new(());
        let (hash_key, wanted) = (link.hash_key.clone(), Arc::downgrade(&wants));
        let job = HoldJob { session: id, hash_key, segments, pages, wanted };
        match keeper.ask(KeptJob::Hold(Box::new(job))) {
            Ok(()) => part.holding = Some(wants),
            Err(_) => self.counters.kept.add("busy"),
        }
    }

    /// Pages were read: the session's shard takes them over and tells the source.
    pub(super) fn on_held(&mut self, id: SessionId, chunk: Box<HeldChunk>) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let (key, closing) = (session.key, session.closing);
        let (Some(key), Some(part)) = (key, &mut session.vm) else { return };
        if closing {
            // The store's thread reads no more for it.
            part.holding = None;
            return;
        }
        self.shards.send(key.link, part.lane, Command::AddHeld { session: key, chunk });
    }

    /// All was read for a session, or no more can be.
    pub(super) fn on_held_all(&mut self, id: SessionId, outcome: Result<u64, KeptError>) {
        self.counters.kept.add(outcome.as_ref().map_or_else(KeptError::code, |_| "held"));
        match outcome {
            Ok(pages) => tracing::info!(session = %id, pages, "the source knows what is held here"),
            Err(error) => tracing::debug!(session = %id, code = error.code(), %error, "not held"),
        }
    }
}
