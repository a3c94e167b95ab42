//! The bytes of each version, pinned. `golden/v1.txt`, `golden/v2.txt` .. hold one layout per line:
//! its name and its bytes.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use dwcp_proto::ids::{
    ChannelId, Incarnation, LinkEpoch, Position, Round, Sequence, SessionId, SessionNumber,
    StreamId,
};
use dwcp_proto::session::resolve::RunAt;
use dwcp_proto::wire::frame::{Frame, HeldHashes, NackReason, StreamKind, StreamPart};
use dwcp_proto::wire::hello::{Hello, HostName};
use dwcp_proto::wire::keys::{Direction, key_context, nonce};
use dwcp_proto::wire::peer::{
    Code, Message, Outcome, PeerCodec, PeerCoding, PeerMessage, RegionName,
};
use dwcp_proto::wire::preface::StreamPreface;
use dwcp_proto::wire::record::{DirectionKey, Opener, Sealer, StreamPlace};
use dwcp_proto::wire::token::{JournalId, LinkToken, PagesDigest, ResumeToken};
use dwcp_proto::wire::version::WireVersion;
use dwcp_proto::wire::vm::{FactsText, PagesBefore, PeerFinding, PeerFindings, VmOffer, VmTerms};
use std::fmt::Write;

/// The layouts of each version.
const GOLDEN: [(WireVersion, &str); 2] = [
    (WireVersion::V1, include_str!("../golden/v1.txt")),
    (WireVersion::V2, include_str!("../golden/v2.txt")),
];
const SESSION: SessionId = SessionId([0x11; 16]);
const NUMBER: SessionNumber = SessionNumber(0x0203_0405);

/// What a program says whose highest version it is.
fn hello(version: WireVersion) -> Hello {
    let mut instance = [0; 16];
    instance.iter_mut().zip(0xa0..).for_each(|(byte, value)| *byte = value);
    Hello::ours(HostName::new("host-a.example").unwrap(), instance).of_version(version)
}

fn preface(version: WireVersion) -> StreamPreface {
    let (stream, incarnation) = (StreamId(0x0102), Incarnation(0x0304_0506));
    StreamPreface { version, token: LinkToken([0x77; 16]), stream, incarnation }
}

fn frames(version: WireVersion) -> Vec<(&'static str, Frame<'static>)> {
    let later: &[(&str, Frame<'_>)] = match version {
        WireVersion::V1 => &[],
        WireVersion::V2 => &[
            ("retire", Frame::Retire),
            ("held", Frame::Held { session: NUMBER, chunk: 0x0102_0304, hashes: held() }),
        ],
    };
    [frames_of_the_first(), later.to_vec()].concat()
}

/// Two hashes, one that begins with 1 and one with 255.
fn held() -> HeldHashes<'static> {
    const PAYLOAD: [u8; 526] = {
        let mut bytes = [0; 526];
        (bytes[3], bytes[511]) = (1, 1);
        let mut at = 512;
        while at < 526 {
            bytes[at] = at as u8;
            at += 1;
        }
        bytes
    };
    HeldHashes::new(&PAYLOAD).unwrap()
}

fn frames_of_the_first() -> Vec<(&'static str, Frame<'static>)> {
    let session = NUMBER;
    let sequence = Sequence(0x0102_0304_0506_0708);
    vec![
        ("pages", Frame::Pages { session, sequence, round: Round(3), payload: b"payload" }),
        ("ack", Frame::Ack { session, through: sequence }),
        ("nack", Frame::Nack { session, sequence, reason: NackReason::UnknownBase }),
        ("nack_base", Frame::Nack { session, sequence, reason: NackReason::BaseDiffers }),
        ("verify", Frame::Verify { session, digest: [0x22; 16], pages: 64 }),
        ("verified", Frame::Verified { session }),
        ("verify_failed", Frame::VerifyFailed { session, page: 9 }),
        ("abort", Frame::Abort { session, code: 0x0102 }),
        ("ping", Frame::Ping { stamp: 0x1122_3344_5566_7788 }),
        ("pong", Frame::Pong { stamp: 0x1122_3344_5566_7788 }),
        ("stream_opaque", stream(StreamKind::Opaque, b"payload")),
        ("stream_pages", stream(StreamKind::Pages, b"payload")),
        ("stream_block", stream(StreamKind::Block, b"payload")),
        ("stream_end", stream(StreamKind::End, b"")),
        ("delivered", Frame::Delivered { session, channel: CHANNEL, position: POSITION }),
        ("reply", Frame::Reply { session, channel: CHANNEL, offset: 16, payload: b"payload" }),
        ("reply_ack", Frame::ReplyAck { session, channel: CHANNEL, offset: 16 }),
    ]
}

const CHANNEL: ChannelId = ChannelId(0x0011);
const POSITION: Position = Position(0x0807_0605_0403_0201);

fn stream(kind: StreamKind, payload: &'static [u8]) -> Frame<'static> {
    let sequence = Sequence(0x0102_0304_0506_0708);
    let part = StreamPart { session: NUMBER, channel: CHANNEL, kind, sequence, position: POSITION };
    Frame::Stream { part, payload }
}

fn messages() -> Vec<PeerMessage> {
    let (session, number) = (SESSION, NUMBER);
    let code = || Code::new("some_code").unwrap();
    let message = || Message::new("What is wrong.").unwrap();
    let (journal, resume) = (JournalId([0x33; 16]), ResumeToken([0x66; 16]));
    let region = RegionName::new("vm-1").unwrap();
    let coding = PeerCoding::Full;
    let terms = VmTerms {
        window_log: 24,
        pages_max: 262_144,
        base_pages: 4096,
        undelivered_bytes_max: 1 << 26,
        before: None,
        held: None,
    };
    let name = RegionName::new("vm-1").unwrap();
    let facts = FactsText::new(r#"{"ram_bytes":1}"#).unwrap();
    let offer = VmOffer { name, facts, coding, terms, paused: false };
    let finding = PeerFinding { code: code(), message: message(), cure: message() };
    let refuse = |findings| PeerMessage::SessionRefuse {
        session,
        number,
        code: code(),
        message: message(),
        findings,
    };
    let outcome = |outcome| PeerMessage::Outcome { session, outcome };
    vec![
        PeerMessage::LinkOpen { epoch: LinkEpoch(5), lanes: 2, streams: 8 },
        PeerMessage::LinkAccept { token: LinkToken([0x44; 16]), lanes: 2, resume: None },
        PeerMessage::LinkRefuse { code: code(), message: message() },
        PeerMessage::SessionOpen { session, number, region, pages: 262_144, coding },
        PeerMessage::SessionAccept { session, number, journal, vm: None },
        refuse(PeerFindings::default()),
        PeerMessage::SessionFailed { session, code: code(), message: message() },
        PeerMessage::Yield { session },
        PeerMessage::Committed { session },
        PeerMessage::Abort { session, code: code(), message: message() },
        PeerMessage::Query { session, journal },
        outcome(Outcome::Committed),
        outcome(Outcome::NotCommitted),
        outcome(Outcome::Unknown),
        PeerMessage::Settled { session },
        PeerMessage::Ping { stamp: 1 },
        PeerMessage::Pong { stamp: 1 },
        PeerMessage::Goodbye { reason: message() },
        PeerMessage::VmOpen { session, number, vm: Box::new(offer) },
        PeerMessage::SessionAccept { session, number, journal, vm: Some(terms) },
        refuse(PeerFindings::cut([finding.clone()])),
        PeerMessage::ChannelOpen { session, channel: 1 },
        PeerMessage::Loaded { session, frames: 7, digest: SessionId([0x55; 16]) },
        PeerMessage::Resumed { session, at_unix_us: 1_700_000_000_000_000 },
        PeerMessage::Resolved { session, journal, run: RunAt::Source },
        PeerMessage::Resolved { session, journal, run: RunAt::Sink },
        PeerMessage::CarryOpen { session, number, coding, terms },
        PeerMessage::Carried { session, channels: 3, frames: 7, digest: SessionId([0x55; 16]) },
        PeerMessage::LinkAccept { token: LinkToken([0x44; 16]), lanes: 2, resume: Some(resume) },
        PeerMessage::LinkResume { epoch: LinkEpoch(5), token: resume, sessions: vec![session] },
        PeerMessage::LinkResumed { token: LinkToken([0x44; 16]), resume },
        PeerMessage::VmWarnings { session, findings: PeerFindings::cut([finding]) },
    ]
}

/// What version 1 has no form of.
fn messages_since_v2() -> Vec<PeerMessage> {
    let (session, number, journal) = (SESSION, NUMBER, JournalId([0x33; 16]));
    let digest = PagesDigest([0x77; 16]);
    let terms = VmTerms {
        window_log: 24,
        pages_max: 262_144,
        base_pages: 4096,
        undelivered_bytes_max: 1 << 26,
        before: Some(PagesBefore { session, digest, pages: 3000 }),
        held: None,
    };
    let accept = |terms| PeerMessage::SessionAccept { session, number, journal, vm: Some(terms) };
    vec![accept(terms), accept(VmTerms { before: None, held: Some(2000), ..terms })]
}

fn key() -> DirectionKey {
    let mut exported = [0; 44];
    exported.iter_mut().zip(0..).for_each(|(byte, value)| *byte = value);
    DirectionKey::from_exported(&exported)
}

fn place(version: WireVersion) -> StreamPlace {
    StreamPlace { version, stream: StreamId(3), incarnation: Incarnation(0x0001_0002) }
}

/// The third record under a key: the counter shows in header and nonce.
fn record(key: DirectionKey, version: WireVersion) -> Vec<u8> {
    let mut sealer = Sealer::new(key, place(version));
    let mut buf = vec![0; 256];
    let mut bytes = 0;
    for _ in 0..3 {
        let plain_bytes = Frame::Ping { stamp: 7 }.encode_into(&mut buf[16..]);
        bytes = sealer.seal(&mut buf, plain_bytes).unwrap();
    }
    buf.truncate(bytes);
    buf
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn lines(version: WireVersion) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = |name: &str, bytes: &[u8]| lines.push(format!("{name} {}", hexadecimal(bytes)));
    line("hello", &hello(version).encode());
    line("hello_plain", &hello(version).with_plain_records().encode());
    line("preface", &preface(version).encode());
    for (name, frame) in frames(version) {
        let mut buf = [0; 600];
        let bytes = frame.encode_into(&mut buf);
        line(&format!("frame_{name}"), &buf[..bytes]);
    }
    line("record_sealed", &record(key(), version));
    line("record_plain", &record(DirectionKey::Plain, version));
    line("nonce", &nonce(&[0xf0; 12], 0x0001_0203));
    let (epoch, stream, incarnation) = (LinkEpoch(1), StreamId(2), Incarnation(3));
    line("context_out", &key_context(epoch, stream, incarnation, Direction::SourceToSink));
    line("context_back", &key_context(epoch, stream, incarnation, Direction::SinkToSource));
    let since = if version == WireVersion::V1 { Vec::new() } else { messages_since_v2() };
    for message in messages().into_iter().chain(since) {
        // The first four bytes are the length; the rest is readable as it is.
        let bytes = PeerCodec::encode(&message);
        let (length, json) = bytes.split_at(4);
        let json = std::str::from_utf8(json).unwrap();
        lines.push(format!("peer_{} {} {json}", message.name(), hexadecimal(length)));
    }
    lines
}

#[test]
fn the_bytes_of_a_version_never_change() {
    assert_eq!(GOLDEN.map(|(version, _)| version), WireVersion::ALL);
    for (version, golden) in GOLDEN {
        let golden: Vec<&str> = golden.lines().collect();
        let actual = lines(version);
        let changed: Vec<_> =
            actual.iter().filter(|line| !golden.contains(&line.as_str())).cloned().collect();
        assert!(
            changed.is_empty() && golden.len() == actual.len(),
            "the bytes of wire version {version} changed. Peers in the field speak it: a change \
             needs a new version with golden bytes of its own. Lines that are not in \
             golden/v{version}.txt ({} lines there, {} here):\n{}",
            golden.len(),
            actual.len(),
            changed.join("\n")
        );
    }
}

#[test]
fn every_golden_layout_is_read_back() {
    for version in WireVersion::ALL {
        let bytes = hello(version).encode();
        assert_eq!(Hello::decode(&bytes), Ok(Some((hello(version), bytes.len()))));
        let preface = preface(version);
        assert_eq!(StreamPreface::decode(&preface.encode()), Ok(Some(preface)));
        for (_, frame) in frames(version) {
            let mut buf = [0; 600];
            let bytes = frame.encode_into(&mut buf);
            assert_eq!(Frame::decode(version, &buf[..bytes]), Ok((frame, bytes)));
        }
        let mut opener = Opener::new(key(), place(version));
        let error = opener.open(&mut record(key(), version)).unwrap_err();
        assert_eq!(error.code(), "record_out_of_place", "it is the third record, not the first");
    }
    for message in messages() {
        let bytes = PeerCodec::encode(&message);
        assert_eq!(PeerCodec::decode(&bytes).unwrap(), Some((message, bytes.len())));
    }
}
