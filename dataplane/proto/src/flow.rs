//! What a lane's flow refuses, at the source and at the sink alike.
//!
//! Pure values. [`roster`], which both flows are built on, makes the ones that speak of streams and
//! sessions; [`crate::source`] and [`crate::sink`] make those that speak of acks and frames.

pub(crate) mod roster;

use crate::ids::{Incarnation, Sequence, SessionNumber, StreamId};

/// What can't be done, or what the peer may not send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlowError {
    /// The stream is not one of this lane's live ones.
    #[error("stream {stream} is not open on this lane")]
    UnknownStream {
        /// The stream.
        stream: StreamId,
    },
    /// The session is not known (any more). Late frames and answers of a closed session end here.
    #[error("session {session} is not open on this lane")]
    UnknownSession {
        /// The session.
        session: SessionNumber,
    },
    /// The lane's table of streams is full.
    #[error("the lane has {streams_max} streams already")]
    StreamsFull {
        /// The table's size.
        streams_max: usize,
    },
    /// The lane's table of sessions is full.
    #[error("the lane has {sessions_max} sessions already")]
    SessionsFull {
        /// The table's size.
        sessions_max: usize,
    },
    /// The stream or session is open already.
    #[error("it is open on this lane already")]
    AlreadyOpen,
    /// An incarnation that is not newer than the stream's last one.
    #[error("incarnation {incarnation} of stream {stream} is not newer than {last}")]
    StaleIncarnation {
        /// The stream.
        stream: StreamId,
        /// The refused incarnation.
        incarnation: Incarnation,
        /// The stream's last one.
        last: Incarnation,
    },
    /// At the source: an ack for what was never sent on that stream.
    #[error("an ack through {through} on a stream that carried at most {sent}")]
    AckBeyondSent {
        /// The ack.
        through: Sequence,
        /// The newest frame sent there.
        sent: Sequence,
    },
    /// At the source: an ack that takes an earlier one back.
    #[error("an ack through {through} behind one through {acked}")]
    AckBackwards {
        /// The ack.
        through: Sequence,
        /// The earlier one.
        acked: Sequence,
    },
    /// At the source: a NACK for a frame that is not in flight on that stream.
    #[error("a NACK of frame {sequence}, which is not in flight on that stream")]
    NackNotInFlight {
        /// The frame.
        sequence: Sequence,
    },
    /// At the sink: a frame that is not newer than the stream's last one.
    #[error("frame {sequence} follows frame {last} on one stream")]
    OutOfOrder {
        /// The frame.
        sequence: Sequence,
        /// The newest one before.
        last: Sequence,
    },
    /// At the sink: the peer does not read its NACKs.
    #[error("{nacks_max} NACKs wait for a peer that does not read")]
    NacksFull {
        /// The table's size.
        nacks_max: usize,
    },
}

impl FlowError {
    /// The stable code of this error.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::UnknownStream { .. } => "flow_unknown_stream",
            Self::UnknownSession { .. } => "flow_unknown_session",
            Self::StreamsFull { .. } => "flow_streams_full",
            Self::SessionsFull { .. } => "flow_sessions_full",
            Self::AlreadyOpen => "flow_already_open",
            Self::StaleIncarnation { .. } => "flow_stale_incarnation",
            Self::AckBeyondSent { .. } => "flow_ack_beyond_sent",
            Self::AckBackwards { .. } => "flow_ack_backwards",
            Self::NackNotInFlight { .. } => "flow_nack_not_in_flight",
            Self::OutOfOrder { .. } => "sink_out_of_order",
            Self::NacksFull { .. } => "sink_nacks_full",
        }
    }

    /// True when the peer broke the protocol and its stream must end. An unknown session is none:
    /// frames and answers of a session that just ended are still under way.
    #[must_use]
    pub const fn is_violation(&self) -> bool {
        matches!(
            self,
            Self::AckBeyondSent { .. }
                | Self::AckBackwards { .. }
                | Self::NackNotInFlight { .. }
                | Self::OutOfOrder { .. }
                | Self::NacksFull { .. }
        )
    }
}
