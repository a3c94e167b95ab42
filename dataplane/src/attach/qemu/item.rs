//! What a parser finds in the stream.
//!
//! Plain values that borrow from the caller's bytes, never from the parser.

use crate::port::StreamNote;
use dwcp_codec::Page;

/// The next thing in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// Nothing can be said before there are more bytes; those that were not consumed have to be
    /// given again, with the new ones behind them.
    Need,
    /// Bytes to be carried as they are; never empty.
    Opaque(&'a [u8]),
    /// A page of zeros.
    Zero {
        /// The page's number.
        page: u64,
    },
    /// A page.
    Page {
        /// The page's number.
        page: u64,
        /// Its content.
        bytes: &'a Page,
    },
    /// A RAM block became known. It consumes nothing: its entry in the stream follows as opaque
    /// bytes. Comes before any page of the block.
    Block {
        /// The block's number: 0, 1, 2 ..
        number: u16,
        /// Its name.
        idstr: &'a [u8],
        /// Its size.
        bytes: u64,
    },
    /// Something about the stream became known. It consumes nothing.
    Note(StreamNote),
}
