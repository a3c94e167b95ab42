//! Reading frames, as strictly as they are written.
//!
//! Part of [`Frame`]: what bytes a type has, and the ranges of its fields.

use super::super::WireError;
use super::super::bytes::{array, u16_at, u32_at, u64_at};
use super::super::limits::{
    CHANNELS_MAX, FRAME_HEADER_BYTES, PAGES_PAYLOAD_BYTES_MAX, RECORD_PLAIN_BYTES_MAX,
    REPLY_BYTES_MAX,
};
use super::super::version::WireVersion;
use super::{
    ABORT, ACK, DELIVERED, Frame, HELD, HELD_FIELDS_BYTES, HeldHashes, NACK, NackReason, PAGES,
    PAGES_FIELDS_BYTES, PING, REPLY, REPLY_ACK, REPLY_FIELDS_BYTES, RETIRE, STREAM,
    STREAM_FIELDS_BYTES, StreamKind, StreamPart, VERIFIED, VERIFY, VERIFY_FAILED, body_bytes,
};
use crate::ids::{ChannelId, Position, Round, Sequence, SessionNumber};

impl<'a> Frame<'a> {
    /// Reads the frame at the start of `bytes` and tells how long it is. Types that only later
    /// versions have are unknown in `version`.
    ///
    /// # Errors
    /// The frame is unknown, malformed or cut off.
    pub fn decode(version: WireVersion, bytes: &'a [u8]) -> Result<(Self, usize), WireError> {
        if bytes.len() < FRAME_HEADER_BYTES {
            return Err(WireError::Truncated { what: "a frame header", bytes: bytes.len() });
        }
        let kind = bytes[0];
        if kind > kind_highest(version) {
            return Err(WireError::Unknown { what: "frame type", found: kind.into() });
        }
        if bytes[1..4] != [0; 3] {
            return Err(WireError::Reserved { what: "a frame header" });
        }
        let length = u32_at(bytes, 4);
        let body_bytes = length as usize;
        if body_bytes > RECORD_PLAIN_BYTES_MAX - FRAME_HEADER_BYTES {
            return Err(WireError::FrameTooLong { bytes: length });
        }
        if bytes.len() - FRAME_HEADER_BYTES < body_bytes {
            return Err(WireError::Truncated { what: "a frame", bytes: bytes.len() });
        }
        let body = &bytes[FRAME_HEADER_BYTES..][..body_bytes];
        Ok((Self::decode_body(kind, body)?, FRAME_HEADER_BYTES + body_bytes))
    }

    fn decode_body(kind: u8, body: &'a [u8]) -> Result<Self, WireError> {
        let fits = match body_bytes(kind) {
            Some(bytes) => body.len() == bytes,
            None if kind == PAGES => (PAGES_FIELDS_BYTES
                ..=PAGES_FIELDS_BYTES + PAGES_PAYLOAD_BYTES_MAX)
                .contains(&body.len()),
            None if kind == STREAM => body.len() >= STREAM_FIELDS_BYTES,
            None if kind == REPLY => {
                (REPLY_FIELDS_BYTES..=REPLY_FIELDS_BYTES + REPLY_BYTES_MAX).contains(&body.len())
            }
            None if kind == HELD => body.len() >= HELD_FIELDS_BYTES,
            None => return Err(WireError::Unknown { what: "frame type", found: kind.into() }),
        };
        if !fits {
            return Err(WireError::FrameLength { kind, bytes: body.len() as u32 });
        }
        if kind == RETIRE {
            return Ok(Self::Retire);
        }
        let session = SessionNumber(u32_at(body, 0));
        Ok(match kind {
            PAGES => Self::Pages {
                session,
                round: Round(u32_at(body, 4)),
                sequence: sequence(u64_at(body, 8))?,
                payload: &body[PAGES_FIELDS_BYTES..],
            },
            ACK => Self::Ack { session, through: sequence(u64_at(body, 4))? },
            NACK => Self::Nack {
                session,
                sequence: sequence(u64_at(body, 4))?,
                reason: NackReason::decode(u16_at(body, 12))?,
            },
            VERIFY => Self::Verify { session, digest: array(body, 4), pages: u64_at(body, 20) },
            VERIFIED => Self::Verified { session },
            VERIFY_FAILED => Self::VerifyFailed { session, page: u64_at(body, 4) },
            ABORT => Self::Abort { session, code: u16_at(body, 4) },
            PING => Self::Ping { stamp: u64_at(body, 0) },
            STREAM => Self::decode_stream(session, body)?,
            DELIVERED => Self::Delivered {
                session,
                channel: channel(body)?,
                position: Position(place(u64_at(body, 6))?),
            },
            REPLY if body[6..8] != [0; 2] => {
                return Err(WireError::Reserved { what: "a reply" });
            }
            REPLY => Self::Reply {
                session,
                channel: channel(body)?,
                offset: place(u64_at(body, 8))?,
                payload: &body[REPLY_FIELDS_BYTES..],
            },
            HELD => {
                let hashes = HeldHashes::new(&body[HELD_FIELDS_BYTES..]);
                let bytes = body.len() as u32;
                let hashes = hashes.ok_or(WireError::FrameLength { kind, bytes })?;
                Self::Held { session, chunk: u32_at(body, 4), hashes }
            }
            REPLY_ACK => {
                Self::ReplyAck { session, channel: channel(body)?, offset: place(u64_at(body, 6))? }
            }
            _ => Self::Pong { stamp: u64_at(body, 0) },
        })
    }

    fn decode_stream(session: SessionNumber, body: &'a [u8]) -> Result<Self, WireError> {
        let kind = StreamKind::decode(body[6])?;
        if body[7] != 0 {
            return Err(WireError::Reserved { what: "a stream frame" });
        }
        let payload = &body[STREAM_FIELDS_BYTES..];
        if !kind.fits(payload.len()) {
            return Err(WireError::FrameLength { kind: STREAM, bytes: body.len() as u32 });
        }
        let part = StreamPart {
            session,
            channel: channel(body)?,
            kind,
            sequence: sequence(u64_at(body, 8))?,
            position: Position(place(u64_at(body, 16))?),
        };
        Ok(Self::Stream { part, payload })
    }
}

impl NackReason {
    fn decode(found: u16) -> Result<Self, WireError> {
        match found {
            1 => Ok(Self::UnknownBase),
            2 => Ok(Self::BaseDiffers),
            _ => Err(WireError::Unknown { what: "NACK reason", found }),
        }
    }
}

/// The highest type of a version's frames. Later versions add types behind it.
const fn kind_highest(version: WireVersion) -> u8 {
    match version {
        WireVersion::V1 => REPLY_ACK,
        WireVersion::V2 => HELD,
    }
}

/// A sequence from the wire: 0 means "no version" and names no frame; the top bit would let an
/// addition overflow.
fn sequence(found: u64) -> Result<Sequence, WireError> {
    if found == 0 || found > u64::MAX / 2 {
        return Err(WireError::OutOfRange { what: "a sequence", found });
    }
    Ok(Sequence(found))
}

/// The channel in the fields of a frame, right behind the session.
fn channel(body: &[u8]) -> Result<ChannelId, WireError> {
    let found = u16_at(body, 4);
    if found >= CHANNELS_MAX {
        return Err(WireError::OutOfRange { what: "a channel", found: found.into() });
    }
    Ok(ChannelId(found))
}

/// A position or offset from the wire: the top bit would let an addition overflow.
fn place(found: u64) -> Result<u64, WireError> {
    if found > u64::MAX / 2 {
        return Err(WireError::OutOfRange { what: "a position", found });
    }
    Ok(found)
}
