//! The keyed hash of a page.
//!
//! BLAKE3 keyed with a secret of the link, cut to 128 bits: nobody without the key can make two
//! pages with the same hash, or learn from a hash what a page holds. Owns the key and what is
//! precomputed from it. Used on shards; immutable after construction.

use crate::many::{ManyHasher, TOGETHER};
use crate::page::{PAGE_BYTES, Page, is_zero};
use std::fmt;

/// Bytes of a [`HashKey`].
pub const HASH_KEY_BYTES: usize = 32;
/// Bytes of a [`PageHash`].
pub const PAGE_HASH_BYTES: usize = 16;

/// The secret key of the page hash, the same at both ends of a link.
#[derive(Clone, PartialEq, Eq)]
pub struct HashKey(pub [u8; HASH_KEY_BYTES]);

impl fmt::Debug for HashKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashKey(redacted)")
    }
}

/// The keyed hash of a page's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageHash(pub [u8; PAGE_HASH_BYTES]);

/// The keyed hash of one page. Where many pages are hashed, use a [`PageHasher`].
#[must_use]
pub fn hash_page(key: &HashKey, page: &Page) -> PageHash {
    PageHash(cut(&blake3::keyed_hash(&key.0, page)))
}

/// Hashes pages under one key; knows the zero page's hash beforehand and holds the keys of the
/// digests, which are derived from the page key so that a page can't stand in for a list of hashes.
#[derive(Clone)]
pub struct PageHasher {
    key: HashKey,
    many: ManyHasher,
    zero: PageHash,
    digest_keys: [[u8; HASH_KEY_BYTES]; crate::digest::DigestKind::COUNT],
}

impl PageHasher {
    /// Precomputes what depends on the key alone.
    #[must_use]
    pub fn new(key: &HashKey) -> Self {
        let derive = |kind: crate::digest::DigestKind| {
            *blake3::keyed_hash(&key.0, kind.context().as_bytes()).as_bytes()
        };
        Self {
            key: key.clone(),
            many: ManyHasher::new(key),
            zero: hash_page(key, &[0; PAGE_BYTES]),
            digest_keys: crate::digest::DigestKind::ALL.map(derive),
        }
    }

    /// The hash of a page: the same as [`hash_page`], at less cost for a zero page.
    #[must_use]
    pub fn hash(&self, page: &Page) -> PageHash {
        if is_zero(page) { self.zero } else { hash_page(&self.key, page) }
    }

    /// The hashes of many pages: the same as [`Self::hash`] of each, several times as fast, since
    /// the processor's vectors hash pages side by side.
    ///
    /// # Panics
    /// When there are not as many hashes as pages.
    pub fn hash_all(&self, pages: &[Page], hashes: &mut [PageHash]) {
        assert!(pages.len() == hashes.len(), "each page has a place for its hash");
        let groups = pages.chunks(TOGETHER).zip(hashes.chunks_mut(TOGETHER));
        for (pages, hashes) in groups {
            let mut others = [&[0; PAGE_BYTES]; TOGETHER];
            let mut places = [0; TOGETHER];
            let mut count = 0;
            for (place, page) in pages.iter().enumerate() {
                if is_zero(page) {
                    hashes[place] = self.zero;
                } else {
                    (others[count], places[count]) = (page, place);
                    count += 1;
                }
            }
            let hashed = self.many.hash(&others[..count]);
            for (place, hash) in places[..count].iter().zip(hashed) {
                hashes[*place] = hash;
            }
        }
    }

    /// The hash of the zero page.
    #[must_use]
    pub const fn zero_page(&self) -> PageHash {
        self.zero
    }

    /// The key of a kind of digest.
    pub(crate) const fn digest_key(
        &self,
        kind: crate::digest::DigestKind,
    ) -> &[u8; HASH_KEY_BYTES] {
        &self.digest_keys[kind as usize]
    }
}

impl fmt::Debug for PageHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PageHasher(redacted)")
    }
}

/// The first 16 bytes of a BLAKE3 output.
pub(crate) fn cut(hash: &blake3::Hash) -> [u8; PAGE_HASH_BYTES] {
    let mut short = [0; PAGE_HASH_BYTES];
    short.copy_from_slice(&hash.as_bytes()[..PAGE_HASH_BYTES]);
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hasher_and_function_agree_and_the_key_matters() {
        let hasher = PageHasher::new(&HashKey([7; HASH_KEY_BYTES]));
        let zero = [0; PAGE_BYTES];
        let mut page = zero;
        page[4095] = 1;
        for page in [&zero, &page] {
            assert_eq!(hasher.hash(page), hash_page(&HashKey([7; HASH_KEY_BYTES]), page));
            assert_ne!(hasher.hash(page), hash_page(&HashKey([8; HASH_KEY_BYTES]), page));
        }
        assert_eq!(hasher.hash(&zero), hasher.zero_page());
        assert_ne!(hasher.hash(&page), hasher.zero_page());
    }

    #[test]
    fn many_pages_have_the_hashes_that_each_has_alone() {
        let hasher = PageHasher::new(&HashKey([7; HASH_KEY_BYTES]));
        let pages: Vec<Page> = (0..70_u64)
            .map(|page| {
                let mut bytes = [0; PAGE_BYTES];
                let mut state = page;
                // Every fifth page stays zero.
                for byte in bytes.iter_mut().filter(|_| page % 5 > 0) {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1 + page);
                    *byte = (state >> 56) as u8;
                }
                bytes
            })
            .collect();
        for count in 0..pages.len() {
            let pages = &pages[..count];
            let mut hashes = vec![PageHash::default(); count];
            hasher.hash_all(pages, &mut hashes);
            let alone: Vec<PageHash> = pages.iter().map(|page| hasher.hash(page)).collect();
            assert_eq!(hashes, alone, "{count} pages");
        }
    }

    #[test]
    fn keys_do_not_show_in_debug_output() {
        let key = HashKey([0xab; HASH_KEY_BYTES]);
        assert_eq!(format!("{key:?}"), "HashKey(redacted)");
        assert_eq!(format!("{:?}", PageHasher::new(&key)), "PageHasher(redacted)");
    }
}
