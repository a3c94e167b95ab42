//! What a segment is called and whose pages it holds.
//!
//! Plain values; the store's owner makes them and gets them back.

use crate::error::StoreError;
use crate::limits::{NAME_BYTES_MAX, NOTE_BYTES_MAX};
use dwcp_codec::HashKey;
use std::fmt;
use std::time::SystemTime;

/// Bytes of a [`DomainId`] and of a [`SegmentId`].
pub const ID_BYTES: usize = 16;

/// A trust domain: pages match within it and nowhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainId(pub [u8; ID_BYTES]);

/// The random name of one segment. Never used twice, since the segment's key comes from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId(pub(crate) [u8; ID_BYTES]);

impl SegmentId {
    /// A new one from the cryptography library's generator.
    pub(crate) fn random() -> Result<Self, StoreError> {
        let mut bytes = [0; ID_BYTES];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| StoreError::Random)?;
        Ok(Self(bytes))
    }

    /// The id that is written as these 32 lower-case hexadecimal digits.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
        let mut bytes = [0; ID_BYTES];
        if pairs.len() != bytes.len() {
            return None;
        }
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = (digit(*high)? << 4) | digit(*low)?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Where a segment's pages come from. The number is the kind's code on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A guest's memory at one time.
    Guest = 0,
    /// An image that an operator added.
    Image = 1,
}

impl Kind {
    pub(crate) const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Guest),
            1 => Some(Self::Image),
            _ => None,
        }
    }

    /// The kind's name for metrics and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Image => "image",
        }
    }
}

/// What the owner says of a segment. All of it is sealed on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Where its pages may match.
    pub domain: DomainId,
    /// The key of its domain's page hash.
    pub hash_key: HashKey,
    /// What it is called in its domain; a newer segment of the same name takes its place.
    pub name: String,
    /// Where its pages come from.
    pub kind: Kind,
    /// What its owner notes of it, at most [`crate::limits::NOTE_BYTES_MAX`] bytes.
    pub note: Vec<u8>,
}

impl SegmentInfo {
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        let bytes = self.name.len();
        if bytes > NAME_BYTES_MAX {
            return Err(StoreError::NameTooLong { bytes });
        }
        let bytes = self.note.len();
        if bytes > NOTE_BYTES_MAX { Err(StoreError::NoteTooLong { bytes }) } else { Ok(()) }
    }

    /// True if one of the two takes the other's place.
    pub(crate) fn same_place(&self, other: &Self) -> bool {
        self.domain == other.domain && self.name == other.name
    }
}

/// A segment as it is shown to people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentView {
    /// Names it for [`crate::Store::remove`].
    pub id: SegmentId,
    /// What it is called.
    pub name: String,
    /// Where its pages come from.
    pub kind: Kind,
    /// Where its pages may match.
    pub domain: DomainId,
    /// What its owner noted.
    pub note: Vec<u8>,
    /// How many different pages it holds.
    pub pages: u64,
    /// Its file's length.
    pub bytes: u64,
    /// When it was of use last.
    pub last_used: SystemTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_written_and_nothing_else_is() {
        let id = SegmentId(std::array::from_fn(|byte| 17 * byte as u8));
        let text = id.to_string();
        assert_eq!(text, "00112233445566778899aabbccddeeff");
        assert_eq!(SegmentId::parse(&text), Some(id));
        for other in ["", "0", &text[..30], &text.to_uppercase(), &format!("{text}00")] {
            assert_eq!(SegmentId::parse(other), None, "{other}");
        }
    }

    #[test]
    fn kinds_have_stable_codes() {
        for (code, kind) in [Kind::Guest, Kind::Image].into_iter().enumerate() {
            assert_eq!(kind as usize, code);
            assert_eq!(Kind::from_code(code as u8), Some(kind));
        }
        assert_eq!(Kind::from_code(2), None);
    }
}
