//! Sealing and opening of records, in place.
//!
//! A [`Sealer`] and an [`Opener`] belong to one direction of one incarnation of one stream and live
//! on the shard that owns it. The counter in the header must be exactly the next one, the header is
//! the associated data, and a key ends before 2^24 records at both ends. After any error of an
//! opener the stream is over: the caller closes it and opens the next incarnation.

pub use super::keys::{DirectionKey, StreamKeys};

use super::WireError;
use super::bytes::array;
use super::header::RecordHeader;
use super::keys::{IV_BYTES, KEY_BYTES, nonce};
use super::limits::{
    FRAME_HEADER_BYTES, KEY_RECORDS_MAX, RECORD_HEADER_BYTES, RECORD_PLAIN_BYTES_MAX,
    RECORD_TAG_BYTES,
};
use super::version::WireVersion;
use crate::ids::{Incarnation, StreamId};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

/// Why nothing can be sealed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The key has sealed as many records as it may: the stream needs its next incarnation.
    #[error("the key has sealed {records} records and is used up")]
    KeyExhausted {
        /// How many.
        records: u32,
    },
    /// The cipher refused to work.
    #[error("the cipher failed")]
    Cipher,
}

impl SealError {
    /// The stable code of this error.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::KeyExhausted { .. } => "seal_key_exhausted",
            Self::Cipher => "seal_cipher_failed",
        }
    }
}

/// Why a record from the peer is refused. The stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The header is not one.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The header's length is not that of the bytes given.
    #[error("the header tells of {header} bytes, but there are {found}")]
    Length {
        /// What the header says.
        header: usize,
        /// What was given.
        found: usize,
    },
    /// The peer sends in the clear on a sealed stream.
    #[error("a plain record on a sealed stream")]
    PlainRefused,
    /// The peer sends sealed records on a stream that was agreed to be clear.
    #[error("a sealed record on a plain stream")]
    SealedUnexpected,
    /// The record belongs to another stream or incarnation.
    #[error("a record of stream {stream} (incarnation {incarnation_low}) in another's place")]
    WrongStream {
        /// The header's stream.
        stream: StreamId,
        /// The header's incarnation.
        incarnation_low: u16,
    },
    /// A record that was already opened.
    #[error("record {counter} was replayed; {expected} is next")]
    Replayed {
        /// The header's counter.
        counter: u32,
        /// The counter due.
        expected: u32,
    },
    /// A record that skips others.
    #[error("record {counter} is out of place; {expected} is next")]
    OutOfPlace {
        /// The header's counter.
        counter: u32,
        /// The counter due.
        expected: u32,
    },
    /// The peer goes on with a key that is used up.
    #[error("the key has opened {records} records and is used up")]
    KeyExhausted {
        /// How many.
        records: u32,
    },
    /// The tag does not match: header, body or key differ.
    #[error("the record does not match its tag")]
    Altered,
}

impl RecordError {
    /// The stable code of this refusal.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Wire(wire) => wire.code(),
            Self::Length { .. } => "record_length",
            Self::PlainRefused => "record_plain_refused",
            Self::SealedUnexpected => "record_sealed_unexpected",
            Self::WrongStream { .. } => "record_wrong_stream",
            Self::Replayed { .. } => "record_replayed",
            Self::OutOfPlace { .. } => "record_out_of_place",
            Self::KeyExhausted { .. } => "record_key_exhausted",
            Self::Altered => "record_altered",
        }
    }
}

/// What every record of one opening of a stream says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamPlace {
    /// The link's version.
    pub version: WireVersion,
    /// The stream.
    pub stream: StreamId,
    /// Which opening of it.
    pub incarnation: Incarnation,
}

/// A cipher with its place in the row of records.
#[derive(Debug)]
struct Direction {
    /// `None` when records travel in the clear.
    cipher: Option<(LessSafeKey, [u8; IV_BYTES])>,
    version: WireVersion,
    stream: StreamId,
    incarnation_low: u16,
    /// The next record's counter, so also the number of records done.
    next: u32,
    records_max: u32,
}

impl Direction {
    fn new(key: &DirectionKey, place: StreamPlace, max: u32) -> Self {
        assert!(max <= KEY_RECORDS_MAX, "a key ends before 2^24 records");
        let cipher = match key {
            DirectionKey::Sealed { key, iv } => Some((cipher(key), *iv)),
            DirectionKey::Plain => None,
        };
        let StreamPlace { version, stream, incarnation } = place;
        let incarnation_low = incarnation.0 as u16;
        Self { cipher, version, stream, incarnation_low, next: 0, records_max: max }
    }
}

fn cipher(key: &[u8; KEY_BYTES]) -> LessSafeKey {
    match UnboundKey::new(&AES_256_GCM, key) {
        Ok(key) => LessSafeKey::new(key),
        Err(_) => unreachable!("AES-256-GCM takes every key of 32 bytes"),
    }
}

/// Seals the records that one end of a stream sends.
#[derive(Debug)]
pub struct Sealer(Direction);

impl Sealer {
    /// A sealer for one incarnation of a stream. The key's bytes are wiped.
    #[must_use]
    pub fn new(key: DirectionKey, place: StreamPlace) -> Self {
        Self(Direction::new(&key, place, KEY_RECORDS_MAX))
    }

    /// Bytes that a record adds to its plaintext.
    #[must_use]
    pub const fn overhead_bytes(&self) -> usize {
        RECORD_HEADER_BYTES + if self.0.cipher.is_some() { RECORD_TAG_BYTES } else { 0 }
    }

    /// Seals the plaintext that lies in `buf` behind room for the header and before room for the
    /// tag, and returns the record's length.
    ///
    /// # Errors
    /// The key is used up; the buffer is unchanged then.
    ///
    /// # Panics
    /// When the plaintext holds no frame, is longer than a record's, or does not fit into `buf`.
    pub fn seal(&mut self, buf: &mut [u8], plain_bytes: usize) -> Result<usize, SealError> {
        assert!(plain_bytes >= FRAME_HEADER_BYTES, "a record holds at least one frame");
        assert!(plain_bytes <= RECORD_PLAIN_BYTES_MAX, "a record's plaintext is bounded");
        let record_bytes = plain_bytes + self.overhead_bytes();
        assert!(buf.len() >= record_bytes, "the buffer has room for header and tag");
        let this = &mut self.0;
        if this.next >= this.records_max {
            return Err(SealError::KeyExhausted { records: this.next });
        }
        let header = RecordHeader {
            version: this.version,
            plain: this.cipher.is_none(),
            stream: this.stream,
            incarnation_low: this.incarnation_low,
            body_bytes: (record_bytes - RECORD_HEADER_BYTES) as u32,
            counter: this.next,
        }
        .encode();
        buf[..RECORD_HEADER_BYTES].copy_from_slice(&header);
        if let Some((cipher, iv)) = &this.cipher {
            let plain = &mut buf[RECORD_HEADER_BYTES..][..plain_bytes];
            let nonce = Nonce::assume_unique_for_key(nonce(iv, this.next));
            let tag = cipher
                .seal_in_place_separate_tag(nonce, Aad::from(header), plain)
                .map_err(|_| SealError::Cipher)?;
            buf[RECORD_HEADER_BYTES + plain_bytes..record_bytes].copy_from_slice(tag.as_ref());
        }
        this.next += 1;
        Ok(record_bytes)
    }
}

/// Opens the records that one end of a stream receives.
#[derive(Debug)]
pub struct Opener(Direction);

impl Opener {
    /// An opener for one incarnation of a stream. The key's bytes are wiped.
    #[must_use]
    pub fn new(key: DirectionKey, place: StreamPlace) -> Self {
        Self(Direction::new(&key, place, KEY_RECORDS_MAX))
    }

    /// Opens exactly one record and returns its plaintext, which lies in the same bytes.
    ///
    /// # Errors
    /// The record is none, not the next one, or was altered. The stream is over then, and what is
    /// left in the record's bytes means nothing.
    pub fn open<'a>(&mut self, record: &'a mut [u8]) -> Result<&'a [u8], RecordError> {
        if record.len() < RECORD_HEADER_BYTES {
            let bytes = record.len();
            return Err(WireError::Truncated { what: "a record header", bytes }.into());
        }
        let (head, body) = record.split_at_mut(RECORD_HEADER_BYTES);
        let head: [u8; RECORD_HEADER_BYTES] = array(head, 0);
        let header = RecordHeader::decode(&head)?;
        if header.body_bytes as usize != body.len() {
            let found = RECORD_HEADER_BYTES + body.len();
            return Err(RecordError::Length { header: header.record_bytes(), found });
        }
        self.check_place(&header)?;
        let this = &mut self.0;
        let plain: &'a [u8] = match &this.cipher {
            Some((cipher, iv)) => {
                let nonce = Nonce::assume_unique_for_key(nonce(iv, this.next));
                cipher
                    .open_in_place(nonce, Aad::from(head), body)
                    .map_err(|_| RecordError::Altered)?
            }
            None => body,
        };
        this.next += 1;
        Ok(plain)
    }

    /// Checks all that the header claims about the record's place, before the cipher works.
    fn check_place(&self, header: &RecordHeader) -> Result<(), RecordError> {
        let this = &self.0;
        match (header.plain, this.cipher.is_some()) {
            (true, true) => return Err(RecordError::PlainRefused),
            (false, false) => return Err(RecordError::SealedUnexpected),
            _ => {}
        }
        let RecordHeader { version, stream, incarnation_low, counter, .. } = *header;
        if version != this.version {
            let found = version.number();
            return Err(WireError::BadVersion { what: "a record of another link", found }.into());
        }
        if stream != this.stream || incarnation_low != this.incarnation_low {
            return Err(RecordError::WrongStream { stream, incarnation_low });
        }
        let expected = this.next;
        if counter < expected {
            return Err(RecordError::Replayed { counter, expected });
        }
        if counter > expected {
            return Err(RecordError::OutOfPlace { counter, expected });
        }
        if expected >= this.records_max {
            return Err(RecordError::KeyExhausted { records: expected });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_ends_at_both_ends() {
        let direction = |records_max| {
            let key = DirectionKey::from_exported(&[0x42; KEY_BYTES + IV_BYTES]);
            let (stream, incarnation) = (StreamId(4), Incarnation(1));
            let place = StreamPlace { version: WireVersion::HIGHEST, stream, incarnation };
            Direction::new(&key, place, records_max)
        };
        let (mut sealer, mut opener) = (Sealer(direction(2)), Opener(direction(2)));
        let mut longer = Sealer(direction(3));
        let mut record = [0; RECORD_HEADER_BYTES + FRAME_HEADER_BYTES + RECORD_TAG_BYTES];
        for _ in 0..2 {
            sealer.seal(&mut record, FRAME_HEADER_BYTES).unwrap();
            opener.open(&mut record).unwrap();
            longer.seal(&mut record, FRAME_HEADER_BYTES).unwrap();
        }
        let used_up = sealer.seal(&mut record, FRAME_HEADER_BYTES);
        assert_eq!(used_up, Err(SealError::KeyExhausted { records: 2 }));
        longer.seal(&mut record, FRAME_HEADER_BYTES).unwrap();
        let refused = opener.open(&mut record);
        assert_eq!(refused, Err(RecordError::KeyExhausted { records: 2 }));
    }
}
