//! The demo's certificates: an authority of this run alone, and a certificate for each end.
//!
//! Made once, on the main thread, before the daemons start. The keys live in the demo's folder and
//! go away with it; they hold for a day at most.

use super::daemons::Role;
use crate::pki::PkiError;
use crate::pki::authority::{Authority, Validity};
use std::path::PathBuf;

/// The folders with the keys.
#[derive(Debug)]
pub(crate) struct Credentials {
    folder: PathBuf,
}

impl Credentials {
    /// Makes all keys in `folder`.
    ///
    /// # Errors
    /// A file can't be written.
    pub(crate) fn create(folder: PathBuf) -> Result<Self, PkiError> {
        Authority::init(&folder)?;
        let mut authority = Authority::open(&folder)?;
        for role in [Role::Source, Role::Sink] {
            authority.issue(role.name(), Validity::Days(1))?;
        }
        Ok(Self { folder })
    }

    /// The folder that the daemon of this role is given.
    pub(crate) fn of(&self, role: Role) -> PathBuf {
        self.folder.join(role.name())
    }
}
