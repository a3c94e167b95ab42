//! Cuts the migration stream on channel 0 into parts: batches of coded pages, announcements of
//! blocks, and bytes as they are.
//!
//! Owned by a stream source. One call fills at most one part. Bytes wait here only as long as a
//! record is incomplete or a part is full; a batch never waits for pages that have not come. Once
//! the stream is opaque and what was read is sent, the cutter is out of the way.
//!
//! Two rules keep the sink in step. The store gets every page that was sent, in the order of the
//! parts, exactly as the sink's does. And a page that the sink has already is left out only if its
//! block is that of the page sent last: so the sink's emitter is always at the block at which the
//! source's parser is, which opaque bytes may refer to.

use super::before::PagesLeft;
use super::block::write_block;
use super::held::BeyondTerms;
use super::level::LevelChooser;
use super::pipe::{Moved, PipeId, Pipes};
use super::pool::guest_memory;
use super::versions::Versions;
use crate::attach::qemu::{Item, Parser, RECORD_BYTES_MAX, Trouble};
use crate::attach::region::Scratch;
use crate::port::{ChannelEnd, StreamNote};
use crate::stats::{SessionCounter, SessionStats};
use dwcp_codec::layout::batch_bytes_max;
use dwcp_codec::{
    BaseIn, BatchInput, Coding, EXTENT_PAGES, ExtentStats, LongWindowEncoder, PAGE_BYTES,
    PageHasher,
};
use dwcp_ffi::arena::{ArenaError, Lease};
use dwcp_proto::ids::Position;
use dwcp_proto::wire::frame::{HeldHashes, StreamKind};
use std::ops::Range;

/// Room for what is read at a time, and for a record that is cut off before it.
pub(super) const INPUT_BYTES: usize = (256 << 10) + RECORD_BYTES_MAX.next_multiple_of(PAGE_BYTES);

/// Pages that one call looks at when the sink has most of them: 1 MiB, half a millisecond.
const PAGES_PER_STEP: usize = 256;

/// Pages that are hashed side by side: as many as the widest vectors take.
const HASHED_TOGETHER: usize = 16;

/// What lies next in the input, already taken note of by the parser.
#[derive(Clone, Copy, Debug)]
struct Found {
    what: What,
    bytes: usize,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Opaque,
    Zero(u64),
    /// The page's bytes end the record.
    Page(u64),
    /// A block of this number was announced.
    Block(u16),
}

/// What a call came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filled {
    /// A part of this length, and what its pages come to at the sink.
    Part(StreamKind, usize, u64),
    /// Nothing can be sent before the VMM writes more, or there is more room.
    Nothing,
    /// Work was done, nothing came of it yet.
    Again,
    /// The VMM ended the channel and everything before is sent.
    Ended(ChannelEnd),
}

/// What a call works with.
pub(super) struct Tools<'a> {
    pub(super) pipes: &'a mut Pipes,
    pub(super) pipe: PipeId,
    pub(super) scratch: &'a mut Scratch,
    pub(super) hasher: &'a PageHasher,
    pub(super) stats: &'a SessionStats,
    /// The position of the part that is filled.
    pub(super) position: Position,
}

/// A batch that grows in the scratch memory.
struct Batch {
    numbers: [u64; EXTENT_PAGES],
    /// Pages that will be sent.
    count: usize,
    /// Pages behind them that are not hashed yet.
    fresh: usize,
    most: usize,
}

impl Batch {
    const fn is_empty(&self) -> bool {
        self.count + self.fresh == 0
    }

    /// True if it has room for the page, and not yet the page itself.
    fn takes(&self, page: u64) -> bool {
        let count = self.count + self.fresh;
        count < self.most && !self.numbers[..count].contains(&page)
    }
}

/// The cutter of a stream session.
#[derive(Debug)]
pub(super) struct Cutter {
    parser: Parser,
    versions: Versions,
    window: Option<LongWindowEncoder>,
    pub(super) level: LevelChooser,
    input: Lease,
    unread: Range<usize>,
    found: Option<Found>,
    note: Option<StreamNote>,
    /// What is unread is no whole record, and the VMM has written no more.
    dry: bool,
    end: Option<ChannelEnd>,
    /// The stream is opaque for ever, and all that was read is sent.
    done: bool,
    /// The block of the page sent last.
    block: Option<u16>,
}

impl Cutter {
    pub(super) fn new(
        versions: Versions,
        window: Option<LongWindowEncoder>,
        level: LevelChooser,
    ) -> Result<Self, ArenaError> {
        Ok(Self {
            parser: Parser::new(),
            versions,
            window,
            level,
            input: guest_memory(INPUT_BYTES)?,
            unread: 0..0,
            found: None,
            note: None,
            dry: true,
            end: None,
            done: false,
            block: None,
        })
    }

    /// The VMM opened another channel: from here on everything is carried as it is.
    pub(super) fn stop(&mut self) {
        self.parser.stop(Trouble::Multifd);
        self.dry = false;
    }

    /// True when a call may come to something without more bytes of the VMM.
    pub(super) fn has_input(&self) -> bool {
        !self.dry && !self.done
    }

    /// The sink told of pages that it alone holds.
    pub(super) fn told(&mut self, chunk: u32, hashes: &HeldHashes<'_>) -> Result<(), BeyondTerms> {
        self.versions.told(chunk, hashes)
    }

    /// What is left when the session is over.
    pub(super) fn leave(self, hasher: PageHasher) -> PagesLeft {
        PagesLeft::new(hasher, self.parser.into_blocks(), self.versions)
    }

    /// True when nothing of what was read is left.
    pub(super) fn is_empty(&self) -> bool {
        self.done || self.unread.is_empty() && self.dry
    }

    /// True when the stream is opaque for ever and all that was read is sent.
    pub(super) const fn is_done(&self) -> bool {
        self.done
    }

    /// What became known, taken out.
    pub(super) fn note(&mut self) -> Option<StreamNote> {
        self.note.take()
    }

    /// Fills `out` with the next part.
    pub(super) fn fill(&mut self, tools: &mut Tools<'_>, out: &mut [u8]) -> Filled {
        let most = pages_that_fit(out.len());
        let mut batch = Batch { numbers: [0; EXTENT_PAGES], count: 0, fresh: 0, most };
        let mut opaque = 0;
        for _ in 0..PAGES_PER_STEP {
            let Some(Found { what, bytes }) = self.look(tools) else { break };
            let at = self.unread.start;
            match what {
                What::Opaque if batch.is_empty() && opaque < out.len() => {
                    let taken = bytes.min(out.len() - opaque);
                    out[opaque..opaque + taken].copy_from_slice(&self.input[at..at + taken]);
                    opaque += taken;
                    self.unread.start += taken;
                    let left = bytes - taken;
                    self.found = (left > 0).then_some(Found { what, bytes: left });
                }
                What::Block(number) if batch.is_empty() && opaque == 0 => {
                    self.found = None;
                    return self.announce(number, out);
                }
                What::Zero(page) | What::Page(page) if opaque == 0 => {
                    if !self.add(tools, &mut batch, page, what) {
                        break;
                    }
                    self.unread.start += bytes;
                    self.found = None;
                }
                _ => break,
            }
        }
        self.settle(tools, &mut batch);
        self.see_whether_done();
        if opaque > 0 {
            tools.stats.add(SessionCounter::OpaqueBytes.index(), opaque as u64);
            return Filled::Part(StreamKind::Opaque, opaque, 0);
        }
        if batch.count > 0 {
            let (bytes, pages_bytes) = self.encode(tools, &batch, out);
            return Filled::Part(StreamKind::Pages, bytes, pages_bytes);
        }
        match self.end {
            Some(end) if self.unread.is_empty() && self.found.is_none() => Filled::Ended(end),
            _ if (self.dry && self.note.is_none()) || self.found.is_some() => Filled::Nothing,
            _ => Filled::Again,
        }
    }

    /// Once the stream is opaque, the parser has a last word, and then nothing to say any more.
    fn see_whether_done(&mut self) {
        let quiet = self.unread.is_empty() && self.found.is_none() && self.note.is_none();
        if self.parser.is_opaque() && quiet && self.end.is_none() {
            match self.parser.next(&[]) {
                (_, Item::Note(note)) => self.note = Some(note),
                _ => self.done = true,
            }
        }
    }

    /// The next thing in the stream; reads from the VMM when that is needed.
    fn look(&mut self, tools: &mut Tools<'_>) -> Option<Found> {
        loop {
            if self.found.is_some() {
                return self.found;
            }
            // A note has to be told before what comes after it.
            if self.note.is_some() {
                return None;
            }
            let (bytes, item) = self.parser.next(&self.input[self.unread.clone()]);
            let what = match item {
                Item::Need => {
                    if self.end.is_some() && !self.unread.is_empty() {
                        // A record that was cut off for good.
                        let bytes = self.unread.len();
                        self.found = Some(Found { what: What::Opaque, bytes });
                        return self.found;
                    }
                    if self.end.is_some() || !self.read(tools) {
                        return None;
                    }
                    continue;
                }
                Item::Opaque(_) => What::Opaque,
                Item::Zero { page } => What::Zero(page),
                Item::Page { page, .. } => What::Page(page),
                Item::Block { number, .. } => What::Block(number),
                Item::Note(note) => {
                    self.note = Some(note);
                    self.dry = false;
                    return None;
                }
            };
            self.found = Some(Found { what, bytes });
        }
    }

    /// Reads more of what the VMM wrote. False when there is nothing now.
    fn read(&mut self, tools: &mut Tools<'_>) -> bool {
        self.input.copy_within(self.unread.clone(), 0);
        self.unread = 0..self.unread.len();
        let end = match tools.pipes.read(tools.pipe, &mut self.input[self.unread.end..INPUT_BYTES])
        {
            Moved::Bytes(bytes) => {
                self.unread.end += bytes;
                self.dry = false;
                tools.stats.add(SessionCounter::VmmInBytes.index(), bytes as u64);
                return true;
            }
            Moved::Later => {
                self.dry = true;
                return false;
            }
            Moved::Ended => ChannelEnd::Closed,
            Moved::Failed(errno) => ChannelEnd::Socket { errno },
        };
        self.end = Some(end);
        self.dry = false;
        true
    }

    fn announce(&mut self, number: u16, out: &mut [u8]) -> Filled {
        let Some(block) = self.parser.blocks().block(number) else {
            panic!("the parser knows the blocks that it announces")
        };
        self.versions.place(block.idstr(), block.first_page(), block.pages());
        let bytes = block.pages() * PAGE_BYTES as u64;
        Filled::Part(StreamKind::Block, write_block(number, bytes, block.idstr(), out), 0)
    }

    /// Adds a page to the batch. False when it has to wait for the next.
    fn add(&mut self, tools: &mut Tools<'_>, batch: &mut Batch, page: u64, what: What) -> bool {
        // What is refused waits for a batch to go out, so one that the sink has must not be why.
        if batch.fresh == HASHED_TOGETHER || !batch.takes(page) {
            self.settle(tools, batch);
        }
        if !batch.takes(page) {
            return false;
        }
        let at = batch.count + batch.fresh;
        let place = &mut tools.scratch.pages[at * PAGE_BYTES..(at + 1) * PAGE_BYTES];
        if let (What::Page(_), Some(Found { bytes, .. })) = (what, self.found) {
            let end = self.unread.start + bytes;
            place.copy_from_slice(&self.input[end - PAGE_BYTES..end]);
        } else {
            place.fill(0);
        }
        batch.numbers[at] = page;
        batch.fresh += 1;
        true
    }

    /// Hashes what was added lately, and takes out again what the sink has.
    fn settle(&mut self, tools: &mut Tools<'_>, batch: &mut Batch) {
        let fresh = batch.count..batch.count + batch.fresh;
        let Scratch { pages, hashes, .. } = &mut *tools.scratch;
        let pages = pages.as_chunks_mut::<PAGE_BYTES>().0;
        tools.hasher.hash_all(&pages[fresh.clone()], &mut hashes[fresh.clone()]);
        tools.stats.add(SessionCounter::PagesScanned.index(), batch.fresh as u64);
        for at in fresh {
            let (page, hash) = (batch.numbers[at], hashes[at]);
            let block = self.parser.blocks().of_page(page);
            if block == self.block && self.versions.newest(page) == Some(hash) {
                tools.stats.add(SessionCounter::PagesUnchanged.index(), 1);
                continue;
            }
            if at != batch.count {
                pages.copy_within(at..=at, batch.count);
            }
            hashes[batch.count] = hash;
            batch.numbers[batch.count] = page;
            batch.count += 1;
            self.block = block;
        }
        batch.fresh = 0;
    }

    /// Codes the batch and keeps its pages as versions. Returns the payload's length, and what its
    /// pages come to at the sink.
    fn encode(&mut self, tools: &mut Tools<'_>, batch: &Batch, out: &mut [u8]) -> (usize, u64) {
        let Scratch { encoder, pages, hashes, bases, .. } = &mut *tools.scratch;
        let count = batch.count;
        let (numbers, hashes) = (&batch.numbers[..count], &hashes[..count]);
        let pages = &pages[..count * PAGE_BYTES];
        let base_pages = &mut bases.as_chunks_mut::<PAGE_BYTES>().0[..count];
        let mut held = [None; EXTENT_PAGES];
        let each = numbers.iter().zip(hashes).zip(pages.as_chunks::<PAGE_BYTES>().0);
        for ((held, out), ((&number, &hash), bytes)) in
            held.iter_mut().zip(&mut *base_pages).zip(each)
        {
            *held = self.versions.read_base(number, (hash, bytes), out);
        }
        let alone = held.iter().flatten().filter(|held| self.versions.is_alone(held)).count();
        tools.stats.add(SessionCounter::PagesHeld.index(), alone as u64);
        let mut bases = [None; EXTENT_PAGES];
        for ((base, held), page) in bases.iter_mut().zip(&held).zip(&*base_pages) {
            *base = held.map(|held| BaseIn { version: held.version, hash: held.hash, page });
        }
        let zstd_level = self.level.level();
        if let Some(window) = &mut self.window {
            window.set_level(zstd_level);
        }
        let (coding, bases) = (Coding::Full { zstd_level }, &bases[..count]);
        let input = BatchInput { numbers, pages, hashes, bases, coding };
        let coded = encoder.encode_batch(tools.hasher, &input, self.window.as_mut(), out);
        let version = tools.position.0;
        let each = numbers.iter().zip(hashes).zip(pages.as_chunks::<PAGE_BYTES>().0);
        for ((&number, &hash), bytes) in each {
            self.versions.put(number, version, hash, bytes);
        }
        count_pages(tools.stats, &coded.stats);
        tools.stats.set(SessionCounter::BasePages.index(), self.versions.held_pages());
        let whole = count as u64 - coded.stats.zero.pages;
        (coded.bytes, whole * PAGE_BYTES as u64)
    }
}

/// How many pages a payload of at most so many bytes can have, whatever they hold.
fn pages_that_fit(bytes: usize) -> usize {
    (1..=EXTENT_PAGES).rev().find(|&pages| batch_bytes_max(pages) <= bytes).unwrap_or(0)
}

fn count_pages(stats: &SessionStats, batch: &ExtentStats) {
    stats.add(SessionCounter::PagesZero.index(), batch.zero.pages);
    stats.add(SessionCounter::PagesDelta.index(), batch.delta.pages);
    stats.add(SessionCounter::PagesZstd.index(), batch.zstd.pages);
    stats.add(SessionCounter::PagesRaw.index(), batch.raw.pages);
    stats.add(SessionCounter::DeltaBytes.index(), batch.delta.coded_bytes);
    stats.add(SessionCounter::ZstdBytes.index(), batch.zstd.coded_bytes);
    stats.add(SessionCounter::RawBytes.index(), batch.raw.coded_bytes);
}
