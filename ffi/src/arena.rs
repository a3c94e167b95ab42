//! An arena of equal, page-aligned slots, and leases on them.
//!
//! Made once by a shard and never grown; used by that shard's thread alone (`Rc` inside keeps it
//! there). A lease is the exclusive use of one slot: it is not `Clone`, so that whoever holds it,
//! the coder or an operation in the kernel's hands, is the only one to touch the bytes. The memory
//! lives until the arena, every lease and every ring that registered it are gone, in any order.
//!
//! Slots hold guest memory, so they are left out of core dumps, are not inherited by children, and
//! can be scrubbed between sessions.

use crate::PAGE_BYTES;
use crate::mapping::Mapping;
use crate::sys;
use nix::errno::Errno;
use nix::sys::mman::{MmapAdvise, mlock};
use std::cell::RefCell;
use std::fmt;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::rc::Rc;

/// The largest arena: what io_uring takes as one registered buffer.
pub const ARENA_BYTES_MAX: usize = 1 << 30;

/// Why there is no arena.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// No slot, no byte, or more than [`ARENA_BYTES_MAX`].
    #[error("{slots} slots of {slot_bytes} bytes: an arena has 1 to {ARENA_BYTES_MAX} bytes")]
    Size {
        /// Bytes of a slot.
        slot_bytes: usize,
        /// How many slots.
        slots: usize,
    },
    /// The process may not lock that much memory.
    #[error("{needed_bytes} bytes can't be locked, the limit is {limit_bytes} (RLIMIT_MEMLOCK)")]
    LockedMemory {
        /// Bytes of the arena.
        needed_bytes: u64,
        /// The limit of all locked memory; `u64::MAX` when there is none.
        limit_bytes: u64,
    },
    /// The kernel refused a step.
    #[error("{call} failed")]
    Kernel {
        /// The step.
        call: &'static str,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
}

/// Which slots nobody holds, and which held something since they were scrubbed.
struct Slots {
    free: Vec<u32>,
    used: Vec<bool>,
}

/// What the arena, its leases and the rings that registered it hold together.
pub(crate) struct Shared {
    mapping: Mapping,
    slot_bytes: usize,
    slots: RefCell<Slots>,
}

impl Shared {
    /// The whole memory, as io_uring registers it.
    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// How many slots there are.
    pub(crate) fn slot_count(&self) -> usize {
        self.mapping.bytes() / self.slot_bytes
    }
}

/// Equal slots in one mapping.
pub struct Arena {
    shared: Rc<Shared>,
}

impl Arena {
    /// Makes `slots` slots of `slot_bytes` each, rounded up to whole pages; `lock` keeps them in
    /// physical memory from the start.
    ///
    /// # Errors
    /// [`ArenaError`]: a size out of bounds, or the kernel refuses memory or lock.
    pub fn new(slot_bytes: usize, slots: usize, lock: bool) -> Result<Self, ArenaError> {
        let wrong_size = || ArenaError::Size { slot_bytes, slots };
        let rounded = slot_bytes.checked_next_multiple_of(PAGE_BYTES).ok_or_else(wrong_size)?;
        let bytes = rounded.checked_mul(slots).filter(|&bytes| bytes <= ARENA_BYTES_MAX);
        let bytes = bytes.and_then(NonZeroUsize::new).ok_or_else(wrong_size)?;
        let kernel = |call| move |source| ArenaError::Kernel { call, source };
        let mapping = Mapping::anonymous(bytes).map_err(kernel("mmap"))?;
        mapping.advise(MmapAdvise::MADV_DONTDUMP).map_err(kernel("madvise(DONTDUMP)"))?;
        // A child would share the pages copy-on-write, and the kernel's pin would be on only one
        // of the copies.
        mapping.advise(MmapAdvise::MADV_DONTFORK).map_err(kernel("madvise(DONTFORK)"))?;
        if lock {
            lock_pages(&mapping)?;
        }
        // Slot 0 is leased first: the list is a stack.
        let free = (0..slots as u32).rev().collect();
        let state = Slots { free, used: vec![false; slots] };
        let slots = RefCell::new(state);
        Ok(Self { shared: Rc::new(Shared { mapping, slot_bytes: rounded, slots }) })
    }

    /// Takes a slot, or None when all are leased. Its bytes are what the last holder left.
    #[must_use]
    pub fn lease(&self) -> Option<Lease> {
        let mut slots = self.shared.slots.borrow_mut();
        let slot = slots.free.pop()?;
        slots.used[slot as usize] = true;
        Some(Lease { arena: Rc::clone(&self.shared), slot })
    }

    /// How many slots nobody holds.
    #[must_use]
    pub fn free_slots(&self) -> usize {
        self.shared.slots.borrow().free.len()
    }

    /// How many slots there are.
    #[must_use]
    pub fn slot_count(&self) -> usize {
        self.shared.slot_count()
    }

    /// Bytes of each slot.
    #[must_use]
    pub fn slot_bytes(&self) -> usize {
        self.shared.slot_bytes
    }

    /// Zeroes every free slot that was leased since it was last zeroed; returns how many those
    /// were. For the time between sessions: it takes as long as the memory is large.
    pub fn scrub(&self) -> usize {
        let mut slots = self.shared.slots.borrow_mut();
        let Slots { free, used } = &mut *slots;
        let mut scrubbed = 0;
        for &slot in free.iter() {
            if !std::mem::take(&mut used[slot as usize]) {
                continue;
            }
            let base = self.shared.mapping.at(slot as usize * self.shared.slot_bytes);
            // SAFETY: a slot in the free list has no lease, so no slice of it and no operation on
            // it exists; it lies in the mapping, which `self` keeps alive.
            unsafe { base.as_ptr().write_bytes(0, self.shared.slot_bytes) };
            scrubbed += 1;
        }
        scrubbed
    }

    /// What a ring holds to keep the memory alive.
    pub(crate) fn shared(&self) -> &Rc<Shared> {
        &self.shared
    }
}

/// Locks the mapping's pages in physical memory.
fn lock_pages(mapping: &Mapping) -> Result<(), ArenaError> {
    // SAFETY: the range is a live mapping of ours; locking changes no contents.
    let locked = unsafe { mlock(mapping.base().cast(), mapping.bytes()) };
    locked.map_err(|errno| match errno {
        Errno::ENOMEM | Errno::EPERM | Errno::EAGAIN => ArenaError::LockedMemory {
            needed_bytes: mapping.bytes() as u64,
            limit_bytes: sys::memlock_limit(),
        },
        source => ArenaError::Kernel { call: "mlock", source },
    })
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena")
            .field("slots", &self.slot_count())
            .field("slot_bytes", &self.slot_bytes())
            .field("free", &self.free_slots())
            .finish()
    }
}

/// The exclusive use of one slot. The slot goes back to the arena when this is dropped.
pub struct Lease {
    arena: Rc<Shared>,
    slot: u32,
}

impl Lease {
    /// Which slot it is.
    #[must_use]
    pub fn slot(&self) -> usize {
        self.slot as usize
    }

    /// True when the slot lies in this arena.
    pub(crate) fn is_of(&self, arena: &Rc<Shared>) -> bool {
        Rc::ptr_eq(&self.arena, arena)
    }

    /// The address of a part of the slot, for an operation that will own this lease.
    pub(crate) fn part(&self, range: &Range<usize>) -> NonNull<u8> {
        assert!(
            range.start < range.end && range.end <= self.arena.slot_bytes,
            "bytes {range:?} are not in a slot"
        );
        self.arena.mapping.at(self.slot as usize * self.arena.slot_bytes + range.start)
    }
}

impl Deref for Lease {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let base = self.arena.mapping.at(self.slot as usize * self.arena.slot_bytes);
        // SAFETY: the slot lies in the mapping, which this lease keeps alive and which was zeroed
        // when it was made; nobody else touches it, since a slot has one lease at a time and an
        // operation in flight owns its lease.
        unsafe { std::slice::from_raw_parts(base.as_ptr(), self.arena.slot_bytes) }
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut [u8] {
        let base = self.arena.mapping.at(self.slot as usize * self.arena.slot_bytes);
        // SAFETY: as in `deref`; `&mut self` makes this slice the only one.
        unsafe { std::slice::from_raw_parts_mut(base.as_ptr(), self.arena.slot_bytes) }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // The list was made with room for every slot, so this never allocates.
        self.arena.slots.borrow_mut().free.push(self.slot);
    }
}

impl fmt::Debug for Lease {
    /// The slot only: the bytes are guest memory.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("slot", &self.slot).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn an_exhausted_arena_gives_nothing_until_a_lease_returns() {
        let arena = Arena::new(10_000, 3, false).unwrap();
        assert_eq!((arena.slot_bytes(), arena.slot_count()), (12_288, 3));
        let mut leases: Vec<_> = (0..3).map(|_| arena.lease().unwrap()).collect();
        assert!(arena.lease().is_none());
        assert_eq!(arena.free_slots(), 0);
        let slots: BTreeSet<_> = leases.iter().map(Lease::slot).collect();
        assert_eq!(slots, BTreeSet::from([0, 1, 2]));
        let slot = leases.swap_remove(1).slot();
        assert_eq!(arena.lease().unwrap().slot(), slot);
    }

    #[test]
    fn leases_are_aligned_and_never_overlap() {
        let arena = Arena::new(8192, 16, false).unwrap();
        let mut leases: Vec<_> = (0..16).map(|_| arena.lease().unwrap()).collect();
        for lease in &mut leases {
            let mark = lease.slot() as u8 + 1;
            assert_eq!(lease.as_ptr() as usize % PAGE_BYTES, 0);
            assert!(lease.iter().all(|&byte| byte == 0));
            lease.fill(mark);
        }
        for lease in &leases {
            assert!(lease.iter().all(|&byte| byte == lease.slot() as u8 + 1));
        }
    }

    #[test]
    fn scrubbing_zeroes_free_slots_and_leaves_leased_ones_alone() {
        let arena = Arena::new(4096, 4, false).unwrap();
        let (mut held, mut freed) = (arena.lease().unwrap(), arena.lease().unwrap());
        held.fill(1);
        freed.fill(2);
        drop(freed);
        assert_eq!(arena.scrub(), 1);
        assert_eq!(arena.scrub(), 0);
        assert!(arena.lease().unwrap().iter().all(|&byte| byte == 0));
        assert!(held.iter().all(|&byte| byte == 1));
    }

    #[test]
    fn a_lease_keeps_the_memory_when_the_arena_is_gone() {
        let arena = Arena::new(4096, 2, false).unwrap();
        let mut lease = arena.lease().unwrap();
        drop(arena);
        lease.fill(7);
        assert!(lease.iter().all(|&byte| byte == 7));
    }

    #[test]
    fn sizes_out_of_bounds_are_refused() {
        for (slot_bytes, slots) in
            [(0, 1), (1, 0), (usize::MAX, 1), (4096, usize::MAX), (ARENA_BYTES_MAX, 2)]
        {
            let made = Arena::new(slot_bytes, slots, false);
            assert!(matches!(made, Err(ArenaError::Size { .. })), "{slot_bytes} {slots}");
        }
    }

    #[test]
    fn locking_works_or_names_what_it_needs() {
        match Arena::new(4096, 16, true) {
            Ok(arena) => assert_eq!(arena.free_slots(), 16),
            Err(error) => {
                eprintln!("memory can't be locked here: {error}");
                let ArenaError::LockedMemory { needed_bytes, .. } = error else {
                    panic!("{error:?}")
                };
                assert_eq!(needed_bytes, 16 * 4096);
            }
        }
    }
}
