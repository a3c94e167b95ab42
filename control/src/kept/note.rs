//! What is noted of a segment in the store, in its sealed part.
//!
//! Plain values.

use dwcp_proto::ids::SessionId;
use dwcp_proto::wire::vm::PagesBefore;
use dwcp_store::SegmentView;
use serde::{Deserialize, Serialize};

/// What is noted of a segment.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Note {
    /// Of a guest's: how both ends call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) before: Option<PagesBefore>,
    /// Whose guests it may serve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) trust_domain: Option<String>,
    /// Of a guest's: the first page of the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) list: Option<SessionId>,
}

impl Note {
    /// A segment's note, if it is one.
    pub(super) fn of(segment: &SegmentView) -> Option<Self> {
        serde_json::from_slice(&segment.note).ok()
    }

    /// As it lies in the store.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let Ok(bytes) = serde_json::to_vec(self) else {
            unreachable!("names and a number always become JSON")
        };
        bytes
    }
}
