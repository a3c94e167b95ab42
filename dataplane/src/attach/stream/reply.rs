//! The way back: what the VMM at the sink answers, one reply at a time for each channel.
//!
//! [`Answers`] is the sink's side: it reads a reply, and keeps it until the source says that its
//! VMM took it. [`Replies`] is the source's side: it writes the reply to its VMM and then says so.
//! When any stream of the link dies the reply goes out again; the source knows it by its offset.

use super::pipe::{Moved, PipeId, Pipes};
use dwcp_proto::wire::limits::REPLY_BYTES_MAX;
use std::io::IoSlice;
use std::ops::Range;

/// What the peer said that can't be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a reply, or its acknowledgement, at offset {offset} does not follow the one before")]
pub(crate) struct OutOfPlace {
    offset: u64,
}

/// The replies of one channel at the sink.
#[derive(Debug)]
pub(super) struct Answers {
    buffer: Box<[u8]>,
    /// Length of the reply that is under way; 0 stands for the end of the replies.
    waiting: Option<usize>,
    offset: u64,
    due: bool,
    ended: bool,
}

impl Answers {
    pub(super) fn new() -> Self {
        let buffer = vec![0; REPLY_BYTES_MAX].into_boxed_slice();
        Self { buffer, waiting: None, offset: 0, due: false, ended: false }
    }

    /// Reads the next reply if none is under way. Tells how the VMM's side ended, once.
    pub(super) fn read(&mut self, pipes: &mut Pipes, pipe: PipeId) -> Option<Moved> {
        if self.waiting.is_some() || self.ended {
            return None;
        }
        let moved = pipes.read(pipe, &mut self.buffer);
        match moved {
            Moved::Bytes(bytes) => self.wait_for(bytes),
            Moved::Later => {}
            Moved::Ended | Moved::Failed(_) => self.end(),
        }
        Some(moved)
    }

    /// The VMM's socket is of no use any more: the replies end, after the one that is under way.
    pub(super) fn end(&mut self) {
        if !std::mem::replace(&mut self.ended, true) && self.waiting.is_none() {
            self.wait_for(0);
        }
    }

    fn wait_for(&mut self, bytes: usize) {
        self.waiting = Some(bytes);
        self.due = true;
    }

    /// The reply that has to be sent now: its offset and its bytes.
    pub(super) fn due(&self) -> Option<(u64, &[u8])> {
        let bytes = self.waiting.filter(|_| self.due)?;
        Some((self.offset, &self.buffer[..bytes]))
    }

    /// The reply went out.
    pub(super) fn sent(&mut self) {
        self.due = false;
    }

    /// A stream died, and the reply or its acknowledgement may have died with it.
    pub(super) fn send_again(&mut self) {
        self.due = self.waiting.is_some();
    }

    /// The source's VMM took the reply at `offset`. Returns its length.
    pub(super) fn acked(&mut self, offset: u64) -> Result<usize, OutOfPlace> {
        if offset < self.offset || self.waiting.is_none() && offset == self.offset {
            return Ok(0);
        }
        let Some(bytes) = self.waiting.filter(|_| offset == self.offset) else {
            return Err(OutOfPlace { offset });
        };
        self.buffer[..bytes].fill(0);
        self.offset += bytes as u64;
        self.waiting = None;
        self.due = false;
        if self.ended && bytes > 0 {
            self.wait_for(0);
        }
        Ok(bytes)
    }
}

/// The replies of one channel at the source.
#[derive(Debug)]
pub(super) struct Replies {
    buffer: Box<[u8]>,
    /// What the VMM has not taken yet.
    left: Range<usize>,
    /// Offset of the reply that came last, and of the next one.
    last: Option<u64>,
    next: u64,
    ended: bool,
    /// The acknowledgement of the last reply has to be sent.
    due: bool,
}

impl Replies {
    pub(super) fn new() -> Self {
        let buffer = vec![0; REPLY_BYTES_MAX].into_boxed_slice();
        Self { buffer, left: 0..0, last: None, next: 0, ended: false, due: false }
    }

    /// Takes a reply in. True when it is a new one.
    pub(super) fn take(&mut self, offset: u64, payload: &[u8]) -> Result<bool, OutOfPlace> {
        if self.last == Some(offset) && (offset != self.next || self.ended) {
            // Sent again: so is the answer, if it was given.
            self.due = self.left.is_empty();
            return Ok(false);
        }
        if offset != self.next || self.ended || !self.left.is_empty() {
            return Err(OutOfPlace { offset });
        }
        self.buffer[..payload.len()].copy_from_slice(payload);
        self.left = 0..payload.len();
        self.last = Some(offset);
        self.next = offset + payload.len() as u64;
        self.ended = payload.is_empty();
        self.due = self.ended;
        Ok(true)
    }

    /// Writes what the VMM takes; `None` for a VMM that is gone, which takes everything. True when
    /// anything moved.
    pub(super) fn write(&mut self, pipes: &mut Pipes, pipe: Option<PipeId>) -> bool {
        if self.left.is_empty() {
            return false;
        }
        let moved = match pipe {
            Some(pipe) => pipes.write(pipe, &[IoSlice::new(&self.buffer[self.left.clone()])]),
            None => Moved::Ended,
        };
        match moved {
            Moved::Bytes(bytes) => self.left.start += bytes,
            Moved::Later => return false,
            // Nobody will read it: the channel's end is found by reading.
            Moved::Ended | Moved::Failed(_) => self.left.start = self.left.end,
        }
        if self.left.is_empty() {
            self.buffer[..self.left.end].fill(0);
            self.due = true;
        }
        true
    }

    /// The acknowledgement that has to be sent, taken out.
    pub(super) fn next_due(&mut self) -> Option<u64> {
        if std::mem::take(&mut self.due) { self.last } else { None }
    }

    /// True when an acknowledgement has to be sent.
    pub(super) const fn is_due(&self) -> bool {
        self.due
    }

    /// True once the replies ended and the VMM has all of them.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_that_comes_again_is_answered_again_and_written_once() {
        let mut pipes = Pipes::new(1);
        let mut replies = Replies::new();
        assert_eq!(replies.take(0, b"abc"), Ok(true));
        assert_eq!(replies.take(0, b"abc"), Ok(false), "not written yet");
        assert_eq!(replies.next_due(), None);
        assert!(replies.write(&mut pipes, None));
        assert_eq!(replies.next_due(), Some(0));
        assert_eq!((replies.take(0, b"abc"), replies.next_due()), (Ok(false), Some(0)));
        assert!(replies.take(2, b"x").is_err());
        assert_eq!(replies.take(3, b""), Ok(true));
        assert_eq!((replies.has_ended(), replies.next_due()), (true, Some(3)));
        assert_eq!((replies.take(3, b""), replies.next_due()), (Ok(false), Some(3)));
        assert!(replies.take(3, b"more").is_ok_and(|new| !new), "nothing follows the end");
    }

    #[test]
    fn an_answer_is_kept_until_it_is_taken() {
        let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut pipes = Pipes::new(1);
        let pipe = pipes.add(near.into()).unwrap();
        let mut answers = Answers::new();
        std::io::Write::write_all(&mut &far, b"abc").unwrap();
        assert_eq!(answers.read(&mut pipes, pipe), Some(Moved::Bytes(3)));
        assert_eq!(answers.due(), Some((0, &b"abc"[..])));
        answers.sent();
        assert_eq!(answers.due(), None);
        assert_eq!(answers.read(&mut pipes, pipe), None, "one at a time");
        answers.send_again();
        assert_eq!(answers.due(), Some((0, &b"abc"[..])));
        assert_eq!(answers.acked(1), Err(OutOfPlace { offset: 1 }));
        assert_eq!(answers.acked(0), Ok(3));
        assert_eq!((answers.acked(0), answers.due()), (Ok(0), None));
        drop(far);
        assert_eq!(answers.read(&mut pipes, pipe), Some(Moved::Ended));
        assert_eq!(answers.due(), Some((3, &b""[..])));
        assert_eq!((answers.acked(3), answers.due()), (Ok(0), None));
    }
}
