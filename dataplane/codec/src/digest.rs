//! Digests over lists of page hashes.
//!
//! One 16-byte digest stands for the new hashes of an extent, for the bases that it was coded
//! against, or for all pages of a lane at the end of a session. Each kind has its own key, and each
//! hash goes in with its page index, so that no list can stand in for another. Streaming and of
//! fixed size; used on shards.

use crate::hash::{PAGE_HASH_BYTES, PageHash, PageHasher, cut};
use std::fmt;

/// Bytes of a [`Digest`].
pub const DIGEST_BYTES: usize = PAGE_HASH_BYTES;

/// The keyed digest of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; DIGEST_BYTES]);

/// What a digest stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DigestKind {
    /// The new pages of one frame.
    Extent = 0,
    /// The base pages that a frame's deltas are against.
    Bases = 1,
    /// All pages of a lane, in order of their index, when a session ends.
    Region = 2,
    /// The parts of a migration stream, in order, and the channels that they belong to.
    Stream = 3,
}

impl DigestKind {
    /// The number of kinds.
    pub const COUNT: usize = 4;
    /// All kinds in the order of their numbers.
    pub const ALL: [Self; Self::COUNT] = [Self::Extent, Self::Bases, Self::Region, Self::Stream];

    /// What the kind's key is derived with.
    pub(crate) const fn context(self) -> &'static str {
        match self {
            Self::Extent => "dwcp 1 digest of an extent's pages",
            Self::Bases => "dwcp 1 digest of an extent's bases",
            Self::Region => "dwcp 1 digest of a lane's pages",
            Self::Stream => "dwcp 1 digest of a migration stream",
        }
    }
}

/// Makes a [`Digest`] from hashes that come one by one.
#[derive(Clone)]
pub struct DigestBuilder(blake3::Hasher);

impl DigestBuilder {
    /// An empty list.
    #[must_use]
    pub fn new(hasher: &PageHasher, kind: DigestKind) -> Self {
        Self(blake3::Hasher::new_keyed(hasher.digest_key(kind)))
    }

    /// Adds a page. The order of the calls matters.
    pub fn add(&mut self, page: u64, hash: PageHash) {
        let mut item = [0; 8 + PAGE_HASH_BYTES];
        item[..8].copy_from_slice(&page.to_le_bytes());
        item[8..].copy_from_slice(&hash.0);
        self.0.update(&item);
    }

    /// Adds a part of a migration stream: its place, its kind and its bytes, which come in pieces.
    pub fn add_part<'a>(
        &mut self,
        position: u64,
        kind: u8,
        bytes: usize,
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) {
        let mut head = [0; 8 + 8 + 1];
        head[..8].copy_from_slice(&position.to_le_bytes());
        head[8..16].copy_from_slice(&(bytes as u64).to_le_bytes());
        head[16] = kind;
        self.0.update(&head);
        for piece in pieces {
            self.0.update(piece);
        }
    }

    /// The digest of all that was added.
    #[must_use]
    pub fn finish(&self) -> Digest {
        Digest(cut(&self.0.finalize()))
    }
}

impl fmt::Debug for DigestBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DigestBuilder(redacted)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::{HASH_KEY_BYTES, HashKey};

    fn digest(kind: DigestKind, items: &[(u64, u8)]) -> Digest {
        let hasher = PageHasher::new(&HashKey([7; HASH_KEY_BYTES]));
        let mut builder = DigestBuilder::new(&hasher, kind);
        for &(page, byte) in items {
            builder.add(page, PageHash([byte; PAGE_HASH_BYTES]));
        }
        builder.finish()
    }

    #[test]
    fn digest_depends_on_kind_order_index_and_hash() {
        let list = [(1, 1), (2, 2)];
        let reference = digest(DigestKind::Extent, &list);
        assert_eq!(reference, digest(DigestKind::Extent, &list));
        assert_ne!(reference, digest(DigestKind::Bases, &list));
        assert_ne!(reference, digest(DigestKind::Region, &list));
        assert_ne!(reference, digest(DigestKind::Extent, &[(2, 2), (1, 1)]));
        assert_ne!(reference, digest(DigestKind::Extent, &[(1, 1), (3, 2)]));
        assert_ne!(reference, digest(DigestKind::Extent, &[(1, 1), (2, 3)]));
        assert_ne!(reference, digest(DigestKind::Extent, &list[..1]));
    }

    #[test]
    fn a_stream_digest_depends_on_place_kind_and_where_a_part_ends() {
        let hasher = PageHasher::new(&HashKey([7; HASH_KEY_BYTES]));
        let digest = |parts: &[(u64, u8, &[u8])]| {
            let mut builder = DigestBuilder::new(&hasher, DigestKind::Stream);
            parts.iter().for_each(|(position, kind, bytes)| {
                builder.add_part(*position, *kind, bytes.len(), [*bytes]);
            });
            builder.finish()
        };
        let reference = digest(&[(0, 1, b"ab"), (1, 1, b"c")]);
        assert_eq!(reference, digest(&[(0, 1, b"ab"), (1, 1, b"c")]));
        assert_ne!(reference, digest(&[(0, 1, b"a"), (1, 1, b"bc")]));
        assert_ne!(reference, digest(&[(0, 2, b"ab"), (1, 1, b"c")]));
        assert_ne!(reference, digest(&[(0, 1, b"ab"), (2, 1, b"c")]));
    }
}
