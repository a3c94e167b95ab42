//! The store: an index of segments in memory, and their files.
//!
//! One owner, on a thread that may wait for the disk. What a file holds is never trusted: a page
//! goes out only if it has the hash that was asked for.

mod clear;
mod land;
mod open;

pub use open::OpenReport;

use crate::blocks::Blocks;
use crate::error::StoreError;
use crate::folder::{self, Folder};
use crate::index::Index;
use crate::key::{SegmentCipher, StoreKey};
use crate::layout::BLOCK_PAGES;
use crate::limits::{FAULTS_KEPT, StoreLimits};
use crate::segment::{DomainId, SegmentId, SegmentInfo, SegmentView};
use crate::stats::StoreStats;
use crate::unusable::{Unusable, UnusableFile};
use crate::writer::{Room, SegmentWriter};
use dwcp_codec::{HashKey, PAGE_BYTES, Page, PageHash, PageHasher};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The pages that a host keeps.
#[derive(Debug)]
pub struct Store {
    folder: Folder,
    key: StoreKey,
    limits: StoreLimits,
    segments: BTreeMap<SegmentId, Segment>,
    /// Files that take room but are not used, with their bytes.
    left_alone: BTreeMap<PathBuf, u64>,
    /// The serial number of the next segment that lands: of two with one name the higher counts.
    serial_next: u64,
    blocks: Blocks,
    counters: StoreStats,
    faults: Vec<UnusableFile>,
}

/// A segment of the index.
#[derive(Debug)]
struct Segment {
    info: SegmentInfo,
    hasher: PageHasher,
    cipher: SegmentCipher,
    index: Index,
    serial: u64,
    last_used: SystemTime,
}

/// Why a segment goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parting {
    Replaced,
    Evicted,
    Expired,
    Purged,
}

impl Store {
    /// Opens or makes the store in a directory of its own, which others must not be able to enter.
    ///
    /// Files that a crash left behind are removed. So are segments that nobody can read, because
    /// they are damaged or were written under another key, those that were of no use for too long,
    /// and the least recently used of those that the limits have no room for. A segment of a newer
    /// format and a file that the kernel can't read are left alone: they are not used, but count
    /// for the limit of bytes. The report tells of all of them.
    ///
    /// # Errors
    /// The directory can't be used, or another owner has it open.
    pub fn open(
        path: &Path,
        key: StoreKey,
        limits: StoreLimits,
        now: SystemTime,
    ) -> Result<(Self, OpenReport), StoreError> {
        let folder = Folder::open(path)?;
        let mut this = Self {
            folder,
            key,
            limits,
            segments: BTreeMap::new(),
            left_alone: BTreeMap::new(),
            serial_next: 0,
            blocks: Blocks::new(),
            counters: StoreStats::default(),
            faults: Vec::new(),
        };
        let report = this.load_all(now)?;
        Ok((this, report))
    }

    /// Begins a segment. It is nobody's until it lands, and any number may be under way.
    ///
    /// # Errors
    /// The name is too long, the domain has another hash key, or the disk refuses a file.
    pub fn begin(&self, info: SegmentInfo) -> Result<SegmentWriter, StoreError> {
        info.check()?;
        self.check_hash_key(&info)?;
        let id = SegmentId::random()?;
        let cipher = SegmentCipher::new(&self.key, id);
        SegmentWriter::new(self.folder.create(id)?, (id, info), cipher, self.room())
    }

    /// Reads the page with this hash. False, and `out` unchanged, if it is not here: that is also
    /// the answer where a file turns out to be damaged or gone, whose segment leaves the store then
    /// ([`Self::take_faults`]). The zero page is never here.
    pub fn read(&mut self, domain: DomainId, hash: &PageHash, out: &mut Page) -> bool {
        let found = self.read_any(domain, hash, out);
        let counters = &mut self.counters;
        *(if found { &mut counters.hits } else { &mut counters.misses }) += 1;
        found
    }

    fn read_any(&mut self, domain: DomainId, hash: &PageHash, out: &mut Page) -> bool {
        while let Some((id, position)) = self.find_page(domain, hash) {
            match self.read_from(id, position, hash, out) {
                Ok(()) => return true,
                // Another segment may have the page as well. One goes each time, so this ends.
                Err(reason) => self.condemn(id, reason),
            }
        }
        false
    }

    fn find_page(&self, domain: DomainId, hash: &PageHash) -> Option<(SegmentId, u32)> {
        let mut of_domain = self.segments.iter().filter(|(_, it)| it.info.domain == domain);
        of_domain.find_map(|(id, segment)| Some((*id, segment.index.find(hash)?)))
    }

    fn read_from(
        &mut self,
        id: SegmentId,
        position: u32,
        hash: &PageHash,
        out: &mut Page,
    ) -> Result<(), Unusable> {
        let segment = &self.segments[&id];
        let place = segment.index.block(position / BLOCK_PAGES as u32);
        let path = || self.folder.segment(id);
        let pages = self.blocks.block(id, path, &segment.cipher, place)?;
        let page = &pages.as_chunks::<PAGE_BYTES>().0[position as usize % BLOCK_PAGES];
        if segment.hasher.hash(page) != *hash {
            return Err(Unusable::Damaged { part: "page" });
        }
        out.copy_from_slice(page);
        Ok(())
    }

    /// The hashes of all pages of a domain; one that two segments hold comes twice.
    pub fn hashes(&self, domain: DomainId) -> impl Iterator<Item = PageHash> {
        self.of_domain(domain).flat_map(|segment| segment.index.hashes())
    }

    /// The pages of one of a segment's blocks, in the order in which they were pushed; none behind
    /// the last block, or where the segment is not here or turns out to be damaged. They are what
    /// was sealed: whoever takes them has to hash them, which is not done here.
    pub fn block(&mut self, id: SegmentId, number: u32) -> Option<&[Page]> {
        let segment = self.segments.get(&id)?;
        if number >= segment.index.blocks() {
            return None;
        }
        let place = segment.index.block(number);
        let path = || self.folder.segment(id);
        if let Err(reason) = self.blocks.block(id, path, &segment.cipher, place) {
            self.condemn(id, reason);
            return None;
        }
        self.counters.hits += place.pages as u64;
        // It was read a moment ago, so this looks at what is kept of it.
        let bytes = self.blocks.block(id, path, &segment.cipher, place).ok()?;
        Some(bytes.as_chunks::<PAGE_BYTES>().0)
    }

    /// True if a page is in the index, at no cost of the disk's.
    #[must_use]
    pub fn contains(&self, domain: DomainId, hash: &PageHash) -> bool {
        self.find_page(domain, hash).is_some()
    }

    /// All domains that have a segment, with the keys that their pages are hashed with.
    #[must_use]
    pub fn domains(&self) -> BTreeMap<DomainId, HashKey> {
        let infos = self.segments.values().map(|segment| &segment.info);
        infos.map(|info| (info.domain, info.hash_key.clone())).collect()
    }

    /// The key that a domain's pages are hashed with; none if it has no segment.
    #[must_use]
    pub fn domain_key(&self, domain: DomainId) -> Option<HashKey> {
        self.of_domain(domain).next().map(|segment| segment.info.hash_key.clone())
    }

    /// The segments of a name, of any domain.
    pub fn named(&self, name: &str) -> impl Iterator<Item = SegmentView> {
        let named = self.segments.iter().filter(move |(_, segment)| segment.info.name == name);
        named.map(|(id, segment)| segment.view(*id))
    }

    /// All segments, in no order that means anything.
    pub fn list(&self) -> impl Iterator<Item = SegmentView> {
        self.segments.iter().map(|(id, segment)| segment.view(*id))
    }

    /// A session matched pages of a domain: its segments were of use now. Written down in the
    /// files' times as well as that goes.
    pub fn used(&mut self, domain: DomainId, now: SystemTime) {
        let of_domain = self.segments.iter_mut().filter(|(_, it)| it.info.domain == domain);
        for (id, segment) in of_domain {
            // A clock that was set back makes nothing older.
            segment.last_used = segment.last_used.max(now);
            let file = File::open(self.folder.segment(*id));
            if file.and_then(|file| file.set_modified(segment.last_used)).is_err() {
                self.counters.untimed += 1;
            }
        }
    }

    /// What the store holds and what became of it.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        StoreStats {
            segments: self.segments.len() as u64,
            pages: self.segments.values().map(|segment| segment.index.pages()).sum(),
            bytes: self.segments.values().map(|segment| segment.index.file_bytes()).sum(),
            left_alone_bytes: self.left_alone.values().sum(),
            blocks_read: self.blocks.blocks_read(),
            ..self.counters
        }
    }

    /// The files that were found to be of no use since this was called last, for the log. No more
    /// than the last [`FAULTS_KEPT`] are kept; the counters tell of all.
    pub fn take_faults(&mut self) -> Vec<UnusableFile> {
        std::mem::take(&mut self.faults)
    }

    fn of_domain(&self, domain: DomainId) -> impl Iterator<Item = &Segment> {
        self.segments.values().filter(move |segment| segment.info.domain == domain)
    }

    fn check_hash_key(&self, info: &SegmentInfo) -> Result<(), StoreError> {
        match self.domain_key(info.domain) {
            Some(key) if key != info.hash_key => {
                Err(StoreError::OtherHashKey { domain: info.domain })
            }
            _ => Ok(()),
        }
    }

    /// What one segment may take: everything that is not bound by files that are left alone.
    fn room(&self) -> Room {
        let left_alone = self.left_alone.values().sum();
        let bytes = self.limits.bytes_max.saturating_sub(left_alone);
        Room { bytes, pages: self.limits.pages_max }
    }

    /// A read found a segment to be of no use: it leaves the index, and its file the disk if
    /// nobody could ever use it.
    fn condemn(&mut self, id: SegmentId, reason: Unusable) {
        let Some(segment) = self.segments.remove(&id) else { return };
        self.blocks.forget(id);
        match &reason {
            Unusable::Gone => self.counters.gone += 1,
            reason if reason.is_final() => self.counters.damaged += 1,
            _ => self.counters.unreadable += 1,
        }
        let path = self.folder.segment(id);
        let bytes = segment.index.file_bytes();
        let removed = reason.is_final() && self.remove_or_tell(&path, bytes);
        if matches!(reason, Unusable::Unreadable { .. }) {
            self.left_alone.insert(path.clone(), bytes);
        }
        self.fault(UnusableFile { path, reason, removed });
    }

    /// Removes a file; one that stays is left alone from now on and counts for the limits.
    fn remove_file(&mut self, path: &Path, bytes: u64) -> io::Result<()> {
        let removed = folder::remove(path);
        if removed.is_ok() {
            self.left_alone.remove(path);
        } else {
            self.counters.stuck += 1;
            self.left_alone.insert(path.to_owned(), bytes);
        }
        removed
    }

    /// The same where nobody waits for an error: it becomes a fault. True if the file went.
    fn remove_or_tell(&mut self, path: &Path, bytes: u64) -> bool {
        let removed = self.remove_file(path, bytes);
        let is_ok = removed.is_ok();
        if let Err(source) = removed {
            let reason = Unusable::Stuck { source };
            self.fault(UnusableFile { path: path.to_owned(), reason, removed: false });
        }
        is_ok
    }

    fn fault(&mut self, fault: UnusableFile) {
        if self.faults.len() == FAULTS_KEPT {
            self.faults.remove(0);
        }
        self.faults.push(fault);
    }
}

impl Segment {
    fn view(&self, id: SegmentId) -> SegmentView {
        SegmentView {
            id,
            name: self.info.name.clone(),
            kind: self.info.kind,
            domain: self.info.domain,
            note: self.info.note.clone(),
            pages: self.index.pages(),
            bytes: self.index.file_bytes(),
            last_used: self.last_used,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::Kind;
    use std::time::Duration;

    fn open(path: &Path) -> Store {
        let ttl = Duration::from_secs(60);
        let limits = StoreLimits { bytes_max: 1 << 20, pages_max: 100, ttl };
        Store::open(path, StoreKey::new([7; 32]), limits, SystemTime::UNIX_EPOCH).unwrap().0
    }

    fn info() -> SegmentInfo {
        let (domain, hash_key) = (DomainId([1; 16]), HashKey([2; 32]));
        SegmentInfo {
            domain,
            hash_key,
            name: "guest".to_owned(),
            kind: Kind::Guest,
            note: Vec::new(),
        }
    }

    #[test]
    fn a_page_without_the_hash_that_was_asked_for_never_goes_out() {
        let parent = tempfile::tempdir().unwrap();
        let mut store = open(&parent.path().join("store"));
        let mut writer = store.begin(info()).unwrap();
        // Sealed and all, but under a wrong name: as if our own memory had failed.
        writer.push_hashed(PageHash([3; 16]), &[4; PAGE_BYTES]).unwrap();
        store.land(writer, SystemTime::UNIX_EPOCH).unwrap();
        let mut out = [0; PAGE_BYTES];
        assert!(!store.read(DomainId([1; 16]), &PageHash([3; 16]), &mut out));
        assert_eq!(out, [0; PAGE_BYTES]);
        assert_eq!((store.stats().damaged, store.stats().segments), (1, 0));
        let fault = store.take_faults().pop().unwrap();
        assert_eq!(fault.reason.to_string(), "its page is damaged");
    }

    #[test]
    fn no_page_stays_in_memory_when_its_segment_goes() {
        let parent = tempfile::tempdir().unwrap();
        let mut store = open(&parent.path().join("store"));
        let mut writer = store.begin(info()).unwrap();
        let page = [4; PAGE_BYTES];
        let hash = PageHasher::new(&info().hash_key).hash(&page);
        writer.push(hash, &page).unwrap();
        let id = store.land(writer, SystemTime::UNIX_EPOCH).unwrap();
        assert!(store.read(DomainId([1; 16]), &hash, &mut [0; PAGE_BYTES]));
        assert_eq!(format!("{:?}", store.blocks), "Blocks { kept: 1, .. }");
        store.remove(id).unwrap();
        assert_eq!(format!("{:?}", store.blocks), "Blocks { kept: 0, .. }");
    }

    #[test]
    fn a_serial_number_is_never_given_twice() {
        let parent = tempfile::tempdir().unwrap();
        let mut store = open(&parent.path().join("store"));
        let writer = store.begin(info()).unwrap();
        // Takes the writer's file away, so that it can't be renamed.
        assert_eq!(store.folder.scan().unwrap().0, 1);
        assert_eq!(store.land(writer, SystemTime::UNIX_EPOCH).unwrap_err().code(), "store_io");
        let writer = store.begin(info()).unwrap();
        let id = store.land(writer, SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(store.segments[&id].serial, 1);
    }

    #[test]
    fn a_store_and_its_writers_may_go_to_other_threads() {
        fn goes<T: Send>() {}
        goes::<Store>();
        goes::<SegmentWriter>();
    }
}
