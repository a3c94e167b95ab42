//! What the sink holds of each page: version, hash, and whether its memory was read back since.
//!
//! Owned by one shard, one per session and lane. The region's memory itself is the base; this table
//! says which version it is. Sizes are fixed when the session opens.

use dwcp_codec::PageHash;
use dwcp_proto::ids::Sequence;

#[derive(Clone, Copy, Debug)]
struct Entry {
    hash: PageHash,
    /// 0 until the first version arrived.
    version: Sequence,
    /// The region's memory was hashed after this version was written, and matched.
    read_back: bool,
}

/// The table of one lane's pages at the sink.
#[derive(Debug)]
pub(crate) struct SinkPages {
    entries: Vec<Entry>,
}

impl SinkPages {
    /// A table of `slots` pages, none of which has arrived.
    pub(crate) fn new(slots: usize) -> Self {
        let nothing = Entry { hash: PageHash([0; 16]), version: Sequence(0), read_back: false };
        Self { entries: vec![nothing; slots] }
    }

    /// True when a page of this version would replace what is held.
    pub(crate) fn is_newer(&self, slot: usize, version: Sequence) -> bool {
        version > self.entries[slot].version
    }

    /// The page's memory now holds `version`.
    pub(crate) fn applied(&mut self, slot: usize, version: Sequence, hash: PageHash) {
        assert!(self.is_newer(slot, version), "an older version never replaces a newer one");
        self.entries[slot] = Entry { hash, version, read_back: false };
    }

    /// The hash of the held version if it is `version`.
    pub(crate) fn hash_of(&self, slot: usize, version: Sequence) -> Option<PageHash> {
        let entry = &self.entries[slot];
        (entry.version == version && version != Sequence(0)).then_some(entry.hash)
    }

    /// The hash of the held version, if any arrived.
    pub(crate) fn hash(&self, slot: usize) -> Option<PageHash> {
        let entry = &self.entries[slot];
        (entry.version != Sequence(0)).then_some(entry.hash)
    }

    /// True when the page still has to be read back from memory.
    pub(crate) fn needs_read_back(&self, slot: usize) -> bool {
        let entry = &self.entries[slot];
        entry.version != Sequence(0) && !entry.read_back
    }

    /// The page's memory was hashed: true when it is what was applied.
    pub(crate) fn read_back(&mut self, slot: usize, hash: PageHash) -> bool {
        let entry = &mut self.entries[slot];
        entry.read_back = entry.hash == hash;
        entry.read_back
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_version_is_not_newer() {
        let mut pages = SinkPages::new(1);
        pages.applied(0, Sequence(5), PageHash([5; 16]));
        assert!(!pages.is_newer(0, Sequence(4)));
        assert!(!pages.is_newer(0, Sequence(5)));
        assert!(pages.is_newer(0, Sequence(6)));
        assert_eq!(pages.hash_of(0, Sequence(4)), None);
        assert_eq!(pages.hash_of(0, Sequence(5)), Some(PageHash([5; 16])));
    }

    #[test]
    fn a_write_asks_for_a_new_read_back() {
        let mut pages = SinkPages::new(1);
        assert!(!pages.needs_read_back(0));
        pages.applied(0, Sequence(1), PageHash([1; 16]));
        assert!(pages.needs_read_back(0));
        assert!(!pages.read_back(0, PageHash([9; 16])));
        assert!(pages.needs_read_back(0));
        assert!(pages.read_back(0, PageHash([1; 16])));
        assert!(!pages.needs_read_back(0));
        pages.applied(0, Sequence(2), PageHash([2; 16]));
        assert!(pages.needs_read_back(0));
    }
}
