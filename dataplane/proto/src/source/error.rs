//! What a lane's flow at the source refuses.

use crate::ids::{Incarnation, Sequence, SessionNumber, StreamId};

/// What can't be done, or what the peer may not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlowError {
    /// The stream is not one of this lane's live ones.
    #[error("stream {stream} is not open on this lane")]
    UnknownStream {
        /// The stream.
        stream: StreamId,
    },
    /// The session is not known (any more). Late frames of a closed session end here.
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
    /// An ack for what was never sent on that stream.
    #[error("an ack through {through} on a stream that carried at most {sent}")]
    AckBeyondSent {
        /// The ack.
        through: Sequence,
        /// The newest frame sent there.
        sent: Sequence,
    },
    /// An ack that takes an earlier one back.
    #[error("an ack through {through} behind one through {acked}")]
    AckBackwards {
        /// The ack.
        through: Sequence,
        /// The earlier one.
        acked: Sequence,
    },
    /// A NACK for a frame that is not in flight on that stream.
    #[error("a NACK of frame {sequence}, which is not in flight on that stream")]
    NackNotInFlight {
        /// The frame.
        sequence: Sequence,
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
        }
    }

    /// True when the peer broke the protocol and its stream must end. An unknown session is none:
    /// answers to a session that just ended are still under way.
    #[must_use]
    pub const fn is_violation(&self) -> bool {
        matches!(
            self,
            Self::AckBeyondSent { .. } | Self::AckBackwards { .. } | Self::NackNotInFlight { .. }
        )
    }
}
