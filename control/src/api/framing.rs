//! Lines and descriptors out of a client's byte stream.
//!
//! Pure: bytes and descriptors in, whole lines out. `server` reads them from the socket and calls
//! this on the control thread; a fuzzer compiles this file alone.
//!
//! Descriptors belong to a line by this rule: a kernel read that brings descriptors ends with the
//! message that carried them, so they belong to the line that the read's last byte is part of.

use crate::limits::REQUEST_DESCRIPTORS_MAX;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;

/// One line without its newline, and what came with it.
#[derive(Debug, Default)]
pub(crate) struct Line {
    pub(crate) bytes: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// Why a client's bytes can't be followed any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FramingError {
    /// No newline within the bound.
    #[error("a request has at most {bytes_max} bytes")]
    TooLong {
        /// The bound.
        bytes_max: usize,
    },
    /// More descriptors than any request takes.
    #[error("a request carries at most {REQUEST_DESCRIPTORS_MAX} descriptors")]
    DescriptorsTooMany,
}

/// Cuts a client's bytes into lines.
#[derive(Debug)]
pub(crate) struct LineBuffer {
    partial: Line,
    bytes_max: usize,
}

impl LineBuffer {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { partial: Line::default(), bytes_max }
    }

    /// Takes what one read brought; whole lines go to `lines`. Empty lines without descriptors are
    /// skipped. After an error the client must be dropped.
    pub(crate) fn push(
        &mut self,
        bytes: &[u8],
        descriptors: Vec<OwnedFd>,
        lines: &mut VecDeque<Line>,
    ) -> Result<(), FramingError> {
        let before = lines.len();
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|&b| b == b'\n') {
            self.extend(&rest[..end])?;
            lines.push_back(std::mem::take(&mut self.partial));
            rest = &rest[end + 1..];
        }
        self.extend(rest)?;
        if !descriptors.is_empty() {
            let owner = match lines.back_mut() {
                Some(line) if rest.is_empty() => line,
                _ => &mut self.partial,
            };
            owner.descriptors.extend(descriptors);
            if owner.descriptors.len() > REQUEST_DESCRIPTORS_MAX {
                return Err(FramingError::DescriptorsTooMany);
            }
        }
        let mut index = 0;
        lines.retain(|line| {
            index += 1;
            index <= before || !line.bytes.is_empty() || !line.descriptors.is_empty()
        });
        Ok(())
    }

    /// Bytes of memory that the line takes which has not ended yet.
    pub(crate) fn partial_bytes(&self) -> usize {
        self.partial.bytes.capacity()
    }

    fn extend(&mut self, bytes: &[u8]) -> Result<(), FramingError> {
        if self.partial.bytes.len() + bytes.len() > self.bytes_max {
            return Err(FramingError::TooLong { bytes_max: self.bytes_max });
        }
        self.partial.bytes.extend_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn descriptor() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn descriptors_belong_to_the_line_of_the_last_byte() {
        let mut buffer = LineBuffer::new(100);
        let mut lines = VecDeque::new();
        buffer.push(b"a\nb\n", vec![descriptor()], &mut lines).unwrap();
        assert_eq!(lines.iter().map(|l| l.descriptors.len()).collect::<Vec<_>>(), [0, 1]);
        lines.clear();
        buffer.push(b"c\nd", vec![descriptor()], &mut lines).unwrap();
        buffer.push(b"\n", vec![], &mut lines).unwrap();
        assert_eq!(lines.iter().map(|l| l.descriptors.len()).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn too_long_a_line_and_too_many_descriptors_are_typed_errors() {
        let mut lines = VecDeque::new();
        let error = LineBuffer::new(4).push(b"12345", vec![], &mut lines).unwrap_err();
        assert_eq!(error, FramingError::TooLong { bytes_max: 4 });
        let many = (0..=REQUEST_DESCRIPTORS_MAX).map(|_| descriptor()).collect();
        let error = LineBuffer::new(4).push(b"1\n", many, &mut lines).unwrap_err();
        assert_eq!(error, FramingError::DescriptorsTooMany);
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_the_bytes_arrive(
            text in "[a\n]{0,60}", cuts in prop::collection::vec(1usize..8, 1..60),
        ) {
            let mut buffer = LineBuffer::new(100);
            let mut lines = VecDeque::new();
            let mut rest = text.as_bytes();
            for cut in cuts.iter().cycle() {
                let (head, tail) = rest.split_at((*cut).min(rest.len()));
                buffer.push(head, vec![], &mut lines).unwrap();
                rest = tail;
                if rest.is_empty() { break }
            }
            let (whole, _) = text.rsplit_once('\n').unwrap_or(("", ""));
            let expected: Vec<&str> = whole.split('\n').filter(|l| !l.is_empty()).collect();
            let got: Vec<&[u8]> = lines.iter().map(|l| l.bytes.as_slice()).collect();
            prop_assert_eq!(got, expected.iter().map(|l| l.as_bytes()).collect::<Vec<_>>());
        }
    }
}
