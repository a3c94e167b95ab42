//! Targets for the migration stream that a VMM writes.

use dwcp_dataplane::attach::qemu::{EmitError, Emitter, Item, Parser, RECORD_BYTES_MAX};
use dwcp_dataplane::port::StreamNote;

/// An item that owns its bytes; opaque neighbours are one.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Opaque(Vec<u8>),
    Zero(u64),
    Page(u64, Vec<u8>),
    Block(u16, Vec<u8>, u64),
    Note(StreamNote),
}

/// Any bytes, in pieces whose size the first byte chooses, give the same items as in one piece;
/// what the sink writes for them is read as the same items again.
pub fn stream(data: &[u8]) {
    let Some((choice, stream)) = data.split_first() else { return };
    let found = parsed(stream, stream.len().max(1));
    assert_eq!(found, parsed(stream, 1 + 17 * usize::from(*choice)), "pieces don't matter");
    let again = emitted(&found).expect("an emitter takes what a parser found");
    assert!(again.len() <= stream.len(), "no name is written that was not there");
    assert_eq!(found, parsed(&again, stream.len().max(1)), "the same is read again");
}

fn parsed(stream: &[u8], piece: usize) -> Vec<Found> {
    let (mut found, mut parser, mut at) = (Vec::new(), Parser::new(), 0);
    for given in (0..stream.len()).step_by(piece).skip(1).chain([stream.len()]) {
        loop {
            let (consumed, item) = parser.next(&stream[at..given]);
            at += consumed;
            match item {
                Item::Need => break,
                Item::Opaque(bytes) => push_opaque(&mut found, bytes),
                Item::Zero { page } => found.push(Found::Zero(page)),
                Item::Page { page, bytes } => found.push(Found::Page(page, bytes.to_vec())),
                Item::Block { number, idstr, bytes } => {
                    found.push(Found::Block(number, idstr.to_vec(), bytes));
                }
                Item::Note(note) => found.push(Found::Note(note)),
            }
        }
        assert!(given - at < RECORD_BYTES_MAX, "no place needs more than a record ahead");
    }
    push_opaque(&mut found, &stream[at..]);
    found
}

fn push_opaque(found: &mut Vec<Found>, bytes: &[u8]) {
    match found.last_mut() {
        _ if bytes.is_empty() => {}
        Some(Found::Opaque(before)) => before.extend(bytes),
        _ => found.push(Found::Opaque(bytes.to_vec())),
    }
}

fn emitted(found: &[Found]) -> Result<Vec<u8>, EmitError> {
    let (mut emitter, mut stream) = (Emitter::new(), Vec::new());
    let mut out = [0; RECORD_BYTES_MAX];
    for item in found {
        let bytes = match item {
            Found::Opaque(bytes) => {
                stream.extend(bytes);
                0
            }
            Found::Zero(page) => emitter.zero(*page, &mut out)?,
            Found::Page(page, bytes) => {
                let bytes = bytes.as_slice().try_into().expect("a whole page");
                emitter.page(*page, bytes, &mut out)?
            }
            Found::Block(number, idstr, bytes) => {
                emitter.block(*number, idstr, *bytes)?;
                0
            }
            Found::Note(_) => 0,
        };
        stream.extend(&out[..bytes]);
    }
    Ok(stream)
}
