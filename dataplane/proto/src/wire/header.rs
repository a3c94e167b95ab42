//! The 16 bytes in front of every record: clear, and authenticated as the record's associated data.
//!
//! ```text
//! 0      magic 0xd7
//! 1      wire version, the link's
//! 2      kind (1 = frames)
//! 3      flags (bit 0 = plain: the body is neither encrypted nor tagged)
//! 4..6   stream
//! 6..8   incarnation, low 16 bits
//! 8..12  bytes of the body: ciphertext and tag
//! 12..16 counter of the record under its key, from 0
//! ```
//!
//! Runs on the shard that owns the stream. Decoding checks every field against its range; whether
//! version, stream, incarnation and counter are the expected ones is for [`super::record::Opener`].

use super::WireError;
use super::bytes::{put, u16_at, u32_at};
use super::limits::{
    FRAME_HEADER_BYTES, RECORD_BYTES_MAX, RECORD_HEADER_BYTES, RECORD_PLAIN_BYTES_MAX,
    RECORD_TAG_BYTES,
};
use super::version::WireVersion;
use crate::ids::StreamId;

/// The first byte of every record.
pub const RECORD_MAGIC: u8 = 0xd7;
/// The only kind of record so far: its plaintext is a row of frames.
pub const RECORD_KIND_FRAMES: u8 = 1;
/// The flag of a record that is neither encrypted nor tagged.
pub const RECORD_FLAG_PLAIN: u8 = 1;

/// The decoded header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// The version of the link, so of the record's frames.
    pub version: WireVersion,
    /// True when the body is neither encrypted nor tagged.
    pub plain: bool,
    /// The stream that carries the record.
    pub stream: StreamId,
    /// The low 16 bits of the stream's incarnation; the key is bound to all of it.
    pub incarnation_low: u16,
    /// The body's length: ciphertext and tag.
    pub body_bytes: u32,
    /// The record's number under its key.
    pub counter: u32,
}

const _: () = assert!(1 + 1 + 1 + 1 + 2 + 2 + 4 + 4 == RECORD_HEADER_BYTES);

impl RecordHeader {
    /// The header as it stands on the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_HEADER_BYTES] {
        let mut out = [0; RECORD_HEADER_BYTES];
        let mut at = 0;
        let flags = if self.plain { RECORD_FLAG_PLAIN } else { 0 };
        put(&mut out, &mut at, &[RECORD_MAGIC, self.version.byte(), RECORD_KIND_FRAMES, flags]);
        put(&mut out, &mut at, &self.stream.0.to_be_bytes());
        put(&mut out, &mut at, &self.incarnation_low.to_be_bytes());
        put(&mut out, &mut at, &self.body_bytes.to_be_bytes());
        put(&mut out, &mut at, &self.counter.to_be_bytes());
        out
    }

    /// Reads a header.
    ///
    /// # Errors
    /// A field is unknown, reserved or out of range.
    pub fn decode(bytes: &[u8; RECORD_HEADER_BYTES]) -> Result<Self, WireError> {
        if bytes[0] != RECORD_MAGIC {
            return Err(WireError::BadMagic { what: "record", found: bytes[0] });
        }
        let found = u16::from(bytes[1]);
        let version =
            WireVersion::new(found).ok_or(WireError::BadVersion { what: "a record", found })?;
        if bytes[2] != RECORD_KIND_FRAMES {
            return Err(WireError::Unknown { what: "record kind", found: bytes[2].into() });
        }
        if bytes[3] & !RECORD_FLAG_PLAIN != 0 {
            return Err(WireError::Reserved { what: "a record header" });
        }
        let header = Self {
            version,
            plain: bytes[3] & RECORD_FLAG_PLAIN != 0,
            stream: StreamId(u16_at(bytes, 4)),
            incarnation_low: u16_at(bytes, 6),
            body_bytes: u32_at(bytes, 8),
            counter: u32_at(bytes, 12),
        };
        header.check_length()?;
        Ok(header)
    }

    /// The length of the whole record: header, body and tag.
    #[must_use]
    pub const fn record_bytes(&self) -> usize {
        RECORD_HEADER_BYTES + self.body_bytes as usize
    }

    fn check_length(&self) -> Result<(), WireError> {
        let tag_bytes = if self.plain { 0 } else { RECORD_TAG_BYTES };
        let body_bytes = self.body_bytes as usize;
        if body_bytes > RECORD_PLAIN_BYTES_MAX + tag_bytes {
            return Err(WireError::RecordTooLong { bytes: self.record_bytes() as u64 });
        }
        if body_bytes < FRAME_HEADER_BYTES + tag_bytes {
            return Err(WireError::RecordTooShort { bytes: self.body_bytes });
        }
        debug_assert!(self.record_bytes() <= RECORD_BYTES_MAX);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: RecordHeader = RecordHeader {
        version: WireVersion::V1,
        plain: false,
        stream: StreamId(3),
        incarnation_low: 2,
        body_bytes: 40,
        counter: 9,
    };

    #[test]
    fn header_survives_its_wire_form() {
        for version in WireVersion::ALL {
            let header = RecordHeader { version, ..HEADER };
            assert_eq!(RecordHeader::decode(&header.encode()), Ok(header));
        }
    }

    #[test]
    fn each_bad_field_has_its_own_refusal() {
        let refuse = |at: usize, value: u8| {
            let mut bytes = HEADER.encode();
            bytes[at] = value;
            RecordHeader::decode(&bytes).unwrap_err().code()
        };
        assert_eq!(refuse(0, b'D'), "wire_bad_magic");
        assert_eq!(refuse(1, 0), "wire_bad_version");
        assert_eq!(refuse(1, WireVersion::HIGHEST.byte() + 1), "wire_bad_version");
        assert_eq!(refuse(2, 0), "wire_unknown_value");
        assert_eq!(refuse(3, 2), "wire_reserved_not_zero");
        assert_eq!(refuse(8, 1), "wire_record_too_long");
        assert_eq!(refuse(11, 23), "wire_record_too_short");
    }

    #[test]
    fn the_longest_record_is_allowed_and_one_byte_more_is_not() {
        let longest = (RECORD_BYTES_MAX - RECORD_HEADER_BYTES) as u32;
        let header = RecordHeader { body_bytes: longest, ..HEADER };
        assert!(RecordHeader::decode(&header.encode()).is_ok());
        let header = RecordHeader { body_bytes: longest + 1, ..HEADER };
        assert!(RecordHeader::decode(&header.encode()).is_err());
        let header = RecordHeader { plain: true, body_bytes: longest, ..HEADER };
        assert!(RecordHeader::decode(&header.encode()).is_err(), "a plain record has no tag");
    }
}
