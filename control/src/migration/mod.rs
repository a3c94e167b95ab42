//! Regions, virtual machines and sessions of this daemon: what is registered, what is moving, what
//! has ended.
//!
//! Pure values and tables, owned by the driver's core on the control thread. The machines that
//! decide are `dwcp_proto::session`'s.

mod coder;
mod history;
mod regions;
mod session;
mod vm_memory;
mod vm_part;
mod vms;

pub(crate) use coder::CoderCounters;
pub(crate) use history::History;
pub(crate) use regions::{Memory, RegionEntry, Regions};
pub(crate) use session::{Machine, Plan, Session, Waiting, WaitingFor, lane_failure};
pub(crate) use vm_memory::{VmMemory, window_log};
pub(crate) use vm_part::{FailedHere, Silence, VmPart};
pub(crate) use vms::{VmEntry, Vms};
