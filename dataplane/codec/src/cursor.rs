//! Reading and writing the payload byte by byte: bounds and varints.
//!
//! [`Reader`] takes untrusted bytes and gives a typed error at their end; [`Writer`] writes to a
//! buffer that the encoder has checked to be large enough. Used by the codec alone.

use crate::error::DecodeError;
use crate::layout::VARINT_BYTES_MAX;

/// Takes sections off the front of untrusted bytes.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    bytes: usize,
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, bytes: bytes.len() }
    }

    /// The next `count` bytes.
    pub(crate) fn take(
        &mut self,
        count: usize,
        section: &'static str,
    ) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or(DecodeError::Truncated { section, bytes: self.bytes })?;
        self.rest = rest;
        Ok(taken)
    }

    /// The next `N` bytes.
    pub(crate) fn array<const N: usize>(
        &mut self,
        section: &'static str,
    ) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, section)?);
        Ok(array)
    }

    /// A length of three bytes.
    pub(crate) fn length(&mut self, section: &'static str) -> Result<usize, DecodeError> {
        let [a, b, c] = self.array(section)?;
        Ok(u32::from_le_bytes([a, b, c, 0]) as usize)
    }

    /// A varint in its shortest form.
    pub(crate) fn varint(&mut self, section: &'static str) -> Result<u64, DecodeError> {
        let mut value = 0;
        for index in 0..VARINT_BYTES_MAX {
            let [byte] = self.array(section)?;
            let part = u64::from(byte & 0x7f);
            let shifted = part << (7 * index);
            let overflows = shifted >> (7 * index) != part;
            let too_long = byte == 0 && index > 0;
            if overflows || too_long {
                break;
            }
            value |= shifted;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(DecodeError::Malformed { section })
    }

    /// Refuses bytes that nothing has taken.
    pub(crate) const fn finish(&self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            bytes => Err(DecodeError::TrailingBytes { bytes }),
        }
    }
}

/// Appends to a buffer.
#[derive(Debug)]
pub(crate) struct Writer<'a> {
    buffer: &'a mut [u8],
    at: usize,
}

impl<'a> Writer<'a> {
    pub(crate) const fn new(buffer: &'a mut [u8], at: usize) -> Self {
        Self { buffer, at }
    }

    /// Bytes up to here.
    pub(crate) const fn at(&self) -> usize {
        self.at
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) {
        self.buffer[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    /// Fills in what was skipped by [`Self::advance`].
    pub(crate) fn put_at(&mut self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.at);
        self.buffer[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn put_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.put(&[value as u8 | 0x80]);
            value >>= 7;
        }
        self.put(&[value as u8]);
    }

    /// The `count` bytes from `skip` bytes after here, to be filled by something else.
    pub(crate) fn room(&mut self, skip: usize, count: usize) -> &mut [u8] {
        &mut self.buffer[self.at + skip..self.at + skip + count]
    }

    /// Counts bytes that were written to [`Self::room`] or will be by [`Self::put_at`].
    pub(crate) fn advance(&mut self, count: usize) {
        self.at += count;
        assert!(self.at <= self.buffer.len());
    }
}

/// The bytes of a value's varint.
pub(crate) const fn varint_bytes(value: u64) -> usize {
    if value == 0 { 1 } else { (value.ilog2() / 7 + 1) as usize }
}

/// Small differences of either sign as small numbers.
pub(crate) const fn zigzag(difference: i64) -> u64 {
    ((difference << 1) ^ (difference >> 63)) as u64
}

/// The inverse of [`zigzag`].
pub(crate) const fn unzigzag(code: u64) -> i64 {
    (code >> 1) as i64 ^ -((code & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_survive_and_have_the_announced_length() {
        for shift in 0..64 {
            for value in [1u64 << shift, (1u64 << shift) - 1, u64::MAX >> shift] {
                let mut buffer = [0; VARINT_BYTES_MAX];
                let mut writer = Writer::new(&mut buffer, 0);
                writer.put_varint(value);
                let bytes = writer.at();
                assert_eq!(bytes, varint_bytes(value));
                let mut reader = Reader::new(&buffer[..bytes]);
                assert_eq!(reader.varint("test"), Ok(value));
                assert_eq!(reader.finish(), Ok(()));
                assert!(Reader::new(&buffer[..bytes - 1]).varint("test").is_err());
            }
        }
    }

    #[test]
    fn varints_that_overflow_or_are_padded_are_refused() {
        let malformed = Err(DecodeError::Malformed { section: "test" });
        assert_eq!(Reader::new(&[0x80, 0]).varint("test"), malformed);
        assert_eq!(Reader::new(&[0xff; 11]).varint("test"), malformed);
        let mut over = [0xff; 10];
        over[9] = 2;
        assert_eq!(Reader::new(&over).varint("test"), malformed);
        over[9] = 1;
        assert_eq!(Reader::new(&over).varint("test"), Ok(u64::MAX));
    }

    #[test]
    fn zigzag_is_a_bijection_at_the_ends() {
        for value in [0, 1, -1, 63, -64, i64::MAX, i64::MIN] {
            assert_eq!(unzigzag(zigzag(value)), value);
        }
        assert_eq!(zigzag(-1), 1);
        assert_eq!(zigzag(1), 2);
    }
}
