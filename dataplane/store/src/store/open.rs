//! How a store's segments are found again when it is opened.

use super::{Parting, Segment, Store};
use crate::error::StoreError;
use crate::folder::Found;
use crate::load::{Loaded, Probed};
use crate::segment::SegmentId;
use crate::unusable::{Unusable, UnusableFile};
use dwcp_codec::PageHasher;
use std::time::SystemTime;

/// What was found when a store was opened.
#[derive(Debug, Default)]
pub struct OpenReport {
    /// Segments that are in use now.
    pub segments: u64,
    /// Files that were being written when a crash came. Removed.
    pub leftovers: u64,
    /// Segments that were of no use for too long. Removed.
    pub expired: u64,
    /// Segments that the limits have no room for. Removed.
    pub evicted: u64,
    /// Segments whose successor was durable when a crash came. Removed.
    pub replaced: u64,
    /// Files that are of no use, and why.
    pub unusable: Vec<UnusableFile>,
}

impl Store {
    /// Loads all segments, those that were of use last first, as far as the limits have room.
    pub(super) fn load_all(&mut self, now: SystemTime) -> Result<OpenReport, StoreError> {
        let (leftovers, mut found) = self.folder.scan()?;
        // The ids only make the order of equals the same each time.
        found.sort_by_key(|it| (std::cmp::Reverse(it.last_used(now)), it.id));
        let mut report = OpenReport { leftovers, ..OpenReport::default() };
        for found in found {
            if let Err(reason) = self.load(&found, now) {
                let bytes = found.metadata.len();
                let removed = reason.is_final() && self.remove_or_tell(&found.path, bytes);
                let is_file = !matches!(reason, Unusable::NotAFile | Unusable::Gone);
                if is_file && !reason.is_final() {
                    self.left_alone.insert(found.path.clone(), bytes);
                }
                report.unusable.push(UnusableFile { path: found.path, reason, removed });
            }
        }
        // Files that are left alone may have been found after those that they take the room of.
        self.evict_but(None);
        report.expired = self.counters.expired;
        report.evicted = self.counters.evicted;
        report.replaced = self.counters.replaced;
        report.segments = self.segments.len() as u64;
        report.unusable.append(&mut self.take_faults());
        Ok(report)
    }

    fn load(&mut self, found: &Found, now: SystemTime) -> Result<(), Unusable> {
        if !found.metadata.is_file() {
            return Err(Unusable::NotAFile);
        }
        let probed = Probed::open(&found.path, found.id, &self.key)?;
        let last_used = found.last_used(now);
        if self.is_old(last_used, now) {
            self.counters.expired += 1;
            self.remove_or_tell(&found.path, found.metadata.len());
            return Ok(());
        }
        let held = self.stats();
        let bytes = held.bytes + held.left_alone_bytes + found.metadata.len();
        if bytes > self.limits.bytes_max || held.pages + probed.pages() > self.limits.pages_max {
            self.counters.evicted += 1;
            self.remove_or_tell(&found.path, found.metadata.len());
            return Ok(());
        }
        let Loaded { info, serial, cipher, index } = probed.load()?;
        self.serial_next = self.serial_next.max(serial.saturating_add(1));
        let hasher = PageHasher::new(&info.hash_key);
        self.settle(found.id, Segment { info, hasher, cipher, index, serial, last_used })
    }

    /// Takes a segment into the index. Where it can't be there beside another one, the one that
    /// landed last stays.
    fn settle(&mut self, id: SegmentId, segment: Segment) -> Result<(), Unusable> {
        let of_domain =
            self.segments.iter().filter(|(_, it)| it.info.domain == segment.info.domain);
        let (newer, older): (Vec<_>, Vec<_>) =
            of_domain.partition(|(_, it)| it.serial > segment.serial);
        let other_key = |it: &Segment| it.info.hash_key != segment.info.hash_key;
        if newer.iter().any(|(_, it)| other_key(it)) {
            return Err(Unusable::OtherHashKey);
        }
        let is_replaced = newer.iter().any(|(_, it)| it.info.same_place(&segment.info));
        let lost = older.iter().filter(|(_, it)| other_key(it)).map(|(id, _)| **id);
        let lost: Vec<SegmentId> = lost.collect();
        let same = older.iter().filter(|(_, it)| it.info.same_place(&segment.info));
        let same: Vec<SegmentId> = same.map(|(id, _)| **id).collect();
        self.segments.insert(id, segment);
        for id in lost {
            self.condemn(id, Unusable::OtherHashKey);
        }
        for id in same.into_iter().chain(is_replaced.then_some(id)) {
            self.part_with(id, Parting::Replaced);
        }
        Ok(())
    }
}

impl Found {
    /// When the segment was of use last; now if a clock was set back since.
    fn last_used(&self, now: SystemTime) -> SystemTime {
        self.metadata.modified().map_or(now, |time| time.min(now))
    }
}
