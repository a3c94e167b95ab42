//! The store's key, and the ciphers of its segments.
//!
//! Pure. The owner gives the key; every segment has a cipher of its own, derived from it and from
//! the segment's random id. Keys are wiped on drop and never printed.

use crate::layout::{self, CHECK_BYTES, HEADER_BYTES, TAG_BYTES, TRAILER_BYTES};
use crate::segment::SegmentId;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use std::fmt;
use zeroize::Zeroize;

/// Bytes of a [`StoreKey`].
pub const STORE_KEY_BYTES: usize = 32;

const SEAL_LABEL: &[u8] = b"dwcp store segment 1: seal";
const STORE_LABEL: &[u8] = b"dwcp store 1: key";
const CHECK_LABEL: &[u8] = b"dwcp store segment 1: key check";

/// The secret that all segments' keys come from. Who has it and the files can read all pages.
pub struct StoreKey([u8; STORE_KEY_BYTES]);

impl StoreKey {
    /// A key from a longer secret, which must not be guessable.
    #[must_use]
    pub fn derive(secret: &[u8]) -> Self {
        let mut key = [0; STORE_KEY_BYTES];
        let derived = Salt::new(HKDF_SHA256, STORE_LABEL).extract(secret);
        let filled = derived
            .expand(&[STORE_LABEL], Length(STORE_KEY_BYTES))
            .and_then(|okm| okm.fill(&mut key));
        assert!(filled.is_ok(), "HKDF gives as many bytes as a key has");
        let this = Self(key);
        key.zeroize();
        this
    }

    /// A key from random bytes. The caller's copy is its own to wipe.
    #[must_use]
    pub const fn new(bytes: [u8; STORE_KEY_BYTES]) -> Self {
        Self(bytes)
    }
}

impl Drop for StoreKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for StoreKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoreKey(redacted)")
    }
}

/// What is sealed: each has a nonce that no other has.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part<'a> {
    /// A block of pages.
    Block(u32),
    /// A chunk of the table, with the trailer that says where it lies.
    Table(u32, &'a [u8; TRAILER_BYTES]),
}

impl Part<'_> {
    fn nonce(self) -> Nonce {
        let (part, number) = match self {
            Self::Block(number) => (0_u32, number),
            Self::Table(number, _) => (1, number),
        };
        let mut nonce = [0; NONCE_LEN];
        nonce[..4].copy_from_slice(&part.to_be_bytes());
        nonce[4..].copy_from_slice(&u64::from(number).to_be_bytes());
        Nonce::assume_unique_for_key(nonce)
    }
}

/// What a part is bound to: the header, for the table also the trailer.
struct Bound {
    bytes: [u8; HEADER_BYTES + TRAILER_BYTES],
    length: usize,
}

impl AsRef<[u8]> for Bound {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// Seals and opens the parts of one segment.
#[derive(Debug)]
pub(crate) struct SegmentCipher {
    key: LessSafeKey,
    header: [u8; HEADER_BYTES],
}

impl SegmentCipher {
    pub(crate) fn new(key: &StoreKey, id: SegmentId) -> Self {
        let derived = Salt::new(HKDF_SHA256, &id.0).extract(&key.0);
        let Ok(sealing) = derived.expand(&[SEAL_LABEL], &AES_256_GCM) else {
            unreachable!("the cipher's key is shorter than what HKDF gives at most");
        };
        let mut check = [0; CHECK_BYTES];
        let filled =
            derived.expand(&[CHECK_LABEL], Length(CHECK_BYTES)).and_then(|it| it.fill(&mut check));
        assert!(filled.is_ok(), "the check is shorter than what HKDF gives at most");
        let key = LessSafeKey::new(UnboundKey::from(sealing));
        Self { key, header: layout::header(&id.0, &check) }
    }

    /// The segment's header, whole.
    pub(crate) const fn header(&self) -> &[u8; HEADER_BYTES] {
        &self.header
    }

    fn bound(&self, part: Part<'_>) -> Aad<Bound> {
        let mut bytes = [0; HEADER_BYTES + TRAILER_BYTES];
        bytes[..HEADER_BYTES].copy_from_slice(&self.header);
        let length = match part {
            Part::Block(_) => HEADER_BYTES,
            Part::Table(_, trailer) => {
                bytes[HEADER_BYTES..].copy_from_slice(trailer);
                bytes.len()
            }
        };
        Aad::from(Bound { bytes, length })
    }

    /// Seals what lies in `buf` before room for the tag.
    pub(crate) fn seal(&self, part: Part<'_>, buf: &mut [u8]) {
        assert!(buf.len() > TAG_BYTES, "there is something to seal");
        let (plain, tag) = buf.split_at_mut(buf.len() - TAG_BYTES);
        match self.key.seal_in_place_separate_tag(part.nonce(), self.bound(part), plain) {
            Ok(made) => tag.copy_from_slice(made.as_ref()),
            Err(_) => unreachable!("64 KiB is far below what the cipher takes at once"),
        }
    }

    /// Opens what was sealed; none if it is not what was sealed.
    pub(crate) fn open<'a>(&self, part: Part<'_>, buf: &'a mut [u8]) -> Option<&'a mut [u8]> {
        self.key.open_in_place(part.nonce(), self.bound(part), buf).ok()
    }
}

/// How many bytes, as HKDF wants to have it told.
#[derive(Clone, Copy)]
struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_opens_in_its_own_place_alone() {
        let key = StoreKey::new([7; STORE_KEY_BYTES]);
        let (one, two) = (
            SegmentCipher::new(&key, SegmentId([1; 16])),
            SegmentCipher::new(&key, SegmentId([2; 16])),
        );
        let (trailer, other) = ([3; TRAILER_BYTES], [4; TRAILER_BYTES]);
        let mut sealed = [5; 100];
        one.seal(Part::Table(9, &trailer), &mut sealed);
        let opens = |cipher: &SegmentCipher, part| cipher.open(part, &mut sealed.clone()).is_some();
        assert!(opens(&one, Part::Table(9, &trailer)));
        assert!(!opens(&one, Part::Table(8, &trailer)));
        assert!(!opens(&one, Part::Table(9, &other)));
        assert!(!opens(&one, Part::Block(9)));
        assert!(!opens(&two, Part::Table(9, &trailer)));
        for byte in 0..sealed.len() {
            let mut flipped = sealed;
            flipped[byte] ^= 1;
            assert!(one.open(Part::Table(9, &trailer), &mut flipped).is_none(), "byte {byte}");
        }
    }

    #[test]
    fn another_store_key_gives_another_header() {
        let header = |byte| {
            *SegmentCipher::new(&StoreKey::new([byte; STORE_KEY_BYTES]), SegmentId([1; 16]))
                .header()
        };
        assert_eq!(header(7), header(7));
        assert_ne!(header(7), header(8));
    }

    #[test]
    fn keys_do_not_show_in_debug_output() {
        assert_eq!(format!("{:?}", StoreKey::new([0xab; 32])), "StoreKey(redacted)");
    }
}
