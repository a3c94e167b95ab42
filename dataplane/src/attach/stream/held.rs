//! What the sink of a stream session alone holds, and what the source was told of it.
//!
//! The sink has pages of other guests and of images that this guest may be sent by. They are read
//! while the session runs and handed to its shard in chunks ([`HeldChunk`]), which tells the
//! source how their hashes begin; only then can the source name one, in the place of a version. The
//! source has no bytes of them: they are found by the content of a page that is about to be sent,
//! and are no base for what has changed. What is named so is held at both ends from there on, as
//! every page that was sent is.
//!
//! Nothing here is part of what both ends hold alike: it is never asked what there is to keep.
//!
//! Two pages whose hashes begin alike are told apart at the sink: a batch names its bases by a
//! digest over their whole hashes, and one that is not the right page ends the session.

use super::before::BeforeError;
use dwcp_codec::{PAGE_BYTES, Page, PageHash};
use dwcp_ffi::memory::{PagePool, PrivatePages};
use dwcp_proto::wire::frame::{HashStart, HeldHashes};
use dwcp_proto::wire::limits::HELD_CHUNK_PAGES;

/// Memory for each page that the sink alone holds: its bytes, its hash and its place.
pub const HELD_PAGE_BYTES: u64 = PAGE_BYTES as u64 + size_of::<Entry>() as u64;
/// Memory for each of them at the source: how its hash begins, and its part of what finds it.
pub const TOLD_PAGE_BYTES: u64 = size_of::<HashStart>() as u64 + 4 * 4;

/// The most pages: a slot's number and one more are 32 bits.
const PAGES_MAX: u64 = u32::MAX as u64 / 2;

/// Places that are looked at for one hash. Those of an honest sink lie apart, since the table is at
/// most half full; one that makes them collide is not listened to for long.
const STEPS_MAX: usize = 64;

#[derive(Clone, Copy, Debug)]
struct Entry {
    hash: PageHash,
    place: u16,
}

/// Some pages that the sink of one session alone holds. Made off the shard.
#[derive(Debug)]
pub struct HeldChunk {
    pages: PrivatePages,
    /// By hash: the order in which they are told.
    entries: Vec<Entry>,
}

impl HeldChunk {
    /// An empty one with room for as many pages as one frame tells of, in memory of a pool.
    ///
    /// # Errors
    /// [`BeforeError::Memory`]: the pool has not so much left.
    pub fn create(pool: &PagePool) -> Result<Self, BeforeError> {
        let pages = pool.take((HELD_CHUNK_PAGES * PAGE_BYTES) as u64)?;
        Ok(Self { pages, entries: Vec::with_capacity(HELD_CHUNK_PAGES) })
    }

    /// Adds a page by the session's hash of it, unless it is there.
    ///
    /// # Panics
    /// When it is full.
    pub fn add(&mut self, hash: PageHash, bytes: &Page) {
        assert!(!self.is_full(), "whoever fills it looks first");
        let place = self.entries.len() as u16;
        if let Err(at) = self.entries.binary_search_by_key(&hash, |entry| entry.hash) {
            self.pages.page_mut(place.into()).copy_from_slice(bytes);
            self.entries.insert(at, Entry { hash, place });
        }
    }

    /// Whether it has as many pages as it may.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.entries.len() == HELD_CHUNK_PAGES
    }

    /// How many pages it has.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.entries.len()
    }

    /// What is told of them.
    pub(crate) fn told(&self) -> impl ExactSizeIterator<Item = HashStart> {
        self.entries.iter().map(|entry| start_of(entry.hash))
    }
}

/// The pages that a sink alone holds.
#[derive(Debug)]
pub(crate) struct HeldPages {
    /// In the order of their numbers; the first `told` are told.
    chunks: Vec<HeldChunk>,
    chunks_max: usize,
    told: usize,
}

impl HeldPages {
    /// None yet, of at most so many.
    pub(super) fn new(pages: u64) -> Self {
        let chunks_max = chunks_of(pages);
        Self { chunks: Vec::with_capacity(chunks_max), chunks_max, told: 0 }
    }

    /// Takes a chunk over; false if it has no pages, or there are as many as were agreed.
    pub(crate) fn add(&mut self, chunk: HeldChunk) -> bool {
        let fits = self.chunks.len() < self.chunks_max && chunk.pages() > 0;
        if fits {
            self.chunks.push(chunk);
        }
        fits
    }

    /// The next chunk that has to be told, and its number.
    pub(crate) fn due(&self) -> Option<(u32, &HeldChunk)> {
        let chunk = self.chunks.get(self.told)?;
        Some((self.told as u32, chunk))
    }

    /// It was told, once and for all: where that is lost, the source goes without.
    pub(crate) fn told(&mut self) {
        self.told += 1;
    }

    /// The page in a slot, and its hash.
    pub(super) fn page(&self, slot: u64) -> Option<(&Page, PageHash)> {
        let slot = usize::try_from(slot).ok()?;
        let chunk = self.chunks.get(slot / HELD_CHUNK_PAGES)?;
        let entry = chunk.entries.get(slot % HELD_CHUNK_PAGES)?;
        Some((chunk.pages.page(entry.place.into()), entry.hash))
    }
}

/// The sink told of more pages than were agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BeyondTerms;

/// What a source was told that the sink alone holds.
#[derive(Debug)]
pub(super) struct ToldPages {
    /// By slot.
    starts: Vec<HashStart>,
    /// Slots and one by hash, 0 for none: open addressing, a power of two, at most half full.
    found: Vec<u32>,
    /// How many more may be told.
    left: usize,
}

impl ToldPages {
    /// Nothing yet, of at most so many pages.
    pub(super) fn new(pages: u64) -> Self {
        let slots = chunks_of(pages) * HELD_CHUNK_PAGES;
        let starts = vec![HashStart::default(); slots];
        Self { starts, found: vec![0; (slots * 2).next_power_of_two()], left: slots }
    }

    /// The sink told of a chunk.
    pub(super) fn take(&mut self, chunk: u32, hashes: &HeldHashes<'_>) -> Result<(), BeyondTerms> {
        let first = chunk as usize * HELD_CHUNK_PAGES;
        if first >= self.starts.len() {
            return Err(BeyondTerms);
        }
        for (slot, hash) in (first..).zip(hashes.iter()) {
            self.left = self.left.checked_sub(1).ok_or(BeyondTerms)?;
            self.starts[slot] = hash;
            if let Some(at) = self.search(hash) {
                self.found[at] = slot as u32 + 1;
            }
        }
        Ok(())
    }

    /// The slot of a page with this hash, as far as that was told.
    pub(super) fn find(&self, hash: PageHash) -> Option<u64> {
        let found = self.found[self.search(start_of(hash))?];
        found.checked_sub(1).map(u64::from)
    }

    /// Where a hash stands among those that are found, or would, if that is near.
    fn search(&self, hash: HashStart) -> Option<usize> {
        let mask = self.found.len() - 1;
        let start = u64::from_be_bytes(hash) as usize;
        let places = (0..STEPS_MAX).map(|step| (start + step) & mask);
        let is_it = |place: &usize| match self.found[*place] {
            0 => true,
            slot => self.starts[slot as usize - 1] == hash,
        };
        { places }.find(is_it)
    }
}

/// What a session knows of pages that its sink alone holds.
#[derive(Debug)]
pub(super) enum Alone {
    /// There are none.
    Nothing,
    /// At the sink.
    Held(HeldPages),
    /// At the source.
    Told(ToldPages),
}

impl Alone {
    /// At a source that may be told of so many; with their number.
    pub(super) fn told(pages: u64) -> (Self, u64) {
        let alone = if pages == 0 { Self::Nothing } else { Self::Told(ToldPages::new(pages)) };
        (alone, pages)
    }

    /// At a sink that may hold so many; with their number.
    pub(super) fn held(pages: u64) -> (Self, u64) {
        let alone = if pages == 0 { Self::Nothing } else { Self::Held(HeldPages::new(pages)) };
        (alone, pages)
    }
}

fn chunks_of(pages: u64) -> usize {
    pages.min(PAGES_MAX).div_ceil(HELD_CHUNK_PAGES as u64) as usize
}

fn start_of(hash: PageHash) -> HashStart {
    let Some(start) = hash.0.first_chunk() else { unreachable!("a hash is longer than its start") };
    *start
}

#[cfg(test)]
mod tests {
    use super::super::before::tests::page;
    use super::*;
    use dwcp_proto::ids::SessionNumber;
    use dwcp_proto::wire::frame::{Frame, write_held};
    use dwcp_proto::wire::version::WireVersion;

    fn hash(number: u64) -> PageHash {
        let mut hash = [7; 16];
        hash[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        PageHash(hash)
    }

    fn chunk(numbers: impl Iterator<Item = u64>) -> HeldChunk {
        let mut chunk = HeldChunk::create(&PagePool::new(8 << 20).unwrap()).unwrap();
        numbers.for_each(|number| chunk.add(hash(number), &page(number as u8)));
        chunk
    }

    /// Has a source hear of a chunk as it comes over the wire.
    fn tell(told: &mut ToldPages, number: u32, chunk: &HeldChunk) -> Result<(), BeyondTerms> {
        let mut out = vec![0; 20_000];
        write_held(&mut out, SessionNumber(1), number, chunk.told());
        let Ok((Frame::Held { chunk, hashes, .. }, _)) = Frame::decode(WireVersion::V2, &out)
        else {
            panic!("it was written a moment ago")
        };
        told.take(chunk, &hashes)
    }

    #[test]
    fn a_page_that_was_told_is_found_and_read_under_one_name() {
        let mut held = HeldPages::new(5000);
        let mut told = ToldPages::new(5000);
        assert!(held.add(chunk(0..2048)) && held.add(chunk(2048..2050)));
        while let Some((number, chunk)) = held.due() {
            tell(&mut told, number, chunk).unwrap();
            held.told();
        }
        for number in 0..2050 {
            let slot = told.find(hash(number)).unwrap();
            assert_eq!(held.page(slot), Some((&page(number as u8), hash(number))), "{number}");
        }
        assert_eq!(told.find(hash(2050)), None);
        for slot in [2050, 4096, 6144, u64::MAX] {
            assert_eq!(held.page(slot), None, "{slot}");
        }
    }

    #[test]
    fn no_more_is_taken_than_was_agreed() {
        let mut held = HeldPages::new(2049);
        assert!(!held.add(chunk(0..0)), "it has no pages");
        assert!(held.add(chunk(0..1)) && held.add(chunk(1..2)) && !held.add(chunk(2..3)));
        let mut told = ToldPages::new(2049);
        assert_eq!(tell(&mut told, 2, &chunk(0..1)), Err(BeyondTerms));
        assert_eq!(tell(&mut told, u32::MAX, &chunk(0..1)), Err(BeyondTerms));
        assert_eq!(tell(&mut told, 1, &chunk(0..2048)), Ok(()));
        assert_eq!(tell(&mut told, 1, &chunk(2048..4096)), Ok(()), "in the place of the others");
        assert_eq!(told.find(hash(3)), None);
        assert!(told.find(hash(3000)).is_some());
        assert_eq!(tell(&mut told, 0, &chunk(0..1)), Err(BeyondTerms));
        assert_eq!(tell(&mut ToldPages::new(0), 0, &chunk(0..1)), Err(BeyondTerms));
    }

    #[test]
    fn hashes_that_are_made_to_collide_cost_little_and_hide_no_honest_one() {
        let alike = |number: u64| {
            let mut hash = [0; 16];
            hash[..4].copy_from_slice(&(number as u32).to_be_bytes());
            PageHash(hash)
        };
        let mut chunk = HeldChunk::create(&PagePool::new(8 << 20).unwrap()).unwrap();
        (0..2048).for_each(|number| chunk.add(alike(number), &page(1)));
        let mut told = ToldPages::new(2048);
        tell(&mut told, 0, &chunk).unwrap();
        let found = (0..2048).filter(|number| told.find(alike(*number)).is_some());
        assert_eq!(found.count(), STEPS_MAX);
        assert_eq!(told.find(hash(1)), None);
    }

    #[test]
    fn a_page_that_comes_twice_is_told_once() {
        let chunk = chunk([5, 6, 5].into_iter());
        assert_eq!((chunk.pages(), chunk.told().len()), (2, 2));
    }
}
