//! What must survive a crash: one record per session, in an embedded database under the state
//! directory.
//!
//! The database is used by one small named thread; the control thread hands records over and gets
//! told when each is on disk. `record` is pure.

mod journal;
mod record;

pub use journal::JournalError;
pub(crate) use journal::{Journal, JournalDone, Ticket};
pub(crate) use record::recover;
#[cfg(test)]
pub(crate) use record::sample;
pub use record::{SessionRecord, SessionState};
