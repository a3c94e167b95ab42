//! Polling a ring: submit, let the kernel work, and turn its completions into ours.
//!
//! Part of `Uring`, on its thread. Every table is brought up to date before the caller's function
//! sees a completion, so that even a panic in it leaves the invariants whole.

use super::error::{UringError, kernel};
use super::table::{Multishot, Op};
use super::{Completion, Uring, Wait};
use io_uring::cqueue;
use io_uring::types::{CancelBuilder, Fixed, SubmitArgs, Timespec};
use std::io;

/// In the result of a zero-copy notification: the kernel copied after all (linux/io_uring.h).
const NOTICE_COPIED: i32 = i32::MIN;

/// A completion's number as bytes or an error number.
fn outcome(result: i32) -> Result<usize, i32> {
    usize::try_from(result).map_err(|_| -result)
}

/// An enter that was interrupted, timed out, or could not take all submissions now: none of them
/// loses anything, and what is left goes with the next poll.
fn tolerate(entered: io::Result<usize>) -> Result<(), UringError> {
    match entered {
        Ok(_) => Ok(()),
        Err(error) => match error.raw_os_error() {
            Some(libc::EINTR | libc::ETIME | libc::EAGAIN | libc::EBUSY) => Ok(()),
            _ => Err(kernel("io_uring_enter")(error)),
        },
    }
}

impl Uring {
    /// Submits what is queued, waits if told so, and hands over what completed: at most as many
    /// completions of the kernel as the configuration says. Returns how many were handed over.
    ///
    /// # Errors
    /// [`UringError::Kernel`]: the ring itself failed.
    pub fn poll(
        &mut self,
        wait: Wait,
        deliver: &mut impl FnMut(Completion<'_>),
    ) -> Result<usize, UringError> {
        let mut delivered = self.serve_sockets(deliver)?;
        // Without a watch for wake-ups this must not sleep.
        let watching = self.wake_armed || self.arm_wake();
        let wait = if delivered == 0 && watching { wait } else { Wait::No };
        tolerate(self.enter(wait))?;
        for _ in 0..self.config.completions_max {
            let Some(answer) = self.next_answer() else { break };
            delivered += self.complete(&answer, deliver);
        }
        delivered += self.serve_sockets(deliver)?;
        Ok(delivered)
    }

    /// Enters the kernel, or does not when there is nothing to do there.
    pub(super) fn enter(&mut self, wait: Wait) -> io::Result<usize> {
        match wait {
            Wait::No => {
                let queue = self.ring.submission();
                let idle = queue.is_empty() && !queue.taskrun() && !queue.cq_overflow();
                drop(queue);
                if idle { Ok(0) } else { self.ring.submit() }
            }
            Wait::Until(longest) => {
                let longest = Timespec::from(longest);
                let arguments = SubmitArgs::new().timespec(&longest);
                self.ring.submitter().submit_with_args(1, &arguments)
            }
        }
    }

    /// The oldest completion of the kernel.
    pub(super) fn next_answer(&mut self) -> Option<cqueue::Entry> {
        self.ring.completion().next()
    }

    /// Turns one completion of the kernel into ours; returns how many those were.
    pub(super) fn complete(
        &mut self,
        answer: &cqueue::Entry,
        deliver: &mut impl FnMut(Completion<'_>),
    ) -> usize {
        let (name, result) = (answer.user_data(), answer.result());
        let more = cqueue::more(answer.flags());
        if let &Op::Multishot { socket } = self.ops.get(name) {
            let buffer = cqueue::buffer_select(answer.flags());
            return self.multishot_completed(name, socket, result, buffer, more, deliver);
        }
        if more {
            return self.send_awaits_notice(name, result, deliver);
        }
        match self.ops.remove(name) {
            Op::Send { socket: slot, lease } => {
                self.sockets.at(slot).sending = false;
                let socket = self.sockets.name(slot);
                deliver(Completion::Sent { socket, result: outcome(result) });
                deliver(Completion::Released { socket, lease, copied: None });
                2
            }
            Op::Notice { socket: slot, lease } => {
                let state = self.sockets.at(slot);
                assert!(state.notices > 0, "a notification of a send that was not counted");
                state.notices -= 1;
                let copied = Some(result & NOTICE_COPIED != 0);
                deliver(Completion::Released { socket: self.sockets.name(slot), lease, copied });
                1
            }
            Op::Receive { socket: slot, lease } => {
                self.sockets.at(slot).receiving = false;
                let socket = self.sockets.name(slot);
                deliver(Completion::Received { socket, lease, result: outcome(result) });
                1
            }
            Op::Wake => {
                self.wake_armed = false;
                // The receiver may outlive this ring: a wake-up that nobody will hear of here is
                // left for whoever watches next.
                if self.draining || result < 0 || !self.wake.drain() {
                    return 0;
                }
                deliver(Completion::Woken);
                1
            }
            Op::Watch { name } => {
                deliver(Completion::Ready { name });
                1
            }
            Op::Multishot { .. } => unreachable!("handled above"),
        }
    }

    /// A zero-copy send is over, its memory is not yet released.
    fn send_awaits_notice(
        &mut self,
        name: u64,
        result: i32,
        deliver: &mut impl FnMut(Completion<'_>),
    ) -> usize {
        let &Op::Send { socket: slot, .. } = self.ops.get(name) else {
            panic!("more completions announced for an operation that has one");
        };
        self.ops.await_notice(name);
        let state = self.sockets.at(slot);
        state.sending = false;
        state.notices += 1;
        let socket = self.sockets.name(slot);
        deliver(Completion::Sent { socket, result: outcome(result) });
        1
    }

    /// A multishot receive brought bytes, paused or ended.
    fn multishot_completed(
        &mut self,
        name: u64,
        slot: u32,
        result: i32,
        buffer: Option<u16>,
        more: bool,
        deliver: &mut impl FnMut(Completion<'_>),
    ) -> usize {
        let socket = self.sockets.name(slot);
        let mut delivered = 0;
        if !more {
            self.ops.remove(name);
            // It goes on by itself unless the stream ended or failed: it stopped for lack of a
            // buffer or of room for completions.
            let goes_on = result > 0 || result == -libc::ENOBUFS;
            let state = self.sockets.at(slot);
            state.multishot = if goes_on { Multishot::Wanted } else { Multishot::Off };
            self.attention |= goes_on;
        }
        if let Some(id) = buffer {
            let Some(buffers) = &mut self.buffers else { panic!("a buffer of no group") };
            if let Ok(length @ 1..) = outcome(result) {
                deliver(Completion::Data { socket, bytes: buffers.bytes(id, length) });
                delivered += 1;
            }
            buffers.give_back(id);
        }
        if !more && self.sockets.at(slot).multishot == Multishot::Off {
            deliver(Completion::RecvEnded { socket, result: outcome(result).map(drop) });
            delivered += 1;
        }
        delivered
    }

    /// Arms multishot receives that wait for it, and ends sockets that are being closed.
    fn serve_sockets(
        &mut self,
        deliver: &mut impl FnMut(Completion<'_>),
    ) -> Result<usize, UringError> {
        if !self.attention {
            return Ok(0);
        }
        self.attention = false;
        let mut delivered = 0;
        for slot in self.sockets.slots() {
            let Some(state) = self.sockets.find(slot) else { continue };
            let (closing, wanted) = (state.closing, state.multishot == Multishot::Wanted);
            if !closing {
                if wanted {
                    self.arm_multishot(slot);
                }
            } else if state.is_idle() {
                let socket = self.sockets.name(slot);
                self.register_file(slot, -1).inspect_err(|_| self.attention = true)?;
                self.sockets.remove(slot);
                if wanted {
                    deliver(Completion::RecvEnded { socket, result: Err(libc::ECANCELED) });
                    delivered += 1;
                }
                deliver(Completion::Closed { socket });
                delivered += 1;
            } else {
                self.cancel_socket(slot);
                self.attention = true;
            }
        }
        Ok(delivered)
    }

    /// Cancels what is in flight on a socket; resets the connection when that holds memory of ours.
    /// Repeated at each poll until nothing is left, as an operation that could not be submitted yet
    /// can't be cancelled either.
    pub(super) fn cancel_socket(&mut self, slot: u32) {
        // Refusals show at the next poll, which tries again.
        let _refused = self.ring.submit();
        let all = CancelBuilder::fd(Fixed(slot)).all();
        let _nothing_left = self.ring.submitter().register_sync_cancel(Some(Timespec::new()), all);
        if self.sockets.at(slot).holds_memory() {
            super::drain::reset_connection(self.sockets.fd(slot));
        }
    }
}
