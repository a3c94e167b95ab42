//! How a written segment becomes one of the store's.

use super::{Parting, Segment, Store};
use crate::error::StoreError;
use crate::segment::SegmentId;
use crate::writer::{SegmentWriter, Written};
use std::time::SystemTime;

impl Store {
    /// Makes what was written one of the store's segments, of use now, and durable. It takes the
    /// place of the older one of its domain and name; then segments go until the limits hold, the
    /// least recently used first.
    ///
    /// # Errors
    /// It does not fit at all, the domain has another hash key by now, the writer met an error
    /// before, or the disk failed. The store is as it was, and nothing is left of the writer.
    ///
    /// # Panics
    /// When another store began the writer.
    pub fn land(
        &mut self,
        writer: SegmentWriter,
        now: SystemTime,
    ) -> Result<SegmentId, StoreError> {
        self.check_hash_key(writer.info())?;
        // Never given twice: a file whose landing failed may come back with a crash.
        let serial = self.serial_next;
        self.serial_next += 1;
        let Written { id, info, cipher, hasher, file, index } = writer.finish(serial, now)?;
        assert!(self.folder.is_of(&file), "a writer lands where it began");
        // Files may have come to be left alone since the writer began.
        self.room().check(index.file_bytes(), index.pages())?;
        self.folder.land(file, id)?;
        self.counters.landed += 1;
        let others = self.segments.iter();
        let older = others.filter(|(_, it)| it.info.same_place(&info)).map(|(id, _)| *id);
        for older in older.collect::<Vec<_>>() {
            self.part_with(older, Parting::Replaced);
        }
        self.segments.insert(id, Segment { info, hasher, cipher, index, serial, last_used: now });
        self.evict_but(Some(id));
        Ok(id)
    }
}
