//! The options of a stream's socket: set before a shard owns it, and told when one does not hold.
//!
//! On the control thread, called by the links of the core. A stream works without any of them, only
//! slower, or its death is noticed later; so nothing here ends one.

use super::core::Core;
use crate::config::Congestion;
use dwcp_ffi::sys::tcp::{
    set_receive_buffer, set_send_buffer, set_tcp_congestion, set_tcp_dead_after,
};
use dwcp_proto::ids::{LinkId, StreamId};
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// An option that does not hold as asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum OptionFault {
    /// The kernel caps the send buffer.
    #[error("the send buffer has {bytes} of {wanted_bytes} bytes")]
    SendCapped {
        /// What it has.
        bytes: usize,
        /// What it should have.
        wanted_bytes: usize,
    },
    /// The kernel caps the receive buffer.
    #[error("the receive buffer has {bytes} of {wanted_bytes} bytes")]
    ReceiveCapped {
        /// What it has.
        bytes: usize,
        /// What it should have.
        wanted_bytes: usize,
    },
    /// The send buffer can't be set.
    #[error("the send buffer can't be set: {0}")]
    Send(io::Error),
    /// The receive buffer can't be set.
    #[error("the receive buffer can't be set: {0}")]
    Receive(io::Error),
    /// None of the congestion controls that were wished for can be set.
    #[error("no congestion control of {} can be set: {source}", wished.names().join(", "))]
    Congestion {
        /// What was wished for.
        wished: Congestion,
        /// What the kernel said of the last one.
        source: io::Error,
    },
    /// The time after which a silent peer is dead can't be set.
    #[error("the time after which a silent peer is dead can't be set: {0}")]
    DeadAfter(io::Error),
}

impl OptionFault {
    /// The word under which it is counted.
    pub(super) const fn code(&self) -> &'static str {
        match self {
            Self::SendCapped { .. } => "send_buffer_capped",
            Self::ReceiveCapped { .. } => "receive_buffer_capped",
            Self::Send(_) => "send_buffer",
            Self::Receive(_) => "receive_buffer",
            Self::Congestion { .. } => "congestion_control",
            Self::DeadAfter(_) => "dead_after",
        }
    }

    /// What to do about it, where something can be done.
    pub(super) const fn cure(&self) -> Option<&'static str> {
        match self {
            Self::SendCapped { .. } => {
                Some("raise net.core.wmem_max for fast links of long distance; see dwcp doctor")
            }
            Self::ReceiveCapped { .. } => {
                Some("raise net.core.rmem_max for fast links of long distance; see dwcp doctor")
            }
            Self::Congestion { wished: Congestion::Cubic, .. } => {
                Some("add cubic to net.ipv4.tcp_allowed_congestion_control (modprobe tcp_cubic)")
            }
            Self::Congestion { .. } => {
                Some("add bbr to net.ipv4.tcp_allowed_congestion_control (modprobe tcp_bbr)")
            }
            Self::Send(_) | Self::Receive(_) | Self::DeadAfter(_) => None,
        }
    }
}

impl Core {
    /// A stream works without its option, but worse than it could.
    pub(super) fn note_option(&mut self, link: LinkId, stream: StreamId, fault: &OptionFault) {
        self.counters.stream_options.add(fault.code());
        if let Some(suppressed) = self.option_log.allow(self.now()) {
            let (code, cure) = (fault.code(), fault.cure());
            tracing::warn!(%link, %stream, code, %fault, cure, suppressed, "a socket option");
        }
    }
}

/// Gives a stream's socket a congestion control, its share of the window as buffers, and an end
/// when its peer is silent.
pub(super) fn set_options(
    socket: BorrowedFd<'_>,
    wanted_bytes: usize,
    dead_after: Duration,
    wished: Congestion,
) -> Vec<OptionFault> {
    let mut faults = Vec::new();
    let mut refused = None;
    for name in wished.names() {
        refused = set_tcp_congestion(socket, name).err();
        if refused.is_none() {
            break;
        }
    }
    faults.extend(refused.map(|source| OptionFault::Congestion { wished, source }));
    // The kernel doubles what it is asked for, and tells the doubled number.
    match set_send_buffer(socket, wanted_bytes).map(|held| held / 2) {
        Ok(bytes) if bytes >= wanted_bytes => {}
        Ok(bytes) => faults.push(OptionFault::SendCapped { bytes, wanted_bytes }),
        Err(error) => faults.push(OptionFault::Send(error)),
    }
    match set_receive_buffer(socket, wanted_bytes).map(|held| held / 2) {
        Ok(bytes) if bytes >= wanted_bytes => {}
        Ok(bytes) => faults.push(OptionFault::ReceiveCapped { bytes, wanted_bytes }),
        Err(error) => faults.push(OptionFault::Receive(error)),
    }
    // Without this a stream whose path swallows everything would hold its frames for minutes.
    if let Err(error) = set_tcp_dead_after(socket, dead_after) {
        faults.push(OptionFault::DeadAfter(error));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_ffi::sys::tcp::{available_congestion_controls, tcp_congestion};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    const DEAD_AFTER: Duration = Duration::from_secs(10);

    #[test]
    fn a_connection_takes_what_is_small_and_tells_what_it_can_not_hold() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(set_options(socket.as_fd(), 64 << 10, DEAD_AFTER, Congestion::Auto).is_empty());
        // More than any kernel gives: it counts buffers in 31 bits.
        let codes: Vec<_> =
            set_options(socket.as_fd(), (1 << 31) - 1, DEAD_AFTER, Congestion::Auto);
        let codes: Vec<_> = codes.iter().map(|fault| (fault.code(), fault.cure())).collect();
        assert!(matches!(
            codes[..],
            [("send_buffer_capped", Some(_)), ("receive_buffer_capped", Some(_))]
        ));
    }

    #[test]
    fn a_connection_gets_the_first_wished_congestion_control_that_the_kernel_offers() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let offered = available_congestion_controls();
        for wished in [Congestion::Auto, Congestion::Bbr, Congestion::Cubic] {
            let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let before = tcp_congestion(socket.as_fd()).unwrap();
            let faults = set_options(socket.as_fd(), 64 << 10, DEAD_AFTER, wished);
            let best = wished.names().iter().find(|name| offered.iter().any(|it| it == *name));
            let held = tcp_congestion(socket.as_fd()).unwrap();
            assert_eq!(held, best.map_or(before, |name| (*name).to_owned()), "{wished:?}");
            let codes: Vec<_> = faults.iter().map(OptionFault::code).collect();
            let told = if best.is_some() { vec![] } else { vec!["congestion_control"] };
            assert_eq!(codes, told, "{wished:?}");
        }
    }

    #[test]
    fn what_is_no_tcp_socket_is_told_and_is_no_panic() {
        let (socket, _other) = UnixStream::pair().unwrap();
        let faults = set_options(socket.as_fd(), 64 << 10, DEAD_AFTER, Congestion::Cubic);
        assert!(faults.iter().any(|fault| fault.code() == "dead_after"), "{faults:?}");
        assert!(faults.iter().any(|f| f.cure().is_some_and(|cure| cure.contains("cubic"))));
    }
}
