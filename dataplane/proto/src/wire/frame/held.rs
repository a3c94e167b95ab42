//! The hashes of pages that a sink alone holds, as it tells them.
//!
//! Eight bytes of each, ascending, so that how many begin with which byte stands for the first one.
//! Used on shards; what is read is checked as a whole before anything of it is given out.

use super::super::bytes::put;
use super::super::limits::{
    FRAME_HEADER_BYTES, HELD_CHUNK_PAGES, HELD_COUNTS_BYTES, HELD_FRAME_HEADER_BYTES,
    HELD_HASH_BYTES,
};
use super::{HELD, write_header};
use crate::ids::SessionNumber;

/// The first bytes of a page's hash.
pub type HashStart = [u8; 1 + HELD_HASH_BYTES];

/// The payload of a frame that tells of pages, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldHashes<'a>(&'a [u8]);

impl<'a> HeldHashes<'a> {
    /// Reads a payload: it must have as many hashes as its counts say, some and not too many.
    #[must_use]
    pub fn new(payload: &'a [u8]) -> Option<Self> {
        let this = Self(payload);
        let hashes_bytes = payload.len().checked_sub(HELD_COUNTS_BYTES)?;
        let pages: usize = this.counts().map(usize::from).sum();
        let fits = (1..=HELD_CHUNK_PAGES).contains(&pages);
        (fits && pages * HELD_HASH_BYTES == hashes_bytes).then_some(this)
    }

    fn counts(&self) -> impl Iterator<Item = u16> + use<'a> {
        let counts = self.0[..HELD_COUNTS_BYTES].as_chunks::<2>().0;
        counts.iter().map(|bytes| u16::from_be_bytes(*bytes))
    }

    /// The hashes, in the order of the pages that they name.
    pub fn iter(&self) -> impl Iterator<Item = HashStart> + use<'a> {
        let firsts = (0..=u8::MAX).zip(self.counts());
        let firsts = firsts.flat_map(|(first, count)| std::iter::repeat_n(first, count.into()));
        let rests = self.0[HELD_COUNTS_BYTES..].as_chunks::<HELD_HASH_BYTES>().0;
        firsts.zip(rests).map(|(first, rest)| {
            let mut hash = [first; 1 + HELD_HASH_BYTES];
            hash[1..].copy_from_slice(rest);
            hash
        })
    }

    /// The length of the frame that they came in.
    #[must_use]
    pub const fn frame_bytes(&self) -> u64 {
        (HELD_FRAME_HEADER_BYTES - HELD_COUNTS_BYTES + self.0.len()) as u64
    }

    pub(super) const fn bytes(&self) -> &'a [u8] {
        self.0
    }
}

/// Writes a frame that tells of pages whose hashes ascend by their first byte. Returns its length.
///
/// # Panics
/// When `out` is too short, or there are no pages or too many.
pub fn write_held(
    out: &mut [u8],
    session: SessionNumber,
    chunk: u32,
    hashes: impl ExactSizeIterator<Item = HashStart>,
) -> usize {
    assert!((1..=HELD_CHUNK_PAGES).contains(&hashes.len()), "some pages, as many as a chunk has");
    let bytes = HELD_FRAME_HEADER_BYTES + hashes.len() * HELD_HASH_BYTES;
    let mut at = write_header(out, HELD, bytes - FRAME_HEADER_BYTES);
    put(out, &mut at, &session.0.to_be_bytes());
    put(out, &mut at, &chunk.to_be_bytes());
    put(out, &mut at, &[0; HELD_COUNTS_BYTES]);
    let mut counts = [0_u16; 256];
    let mut before = 0;
    for hash in hashes {
        assert!(hash[0] >= before, "hashes ascend");
        before = hash[0];
        counts[usize::from(before)] += 1;
        put(out, &mut at, &hash[1..]);
    }
    let mut counts_at = HELD_FRAME_HEADER_BYTES - HELD_COUNTS_BYTES;
    counts.iter().for_each(|count| put(out, &mut counts_at, &count.to_be_bytes()));
    assert!(at == bytes, "every page has one hash");
    at
}

#[cfg(test)]
mod tests {
    use super::super::Frame;
    use super::*;
    use crate::wire::version::WireVersion;

    fn written(hashes: &[HashStart]) -> Vec<u8> {
        let mut out = vec![9; 20_000];
        let bytes = write_held(&mut out, SessionNumber(3), 7, hashes.iter().copied());
        out.truncate(bytes);
        out
    }

    #[test]
    fn hashes_are_read_as_they_were_written_and_the_frame_is_what_it_was() {
        let mut hashes: Vec<HashStart> = (0..HELD_CHUNK_PAGES as u64)
            .map(|page| page.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes())
            .collect();
        hashes.sort_unstable();
        for hashes in [&hashes[..], &hashes[..1], &[[0; 8], [255; 8]]] {
            let bytes = written(hashes);
            let (frame, used) = Frame::decode(WireVersion::V2, &bytes).unwrap();
            assert_eq!(used, bytes.len());
            let Frame::Held { session, chunk, hashes: read } = frame else { panic!("{frame:?}") };
            assert_eq!((session, chunk), (SessionNumber(3), 7));
            assert!(read.iter().eq(hashes.iter().copied()));
            let mut again = vec![0; bytes.len()];
            assert_eq!((frame.encode_into(&mut again), &again), (bytes.len(), &bytes));
            assert!(Frame::decode(WireVersion::V1, &bytes).is_err());
        }
    }

    #[test]
    fn counts_that_lie_are_refused() {
        let good = written(&[[1; 8], [2; 8]]);
        let payload = &good[HELD_FRAME_HEADER_BYTES - HELD_COUNTS_BYTES..];
        assert!(HeldHashes::new(payload).is_some());
        assert!(HeldHashes::new(&payload[..payload.len() - 1]).is_none());
        assert!(HeldHashes::new(&payload[..HELD_COUNTS_BYTES - 1]).is_none());
        assert!(HeldHashes::new(&[0; HELD_COUNTS_BYTES]).is_none(), "no pages");
        for count in [0, 2, u16::MAX] {
            let mut lies = payload.to_vec();
            lies[2..4].copy_from_slice(&count.to_be_bytes());
            assert!(HeldHashes::new(&lies).is_none(), "{count}");
        }
        let pages = HELD_CHUNK_PAGES + 1;
        let mut many = vec![0; HELD_COUNTS_BYTES + pages * HELD_HASH_BYTES];
        many[..2].copy_from_slice(&(pages as u16).to_be_bytes());
        assert!(HeldHashes::new(&many).is_none(), "too many");
    }
}
