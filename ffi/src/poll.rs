//! Waking a thread that sleeps in the kernel: an eventfd with a flag in front of it.
//!
//! Any thread may hold a [`Waker`]; the thread that sleeps holds the [`WakeReceiver`] (a shard
//! gives it to its io_uring, which polls and drains it). The flag spares the system call while an
//! earlier wake-up is not yet drained. Nothing is carried but the fact: after draining, the
//! receiver must look at all its inputs.

use crate::uring::Interest;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The eventfd and whether a wake-up is on its way.
#[derive(Debug)]
struct Shared {
    event: EventFd,
    signalled: AtomicBool,
}

/// Wakes the receiver. Cheap to clone and to call again.
#[derive(Clone, Debug)]
pub struct Waker {
    shared: Arc<Shared>,
}

/// What the sleeping thread watches: readable once a waker was used.
#[derive(Debug)]
pub struct WakeReceiver {
    shared: Arc<Shared>,
}

/// Makes a waker and its receiver.
///
/// # Errors
/// The kernel gives no eventfd: the process has no descriptor left.
pub fn waker() -> io::Result<(Waker, WakeReceiver)> {
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let shared = Arc::new(Shared { event, signalled: AtomicBool::new(false) });
    Ok((Waker { shared: Arc::clone(&shared) }, WakeReceiver { shared }))
}

impl Waker {
    /// Makes the receiver readable. What this thread wrote before is visible to the receiver after
    /// its next [`WakeReceiver::drain`].
    pub fn wake(&self) {
        if self.shared.signalled.swap(true, Ordering::AcqRel) {
            return;
        }
        // The count can't overflow: it is written once per drain. EAGAIN would mean "already
        // readable", which is what is wanted.
        match self.shared.event.write(1) {
            Ok(_) | Err(Errno::EAGAIN) => {}
            Err(errno) => panic!("an eventfd that we own refused a write: {errno}"),
        }
    }
}

impl WakeReceiver {
    /// Takes all wake-ups so far and makes room for the next; true when there was one. Look at
    /// every input after this, not before.
    pub fn drain(&self) -> bool {
        // The order matters: were the flag cleared first, a wake-up between the two steps would be
        // read away with the flag left set, and no waker would ever write again.
        let woken = self.shared.event.read().is_ok();
        let signalled = self.shared.signalled.swap(false, Ordering::AcqRel);
        woken || signalled
    }

    /// A second handle for the ring that polls the descriptor on behalf of the same thread.
    pub(crate) fn share(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl AsFd for WakeReceiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }
}

/// True when a socket is ready for this now, or has failed, which a try will tell. Never waits.
#[must_use]
pub fn is_ready(socket: BorrowedFd<'_>, interest: Interest) -> bool {
    let wanted = match interest {
        Interest::Readable => PollFlags::POLLIN,
        Interest::Writable => PollFlags::POLLOUT,
    };
    let mut polled = [PollFd::new(socket, wanted)];
    poll(&mut polled, PollTimeout::ZERO) == Ok(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;
    use std::thread;

    fn readable(receiver: &WakeReceiver, millis: u16) -> bool {
        let mut fds = [PollFd::new(receiver.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::from(millis)).unwrap() == 1
    }

    #[test]
    fn many_wakes_are_one_until_drained() {
        let (waker, receiver) = waker().unwrap();
        assert!(!readable(&receiver, 0) && !receiver.drain());
        waker.wake();
        waker.clone().wake();
        assert!(readable(&receiver, 0) && receiver.drain());
        assert!(!readable(&receiver, 0) && !receiver.drain());
        waker.wake();
        assert!(readable(&receiver, 0));
    }

    #[test]
    fn no_wake_is_ever_lost() {
        const COUNT: u64 = 50_000;
        let (waker, receiver) = waker().unwrap();
        let value = Arc::new(AtomicU64::new(0));
        let written = Arc::clone(&value);
        let waking = thread::spawn(move || {
            for i in 1..=COUNT {
                written.store(i, Ordering::Relaxed);
                waker.wake();
            }
        });
        loop {
            // A lost wake-up would leave this waiting with a value that it never looked at.
            assert!(readable(&receiver, 10_000), "a wake-up was lost");
            receiver.drain();
            if value.load(Ordering::Relaxed) == COUNT {
                break;
            }
        }
        waking.join().unwrap();
    }
}
