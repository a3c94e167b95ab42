//! What must survive a crash: one record per session, in an embedded database under the state
//! directory.
//!
//! The database is used by one small named thread; the control thread hands records over and gets
//! told when each is on disk. `record` is pure.

mod attached;
mod journal;
mod record;
mod vm_record;

pub(crate) use attached::AttachedVm;
pub use journal::JournalError;
pub(crate) use journal::{Change, Journal, JournalDone, Stored, Ticket};
pub(crate) use record::recover;
#[cfg(test)]
pub(crate) use record::sample;
pub use record::{SessionRecord, SessionState};
pub use vm_record::VmRecord;
