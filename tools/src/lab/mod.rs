//! The lab: real guests in QEMU, on hosts and links that are made on one machine.
//!
//! Owns what the end-to-end tests and `cargo xtask lab|guest|peers` need to move a real guest over
//! a real wide-area link without having either: network namespaces as hosts, an emulator of links
//! between them, guests under emulation with workloads that check their own memory, and a small
//! client for QEMU's monitor. Needs root and Linux; [`Lab::find`] says so, and tests that can't
//! have it pass over visibly.
//!
//! Everything blocks, on the thread of the caller, and every wait is bounded. What is made is
//! removed when it is dropped, and what a killed process left behind by the next that comes.

mod abandoned;
pub(crate) mod command;
mod error;
mod guest;
mod link_spec;
mod net;
mod netns;
mod node;
mod place;
mod qmp;
pub mod ram;
mod relay;
mod schedule;
mod setup;
pub mod stream;
mod vm;
mod wait;

pub use error::LabError;
pub use guest::Guest;
pub use link_spec::LinkSpec;
pub use net::{Net, NetSpec};
pub use node::Node;
pub use place::{Lab, is_root, networks_for_test};
pub use qmp::{Event, Qmp};
pub use relay::{Link, LinkStats, Way};
pub use schedule::{Following, Schedule, Step};
pub use setup::{SetupOptions, setup};
pub use vm::{Vm, VmConfig};
pub use wait::{end_waits_on_signals, wait_for};

use abandoned::PREFIX;
use std::path::Path;
use tempfile::TempDir;

/// A folder that goes when it is dropped; its name is short, since names of sockets in it may have
/// 107 bytes.
pub(crate) fn scratch(what: &str) -> Result<TempDir, LabError> {
    scratch_in(&std::env::temp_dir(), what)
}

/// A folder whose files are memory.
fn scratch_in_memory(what: &str) -> Result<TempDir, LabError> {
    scratch_in(Path::new(abandoned::MEMORY_FOLDER), what)
}

fn scratch_in(folder: &Path, what: &str) -> Result<TempDir, LabError> {
    abandoned::remove();
    let prefix = format!("{PREFIX}{}-{what}-", std::process::id());
    let made = tempfile::Builder::new().prefix(&prefix).tempdir_in(folder);
    made.map_err(LabError::file(folder))
}
