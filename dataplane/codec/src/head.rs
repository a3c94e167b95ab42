//! The head of a payload: which pages are in it, in one of two forms.
//!
//! Used by the encoder and the decoder. Reading takes untrusted bytes: numbers are below the
//! region's end, and no page is named twice, before anything else is looked at.

use crate::cursor::{Reader, Writer, unzigzag, zigzag};
use crate::error::DecodeError;
use crate::page::EXTENT_PAGES;

const SECTION: &str = "head";

/// The numbers of the pages of a payload, of fixed room.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Numbers {
    items: [u64; EXTENT_PAGES],
    count: usize,
}

impl Numbers {
    pub(crate) const EMPTY: Self = Self { items: [0; EXTENT_PAGES], count: 0 };

    /// The pages of an extent's mask.
    pub(crate) const fn of_mask(first_page: u64, mask: u64) -> Self {
        let mut numbers = Self::EMPTY;
        let mut rest = mask;
        while rest != 0 {
            numbers.items[numbers.count] = first_page + rest.trailing_zeros() as u64;
            numbers.count += 1;
            rest &= rest - 1;
        }
        numbers
    }

    /// The pages of a list of at most 64.
    pub(crate) fn of_list(list: &[u64]) -> Self {
        let mut numbers = Self { count: list.len(), ..Self::EMPTY };
        numbers.items[..list.len()].copy_from_slice(list);
        numbers
    }

    pub(crate) const fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn as_slice(&self) -> &[u64] {
        &self.items[..self.count]
    }

    /// A page that is named twice.
    pub(crate) fn repeated(&self) -> Option<u64> {
        // Most lists ascend, since a VMM walks its dirty bitmap upwards.
        if self.as_slice().is_sorted_by(|before, after| before < after) {
            return None;
        }
        let mut sorted = self.items;
        let sorted = &mut sorted[..self.count];
        sorted.sort_unstable();
        sorted.array_windows().find(|[before, after]| before == after).map(|[page, _]| *page)
    }
}

pub(crate) fn write_extent(writer: &mut Writer<'_>, first_page: u64, mask: u64) {
    writer.put(&first_page.to_le_bytes());
    writer.put(&mask.to_le_bytes());
}

pub(crate) fn write_batch(writer: &mut Writer<'_>, numbers: &[u64]) {
    writer.put(&[numbers.len() as u8]);
    let mut last = None;
    for number in numbers {
        writer.put_varint(
            last.map_or(*number, |last| zigzag(number.wrapping_sub(last).cast_signed())),
        );
        last = Some(*number);
    }
}

/// Reads an extent's place: its first page and its mask.
pub(crate) fn read_extent(
    reader: &mut Reader<'_>,
    region_pages: u64,
) -> Result<(u64, u64), DecodeError> {
    let first_page = u64::from_le_bytes(reader.array(SECTION)?);
    let mask = u64::from_le_bytes(reader.array(SECTION)?);
    if mask == 0 {
        return Err(DecodeError::Empty);
    }
    if !first_page.is_multiple_of(EXTENT_PAGES as u64) {
        return Err(DecodeError::Unaligned { first_page });
    }
    // No overflow: the largest multiple of 64 leaves room for 63 more.
    let page = first_page + u64::from(mask.ilog2());
    if page >= region_pages {
        return Err(DecodeError::BeyondRegion { page, region_pages });
    }
    Ok((first_page, mask))
}

/// Reads the numbers of a batch.
pub(crate) fn read_batch(
    reader: &mut Reader<'_>,
    region_pages: u64,
) -> Result<Numbers, DecodeError> {
    let [count] = reader.array(SECTION)?;
    let mut numbers = Numbers { count: usize::from(count), ..Numbers::EMPTY };
    if count == 0 {
        return Err(DecodeError::Empty);
    }
    if numbers.count > EXTENT_PAGES {
        return Err(DecodeError::Malformed { section: SECTION });
    }
    let mut last = None;
    for number in &mut numbers.items[..numbers.count] {
        let code = reader.varint(SECTION)?;
        let page = last.map_or(code, |last: u64| last.wrapping_add_signed(unzigzag(code)));
        if page >= region_pages {
            return Err(DecodeError::BeyondRegion { page, region_pages });
        }
        *number = page;
        last = Some(page);
    }
    numbers.repeated().map_or(Ok(numbers), |page| Err(DecodeError::RepeatedPage { page }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(numbers: &[u64]) -> Vec<u8> {
        let mut room = [0; 1024];
        let mut writer = Writer::new(&mut room, 0);
        write_batch(&mut writer, numbers);
        let bytes = writer.at();
        room[..bytes].to_vec()
    }

    fn read(bytes: &[u8], region_pages: u64) -> Result<Vec<u64>, DecodeError> {
        read_batch(&mut Reader::new(bytes), region_pages).map(|list| list.as_slice().to_vec())
    }

    #[test]
    fn a_list_in_any_order_comes_back() {
        for list in [&[5][..], &[0, 1, 2], &[9, 3, u64::MAX - 1, 0], &[u64::MAX - 1, 7]] {
            assert_eq!(read(&written(list), u64::MAX).unwrap(), list);
        }
        assert_eq!(written(&[300, 301, 299]), [3, 0xac, 0x02, 2, 3]);
    }

    #[test]
    fn a_list_that_repeats_a_page_or_leaves_the_region_is_refused() {
        let repeated = DecodeError::RepeatedPage { page: 4 };
        assert_eq!(read(&written(&[4, 4]), 9), Err(repeated));
        assert_eq!(read(&written(&[4, 8, 2, 4]), 9), Err(repeated));
        let beyond = DecodeError::BeyondRegion { page: 8, region_pages: 8 };
        assert_eq!(read(&written(&[4, 8, 2]), 8), Err(beyond));
        // One below page 0.
        assert!(matches!(read(&[2, 0, 1], 8), Err(DecodeError::BeyondRegion { .. })));
        assert_eq!(read(&[0], 8), Err(DecodeError::Empty));
        assert_eq!(read(&[65], 8), Err(DecodeError::Malformed { section: SECTION }));
        assert!(matches!(read(&[2, 0], 8), Err(DecodeError::Truncated { .. })));
    }
}
