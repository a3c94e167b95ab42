//! How segments leave the store: by name, by domain, by age, for room, or all of them.

use super::{Parting, Store};
use crate::error::StoreError;
use crate::folder::Folder;
use crate::segment::{DomainId, SegmentId};
use crate::unusable::{Unusable, UnusableFile};
use std::io;
use std::path::Path;
use std::time::SystemTime;

impl Store {
    /// Removes a segment; false if it is not here.
    ///
    /// # Errors
    /// Its file can't be removed, or that is not durable. It is out of use all the same.
    pub fn remove(&mut self, id: SegmentId) -> Result<bool, StoreError> {
        let mut purge = Purge::default();
        self.purge(vec![id], &mut purge);
        Ok(purge.end(&self.folder)? == 1)
    }

    /// Removes all segments of a domain and tells how many. A segment that is being written is the
    /// caller's to drop.
    ///
    /// # Errors
    /// As [`Self::remove`]. All others are removed all the same.
    pub fn purge_domain(&mut self, domain: DomainId) -> Result<u64, StoreError> {
        let of_domain = self.segments.iter().filter(|(_, it)| it.info.domain == domain);
        let ids = of_domain.map(|(id, _)| *id).collect();
        let mut purge = Purge::default();
        self.purge(ids, &mut purge);
        purge.end(&self.folder)
    }

    /// Removes all segments, and the files that were left alone, and tells how many files.
    ///
    /// # Errors
    /// As [`Self::remove`]. All others are removed all the same.
    pub fn purge_all(&mut self) -> Result<u64, StoreError> {
        let left_alone = self.left_alone.clone();
        let mut purge = Purge::default();
        self.purge(self.segments.keys().copied().collect(), &mut purge);
        for (path, bytes) in left_alone {
            let removed = self.remove_file(&path, bytes);
            self.counters.purged += u64::from(removed.is_ok());
            purge.add(&path, removed);
        }
        purge.end(&self.folder)
    }

    /// Removes the segments that were of no use for longer than the limit, and tells how many.
    /// A file that can't be removed becomes a fault ([`Self::take_faults`]).
    pub fn expire(&mut self, now: SystemTime) -> u64 {
        let segments = self.segments.iter();
        let old = segments.filter(|(_, it)| self.is_old(it.last_used, now)).map(|(id, _)| *id);
        let old: Vec<SegmentId> = old.collect();
        for id in &old {
            self.part_with(*id, Parting::Expired);
        }
        old.len() as u64
    }

    /// True if what was used then has been of no use for too long. What was used in what is now
    /// the future, since a clock was set back, is young.
    pub(super) fn is_old(&self, last_used: SystemTime, now: SystemTime) -> bool {
        now.duration_since(last_used).is_ok_and(|unused| unused > self.limits.ttl)
    }

    fn purge(&mut self, ids: Vec<SegmentId>, purge: &mut Purge) {
        for id in ids {
            let path = self.folder.segment(id);
            if let Some(removed) = self.take_out(id, Parting::Purged) {
                purge.add(&path, removed);
            }
        }
    }

    /// Makes room until everything is within the limits, the least recently used first.
    pub(super) fn evict_but(&mut self, keep: Option<SegmentId>) {
        loop {
            let stats = self.stats();
            let bytes = stats.bytes + stats.left_alone_bytes;
            if bytes <= self.limits.bytes_max && stats.pages <= self.limits.pages_max {
                return;
            }
            let others = self.segments.iter().filter(|(id, _)| Some(**id) != keep);
            let oldest = others.min_by_key(|(_, it)| (it.last_used, it.serial)).map(|(id, _)| *id);
            let Some(oldest) = oldest else { return };
            self.part_with(oldest, Parting::Evicted);
        }
    }

    /// Lets go of a segment; a file that stays on the disk becomes a fault.
    pub(super) fn part_with(&mut self, id: SegmentId, why: Parting) {
        let path = self.folder.segment(id);
        if let Some(Err(source)) = self.take_out(id, why) {
            let reason = Unusable::Stuck { source };
            self.fault(UnusableFile { path, reason, removed: false });
        }
    }

    /// Takes a segment out of the index and its file off the disk; none if it is not here.
    fn take_out(&mut self, id: SegmentId, why: Parting) -> Option<io::Result<()>> {
        let segment = self.segments.remove(&id)?;
        self.blocks.forget(id);
        let counters = &mut self.counters;
        *match why {
            Parting::Replaced => &mut counters.replaced,
            Parting::Evicted => &mut counters.evicted,
            Parting::Expired => &mut counters.expired,
            Parting::Purged => &mut counters.purged,
        } += 1;
        Some(self.remove_file(&self.folder.segment(id), segment.index.file_bytes()))
    }
}

/// What came of removing some files: how many went, and the first error.
#[derive(Debug, Default)]
struct Purge {
    count: u64,
    error: Option<StoreError>,
}

impl Purge {
    fn add(&mut self, path: &Path, removed: io::Result<()>) {
        match removed {
            Ok(()) => self.count += 1,
            Err(source) => {
                self.error.get_or_insert_with(|| StoreError::io("remove", path)(source));
            }
        }
    }

    /// Makes it durable, so that what was purged does not come back with a crash.
    fn end(self, folder: &Folder) -> Result<u64, StoreError> {
        let synced = if self.count > 0 { folder.sync() } else { Ok(()) };
        self.error.map_or(Ok(()), Err).and(synced).map(|()| self.count)
    }
}
