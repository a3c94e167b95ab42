//! The page, the extent and the five ways of coding a page.
//!
//! Owns the two sizes that all of the codec rests on, and the zero check. Used on shards only;
//! plain functions without state.

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
/// Pages of an extent; one bit each in a mask of 64.
pub const EXTENT_PAGES: usize = 64;
/// Bytes of a whole extent.
pub const EXTENT_BYTES: usize = PAGE_BYTES * EXTENT_PAGES;

const _: () = assert!(EXTENT_PAGES == u64::BITS as usize);
const _: () = assert!(size_of::<usize>() == size_of::<u64>());

/// The bytes of one page.
pub type Page = [u8; PAGE_BYTES];

/// How a page is coded. The number is the class's code on the wire.
///
/// "Unchanged" is no class: such a page isn't sent at all, which the caller sees by comparing
/// hashes before it calls the coder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// All bytes are zero.
    Zero = 0,
    /// The difference to a version of the same page that the sink holds.
    Delta = 1,
    /// Compressed together with the other zstd pages of the extent.
    Zstd = 2,
    /// As it is.
    Raw = 3,
}

impl Class {
    /// The number of classes.
    pub const COUNT: usize = 4;
    /// All classes in the order of their codes.
    pub const ALL: [Self; Self::COUNT] = [Self::Zero, Self::Delta, Self::Zstd, Self::Raw];

    /// The class of a two-bit code; higher bits are ignored.
    #[must_use]
    pub const fn from_code(code: u8) -> Self {
        match code & 3 {
            0 => Self::Zero,
            1 => Self::Delta,
            2 => Self::Zstd,
            _ => Self::Raw,
        }
    }

    /// The class's name for metrics and tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Zero => "zero",
            Self::Delta => "delta",
            Self::Zstd => "zstd",
            Self::Raw => "raw",
        }
    }
}

/// True if all bytes of the page are zero. Leaves at the first 128 bytes that are not.
#[must_use]
pub fn is_zero(page: &Page) -> bool {
    // The inner loop has no branch, so that the compiler makes vector instructions of it.
    page.as_chunks::<128>().0.iter().all(|chunk| {
        let words = chunk.as_chunks::<8>().0;
        words.iter().fold(0, |all, word| all | u64::from_ne_bytes(*word)) == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_anywhere_makes_a_page_nonzero() {
        let mut page = [0; PAGE_BYTES];
        assert!(is_zero(&page));
        for index in 0..PAGE_BYTES {
            page[index] = 0x80;
            assert!(!is_zero(&page), "byte {index}");
            page[index] = 0;
        }
    }

    #[test]
    fn class_codes_are_stable() {
        for (code, class) in Class::ALL.into_iter().enumerate() {
            assert_eq!(class as usize, code);
            assert_eq!(Class::from_code(code as u8), class);
        }
    }
}
