//! A source QEMU's stream, made up, and a loader that says what a destination QEMU would get of it.

use crate::pair::next;
use std::collections::BTreeMap;

const PAGE: usize = 4096;
/// Name and pages of the guest's blocks.
pub(crate) const BLOCKS: [(&str, u64); 2] = [("pc.ram", 600), ("pc.bios", 40)];
const RAM: [u8; 4] = [0, 0, 0, 2];

/// A guest whose memory changes, and the stream that it is written to.
pub(crate) struct Guest {
    state: u64,
    memory: Vec<Vec<[u8; PAGE]>>,
    last: Option<usize>,
    pub(crate) stream: Vec<u8>,
}

impl Guest {
    pub(crate) fn new(seed: u64) -> Self {
        let mut guest = Self { state: seed, memory: Vec::new(), last: None, stream: Vec::new() };
        guest.memory = BLOCKS
            .iter()
            .map(|(_, pages)| (0..*pages).map(|_| guest.content()).collect())
            .collect();
        guest.begin_anew();
        guest
    }

    /// All pages as they are now.
    pub(crate) fn pages(&self) -> impl Iterator<Item = &[u8; PAGE]> {
        self.memory.iter().flatten()
    }

    /// Begins another stream with the memory as it is.
    pub(crate) fn begin_anew(&mut self) {
        self.stream = b"QEVM\0\0\0\x03".into();
        self.last = None;
        self.stream.extend([7, 0, 0, 0, 9]);
        self.stream.extend(b"pc-i440fx");
        self.stream.push(1);
        self.stream.extend(RAM);
        self.name("ram");
        self.stream.extend([0, 0, 0, 0, 0, 0, 0, 4]);
        let all: u64 = BLOCKS.iter().map(|(_, pages)| pages).sum();
        self.word(all << 12 | 4);
        for (name, pages) in BLOCKS {
            self.name(name);
            self.word(pages << 12);
        }
        self.end();
    }

    fn next(&mut self) -> u64 {
        next(&mut self.state)
    }

    fn content(&mut self) -> [u8; PAGE] {
        let kind = self.next() % 4;
        let mut page = [0; PAGE];
        for at in (0..PAGE).step_by(8) {
            let word = match kind {
                0 => 0,
                1 => self.next() << 20 ^ self.next(),
                _ => self.next() % 7,
            };
            page[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        page
    }

    fn word(&mut self, word: u64) {
        self.stream.extend(word.to_be_bytes());
    }

    fn name(&mut self, name: &str) {
        self.stream.push(name.len() as u8);
        self.stream.extend(name.as_bytes());
    }

    fn end(&mut self) {
        self.word(0x10);
        self.stream.push(0x7e);
        self.stream.extend(RAM);
    }

    /// Begins a part of the RAM section: 2 for one of many, 3 for the last.
    pub(crate) fn begin(&mut self, kind: u8) {
        self.stream.push(kind);
        self.stream.extend(RAM);
    }

    pub(crate) fn record(&mut self, block: usize, page: u64) {
        let bytes = self.memory[block][page as usize];
        let zero = bytes == [0; PAGE];
        let same = self.last == Some(block);
        let flags = if zero { 2 } else { 8 } | if same { 0x20 } else { 0 };
        self.word(page << 12 | flags);
        if !same {
            self.name(BLOCKS[block].0);
        }
        self.last = Some(block);
        if zero { self.stream.push(0) } else { self.stream.extend(bytes) }
    }

    /// A word of an unknown kind, which refers to the block of the page before.
    pub(crate) fn xbzrle(&mut self, page: u64) {
        self.word(page << 12 | 0x40 | 0x20);
        self.stream.extend([1, 0, 3, 9, 9, 9]);
    }

    /// Sends every page once.
    pub(crate) fn all(&mut self) {
        self.begin(2);
        for (block, (_, pages)) in BLOCKS.iter().enumerate() {
            (0..*pages).for_each(|page| self.record(block, page));
        }
        self.end();
    }

    /// Changes some pages a little, some anew, and sends them and some that did not change.
    pub(crate) fn round(&mut self, count: usize) {
        self.begin(2);
        self.dirty(count);
        self.end();
    }

    /// Puts the pages of each block to other places.
    pub(crate) fn shuffle(&mut self) {
        for block in 0..self.memory.len() {
            for page in (1..self.memory[block].len()).rev() {
                let other = self.next() as usize % (page + 1);
                self.memory[block].swap(page, other);
            }
        }
    }

    /// Changes some pages and sends nothing.
    pub(crate) fn change(&mut self, count: usize) {
        let (stream, last) = (self.stream.len(), self.last);
        self.dirty(count);
        self.stream.truncate(stream);
        self.last = last;
    }

    fn dirty(&mut self, count: usize) {
        for _ in 0..count {
            let block = usize::from(self.next().is_multiple_of(10));
            let page = self.next() % BLOCKS[block].1;
            match self.next() % 5 {
                0 => {}
                1 => self.memory[block][page as usize] = self.content(),
                _ => {
                    for _ in 0..3 {
                        let at = self.next() as usize % PAGE;
                        self.memory[block][page as usize][at] = self.next() as u8;
                    }
                }
            }
            self.record(block, page);
        }
    }

    /// The last round, the end of RAM, and the state of the devices.
    pub(crate) fn finish(&mut self, count: usize) {
        self.begin(3);
        self.dirty(count);
        self.end();
        let state = super::harness::bytes(self.state, 120_000);
        self.stream.extend(state);
    }

    /// How many bytes of pages the stream sends.
    pub(crate) fn stream_bytes(&self) -> u64 {
        self.stream.len() as u64
    }
}

/// Pages by the name of their block and their offset.
type Memory = BTreeMap<(Vec<u8>, u64), Vec<u8>>;

/// What a destination QEMU gets of a stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Loaded {
    /// Every byte that is no page record, in order.
    pub(crate) others: Vec<u8>,
    /// The memory at the end of each part of the RAM section.
    pub(crate) rounds: Vec<Memory>,
}

/// Loads a stream of a [`Guest`]; what can't be read as one is taken as it is.
pub(crate) fn load(stream: &[u8]) -> Loaded {
    let header = 8 + 5 + 9;
    let list = 1 + 4 + 4 + 8 + 8 + BLOCKS.iter().map(|(name, _)| 9 + name.len()).sum::<usize>();
    let mut at = (header + list).min(stream.len());
    let mut loaded = Loaded { others: stream[..at].into(), rounds: Vec::new() };
    let mut memory = Memory::new();
    let mut current: Vec<u8> = Vec::new();
    let mut inside = true;
    let mut last = false;
    while at < stream.len() {
        let rest = &stream[at..];
        if !inside {
            let footer = rest[0] == 0x7e && rest.len() >= 5;
            let part = (rest[0] == 2 || rest[0] == 3) && rest.len() >= 5 && !last;
            if !footer && !part {
                loaded.others.extend(rest);
                break;
            }
            inside = part;
            last |= part && rest[0] == 3;
            loaded.others.extend(&rest[..5]);
            at += 5;
            continue;
        }
        let Some(word) = rest.first_chunk::<8>().map(|word| u64::from_be_bytes(*word)) else {
            loaded.others.extend(rest);
            break;
        };
        let (flags, offset) = (word & 0xfff, word & !0xfff);
        let bytes = match flags & !0x20 {
            0x10 => {
                loaded.rounds.push(memory.clone());
                inside = false;
                loaded.others.extend(&rest[..8]);
                at += 8;
                continue;
            }
            2 => 1,
            8 => PAGE,
            // Something unknown: it may refer to the block of the page before.
            _ => {
                loaded.others.extend(&current);
                loaded.others.extend(rest);
                break;
            }
        };
        let named = flags & 0x20 == 0;
        let head = if named { 9 + usize::from(*rest.get(8).unwrap_or(&0)) } else { 8 };
        if rest.len() < head + bytes {
            loaded.others.extend(rest);
            break;
        }
        if named {
            current = rest[9..head].into();
        }
        let content = if bytes == 1 { vec![0; PAGE] } else { rest[head..head + PAGE].into() };
        memory.insert((current.clone(), offset), content);
        at += head + bytes;
    }
    loaded.rounds.push(memory);
    loaded
}
