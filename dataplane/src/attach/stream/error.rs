//! Why a stream sink refuses what the source sent.
//!
//! The peer's fault, found on the shard's thread: the session ends, the link stays.

use super::rebuild::RebuildError;
use super::reply::OutOfPlace;

/// What the source sent that can't be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StreamSinkError {
    #[error("a part came for a session that failed here")]
    Failed,
    #[error("more is undelivered than was agreed")]
    Overflow,
    #[error("a part follows the end of its channel")]
    AfterEnd,
    #[error("parts with pages came on another channel than the first")]
    PagesChannel,
    #[error(transparent)]
    Rebuild(#[from] RebuildError),
    #[error(transparent)]
    Reply(#[from] OutOfPlace),
}

impl StreamSinkError {
    /// The stable code of the error.
    pub(crate) const fn code(&self) -> &'static str {
        match self {
            Self::Failed => "session_failed",
            Self::Overflow => "stream_overflow",
            Self::AfterEnd => "stream_after_end",
            Self::PagesChannel => "stream_pages_channel",
            Self::Rebuild(error) => error.code(),
            Self::Reply(_) => "stream_reply_out_of_place",
        }
    }
}
