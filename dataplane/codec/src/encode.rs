//! The coder of extents and batches.
//!
//! Owns the classification of pages and all scratch memory that coding needs. Runs on a shard,
//! which owns one encoder for all its sessions; called once per payload. Each page gets the
//! cheapest class that its content allows: zero; a delta if the sink holds a version of it and the
//! difference is small; zstd together with its neighbours; raw where that gains nothing.
//!
//! The caller has left out unchanged pages (same hash as what the sink holds). The encoder never
//! chooses bases: it may use those that it is given, which must be held by the sink for certain.
//! No payload is longer than its pages sent raw, but for the few bytes that a long window may add:
//! what went into it is sent, whatever came out.

use crate::cursor::{Writer, zigzag};
use crate::digest::{DigestBuilder, DigestKind};
use crate::hash::{PageHash, PageHasher};
use crate::head::{Numbers, write_batch, write_extent};
use crate::input::{BaseIn, BatchInput, Coding, ExtentInput};
use crate::layout::{
    FRAME_LENGTH_BYTES, GROUP_PAGES, PREFIX_PAD_BYTES, RUNS_BYTES_MAX, RUNS_HEAD_BYTES,
    batch_bytes_max, classes_bytes, encoded_bytes_max,
};
use crate::page::{Class, EXTENT_BYTES, EXTENT_PAGES, PAGE_BYTES, Page, is_zero};
use crate::policy::{
    PREFIX_CODED_BYTES_MAX, PREFIX_EQUAL_WORDS_MIN, PREFIX_LEVEL, RUNS_PAGE_BYTES_MAX,
    RUNS_ZSTD_BYTES_MIN, ZSTD_LEVEL_MAX, ZSTD_LEVEL_MIN, zstd_coded_bytes_max,
};
use crate::runs::{encode_runs, equal_words};
use crate::sample::looks_random;
use crate::stats::{ClassStats, ExtentStats};
use crate::window::{LongWindowEncoder, WINDOW_EXTRA_BYTES_MAX};
use std::fmt;
use zstd_safe::CCtx;

/// What an encoder takes memory for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncoderConfig {
    /// The highest zstd level that will be used; a session that asks for more gets this one.
    pub zstd_level_max: i32,
}

/// What an encoding came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// The payload's length in the output buffer.
    pub bytes: usize,
    /// Pages and bytes by class.
    pub stats: ExtentStats,
}

/// What a page of the extent is going to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    Zero,
    Runs,
    Prefix,
    Zstd,
    Raw,
}

impl Plan {
    const fn class(self) -> Class {
        match self {
            Self::Zero => Class::Zero,
            Self::Runs | Self::Prefix => Class::Delta,
            Self::Zstd => Class::Zstd,
            Self::Raw => Class::Raw,
        }
    }
}

/// The pages of an extent or a batch, in the order of the numbers that the encoder holds.
#[derive(Clone, Copy)]
struct Input<'a> {
    pages: &'a [u8],
    hashes: &'a [PageHash],
    bases: &'a [Option<BaseIn<'a>>],
    coding: Coding,
}

/// Codes extents and batches.
pub struct Encoder {
    context: CCtx<'static>,
    zstd_level_max: i32,
    numbers: Numbers,
    plans: [Plan; EXTENT_PAGES],
    /// The runs of all pages of that plan, joined.
    runs: Box<[u8]>,
    runs_bytes: usize,
    /// The coded prefix groups with their lengths, joined.
    groups: Box<[u8]>,
    groups_bytes: usize,
    /// The dictionary of a prefix group: the pad and its base pages.
    group_bases: Box<[u8]>,
    /// The pages that go into one zstd frame.
    joined: Box<[u8]>,
}

impl Encoder {
    /// Takes all memory that it will need: 0.6 MiB and zstd's workspace, which is 0.6 MiB at
    /// level 1, 1 MiB at level 3 and 3 MiB at level 9.
    #[must_use]
    pub fn new(config: EncoderConfig) -> Self {
        let zstd_level_max = config.zstd_level_max.clamp(ZSTD_LEVEL_MIN, ZSTD_LEVEL_MAX);
        let mut encoder = Self {
            context: CCtx::create(),
            zstd_level_max,
            numbers: Numbers::EMPTY,
            plans: [Plan::Raw; EXTENT_PAGES],
            runs: vec![0; RUNS_BYTES_MAX].into(),
            runs_bytes: 0,
            groups: vec![0; EXTENT_BYTES].into(),
            groups_bytes: 0,
            group_bases: vec![0; PREFIX_PAD_BYTES + GROUP_PAGES * PAGE_BYTES].into(),
            joined: vec![0; EXTENT_BYTES].into(),
        };
        // zstd sizes its workspace by the largest job it has seen.
        let Encoder { context, joined, groups, group_bases, .. } = &mut encoder;
        for level in ZSTD_LEVEL_MIN..=zstd_level_max {
            let largest = context.compress(&mut groups[..], joined, level);
            assert!(largest.is_ok_and(|bytes| bytes > 0), "zstd has no memory");
        }
        let group = &joined[..GROUP_PAGES * PAGE_BYTES];
        let prefix = context.compress_using_dict(&mut groups[..], group, group_bases, PREFIX_LEVEL);
        assert!(prefix.is_ok_and(|bytes| bytes > 0), "zstd has no memory");
        encoder
    }

    /// Codes one extent into `out`, which must have room for [`encoded_bytes_max`] of its pages.
    ///
    /// # Panics
    /// If the lengths of the input don't fit its mask, or `out` is too small: the caller's bug.
    pub fn encode(
        &mut self,
        hasher: &PageHasher,
        input: &ExtentInput<'_>,
        out: &mut [u8],
    ) -> Encoded {
        let ExtentInput { first_page, mask, pages, hashes, bases, coding } = *input;
        assert!(first_page.is_multiple_of(EXTENT_PAGES as u64), "an extent is aligned");
        self.numbers = Numbers::of_mask(first_page, mask);
        let bytes_max = encoded_bytes_max(self.numbers.count());
        assert!(out.len() >= bytes_max, "the output has room for raw pages");
        let mut writer = Writer::new(out, 0);
        write_extent(&mut writer, first_page, mask);
        let encoded = self.code(hasher, Input { pages, hashes, bases, coding }, None, writer);
        assert!(encoded.bytes <= bytes_max, "no payload is longer than raw pages");
        encoded
    }

    /// Codes one batch into `out`, which must have room for [`batch_bytes_max`] of its pages. With
    /// a `window` its zstd pages continue that stream: the payload must be decoded after those of
    /// all earlier calls with the same window.
    ///
    /// # Panics
    /// If there are no numbers, too many or one twice, if the other lengths of the input don't fit
    /// them, or `out` is too small: the caller's bug.
    pub fn encode_batch(
        &mut self,
        hasher: &PageHasher,
        input: &BatchInput<'_>,
        window: Option<&mut LongWindowEncoder>,
        out: &mut [u8],
    ) -> Encoded {
        let BatchInput { numbers, pages, hashes, bases, coding } = *input;
        assert!(numbers.len() <= EXTENT_PAGES, "a batch is bounded");
        self.numbers = Numbers::of_list(numbers);
        assert!(self.numbers.repeated().is_none(), "a page is in a batch once");
        let bytes_max = batch_bytes_max(numbers.len());
        assert!(out.len() >= bytes_max, "the output has room for the longest payload");
        let mut writer = Writer::new(out, 0);
        write_batch(&mut writer, numbers);
        let encoded = self.code(hasher, Input { pages, hashes, bases, coding }, window, writer);
        assert!(encoded.bytes <= bytes_max, "the bound of a batch holds");
        encoded
    }

    /// Codes all behind the place of the pages, which is written.
    fn code(
        &mut self,
        hasher: &PageHasher,
        input: Input<'_>,
        window: Option<&mut LongWindowEncoder>,
        mut writer: Writer<'_>,
    ) -> Encoded {
        let (pages, rest) = input.pages.as_chunks::<PAGE_BYTES>();
        let count = self.numbers.count();
        assert!(count > 0, "a payload has pages");
        assert!(rest.is_empty() && pages.len() == count, "the pages are those of the numbers");
        assert!(input.hashes.len() == count, "each page has a hash");
        assert!(input.bases.len() == count, "each page has a base or none");

        let mut digest = DigestBuilder::new(hasher, DigestKind::Extent);
        for (page, hash) in self.numbers.as_slice().iter().zip(input.hashes) {
            digest.add(*page, *hash);
        }
        writer.put(&digest.finish().0);
        let classes_at = writer.at();
        let body_at = classes_at + classes_bytes(count);
        writer.advance(body_at - classes_at);
        self.plan(&input, pages);
        let mut stats = ExtentStats { overhead_bytes: body_at as u64, ..ExtentStats::default() };
        stats.delta.coded_bytes = self.write_delta(hasher, &input, &mut writer);
        stats.zstd.coded_bytes = self.write_zstd(input.coding, pages, window, &mut writer);
        stats.raw.coded_bytes = self.write_raw(pages, &mut writer);

        let mut classes = [0; classes_bytes(EXTENT_PAGES)];
        for (index, plan) in self.plans[..count].iter().enumerate() {
            let class = plan.class();
            classes[index / 4] |= (class as u8) << (index % 4 * 2);
            class_stats(&mut stats, class).pages += 1;
        }
        writer.put_at(classes_at, &classes[..body_at - classes_at]);
        debug_assert!(stats.total_bytes() == writer.at() as u64);
        Encoded { bytes: writer.at(), stats }
    }

    /// Zeroes what the last encodings left of pages in the encoder's own buffers.
    pub fn scrub(&mut self) {
        for buffer in [&mut self.runs, &mut self.groups, &mut self.group_bases, &mut self.joined] {
            buffer.fill(0);
        }
    }

    /// How the last encoding coded the page that was number `index` in its payload.
    ///
    /// # Panics
    /// When no payload has such a page.
    #[must_use]
    pub fn class(&self, index: usize) -> Class {
        self.plans[index].class()
    }

    /// Gives every page a plan, and codes runs and prefix groups, whose success decides on it.
    fn plan(&mut self, input: &Input<'_>, pages: &[Page]) {
        self.runs_bytes = 0;
        self.groups_bytes = 0;
        if input.coding == Coding::Passthrough {
            self.plans.fill(Plan::Raw);
            return;
        }
        let mut prefix = [0; EXTENT_PAGES];
        let mut prefix_count = 0;
        for (index, (page, base)) in pages.iter().zip(input.bases).enumerate() {
            self.plans[index] = self.plan_page(page, base.as_ref());
            if self.plans[index] == Plan::Prefix {
                prefix[prefix_count] = index;
                prefix_count += 1;
            }
        }
        for group in prefix[..prefix_count].chunks(GROUP_PAGES) {
            if !self.code_group(input, pages, group) {
                for &index in group {
                    self.plans[index] = plan_without_base(&pages[index]);
                }
            }
        }
    }

    /// The plan of one page, as far as it can be told without its neighbours.
    fn plan_page(&mut self, page: &Page, base: Option<&BaseIn<'_>>) -> Plan {
        if is_zero(page) {
            return Plan::Zero;
        }
        let Some(base) = base else {
            return plan_without_base(page);
        };
        let room = &mut self.runs[self.runs_bytes..];
        if let Some(room) = room.first_chunk_mut::<RUNS_PAGE_BYTES_MAX>()
            && let Some(bytes) = encode_runs(base.page, page, room)
        {
            self.runs_bytes += bytes;
            return Plan::Runs;
        }
        if looks_random(page) && equal_words(base.page, page) < PREFIX_EQUAL_WORDS_MIN {
            return Plan::Raw;
        }
        Plan::Prefix
    }

    /// Codes a group of pages with their bases as dictionary; false if that gains too little.
    fn code_group(&mut self, input: &Input<'_>, pages: &[Page], group: &[usize]) -> bool {
        let plain_bytes = group.len() * PAGE_BYTES;
        let bases_end = PREFIX_PAD_BYTES + plain_bytes;
        let joined = self.joined[..plain_bytes].as_chunks_mut::<PAGE_BYTES>().0;
        let group_bases = &mut self.group_bases[PREFIX_PAD_BYTES..bases_end];
        let group_bases = group_bases.as_chunks_mut::<PAGE_BYTES>().0;
        for ((&index, new), old) in group.iter().zip(joined).zip(group_bases) {
            new.copy_from_slice(&pages[index]);
            if let Some(base) = input.bases[index] {
                old.copy_from_slice(base.page);
            }
        }
        let start = self.groups_bytes + FRAME_LENGTH_BYTES;
        let end = start + group.len() * PREFIX_CODED_BYTES_MAX;
        // The room is what the frame may take at most, so an error means too little gain.
        let coded = self.context.compress_using_dict(
            &mut self.groups[start..end],
            &self.joined[..plain_bytes],
            &self.group_bases[..bases_end],
            PREFIX_LEVEL,
        );
        let Ok(bytes) = coded else {
            return false;
        };
        let length = &mut self.groups[self.groups_bytes..start];
        length.copy_from_slice(&(bytes as u32).to_le_bytes()[..FRAME_LENGTH_BYTES]);
        self.groups_bytes = start + bytes;
        true
    }

    /// Writes the delta section and returns its bytes.
    fn write_delta(
        &mut self,
        hasher: &PageHasher,
        input: &Input<'_>,
        writer: &mut Writer<'_>,
    ) -> u64 {
        let start = writer.at();
        let (plans, numbers) = (&self.plans, self.numbers.as_slice());
        let deltas = || {
            let both = plans.iter().zip(numbers).zip(input.bases);
            both.filter_map(|((plan, page), base)| match (plan.class(), base) {
                (Class::Delta, Some(base)) => Some((*plan, *page, base)),
                _ => None,
            })
        };
        let mut kinds = [0; EXTENT_PAGES / 8];
        let mut count = 0;
        for (plan, _, _) in deltas() {
            kinds[count / 8] |= u8::from(plan == Plan::Prefix) << (count % 8);
            count += 1;
        }
        if count == 0 {
            return 0;
        }
        let mut digest = DigestBuilder::new(hasher, DigestKind::Bases);
        deltas().for_each(|(_, page, base)| digest.add(page, base.hash));
        writer.put(&digest.finish().0);
        let mut last = None;
        for (_, _, base) in deltas() {
            writer.put_varint(last.map_or(base.version, |last| {
                zigzag(base.version.wrapping_sub(last).cast_signed())
            }));
            last = Some(base.version);
        }
        writer.put(&kinds[..count.div_ceil(8)]);
        self.write_runs(writer);
        writer.put(&self.groups[..self.groups_bytes]);
        (writer.at() - start) as u64
    }

    /// Writes the runs, compressed if that pays.
    fn write_runs(&mut self, writer: &mut Writer<'_>) {
        if self.runs_bytes == 0 {
            return;
        }
        let runs = &self.runs[..self.runs_bytes];
        let mut coded = None;
        if runs.len() >= RUNS_ZSTD_BYTES_MIN {
            let room = writer.room(RUNS_HEAD_BYTES, zstd_coded_bytes_max(runs.len()));
            coded = self.context.compress(room, runs, ZSTD_LEVEL_MIN).ok();
        }
        let plain_bytes = (runs.len() as u16).to_le_bytes();
        writer.put(&plain_bytes);
        if let Some(bytes) = coded {
            writer.put(&(bytes as u16).to_le_bytes());
            writer.advance(bytes);
        } else {
            writer.put(&plain_bytes);
            writer.put(runs);
        }
    }

    /// Writes the zstd section and returns its bytes; if it gains too little and isn't part of a
    /// longer stream, its pages become raw.
    fn write_zstd(
        &mut self,
        coding: Coding,
        pages: &[Page],
        window: Option<&mut LongWindowEncoder>,
        writer: &mut Writer<'_>,
    ) -> u64 {
        let Coding::Full { zstd_level } = coding else {
            return 0;
        };
        let mut joined = self.joined.as_chunks_mut::<PAGE_BYTES>().0.iter_mut();
        let mut count = 0;
        for (page, plan) in pages.iter().zip(&self.plans) {
            if *plan == Plan::Zstd
                && let Some(room) = joined.next()
            {
                room.copy_from_slice(page);
                count += 1;
            }
        }
        if count == 0 {
            return 0;
        }
        let joined = &self.joined[..count * PAGE_BYTES];
        let bytes = if let Some(window) = window {
            let room = writer.room(FRAME_LENGTH_BYTES, joined.len() + WINDOW_EXTRA_BYTES_MAX);
            window.compress(joined, room)
        } else {
            let level = zstd_level.clamp(ZSTD_LEVEL_MIN, self.zstd_level_max);
            let room = writer.room(FRAME_LENGTH_BYTES, zstd_coded_bytes_max(joined.len()));
            // The room is what the frame may take at most, so an error means too little gain.
            let Ok(bytes) = self.context.compress(room, joined, level) else {
                for plan in self.plans.iter_mut().filter(|plan| **plan == Plan::Zstd) {
                    *plan = Plan::Raw;
                }
                return 0;
            };
            bytes
        };
        writer.put(&(bytes as u32).to_le_bytes()[..FRAME_LENGTH_BYTES]);
        writer.advance(bytes);
        (FRAME_LENGTH_BYTES + bytes) as u64
    }

    /// Writes the raw pages and returns their bytes.
    fn write_raw(&self, pages: &[Page], writer: &mut Writer<'_>) -> u64 {
        let start = writer.at();
        for (page, plan) in pages.iter().zip(&self.plans) {
            if *plan == Plan::Raw {
                writer.put(page);
            }
        }
        (writer.at() - start) as u64
    }
}

impl fmt::Debug for Encoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encoder").field("zstd_level_max", &self.zstd_level_max).finish()
    }
}

/// The plan of a page that has no base, or one that is of no use.
fn plan_without_base(page: &Page) -> Plan {
    if looks_random(page) { Plan::Raw } else { Plan::Zstd }
}

fn class_stats(stats: &mut ExtentStats, class: Class) -> &mut ClassStats {
    match class {
        Class::Zero => &mut stats.zero,
        Class::Delta => &mut stats.delta,
        Class::Zstd => &mut stats.zstd,
        Class::Raw => &mut stats.raw,
    }
}
