//! The difference between two versions of a page as runs of changed bytes.
//!
//! For pages in which little changed: no search, eight bytes per step, a few hundred nanoseconds.
//! The format is in [`layout`](crate::layout). Plain functions, used on shards.

use crate::cursor::{Reader, Writer, varint_bytes};
use crate::error::DecodeError;
use crate::page::{PAGE_BYTES, Page};
use crate::policy::{RUNS_GAP_BYTES_MIN, RUNS_PAGE_BYTES_MAX};

const SECTION: &str = "runs";
const WORD_BYTES: usize = 8;
const BLOCK_BYTES: usize = 64;

// A run takes at least three bytes, so their number fits its byte.
const _: () = assert!(RUNS_PAGE_BYTES_MAX / 3 <= u8::MAX as usize);

/// Writes the runs that make `new` of `base` and returns their bytes, or `None` if they would be
/// longer than `out`.
pub fn encode_runs(base: &Page, new: &Page, out: &mut [u8; RUNS_PAGE_BYTES_MAX]) -> Option<usize> {
    let mut runs = 0u8;
    let mut done = 0;
    let mut start = next_change(base, new, 0);
    let mut writer = Writer::new(out, 1);
    while start < PAGE_BYTES {
        let mut end = next_equal(base, new, start);
        let mut next = next_change(base, new, end);
        while next < PAGE_BYTES && next - end < RUNS_GAP_BYTES_MIN {
            end = next_equal(base, new, next);
            next = next_change(base, new, end);
        }
        let (gap, length) = ((start - done) as u64, end - start);
        let head_bytes = varint_bytes(gap) + varint_bytes(length as u64 - 1);
        if writer.at() + head_bytes + length > RUNS_PAGE_BYTES_MAX {
            return None;
        }
        writer.put_varint(gap);
        writer.put_varint(length as u64 - 1);
        writer.put(&new[start..end]);
        runs += 1;
        done = end;
        start = next;
    }
    let bytes = writer.at();
    out[0] = runs;
    Some(bytes)
}

/// Makes the new page of its base in place.
pub(crate) fn apply_runs(reader: &mut Reader<'_>, page: &mut Page) -> Result<(), DecodeError> {
    let [runs] = reader.array(SECTION)?;
    let mut done = 0;
    for _ in 0..runs {
        let gap = reader.varint(SECTION)?;
        let length = reader.varint(SECTION)?;
        let left = (PAGE_BYTES - done) as u64;
        // `length` is one less than the run's, so the run ends within the page exactly if the
        // sum of both is less than what is left.
        if gap.saturating_add(length) >= left {
            return Err(DecodeError::Malformed { section: SECTION });
        }
        let start = done + gap as usize;
        done = start + length as usize + 1;
        page[start..done].copy_from_slice(reader.take(done - start, SECTION)?);
    }
    Ok(())
}

/// How many of the page's words of eight bytes are equal.
pub(crate) fn equal_words(base: &Page, new: &Page) -> usize {
    let words = base.as_chunks::<WORD_BYTES>().0.iter().zip(new.as_chunks::<WORD_BYTES>().0);
    words.map(|(base, new)| usize::from(base == new)).sum()
}

/// The XOR of a word of both pages; the lowest byte is the first in memory.
fn changes(base: &Page, new: &Page, word: usize) -> u64 {
    let (base, new) = (base.as_chunks::<WORD_BYTES>().0, new.as_chunks::<WORD_BYTES>().0);
    u64::from_le_bytes(base[word]) ^ u64::from_le_bytes(new[word])
}

/// The first byte from `from` on that differs, or the page's end.
fn next_change(base: &Page, new: &Page, from: usize) -> usize {
    if from == PAGE_BYTES {
        return PAGE_BYTES;
    }
    let word = from / WORD_BYTES;
    let first = changes(base, new, word) >> (8 * (from % WORD_BYTES));
    if first != 0 {
        return from + first.trailing_zeros() as usize / 8;
    }
    let block_end = (word + 1).next_multiple_of(BLOCK_BYTES / WORD_BYTES);
    for word in word + 1..block_end {
        let change = changes(base, new, word);
        if change != 0 {
            return word * WORD_BYTES + change.trailing_zeros() as usize / 8;
        }
    }
    // Whole blocks: the fold has no branch, so that it becomes vector instructions.
    let first_block = block_end * WORD_BYTES / BLOCK_BYTES;
    let bases = &base.as_chunks::<BLOCK_BYTES>().0[first_block..];
    let news = &new.as_chunks::<BLOCK_BYTES>().0[first_block..];
    for (index, (base, new)) in bases.iter().zip(news).enumerate() {
        let (base, new) = (base.as_chunks::<WORD_BYTES>().0, new.as_chunks::<WORD_BYTES>().0);
        let change = |(a, b): (&[u8; 8], &[u8; 8])| u64::from_le_bytes(*a) ^ u64::from_le_bytes(*b);
        if base.iter().zip(new).map(change).fold(0, |all, word| all | word) == 0 {
            continue;
        }
        let words = base.iter().zip(new).map(change);
        let before = words.take_while(|word| *word == 0).count();
        let word = (first_block + index) * (BLOCK_BYTES / WORD_BYTES) + before;
        let bits = change((&base[before], &new[before])).trailing_zeros();
        return word * WORD_BYTES + bits as usize / 8;
    }
    PAGE_BYTES
}

/// The first byte from `from` on that is equal, or the page's end.
fn next_equal(base: &Page, new: &Page, from: usize) -> usize {
    const LOW: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x8080_8080_8080_8080;
    // Bytes before `from` count as changed.
    let mut before = (1u64 << (8 * (from % WORD_BYTES))) - 1;
    for word in from / WORD_BYTES..PAGE_BYTES / WORD_BYTES {
        let change = changes(base, new, word) | before;
        // The lowest bit set marks the lowest byte that is zero.
        let zeros = change.wrapping_sub(LOW) & !change & HIGH;
        if zeros != 0 {
            return word * WORD_BYTES + zeros.trailing_zeros() as usize / 8;
        }
        before = 0;
    }
    PAGE_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(base: &Page, new: &Page) -> Option<usize> {
        let mut out = [0; RUNS_PAGE_BYTES_MAX];
        let bytes = encode_runs(base, new, &mut out)?;
        let mut page = *base;
        let mut reader = Reader::new(&out[..bytes]);
        apply_runs(&mut reader, &mut page).unwrap();
        assert_eq!(reader.finish(), Ok(()));
        assert!(page == *new);
        Some(bytes)
    }

    #[test]
    fn every_single_changed_byte_is_found() {
        let base = [0x55; PAGE_BYTES];
        let mut new = base;
        for index in 0..PAGE_BYTES {
            new[index] = 0xaa;
            let bytes = round_trip(&base, &new);
            assert!(bytes.is_some_and(|bytes| bytes <= 5), "byte {index}: {bytes:?}");
            new[index] = 0x55;
        }
        assert_eq!(round_trip(&base, &base), Some(1));
    }

    #[test]
    fn short_gaps_are_joined_and_long_ones_are_not() {
        let base = [0; PAGE_BYTES];
        let mut new = base;
        (new[100], new[103]) = (1, 1);
        // One run: count, gap, length, 4 bytes.
        assert_eq!(round_trip(&base, &new), Some(7));
        (new[103], new[104]) = (0, 1);
        // Two runs of one byte.
        assert_eq!(round_trip(&base, &new), Some(7));
    }

    #[test]
    fn a_page_that_changed_too_much_is_given_up() {
        assert_eq!(round_trip(&[0; PAGE_BYTES], &[1; PAGE_BYTES]), None);
    }

    #[test]
    fn runs_beyond_the_page_are_refused() {
        let mut page = [0; PAGE_BYTES];
        // A gap of 4095 and a run of two bytes.
        let runs = [1, 0xff, 0x1f, 1, 9, 9];
        let refused = Err(DecodeError::Malformed { section: SECTION });
        assert_eq!(apply_runs(&mut Reader::new(&runs), &mut page), refused);
        let huge = [1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 1, 9, 9];
        assert_eq!(apply_runs(&mut Reader::new(&huge), &mut page), refused);
        let last = [1, 0xff, 0x1f, 0, 9];
        assert_eq!(apply_runs(&mut Reader::new(&last), &mut page), Ok(()));
        assert_eq!(page[PAGE_BYTES - 1], 9);
    }

    proptest! {
        #[test]
        fn runs_make_the_new_page(
            changes in proptest::collection::vec((0..PAGE_BYTES, 1..40usize, 1..=255u8), 0..30),
        ) {
            let base: Page = std::array::from_fn(|index| (index * 7) as u8);
            let mut new = base;
            for (start, length, byte) in changes {
                for changed in &mut new[start..(start + length).min(PAGE_BYTES)] {
                    *changed ^= byte;
                }
            }
            let _ = round_trip(&base, &new);
        }

        #[test]
        fn any_bytes_are_runs_or_a_typed_error(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
        ) {
            let mut page = [0; PAGE_BYTES];
            let _ = apply_runs(&mut Reader::new(&bytes), &mut page);
        }
    }
}
