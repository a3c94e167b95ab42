//! Targets for the bytes between two daemons.

use dwcp_proto::ids::{Incarnation, StreamId};
use dwcp_proto::negotiate::agree;
use dwcp_proto::wire::frame::Frame;
use dwcp_proto::wire::header::RecordHeader;
use dwcp_proto::wire::hello::Hello;
use dwcp_proto::wire::keys::{DirectionKey, EXPORTED_BYTES};
use dwcp_proto::wire::limits::{
    FRAME_HEADER_BYTES, HELD_FRAME_HEADER_BYTES, HELD_HASH_BYTES, PEER_LENGTH_BYTES,
    RECORD_HEADER_BYTES, RECORD_PLAIN_BYTES_MAX,
};
use dwcp_proto::wire::peer::{PeerCodec, PeerMessage};
use dwcp_proto::wire::preface::StreamPreface;
use dwcp_proto::wire::reader::{FrameIter, next_record, record_bytes};
use dwcp_proto::wire::record::{Opener, Sealer, StreamPlace};
use dwcp_proto::wire::version::WireVersion;

/// The stream that all records here belong to.
pub const PLACE: StreamPlace =
    StreamPlace { version: WireVersion::HIGHEST, stream: StreamId(3), incarnation: Incarnation(1) };

/// Any 16 bytes are refused, or are exactly what the decoded header encodes to.
pub fn record_header(data: &[u8]) {
    let Some(bytes) = data.first_chunk::<RECORD_HEADER_BYTES>() else { return };
    if let Ok(header) = RecordHeader::decode(bytes) {
        assert_eq!(&header.encode(), bytes);
        assert_eq!(record_bytes(data), Ok(Some(header.record_bytes())));
    }
}

/// A stream of plain records is cut, opened and read to its first fault, as a shard does it.
pub fn record_stream(data: &[u8]) {
    let mut buffer = data.to_vec();
    let mut rest = &mut buffer[..];
    let mut opener = Opener::new(DirectionKey::Plain, PLACE);
    while let Ok(Some(bytes)) = next_record(rest) {
        assert!(bytes <= rest.len());
        let (record, behind) = rest.split_at_mut(bytes);
        let Ok(plain) = opener.open(record) else { return };
        let Ok(all) = FrameIter::new(PLACE.version, plain) else { return };
        let total: usize = all.map(|frame| frame.encoded_bytes()).sum();
        assert_eq!(total, plain.len(), "frames fill their record");
        rest = behind;
    }
}

/// A sealed record opens to what was sealed; with any byte of it changed it does not open.
///
/// The first three bytes choose the place and the change, the rest is the plaintext.
pub fn record_open(data: &[u8]) {
    let Some((choice, plain)) = data.split_first_chunk::<3>() else { return };
    if !(FRAME_HEADER_BYTES..=RECORD_PLAIN_BYTES_MAX).contains(&plain.len()) {
        return;
    }
    let key = || DirectionKey::from_exported(&[7; EXPORTED_BYTES]);
    let mut sealer = Sealer::new(key(), PLACE);
    let mut record = vec![0; plain.len() + sealer.overhead_bytes()];
    record[RECORD_HEADER_BYTES..][..plain.len()].copy_from_slice(plain);
    let bytes = sealer.seal(&mut record, plain.len()).expect("a new key seals");
    assert_eq!(bytes, record.len());

    let mut altered = record.clone();
    let place = usize::from(u16::from_be_bytes([choice[0], choice[1]])) % altered.len();
    altered[place] ^= choice[2];
    let outcome = Opener::new(key(), PLACE).open(&mut altered).is_ok();
    assert_eq!(outcome, choice[2] == 0, "an altered record must not open");

    let mut opener = Opener::new(key(), PLACE);
    let mut again = record.clone();
    assert_eq!(opener.open(&mut record), Ok(plain));
    assert!(opener.open(&mut again).is_err(), "a replayed record must not open");
    // The sealed opener meets the bytes of a peer that has no key.
    let mut foreign = plain.to_vec();
    assert!(opener.open(&mut foreign).is_err());
}

/// Frames that decode are exactly what they encode to, in every version alike where two know them.
pub fn frames(data: &[u8]) {
    let mut longest = 0;
    for version in WireVersion::ALL {
        let mut rest = data;
        let mut count = 0_usize;
        while let Ok((frame, used)) = Frame::decode(version, rest) {
            let mut out = vec![0; frame.encoded_bytes()];
            assert_eq!(frame.encode_into(&mut out), used);
            assert_eq!(out, &rest[..used]);
            if let Frame::Held { hashes, .. } = frame {
                let told = hashes.iter().count();
                assert_eq!(HELD_FRAME_HEADER_BYTES + told * HELD_HASH_BYTES, used);
            }
            rest = &rest[used..];
            count += 1;
        }
        if let Ok(all) = FrameIter::new(version, data) {
            assert!(rest.is_empty());
            assert_eq!(all.count(), count);
        }
        assert!(count >= longest, "a later version reads what an earlier one does");
        longest = count;
    }
}

/// A HELLO that decodes keeps every field; two of them agree or refuse in both orders alike.
///
/// Its length and what follows the host's name belong to later versions, so they are not compared.
pub fn hello(data: &[u8]) {
    let Ok(Some((first, used))) = Hello::decode(data) else { return };
    let written = first.encode();
    assert!(written.len() <= used);
    assert_eq!(written[6..], data[6..written.len()]);
    for bytes in 0..used {
        assert!(matches!(Hello::decode(&data[..bytes]), Ok(None)), "a part is no HELLO yet");
    }
    let Ok(Some((second, _))) = Hello::decode(&data[used..]) else { return };
    let there = agree(&first, &second);
    let back = agree(&second, &first);
    assert_eq!(there.is_ok(), back.is_ok());
    if let (Ok(there), Ok(back)) = (there, back) {
        assert_eq!((there.version, there.features), (back.version, back.features));
    }
}

/// A preface that decodes is what it encodes to.
pub fn preface(data: &[u8]) {
    if let Ok(Some(preface)) = StreamPreface::decode(data) {
        let bytes = preface.encode();
        assert_eq!(bytes, data[..bytes.len()]);
    }
}

/// A message of the control channel survives being written again; its framing is exact.
pub fn peer_message(data: &[u8]) {
    // Half of the inputs go in as they are; the others get a right length in front, so that the
    // search does not have to guess it.
    let mut framed = Vec::new();
    let buffer = match data.split_first() {
        Some((b'=', json)) => {
            let length = u32::try_from(json.len()).expect("libFuzzer's inputs are short");
            framed.extend(length.to_be_bytes());
            framed.extend(json);
            &framed[..]
        }
        _ => data,
    };
    let Ok(Some((message, used))) = PeerCodec::decode(buffer) else { return };
    assert!((PEER_LENGTH_BYTES..=buffer.len()).contains(&used));
    let written = PeerCodec::encode(&message);
    let again: Option<(PeerMessage, usize)> =
        PeerCodec::decode(&written).expect("what is written can be read");
    assert_eq!(again, Some((message, written.len())));
}
