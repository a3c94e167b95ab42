//! Writes the inputs that every fuzz run starts from: valid bytes of each kind, as the product
//! makes them.
//!
//! Run it when a format changes, from the root of the repository, and commit what changed:
//! `cargo run --manifest-path tools/fuzz/Cargo.toml --example seeds`
#![forbid(unsafe_code)]

use dwcp_codec::{ENCODED_BYTES_MAX, Encoder, EncoderConfig};
use dwcp_fuzz::control::{Read, framing_input};
use dwcp_fuzz::wire::PLACE;
use dwcp_proto::ids::{ChannelId, LinkEpoch, Position, Round, Sequence, SessionId, SessionNumber};
use dwcp_proto::session::resolve::RunAt;
use dwcp_proto::wire::frame::{Frame, HeldHashes, NackReason, StreamKind, StreamPart};
use dwcp_proto::wire::hello::{Hello, HostName};
use dwcp_proto::wire::keys::DirectionKey;
use dwcp_proto::wire::limits::{HELD_COUNTS_BYTES, HELD_HASH_BYTES, RECORD_HEADER_BYTES};
use dwcp_proto::wire::peer::{
    Code, Message, Outcome, PeerCodec, PeerCoding, PeerMessage, RegionName,
};
use dwcp_proto::wire::preface::StreamPreface;
use dwcp_proto::wire::record::{Sealer, StreamPlace};
use dwcp_proto::wire::token::{JournalId, LinkToken, PagesDigest, ResumeToken};
use dwcp_proto::wire::version::WireVersion;
use dwcp_proto::wire::vm::{FactsText, PagesBefore, PeerFinding, PeerFindings, VmOffer, VmTerms};
use std::path::Path;

fn main() -> std::io::Result<()> {
    frames_and_records()?;
    let hello = Hello::ours(HostName::cut("host-a"), [1; 16]);
    save("hello", "one", &hello.encode())?;
    let plain = hello.clone().with_plain_records().encode();
    save("hello", "plain-then-sealed", &[plain, hello.encode()].concat())?;
    for version in WireVersion::ALL {
        let StreamPlace { stream, incarnation, .. } = PLACE;
        let preface = StreamPreface { version, token: LinkToken([2; 16]), stream, incarnation };
        save("preface", &format!("v{version}"), &preface.encode())?;
    }
    for message in peer_messages() {
        let written = PeerCodec::encode(&message);
        save("peer_message", message.name(), &written)?;
        save("peer_message", &format!("{}-json", message.name()), &[b"=", &written[4..]].concat())?;
    }
    for (name, line) in dwcp_fuzz::control::example_lines() {
        save("control_request", &name, &line)?;
    }
    framing()?;
    qemu_streams()?;
    payloads()
}

fn save(target: &str, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let folder = Path::new("tools/fuzz/seeds").join(target);
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join(name), bytes)
}

/// Reads of the control socket: lines whole and in pieces, with descriptors, and beyond the bounds.
fn framing() -> std::io::Result<()> {
    let read = |bytes, descriptors| Read { bytes, descriptors };
    let cases: [(&str, u8, &[Read<'_>]); 5] = [
        ("whole", 40, &[read(b"{\"id\":1}\n", 0), read(b"{\"id\":2}\n\n{\"id\":3}\n", 0)]),
        ("pieces", 40, &[read(b"{\"id\"", 0), read(b":1}\n{\"i", 0), read(b"d\":2}\n", 0)]),
        ("descriptors", 40, &[read(b"{\"id\":1}\n{\"id\"", 2), read(b":2}\n", 1)]),
        ("too-long", 8, &[read(b"{\"id\":1}", 0), read(b"\n", 0)]),
        ("too-many", 40, &[read(b"{\"id\"", 3), read(b":1}\n", 3)]),
    ];
    for (name, bytes_max, reads) in cases {
        save("control_framing", name, &framing_input(bytes_max, reads))?;
    }
    Ok(())
}

fn frames_and_records() -> std::io::Result<()> {
    let session = SessionNumber(5);
    let sequence = Sequence(9);
    let (channel, position) = (ChannelId(1), Position(4));
    let part = |kind| StreamPart { session, channel, kind, sequence, position };
    // One hash, which begins with 0.
    let mut held = [3; HELD_COUNTS_BYTES + HELD_HASH_BYTES];
    held[..HELD_COUNTS_BYTES].fill(0);
    held[1] = 1;
    let hashes = HeldHashes::new(&held).expect("the counts are right");
    let kinds = [
        Frame::Pages { session, sequence, round: Round(1), payload: b"coded pages" },
        Frame::Ack { session, through: sequence },
        Frame::Nack { session, sequence, reason: NackReason::UnknownBase },
        Frame::Verify { session, digest: [4; 16], pages: 64 },
        Frame::Verified { session },
        Frame::VerifyFailed { session, page: 7 },
        Frame::Abort { session, code: 2 },
        Frame::Ping { stamp: 1 },
        Frame::Pong { stamp: 1 },
        Frame::Stream { part: part(StreamKind::Opaque), payload: b"as it is" },
        Frame::Stream { part: part(StreamKind::End), payload: b"" },
        Frame::Delivered { session, channel, position },
        Frame::Reply { session, channel, offset: 16, payload: b"answer" },
        Frame::ReplyAck { session, channel, offset: 16 },
        Frame::Retire,
        Frame::Held { session, chunk: 2, hashes },
    ];
    let mut sealer = Sealer::new(DirectionKey::Plain, PLACE);
    let mut stream = Vec::new();
    let mut row = Vec::new();
    for (index, frame) in kinds.iter().enumerate() {
        let mut bytes = vec![0; frame.encoded_bytes()];
        frame.encode_into(&mut bytes);
        save("frames", &format!("kind-{index}"), &bytes)?;
        save("record_open", &format!("kind-{index}"), &[&[0, 20, 1][..], &bytes].concat())?;
        let mut record = vec![0; RECORD_HEADER_BYTES + bytes.len()];
        record[RECORD_HEADER_BYTES..].copy_from_slice(&bytes);
        sealer.seal(&mut record, bytes.len()).expect("a new key seals");
        save("record_header", &format!("kind-{index}"), &record[..RECORD_HEADER_BYTES])?;
        stream.extend(record);
        row.extend(bytes);
    }
    save("frames", "row", &row)?;
    save("record_stream", "one-frame-each", &stream)
}

fn peer_messages() -> Vec<PeerMessage> {
    let session = SessionId([3; 16]);
    let number = SessionNumber(5);
    let (code, message) = (Code::cut("region_unknown"), Message::cut("no region is named so"));
    let (journal, resume) = (JournalId([6; 16]), ResumeToken([7; 16]));
    let before = Some(PagesBefore { session, digest: PagesDigest([8; 16]), pages: 3 });
    let terms = VmTerms {
        window_log: 24,
        pages_max: 9,
        base_pages: 5,
        undelivered_bytes_max: 1 << 20,
        before,
        held: Some(2),
    };
    let (name, facts) = (RegionName::cut("vm1"), FactsText::cut(r#"{"ram_bytes":1}"#));
    let offer = VmOffer { name, facts, coding: PeerCoding::Full, terms, paused: false };
    let finding =
        PeerFinding { code: code.clone(), message: message.clone(), cure: message.clone() };
    vec![
        PeerMessage::LinkOpen { epoch: LinkEpoch(1), lanes: 2, streams: 4 },
        PeerMessage::LinkAccept { token: LinkToken([2; 16]), lanes: 2, resume: Some(resume) },
        PeerMessage::LinkResume { epoch: LinkEpoch(1), token: resume, sessions: vec![session] },
        PeerMessage::LinkResumed { token: LinkToken([2; 16]), resume },
        PeerMessage::LinkRefuse { code: code.clone(), message: message.clone() },
        PeerMessage::SessionOpen {
            session,
            number,
            region: RegionName::cut("vm1"),
            pages: 262_144,
            coding: PeerCoding::Full,
        },
        PeerMessage::SessionAccept { session, number, journal, vm: Some(terms) },
        PeerMessage::SessionRefuse {
            session,
            number,
            code: code.clone(),
            message: message.clone(),
            findings: PeerFindings::cut([finding.clone()]),
        },
        PeerMessage::VmOpen { session, number, vm: Box::new(offer) },
        PeerMessage::CarryOpen { session, number, coding: PeerCoding::Full, terms },
        PeerMessage::Carried { session, channels: 3, frames: 7, digest: session },
        PeerMessage::VmWarnings { session, findings: PeerFindings::cut([finding]) },
        PeerMessage::ChannelOpen { session, channel: 1 },
        PeerMessage::Loaded { session, frames: 7, digest: session },
        PeerMessage::Resumed { session, at_unix_us: 9 },
        PeerMessage::Resolved { session, journal, run: RunAt::Sink },
        PeerMessage::SessionFailed { session, code: code.clone(), message: message.clone() },
        PeerMessage::Yield { session },
        PeerMessage::Committed { session },
        PeerMessage::Abort { session, code, message: message.clone() },
        PeerMessage::Query { session, journal },
        PeerMessage::Outcome { session, outcome: Outcome::NotCommitted },
        PeerMessage::Settled { session },
        PeerMessage::Ping { stamp: 1 },
        PeerMessage::Pong { stamp: 1 },
        PeerMessage::Goodbye { reason: message },
    ]
}

/// Short migration streams of a guest with two blocks. The byte before each chooses the pieces.
fn qemu_streams() -> std::io::Result<()> {
    let name = |name: &[u8]| [&[name.len() as u8], name].concat();
    let head = b"QEVM\0\0\0\x03\x07\0\0\0\x02pc".to_vec();
    let subsection = [b"\x05", &name(b"configuration/uuid")[..], &[0, 0, 0, 1], &[7; 16]].concat();
    let commands = b"\x08\0\x01\0\0\x08\0\x02\0\x04\0\0\0\0".to_vec();
    let start = [b"\x01\0\0\0\x02", &name(b"ram")[..], &[0, 0, 0, 0, 0, 0, 0, 4]].concat();
    let word = |word: u64| word.to_be_bytes().to_vec();
    let blocks =
        [word(0x4_0004), name(b"pc.ram"), word(0x3_0000), name(b"pc.bios"), word(0x1_0000)];
    let end = [word(0x10), b"\x7e\0\0\0\x02".to_vec()].concat();
    let begun = [head.clone(), commands, start, blocks.concat(), end.clone()].concat();
    let part = |kind: u8, body: &[u8]| [&[kind, 0, 0, 0, 2], body, &end].concat();
    let zero = [word(0x1002), name(b"pc.bios"), vec![0], word(0x2022), vec![0]].concat();
    let page = [word(0x8), name(b"pc.ram"), vec![9; 4096], word(0x1028), vec![8; 4096]].concat();
    let whole = [begun.clone(), part(2, &zero), part(3, &page), b"\x04devices".to_vec()].concat();
    let xbzrle = part(2, &[word(0x60), vec![1, 0, 2, 5, 0]].concat());
    save("qemu_stream", "head", &[&[0][..], &head, &subsection].concat())?;
    save("qemu_stream", "blocks", &[&[1][..], &begun].concat())?;
    save("qemu_stream", "zeros", &[&[2][..], &begun, &part(2, &zero), &part(3, &zero)].concat())?;
    save("qemu_stream", "xbzrle", &[&[3][..], &begun, &part(2, &zero), &xbzrle].concat())?;
    save("qemu_stream", "pages", &[&[200][..], &whole].concat())
}

/// Descriptions of extents for the round trip, and what they are coded to for the decoder.
fn payloads() -> std::io::Result<()> {
    let mut encoder = Encoder::new(EncoderConfig { zstd_level_max: 3 });
    let cases: [(&str, u64, &[u8]); 6] = [
        ("unchanged", 0b1, &[]),
        ("zero", 0b11, &[0, 0, 0, 0, 1, 0, 0, 0]),
        ("runs", 0b1111, &[0, 1, 3, 7, 1, 1, 9, 7, 2, 1, 30, 1]),
        ("prefix", 0b111, &[0, 3, 9, 40, 1, 3, 5, 30, 2, 3, 1, 50]),
        ("random", 0b1001, &[0, 2, 1, 1, 1, 2, 2, 2]),
        ("mixed", 0b1_1111_0111, &[0, 0, 0, 0, 1, 1, 5, 5, 2, 2, 3, 3, 3, 3, 7, 40]),
    ];
    for (name, mask, edits) in cases {
        save("codec_round_trip", name, &[&mask.to_le_bytes()[..], edits].concat())?;
        let mut payload = vec![0; ENCODED_BYTES_MAX];
        let bytes = dwcp_fuzz::codec::encode(&mut encoder, mask, edits, &mut payload);
        save("codec_decode", name, &payload[..bytes])?;
    }
    streams()
}

/// Descriptions of streams of batches over one long window, and what they are coded to.
fn streams() -> std::io::Result<()> {
    // Pieces of 40 bytes: a mask, then edits.
    let piece = |mask: u64, edits: &[u8]| {
        let mut piece = mask.to_le_bytes().to_vec();
        piece.extend_from_slice(edits);
        piece.resize(40, 0);
        piece
    };
    let text = piece(0b1000_1000, &[0, 3, 9, 40, 1, 3, 5, 30]);
    let mixed = piece(0b1_1111_0111, &[0, 0, 0, 0, 1, 1, 5, 5, 2, 2, 3, 3, 3, 3, 7, 40]);
    let cases: [(&str, Vec<u8>); 3] = [
        ("one", text.clone()),
        ("repeated", [text.clone(), text.clone(), text.clone()].concat()),
        ("mixed", [mixed.clone(), text, mixed].concat()),
    ];
    for (name, pieces) in cases {
        let mut stream = Vec::new();
        for (_, _, payload) in dwcp_fuzz::codec::encode_stream(&pieces) {
            stream.extend_from_slice(&(payload.len() as u16).to_le_bytes());
            stream.extend_from_slice(&payload);
        }
        save("codec_stream_round_trip", name, &pieces)?;
        save("codec_stream_decode", name, &stream)?;
    }
    Ok(())
}
