//! The pool that private pages come from: one range of address space, cut into chunks.
//!
//! Made at start and shared by all threads that take pages, those that drop them, and the
//! [`Caretaker`](super::Caretaker), if there is one. A chunk gets memory where it is first touched,
//! which costs more than writing it does; the caretaker touches chunks before they are needed, and
//! zeroes what comes back.
//!
//! No lock: a thread of the data plane never waits for the caretaker, which runs when nobody else
//! wants to. Each chunk has a [`State`], and whoever changes it to `Held` owns the chunk until it
//! stores another one. Taking and giving back look at the states one after the other; they happen
//! as a session opens and closes, never for a page.

use super::{Chunk, PrivatePages};
use crate::PAGE_BYTES;
use crate::mapping::Mapping;
use crate::region::{RegionError, checked_size};
use nix::sys::mman::{MmapAdvise, madvise};
use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;

/// The unit of the pool: a huge page of x86-64 and AArch64, which the kernel is asked for, since
/// taking a fault for each small page costs several times what copying the page does.
pub const CHUNK_BYTES: u64 = 2 << 20;
const CHUNK: usize = CHUNK_BYTES as usize;

/// What a chunk is. All of a chunk that is neither used nor held is zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    /// It has memory.
    Ready,
    /// It has none: the first touch of each page brings it.
    Untouched,
    /// It was written.
    Used,
    /// Somebody owns it.
    Held,
}

/// What takers prefer, the best first.
const PREFERRED: [State; 3] = [State::Ready, State::Untouched, State::Used];

/// How many bytes were taken since the start, by what they were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Zeroed and with memory.
    pub ready_bytes: u64,
    /// Without memory: whoever took them has it brought page by page.
    pub untouched_bytes: u64,
    /// Written by the one before, zeroed as they were taken.
    pub used_bytes: u64,
}

/// What all that use the pool share.
pub(super) struct Shared {
    mapping: Mapping,
    /// Where the first chunk starts.
    first: usize,
    states: Box<[AtomicU8]>,
    /// Chunks that are ready; that are anything but untouched; how many of these are wanted.
    ready: AtomicUsize,
    there: AtomicUsize,
    wanted: AtomicUsize,
    /// Chunks taken since the start, in the order of `PREFERRED`.
    taken: [AtomicU64; 3],
    /// Wakes the caretaker; only while there is one.
    caretaker: OnceLock<Thread>,
    ended: AtomicBool,
}

/// A pool of private pages. A clone is the same pool.
#[derive(Clone)]
pub struct PagePool(pub(super) Arc<Shared>);

impl PagePool {
    /// Room for so many bytes, in whole chunks: address space alone.
    ///
    /// # Errors
    /// [`RegionError`]: a bad size, or the kernel refused.
    pub fn new(bytes: u64) -> Result<Self, RegionError> {
        let bytes = bytes.checked_next_multiple_of(CHUNK_BYTES).unwrap_or(u64::MAX);
        // One more, since the kernel need not begin at the border of a huge page.
        let length = checked_size(bytes.saturating_add(CHUNK_BYTES), CHUNK_BYTES)?;
        let refused = |call| move |source| RegionError::Kernel { call, source };
        let mapping = Mapping::sparse(length).map_err(refused("mmap"))?;
        mapping.advise(MmapAdvise::MADV_DONTDUMP).map_err(refused("madvise"))?;
        // A child would share the pages copy-on-write.
        mapping.advise(MmapAdvise::MADV_DONTFORK).map_err(refused("madvise"))?;
        // A kernel without huge pages refuses; small ones do as well.
        let _ = mapping.advise(MmapAdvise::MADV_HUGEPAGE);
        let first = mapping.address().next_multiple_of(CHUNK_BYTES) - mapping.address();
        let untouched = || AtomicU8::new(State::Untouched as u8);
        Ok(Self(Arc::new(Shared {
            mapping,
            first: first as usize,
            states: (0..bytes / CHUNK_BYTES).map(|_| untouched()).collect(),
            ready: AtomicUsize::new(0),
            there: AtomicUsize::new(0),
            wanted: AtomicUsize::new(0),
            taken: Default::default(),
            caretaker: OnceLock::new(),
            ended: AtomicBool::new(false),
        })))
    }

    /// Takes so many bytes of zeroes, in whole chunks: those that are ready first, then untouched
    /// ones; used ones only if there are no others, since they are zeroed here and now.
    ///
    /// # Errors
    /// [`RegionError::PoolExhausted`], or a bad size.
    pub fn take(&self, bytes: u64) -> Result<PrivatePages, RegionError> {
        let length = checked_size(bytes, PAGE_BYTES as u64)?.get();
        let (count, all) = (length.div_ceil(CHUNK), self.0.states.len());
        let exhausted = RegionError::PoolExhausted { bytes, pool_bytes: self.bytes() };
        if count > all {
            return Err(exhausted);
        }
        let pages = (length / PAGE_BYTES) as u64;
        let mut taken =
            PrivatePages { pool: self.0.clone(), chunks: Vec::with_capacity(count), pages };
        for state in PREFERRED {
            let mut from = 0;
            while taken.chunks.len() < count
                && let Some(number) = self.0.claim(state, from..all)
            {
                taken.chunks.push(Chunk { number, state });
                from = number + 1;
            }
        }
        if taken.chunks.len() < count {
            return Err(exhausted);
        }
        for Chunk { number, state } in &mut taken.chunks {
            self.0.taken[*state as usize].fetch_add(1, Ordering::Relaxed);
            if *state == State::Used {
                self.0.zero(*number);
                *state = State::Ready;
            }
        }
        Ok(taken)
    }

    /// Asks for so many bytes to have memory, in the hands of takers and ready together. Nothing
    /// comes of it without a caretaker.
    pub fn want_ready(&self, bytes: u64) {
        let wanted = usize::try_from(bytes.div_ceil(CHUNK_BYTES)).unwrap_or(usize::MAX);
        self.0.wanted.store(wanted.min(self.0.states.len()), Ordering::Relaxed);
        self.0.wake();
    }

    /// Bytes that are to have memory.
    #[must_use]
    pub fn wanted_bytes(&self) -> u64 {
        self.0.wanted.load(Ordering::Relaxed) as u64 * CHUNK_BYTES
    }

    /// Bytes that are zeroed, have memory and are nobody's.
    #[must_use]
    pub fn ready_bytes(&self) -> u64 {
        self.0.ready.load(Ordering::Relaxed) as u64 * CHUNK_BYTES
    }

    /// Bytes that takers hold, or that were written and are not zeroed yet.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        let there = self.0.there.load(Ordering::Relaxed) as u64 * CHUNK_BYTES;
        there.saturating_sub(self.ready_bytes())
    }

    /// All bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.states.len() as u64 * CHUNK_BYTES
    }

    /// What was taken since the start.
    #[must_use]
    pub fn taken(&self) -> Taken {
        let [ready_bytes, untouched_bytes, used_bytes] =
            [0, 1, 2].map(|at| self.0.taken[at].load(Ordering::Relaxed) * CHUNK_BYTES);
        Taken { ready_bytes, untouched_bytes, used_bytes }
    }
}

impl fmt::Debug for PagePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PagePool")
            .field("bytes", &self.bytes())
            .field("ready_bytes", &self.ready_bytes())
            .field("held_bytes", &self.held_bytes())
            .finish()
    }
}

impl Shared {
    /// Owns the first chunk of a state among these.
    pub(super) fn claim(&self, state: State, mut among: Range<usize>) -> Option<usize> {
        let number = among.find(|&number| {
            let chunk = &self.states[number];
            // Acquire: what was done to the chunk before it was put is done.
            chunk.load(Ordering::Relaxed) == state as u8
                && chunk
                    .compare_exchange(
                        state as u8,
                        State::Held as u8,
                        Ordering::Acquire,
                        Ordering::Relaxed,
                    )
                    .is_ok()
        })?;
        match state {
            State::Ready => self.ready.fetch_sub(1, Ordering::Relaxed),
            State::Untouched => self.there.fetch_add(1, Ordering::Relaxed),
            State::Used | State::Held => 0,
        };
        Some(number)
    }

    /// Gives up a chunk that the caller owns.
    pub(super) fn put(&self, number: usize, state: State) {
        assert!(state != State::Held, "a chunk that is given up is nobody's");
        match state {
            State::Ready => self.ready.fetch_add(1, Ordering::Relaxed),
            State::Untouched => self.there.fetch_sub(1, Ordering::Relaxed),
            State::Used | State::Held => 0,
        };
        let before = self.states[number].swap(state as u8, Ordering::Release);
        assert!(before == State::Held as u8, "a chunk is given up by its owner alone");
    }

    /// Takes chunks back. Without a caretaker the memory of what was written goes to the kernel.
    pub(super) fn give_back(&self, chunks: &[Chunk]) {
        let tended = self.is_tended();
        for &Chunk { number, state } in chunks {
            let state = if state == State::Used && !tended { self.discard(number) } else { state };
            self.put(number, state);
        }
        self.wake();
    }

    /// The address so far into a chunk.
    pub(super) fn at(&self, number: usize, offset: usize) -> NonNull<u8> {
        self.mapping.at(self.first + number * CHUNK + offset)
    }

    /// The start of a chunk that the caller owns.
    fn owned(&self, number: usize) -> NonNull<u8> {
        let state = self.states[number].load(Ordering::Relaxed);
        assert!(state == State::Held as u8, "a chunk is touched by its owner alone");
        self.at(number, 0)
    }

    /// Zeroes a chunk that the caller owns.
    pub(super) fn zero(&self, number: usize) {
        let base = self.owned(number);
        // SAFETY: the chunk lies in the mapping, which is writable and lives as long as `self`; the
        // caller owns it, so that no slice of it exists.
        unsafe { base.as_ptr().write_bytes(0, CHUNK) };
    }

    /// Brings memory to a chunk of zeroes that the caller owns. By writing, not by `madvise`: a
    /// fault holds no lock of the whole address space, which others would wait for.
    pub(super) fn touch(&self, number: usize) {
        let base = self.owned(number).as_ptr();
        for page in 0..CHUNK / PAGE_BYTES {
            let byte = base.wrapping_add(page * PAGE_BYTES);
            // SAFETY: as in `zero`; volatile, since nobody reads what was there already.
            unsafe { byte.write_volatile(0) };
        }
    }

    /// Gives the memory of a chunk that the caller owns to the kernel; returns what it is then.
    pub(super) fn discard(&self, number: usize) -> State {
        let base = self.owned(number).cast();
        // SAFETY: as in `zero`, and the range is the chunk's alone, in a private mapping: what is
        // read there next is zeroes.
        match unsafe { madvise(base, CHUNK, MmapAdvise::MADV_DONTNEED) } {
            Ok(()) => State::Untouched,
            // Such as of a process that has all its memory locked.
            Err(_) => {
                self.zero(number);
                State::Ready
            }
        }
    }

    /// The next piece of a caretaker's work; false if there is none. `next` is where it looks
    /// first.
    pub(super) fn tend(&self, next: &mut usize) -> bool {
        let there = self.there.load(Ordering::Relaxed);
        let wanted = self.wanted.load(Ordering::Relaxed);
        let mut claim = |state| {
            let (from, all) = (*next, self.states.len());
            let number = self.claim(state, from..all).or_else(|| self.claim(state, 0..from))?;
            *next = number;
            Some(number)
        };
        if let Some(number) = claim(State::Used) {
            if there > wanted {
                self.put(number, self.discard(number));
            } else {
                self.zero(number);
                self.put(number, State::Ready);
            }
        } else if there < wanted
            && let Some(number) = claim(State::Untouched)
        {
            self.touch(number);
            self.put(number, State::Ready);
        } else if there > wanted
            && let Some(number) = claim(State::Ready)
        {
            let state = self.discard(number);
            self.put(number, state);
            return state == State::Untouched;
        } else {
            return false;
        }
        true
    }

    pub(super) fn assert_untended(&self) {
        assert!(self.caretaker.get().is_none(), "a pool has one caretaker");
    }

    /// From now on this thread is woken when there may be work.
    pub(super) fn tended_by(&self, thread: Thread) {
        assert!(self.caretaker.set(thread).is_ok(), "a pool has one caretaker");
    }

    /// Ends the caretaker's work.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.wake();
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    fn is_tended(&self) -> bool {
        self.caretaker.get().is_some() && !self.has_ended()
    }

    fn wake(&self) {
        if let Some(caretaker) = self.caretaker.get() {
            caretaker.unpark();
        }
    }
}
