//! What a migration has to bring back in one QEMU: the user's migration settings as they were
//! before dwcp changed them, and whether the guest stood still.
//!
//! A value for `settings`, which makes and restores it, and for the core, which may keep it in the
//! journal so that a daemon that died in between can still restore them.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The user's migration settings that dwcp changes, and the guest's pause, as they were.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedSettings {
    /// Capabilities by QEMU's name.
    pub(crate) capabilities: BTreeMap<String, bool>,
    /// Parameters by QEMU's name.
    pub(crate) parameters: BTreeMap<String, u64>,
    /// Source: the user had paused the guest, so nobody but the user starts it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) paused: bool,
}
