//! A part of a VMM's migration stream: which one it is, and what its payload is.
//!
//! Plain values of the frame of type 10; used on shards.

use super::super::WireError;
use super::super::limits::STREAM_PAYLOAD_BYTES_MAX;
use crate::ids::{ChannelId, Position, Sequence, SessionNumber};

/// What the payload of a frame of a migration stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum StreamKind {
    /// Bytes of the migration stream as they are; never empty.
    Opaque = 1,
    /// A batch of coded pages.
    Pages = 2,
    /// A block of guest memory is announced: pages name it from now on.
    Block = 3,
    /// The channel's input has ended; no payload, and no frame of the channel follows.
    End = 4,
}

impl StreamKind {
    pub(super) fn decode(found: u8) -> Result<Self, WireError> {
        match found {
            1 => Ok(Self::Opaque),
            2 => Ok(Self::Pages),
            3 => Ok(Self::Block),
            4 => Ok(Self::End),
            _ => Err(WireError::Unknown { what: "stream kind", found: found.into() }),
        }
    }

    /// True when a payload of this length may come with the kind.
    pub(super) const fn fits(self, payload_bytes: usize) -> bool {
        match self {
            Self::End => payload_bytes == 0,
            _ => payload_bytes > 0 && payload_bytes <= STREAM_PAYLOAD_BYTES_MAX,
        }
    }
}

/// Which part of a migration stream a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamPart {
    /// The session.
    pub session: SessionNumber,
    /// The VMM's connection.
    pub channel: ChannelId,
    /// What the payload is.
    pub kind: StreamKind,
    /// The number of this transmission in its lane's session; another one when it is sent again.
    pub sequence: Sequence,
    /// The part's place in its channel, from 0; the same when it is sent again.
    pub position: Position,
}
