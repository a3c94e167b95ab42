//! Parser and emitter together, over generated streams in any pieces.

use super::stream_for_tests::{BLOCKS, Part, begun, page, whole, written};
use super::{BLOCKS_MAX, Emitter, Item, Parser, RECORD_BYTES_MAX, Trouble};
use crate::port::StreamNote;
use dwcp_codec::PAGE_BYTES;
use proptest::prelude::*;

/// An item that owns its bytes. Opaque neighbours are one.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Opaque(Vec<u8>),
    Page { page: u64, bytes: Vec<u8> },
    Block { number: u16, idstr: Vec<u8>, bytes: u64 },
    Note(StreamNote),
}

fn push(seen: &mut Vec<Seen>, item: Item<'_>) {
    if let (Item::Opaque(more), Some(Seen::Opaque(before))) = (item, seen.last_mut()) {
        before.extend(more);
        return;
    }
    seen.push(match item {
        Item::Need => return,
        Item::Opaque(more) => Seen::Opaque(more.to_vec()),
        Item::Zero { page } => Seen::Page { page, bytes: Vec::new() },
        Item::Page { page, bytes } => Seen::Page { page, bytes: bytes.to_vec() },
        Item::Block { number, idstr, bytes } => {
            Seen::Block { number, idstr: idstr.to_vec(), bytes }
        }
        Item::Note(note) => Seen::Note(note),
    });
}

/// Everything in a stream that arrives in pieces of these sizes, over and over; whatever is left
/// at its end is opaque.
fn parsed(stream: &[u8], pieces: &[usize]) -> Vec<Seen> {
    let (mut seen, mut parser) = (Vec::new(), Parser::new());
    let (mut at, mut given) = (0, 0);
    for piece in pieces.iter().cycle() {
        loop {
            let (consumed, item) = parser.next(&stream[at..given]);
            at += consumed;
            assert!(item != Item::Opaque(&[]));
            push(&mut seen, item);
            if item == Item::Need {
                assert!(given - at < RECORD_BYTES_MAX, "no place needs more than a record ahead");
                break;
            }
        }
        if given == stream.len() {
            break;
        }
        given = (given + piece).min(stream.len());
    }
    if at < stream.len() {
        push(&mut seen, Item::Opaque(&stream[at..]));
    }
    seen
}

/// The stream that the sink writes.
fn emitted(seen: &[Seen]) -> Vec<u8> {
    let mut emitter = Emitter::new();
    let mut stream = Vec::new();
    let mut out = [0xee; RECORD_BYTES_MAX];
    for item in seen {
        match item {
            Seen::Opaque(bytes) => stream.extend(bytes),
            Seen::Block { number, idstr, bytes } => emitter.block(*number, idstr, *bytes).unwrap(),
            Seen::Page { page, bytes } => {
                let bytes = match bytes.as_slice().try_into() {
                    Ok(bytes) => emitter.page(*page, bytes, &mut out),
                    Err(_) => emitter.zero(*page, &mut out),
                };
                stream.extend(&out[..bytes.unwrap()]);
            }
            Seen::Note(_) => {}
        }
    }
    stream
}

/// Block names are written only where needed, as QEMU does.
fn is_shortest(parts: &[Part]) -> bool {
    parts.iter().all(|part| !matches!(part, Part::Record { named: true, .. }))
}

/// What must be found of the pages of a stream: number and content, in order.
fn expected_pages(parts: &[Part]) -> Vec<(u64, Vec<u8>)> {
    let first = [0, 128, 192];
    let found = parts.iter().filter_map(|part| match part {
        Part::Record { block, page: at, fill: 0, .. } => Some((first[*block] + at, Vec::new())),
        Part::Record { block, page: at, fill, .. } => {
            Some((first[*block] + at, page(*fill).to_vec()))
        }
        _ => None,
    });
    found.collect()
}

fn pages(seen: &[Seen]) -> Vec<(u64, Vec<u8>)> {
    let found = seen.iter().filter_map(|item| match item {
        Seen::Page { page, bytes } => Some((*page, bytes.clone())),
        _ => None,
    });
    found.collect()
}

fn notes(seen: &[Seen]) -> Vec<StreamNote> {
    let found = seen.iter().filter_map(|item| match item {
        Seen::Note(note) => Some(*note),
        _ => None,
    });
    found.collect()
}

/// The block that a destination QEMU is at behind these items, by the records that an emitter
/// writes for them: the last name written.
fn block_behind(seen: &[Seen]) -> Option<Vec<u8>> {
    let (mut emitter, mut block) = (Emitter::new(), None);
    let mut out = [0; RECORD_BYTES_MAX];
    for item in seen {
        match item {
            Seen::Block { number, idstr, bytes } => emitter.block(*number, idstr, *bytes).unwrap(),
            Seen::Page { page, .. } => {
                emitter.zero(*page, &mut out).unwrap();
                if out[7] & 0x20 == 0 {
                    block = Some(out[9..][..usize::from(out[8])].to_vec());
                }
            }
            _ => {}
        }
    }
    block
}

fn pieces() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![1_usize..40, 1_usize..9000], 1..6)
}

/// The first bytes of a stream of QEMU 10.0 with machine type pc and a memory back end m0 of
/// 128 MiB, up to the first page's content.
const REAL_HEAD: &[u8] = b"QEVM\0\0\0\x03\x07\0\0\0\x0epc-i440fx-10.0\
    \x01\0\0\0\x01\x03ram\0\0\0\0\0\0\0\x04\0\0\0\0\x08\x08\x20\x04\
    \x02m0\0\0\0\0\x08\0\0\0\x14/rom@etc/acpi/tables\0\0\0\0\0\x02\0\0\
    \x07pc.bios\0\0\0\0\0\x04\0\0\x06pc.rom\0\0\0\0\0\x02\0\0\
    \x15/rom@etc/table-loader\0\0\0\0\0\0\x10\0\x12/rom@etc/acpi/rsdp\0\0\0\0\0\0\x10\0\
    \0\0\0\0\0\0\0\x10~\0\0\0\x01\x02\0\0\0\x01\0\0\0\0\0\0\0\x08\x02m0";

#[test]
fn the_head_of_a_real_stream_is_read() {
    let stream = [REAL_HEAD, &[0x53; PAGE_BYTES]].concat();
    let seen = parsed(&stream, &[stream.len()]);
    let blocks: Vec<_> = seen.iter().filter(|it| matches!(it, Seen::Block { .. })).collect();
    let block = |number: u16, idstr: &str, pages: u64| Seen::Block {
        number,
        idstr: idstr.as_bytes().to_vec(),
        bytes: pages * PAGE_BYTES as u64,
    };
    let expected = [
        block(0, "m0", 32_768),
        block(1, "/rom@etc/acpi/tables", 32),
        block(2, "pc.bios", 64),
        block(3, "pc.rom", 32),
        block(4, "/rom@etc/table-loader", 1),
        block(5, "/rom@etc/acpi/rsdp", 1),
    ];
    assert_eq!(blocks, expected.iter().collect::<Vec<_>>());
    assert_eq!(notes(&seen), [StreamNote::RamBytes(134_750_208)]);
    assert_eq!(pages(&seen), [(0, vec![0x53; PAGE_BYTES])]);
    assert_eq!(emitted(&seen), stream);
}

#[test]
fn configurations_that_change_the_format_make_the_stream_opaque() {
    let head = written(&[Part::Head, Part::Configuration(0)]);
    for (name, fields) in [
        ("configuration/capabilities", &b"\0\0\0\x01\x0fx-ignore-shared"[..]),
        ("configuration/target-page-bits", &[0, 0, 0, 13]),
        ("configuration/other", &[]),
    ] {
        let part = [b"\x05", &[name.len() as u8], name.as_bytes(), &[0, 0, 0, 1], fields].concat();
        let stream = [&head[..], &part].concat();
        let seen = parsed(&stream, &[7]);
        assert_eq!(
            seen,
            [
                Seen::Opaque(head.clone()),
                Seen::Note(StreamNote::Opaque(Trouble::Configuration.code())),
                Seen::Opaque(part),
            ],
            "{name}"
        );
    }
}

#[test]
fn block_lists_that_can_not_be_make_the_stream_opaque() {
    let word = |word: u64| word.to_be_bytes();
    let begun = written(&[Part::Head, Part::Section(1)]);
    let entry = |name: &[u8], bytes: u64| [&[name.len() as u8], name, &word(bytes)].concat();
    for (why, list) in [
        ("nothing listed", word(4).to_vec()),
        ("no name", [&word(0x1004)[..], &entry(b"", 0x1000)].concat()),
        ("more than in all", [&word(0x1004)[..], &entry(b"a", 0x2000)].concat()),
        ("part of a page", [&word(0x2004)[..], &entry(b"a", 0x1001)].concat()),
        ("a name twice", [&word(0x2004)[..], &entry(b"a", 0x1000).repeat(2)].concat()),
        ("nothing in entries without end", {
            let empty = (0..=BLOCKS_MAX).map(|number| entry(number.to_string().as_bytes(), 0));
            [word(0x1004).to_vec(), empty.collect::<Vec<_>>().concat()].concat()
        }),
    ] {
        let stream = [&begun[..], &list].concat();
        let seen = parsed(&stream, &[100]);
        assert_eq!(notes(&seen), [StreamNote::Opaque(Trouble::BlockList.code())], "{why}");
        assert_eq!(emitted(&seen), stream, "{why}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_valid_stream_is_found_page_by_page_however_it_is_cut(
        parts in whole(),
        cut in pieces(),
    ) {
        let stream = written(&parts);
        let seen = parsed(&stream, &cut);
        prop_assert_eq!(pages(&seen), expected_pages(&parts));
        let all = BLOCKS.iter().map(|(_, pages)| pages * PAGE_BYTES as u64).sum();
        prop_assert_eq!(notes(&seen), [StreamNote::RamBytes(all), StreamNote::RamEnded]);
        // The same items whatever the pieces.
        prop_assert_eq!(&seen, &parsed(&stream, &[stream.len()]));
        // What the sink writes means the same, and is the same where names are left out as usual.
        let again = emitted(&seen);
        prop_assert_eq!(&parsed(&again, &cut), &seen);
        prop_assert!(!is_shortest(&parts) || again == stream);
    }

    #[test]
    fn trouble_starts_at_the_first_byte_not_passed_on(
        parts in begun(),
        cut in pieces(),
        trouble in prop::sample::select(vec![
            (Trouble::Section, &[4, 0, 0, 0, 9, 5][..]),
            (Trouble::Section, &[2, 0, 0, 0, 9]),
            (Trouble::Section, &[1, 0, 0, 0, 9, 4, b'v', b'f', b'i', b'o']),
            (Trouble::Section, &[0]),
            (Trouble::Section, &[7]),
            (Trouble::Command, &[8, 0, 4, 0, 0]),
            (Trouble::Command, &[8, 0, 5, 0, 0]),
            (Trouble::Command, &[8, 0, 7, 0, 4]),
            (Trouble::Xbzrle, &[2, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0x60]),
            (Trouble::Multifd, &[2, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 2, 0]),
            (Trouble::Flags, &[2, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0x80]),
            (Trouble::Flags, &[2, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 1, 0]),
            (Trouble::Flags, &[2, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0x0a]),
            (Trouble::Flags, &[2, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0x00]),
            (Trouble::BlockList, &[2, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0x10, 4]),
            (Trouble::Record, &[2, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 2, 1, b'x', 0]),
            (Trouble::Record, &[2, 0, 0, 0, 2, 0, 0xff, 0, 0, 0, 0, 0, 8, 6, b'p', b'c',
                b'.', b'r', b'a', b'm', 0]),
        ]),
        rest in prop::collection::vec(any::<u8>(), 0..5000),
    ) {
        let (trouble, bytes) = trouble;
        let before = written(&parts);
        let stream = [&before, bytes, &rest].concat();
        let seen = parsed(&stream, &cut);
        prop_assert_eq!(notes(&seen)[1..].to_vec(), [StreamNote::Opaque(trouble.code())]);
        prop_assert_eq!(pages(&seen), expected_pages(&parts));
        let again = emitted(&seen);
        prop_assert!(again.ends_with(&[bytes, &rest].concat()));
        prop_assert!(!is_shortest(&parts) || again == stream);
    }

    #[test]
    fn any_bytes_are_carried_and_what_is_written_means_the_same(
        parts in whole(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in pieces(),
    ) {
        let mut stream = written(&parts);
        for (place, byte) in edits {
            let at = place.index(stream.len());
            stream[at] = byte;
        }
        let seen = parsed(&stream, &cut);
        prop_assert_eq!(&seen, &parsed(&stream, &[1 << 20]));
        prop_assert_eq!(&parsed(&emitted(&seen), &cut), &seen);
    }

    #[test]
    fn bytes_of_no_stream_are_carried_as_they_are(
        bytes in prop::collection::vec(any::<u8>(), 1..600),
        cut in pieces(),
    ) {
        prop_assume!(!b"QEVM".starts_with(&bytes[..bytes.len().min(4)]));
        let note = Seen::Note(StreamNote::Opaque(Trouble::NotQemu.code()));
        prop_assert_eq!(parsed(&bytes, &cut), [note, Seen::Opaque(bytes)]);
    }

    #[test]
    fn a_stop_from_outside_loses_and_doubles_nothing(
        parts in whole(),
        items in 0_usize..40,
    ) {
        prop_assume!(is_shortest(&parts));
        let stream = written(&parts);
        let (mut parser, mut seen, mut at) = (Parser::new(), Vec::new(), 0);
        for step in 0.. {
            if step == items {
                parser.stop(Trouble::Multifd);
            }
            let (consumed, item) = parser.next(&stream[at..]);
            at += consumed;
            push(&mut seen, item);
            if item == Item::Need {
                break;
            }
        }
        prop_assert_eq!(at, stream.len());
        prop_assert_eq!(emitted(&seen), stream);
    }

    /// The rule of the parser's header: records may be left out as long as the last one before
    /// opaque records is written, or is of the block that the emitter is at.
    #[test]
    fn records_left_out_by_the_rule_leave_the_loader_at_the_block_of_the_opaque_ones(
        parts in begun(),
        keep in prop::collection::vec(any::<bool>(), 1..20),
        block in 0..BLOCKS.len(),
    ) {
        let record = Part::Record { block, page: 0, fill: 1, named: false };
        // An XBZRLE record of the same block as the record before, and thus without its name.
        let opaque = Part::Bytes(vec![0, 0, 0, 0, 0, 0, 0, 0x60, 1]);
        let stream = written(&[&parts[..], &[Part::Section(2), record, opaque]].concat());
        let seen = parsed(&stream, &[stream.len()]);
        let last = seen.iter().rposition(|item| matches!(item, Seen::Page { .. })).unwrap();
        let mut keep = keep.into_iter().cycle();
        let mut kept = seen.clone();
        let mut index = 0;
        kept.retain(|item| {
            index += 1;
            !matches!(item, Seen::Page { .. }) || index - 1 == last || keep.next().unwrap()
        });
        prop_assert_eq!(block_behind(&kept), Some(BLOCKS[block].0.as_bytes().to_vec()));
    }
}
