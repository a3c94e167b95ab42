//! A region as the sink of a session, one lane of it: writes pages, proves what it holds.
//!
//! Owned by one shard. The region's memory is the base of every delta, so it is written by nobody
//! else until the commit. Memory is read back and hashed in the background while the shard has
//! nothing better to do, and completely before the sink says that it holds every page.

use super::read_back::ReadBack;
use super::source::{bits, page_of};
use crate::port::SinkSetup;
use crate::stats::{SessionCounter, SessionStats};
use crate::stripe::Stripe;
use crate::table::SinkPages;
use dwcp_codec::{
    Bases, Class, DecodeError, DecodedExtent, Decoder, DigestBuilder, DigestKind, EXTENT_PAGES,
    PAGE_BYTES, Page, PageHash, PageHasher,
};
use dwcp_ffi::region::Region;
use dwcp_proto::ids::{Sequence, SessionKey};
use dwcp_proto::wire::frame::NackReason;
use std::sync::Arc;

/// Table slots that one background step looks at: 64 pages are about 100 us of hashing.
const READ_BACK_PAGES_PER_STEP: usize = 64;

/// Table slots that one step of the comparison looks at: at most about 2 ms.
const VERIFY_PAGES_PER_STEP: usize = 1024;

/// Pages that may wait to be read back while the shard has other work: 64 MiB are about 40 ms of
/// hashing. More would be paid in the pause of the guest, by a sink that is never idle before.
const UNREAD_PAGES_MAX: u64 = 16 * 1024;

/// What became of a frame with pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Applied {
    /// Its pages are in the region.
    Held,
    /// It names a base that is not held: the source has to send the pages whole.
    Refused(NackReason),
}

/// What a step of checking came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// Nothing to do.
    Idle,
    /// Something was done; call again.
    Worked,
    /// All pages of the lane are what the source has.
    Matches {
        /// False when the source asked for the same proof again.
        first_time: bool,
    },
    /// This page is not, or (after all pages were read) the source's digest is another.
    Differs(u64),
}

#[derive(Debug)]
enum Phase {
    Receiving,
    /// Comparing with the source's digest; the next table slot and the pages so far.
    Verifying {
        next: usize,
        pages: u64,
        builder: Box<DigestBuilder>,
        expected: Expected,
    },
    /// Every page is held; true while the source still has to be told.
    Proven {
        expected: Expected,
        tell: bool,
    },
    Failed,
}

/// The source's digest over all pages of the lane, and their number.
type Expected = ([u8; 16], u64);

/// One lane of a sink session.
#[derive(Debug)]
pub(crate) struct RegionSink {
    pub(crate) session: SessionKey,
    pub(crate) stats: SessionStats,
    region: Arc<Region>,
    stripe: Stripe,
    pages: SinkPages,
    hasher: PageHasher,
    /// Where the background read-back goes on.
    cursor: usize,
    /// Pages that still have to be read back.
    unread: u64,
    phase: Phase,
}

/// The region as the decoder sees it.
struct HeldPages<'a> {
    region: &'a Region,
    stripe: &'a Stripe,
    pages: &'a SinkPages,
}

impl Bases for HeldPages<'_> {
    fn base(&mut self, page: u64, version: u64, out: &mut Page) -> Option<PageHash> {
        let hash = self.pages.hash_of(self.stripe.slot(page)?, Sequence(version))?;
        self.region.read_pages(page, out);
        Some(hash)
    }
}

impl RegionSink {
    pub(crate) fn new(setup: SinkSetup) -> Self {
        let stripe = Stripe::new(setup.lane.0, setup.lane_count, setup.region.page_count());
        Self {
            session: setup.session,
            stats: setup.stats,
            region: setup.region,
            pages: SinkPages::new(stripe.slots()),
            hasher: PageHasher::new(&setup.hash_key),
            stripe,
            cursor: 0,
            unread: 0,
            phase: Phase::Receiving,
        }
    }

    /// Decodes a frame and writes its pages, but for those that a newer version already replaced.
    pub(crate) fn apply(
        &mut self,
        decoder: &mut Decoder,
        sequence: Sequence,
        payload: &[u8],
    ) -> Result<Applied, SinkError> {
        match self.phase {
            Phase::Receiving => {}
            Phase::Failed => return Err(SinkError::Failed),
            Phase::Verifying { .. } | Phase::Proven { .. } => {
                return Err(SinkError::PagesAfterVerify);
            }
        }
        let Self { region, stripe, pages, .. } = &*self;
        let mut held = HeldPages { region, stripe, pages };
        let region_pages = stripe.region_pages();
        let extent = match decoder.decode(&self.hasher, payload, region_pages, &mut held) {
            Ok(extent) => extent,
            Err(DecodeError::BaseUnknown { .. }) => return Ok(self.refuse(NackReason::UnknownBase)),
            Err(DecodeError::BaseMismatch) => return Ok(self.refuse(NackReason::BaseDiffers)),
            Err(error) => return Err(SinkError::Decode(error)),
        };
        let local = self.stripe.local(extent.first_page).ok_or(SinkError::ForeignExtent)?;
        let (mut first_time, mut again) = (0, 0);
        let each = bits(extent.mask).zip(extent.hashes).zip(extent.classes);
        for ((bit, hash), class) in each {
            let slot = local * EXTENT_PAGES + bit as usize;
            if !self.pages.is_newer(slot, sequence) {
                self.stats.add(SessionCounter::LatePages.index(), 1);
                continue;
            }
            let held = self.pages.hash(slot).is_some();
            *(if held { &mut again } else { &mut first_time }) |= 1 << bit;
            if !self.pages.needs_read_back(slot) {
                self.unread += 1;
            }
            self.pages.applied(slot, sequence, *hash);
            self.stats.add(class_counter(*class).index(), 1);
        }
        for (page, bytes) in runs(&extent, first_time) {
            self.region.write_new_pages(page, bytes);
        }
        for (page, bytes) in runs(&extent, again) {
            self.region.write_pages(page, bytes);
        }
        self.stats.add(SessionCounter::Frames.index(), 1);
        self.stats.add(SessionCounter::WireBytes.index(), payload.len() as u64);
        Ok(Applied::Held)
    }

    fn refuse(&mut self, reason: NackReason) -> Applied {
        self.stats.add(SessionCounter::Nacks.index(), 1);
        Applied::Refused(reason)
    }

    /// The source says what all its pages of this lane come to. It may say so again, when its
    /// stream died.
    pub(crate) fn start_verify(&mut self, digest: [u8; 16], pages: u64) -> Result<(), SinkError> {
        let asked = (digest, pages);
        match &mut self.phase {
            Phase::Receiving => {
                let builder = Box::new(DigestBuilder::new(&self.hasher, DigestKind::Region));
                self.phase = Phase::Verifying { next: 0, pages: 0, builder, expected: asked };
                Ok(())
            }
            Phase::Verifying { expected, .. } if *expected == asked => Ok(()),
            Phase::Proven { expected, tell } if *expected == asked => {
                *tell = true;
                Ok(())
            }
            Phase::Failed => Ok(()),
            Phase::Verifying { .. } | Phase::Proven { .. } => Err(SinkError::SecondVerify),
        }
    }

    /// Ends all work of the session. False when it had failed before.
    pub(crate) fn fail(&mut self) -> bool {
        !matches!(std::mem::replace(&mut self.phase, Phase::Failed), Phase::Failed)
    }

    /// One bounded piece of checking. Reading back ahead of time is for turns without other work,
    /// as long as little waits for it; a source in its pause waits for the rest.
    pub(crate) fn check(&mut self, idle: bool, room: &mut ReadBack) -> Check {
        match &mut self.phase {
            Phase::Receiving if idle => self.read_back_some(READ_BACK_PAGES_PER_STEP, 0, room),
            Phase::Receiving => self.read_back_some(VERIFY_PAGES_PER_STEP, UNREAD_PAGES_MAX, room),
            Phase::Verifying { .. } => self.verify_some(room),
            Phase::Proven { tell, .. } => {
                if std::mem::take(tell) {
                    Check::Matches { first_time: false }
                } else {
                    Check::Idle
                }
            }
            Phase::Failed => Check::Idle,
        }
    }

    /// Looks at a bounded number of table slots, while more than `unread_max` pages wait.
    fn read_back_some(&mut self, steps_max: usize, unread_max: u64, room: &mut ReadBack) -> Check {
        if self.unread <= unread_max {
            return Check::Idle;
        }
        let slots = self.stripe.slots();
        for _ in 0..steps_max.min(slots) {
            if self.unread <= unread_max + room.count() as u64 {
                break;
            }
            let slot = self.cursor;
            self.cursor = (self.cursor + 1) % slots;
            if let Some(differs) = self.read_back(slot, room) {
                return differs;
            }
        }
        self.compare(room).unwrap_or(Check::Worked)
    }

    /// Reads a page back from the region if that is due; what is wrong, if anything is by now.
    fn read_back(&mut self, slot: usize, room: &mut ReadBack) -> Option<Check> {
        if !self.pages.needs_read_back(slot) {
            return None;
        }
        self.region.read_pages(page_of(&self.stripe, slot), room.place(slot));
        if room.is_full() { self.compare(room) } else { None }
    }

    /// Hashes what was read back; the first page that is not what was written, if any.
    fn compare(&mut self, room: &mut ReadBack) -> Option<Check> {
        self.unread -= room.count() as u64;
        self.stats.add(SessionCounter::PagesVerified.index(), room.count() as u64);
        let mut differs = None;
        for (slot, hash) in room.take(&self.hasher) {
            if !self.pages.read_back(slot, hash) {
                differs = differs.or(Some(Check::Differs(page_of(&self.stripe, slot))));
            }
        }
        differs
    }

    fn verify_some(&mut self, room: &mut ReadBack) -> Check {
        let slots = self.stripe.slots();
        let Phase::Verifying { next: from, .. } = self.phase else { return Check::Idle };
        let until = (from + VERIFY_PAGES_PER_STEP).min(slots);
        for slot in from..until {
            if let Some(differs) = self.read_back(slot, room) {
                return differs;
            }
        }
        if let Some(differs) = self.compare(room) {
            return differs;
        }
        let Phase::Verifying { next, pages, builder, expected } = &mut self.phase else {
            return Check::Idle;
        };
        for slot in from..until {
            if let Some(hash) = self.pages.hash(slot) {
                builder.add(page_of(&self.stripe, slot), hash);
                *pages += 1;
            }
        }
        *next = until;
        if until < slots {
            return Check::Worked;
        }
        let expected = *expected;
        // The source's own number counts for nothing: a proof of fewer pages is none.
        if (builder.finish().0, *pages) != expected || *pages != self.stripe.pages() {
            return Check::Differs(u64::MAX);
        }
        self.phase = Phase::Proven { expected, tell: false };
        Check::Matches { first_time: true }
    }
}

/// The pages of `chosen`, which are some of the extent's, as runs of neighbours: the first page of
/// each run and the bytes of all of it.
fn runs<'a>(
    extent: &'a DecodedExtent<'_>,
    chosen: u64,
) -> impl Iterator<Item = (u64, &'a [u8])> + use<'a> {
    let (first_page, mask, pages) = (extent.first_page, extent.mask, extent.pages);
    let mut left = chosen;
    std::iter::from_fn(move || {
        let bit = (left != 0).then(|| left.trailing_zeros())?;
        let count = (left >> bit).trailing_ones();
        left &= u64::MAX.unbounded_shl(bit + count);
        // Neighbours among the chosen pages lie joined, since the extent has them all.
        let at = (mask & ((1 << bit) - 1)).count_ones() as usize * PAGE_BYTES;
        Some((first_page + u64::from(bit), &pages[at..at + count as usize * PAGE_BYTES]))
    })
}

/// The counter of pages of a class.
pub(crate) const fn class_counter(class: Class) -> SessionCounter {
    match class {
        Class::Zero => SessionCounter::PagesZero,
        Class::Delta => SessionCounter::PagesDelta,
        Class::Zstd => SessionCounter::PagesZstd,
        Class::Raw => SessionCounter::PagesRaw,
    }
}

/// What the source did that a sink can't accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SinkError {
    #[error("pages arrived after the source had closed the last round")]
    PagesAfterVerify,
    #[error("pages arrived for a session that failed here")]
    Failed,
    #[error("the source asked for a second verification")]
    SecondVerify,
    #[error("an extent of another lane")]
    ForeignExtent,
    #[error("a frame can't be decoded: {0}")]
    Decode(#[from] DecodeError),
}

impl SinkError {
    /// The stable code of the error.
    pub(crate) const fn code(&self) -> &'static str {
        match self {
            Self::PagesAfterVerify => "pages_after_verify",
            Self::Failed => "session_failed",
            Self::SecondVerify => "second_verify",
            Self::ForeignExtent => "foreign_extent",
            Self::Decode(error) => error.code(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_codec::{Coding, Encoder, EncoderConfig, ExtentInput, HashKey};
    use dwcp_ffi::counters::counters;
    use dwcp_ffi::region::HugePages;
    use dwcp_proto::ids::{LaneId, LinkId, SessionNumber};

    const PAGES: u64 = 64;
    const KEY: HashKey = HashKey([3; 32]);

    fn sink() -> RegionSink {
        sink_of(PAGES)
    }

    fn sink_of(pages: u64) -> RegionSink {
        RegionSink::new(SinkSetup {
            session: SessionKey { link: LinkId(1), number: SessionNumber(1) },
            region: Arc::new(Region::create("sink", pages * 4096, HugePages::Never).unwrap()),
            lane: LaneId(0),
            lane_count: 1,
            hash_key: KEY,
            stats: counters().0,
        })
    }

    /// A payload of all pages filled with `fill`, and the digest that the source would send.
    fn payload(fill: u8) -> (Vec<u8>, [u8; 16]) {
        extent_payload(0, fill)
    }

    fn extent_payload(first_page: u64, fill: u8) -> (Vec<u8>, [u8; 16]) {
        let hasher = PageHasher::new(&KEY);
        let pages = vec![fill; PAGES as usize * PAGE_BYTES];
        let hashes = vec![hasher.hash(&[fill; PAGE_BYTES]); PAGES as usize];
        let mut out = vec![0; dwcp_codec::ENCODED_BYTES_MAX];
        let input = ExtentInput {
            first_page,
            mask: u64::MAX,
            pages: &pages,
            hashes: &hashes,
            bases: &[None; PAGES as usize],
            coding: Coding::Full { zstd_level: 1 },
        };
        let mut encoder = Encoder::new(EncoderConfig { zstd_level_max: 1 });
        let bytes = encoder.encode(&hasher, &input, &mut out).bytes;
        out.truncate(bytes);
        let mut digest = DigestBuilder::new(&hasher, DigestKind::Region);
        (first_page..).zip(&hashes).for_each(|(page, &hash)| digest.add(page, hash));
        (out, digest.finish().0)
    }

    fn finish(sink: &mut RegionSink) -> Check {
        std::iter::repeat_with(|| sink.check(true, &mut ReadBack::new()))
            .find(|check| *check != Check::Worked)
            .unwrap()
    }

    #[test]
    fn what_was_sent_is_proven_from_memory_and_may_be_asked_twice() {
        let (mut sink, mut decoder) = (sink(), Decoder::new());
        let (coded, digest) = payload(7);
        assert_eq!(sink.apply(&mut decoder, Sequence(1), &coded), Ok(Applied::Held));
        sink.start_verify(digest, PAGES).unwrap();
        assert_eq!(finish(&mut sink), Check::Matches { first_time: true });
        assert_eq!(finish(&mut sink), Check::Idle);
        sink.start_verify(digest, PAGES).unwrap();
        assert_eq!(finish(&mut sink), Check::Matches { first_time: false });
        assert_eq!(sink.start_verify([0; 16], PAGES), Err(SinkError::SecondVerify));
        let late = sink.apply(&mut decoder, Sequence(2), &coded);
        assert_eq!(late, Err(SinkError::PagesAfterVerify));
    }

    #[test]
    fn memory_that_changed_behind_our_back_is_found_in_the_background_and_at_the_end() {
        for background in [true, false] {
            let (mut sink, mut decoder) = (sink(), Decoder::new());
            let (coded, digest) = payload(7);
            sink.apply(&mut decoder, Sequence(1), &coded).unwrap();
            sink.region.store_u64(63 * 4096 + 8, 1);
            if !background {
                sink.start_verify(digest, PAGES).unwrap();
            }
            assert_eq!(finish(&mut sink), Check::Differs(63));
        }
    }

    #[test]
    fn runs_are_the_chosen_pages_joined_with_their_neighbours() {
        let pages: Vec<u8> = (0..64).flat_map(|page| [page; PAGE_BYTES]).collect();
        let hashes = [PageHash([0; 16]); EXTENT_PAGES];
        let classes = [Class::Raw; EXTENT_PAGES];
        let of = |mask: u64, chosen| {
            let count = mask.count_ones() as usize;
            let extent = DecodedExtent {
                first_page: 128,
                mask,
                pages: &pages[..count * PAGE_BYTES],
                hashes: &hashes[..count],
                classes: &classes[..count],
            };
            let seen = |(page, bytes): (u64, &[u8])| (page, bytes[0], bytes.len() / PAGE_BYTES);
            runs(&extent, chosen).map(seen).collect::<Vec<_>>()
        };
        assert_eq!(of(u64::MAX, 0), []);
        assert_eq!(of(u64::MAX, u64::MAX), [(128, 0, 64)]);
        assert_eq!(of(u64::MAX, 1 << 63 | 0b110), [(129, 1, 2), (191, 63, 1)]);
        // Pages 1, 2, 4 and 63 of the extent lie joined.
        assert_eq!(
            of(1 << 63 | 0b10110, 1 << 63 | 0b10100),
            [(130, 1, 1), (132, 2, 1), (191, 3, 1)]
        );
    }

    #[test]
    fn a_page_that_never_came_is_found() {
        let mut sink = sink();
        let (_, digest) = payload(7);
        sink.start_verify(digest, PAGES).unwrap();
        assert_eq!(finish(&mut sink), Check::Differs(u64::MAX));
    }

    #[test]
    fn a_proof_of_no_pages_proves_nothing() {
        let mut sink = sink();
        let empty = DigestBuilder::new(&PageHasher::new(&KEY), DigestKind::Region).finish();
        sink.start_verify(empty.0, 0).unwrap();
        assert_eq!(finish(&mut sink), Check::Differs(u64::MAX));
    }

    #[test]
    fn what_waits_to_be_read_back_is_bounded_even_on_a_busy_shard() {
        let pages = UNREAD_PAGES_MAX + 4 * EXTENT_PAGES as u64;
        let (mut sink, mut decoder) = (sink_of(pages), Decoder::new());
        for extent in 0..pages / EXTENT_PAGES as u64 {
            let coded = extent_payload(extent * EXTENT_PAGES as u64, 0).0;
            sink.apply(&mut decoder, Sequence(extent + 1), &coded).unwrap();
            let before = sink.unread;
            while sink.check(false, &mut ReadBack::new()) == Check::Worked {}
            assert_eq!(sink.unread, before.min(UNREAD_PAGES_MAX));
        }
        assert_eq!(sink.unread, UNREAD_PAGES_MAX);
    }

    #[test]
    fn a_busy_shard_proves_but_does_not_read_ahead() {
        let (mut sink, mut decoder) = (sink(), Decoder::new());
        let (coded, digest) = payload(7);
        sink.apply(&mut decoder, Sequence(1), &coded).unwrap();
        assert_eq!(sink.check(false, &mut ReadBack::new()), Check::Idle);
        sink.start_verify(digest, PAGES).unwrap();
        assert_ne!(sink.check(false, &mut ReadBack::new()), Check::Idle);
    }

    #[test]
    fn an_older_version_that_comes_late_changes_nothing() {
        let (mut sink, mut decoder) = (sink(), Decoder::new());
        let (newer, digest) = payload(9);
        let (older, _) = payload(7);
        sink.apply(&mut decoder, Sequence(5), &newer).unwrap();
        sink.apply(&mut decoder, Sequence(4), &older).unwrap();
        sink.start_verify(digest, PAGES).unwrap();
        assert_eq!(finish(&mut sink), Check::Matches { first_time: true });
    }
}
