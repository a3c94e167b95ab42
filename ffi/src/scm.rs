//! Descriptors over a Unix socket (SCM_RIGHTS) and who is at the other end (SO_PEERCRED).
//!
//! Called by the control thread and by clients, on blocking and non-blocking sockets alike. Every
//! descriptor that the kernel installs is owned at once, so that none leaks when the message turns
//! out to be wrong; a message whose control data was cut is an error, never a shorter list.

use nix::sys::socket::{ControlMessage, MsgFlags, getsockopt, sendmsg, sockopt};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The most descriptors of one message that we take or send: a region and its bitmap need two.
pub const DESCRIPTORS_MAX: usize = 16;

/// Why no message was sent or taken.
#[derive(Debug, thiserror::Error)]
pub enum ScmError {
    /// The kernel had to cut the control data: the peer sent more than there was room for, or this
    /// process has no descriptor left. What arrived was closed.
    #[error("descriptors were lost on the way: too many were sent, or none is left here")]
    Truncated,
    /// The peer sent more descriptors than were allowed. All were closed.
    #[error("{received} descriptors came, at most {allowed} are taken")]
    TooMany {
        /// How many came.
        received: usize,
        /// How many were allowed.
        allowed: usize,
    },
    /// The socket failed, would block, or was interrupted.
    #[error("the socket failed")]
    Socket(#[source] io::Error),
}

impl From<ScmError> for io::Error {
    /// For callers that wait for a socket and must see `WouldBlock` as such.
    fn from(error: ScmError) -> Self {
        match error {
            ScmError::Socket(error) => error,
            other => Self::new(io::ErrorKind::InvalidData, other),
        }
    }
}

/// The process at the other end of a Unix socket, as it was when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerCredentials {
    /// Its process number.
    pub pid: i32,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
}

/// Sends bytes with descriptors attached to the first of them; returns how many bytes went. On a
/// stream that may be fewer than given: the descriptors have gone, send the rest without them.
///
/// # Errors
/// [`ScmError::Socket`].
///
/// # Panics
/// When there is no byte, or more than [`DESCRIPTORS_MAX`] descriptors.
pub fn send_with_fds(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Result<usize, ScmError> {
    assert!(!bytes.is_empty(), "descriptors need at least one byte to ride on");
    assert!(fds.len() <= DESCRIPTORS_MAX, "{} descriptors in one message", fds.len());
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    let data = [IoSlice::new(bytes)];
    sendmsg::<()>(socket.as_raw_fd(), &data, control, MsgFlags::MSG_NOSIGNAL, None)
        .map_err(|errno| ScmError::Socket(errno.into()))
}

/// The bytes that `cmsghdr` and 253 descriptors (the kernel's limit per message) take, in words so
/// that the buffer is aligned for `cmsghdr`.
const CONTROL_WORDS: usize = 128;

/// Receives bytes and the descriptors that came with them, at most `fds_max`; zero bytes are the
/// end of a stream. The descriptors are closed on exec.
///
/// # Errors
/// [`ScmError`]; every descriptor that came is closed then.
///
/// # Panics
/// When the buffer is empty or `fds_max` is above [`DESCRIPTORS_MAX`].
pub fn recv_with_fds(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    fds_max: usize,
) -> Result<(usize, Vec<OwnedFd>), ScmError> {
    assert!(!buffer.is_empty(), "no room to receive into");
    assert!(fds_max <= DESCRIPTORS_MAX, "{fds_max} descriptors in one message");
    let mut control = [0u64; CONTROL_WORDS];
    let mut data = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all zeroes are a valid msghdr: null pointers with zero lengths.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut data;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    // Room for exactly the allowed number; alignment may leave room for one more, hence the check
    // of the count below.
    let room = (fds_max * size_of::<RawFd>()) as libc::c_uint;
    // SAFETY: CMSG_SPACE only computes.
    header.msg_controllen = unsafe { libc::CMSG_SPACE(room) } as usize;
    assert!(header.msg_controllen <= size_of_val(&control));
    // SAFETY: the header points at `data` and `control`, both alive and exclusively ours over the
    // call, with their true lengths.
    let received =
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC) };
    let received =
        usize::try_from(received).map_err(|_| ScmError::Socket(io::Error::last_os_error()))?;
    let fds = take_descriptors(&header);
    if header.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(ScmError::Truncated);
    }
    if fds.len() > fds_max {
        return Err(ScmError::TooMany { received: fds.len(), allowed: fds_max });
    }
    Ok((received, fds))
}

/// Takes ownership of every descriptor in a received message's control data.
fn take_descriptors(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the kernel filled the header and its control buffer, which is alive and aligned.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(header) };
    while !message.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a whole header inside the buffer.
        let head = unsafe { message.read() };
        if head.cmsg_level == libc::SOL_SOCKET && head.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: the message is one of the buffer's (see above); the macro adds a constant.
            let data = unsafe { libc::CMSG_DATA(message) }.cast::<RawFd>();
            // SAFETY: CMSG_LEN only computes.
            let head_bytes = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = head.cmsg_len.saturating_sub(head_bytes) / size_of::<RawFd>();
            for index in 0..count {
                // SAFETY: the kernel wrote `count` descriptors after the header, in the buffer.
                let place = unsafe { data.add(index) };
                // SAFETY: as above; the data may be unaligned for an integer.
                let raw = unsafe { place.read_unaligned() };
                // SAFETY: the kernel installed this descriptor for us; each is visited once.
                fds.push(unsafe { OwnedFd::from_raw_fd(raw) });
            }
        }
        // SAFETY: as for CMSG_FIRSTHDR; `message` is a header of this buffer.
        message = unsafe { libc::CMSG_NXTHDR(header, message) };
    }
    fds
}

/// Who connected (or listened) at the other end.
///
/// # Errors
/// The descriptor is no connected Unix socket.
pub fn peer_credentials(socket: BorrowedFd<'_>) -> io::Result<PeerCredentials> {
    let peer = getsockopt(&socket, sockopt::PeerCredentials)?;
    Ok(PeerCredentials { pid: peer.pid(), uid: peer.uid(), gid: peer.gid() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    /// Pipes whose write ends are sent: the read end sees the end of file only when every copy of
    /// the write end is closed, which shows a leak.
    fn pipes(count: usize) -> (Vec<File>, Vec<OwnedFd>) {
        let pair = || nix::unistd::pipe().unwrap();
        (0..count).map(|_| pair()).map(|(read, write)| (File::from(read), write)).unzip()
    }

    fn borrowed(fds: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
        fds.iter().map(AsFd::as_fd).collect()
    }

    fn assert_all_closed(mut readers: Vec<File>) {
        for reader in &mut readers {
            let mut poll = [nix::poll::PollFd::new(reader.as_fd(), nix::poll::PollFlags::POLLIN)];
            assert_eq!(nix::poll::poll(&mut poll, 5000u16), Ok(1), "a descriptor leaked");
            assert_eq!(reader.read(&mut [0]).unwrap(), 0);
        }
    }

    #[test]
    fn descriptors_arrive_and_work() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut readers, writers) = pipes(2);
        assert_eq!(send_with_fds(here.as_fd(), b"two", &borrowed(&writers)).unwrap(), 3);
        drop(writers);
        let mut buffer = [0; 16];
        let (count, fds) = recv_with_fds(there.as_fd(), &mut buffer, 2).unwrap();
        assert_eq!((&buffer[..count], fds.len()), (&b"two"[..], 2));
        for (fd, reader) in fds.into_iter().zip(&mut readers) {
            let flags = nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_GETFD).unwrap();
            assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
            File::from(fd).write_all(b"x").unwrap();
            let mut byte = [0];
            reader.read_exact(&mut byte).unwrap();
            assert_eq!(&byte, b"x");
        }
        assert_all_closed(readers);
    }

    #[test]
    fn plain_bytes_and_the_end_of_a_stream_need_no_control_data() {
        let (here, there) = UnixStream::pair().unwrap();
        send_with_fds(here.as_fd(), b"plain", &[]).unwrap();
        drop(here);
        let mut buffer = [0; 16];
        assert_eq!(recv_with_fds(there.as_fd(), &mut buffer, 1).unwrap().0, 5);
        assert_eq!(recv_with_fds(there.as_fd(), &mut buffer, 1).unwrap().0, 0);
    }

    #[test]
    fn more_descriptors_than_allowed_are_refused_and_closed() {
        // 0, 1 and 3 leave different amounts of alignment in the control buffer.
        for (sent, allowed) in [(1, 0), (2, 1), (3, 1), (4, 3), (16, 2), (16, 15)] {
            let (here, there) = UnixStream::pair().unwrap();
            let (readers, writers) = pipes(sent);
            send_with_fds(here.as_fd(), b"x", &borrowed(&writers)).unwrap();
            drop(writers);
            let got = recv_with_fds(there.as_fd(), &mut [0; 8], allowed);
            assert!(
                matches!(got, Err(ScmError::Truncated | ScmError::TooMany { .. })),
                "{sent} {allowed}: {got:?}"
            );
            assert_all_closed(readers);
        }
    }

    #[test]
    fn an_empty_socket_says_that_it_would_block() {
        let (_here, there) = UnixStream::pair().unwrap();
        there.set_nonblocking(true).unwrap();
        let error = recv_with_fds(there.as_fd(), &mut [0; 8], 1).unwrap_err();
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::WouldBlock);
        assert_eq!(io::Error::from(ScmError::Truncated).kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn the_peer_is_known() {
        let (here, _there) = UnixStream::pair().unwrap();
        let peer = peer_credentials(here.as_fd()).unwrap();
        assert_eq!(peer.pid, i32::try_from(std::process::id()).unwrap());
        assert_eq!(peer.uid, nix::unistd::geteuid().as_raw());
        assert!(peer_credentials(File::open("/dev/null").unwrap().as_fd()).is_err());
    }
}
