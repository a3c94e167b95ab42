//! The end of a ring: cancel everything, wait until the kernel has let go, and only then free.
//!
//! Runs in `Drop` on the ring's thread. A kernel that does not let go within the bound costs the
//! memory: it is leaked, so that nothing the kernel may still write or read is ever reused.

use super::{Completion, Uring, Wait};
use crate::sys::monotonic_now;
use io_uring::types::{CancelBuilder, Timespec};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// How long to wait for the kernel. Cancelling takes microseconds; the bound is for a machine that
/// stands still. Tests break the kernel's side on purpose and need not wait that long.
const DRAIN_NS_MAX: u64 = if cfg!(test) { 300_000_000 } else { 5_000_000_000 };

/// How long one turn of the wait sleeps at most.
const TURN: Duration = Duration::from_millis(20);

/// Resets a TCP connection at once and drops its queue, by connecting it to nowhere. Closing would
/// not do: a peer that does not read keeps our pages in the queue for minutes after it. Sockets of
/// other kinds refuse, and hold no memory of ours.
pub(super) fn reset_connection(socket: BorrowedFd<'_>) {
    let nowhere = libc::sockaddr { sa_family: libc::AF_UNSPEC as u16, sa_data: [0; 14] };
    let bytes = size_of_val(&nowhere) as libc::socklen_t;
    // SAFETY: the kernel reads `bytes` bytes of the address, which lives over the call.
    let _refused = unsafe { libc::connect(socket.as_raw_fd(), &raw const nowhere, bytes) };
}

impl Uring {
    /// Cancels all that is in flight and waits for it; true when nothing is left.
    fn drain(&mut self) -> bool {
        self.draining = true;
        let end = monotonic_now().saturating_add(DRAIN_NS_MAX);
        while self.ops.len() > 0 {
            // Operations must be with the kernel before they can be cancelled.
            let _refused = self.enter(Wait::No);
            let _nothing_left = self
                .ring
                .submitter()
                .register_sync_cancel(Some(Timespec::new()), CancelBuilder::any());
            for slot in self.sockets.slots() {
                if self.sockets.find(slot).is_some_and(|socket| socket.holds_memory()) {
                    reset_connection(self.sockets.fd(slot));
                }
            }
            let _refused = self.enter(Wait::Until(TURN));
            while let Some(answer) = self.next_answer() {
                // Leases go back to the arena here: the kernel is done with their memory.
                self.complete(&answer, &mut |completion: Completion<'_>| drop(completion));
            }
            if monotonic_now() >= end {
                break;
            }
        }
        self.ops.len() == 0
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        if self.drain() {
            // Returns the locked memory to the limit now; the kernel would do it some time later.
            let _refused = self.ring.submitter().unregister_buffers();
        } else {
            self.ops.leak();
            std::mem::forget(self.buffers.take());
        }
    }
}
