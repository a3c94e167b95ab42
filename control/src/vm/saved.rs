//! The user's migration settings of one QEMU, as they were before dwcp changed them.
//!
//! A value for `settings`, which makes and restores it, and for the core, which may keep it in the
//! journal so that a daemon that died in between can still restore them.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The user's migration settings that dwcp changes, as they were.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedSettings {
    /// Capabilities by QEMU's name.
    pub(crate) capabilities: BTreeMap<String, bool>,
    /// Parameters by QEMU's name.
    pub(crate) parameters: BTreeMap<String, u64>,
}
