//! dwcp-control: everything about a session that is not moving its pages.
//!
//! One slow-path thread runs [`run`] with a current-thread async runtime: the control socket
//! ([`api`]), the peers ([`peer`]), the sessions ([`migration`]), the journal ([`state`]) and the
//! metrics. It shares no lock and no memory with a shard: commands and events go through bounded
//! rings, and counters have one writer each.
//!
//! All I/O is in `driver`, `api::server`, `peer` and `state::journal`; what decides is pure, takes
//! time as an argument and returns what to do.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod api;
mod carry;
mod config;
mod driver;
mod error;
mod kept;
mod limits;
mod log_limit;
mod migration;
mod network;
mod peer;
mod state;
mod tally;
mod vm;

/// The pure machine of a link between two daemons, for those that carry out what it says: the
/// driver in here, and the simulator.
pub mod link {
    pub use crate::peer::{Link, LinkInput, LinkOutput, LinkPhase, PeerError};
}

pub use carry::{CarryConfig, CarryCounts, CarryEvent, CarryFailure, CarryReport, CarrySide};
pub use config::{
    BudgetFact, Congestion, ControlConfig, DaemonFacts, KernelFact, LiveSettings, MemoryBudget,
    PeerSecurity, PeerTimeouts, SettingRefused, SettingView, SettingsPort, SocketConfig,
    StoreConfig,
};
pub use driver::{carry, run};
pub use error::{ControlError, ExitClass};
pub use kept::STORE_INDEX_BYTES_PER_PAGE;
pub use peer::PkiError;
pub use state::{JournalError, SessionRecord, SessionState, VmRecord};
