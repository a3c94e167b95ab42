//! A region as the source of a session, one lane of it: rounds of changed pages, then the digest.
//!
//! Owned by one shard. Each page is copied once, since its owner may be writing to it; everything
//! after that works on the copy. Work comes in bounded steps: one call looks at a bounded number of
//! extents and codes at most one of them.

use super::pending::Pending;
use super::scratch::Scratch;
use crate::pages::SourcePages;
use crate::port::{DirtyPages, RoundStats, SourceSetup};
use crate::stats::{SessionCounter, SessionStats};
use crate::stripe::Stripe;
use dwcp_codec::{
    BaseIn, Baseline, Class, Coding, Digest, DigestBuilder, DigestKind, EXTENT_PAGES, ExtentInput,
    ExtentStats, PAGE_BYTES, Page, PageHasher,
};
use dwcp_ffi::arena::ArenaError;
use dwcp_ffi::counters::HistogramWriter;
use dwcp_ffi::region::Region;
use dwcp_proto::ids::{PageIndex, Round, Sequence, SessionKey};
use dwcp_proto::time::Nanos;
use std::sync::Arc;

/// Extents that one step may look at before it gives the other work of the shard a turn. Reading
/// and hashing 8 unchanged extents (2 MiB) takes about a millisecond.
const EXTENTS_PER_STEP: usize = 8;

/// Extents that one step looks through for pending pages: 4 GiB of region in about 20 us.
const PENDING_WORDS_PER_STEP: usize = 16 * 1024;

/// Words of the dirty bitmap that one step takes: 4096 extents, 1 GiB of region.
const BITMAP_WORDS_PER_STEP: usize = 4096;

/// Table entries that one step adds to the digest.
const DIGEST_PAGES_PER_STEP: usize = 16 * 1024;

/// An extent that was coded into a lease.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CodedExtent {
    pub(crate) sequence: Sequence,
    pub(crate) first_page: PageIndex,
    pub(crate) mask: u64,
    pub(crate) payload_bytes: usize,
}

/// What a step came to.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// Nothing to do.
    Idle,
    /// Something was done; call again.
    Worked,
    /// A frame is ready to be sent.
    Coded(CodedExtent),
    /// All pages of the round are with the sink.
    RoundDone(Round, RoundStats),
    /// The digest over all pages is ready to be sent.
    Digest(Digest, u64),
}

/// What the sink's word that it holds all pages is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It is the news that was waited for.
    First,
    /// It was asked more than once, since a stream had died, and had answered before.
    Again,
    /// Nobody asked.
    Unasked,
}

#[derive(Debug)]
enum Phase {
    Idle,
    /// Taking the dirty bits of the round; the next extent to look at.
    Collecting(usize),
    /// Sending what is pending and waiting for the acknowledgements.
    Sending,
    /// Adding pages to the digest; the next table slot.
    Digesting(usize, Box<DigestBuilder>, u64),
    /// The sink was asked to prove that it holds what this digest stands for.
    Asked(Digest, u64),
    /// The session failed; nothing is sent any more.
    Failed,
}

/// One lane of a source session.
#[derive(Debug)]
pub(crate) struct RegionSource {
    pub(crate) session: SessionKey,
    pub(crate) stats: SessionStats,
    pub(crate) frame_rtt_ns: HistogramWriter,
    region: Arc<Region>,
    dirty: DirtyPages,
    stripe: Stripe,
    pages: SourcePages,
    pending: Pending,
    hasher: PageHasher,
    coding: Coding,
    baseline: Option<Baseline>,
    phase: Phase,
    /// How often the sink was asked for its proof and has not answered.
    answers_due: u32,
    round: Round,
    /// The owner has paused: nothing may be left for another round.
    last: bool,
    round_stats: RoundStats,
    round_started: Nanos,
}

impl RegionSource {
    pub(crate) fn new(setup: SourceSetup) -> Result<Self, ArenaError> {
        let stripe = Stripe::new(setup.lane.0, setup.lane_count, setup.region.page_count());
        // Pages that are passed as they are never need a base, so none is copied or paid for.
        let bases_max = match setup.coding {
            Coding::Full { .. } => setup.base_pages_max,
            Coding::Passthrough => 0,
        };
        Ok(Self {
            session: setup.session,
            stats: setup.stats,
            frame_rtt_ns: setup.frame_rtt_ns,
            region: setup.region,
            dirty: setup.dirty,
            pages: SourcePages::new(stripe.slots(), bases_max)?,
            pending: Pending::new(stripe.extents()),
            hasher: PageHasher::new(&setup.hash_key),
            coding: setup.coding,
            baseline: setup.measure_baseline.then(Baseline::new),
            stripe,
            phase: Phase::Idle,
            answers_due: 0,
            round: Round(0),
            last: false,
            round_stats: RoundStats::default(),
            round_started: Nanos(0),
        })
    }

    /// Begins a round. The control thread waits for the last one to end before.
    pub(crate) fn start_round(&mut self, round: Round, last: bool, now: Nanos) {
        assert!(matches!(self.phase, Phase::Idle), "rounds and the digest follow one another");
        (self.round, self.last) = (round, last);
        self.round_stats = RoundStats::default();
        self.round_started = now;
        self.phase = Phase::Collecting(0);
    }

    /// Begins the digest over all pages, after the last round.
    pub(crate) fn start_digest(&mut self) {
        assert!(matches!(self.phase, Phase::Idle), "rounds and the digest follow one another");
        let builder = Box::new(DigestBuilder::new(&self.hasher, DigestKind::Region));
        self.phase = Phase::Digesting(0, builder, 0);
    }

    /// The round that runs, or the last one.
    pub(crate) const fn round(&self) -> Round {
        self.round
    }

    /// True when a round or the digest may begin.
    pub(crate) const fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Idle)
    }

    /// True when a step would code pages if it had a lease to fill.
    pub(crate) const fn wants_lease(&self) -> bool {
        matches!(self.phase, Phase::Sending) && self.pending.pages() > 0
    }

    /// What the sink was asked to prove and has not proven yet: it is asked once more.
    pub(crate) const fn ask_again(&mut self) -> Option<(Digest, u64)> {
        match self.phase {
            Phase::Asked(digest, pages) => {
                self.answers_due += 1;
                Some((digest, pages))
            }
            _ => None,
        }
    }

    /// The sink says that it holds all pages.
    pub(crate) fn verified(&mut self) -> Answer {
        let Some(left) = self.answers_due.checked_sub(1) else { return Answer::Unasked };
        self.answers_due = left;
        match self.phase {
            Phase::Asked(..) => {
                self.phase = Phase::Idle;
                Answer::First
            }
            _ => Answer::Again,
        }
    }

    /// Ends all work of the session. False when it had failed before.
    pub(crate) fn fail(&mut self) -> bool {
        !matches!(std::mem::replace(&mut self.phase, Phase::Failed), Phase::Failed)
    }

    /// One bounded piece of work. `out` is where a frame's payload goes and the sequence that it
    /// would have; without it no page is sent. `settled` says that no frame is in flight.
    pub(crate) fn step(
        &mut self,
        scratch: &mut Scratch,
        out: Option<(&mut [u8], Sequence)>,
        settled: bool,
        now: Nanos,
    ) -> Step {
        match self.phase {
            Phase::Idle | Phase::Asked(..) | Phase::Failed => Step::Idle,
            Phase::Collecting(next) => {
                self.collect(next);
                Step::Worked
            }
            Phase::Sending => self.send(scratch, out, settled, now),
            Phase::Digesting(..) => self.digest(),
        }
    }

    /// Takes the dirty bits of a bounded number of extents.
    fn collect(&mut self, next: usize) {
        let until = (next + BITMAP_WORDS_PER_STEP).min(self.stripe.extents());
        for local in next..until {
            let extent = self.stripe.first_page(local) / EXTENT_PAGES as u64;
            let dirty = match &self.dirty {
                DirtyPages::Bitmap(bitmap) => {
                    // The first round sends all; its bits are taken so that they don't come twice.
                    let marked = bitmap.take_word(extent as usize);
                    if self.round == Round(1) { u64::MAX } else { marked }
                }
                DirtyPages::Compare => u64::MAX,
            };
            let mask = dirty & self.stripe.mask(local);
            self.round_stats.pages += u64::from(mask.count_ones());
            self.pending.collect(local, mask);
        }
        self.phase =
            if until == self.stripe.extents() { Phase::Sending } else { Phase::Collecting(until) };
        self.note_pending();
    }

    fn send(
        &mut self,
        scratch: &mut Scratch,
        out: Option<(&mut [u8], Sequence)>,
        settled: bool,
        now: Nanos,
    ) -> Step {
        if self.pending.pages() == 0 {
            if !settled {
                return Step::Idle;
            }
            self.phase = Phase::Idle;
            self.round_stats.nanos = now.since(self.round_started).0;
            return Step::RoundDone(self.round, self.round_stats);
        }
        let Some((out, sequence)) = out else { return Step::Idle };
        for _ in 0..EXTENTS_PER_STEP {
            let Some((local, mask)) = self.pending.take(PENDING_WORDS_PER_STEP) else { break };
            let mask = self.without_postponed(local, mask);
            self.stats.add(SessionCounter::PagesScanned.index(), u64::from(mask.count_ones()));
            let changed = self.read(scratch, local, mask);
            if changed != 0 {
                let coded = self.encode(scratch, (local, changed), sequence, out);
                self.note_pending();
                return Step::Coded(coded);
            }
        }
        self.note_pending();
        Step::Worked
    }

    /// Leaves out what was written again while it waited: the next round has it, as it is then.
    fn without_postponed(&self, local: usize, mask: u64) -> u64 {
        let DirtyPages::Bitmap(bitmap) = &self.dirty else { return mask };
        if self.last {
            return mask;
        }
        let extent = self.stripe.first_page(local) / EXTENT_PAGES as u64;
        let again = mask & bitmap.peek_word(extent as usize);
        self.stats.add(SessionCounter::PagesPostponed.index(), u64::from(again.count_ones()));
        mask & !again
    }

    /// Copies and hashes the pages of `mask`; keeps those that the sink does not have, joined at
    /// the start of `scratch`, and returns which they are.
    fn read(&mut self, scratch: &mut Scratch, local: usize, mask: u64) -> u64 {
        let first_page = self.stripe.first_page(local);
        let count = mask.count_ones() as usize;
        let pages = &mut scratch.pages.as_chunks_mut::<PAGE_BYTES>().0[..count];
        for (page, bit) in pages.iter_mut().zip(bits(mask)) {
            self.region.read_pages(first_page + u64::from(bit), page);
        }
        let hashes = &mut scratch.hashes[..count];
        self.hasher.hash_all(pages, hashes);
        let mut changed = 0;
        let mut kept = 0;
        for (index, bit) in bits(mask).enumerate() {
            if self.pages.is_unchanged(local * EXTENT_PAGES + bit as usize, hashes[index]) {
                continue;
            }
            if kept < index {
                (pages[kept], hashes[kept]) = (pages[index], hashes[index]);
            }
            changed |= 1 << bit;
            kept += 1;
        }
        let unchanged = u64::from(mask.count_ones() - u64::count_ones(changed));
        self.stats.add(SessionCounter::PagesUnchanged.index(), unchanged);
        changed
    }

    /// Codes the pages of `mask`, which lie joined in `scratch`, and notes them as sent.
    fn encode(
        &mut self,
        scratch: &mut Scratch,
        (local, mask): (usize, u64),
        sequence: Sequence,
        out: &mut [u8],
    ) -> CodedExtent {
        let count = mask.count_ones() as usize;
        let first_page = self.stripe.first_page(local);
        let pages = &scratch.pages[..count * PAGE_BYTES];
        let hashes = &scratch.hashes[..count];
        let mut bases = [None; EXTENT_PAGES];
        for (base, slot) in bases.iter_mut().zip(slots(local, mask)) {
            *base = self.pages.base(slot).map(|held| BaseIn {
                version: held.version.0,
                hash: held.hash,
                page: page(held.bytes),
            });
        }
        let input = ExtentInput {
            first_page,
            mask,
            pages,
            hashes,
            bases: &bases[..count],
            coding: self.coding,
        };
        let encoded = scratch.encoder.encode(&self.hasher, &input, out);
        for ((slot, bytes), hash) in slots(local, mask).zip(pages.chunks(PAGE_BYTES)).zip(hashes) {
            self.pages.sent(slot, sequence, *hash, bytes);
        }
        if self.round != Round(1) {
            self.pending.note_sent(local, mask);
        }
        self.round_stats.pages_sent += count as u64;
        self.count(&encoded.stats);
        CodedExtent {
            sequence,
            first_page: PageIndex(first_page),
            mask,
            payload_bytes: encoded.bytes,
        }
    }

    /// Counts what plain zstd-1 would have made of the extent just coded, if asked to. True when
    /// it did.
    pub(crate) fn measure_baseline(&mut self, scratch: &Scratch, coded: &CodedExtent) -> bool {
        let Some(baseline) = &mut self.baseline else { return false };
        let pages = &scratch.pages[..coded.mask.count_ones() as usize * PAGE_BYTES];
        for (index, bytes) in pages.chunks(PAGE_BYTES).enumerate() {
            let coded_bytes = baseline.page_bytes(page(bytes)) as u64;
            let of_class = match scratch.encoder.class(index) {
                Class::Zero => SessionCounter::BaselineZeroBytes,
                Class::Delta => SessionCounter::BaselineDeltaBytes,
                Class::Zstd => SessionCounter::BaselineZstdBytes,
                Class::Raw => SessionCounter::BaselineRawBytes,
            };
            self.stats.add(of_class.index(), coded_bytes);
            self.stats.add(SessionCounter::BaselineBytes.index(), coded_bytes);
        }
        true
    }

    /// The frame went to the link as a record of `wire_bytes`.
    pub(crate) fn posted(&mut self, wire_bytes: usize) {
        self.round_stats.wire_bytes += wire_bytes as u64;
        self.stats.add(SessionCounter::WireBytes.index(), wire_bytes as u64);
        self.stats.add(SessionCounter::Frames.index(), 1);
    }

    /// The sink decoded, checked and wrote the frame.
    pub(crate) fn acked(&mut self, sequence: Sequence, first_page: PageIndex, mask: u64) {
        let local = self.own(first_page);
        for slot in slots(local, mask) {
            self.pages.acked(slot, sequence);
        }
        self.stats.set(SessionCounter::BasePages.index(), self.pages.bases() as u64);
    }

    /// The frame is lost with its stream, or the sink could not use it: its pages go out again,
    /// read and coded anew, and whole.
    pub(crate) fn lost(&mut self, sequence: Sequence, first_page: PageIndex, mask: u64) {
        let local = self.own(first_page);
        let mut again = 0;
        for (slot, bit) in slots(local, mask).zip(bits(mask)) {
            if self.pages.lost(slot, sequence) {
                again |= 1 << bit;
            }
        }
        self.pending.put_back(local, again);
        self.stats.add(SessionCounter::PagesRequeued.index(), u64::from(again.count_ones()));
        self.note_pending();
    }

    /// The lane's number of an extent that it sent itself.
    fn own(&self, first_page: PageIndex) -> usize {
        match self.stripe.local(first_page.0) {
            Some(local) => local,
            None => panic!("extent at page {first_page} was sent by another lane"),
        }
    }

    /// Adds a bounded number of pages to the digest.
    fn digest(&mut self) -> Step {
        let Phase::Digesting(next, builder, pages) = &mut self.phase else { return Step::Idle };
        let until = (*next + DIGEST_PAGES_PER_STEP).min(self.stripe.slots());
        for slot in *next..until {
            let index = page_of(&self.stripe, slot);
            if let Some(hash) = self.pages.hash(slot) {
                builder.add(index, hash);
                *pages += 1;
            }
        }
        *next = until;
        if until < self.stripe.slots() {
            return Step::Worked;
        }
        let (digest, pages) = (builder.finish(), *pages);
        assert!(pages == self.stripe.pages(), "every page was sent in some round");
        self.phase = Phase::Asked(digest, pages);
        self.answers_due += 1;
        Step::Digest(digest, pages)
    }

    fn note_pending(&mut self) {
        self.stats.set(SessionCounter::PagesPending.index(), self.pending.pages());
    }

    fn count(&mut self, extent: &ExtentStats) {
        let stats = &mut self.stats;
        stats.add(SessionCounter::PagesZero.index(), extent.zero.pages);
        stats.add(SessionCounter::PagesDelta.index(), extent.delta.pages);
        stats.add(SessionCounter::PagesZstd.index(), extent.zstd.pages);
        stats.add(SessionCounter::PagesRaw.index(), extent.raw.pages);
        stats.add(SessionCounter::DeltaBytes.index(), extent.delta.coded_bytes);
        stats.add(SessionCounter::ZstdBytes.index(), extent.zstd.coded_bytes);
        stats.add(SessionCounter::RawBytes.index(), extent.raw.coded_bytes);
    }
}

/// A page's bytes as the codec takes them.
pub(crate) fn page(bytes: &[u8]) -> &Page {
    match bytes.first_chunk() {
        Some(page) => page,
        None => panic!("a page has {PAGE_BYTES} bytes"),
    }
}

/// The positions of the bits of `mask`, ascending.
pub(super) fn bits(mut mask: u64) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let bit = (mask != 0).then(|| mask.trailing_zeros())?;
        mask &= mask - 1;
        Some(bit)
    })
}

/// The table slots of the pages of `mask` in extent `local`.
pub(super) fn slots(local: usize, mask: u64) -> impl Iterator<Item = usize> {
    bits(mask).map(move |bit| local * EXTENT_PAGES + bit as usize)
}

/// The page that a table slot stands for.
pub(super) fn page_of(stripe: &Stripe, slot: usize) -> u64 {
    stripe.first_page(slot / EXTENT_PAGES) + (slot % EXTENT_PAGES) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_codec::{ENCODED_BYTES_MAX, HashKey};
    use dwcp_ffi::counters::{counters, histogram};
    use dwcp_ffi::dirty::DirtyBitmap;
    use dwcp_ffi::region::HugePages;
    use dwcp_proto::ids::{LaneId, LinkId, SessionNumber};

    fn source(pages: u64, dirty: DirtyPages) -> RegionSource {
        let bytes = pages * PAGE_BYTES as u64;
        RegionSource::new(SourceSetup {
            session: SessionKey { link: LinkId(0), number: SessionNumber(1) },
            region: Arc::new(Region::create("test", bytes, HugePages::Never).unwrap()),
            dirty,
            lane: LaneId(0),
            lane_count: 1,
            base_pages_max: 1,
            hash_key: HashKey([1; 32]),
            coding: Coding::Full { zstd_level: 1 },
            measure_baseline: false,
            stats: counters().0,
            frame_rtt_ns: histogram().0,
        })
        .unwrap()
    }

    #[test]
    fn a_sink_that_was_asked_twice_may_answer_twice_and_no_more() {
        let (mut source, mut scratch) = (source(1, DirtyPages::Compare), Scratch::new().unwrap());
        let mut out = vec![0; ENCODED_BYTES_MAX];
        assert_eq!(source.verified(), Answer::Unasked);
        source.start_round(Round(1), true, Nanos(0));
        loop {
            let out = Some((&mut out[..], Sequence(1)));
            match source.step(&mut scratch, out, true, Nanos(0)) {
                Step::RoundDone(..) => source.start_digest(),
                Step::Digest(..) => break,
                _ => {}
            }
        }
        assert!(source.ask_again().is_some(), "its stream died");
        assert_eq!(source.verified(), Answer::First);
        assert!(source.ask_again().is_none(), "nothing is open");
        assert_eq!(source.verified(), Answer::Again);
        assert_eq!(source.verified(), Answer::Unasked);
    }

    /// Runs a round in which the owner writes `meanwhile`, once the round has begun. Returns which
    /// pages were sent, in order, but for those of the first round.
    fn round(
        (source, bitmap): (&mut RegionSource, &DirtyBitmap),
        (number, last): (u32, bool),
        pages: &[u64],
        meanwhile: &[u64],
    ) -> Vec<u64> {
        let mut scratch = Scratch::new().unwrap();
        let mut out = vec![0; ENCODED_BYTES_MAX];
        let write = |source: &RegionSource, page: u64| {
            source.region.write_pages(page, &[number as u8; PAGE_BYTES]);
            bitmap.set_range(page, 1);
        };
        pages.iter().for_each(|page| write(source, *page));
        source.start_round(Round(number), last, Nanos(0));
        assert!(matches!(source.step(&mut scratch, None, true, Nanos(0)), Step::Worked));
        meanwhile.iter().for_each(|page| write(source, *page));
        let mut sent = Vec::new();
        loop {
            let out = Some((&mut out[..], Sequence(number.into())));
            match source.step(&mut scratch, out, true, Nanos(0)) {
                Step::Coded(CodedExtent { first_page, mask, .. }) => {
                    sent.extend(bits(mask).map(|bit| first_page.0 + u64::from(bit)));
                }
                Step::RoundDone(..) => return sent,
                _ => {}
            }
        }
    }

    #[test]
    fn what_is_written_again_while_it_waits_is_sent_once_and_what_keeps_changing_late() {
        let bitmap = Arc::new(DirtyBitmap::create(192).unwrap());
        let mut source = source(192, DirtyPages::Bitmap(Arc::clone(&bitmap)));
        let mut run = |number, last, pages: &[u64], meanwhile: &[u64]| {
            round((&mut source, &bitmap), (number, last), pages, meanwhile)
        };
        let first = run(1, false, &[], &[3, 70]);
        assert!(first.len() == 190 && !first.contains(&3) && !first.contains(&70));
        assert_eq!(run(2, false, &[100], &[]), [3, 70, 100]);
        assert_eq!(run(3, false, &[3, 150], &[]), [150, 3], "3 changes in every round");
        assert_eq!(run(4, false, &[3, 20], &[3]), [20], "3 is written again");
        assert_eq!(run(5, true, &[], &[5]), [3], "the owner's late word is not waited for");
        assert_eq!(run(6, true, &[70], &[70]).len(), 2, "nothing is left of the last round");
    }
}
