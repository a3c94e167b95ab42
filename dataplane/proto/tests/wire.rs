//! Properties of the wire: what is written is read back, what was altered is refused, and no bytes
//! whatever make a parser panic.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use dwcp_proto::ids::{
    ChannelId, Incarnation, Position, Round, Sequence, SessionId, SessionNumber, StreamId,
};
use dwcp_proto::negotiate::agree;
use dwcp_proto::wire::frame::{
    Frame, HeldHashes, NackReason, StreamKind, StreamPart, write_pages_header, write_stream_header,
};
use dwcp_proto::wire::hello::{Hello, HostName};
use dwcp_proto::wire::limits::{
    CHANNELS_MAX, HELLO_BYTES_MAX, PAGES_FRAME_HEADER_BYTES, PAGES_PAYLOAD_BYTES_MAX,
    RECORD_BYTES_MAX, RECORD_HEADER_BYTES, REPLY_BYTES_MAX, REPLY_FRAME_HEADER_BYTES,
    STREAM_FRAME_HEADER_BYTES, STREAM_PAYLOAD_BYTES_MAX, held_bytes,
};
use dwcp_proto::wire::peer::{Code, Message, PeerCodec, PeerCoding, PeerMessage, RegionName};
use dwcp_proto::wire::preface::StreamPreface;
use dwcp_proto::wire::reader::{FrameIter, next_record};
use dwcp_proto::wire::record::{DirectionKey, Opener, RecordError, Sealer, StreamPlace};
use dwcp_proto::wire::version::WireVersion;
use dwcp_proto::wire::vm::{FactsText, PeerFinding, PeerFindings, VmOffer, VmTerms};
use proptest::prelude::*;

const VERSION: WireVersion = WireVersion::HIGHEST;
const PLACE: StreamPlace =
    StreamPlace { version: VERSION, stream: StreamId(4), incarnation: Incarnation(1) };

fn key() -> DirectionKey {
    DirectionKey::from_exported(&[0x42; 44])
}

fn sealer() -> Sealer {
    Sealer::new(key(), PLACE)
}

fn opener() -> Opener {
    Opener::new(key(), PLACE)
}

/// A record with one frame.
fn seal(sealer: &mut Sealer, frame: Frame<'_>) -> Vec<u8> {
    let mut buf = vec![0; frame.encoded_bytes() + 32];
    let plain_bytes = frame.encode_into(&mut buf[RECORD_HEADER_BYTES..]);
    let bytes = sealer.seal(&mut buf, plain_bytes).unwrap();
    buf.truncate(bytes);
    buf
}

fn ping(stamp: u64) -> Frame<'static> {
    Frame::Ping { stamp }
}

fn code(result: Result<&[u8], RecordError>) -> &'static str {
    result.unwrap_err().code()
}

#[test]
fn a_whole_batch_fits_one_record_to_the_byte() {
    let mut buf = vec![7; RECORD_BYTES_MAX];
    let at = RECORD_HEADER_BYTES;
    let part = part(StreamKind::Pages, Sequence(1), 5);
    let head = write_stream_header(&mut buf[at..], part, STREAM_PAYLOAD_BYTES_MAX);
    assert_eq!(head, STREAM_FRAME_HEADER_BYTES);
    let bytes = sealer().seal(&mut buf, head + STREAM_PAYLOAD_BYTES_MAX).unwrap();
    assert_eq!(bytes, RECORD_BYTES_MAX);
    assert_eq!(next_record(&buf), Ok(Some(bytes)));
    let mut opener = opener();
    let plain = opener.open(&mut buf).unwrap();
    let frame = FrameIter::new(VERSION, plain).unwrap().next().unwrap();
    assert_eq!(frame, Frame::Stream { part, payload: &[7; STREAM_PAYLOAD_BYTES_MAX] });
}

#[test]
fn a_whole_extent_fits_one_record() {
    let mut buf = vec![7; RECORD_BYTES_MAX];
    let at = RECORD_HEADER_BYTES;
    let (session, sequence, round) = (SessionNumber(1), Sequence(1), Round(1));
    let head =
        write_pages_header(&mut buf[at..], session, sequence, round, PAGES_PAYLOAD_BYTES_MAX);
    assert_eq!(head, PAGES_FRAME_HEADER_BYTES);
    let bytes = sealer().seal(&mut buf, head + PAGES_PAYLOAD_BYTES_MAX).unwrap();
    let mut opener = opener();
    let plain = opener.open(&mut buf[..bytes]).unwrap();
    let frame = FrameIter::new(VERSION, plain).unwrap().next().unwrap();
    let payload = &[7; PAGES_PAYLOAD_BYTES_MAX][..];
    assert_eq!(frame, Frame::Pages { session, sequence, round, payload });
}

fn part(kind: StreamKind, sequence: Sequence, position: u64) -> StreamPart {
    let (session, channel) = (SessionNumber(1), ChannelId(CHANNELS_MAX - 1));
    StreamPart { session, channel, kind, sequence, position: Position(position) }
}

#[test]
fn a_frame_of_a_migration_stream_is_read_strictly() {
    let opaque = Frame::Stream { part: part(StreamKind::Opaque, Sequence(1), 0), payload: b"ab" };
    let end = Frame::Stream { part: part(StreamKind::End, Sequence(1), 0), payload: b"" };
    let (session, channel) = (SessionNumber(1), ChannelId(0));
    let reply = Frame::Reply { session, channel, offset: 3, payload: b"" };
    let read = |frame: Frame<'_>, changes: &[(usize, u8)]| {
        let mut buf = vec![0; frame.encoded_bytes()];
        frame.encode_into(&mut buf);
        changes.iter().for_each(|&(at, byte)| buf[at] = byte);
        Frame::decode(VERSION, &buf).map(|_| ()).map_err(|error| error.code())
    };
    assert_eq!(read(opaque, &[]), Ok(()));
    assert_eq!(read(end, &[]), Ok(()));
    assert_eq!(read(reply, &[]), Ok(()), "the end of the replies");
    assert_eq!(read(opaque, &[(14, 4)]), Err("wire_frame_length"), "an end with bytes");
    assert_eq!(read(end, &[(14, 1)]), Err("wire_frame_length"), "bytes that are none");
    assert_eq!(read(opaque, &[(14, 5)]), Err("wire_unknown_value"));
    assert_eq!(read(opaque, &[(15, 1)]), Err("wire_reserved_not_zero"));
    assert_eq!(read(opaque, &[(13, CHANNELS_MAX as u8)]), Err("wire_out_of_range"));
    assert_eq!(read(opaque, &[(24, 0x80)]), Err("wire_out_of_range"), "a position of 64 bits");
    assert_eq!(read(reply, &[(15, 1)]), Err("wire_reserved_not_zero"));
    let mut long = vec![0; REPLY_FRAME_HEADER_BYTES + REPLY_BYTES_MAX + 1];
    reply.encode_into(&mut long);
    long[4..8].copy_from_slice(&(16 + REPLY_BYTES_MAX as u32 + 1).to_be_bytes());
    assert_eq!(Frame::decode(VERSION, &long).unwrap_err().code(), "wire_frame_length");
}

#[test]
fn what_is_undelivered_counts_in_whole_units() {
    let counted = [0, 1, 4096, 4097, STREAM_PAYLOAD_BYTES_MAX].map(held_bytes);
    assert_eq!(counted, [4096, 4096, 4096, 8192, STREAM_PAYLOAD_BYTES_MAX]);
}

#[test]
fn a_record_opens_once_and_only_in_its_place() {
    let mut sealer = sealer();
    let records: Vec<_> = (0..3).map(|i| seal(&mut sealer, ping(i))).collect();
    let mut opener = opener();
    assert_eq!(code(opener.open(&mut records[1].clone())), "record_out_of_place");
    opener.open(&mut records[0].clone()).unwrap();
    assert_eq!(code(opener.open(&mut records[0].clone())), "record_replayed");
    opener.open(&mut records[1].clone()).unwrap();
    let mut short = records[2].clone();
    short.pop();
    assert_eq!(code(opener.open(&mut short)), "record_length");
    assert_eq!(code(opener.open(&mut [])), "wire_truncated");
    opener.open(&mut records[2].clone()).unwrap();
}

#[test]
fn a_record_opens_on_its_own_stream_and_incarnation_only() {
    let record = seal(&mut sealer(), ping(1));
    let mut other = Opener::new(key(), StreamPlace { stream: StreamId(5), ..PLACE });
    assert_eq!(code(other.open(&mut record.clone())), "record_wrong_stream");
    let mut other = Opener::new(key(), StreamPlace { incarnation: Incarnation(2), ..PLACE });
    assert_eq!(code(other.open(&mut record.clone())), "record_wrong_stream");
    let mut other = Opener::new(DirectionKey::from_exported(&[0x43; 44]), PLACE);
    assert_eq!(code(other.open(&mut record.clone())), "record_altered");
    let mut other = Opener::new(key(), StreamPlace { version: WireVersion::V1, ..PLACE });
    assert_eq!(code(other.open(&mut record.clone())), "wire_bad_version");
}

#[test]
fn plain_and_sealed_never_mix() {
    let mut plain_sealer = Sealer::new(DirectionKey::Plain, PLACE);
    let mut plain_opener = Opener::new(DirectionKey::Plain, PLACE);
    let plain = seal(&mut plain_sealer, ping(1));
    assert_eq!(code(opener().open(&mut plain.clone())), "record_plain_refused");
    let sealed = seal(&mut sealer(), ping(1));
    assert_eq!(code(plain_opener.open(&mut sealed.clone())), "record_sealed_unexpected");
    let mut plain = plain;
    let opened = plain_opener.open(&mut plain).unwrap();
    assert_eq!(FrameIter::new(VERSION, opened).unwrap().next(), Some(ping(1)));
}

#[test]
fn a_record_with_a_bad_frame_is_refused_as_a_whole() {
    let mut plain = [0; 64];
    let bytes = ping(1).encode_into(&mut plain);
    assert_eq!(FrameIter::new(VERSION, &plain[..0]).unwrap_err().code(), "wire_record_too_short");
    assert_eq!(FrameIter::new(VERSION, &plain[..bytes + 1]).unwrap_err().code(), "wire_truncated");
    assert_eq!(
        FrameIter::new(VERSION, &plain[..bytes + 8]).unwrap_err().code(),
        "wire_unknown_value"
    );
    plain[1] = 1;
    assert_eq!(
        FrameIter::new(VERSION, &plain[..bytes]).unwrap_err().code(),
        "wire_reserved_not_zero"
    );
}

fn hello(instance: u8) -> Hello {
    Hello::ours(HostName::cut("a"), [instance; 16])
}

#[test]
fn peer_messages_are_bounded_and_known() {
    let decode = |json: &str| {
        let mut bytes = u32::try_from(json.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend(json.as_bytes());
        PeerCodec::decode(&bytes).map(|found| found.unwrap().0).map_err(|error| error.code())
    };
    assert_eq!(decode(r#"{"type":"ping","stamp":1}"#), Ok(PeerMessage::Ping { stamp: 1 }));
    let malformed = Err("peer_message_malformed");
    assert_eq!(decode(r#"{"type":"ping","stamp":1,"more":2}"#), malformed);
    assert_eq!(decode(r#"{"type":"dance"}"#), malformed);
    assert_eq!(decode(r#"{"type":"yield","session":"zz"}"#), malformed);
    assert_eq!(decode(""), malformed);
    let long = "x".repeat(513);
    assert_eq!(decode(&format!(r#"{{"type":"goodbye","reason":"{long}"}}"#)), malformed);
    assert_eq!(decode(r#"{"type":"goodbye","reason":"a\u001bb"}"#), malformed);
    let range = Err("peer_message_out_of_range");
    assert_eq!(decode(r#"{"type":"link_open","epoch":1,"lanes":4,"streams":2}"#), range);
    assert_eq!(
        decode(r#"{"type":"link_accept","token":"00000000000000000000000000000000","lanes":0}"#),
        range
    );
    let error = PeerCodec::decode(&[0, 1, 0, 1]).unwrap_err();
    assert_eq!(error.code(), "peer_message_too_long", "before any of it was read");
}

#[test]
fn what_is_said_of_a_virtual_machine_is_bounded() {
    let decode = |json: String| {
        let mut bytes = u32::try_from(json.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend(json.as_bytes());
        PeerCodec::decode(&bytes).map(|found| found.unwrap().0).map_err(|error| error.code())
    };
    let session = "00".repeat(16);
    let open = |facts: &str, terms: &str| {
        decode(format!(
            r#"{{"type":"vm_open","session":"{session}","number":1,"vm":{{"name":"vm",
            "facts":"{facts}","coding":"full","terms":{terms}}}}}"#
        ))
    };
    let good = r#"{"window_log":0,"pages_max":1,"base_pages":1,"undelivered_bytes_max":1}"#;
    assert!(open(&"x".repeat(24 << 10), good).is_ok());
    assert_eq!(open(&"x".repeat((24 << 10) + 1), good), Err("peer_message_malformed"));
    for terms in [
        r#"{"window_log":28,"pages_max":1,"base_pages":1,"undelivered_bytes_max":1}"#,
        r#"{"window_log":9,"pages_max":1,"base_pages":1,"undelivered_bytes_max":1}"#,
        r#"{"window_log":0,"pages_max":0,"base_pages":0,"undelivered_bytes_max":1}"#,
        r#"{"window_log":0,"pages_max":1,"base_pages":2,"undelivered_bytes_max":1}"#,
        r#"{"window_log":0,"pages_max":1,"base_pages":1,"undelivered_bytes_max":0}"#,
        r#"{"window_log":0,"pages_max":9,"base_pages":1,"undelivered_bytes_max":1,"held":0}"#,
        r#"{"window_log":0,"pages_max":9,"base_pages":1,"undelivered_bytes_max":1,"held":2}"#,
    ] {
        assert_eq!(open("", terms), Err("peer_message_out_of_range"), "{terms}");
    }
    for channel in [0, 32, 65_535] {
        let json =
            format!(r#"{{"type":"channel_open","session":"{session}","channel":{channel}}}"#);
        assert_eq!(decode(json), Err("peer_message_out_of_range"));
    }
    let finding = r#"{"code":"a","message":"b","cure":"c"}"#;
    let refuse = |count: usize| {
        let findings = vec![finding; count].join(",");
        decode(format!(
            r#"{{"type":"session_refuse","session":"{session}","number":1,"code":"a",
            "message":"b","findings":[{findings}]}}"#
        ))
    };
    assert!(refuse(16).is_ok());
    assert_eq!(refuse(17), Err("peer_message_malformed"));
    let warn = |count: usize| {
        let findings = vec![finding; count].join(",");
        decode(format!(r#"{{"type":"vm_warnings","session":"{session}","findings":[{findings}]}}"#))
    };
    assert!(warn(16).is_ok());
    assert_eq!(warn(17), Err("peer_message_malformed"));
}

#[test]
fn the_longest_messages_of_a_virtual_machine_fit() {
    // Quotes are doubled by JSON: nothing that a text may hold takes more.
    let long = |bytes: usize| "\"".repeat(bytes);
    let (session, number) = (SessionId([0xff; 16]), SessionNumber(u32::MAX));
    let terms = VmTerms {
        window_log: 24,
        pages_max: 1 << 36,
        base_pages: 1 << 36,
        undelivered_bytes_max: 1 << 32,
        before: None,
        held: None,
    };
    let (name, facts) = (RegionName::cut(&long(200)), FactsText::cut(&long(1 << 20)));
    let offer = VmOffer { name, facts, coding: PeerCoding::Passthrough, terms, paused: false };
    let open = PeerMessage::VmOpen { session, number, vm: Box::new(offer) };
    let text = Message::cut(&long(9999));
    let finding =
        PeerFinding { code: Code::cut(&long(99)), message: text.clone(), cure: text.clone() };
    let findings = PeerFindings::cut(std::iter::repeat_n(finding, 99));
    let code = Code::cut(&long(99));
    let refuse = PeerMessage::SessionRefuse { session, number, code, message: text, findings };
    for message in [open, refuse] {
        let bytes = PeerCodec::encode(&message);
        assert_eq!(PeerCodec::decode(&bytes).unwrap(), Some((message, bytes.len())));
    }
}

#[test]
fn a_link_token_is_never_printed() {
    let token = dwcp_proto::wire::token::LinkToken([0xee; 16]);
    let text = format!("{:?}", PeerMessage::LinkAccept { token, lanes: 1, resume: None });
    assert!(!text.contains("ee") && !text.contains("238"), "{text}");
}

fn any_frame() -> impl Strategy<Value = (u8, u32, u64, [u8; 16], Vec<u8>)> {
    let sequence = 1..=u64::MAX / 2;
    let payload = prop::collection::vec(any::<u8>(), 0..300);
    (0..18u8, any::<u32>(), sequence, any::<[u8; 16]>(), payload)
}

/// A hash that begins with 7.
fn held() -> HeldHashes<'static> {
    const PAYLOAD: [u8; 519] = {
        let mut bytes = [9; 519];
        let mut at = 0;
        while at < 512 {
            bytes[at] = (at == 15) as u8;
            at += 1;
        }
        bytes
    };
    HeldHashes::new(&PAYLOAD).unwrap()
}

fn frame(
    (kind, session, number, digest, payload): &(u8, u32, u64, [u8; 16], Vec<u8>),
) -> Frame<'_> {
    let session = SessionNumber(*session);
    let sequence = Sequence(*number);
    let (channel, offset) = (ChannelId(u16::from(digest[0]) % CHANNELS_MAX), *number);
    let stream = |kind, payload| {
        let position = Position(number / 3);
        Frame::Stream { part: StreamPart { session, channel, kind, sequence, position }, payload }
    };
    match kind {
        0 => Frame::Pages { session, sequence, round: Round(digest[0].into()), payload },
        1 => Frame::Ack { session, through: sequence },
        2 => Frame::Nack { session, sequence, reason: NackReason::BaseDiffers },
        3 => Frame::Verify { session, digest: *digest, pages: *number },
        4 => Frame::Verified { session },
        5 => Frame::VerifyFailed { session, page: *number },
        6 => Frame::Abort { session, code: digest[0].into() },
        7 => Frame::Ping { stamp: *number },
        8 if !payload.is_empty() => stream(StreamKind::Opaque, payload),
        9 if !payload.is_empty() => stream(StreamKind::Pages, payload),
        10 if !payload.is_empty() => stream(StreamKind::Block, payload),
        8..=11 => stream(StreamKind::End, &[]),
        12 => Frame::Delivered { session, channel, position: Position(*number) },
        13 => Frame::Reply { session, channel, offset, payload },
        14 => Frame::ReplyAck { session, channel, offset },
        15 => Frame::Retire,
        16 => Frame::Held { session, chunk: digest[0].into(), hashes: held() },
        _ => Frame::Pong { stamp: *number },
    }
}

proptest! {
    #[test]
    fn frames_survive_sealing_in_one_record(specs in prop::collection::vec(any_frame(), 1..6)) {
        let mut buf = vec![0; 4096];
        let mut at = RECORD_HEADER_BYTES;
        for spec in &specs {
            at += frame(spec).encode_into(&mut buf[at..]);
        }
        let bytes = sealer().seal(&mut buf, at - RECORD_HEADER_BYTES).unwrap();
        let mut opener = opener();
        let plain = opener.open(&mut buf[..bytes]).unwrap();
        let frames: Vec<_> = FrameIter::new(VERSION, plain).unwrap().collect();
        prop_assert_eq!(frames, specs.iter().map(frame).collect::<Vec<_>>());
    }

    #[test]
    fn any_altered_byte_of_a_record_is_refused(
        spec in any_frame(), at in any::<prop::sample::Index>(), flip in 1..=255u8,
    ) {
        let mut record = seal(&mut sealer(), frame(&spec));
        let at = at.index(record.len());
        record[at] ^= flip;
        prop_assert!(opener().open(&mut record).is_err());
    }

    #[test]
    fn records_are_found_however_the_bytes_arrive(
        specs in prop::collection::vec(any_frame(), 1..6), cut in 1..64usize,
    ) {
        let mut sealer = sealer();
        let wire: Vec<u8> = specs.iter().flat_map(|s| seal(&mut sealer, frame(s))).collect();
        let (mut opener, mut buffer, mut found) = (opener(), Vec::new(), 0);
        for part in wire.chunks(cut) {
            buffer.extend_from_slice(part);
            while let Some(bytes) = next_record(&buffer).unwrap() {
                let plain = opener.open(&mut buffer[..bytes]).unwrap();
                let frames: Vec<_> = FrameIter::new(VERSION, plain).unwrap().collect();
                prop_assert_eq!(frames, vec![frame(&specs[found])]);
                buffer.drain(..bytes);
                found += 1;
            }
        }
        prop_assert_eq!((found, buffer.len()), (specs.len(), 0));
    }

    #[test]
    fn no_bytes_make_a_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = next_record(&bytes);
        let _ = FrameIter::new(VERSION, &bytes);
        let _ = Hello::decode(&bytes);
        let _ = StreamPreface::decode(&bytes);
        let _ = PeerCodec::decode(&bytes);
        let _ = opener().open(&mut bytes.clone());
    }

    #[test]
    fn a_frame_is_read_only_as_it_would_be_written(
        spec in any_frame(), at in any::<prop::sample::Index>(), flip in any::<u8>(),
    ) {
        let mut buf = vec![0; 1024];
        let bytes = frame(&spec).encode_into(&mut buf);
        buf[at.index(bytes)] ^= flip;
        if let Ok((frame, used)) = Frame::decode(VERSION, &buf[..bytes]) {
            let mut again = vec![0; 1024];
            prop_assert_eq!(frame.encode_into(&mut again), used);
            prop_assert_eq!(&again[..used], &buf[..used]);
        }
    }

    #[test]
    fn a_damaged_hello_is_read_again_as_it_says_or_refused(
        at in 0..65usize, flip in any::<u8>(), cut in 0..65usize,
    ) {
        let mut bytes = hello(1).encode();
        prop_assert!(bytes.len() <= HELLO_BYTES_MAX);
        prop_assert_eq!(Hello::decode(&bytes[..cut.min(bytes.len() - 1)]), Ok(None));
        bytes[at] ^= flip;
        if let Ok(Some((hello, used))) = Hello::decode(&bytes) {
            prop_assert_eq!(&hello.encode()[6..], &bytes[6..used][..hello.encode().len() - 6]);
        }
    }

    #[test]
    fn both_ends_agree_alike(
        a in (1..4u16, 0..4u16, 0..8u64, 1..9u16), b in (1..4u16, 0..4u16, 0..8u64, 1..9u16),
    ) {
        let build = |instance, (low, more, features, streams): (u16, u16, u64, u16)| Hello {
            version_lowest: low,
            version_highest: low + more,
            features_offered: features | 1,
            features_required: features & 2,
            streams_max: streams,
            ..hello(instance)
        };
        let (a, b) = (build(1, a), build(2, b));
        let (here, there) = (agree(&a, &b), agree(&b, &a));
        prop_assert_eq!(here.is_ok(), there.is_ok());
        if let (Ok(here), Ok(there)) = (here, there) {
            prop_assert_eq!(here, there);
        }
        let session = SessionId([1; 16]);
        let yielded = PeerMessage::Yield { session };
        prop_assert_eq!(yielded.session(), Some(session));
    }
}
