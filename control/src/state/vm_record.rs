//! The part of a session's record that is about its virtual machine.
//!
//! Plain value, as the journal keeps it and `session.show` tells it. What is private here is shown
//! all the same: other programs read it as JSON.

use crate::api::Role;
use crate::vm::{Finding, GuestState, SavedSettings, VmOrder};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A session's virtual machine at this end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    /// Its name.
    pub name: String,
    /// The QMP socket of its QEMU here.
    pub qmp: PathBuf,
    /// When the guest was stopped for the switchover, by the source's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_at_unix_us: Option<u64>,
    /// When the guest went on at the sink, by the sink's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resumed_at_unix_us: Option<u64>,
    /// Why its migration stream is carried without being read, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opaque: Option<String>,
    /// How many pages both ends held from before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before_pages: Option<u64>,
    /// The peer's last word on this session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_said: Option<String>,
    /// What the guest does in the QEMU at this end, as far as was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) guest: Option<GuestState>,
    /// The QEMU here has been brought to what the session's end asks for.
    #[serde(default)]
    pub(crate) settled: bool,
    /// The guest is left paused at the sink, for its owner there to start: it was asked for, or the
    /// guest was paused at the source.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stays_paused: bool,
    /// Source: the session ended before the yield and the sink may not have heard of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) abort_owed: bool,
    /// Source: the user's migration settings, while ours are in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) saved: Option<SavedSettings>,
    /// What does not fit well and keeps nothing from moving. The sink finds it and tells it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) warnings: Vec<Finding>,
}

impl VmRecord {
    /// True if the guest may stand still at this end once the session's end has put it here. A
    /// source that touched nothing has nothing to bring back.
    pub(crate) fn may_stand(&self, role: Role) -> bool {
        match role {
            Role::Source => self.saved.as_ref().is_none_or(|saved| saved.paused),
            Role::Sink => self.stays_paused,
        }
    }

    /// What the sink's task is told once the guest is committed.
    pub(crate) fn arrival(&self) -> VmOrder {
        if self.stays_paused { VmOrder::LeavePaused } else { VmOrder::Resume }
    }
}
