//! What the source knows of the sink's copy of each page, and the page versions it keeps as bases.
//!
//! Owned by one shard, one per session and lane. The rule that everything rests on: a page may be
//! sent as a delta only when its newest sent version is acknowledged and its bytes are still here.
//! Sizes are fixed when the session opens; nothing here allocates afterwards.

use dwcp_codec::{PAGE_BYTES, PageHash};
use dwcp_ffi::arena::{Arena, ArenaError, Lease};
use dwcp_proto::ids::Sequence;

const NO_BASE: u32 = u32::MAX;

/// How far the clock hand may look for a base that was not used lately before it takes any.
const CLOCK_STEPS_MAX: usize = 32;

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Hash of the newest version sent; meaningless while `newest` is 0.
    hash: PageHash,
    /// The newest version sent; 0 when the sink's content is not known.
    newest: Sequence,
    /// Slot of that version's bytes, or `NO_BASE`.
    base: u32,
    /// True when the sink acknowledged `newest`.
    acked: bool,
}

const EMPTY: Entry =
    Entry { hash: PageHash([0; 16]), newest: Sequence(0), base: NO_BASE, acked: false };

#[derive(Debug)]
struct BaseSlot {
    bytes: Lease,
    owner: usize,
    used_lately: bool,
}

/// A page version that both ends hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Base<'a> {
    pub(crate) version: Sequence,
    pub(crate) hash: PageHash,
    pub(crate) bytes: &'a [u8],
}

/// The table of one lane's pages at the source.
#[derive(Debug)]
pub(crate) struct SourcePages {
    entries: Vec<Entry>,
    slots: Vec<BaseSlot>,
    hand: usize,
    free: Vec<u32>,
    /// Memory of the bases, in several arenas since one has a bound. Filled in order.
    arenas: Vec<Arena>,
}

/// Bases per arena: 256 MiB.
const ARENA_BASES_MAX: usize = 1 << 16;

impl SourcePages {
    /// A table of `page_slots` pages that keeps at most `bases_max` versions.
    pub(crate) fn new(page_slots: usize, bases_max: usize) -> Result<Self, ArenaError> {
        // A base beyond one per page would never be used.
        let bases_max = bases_max.min(page_slots);
        let arenas = (0..bases_max)
            .step_by(ARENA_BASES_MAX)
            .map(|first| Arena::new(PAGE_BYTES, ARENA_BASES_MAX.min(bases_max - first), false))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            entries: vec![EMPTY; page_slots],
            slots: Vec::with_capacity(bases_max),
            hand: 0,
            free: Vec::with_capacity(bases_max),
            arenas,
        })
    }

    /// True when the sink has, or is about to have, exactly this content.
    pub(crate) fn is_unchanged(&self, slot: usize, hash: PageHash) -> bool {
        let entry = &self.entries[slot];
        entry.newest != Sequence(0) && entry.hash == hash
    }

    /// The base that a delta of this page may name.
    pub(crate) fn base(&self, slot: usize) -> Option<Base<'_>> {
        let entry = &self.entries[slot];
        if !entry.acked || entry.base == NO_BASE {
            return None;
        }
        let bytes = &self.slots[entry.base as usize].bytes[..];
        Some(Base { version: entry.newest, hash: entry.hash, bytes })
    }

    /// How many versions are kept.
    pub(crate) fn bases(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Hash of the newest version sent, if there is one.
    pub(crate) fn hash(&self, slot: usize) -> Option<PageHash> {
        let entry = &self.entries[slot];
        (entry.newest != Sequence(0)).then_some(entry.hash)
    }

    /// The page was sent as `version`. Its bytes become its base once acknowledged, if there is
    /// room: a page sent for the second time may push out another's base, a new page may not,
    /// since most pages of a guest are sent once.
    pub(crate) fn sent(&mut self, slot: usize, version: Sequence, hash: PageHash, bytes: &[u8]) {
        let again = self.entries[slot].newest != Sequence(0);
        let base = match self.entries[slot].base {
            NO_BASE => self.take_base_slot(again),
            kept => kept,
        };
        if base != NO_BASE {
            let kept = &mut self.slots[base as usize];
            kept.bytes.copy_from_slice(bytes);
            kept.owner = slot;
            kept.used_lately = again;
        }
        self.entries[slot] = Entry { hash, newest: version, base, acked: false };
    }

    /// The sink holds `version` of the page.
    pub(crate) fn acked(&mut self, slot: usize, version: Sequence) {
        let entry = &mut self.entries[slot];
        if entry.newest == version {
            entry.acked = true;
        }
    }

    /// Nobody knows whether the sink got `version`. True when the page has to be sent again,
    /// whole, because that was its newest version.
    pub(crate) fn lost(&mut self, slot: usize, version: Sequence) -> bool {
        let entry = &mut self.entries[slot];
        if entry.newest != version {
            return false;
        }
        if entry.base != NO_BASE {
            self.free.push(entry.base);
        }
        *entry = EMPTY;
        true
    }

    fn take_base_slot(&mut self, may_evict: bool) -> u32 {
        if let Some(slot) = self.free.pop() {
            return slot;
        }
        let arena = self.arenas.get(self.slots.len() / ARENA_BASES_MAX);
        if let Some(bytes) = arena.and_then(Arena::lease) {
            self.slots.push(BaseSlot { bytes, owner: 0, used_lately: false });
            return (self.slots.len() - 1) as u32;
        }
        if may_evict && !self.slots.is_empty() { self.evict() } else { NO_BASE }
    }

    /// Clock: the first version that was not used since the hand last passed.
    fn evict(&mut self) -> u32 {
        for _ in 0..CLOCK_STEPS_MAX {
            let slot = &mut self.slots[self.hand];
            if !std::mem::take(&mut slot.used_lately) {
                break;
            }
            self.hand = (self.hand + 1) % self.slots.len();
        }
        let victim = self.hand;
        self.hand = (self.hand + 1) % self.slots.len();
        self.entries[self.slots[victim].owner].base = NO_BASE;
        victim as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(fill: u8) -> Vec<u8> {
        vec![fill; PAGE_BYTES]
    }

    fn hash(n: u8) -> PageHash {
        PageHash([n; 16])
    }

    #[test]
    fn only_an_acknowledged_newest_version_is_a_base() {
        let mut pages = SourcePages::new(4, 4).unwrap();
        pages.sent(1, Sequence(1), hash(1), &page(1));
        assert!(pages.base(1).is_none(), "in flight");
        pages.acked(1, Sequence(1));
        assert_eq!(pages.base(1).unwrap().version, Sequence(1));
        pages.sent(1, Sequence(2), hash(2), &page(2));
        assert!(pages.base(1).is_none(), "a newer version is in flight");
        pages.acked(1, Sequence(1));
        assert!(pages.base(1).is_none(), "an old acknowledgement says nothing of the newest");
        pages.acked(1, Sequence(2));
        assert_eq!(pages.base(1).unwrap().bytes, page(2));
    }

    #[test]
    fn a_lost_version_forgets_the_page_and_frees_its_base() {
        let mut pages = SourcePages::new(2, 1).unwrap();
        pages.sent(0, Sequence(1), hash(1), &page(1));
        assert!(pages.is_unchanged(0, hash(1)));
        assert!(!pages.lost(0, Sequence(9)), "not the newest");
        assert!(pages.lost(0, Sequence(1)));
        assert!(!pages.is_unchanged(0, hash(1)));
        assert_eq!(pages.bases(), 0);
        pages.sent(1, Sequence(2), hash(2), &page(2));
        pages.acked(1, Sequence(2));
        assert!(pages.base(1).is_some());
    }

    #[test]
    fn a_page_sent_again_pushes_out_one_sent_once_but_not_the_other_way_round() {
        let mut pages = SourcePages::new(3, 1).unwrap();
        pages.sent(0, Sequence(1), hash(1), &page(1));
        pages.acked(0, Sequence(1));
        pages.sent(1, Sequence(2), hash(2), &page(2));
        pages.acked(1, Sequence(2));
        assert!(pages.base(0).is_some());
        assert!(pages.base(1).is_none(), "first send does not evict");
        pages.sent(1, Sequence(3), hash(3), &page(3));
        pages.acked(1, Sequence(3));
        assert!(pages.base(0).is_none());
        assert_eq!(pages.base(1).unwrap().bytes, page(3));
        assert_eq!(pages.bases(), 1);
    }
}
