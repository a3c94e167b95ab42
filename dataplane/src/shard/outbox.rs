//! Small frames that wait for a record on their stream: requests, answers, farewells.
//!
//! One per stream, on the shard's thread, of fixed size. Acknowledgements and refusals are not
//! here:
//! `SinkFlow` holds those, merged, until there is a record to put them in.

use dwcp_proto::wire::frame::Frame;
use std::collections::VecDeque;

/// Frames that may wait on one stream. Each session owes at most a few; a peer that pings without
/// reading the answers is the one way to overflow it, and ends its own stream by that.
const OUTBOX_FRAMES_MAX: usize = 64;

/// The small frames of one stream.
#[derive(Debug)]
pub(super) struct Outbox {
    frames: VecDeque<Frame<'static>>,
}

impl Outbox {
    pub(super) fn new() -> Self {
        Self { frames: VecDeque::with_capacity(OUTBOX_FRAMES_MAX) }
    }

    /// Queues a frame; false when there is no room.
    #[must_use]
    pub(super) fn push(&mut self, frame: Frame<'static>) -> bool {
        if self.frames.len() == OUTBOX_FRAMES_MAX {
            return false;
        }
        self.frames.push_back(frame);
        true
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The frame that has waited longest.
    pub(super) fn pop(&mut self) -> Option<Frame<'static>> {
        self.frames.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_outbox_says_so_and_keeps_its_order() {
        let mut outbox = Outbox::new();
        for stamp in 0..OUTBOX_FRAMES_MAX as u64 {
            assert!(outbox.push(Frame::Pong { stamp }));
        }
        assert!(!outbox.push(Frame::Pong { stamp: 9999 }));
        for stamp in 0..OUTBOX_FRAMES_MAX as u64 {
            assert_eq!(outbox.pop(), Some(Frame::Pong { stamp }));
        }
        assert_eq!(outbox.pop(), None);
    }
}
