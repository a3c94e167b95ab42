//! A migration stream as a list of parts, for tests: written to bytes, and what must come of it.

use dwcp_codec::{PAGE_BYTES, Page};
use proptest::prelude::*;

/// The blocks that generated streams have: name and pages.
pub(super) const BLOCKS: [(&str, u64); 3] = [("pc.ram", 70), ("pc.bios", 3), ("/rom@etc/x", 1)];

/// The RAM section's number in generated streams.
const RAM: u32 = 2;

/// A piece of a stream.
#[derive(Clone, Debug)]
pub(super) enum Part {
    /// Magic and version.
    Head,
    /// A machine type and these many subsections.
    Configuration(usize),
    /// A command with data.
    Command(u16, Vec<u8>),
    /// A section's head: START, PART or END.
    Section(u8),
    /// The list of all blocks.
    BlockList,
    /// A page record: block, page in it, content by its fill (0 is a zero record), and whether
    /// the name is written although it could be left out.
    Record { block: usize, page: u64, fill: u8, named: bool },
    /// The end of a section's body, with or without a footer.
    End(bool),
    /// Anything.
    Bytes(Vec<u8>),
}

/// A page that is not zero: no two fills give the same.
pub(super) fn page(fill: u8) -> Page {
    let mut page = [fill; PAGE_BYTES];
    page[7] = 1;
    page
}

/// Writes parts one after another as QEMU does.
#[derive(Default)]
pub(super) struct Writer {
    pub(super) bytes: Vec<u8>,
    last: Option<usize>,
}

impl Writer {
    pub(super) fn put(&mut self, part: &Part) {
        match part {
            Part::Head => self.bytes.extend(b"QEVM\0\0\0\x03"),
            Part::Configuration(subsections) => self.configuration(*subsections),
            Part::Command(command, data) => {
                self.bytes.push(8);
                self.bytes.extend(command.to_be_bytes());
                self.bytes.extend((data.len() as u16).to_be_bytes());
                self.bytes.extend(data);
            }
            Part::Section(kind) => {
                self.bytes.push(*kind);
                self.bytes.extend(RAM.to_be_bytes());
                if *kind == 1 {
                    self.name("ram");
                    self.bytes.extend([0, 0, 0, 0, 0, 0, 0, 4]);
                }
            }
            Part::BlockList => {
                let pages: u64 = BLOCKS.iter().map(|(_, pages)| pages).sum();
                self.word(pages << 12 | 0x04);
                for (name, pages) in BLOCKS {
                    self.name(name);
                    self.word(pages << 12);
                }
            }
            Part::Record { block, page, fill, named } => self.record(*block, *page, *fill, *named),
            Part::End(footer) => {
                self.word(0x10);
                if *footer {
                    self.bytes.push(0x7e);
                    self.bytes.extend(RAM.to_be_bytes());
                }
            }
            Part::Bytes(bytes) => self.bytes.extend(bytes),
        }
    }

    fn configuration(&mut self, subsections: usize) {
        let all: [(&str, &[u8]); 3] = [
            ("configuration/capabilities", &[0; 4]),
            ("configuration/target-page-bits", &[0, 0, 0, 12]),
            ("configuration/uuid", &[0x5a; 16]),
        ];
        self.bytes.push(7);
        self.bytes.extend(9_u32.to_be_bytes());
        self.bytes.extend(b"pc-i440fx");
        for (name, fields) in &all[..subsections] {
            self.bytes.push(5);
            self.name(name);
            self.bytes.extend([0, 0, 0, 1]);
            self.bytes.extend(*fields);
        }
    }

    fn record(&mut self, block: usize, number: u64, fill: u8, named: bool) {
        let same = self.last == Some(block) && !named;
        let flags = if fill == 0 { 0x02 } else { 0x08 } | if same { 0x20 } else { 0 };
        self.word(number << 12 | flags);
        if !same {
            self.name(BLOCKS[block].0);
        }
        self.last = Some(block);
        match fill {
            0 => self.bytes.push(0),
            fill => self.bytes.extend(page(fill)),
        }
    }

    fn word(&mut self, word: u64) {
        self.bytes.extend(word.to_be_bytes());
    }

    fn name(&mut self, name: &str) {
        self.bytes.push(name.len() as u8);
        self.bytes.extend(name.as_bytes());
    }
}

/// All parts as bytes.
pub(super) fn written(parts: &[Part]) -> Vec<u8> {
    let mut writer = Writer::default();
    parts.iter().for_each(|part| writer.put(part));
    writer.bytes
}

fn record() -> impl Strategy<Value = Part> {
    (0..BLOCKS.len(), any::<prop::sample::Index>(), 0_u8..5, any::<bool>()).prop_map(
        |(block, index, fill, named)| {
            let page = index.index(BLOCKS[block].1 as usize) as u64;
            Part::Record { block, page, fill, named: named && fill == 4 }
        },
    )
}

fn command() -> impl Strategy<Value = Part> {
    let known = prop::sample::select(vec![1_u16, 2, 3, 11]);
    (known, prop::collection::vec(any::<u8>(), 0..9)).prop_map(|(it, data)| Part::Command(it, data))
}

/// A part of the RAM section, perhaps with a command before it.
fn section(kind: u8) -> impl Strategy<Value = Vec<Part>> {
    let records = prop::collection::vec(record(), 0..12);
    (prop::option::of(command()), records, any::<bool>()).prop_map(
        move |(command, records, foot)| {
            let mut parts: Vec<Part> = command.into_iter().collect();
            parts.push(Part::Section(kind));
            parts.extend(records);
            parts.push(Part::End(foot));
            parts
        },
    )
}

/// Any valid stream up to a point within its RAM section.
pub(super) fn begun() -> impl Strategy<Value = Vec<Part>> {
    (0_usize..4, prop::collection::vec(section(2), 0..4)).prop_map(|(subsections, parts)| {
        let mut all = vec![Part::Head, Part::Configuration(subsections), Part::Section(1)];
        all.extend([Part::BlockList, Part::End(true)]);
        all.extend(parts.into_iter().flatten());
        all
    })
}

/// Any valid stream.
pub(super) fn whole() -> impl Strategy<Value = Vec<Part>> {
    let devices = prop::collection::vec(any::<u8>(), 0..300);
    (begun(), section(3), devices).prop_map(|(mut all, end, devices)| {
        all.extend(end);
        all.push(Part::Bytes(devices));
        all
    })
}
