//! Driving a VMM: one task per migration and end, over QEMU's monitor (QMP).
//!
//! Runs on the control thread, in tasks of its runtime. The core starts a task when a session of a
//! virtual machine opens, orders by [`VmOrder`] and hears [`VmNews`]; what the tasks do is a
//! straight list of phases in `source` and `sink`.
//!
//! Invariants: a guest that this host gave up ([`VmOrder::Release`]) is never told to run again,
//! and a guest that arrived is never told to run before [`VmOrder::Resume`]. A monitor is held only
//! while a task lives, since QEMU serves one client at a time. The tasks never touch the journal
//! nor the link.

mod convergence;
mod ending;
mod error;
mod facts;
mod forecast;
mod gather;
mod host;
mod leave;
mod load;
mod preflight;
mod private;
mod qmp;
mod saved;
mod settings;
mod sink;
mod source;
mod spawn;
mod task;
#[cfg(test)]
mod tests;
mod words;

#[cfg(test)]
pub(crate) use error::QmpError;
pub(crate) use error::VmError;
#[cfg(test)]
pub(crate) use facts::QemuVersion;
pub(crate) use facts::VmFacts;
pub(crate) use preflight::{Finding, Severity, preflight};
pub(crate) use saved::SavedSettings;
pub(crate) use spawn::check_command;
#[cfg(test)]
pub(crate) use task::{Dropped, TaskSide, pair};
pub(crate) use task::{
    GuestState, MigrateOptions, MigrationProgress, OnTimeout, VmNews, VmOrder, VmReport, VmTarget,
    VmTask, probe, spawn_sink, spawn_source,
};
pub(crate) use words::shell_words;
