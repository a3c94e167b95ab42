//! Carrier mode: a VMM's migration stream is carried for a manager that drives both VMMs itself.
//!
//! Runs on the control thread of a `dwcp carry` process. Here are what such a process is told, what
//! it reports, its local sockets and the state of its one session; the core's part is in
//! `driver::carry`. Nothing is committed: whose guest runs is the manager's decision, and every
//! failure closes the VMMs' sockets at both ends.

mod config;
mod event;
mod report;
mod session;
mod socket;

pub use config::{CarryConfig, CarrySide};
pub use event::{CarryCounts, CarryEvent, CarryFailure};
pub use report::CarryReport;

pub(crate) use session::{CarryPhase, CarrySession};
pub(crate) use socket::{CarryInput, CarrySocket, VmmHandles, connect};
