//! The parser of the migration stream.
//!
//! Owned by the source of a stream session, one per channel 0. It keeps where in the format the
//! stream is, never bytes: what it can't consume yet stays with the caller, so page bytes are
//! borrowed from the caller's buffer and copied by nobody here. It looks at most
//! [`RECORD_BYTES_MAX`](super::RECORD_BYTES_MAX) bytes ahead.
//!
//! Nothing is judged before it is consumed: when something is not as expected, the stream turns
//! opaque exactly at the first byte that was not passed on. An opaque record that follows may
//! refer to "the block of the record before". So a caller who leaves out records (of pages that
//! the sink has already) does so only while their block is that of the last record it kept.

use super::blocks::Blocks;
use super::format::{MAGIC, RAM, RAM_VERSION, TARGET_PAGE_BITS, VERSION, command, flag, kind};
use super::item::Item;
use super::trouble::Trouble;
use crate::port::StreamNote;
use dwcp_codec::PAGE_BYTES;

/// Where in the format the stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// At the magic.
    Head,
    /// Behind the configuration or one of its subsections.
    Subsection,
    /// At the type byte of a section or command.
    Section,
    /// At the entry of a block; `bytes` of all blocks are not listed yet.
    BlockList { bytes: u64 },
    /// At a word of the RAM section.
    Word,
    /// Behind a part of the RAM section, where a footer may stand.
    Footer,
    /// Where every byte is opaque, for ever.
    Opaque,
}

/// What one step found.
enum Step<'a> {
    /// The next so many opaque bytes were consumed; 0 when only the state changed.
    Pass(usize),
    /// An item of so many bytes.
    Item(usize, Item<'a>),
    /// More bytes are needed, or the opaque bytes before an item have to be given out first.
    Stop,
}

/// Cuts a migration stream into items.
#[derive(Debug)]
pub struct Parser {
    state: State,
    /// Opaque bytes that come before what `state` says.
    skip: u64,
    /// Said to the caller before anything else.
    note: Option<StreamNote>,
    /// Said next.
    trouble: Option<Trouble>,
    blocks: Blocks,
    /// The block at whose entry the list is was announced, so its entry can be passed.
    announced: bool,
    /// The block of the last page record.
    current: Option<u16>,
    /// The RAM section's number.
    ram: Option<u32>,
    /// The RAM section's last part has begun.
    ram_ending: bool,
}

impl Parser {
    /// A parser at the beginning of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: State::Head,
            skip: 0,
            note: None,
            trouble: None,
            blocks: Blocks::new(),
            announced: false,
            current: None,
            ram: None,
            ram_ending: false,
        }
    }

    /// The blocks announced so far.
    #[must_use]
    pub const fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// The blocks that were announced.
    #[must_use]
    pub fn into_blocks(self) -> Blocks {
        self.blocks
    }

    /// True if from here on every byte is opaque, for ever.
    #[must_use]
    pub fn is_opaque(&self) -> bool {
        self.state == State::Opaque
    }

    /// Makes the stream opaque from the first byte on that was not consumed yet, for a reason
    /// that the caller sees. The next item is the note that says so.
    pub fn stop(&mut self, trouble: Trouble) {
        if !self.is_opaque() {
            self.state = State::Opaque;
            self.skip = 0;
            self.trouble = Some(trouble);
        }
    }

    /// The next item of the stream, and how many bytes of `input` it consumed. `input` starts at
    /// the first byte that was not consumed yet. With [`RECORD_BYTES_MAX`](super::RECORD_BYTES_MAX)
    /// bytes given the answer is never [`Item::Need`]. When the stream has ended for good, the
    /// bytes left over are a cut record, to be carried as opaque bytes.
    pub fn next<'a>(&mut self, input: &'a [u8]) -> (usize, Item<'a>) {
        let mut passed = 0;
        loop {
            if passed == 0
                && let Some(note) = self.take_note()
            {
                return (0, Item::Note(note));
            }
            if self.note.is_some() || self.trouble.is_some() {
                break;
            }
            match self.step(&input[passed..], passed == 0) {
                Ok(Step::Pass(bytes)) => passed += bytes,
                Ok(Step::Item(bytes, item)) => return (bytes, item),
                Ok(Step::Stop) => break,
                Err(trouble) => self.stop(trouble),
            }
        }
        if passed == 0 { (0, Item::Need) } else { (passed, Item::Opaque(&input[..passed])) }
    }

    fn take_note(&mut self) -> Option<StreamNote> {
        let trouble = |trouble: Trouble| StreamNote::Opaque(trouble.code());
        self.note.take().or_else(|| self.trouble.take().map(trouble))
    }

    /// One step. Gives an item only when `fresh`: no opaque bytes wait to be given out before it.
    /// A step that fails has changed nothing and consumed nothing.
    fn step<'a>(&mut self, input: &'a [u8], fresh: bool) -> Result<Step<'a>, Trouble> {
        if input.is_empty() {
            return Ok(Step::Stop);
        }
        if self.skip > 0 {
            let bytes = self.skip.min(input.len() as u64);
            self.skip -= bytes;
            return Ok(Step::Pass(bytes as usize));
        }
        let passed = match self.state {
            State::Head => self.head(input)?,
            State::Subsection => self.subsection(input)?,
            State::Section => self.section(input)?,
            State::BlockList { bytes } => return self.block(input, bytes, fresh),
            State::Word => return self.word(input, fresh),
            State::Footer => self.footer(input)?,
            State::Opaque => Some(input.len()),
        };
        Ok(passed.map_or(Step::Stop, Step::Pass))
    }

    fn head(&mut self, input: &[u8]) -> Result<Option<usize>, Trouble> {
        // Judged as early as possible: nobody says that such a peer would send more.
        if !input.iter().zip(&MAGIC).all(|(found, expected)| found == expected) {
            return Err(Trouble::NotQemu);
        }
        let Some(version) = u32_at(input, MAGIC.len()) else { return Ok(None) };
        if version != VERSION {
            return Err(Trouble::Version);
        }
        self.state = State::Section;
        Ok(Some(8))
    }

    fn section(&mut self, input: &[u8]) -> Result<Option<usize>, Trouble> {
        match input[0] {
            kind::CONFIGURATION if self.ram.is_none() => {
                let Some(bytes) = u32_at(input, 1) else { return Ok(None) };
                self.skip = u64::from(bytes);
                self.state = State::Subsection;
                Ok(Some(5))
            }
            kind::COMMAND => self.command(input),
            kind::START if self.ram.is_none() => self.start(input),
            kind::PART | kind::END if self.ram.is_some() => {
                let Some(number) = u32_at(input, 1) else { return Ok(None) };
                if self.ram != Some(number) {
                    return Err(Trouble::Section);
                }
                self.ram_ending = input[0] == kind::END;
                self.state = State::Word;
                Ok(Some(5))
            }
            _ => Err(Trouble::Section),
        }
    }

    fn command(&mut self, input: &[u8]) -> Result<Option<usize>, Trouble> {
        let (Some(command), Some(bytes)) = (u16_at(input, 1), u16_at(input, 3)) else {
            return Ok(None);
        };
        match command {
            command::OPEN_RETURN_PATH
            | command::PING
            | command::POSTCOPY_ADVISE
            | command::SWITCHOVER_START => {
                self.skip = u64::from(bytes);
                Ok(Some(5))
            }
            _ => Err(Trouble::Command),
        }
    }

    /// The start of a section: its number, name, instance and version.
    fn start(&mut self, input: &[u8]) -> Result<Option<usize>, Trouble> {
        let Some(number) = u32_at(input, 1) else { return Ok(None) };
        let Some(name) = name_at(input, 5) else { return Ok(None) };
        if name != RAM {
            return Err(Trouble::Section);
        }
        let behind = 6 + name.len();
        let Some(version) = u32_at(input, behind + 4) else { return Ok(None) };
        if version != RAM_VERSION {
            return Err(Trouble::Version);
        }
        self.ram = Some(number);
        self.state = State::Word;
        Ok(Some(behind + 8))
    }

    /// A part of the configuration: its name, its version, its fields.
    fn subsection(&mut self, input: &[u8]) -> Result<Option<usize>, Trouble> {
        if input[0] != kind::SUBSECTION {
            self.state = State::Section;
            return Ok(Some(0));
        }
        let Some(name) = name_at(input, 1) else { return Ok(None) };
        let fields = 2 + name.len() + 4;
        // The capabilities listed are those that change the format; the list must be empty.
        let (expected, bytes) = match name {
            b"configuration/capabilities" => (Some(0), 4),
            b"configuration/target-page-bits" => (Some(TARGET_PAGE_BITS), 4),
            b"configuration/uuid" => (None, 16),
            _ => return Err(Trouble::Configuration),
        };
        if input.len() < fields + bytes {
            return Ok(None);
        }
        if expected.is_some() && u32_at(input, fields) != expected {
            return Err(Trouble::Configuration);
        }
        Ok(Some(fields + bytes))
    }

    /// A block's entry: its name and its size. It is announced first and passed then.
    fn block<'a>(&mut self, input: &'a [u8], left: u64, fresh: bool) -> Result<Step<'a>, Trouble> {
        let Some(idstr) = name_at(input, 0) else { return Ok(Step::Stop) };
        let entry = 1 + idstr.len() + 8;
        let Some(bytes) = u64_at(input, entry - 8) else { return Ok(Step::Stop) };
        if self.announced {
            self.announced = false;
            self.list(left - bytes);
            return Ok(Step::Pass(entry));
        }
        if !fresh {
            return Ok(Step::Stop);
        }
        let number = self.blocks.count();
        if bytes > left || !self.blocks.push(idstr, bytes) {
            return Err(Trouble::BlockList);
        }
        self.announced = true;
        Ok(Step::Item(0, Item::Block { number, idstr, bytes }))
    }

    /// The list of blocks goes on until `bytes` are accounted for.
    fn list(&mut self, bytes: u64) {
        self.state = if bytes == 0 { State::Word } else { State::BlockList { bytes } };
        if bytes == 0 {
            let all = (0..self.blocks.count()).filter_map(|number| self.blocks.block(number));
            let pages: u64 = all.map(super::Block::pages).sum();
            self.note = Some(StreamNote::RamBytes(pages * PAGE_BYTES as u64));
        }
    }

    fn word<'a>(&mut self, input: &'a [u8], fresh: bool) -> Result<Step<'a>, Trouble> {
        let Some(word) = u64_at(input, 0) else { return Ok(Step::Stop) };
        let (flags, value) = (word & flag::ALL, word & !flag::ALL);
        match flags {
            flag::MEM_SIZE if self.blocks.count() == 0 && value > 0 => self.list(value),
            flag::MEM_SIZE => return Err(Trouble::BlockList),
            flag::EOS if self.ram_ending => {
                self.state = State::Opaque;
                self.note = Some(StreamNote::RamEnded);
            }
            flag::EOS => self.state = State::Footer,
            _ if flags & flag::XBZRLE != 0 => return Err(Trouble::Xbzrle),
            _ if flags & flag::MULTIFD_FLUSH != 0 => return Err(Trouble::Multifd),
            _ => match flags & !flag::CONTINUE {
                flag::ZERO | flag::PAGE if fresh => return self.record(input, flags, value),
                flag::ZERO | flag::PAGE => return Ok(Step::Stop),
                _ => return Err(Trouble::Flags),
            },
        }
        Ok(Step::Pass(8))
    }

    /// A page record: word, block unless it is that of the record before, content.
    fn record<'a>(
        &mut self,
        input: &'a [u8],
        flags: u64,
        offset: u64,
    ) -> Result<Step<'a>, Trouble> {
        let (number, head) = if flags & flag::CONTINUE != 0 {
            (self.current, 8)
        } else {
            let Some(name) = name_at(input, 8) else { return Ok(Step::Stop) };
            (self.blocks.of_name(name), 9 + name.len())
        };
        let block = number.and_then(|number| self.blocks.block(number)).ok_or(Trouble::Record)?;
        let page = block.page_at(offset).ok_or(Trouble::Record)?;
        let body = &input[head..];
        let step = if flags & flag::PAGE != 0 {
            let Some(bytes) = body.first_chunk::<PAGE_BYTES>() else { return Ok(Step::Stop) };
            Step::Item(head + PAGE_BYTES, Item::Page { page, bytes })
        } else {
            match body.first() {
                None => return Ok(Step::Stop),
                Some(0) => Step::Item(head + 1, Item::Zero { page }),
                Some(_) => return Err(Trouble::Record),
            }
        };
        self.current = number;
        Ok(step)
    }

    fn footer(&mut self, input: &[u8]) -> Result<Option<usize>, Trouble> {
        if input[0] != kind::FOOTER {
            self.state = State::Section;
            return Ok(Some(0));
        }
        let Some(number) = u32_at(input, 1) else { return Ok(None) };
        if self.ram != Some(number) {
            return Err(Trouble::Section);
        }
        self.state = State::Section;
        Ok(Some(5))
    }
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

/// The `N` bytes at a place, if they are there.
fn bytes_at<const N: usize>(input: &[u8], at: usize) -> Option<[u8; N]> {
    input.get(at..)?.first_chunk().copied()
}

fn u16_at(input: &[u8], at: usize) -> Option<u16> {
    bytes_at(input, at).map(u16::from_be_bytes)
}

fn u32_at(input: &[u8], at: usize) -> Option<u32> {
    bytes_at(input, at).map(u32::from_be_bytes)
}

fn u64_at(input: &[u8], at: usize) -> Option<u64> {
    bytes_at(input, at).map(u64::from_be_bytes)
}

/// A name with its length before it, if all of it is there.
fn name_at(input: &[u8], at: usize) -> Option<&[u8]> {
    let bytes = usize::from(*input.get(at)?);
    input.get(at + 1..)?.get(..bytes)
}
