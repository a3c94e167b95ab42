//! The clear bytes that a data stream starts with: they say which stream of which link it is.
//!
//! ```text
//! 0..4   magic "DWCS"
//! 4..6   version, the link's
//! 6..8   stream
//! 8..12  incarnation
//! 12..28 link token
//! 28..32 reserved (zero)
//! ```
//!
//! Used on the control thread, before the socket goes to its shard. The preface proves nothing: a
//! wrong or copied one leads to a stream whose first record does not open.

use super::WireError;
use super::bytes::{array, put, u16_at, u32_at};
use super::token::LinkToken;
use super::version::WireVersion;
use crate::ids::{Incarnation, StreamId};

/// The first bytes of a preface. A TLS connection starts with 0x16 instead.
pub const PREFACE_MAGIC: [u8; 4] = *b"DWCS";
/// The length of a preface.
pub const PREFACE_BYTES: usize = 32;

/// Which stream a new connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamPreface {
    /// The link's version.
    pub version: WireVersion,
    /// The link's token, as the sink gave it.
    pub token: LinkToken,
    /// The stream.
    pub stream: StreamId,
    /// Which opening of that stream this is.
    pub incarnation: Incarnation,
}

impl StreamPreface {
    /// The preface as it stands on the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; PREFACE_BYTES] {
        let mut out = [0; PREFACE_BYTES];
        let mut at = 0;
        put(&mut out, &mut at, &PREFACE_MAGIC);
        put(&mut out, &mut at, &self.version.number().to_be_bytes());
        put(&mut out, &mut at, &self.stream.0.to_be_bytes());
        put(&mut out, &mut at, &self.incarnation.0.to_be_bytes());
        put(&mut out, &mut at, &self.token.0);
        out
    }

    /// Reads a preface from the start of a growing buffer: `None` until all of it is there. It is
    /// [`PREFACE_BYTES`] long.
    ///
    /// # Errors
    /// The bytes are no preface of a version that is spoken here.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, WireError> {
        let start = bytes.len().min(PREFACE_MAGIC.len());
        if bytes[..start] != PREFACE_MAGIC[..start] {
            return Err(WireError::BadMagic { what: "stream preface", found: bytes[0] });
        }
        if bytes.len() < PREFACE_BYTES {
            return Ok(None);
        }
        let found = u16_at(bytes, 4);
        let version = WireVersion::new(found)
            .ok_or(WireError::BadVersion { what: "a stream preface", found })?;
        if bytes[28..PREFACE_BYTES] != [0; 4] {
            return Err(WireError::Reserved { what: "a stream preface" });
        }
        Ok(Some(Self {
            version,
            stream: StreamId(u16_at(bytes, 6)),
            incarnation: Incarnation(u32_at(bytes, 8)),
            token: LinkToken(array(bytes, 12)),
        }))
    }
}
