//! Why sessions end, and why a client's request is refused.

use super::resolve::RunAt;
use crate::ids::LaneId;
use crate::wire::peer::{Code, Message};

/// Why a session ended without a commit, or is in doubt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EndReason {
    /// A client of this daemon ended it.
    #[error("a client ended the session")]
    ClientAborted,
    /// The peer ended it.
    #[error("the peer ended the session: {message} ({code})")]
    PeerAborted {
        /// The peer's code.
        code: Code,
        /// The peer's words.
        message: Message,
    },
    /// The sink did not take the session.
    #[error("the sink refused the session: {message} ({code})")]
    Refused {
        /// The peer's code.
        code: Code,
        /// The peer's words.
        message: Message,
    },
    /// It failed at the peer.
    #[error("the session failed at the peer: {message} ({code})")]
    PeerFailed {
        /// The peer's code.
        code: Code,
        /// The peer's words.
        message: Message,
    },
    /// It failed on a lane here.
    #[error("lane {lane} failed ({code})")]
    LaneFailed {
        /// The lane.
        lane: LaneId,
        /// The data plane's code.
        code: &'static str,
    },
    /// The virtual machine here could not go on.
    #[error("{message} ({code})")]
    VmFailed {
        /// Its stable code.
        code: &'static str,
        /// What happened.
        message: Message,
    },
    /// The connection to the peer is gone.
    #[error("the link to the peer was lost")]
    LinkLost,
    /// The peer did not answer in time.
    #[error("the peer did not answer in time")]
    TimedOut,
    /// The journal could not be written.
    #[error("the journal could not be written")]
    Journal,
    /// The sink durably said that it did not commit.
    #[error("the sink did not commit")]
    NotCommitted,
    /// The sink can't tell whether it committed.
    #[error("the sink does not know whether it committed: its journal is not the one of then")]
    OutcomeUnknown,
    /// The peer sent what it must not send in this phase.
    #[error("the peer broke the session's protocol: {message} in phase {phase}")]
    Violation {
        /// The message.
        message: &'static str,
        /// The phase.
        phase: &'static str,
    },
    /// An operator ended the doubt.
    #[error("an operator decided that the {run} runs")]
    Resolved {
        /// Who runs.
        run: RunAt,
    },
    /// The daemon was restarted while the session ran.
    #[error("the daemon was restarted while the session ran")]
    Restarted,
}

impl EndReason {
    /// The stable code of this reason.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::ClientAborted => "session_aborted",
            Self::PeerAborted { .. } => "session_aborted_by_peer",
            Self::Refused { .. } => "session_refused",
            Self::PeerFailed { .. } => "session_failed_at_peer",
            Self::LaneFailed { .. } => "session_lane_failed",
            Self::VmFailed { .. } => "session_vm_failed",
            Self::LinkLost => "session_link_lost",
            Self::TimedOut => "session_timed_out",
            Self::Journal => "session_journal_failed",
            Self::NotCommitted => "session_not_committed",
            Self::OutcomeUnknown => "session_outcome_unknown",
            Self::Violation { .. } => "session_protocol_violation",
            Self::Resolved { .. } => "session_resolved",
            Self::Restarted => "session_daemon_restarted",
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn cure(&self) -> &'static str {
        match self {
            Self::ClientAborted | Self::PeerAborted { .. } => "open a new session when wanted",
            Self::Refused { .. } => "do what the sink's words say, then open a new session",
            Self::VmFailed { .. } => {
                "the guest stays at the source; mend the cause, then migrate it again"
            }
            Self::PeerFailed { .. } | Self::LaneFailed { .. } | Self::Restarted => {
                "the region is unchanged at the source; see the cause, then open a new session"
            }
            Self::LinkLost | Self::TimedOut => {
                "check the network and the peer's daemon; then open a new session"
            }
            Self::Journal => "check the disk under --state, then restart the daemon",
            Self::NotCommitted => {
                "the source keeps its region and may go on; open a new session when wanted"
            }
            Self::OutcomeUnknown => {
                "restore the sink's --state directory, or see which end runs and give dwcp resolve"
            }
            Self::Resolved { .. } => "make sure that the other end does not run as well",
            Self::Violation { .. } => "compare the versions of both daemons and report this",
        }
    }

    /// The code for the peer.
    #[must_use]
    pub fn peer_code(&self) -> Code {
        match self {
            Self::VmFailed { code, .. } => Code::cut(code),
            _ => Code::cut(self.code()),
        }
    }

    /// The sentence for the peer.
    #[must_use]
    pub fn peer_message(&self) -> Message {
        match self {
            // Its code goes along.
            Self::VmFailed { message, .. } => message.clone(),
            _ => Message::cut(&self.to_string()),
        }
    }
}

/// Why a client's request changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// Not in this phase.
    #[error("{request} is not possible while the session is {phase}")]
    NotNow {
        /// The request.
        request: &'static str,
        /// The phase.
        phase: &'static str,
    },
    /// A round is running.
    #[error("{request} is not possible while a round is running")]
    RoundRunning {
        /// The request.
        request: &'static str,
    },
    /// A virtual machine sets its own pace.
    #[error("{request} is for regions; this session moves a virtual machine")]
    OnlyRegions {
        /// The request.
        request: &'static str,
    },
    /// The commit has begun and can't be taken back.
    #[error("the commit has begun: the session can't be ended any more")]
    TooLate,
}

impl StepError {
    /// The stable code of this refusal.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotNow { .. } => "session_not_now",
            Self::RoundRunning { .. } => "session_round_running",
            Self::OnlyRegions { .. } => "session_of_a_vm",
            Self::TooLate => "session_too_late",
        }
    }
}
