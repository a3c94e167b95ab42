//! Whether the other side of a connected socket has closed, asked without reading from it.
//!
//! Any thread; one system call, which never blocks. What the other side wrote before it closed may
//! still wait to be read.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// True when the other side will write nothing more.
///
/// # Errors
/// The kernel has no memory for the question.
pub fn has_peer_closed(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let closed = PollFlags::from_bits_retain(libc::POLLRDHUP);
    // A hang-up and an error are reported without being asked for.
    Ok(poll(&mut [PollFd::new(socket, closed)], PollTimeout::ZERO)? > 0)
}

/// True when the other side has closed and everything that it wrote was read.
pub fn is_at_end(socket: BorrowedFd<'_>) -> bool {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    recv(socket.as_raw_fd(), &mut [0], flags) == Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_close_shows_at_once_even_behind_unread_bytes() {
        for how in [Shutdown::Write, Shutdown::Both] {
            let (mut ours, mut theirs) = UnixStream::pair().unwrap();
            assert!(!has_peer_closed(ours.as_fd()).unwrap() && !is_at_end(ours.as_fd()));
            theirs.write_all(b"unread").unwrap();
            assert!(!has_peer_closed(ours.as_fd()).unwrap());
            theirs.shutdown(how).unwrap();
            assert!(has_peer_closed(ours.as_fd()).unwrap() && !is_at_end(ours.as_fd()));
            ours.read_exact(&mut [0; 6]).unwrap();
            assert!(is_at_end(ours.as_fd()));
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(has_peer_closed(ours.as_fd()).unwrap() && is_at_end(ours.as_fd()));
    }
}
