//! The frames inside a record's plaintext.
//!
//! ```text
//! every frame   0 type, 1..4 reserved (zero), 4..8 bytes of the body, body
//! 1 pages       session u32, round u32, sequence u64, payload (coded pages of one extent)
//! 2 ack         session u32, through u64
//! 3 nack        session u32, sequence u64, reason u16
//! 4 verify      session u32, digest [16], pages u64
//! 5 verified    session u32
//! 6 failed      session u32, page u64
//! 7 abort       session u32, code u16
//! 8 ping        stamp u64
//! 9 pong        stamp u64
//! 10 stream     session u32, channel u16, kind u8, reserved u8 (zero), sequence u64,
//!               position u64, payload (by kind: 1 bytes as they are, 2 coded pages, 3 a block of
//!               guest memory, 4 the end of the channel, without payload)
//! 11 delivered  session u32, channel u16, position u64
//! 12 reply      session u32, channel u16, reserved u16 (zero), offset u64, payload
//! 13 reply ack  session u32, channel u16, offset u64
//! 14 retire     nothing; the last frame on its stream (from version 2 on)
//! 15 held       session u32, chunk u32, 256 counts u16, hashes 7 bytes each (from version 2 on)
//! ```
//!
//! Acks and NACKs speak of the stream that carries them. Runs on the shard that owns the stream.
//! Decoding accepts exactly what encoding writes; the payload is checked by the codec alone.

mod decode;
mod held;
mod part;

pub use held::{HashStart, HeldHashes, write_held};
pub use part::{StreamKind, StreamPart};

use super::bytes::put;
use super::limits::{
    FRAME_HEADER_BYTES, PAGES_FRAME_HEADER_BYTES, PAGES_PAYLOAD_BYTES_MAX, REPLY_BYTES_MAX,
    REPLY_FRAME_HEADER_BYTES, STREAM_FRAME_HEADER_BYTES,
};
use crate::ids::{ChannelId, Position, Round, Sequence, SessionNumber};

const PAGES: u8 = 1;
const ACK: u8 = 2;
const NACK: u8 = 3;
const VERIFY: u8 = 4;
const VERIFIED: u8 = 5;
const VERIFY_FAILED: u8 = 6;
const ABORT: u8 = 7;
const PING: u8 = 8;
const PONG: u8 = 9;
const STREAM: u8 = 10;
const DELIVERED: u8 = 11;
const REPLY: u8 = 12;
const REPLY_ACK: u8 = 13;
const RETIRE: u8 = 14;
const HELD: u8 = 15;

/// What stands between the frame header and the payload of a frame with pages.
const PAGES_FIELDS_BYTES: usize = PAGES_FRAME_HEADER_BYTES - FRAME_HEADER_BYTES;
/// The same of a frame of a migration stream, and of a reply.
const STREAM_FIELDS_BYTES: usize = STREAM_FRAME_HEADER_BYTES - FRAME_HEADER_BYTES;
const REPLY_FIELDS_BYTES: usize = REPLY_FRAME_HEADER_BYTES - FRAME_HEADER_BYTES;
/// The same of what a sink tells: session and chunk.
const HELD_FIELDS_BYTES: usize = 4 + 4;

/// Why the sink could not apply a frame with pages and wants them whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum NackReason {
    /// A base that the frame names is not held.
    UnknownBase = 1,
    /// A base is held, but its content is not the one that the frame names.
    BaseDiffers = 2,
}

/// One frame. Its payload points into the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Changed pages of one extent, coded together.
    Pages {
        /// The session.
        session: SessionNumber,
        /// The frame's place in its lane's session and the version of its pages.
        sequence: Sequence,
        /// The round that the pages belong to.
        round: Round,
        /// The coded pages.
        payload: &'a [u8],
    },
    /// Every frame with pages of this session on this stream through `through` is decoded,
    /// hash-checked and retained, but for those that a NACK named before.
    Ack {
        /// The session.
        session: SessionNumber,
        /// The newest sequence covered.
        through: Sequence,
    },
    /// One frame could not be applied: its pages must come whole.
    Nack {
        /// The session.
        session: SessionNumber,
        /// The frame.
        sequence: Sequence,
        /// Why.
        reason: NackReason,
    },
    /// The source asks for proof that the sink holds all pages of this lane.
    Verify {
        /// The session.
        session: SessionNumber,
        /// Digest over number and hash of each of the lane's pages, in order.
        digest: [u8; 16],
        /// How many pages the digest covers.
        pages: u64,
    },
    /// The sink's memory gave the same digest.
    Verified {
        /// The session.
        session: SessionNumber,
    },
    /// The sink's memory differs.
    VerifyFailed {
        /// The session.
        session: SessionNumber,
        /// A page that is known to differ, or `u64::MAX` when only the digest does.
        page: u64,
    },
    /// The sender gives the session up on this lane.
    Abort {
        /// The session.
        session: SessionNumber,
        /// Why, as a number that the manual lists.
        code: u16,
    },
    /// Asks for a pong with the same stamp.
    Ping {
        /// What the pong repeats.
        stamp: u64,
    },
    /// Answers a ping.
    Pong {
        /// The ping's stamp.
        stamp: u64,
    },
    /// A part of a VMM's migration stream. An ack of it means: held at the sink.
    Stream {
        /// Which part, and of what.
        part: StreamPart,
        /// The bytes, as the kind says.
        payload: &'a [u8],
    },
    /// The sink's VMM took every frame of the channel through this position.
    Delivered {
        /// The session.
        session: SessionNumber,
        /// The channel.
        channel: ChannelId,
        /// The newest position that is covered.
        position: Position,
    },
    /// Bytes that the sink's VMM answered on its channel. One is under way at a time.
    Reply {
        /// The session.
        session: SessionNumber,
        /// The channel.
        channel: ChannelId,
        /// How many bytes of the channel's replies came before.
        offset: u64,
        /// The bytes; empty when the VMM ended its side of the channel.
        payload: &'a [u8],
    },
    /// The source's VMM took the reply.
    ReplyAck {
        /// The session.
        session: SessionNumber,
        /// The channel.
        channel: ChannelId,
        /// The offset of the reply.
        offset: u64,
    },
    /// Pages that the sink alone holds: from now on the source may name them.
    Held {
        /// The session.
        session: SessionNumber,
        /// Which pages: this one's number times 2048 is the first.
        chunk: u32,
        /// How their hashes begin.
        hashes: HeldHashes<'a>,
    },
    /// The source needs this stream no more: nothing is in flight on it, nothing follows, and the
    /// sink closes it.
    Retire,
}

/// Writes the head of a frame of a migration stream whose payload of `payload_bytes` lies, or will
/// lie, right behind it. Returns the length of the head.
///
/// # Panics
/// When `out` is shorter than the head or the payload has not the length of its kind.
pub fn write_stream_header(out: &mut [u8], part: StreamPart, payload_bytes: usize) -> usize {
    assert!(part.kind.fits(payload_bytes), "a payload has the length of its kind");
    let mut at = write_header(out, STREAM, STREAM_FIELDS_BYTES + payload_bytes);
    put(out, &mut at, &part.session.0.to_be_bytes());
    put(out, &mut at, &part.channel.0.to_be_bytes());
    put(out, &mut at, &[part.kind as u8, 0]);
    put(out, &mut at, &part.sequence.0.to_be_bytes());
    put(out, &mut at, &part.position.0.to_be_bytes());
    assert!(at == STREAM_FRAME_HEADER_BYTES);
    at
}

/// Writes the head of a frame with pages whose payload of `payload_bytes` lies, or will lie, right
/// behind it. Returns the length of the head.
///
/// # Panics
/// When `out` is shorter than the head or the payload is longer than allowed.
pub fn write_pages_header(
    out: &mut [u8],
    session: SessionNumber,
    sequence: Sequence,
    round: Round,
    payload_bytes: usize,
) -> usize {
    assert!(payload_bytes <= PAGES_PAYLOAD_BYTES_MAX, "a payload is bounded");
    let mut at = write_header(out, PAGES, PAGES_FIELDS_BYTES + payload_bytes);
    put(out, &mut at, &session.0.to_be_bytes());
    put(out, &mut at, &round.0.to_be_bytes());
    put(out, &mut at, &sequence.0.to_be_bytes());
    assert!(at == PAGES_FRAME_HEADER_BYTES);
    at
}

fn write_header(out: &mut [u8], kind: u8, body_bytes: usize) -> usize {
    let mut at = 0;
    put(out, &mut at, &[kind, 0, 0, 0]);
    put(out, &mut at, &(body_bytes as u32).to_be_bytes());
    at
}

impl<'a> Frame<'a> {
    /// The length of the frame on the wire.
    #[must_use]
    pub const fn encoded_bytes(&self) -> usize {
        FRAME_HEADER_BYTES
            + match self {
                Self::Pages { payload, .. } => PAGES_FIELDS_BYTES + payload.len(),
                Self::Stream { payload, .. } => STREAM_FIELDS_BYTES + payload.len(),
                Self::Reply { payload, .. } => REPLY_FIELDS_BYTES + payload.len(),
                Self::Held { hashes, .. } => HELD_FIELDS_BYTES + hashes.bytes().len(),
                _ => match body_bytes(self.kind()) {
                    Some(bytes) => bytes,
                    None => 0,
                },
            }
    }

    /// Writes the frame to the start of `out` and returns its length.
    ///
    /// # Panics
    /// When `out` is shorter than [`Frame::encoded_bytes`], or a payload is longer than allowed.
    pub fn encode_into(&self, out: &mut [u8]) -> usize {
        if let Self::Pages { session, sequence, round, payload } = *self {
            let mut at = write_pages_header(out, session, sequence, round, payload.len());
            put(out, &mut at, payload);
            return at;
        }
        if let Self::Stream { part, payload } = *self {
            let mut at = write_stream_header(out, part, payload.len());
            put(out, &mut at, payload);
            return at;
        }
        let bytes = self.encoded_bytes();
        let mut at = write_header(out, self.kind(), bytes - FRAME_HEADER_BYTES);
        if let Some(session) = self.session() {
            put(out, &mut at, &session.0.to_be_bytes());
        }
        match *self {
            Self::Pages { .. } | Self::Stream { .. } | Self::Verified { .. } | Self::Retire => {}
            Self::Ack { through, .. } => put(out, &mut at, &through.0.to_be_bytes()),
            Self::Nack { sequence, reason, .. } => {
                put(out, &mut at, &sequence.0.to_be_bytes());
                put(out, &mut at, &(reason as u16).to_be_bytes());
            }
            Self::Verify { digest, pages, .. } => {
                put(out, &mut at, &digest);
                put(out, &mut at, &pages.to_be_bytes());
            }
            Self::VerifyFailed { page, .. } => put(out, &mut at, &page.to_be_bytes()),
            Self::Abort { code, .. } => put(out, &mut at, &code.to_be_bytes()),
            Self::Ping { stamp } | Self::Pong { stamp } => {
                put(out, &mut at, &stamp.to_be_bytes());
            }
            Self::Delivered { channel, position: Position(number), .. }
            | Self::ReplyAck { channel, offset: number, .. } => {
                put(out, &mut at, &channel.0.to_be_bytes());
                put(out, &mut at, &number.to_be_bytes());
            }
            Self::Reply { channel, offset, payload, .. } => {
                assert!(payload.len() <= REPLY_BYTES_MAX, "a reply is bounded");
                put(out, &mut at, &channel.0.to_be_bytes());
                put(out, &mut at, &[0, 0]);
                put(out, &mut at, &offset.to_be_bytes());
                put(out, &mut at, payload);
            }
            Self::Held { chunk, hashes, .. } => {
                put(out, &mut at, &chunk.to_be_bytes());
                put(out, &mut at, hashes.bytes());
            }
        }
        assert!(at == bytes, "a frame has the length of its type");
        at
    }

    /// The session that the frame speaks of, if any.
    #[must_use]
    pub const fn session(&self) -> Option<SessionNumber> {
        match *self {
            Self::Pages { session, .. }
            | Self::Ack { session, .. }
            | Self::Nack { session, .. }
            | Self::Verify { session, .. }
            | Self::Verified { session }
            | Self::VerifyFailed { session, .. }
            | Self::Abort { session, .. }
            | Self::Stream { part: StreamPart { session, .. }, .. }
            | Self::Delivered { session, .. }
            | Self::Reply { session, .. }
            | Self::ReplyAck { session, .. }
            | Self::Held { session, .. } => Some(session),
            Self::Ping { .. } | Self::Pong { .. } | Self::Retire => None,
        }
    }

    const fn kind(&self) -> u8 {
        match self {
            Self::Pages { .. } => PAGES,
            Self::Ack { .. } => ACK,
            Self::Nack { .. } => NACK,
            Self::Verify { .. } => VERIFY,
            Self::Verified { .. } => VERIFIED,
            Self::VerifyFailed { .. } => VERIFY_FAILED,
            Self::Abort { .. } => ABORT,
            Self::Ping { .. } => PING,
            Self::Pong { .. } => PONG,
            Self::Stream { .. } => STREAM,
            Self::Delivered { .. } => DELIVERED,
            Self::Reply { .. } => REPLY,
            Self::ReplyAck { .. } => REPLY_ACK,
            Self::Retire => RETIRE,
            Self::Held { .. } => HELD,
        }
    }
}

/// The length of the body of a frame type whose length is fixed.
const fn body_bytes(kind: u8) -> Option<usize> {
    match kind {
        ACK | VERIFY_FAILED => Some(4 + 8),
        NACK => Some(4 + 8 + 2),
        VERIFY => Some(4 + 16 + 8),
        VERIFIED => Some(4),
        ABORT => Some(4 + 2),
        PING | PONG => Some(8),
        DELIVERED | REPLY_ACK => Some(4 + 2 + 8),
        RETIRE => Some(0),
        _ => None,
    }
}
