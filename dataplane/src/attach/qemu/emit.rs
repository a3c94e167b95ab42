//! Page records for the destination QEMU.
//!
//! Owned by the sink of a stream session, one per channel 0. It is given blocks and pages in the
//! order of the stream; opaque bytes go to QEMU past it, between the records, in their order.
//!
//! A record leaves out its block's name when the record before it, however many opaque bytes
//! ago, has the same: QEMU's loader keeps the block of the last page record of the whole stream
//! and nothing but a page record changes it.

use super::blocks::Blocks;
use super::error::EmitError;
use super::format::{RECORD_BYTES_MAX, flag};
use dwcp_codec::{PAGE_BYTES, Page};

/// Makes page records.
#[derive(Debug)]
pub struct Emitter {
    blocks: Blocks,
    /// The block of the last record.
    current: Option<u16>,
}

impl Emitter {
    /// An emitter for the beginning of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self { blocks: Blocks::new(), current: None }
    }

    /// The blocks announced so far.
    #[must_use]
    pub const fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// The blocks that were announced.
    #[must_use]
    pub fn into_blocks(self) -> Blocks {
        self.blocks
    }

    /// A block was announced. Writes nothing: its entry in the stream is opaque.
    ///
    /// # Errors
    /// It is not the next one, or can't be a block.
    pub fn block(&mut self, number: u16, idstr: &[u8], bytes: u64) -> Result<(), EmitError> {
        let next = self.blocks.count();
        if number != next {
            return Err(EmitError::BlockOrder { number, next });
        }
        if !self.blocks.push(idstr, bytes) {
            return Err(EmitError::BlockInvalid { number });
        }
        Ok(())
    }

    /// Writes the record of a page of zeros; returns how many bytes it has.
    ///
    /// # Errors
    /// No block has the page.
    pub fn zero(
        &mut self,
        page: u64,
        out: &mut [u8; RECORD_BYTES_MAX],
    ) -> Result<usize, EmitError> {
        let head = self.head(page, flag::ZERO, out)?;
        out[head] = 0;
        Ok(head + 1)
    }

    /// Writes the record of a page; returns how many bytes it has.
    ///
    /// # Errors
    /// No block has the page.
    pub fn page(
        &mut self,
        page: u64,
        bytes: &Page,
        out: &mut [u8; RECORD_BYTES_MAX],
    ) -> Result<usize, EmitError> {
        let head = self.head(page, flag::PAGE, out)?;
        out[head..][..PAGE_BYTES].copy_from_slice(bytes);
        Ok(head + PAGE_BYTES)
    }

    /// Writes a record up to its content.
    fn head(
        &mut self,
        page: u64,
        flags: u64,
        out: &mut [u8; RECORD_BYTES_MAX],
    ) -> Result<usize, EmitError> {
        let unknown = EmitError::PageUnknown { page };
        let number = self.blocks.of_page(page).ok_or(unknown)?;
        let block = self.blocks.block(number).ok_or(unknown)?;
        let offset = (page - block.first_page()) * PAGE_BYTES as u64;
        let same = self.current == Some(number);
        let word = offset | flags | if same { flag::CONTINUE } else { 0 };
        out[..8].copy_from_slice(&word.to_be_bytes());
        if same {
            return Ok(8);
        }
        self.current = Some(number);
        let name = block.idstr();
        out[8] = name.len() as u8;
        out[9..][..name.len()].copy_from_slice(name);
        Ok(9 + name.len())
    }
}

impl Default for Emitter {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_peer_may_not_say_is_refused_and_changes_nothing() {
        let mut emitter = Emitter::new();
        let mut out = [0; RECORD_BYTES_MAX];
        let order = EmitError::BlockOrder { number: 1, next: 0 };
        assert_eq!(emitter.block(1, b"a", 4096), Err(order));
        assert_eq!(emitter.block(0, b"", 4096), Err(EmitError::BlockInvalid { number: 0 }));
        assert_eq!(emitter.zero(0, &mut out), Err(EmitError::PageUnknown { page: 0 }));
        emitter.block(0, b"a", 4096).unwrap();
        assert_eq!(emitter.zero(1, &mut out), Err(EmitError::PageUnknown { page: 1 }));
        assert_eq!(emitter.zero(0, &mut out), Ok(11));
        assert_eq!(out[..11], [0, 0, 0, 0, 0, 0, 0, 2, 1, b'a', 0]);
        assert_eq!(emitter.zero(0, &mut out), Ok(9));
        assert_eq!(out[..9], [0, 0, 0, 0, 0, 0, 0, 0x22, 0]);
    }

    #[test]
    fn the_longest_record_fits() {
        let mut emitter = Emitter::new();
        emitter.block(0, &[b'a'; 255], 4096).unwrap();
        let mut out = [0; RECORD_BYTES_MAX];
        assert_eq!(emitter.page(0, &[7; PAGE_BYTES], &mut out), Ok(RECORD_BYTES_MAX));
    }
}
