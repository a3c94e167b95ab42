//! The messages of the control channel between two daemons, and their framing.
//!
//! After both HELLOs each message is a big-endian `u32` length and that many bytes of JSON: an
//! object whose `type` names the message. Unknown types and unknown fields are refused, every text
//! and number is bounded. Used on the control thread.
//!
//! Who sends what: see [`crate::session`] for the messages of a session.

use super::bytes::array;
use super::limits::{
    CHANNELS_MAX, CODE_BYTES_MAX, LANES_MAX, MESSAGE_BYTES_MAX, PEER_LENGTH_BYTES,
    PEER_MESSAGE_BYTES_MAX, REGION_NAME_BYTES_MAX, REGION_PAGES_MAX, STREAMS_MAX,
};
use super::text::Text;
use super::token::{JournalId, LinkToken};
use super::vm::{PeerFindings, VmOffer, VmTerms};
use crate::ids::{LinkEpoch, SessionId, SessionNumber};
use crate::session::resolve::RunAt;
use serde::{Deserialize, Serialize};

/// The name of a region.
pub type RegionName = Text<REGION_NAME_BYTES_MAX>;
/// The stable code of an error.
pub type Code = Text<CODE_BYTES_MAX>;
/// A sentence for people.
pub type Message = Text<MESSAGE_BYTES_MAX>;

/// How the source means to code pages. For the sink's display; every frame says what it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerCoding {
    /// The cheapest form of each page.
    Full,
    /// Every page as it is.
    Passthrough,
}

/// What a sink durably knows of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The sink owns the region.
    Committed,
    /// The sink does not own the region and never will.
    NotCommitted,
    /// The sink can't tell: it has not the journal that it had then, or can't write to it.
    Unknown,
}

/// A message of the control channel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum PeerMessage {
    /// Source: open the data part of the link.
    LinkOpen {
        /// Part of every key's context; grows with each opening between the two.
        epoch: LinkEpoch,
        /// How many lanes.
        lanes: u16,
        /// How many streams; stream `i` belongs to lane `i % lanes`.
        streams: u16,
    },
    /// Sink: streams with this token are welcome.
    LinkAccept {
        /// For the prefaces.
        token: LinkToken,
        /// How many lanes the link has: not more than were asked for.
        lanes: u16,
    },
    /// Sink: no.
    LinkRefuse {
        /// Stable code.
        code: Code,
        /// What is wrong and what to do.
        message: Message,
    },
    /// Source: take a session.
    SessionOpen {
        /// The session.
        session: SessionId,
        /// Its name in frames.
        number: SessionNumber,
        /// The sink's region.
        region: RegionName,
        /// The region's pages, the same at both ends.
        pages: u64,
        /// How pages will be coded.
        coding: PeerCoding,
    },
    /// Source: take a virtual machine's session. Sent only to a peer with
    /// [`FEATURE_STREAM`](super::hello::FEATURE_STREAM).
    VmOpen {
        /// The session.
        session: SessionId,
        /// Its name in frames.
        number: SessionNumber,
        /// What is to be taken.
        vm: Box<VmOffer>,
    },
    /// Source: carry the migration stream of a VMM that somebody else drives. Sent only to a peer
    /// with [`FEATURE_STREAM`](super::hello::FEATURE_STREAM); answered by `SessionAccept` with
    /// terms, or by `SessionRefuse`. Nothing of it is ever committed.
    CarryOpen {
        /// The session.
        session: SessionId,
        /// Its name in frames.
        number: SessionNumber,
        /// How the stream will be coded.
        coding: PeerCoding,
        /// What both ends are to reserve.
        terms: VmTerms,
    },
    /// Sink: all my lanes are open for it.
    SessionAccept {
        /// The session.
        session: SessionId,
        /// Its name in frames.
        number: SessionNumber,
        /// The journal that the commit will be written to.
        journal: JournalId,
        /// Of a virtual machine: what both ends reserve, nothing above the offer.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vm: Option<VmTerms>,
    },
    /// Sink: no.
    SessionRefuse {
        /// The session.
        session: SessionId,
        /// Its name in frames.
        number: SessionNumber,
        /// Stable code.
        code: Code,
        /// What is wrong and what to do.
        message: Message,
        /// Of a virtual machine: everything that doesn't fit.
        #[serde(default, skip_serializing_if = "PeerFindings::is_empty")]
        findings: PeerFindings,
    },
    /// Sink of a virtual machine's session, before it accepts: what does not fit well and keeps
    /// nothing from moving. For the source's client; nothing is answered.
    VmWarnings {
        /// The session.
        session: SessionId,
        /// What was found.
        findings: PeerFindings,
    },
    /// Source of a stream session: the VMM opened one more connection.
    ChannelOpen {
        /// The session.
        session: SessionId,
        /// The connection's number, from 1 on; 0 is there from the start.
        channel: u16,
    },
    /// Sink of a carried session: the VMM took everything and both ends closed every channel so
    /// far. The source answers with `Settled` when that is all there was.
    Carried {
        /// The session.
        session: SessionId,
        /// How many channels there were.
        channels: u16,
        /// How many frames were handed to the VMM.
        frames: u64,
        /// Their digest, in the form of a session's name.
        digest: SessionId,
    },
    /// Sink of a virtual machine's session: the VMM has loaded all of it; the guest is paused.
    Loaded {
        /// The session.
        session: SessionId,
        /// How many frames were handed to the VMM.
        frames: u64,
        /// Their digest, in the form of a session's name.
        digest: SessionId,
    },
    /// Sink of a virtual machine's session: the committed guest runs.
    Resumed {
        /// The session.
        session: SessionId,
        /// By the clock of the sink's VMM, in microseconds since 1970.
        at_unix_us: u64,
    },
    /// Sink: the session failed here; it was not committed.
    SessionFailed {
        /// The session.
        session: SessionId,
        /// Stable code.
        code: Code,
        /// What happened.
        message: Message,
    },
    /// Source: I durably gave the region up. It is yours once you have committed.
    Yield {
        /// The session.
        session: SessionId,
    },
    /// Sink: I durably own the region.
    Committed {
        /// The session.
        session: SessionId,
    },
    /// Source: the session is over and the region is mine. Never sent after `Yield`.
    Abort {
        /// The session.
        session: SessionId,
        /// Stable code.
        code: Code,
        /// Why.
        message: Message,
    },
    /// Source: did you commit?
    Query {
        /// The session.
        session: SessionId,
        /// The journal that the sink named when it accepted.
        journal: JournalId,
    },
    /// Sink: the answer, durable before it is sent.
    Outcome {
        /// The session.
        session: SessionId,
        /// The answer.
        outcome: Outcome,
    },
    /// Source: an operator ended my doubt like this. Answered like `Query`.
    Resolved {
        /// The session.
        session: SessionId,
        /// The journal that the sink named when it accepted.
        journal: JournalId,
        /// Who runs.
        run: RunAt,
    },
    /// Source: I durably know how the session ended and will not ask again; forget it.
    Settled {
        /// The session.
        session: SessionId,
    },
    /// Either: are you there?
    Ping {
        /// What the pong repeats.
        stamp: u64,
    },
    /// Either: yes.
    Pong {
        /// The ping's stamp.
        stamp: u64,
    },
    /// Either: I close this connection on purpose.
    Goodbye {
        /// Why.
        reason: Message,
    },
}

impl PeerMessage {
    /// The session that the message speaks of, if any.
    #[must_use]
    pub const fn session(&self) -> Option<SessionId> {
        match self {
            Self::SessionOpen { session, .. }
            | Self::VmOpen { session, .. }
            | Self::CarryOpen { session, .. }
            | Self::Carried { session, .. }
            | Self::VmWarnings { session, .. }
            | Self::ChannelOpen { session, .. }
            | Self::Loaded { session, .. }
            | Self::Resumed { session, .. }
            | Self::Resolved { session, .. }
            | Self::SessionAccept { session, .. }
            | Self::SessionRefuse { session, .. }
            | Self::SessionFailed { session, .. }
            | Self::Yield { session }
            | Self::Committed { session }
            | Self::Abort { session, .. }
            | Self::Query { session, .. }
            | Self::Outcome { session, .. }
            | Self::Settled { session } => Some(*session),
            _ => None,
        }
    }

    /// The message's `type` on the wire.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::LinkOpen { .. } => "link_open",
            Self::LinkAccept { .. } => "link_accept",
            Self::LinkRefuse { .. } => "link_refuse",
            Self::SessionOpen { .. } => "session_open",
            Self::VmOpen { .. } => "vm_open",
            Self::CarryOpen { .. } => "carry_open",
            Self::Carried { .. } => "carried",
            Self::SessionAccept { .. } => "session_accept",
            Self::SessionRefuse { .. } => "session_refuse",
            Self::VmWarnings { .. } => "vm_warnings",
            Self::ChannelOpen { .. } => "channel_open",
            Self::Loaded { .. } => "loaded",
            Self::Resumed { .. } => "resumed",
            Self::SessionFailed { .. } => "session_failed",
            Self::Yield { .. } => "yield",
            Self::Committed { .. } => "committed",
            Self::Abort { .. } => "abort",
            Self::Query { .. } => "query",
            Self::Outcome { .. } => "outcome",
            Self::Resolved { .. } => "resolved",
            Self::Settled { .. } => "settled",
            Self::Ping { .. } => "ping",
            Self::Pong { .. } => "pong",
            Self::Goodbye { .. } => "goodbye",
        }
    }

    /// Checks the numbers that a layout alone can't bound.
    fn check(&self) -> Result<(), PeerError> {
        let range = |what, found: u64, max: u64| {
            if (1..=max).contains(&found) {
                Ok(())
            } else {
                Err(PeerError::OutOfRange { what, found, max })
            }
        };
        match *self {
            Self::VmOpen { ref vm, .. } => vm.terms.check(),
            Self::CarryOpen { terms, .. } => terms.check(),
            Self::Carried { channels, .. } => {
                range("channels", channels.into(), CHANNELS_MAX.into())
            }
            Self::SessionAccept { vm: Some(terms), .. } => terms.check(),
            Self::ChannelOpen { channel, .. } => {
                range("channel", channel.into(), u64::from(CHANNELS_MAX) - 1)
            }
            Self::LinkOpen { lanes, streams, .. } => {
                range("lanes", lanes.into(), LANES_MAX.into())?;
                range("streams", streams.into(), STREAMS_MAX.into())?;
                // A lane without a stream could never send.
                range("lanes", lanes.into(), streams.into())
            }
            Self::LinkAccept { lanes, .. } => range("lanes", lanes.into(), LANES_MAX.into()),
            Self::SessionOpen { pages, .. } => range("pages", pages, REGION_PAGES_MAX),
            _ => Ok(()),
        }
    }
}

/// Why a peer's message is refused. The connection ends.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The length is above the limit.
    #[error("a peer message of {bytes} bytes is longer than {PEER_MESSAGE_BYTES_MAX}")]
    TooLong {
        /// The length.
        bytes: u32,
    },
    /// The bytes are no known message.
    #[error("the peer's message is not understood: {0}")]
    Json(#[from] serde_json::Error),
    /// A number is outside its range.
    #[error("{what} is {found}, which is not allowed; the most is {max}")]
    OutOfRange {
        /// The field.
        what: &'static str,
        /// Its value.
        found: u64,
        /// The highest allowed.
        max: u64,
    },
}

impl PeerError {
    /// The stable code of this refusal.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "peer_message_too_long",
            Self::Json(_) => "peer_message_malformed",
            Self::OutOfRange { .. } => "peer_message_out_of_range",
        }
    }
}

/// Turns messages into bytes and back.
#[derive(Clone, Copy, Debug)]
pub struct PeerCodec;

impl PeerCodec {
    /// A message as it stands on the wire.
    ///
    /// # Panics
    /// When the message is longer than allowed, which its bounded fields exclude.
    #[must_use]
    pub fn encode(message: &PeerMessage) -> Vec<u8> {
        let mut out = vec![0; PEER_LENGTH_BYTES];
        if let Err(error) = serde_json::to_writer(&mut out, message) {
            unreachable!("strings, numbers and a vector always become JSON: {error}");
        }
        let bytes = out.len() - PEER_LENGTH_BYTES;
        assert!(bytes <= PEER_MESSAGE_BYTES_MAX, "bounded fields make bounded messages");
        out[..PEER_LENGTH_BYTES].copy_from_slice(&(bytes as u32).to_be_bytes());
        out
    }

    /// Reads the message at the start of a growing buffer and tells how many bytes it used: `None`
    /// until all of it is there. A buffer of [`PEER_LENGTH_BYTES`] + [`PEER_MESSAGE_BYTES_MAX`]
    /// bytes holds any message.
    ///
    /// # Errors
    /// The bytes are too long or no known message.
    pub fn decode(buffer: &[u8]) -> Result<Option<(PeerMessage, usize)>, PeerError> {
        if buffer.len() < PEER_LENGTH_BYTES {
            return Ok(None);
        }
        let length = u32::from_be_bytes(array(buffer, 0));
        let bytes = length as usize;
        if bytes > PEER_MESSAGE_BYTES_MAX {
            return Err(PeerError::TooLong { bytes: length });
        }
        let Some(json) = buffer[PEER_LENGTH_BYTES..].get(..bytes) else {
            return Ok(None);
        };
        let message: PeerMessage = serde_json::from_slice(json)?;
        message.check()?;
        Ok(Some((message, PEER_LENGTH_BYTES + bytes)))
    }
}
