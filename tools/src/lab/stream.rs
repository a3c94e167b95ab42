//! What a captured migration stream says of a guest's memory.
//!
//! For a QEMU whose stream can't be held against its guest's memory, since it loses pages by
//! itself: what left is compared with what arrived. Reads the stream of one connection without
//! QEMU's own compression, and has nothing in common with the reader that it judges.

use super::error::LabError;

const PAGE_BYTES: usize = 4096;

/// The type bytes of what a stream consists of, up to the end of the memory.
mod kind {
    pub(super) const START: u8 = 1;
    pub(super) const PART: u8 = 2;
    pub(super) const END: u8 = 3;
    pub(super) const CONFIGURATION: u8 = 7;
    pub(super) const COMMAND: u8 = 8;
    pub(super) const FOOTER: u8 = 0x7e;
}

/// The low bits of a word of the memory's section.
mod flag {
    pub(super) const ALL: u64 = 0xfff;
    pub(super) const ZERO: u64 = 0x02;
    pub(super) const BLOCKS: u64 = 0x04;
    pub(super) const PAGE: u64 = 0x08;
    pub(super) const END: u64 = 0x10;
    pub(super) const SAME_BLOCK: u64 = 0x20;
}

/// What a destination has in the memory of this name when it has loaded the stream.
///
/// # Errors
/// The stream can't be read up to the end of the memory, or has no memory of this name.
pub fn memory(stream: &[u8], block: &str) -> Result<Vec<u8>, LabError> {
    let mut reader = Reader { stream, at: 0 };
    let mut memory = Memory { block: block.as_bytes(), bytes: Vec::new(), is_current: false };
    if reader.take(4)? != b"QEVM" || reader.number(4)? != 3 {
        return Err(reader.error("not the beginning of a stream"));
    }
    let mut ended = false;
    loop {
        match reader.byte()? {
            kind::CONFIGURATION => {
                let length = reader.number(4)?;
                reader.take(length as usize)?;
            }
            kind::COMMAND => {
                reader.take(2)?;
                let length = reader.number(2)?;
                reader.take(length as usize)?;
            }
            kind::START => {
                reader.take(4)?;
                if reader.name()? != b"ram" {
                    return Err(reader.error("a section before the memory"));
                }
                reader.take(8)?;
                memory.load(&mut reader)?;
            }
            which @ (kind::PART | kind::END) => {
                reader.take(4)?;
                memory.load(&mut reader)?;
                ended = which == kind::END;
            }
            kind::FOOTER => {
                reader.take(4)?;
                if ended {
                    break;
                }
            }
            _ => return Err(reader.error("a part of an unknown kind")),
        }
    }
    if memory.bytes.is_empty() { Err(reader.error("no such memory")) } else { Ok(memory.bytes) }
}

/// The memory of one name.
struct Memory<'a> {
    block: &'a [u8],
    bytes: Vec<u8>,
    /// The last page that named its memory named this one.
    is_current: bool,
}

impl Memory<'_> {
    /// Loads a part of the section, up to its last word.
    fn load(&mut self, reader: &mut Reader<'_>) -> Result<(), LabError> {
        loop {
            let word = reader.number(8)?;
            let (flags, offset) = (word & flag::ALL, word & !flag::ALL);
            match flags & !flag::SAME_BLOCK {
                flag::END => return Ok(()),
                flag::BLOCKS => self.lay_out(reader, offset)?,
                what @ (flag::ZERO | flag::PAGE) => {
                    if flags & flag::SAME_BLOCK == 0 {
                        self.is_current = reader.name()? == self.block;
                    }
                    let zero = [0; PAGE_BYTES];
                    let content = match what {
                        flag::PAGE => reader.take(PAGE_BYTES)?,
                        _ => reader.take(1).map(|_| &zero[..])?,
                    };
                    if self.is_current {
                        let place = self.bytes.get_mut(offset as usize..);
                        let place = place.and_then(|rest| rest.first_chunk_mut::<PAGE_BYTES>());
                        let place = place.ok_or_else(|| reader.error("a page out of place"))?;
                        place.copy_from_slice(content);
                    }
                }
                _ => return Err(reader.error("a word that is no plain page")),
            }
        }
    }

    /// Reads the list of all memories.
    fn lay_out(&mut self, reader: &mut Reader<'_>, all_bytes: u64) -> Result<(), LabError> {
        let mut left = all_bytes;
        while left > 0 {
            let is_wanted = reader.name()? == self.block;
            let bytes = reader.number(8)?;
            if is_wanted {
                self.bytes.resize(bytes as usize, 0);
            }
            left = left.checked_sub(bytes).ok_or_else(|| reader.error("sizes do not add up"))?;
        }
        Ok(())
    }
}

struct Reader<'a> {
    stream: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], LabError> {
        let taken = self.stream.get(self.at..).and_then(|rest| rest.get(..bytes));
        let taken = taken.ok_or_else(|| self.error("the end before that of the memory"))?;
        self.at += bytes;
        Ok(taken)
    }

    /// A number of so many bytes.
    fn number(&mut self, bytes: usize) -> Result<u64, LabError> {
        Ok(self.take(bytes)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn byte(&mut self) -> Result<u8, LabError> {
        Ok(self.take(1)?[0])
    }

    fn name(&mut self) -> Result<&'a [u8], LabError> {
        let length = self.byte()?;
        self.take(length.into())
    }

    fn error(&self, why: &'static str) -> LabError {
        LabError::Stream { at: self.at, why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two memories of two pages and one; page 1 of the first comes twice, its page 0 as zero.
    fn stream() -> Vec<u8> {
        let mut stream = b"QEVM\0\0\0\x03\x07\0\0\0\x02pc\x08\0\x01\0\0".to_vec();
        stream.extend(b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04");
        stream.extend(0x3004_u64.to_be_bytes());
        for (name, bytes) in [(b"\x01a", 0x2000_u64), (b"\x01b", 0x1000)] {
            stream.extend(name);
            stream.extend(bytes.to_be_bytes());
        }
        let end = |stream: &mut Vec<u8>| {
            stream.extend(0x10_u64.to_be_bytes());
            stream.extend(b"\x7e\0\0\0\x02");
        };
        end(&mut stream);
        for (kind, fill) in [(2, 5), (3, 6)] {
            stream.extend([kind, 0, 0, 0, 2]);
            stream.extend(0x1008_u64.to_be_bytes());
            stream.extend(b"\x01a");
            stream.extend([fill; PAGE_BYTES]);
            stream.extend(0x22_u64.to_be_bytes());
            stream.push(0);
            stream.extend(0x08_u64.to_be_bytes());
            stream.extend(b"\x01b");
            stream.extend([7; PAGE_BYTES]);
            end(&mut stream);
        }
        stream.extend(b"devices");
        stream
    }

    #[test]
    fn the_last_of_each_page_is_what_is_loaded() {
        let first = [[0; PAGE_BYTES], [6; PAGE_BYTES]].concat();
        assert_eq!(memory(&stream(), "a").unwrap(), first);
        assert_eq!(memory(&stream(), "b").unwrap(), [7; PAGE_BYTES]);
    }

    #[test]
    fn what_cannot_be_read_is_an_error_and_no_memory() {
        let whole = stream();
        assert!(memory(&whole, "c").is_err());
        let end = whole.len() - b"devices".len();
        for bytes in 0..end {
            assert!(memory(&whole[..bytes], "a").is_err(), "{bytes}");
        }
    }
}
