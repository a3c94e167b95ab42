//! The regions that clients registered, by name.
//!
//! Pure table; the memory itself is mapped by `dwcp_ffi` and shared with shards by reference.

use crate::api::{ApiCode, ApiError, Role};
use crate::limits::REGIONS_MAX;
use dwcp_dataplane::port::DirtyPages;
use dwcp_ffi::region::Region;
use dwcp_proto::ids::SessionId;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A region's memory and, at a source, how its changed pages are found.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    pub(crate) region: Arc<Region>,
    pub(crate) dirty: DirtyPages,
}

/// A registered region.
#[derive(Debug)]
pub(crate) struct RegionEntry {
    pub(crate) role: Role,
    pub(crate) memory: Memory,
    pub(crate) accept_from: Vec<String>,
    /// The session that uses it.
    pub(crate) used_by: Option<SessionId>,
    /// The session that committed with it. At the sink its owner runs on that memory, at the source
    /// the right to it was given up: no other session may have it under this registration.
    pub(crate) spent_by: Option<SessionId>,
}

/// All regions.
#[derive(Debug, Default)]
pub(crate) struct Regions(BTreeMap<String, RegionEntry>);

impl Regions {
    /// Adds a region.
    pub(crate) fn add(&mut self, name: String, entry: RegionEntry) -> Result<(), ApiError> {
        if self.0.len() >= REGIONS_MAX {
            let message = format!("{REGIONS_MAX} regions are registered already");
            return Err(ApiError::new(ApiCode::Busy, message));
        }
        if self.0.contains_key(&name) {
            let message = format!("a region named {name} is registered already");
            return Err(ApiError::new(ApiCode::RegionExists, message));
        }
        self.0.insert(name, entry);
        Ok(())
    }

    /// Forgets a region that nobody uses.
    pub(crate) fn release(&mut self, name: &str) -> Result<(), ApiError> {
        self.free(name)?;
        self.0.remove(name);
        Ok(())
    }

    /// Takes a free region of the right role for a session.
    pub(crate) fn take(
        &mut self,
        name: &str,
        role: Role,
        session: SessionId,
    ) -> Result<&RegionEntry, ApiError> {
        let entry = self.free(name)?;
        if entry.role != role {
            let message = format!("region {name} is registered as a {}", entry.role.name());
            return Err(ApiError::new(ApiCode::RegionRole, message));
        }
        if let Some(committed) = entry.spent_by {
            let message = format!("session {committed} committed with region {name}");
            return Err(ApiError::new(ApiCode::RegionSpent, message));
        }
        entry.used_by = Some(session);
        Ok(entry)
    }

    /// Ends a session's use of a region, for good when the session committed.
    pub(crate) fn give_back(&mut self, name: &str, session: SessionId, committed: bool) {
        if let Some(entry) = self.0.get_mut(name)
            && entry.used_by == Some(session)
        {
            entry.used_by = None;
            entry.spent_by = committed.then_some(session);
        }
    }

    /// A region by name.
    pub(crate) fn find(&self, name: &str) -> Option<&RegionEntry> {
        self.0.get(name)
    }

    /// All regions by name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &RegionEntry)> {
        self.0.iter()
    }

    fn free(&mut self, name: &str) -> Result<&mut RegionEntry, ApiError> {
        let unknown =
            || ApiError::new(ApiCode::RegionUnknown, format!("there is no region {name}"));
        let entry = self.0.get_mut(name).ok_or_else(unknown)?;
        match entry.used_by {
            None => Ok(entry),
            Some(session) => {
                let message = format!("session {session} uses region {name}");
                Err(ApiError::new(ApiCode::RegionBusy, message))
            }
        }
    }
}
