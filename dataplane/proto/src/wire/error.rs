//! Why bytes from a peer are refused before any key or session looks at them.

use super::limits::{RECORD_BYTES_MAX, RECORD_PLAIN_BYTES_MAX};

/// A peer's bytes don't have the layout of the agreed version. The connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The bytes don't start as this layout does.
    #[error("the bytes start with {found:#04x}, which starts no {what}")]
    BadMagic {
        /// The layout that was expected.
        what: &'static str,
        /// The first byte.
        found: u8,
    },
    /// The version is not the one agreed on.
    #[error("{what} of version {found} is not spoken here")]
    BadVersion {
        /// The layout.
        what: &'static str,
        /// The version found.
        found: u16,
    },
    /// The layout ends before its last field.
    #[error("{what} ends after {bytes} bytes")]
    Truncated {
        /// The layout.
        what: &'static str,
        /// The bytes that were there.
        bytes: usize,
    },
    /// Bytes follow behind the last field.
    #[error("{bytes} bytes follow behind the end of {what}")]
    Trailing {
        /// The layout.
        what: &'static str,
        /// How many.
        bytes: usize,
    },
    /// A field that must be zero is not.
    #[error("a reserved field of {what} is not zero")]
    Reserved {
        /// The layout.
        what: &'static str,
    },
    /// A kind, type or reason that this version does not define.
    #[error("{what} {found} is not defined")]
    Unknown {
        /// The field.
        what: &'static str,
        /// Its value.
        found: u16,
    },
    /// A field is outside its range.
    #[error("{what} is {found}, which is out of range")]
    OutOfRange {
        /// The field.
        what: &'static str,
        /// Its value.
        found: u64,
    },
    /// A record longer than any allowed one.
    #[error("a record of {bytes} bytes is longer than {RECORD_BYTES_MAX}")]
    RecordTooLong {
        /// Header, body and tag.
        bytes: u64,
    },
    /// A record without room for a frame.
    #[error("a record's body of {bytes} bytes holds no frame")]
    RecordTooShort {
        /// The body's length.
        bytes: u32,
    },
    /// A frame longer than any allowed one.
    #[error("a frame's body of {bytes} bytes does not fit into {RECORD_PLAIN_BYTES_MAX}")]
    FrameTooLong {
        /// The body's length.
        bytes: u32,
    },
    /// A frame whose body has not the length that its type has.
    #[error("a frame of type {kind} has a body of {bytes} bytes")]
    FrameLength {
        /// The frame's type.
        kind: u8,
        /// The body's length.
        bytes: u32,
    },
    /// A text is not UTF-8, too long, or holds control characters.
    #[error("{what} is no plain text")]
    BadText {
        /// The field.
        what: &'static str,
    },
}

impl WireError {
    /// The stable code of this refusal.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::BadMagic { .. } => "wire_bad_magic",
            Self::BadVersion { .. } => "wire_bad_version",
            Self::Truncated { .. } => "wire_truncated",
            Self::Trailing { .. } => "wire_trailing_bytes",
            Self::Reserved { .. } => "wire_reserved_not_zero",
            Self::Unknown { .. } => "wire_unknown_value",
            Self::OutOfRange { .. } => "wire_out_of_range",
            Self::RecordTooLong { .. } => "wire_record_too_long",
            Self::RecordTooShort { .. } => "wire_record_too_short",
            Self::FrameTooLong { .. } => "wire_frame_too_long",
            Self::FrameLength { .. } => "wire_frame_length",
            Self::BadText { .. } => "wire_bad_text",
        }
    }
}
