//! Cuts a stream's bytes into records, and a record's plaintext into frames.
//!
//! Runs on the shard that owns the stream, called for every record. Nothing is copied: results
//! point into the caller's buffer. All frames of a record are checked before the first one is
//! handed out, so that a record is acted on as a whole or not at all.

use super::WireError;
use super::bytes::array;
use super::frame::Frame;
use super::header::RecordHeader;
use super::limits::RECORD_HEADER_BYTES;
use super::version::WireVersion;

/// The length of the record at the start of `buffer`: `None` until all of it is there.
///
/// # Errors
/// The bytes start no record of a version that is spoken here, or one that is too long.
pub fn next_record(buffer: &[u8]) -> Result<Option<usize>, WireError> {
    Ok(record_bytes(buffer)?.filter(|bytes| *bytes <= buffer.len()))
}

/// The length that the record at the start of `buffer` will have: `None` until its header is there.
///
/// # Errors
/// The bytes start no record of a version that is spoken here, or one that is too long.
pub fn record_bytes(buffer: &[u8]) -> Result<Option<usize>, WireError> {
    if buffer.len() < RECORD_HEADER_BYTES {
        return Ok(None);
    }
    let header = RecordHeader::decode(&array(buffer, 0))?;
    Ok(Some(header.record_bytes()))
}

/// The frames of one record's plaintext, all of them already checked.
#[derive(Clone, Copy, Debug)]
pub struct FrameIter<'a> {
    version: WireVersion,
    rest: &'a [u8],
}

impl<'a> FrameIter<'a> {
    /// Checks all frames of a plaintext of a link of that version.
    ///
    /// # Errors
    /// The plaintext is empty, or one of its frames is malformed, cut off or of a later version.
    pub fn new(version: WireVersion, plain: &'a [u8]) -> Result<Self, WireError> {
        if plain.is_empty() {
            return Err(WireError::RecordTooShort { bytes: 0 });
        }
        let mut rest = plain;
        while !rest.is_empty() {
            let (_, used) = Frame::decode(version, rest)?;
            rest = &rest[used..];
        }
        Ok(Self { version, rest: plain })
    }
}

impl<'a> Iterator for FrameIter<'a> {
    type Item = Frame<'a>;

    fn next(&mut self) -> Option<Frame<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        match Frame::decode(self.version, self.rest) {
            Ok((frame, used)) => {
                self.rest = &self.rest[used..];
                Some(frame)
            }
            Err(error) => unreachable!("the frame was checked before: {error}"),
        }
    }
}
