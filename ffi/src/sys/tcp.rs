//! Options and measurements of TCP sockets.
//!
//! Set once by whoever connected or accepted a stream, before a shard owns it; measured by the
//! shard or the control thread at a slow pace. Every function is one system call.

use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// What the kernel knows about a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpInfo {
    /// The smoothed round-trip time, in nanoseconds (the kernel knows microseconds).
    pub rtt_ns: u64,
    /// What it varies by (the mean deviation), in nanoseconds.
    pub rtt_ns_deviation: u64,
    /// The lowest round-trip time of the connection's recent past, in nanoseconds.
    pub rtt_ns_min: u64,
    /// The congestion window, in bytes.
    pub window_bytes: u64,
    /// Bytes in the send buffer that were never sent.
    pub unsent_bytes: u64,
    /// Bytes in the network, as far as the kernel knows: sent, and neither acknowledged nor lost.
    pub in_flight_bytes: u64,
    /// Bytes that the peer acknowledged.
    pub acked_bytes: u64,
    /// Bytes received in order.
    pub received_bytes: u64,
    /// Segments sent more than once.
    pub retransmitted_segments: u64,
    /// Recent rate of delivery, in bytes per second.
    pub delivery_rate: u64,
    /// The rate at which the kernel paces, in bytes per second; `u64::MAX` when it does not.
    pub pacing_rate: u64,
    /// The newest rate of delivery was bound by the sender, which had nothing more to send.
    pub is_app_limited: bool,
    /// Bytes sent more than once.
    pub retransmitted_bytes: u64,
    /// How long there was something to send or to be acknowledged, in nanoseconds.
    pub busy_ns: u64,
    /// The part of it in which the peer's receive window was full.
    pub receive_window_limited_ns: u64,
    /// The part of it in which the send buffer was full.
    pub send_buffer_limited_ns: u64,
}

/// The kernel's structure up to what we use. It only ever grows at its end: a kernel that knows
/// less fills less and says so, and the rest stays zero.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct KernelTcpInfo {
    states_and_scales: [u8; 7],
    /// Its lowest bit: the rate of delivery was bound by the sender.
    app_limited_and_fastopen: u8,
    rto: u32,
    ato: u32,
    snd_mss: u32,
    rcv_mss: u32,
    unacked: u32,
    sacked: u32,
    lost: u32,
    retrans: u32,
    fackets: u32,
    last_times_ms: [u32; 4],
    pmtu: u32,
    rcv_ssthresh: u32,
    rtt: u32,
    rttvar: u32,
    snd_ssthresh: u32,
    snd_cwnd: u32,
    advmss: u32,
    reordering: u32,
    rcv_rtt: u32,
    rcv_space: u32,
    total_retrans: u32,
    pacing_rate: u64,
    max_pacing_rate: u64,
    bytes_acked: u64,
    bytes_received: u64,
    segs_out: u32,
    segs_in: u32,
    notsent_bytes: u32,
    min_rtt: u32,
    data_segs_in: u32,
    data_segs_out: u32,
    delivery_rate: u64,
    busy_time: u64,
    rwnd_limited: u64,
    sndbuf_limited: u64,
    delivered: u32,
    delivered_ce: u32,
    bytes_sent: u64,
    bytes_retrans: u64,
}

const _: () = assert!(size_of::<KernelTcpInfo>() == 216);
const _: () = assert!(std::mem::offset_of!(KernelTcpInfo, pacing_rate) == 104);

/// Measures a connection.
///
/// # Errors
/// The descriptor is no TCP socket.
pub fn tcp_info(socket: BorrowedFd<'_>) -> io::Result<TcpInfo> {
    let (info, _) = tcp_option::<KernelTcpInfo>(socket, libc::TCP_INFO)?;
    let in_flight = (info.unacked + info.retrans).saturating_sub(info.sacked + info.lost);
    // The kernel says "no minimum yet" with all ones.
    let min_rtt = if info.min_rtt == u32::MAX { 0 } else { info.min_rtt };
    Ok(TcpInfo {
        rtt_ns: u64::from(info.rtt) * 1000,
        rtt_ns_deviation: u64::from(info.rttvar) * 1000,
        rtt_ns_min: u64::from(min_rtt) * 1000,
        window_bytes: u64::from(info.snd_cwnd) * u64::from(info.snd_mss),
        unsent_bytes: u64::from(info.notsent_bytes),
        in_flight_bytes: u64::from(in_flight) * u64::from(info.snd_mss),
        acked_bytes: info.bytes_acked,
        received_bytes: info.bytes_received,
        retransmitted_segments: u64::from(info.total_retrans),
        delivery_rate: info.delivery_rate,
        pacing_rate: info.pacing_rate,
        is_app_limited: info.app_limited_and_fastopen & 1 != 0,
        retransmitted_bytes: info.bytes_retrans,
        busy_ns: info.busy_time.saturating_mul(1000),
        receive_window_limited_ns: info.rwnd_limited.saturating_mul(1000),
        send_buffer_limited_ns: info.sndbuf_limited.saturating_mul(1000),
    })
}

/// What BBR tells of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BbrInfo {
    /// It still looks for the path's rate (its STARTUP phase).
    pub in_startup: bool,
    /// The path's rate as it takes it, in bytes per second.
    pub rate: u64,
    /// The path's round trip as it takes it: it looks for it once in ten seconds. 0: not yet known.
    pub rtt_ns: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct KernelBbrInfo {
    /// The lower half first.
    bandwidth: [u32; 2],
    min_rtt_us: u32,
    /// In 256ths, as the next.
    pacing_gain: u32,
    cwnd_gain: u32,
}

/// BBR paces at 2.8 times its estimate or more while it looks for the path's rate, and never above
/// 1.25 times afterwards.
const STARTUP_PACING_GAIN_MIN: u32 = 2 * 256;

/// What BBR tells of itself; `None` with another congestion control.
///
/// # Errors
/// The descriptor is no TCP socket.
pub fn bbr_info(socket: BorrowedFd<'_>) -> io::Result<Option<BbrInfo>> {
    let (info, bytes) = tcp_option::<KernelBbrInfo>(socket, libc::TCP_CC_INFO)?;
    // What other congestion controls tell is shorter. Before the first ack the gain is 0.
    let is_bbr = bytes == size_of::<KernelBbrInfo>();
    let in_startup = info.pacing_gain == 0 || info.pacing_gain > STARTUP_PACING_GAIN_MIN;
    let [low, high] = info.bandwidth.map(u64::from);
    let rtt_ns = if info.min_rtt_us == u32::MAX { 0 } else { u64::from(info.min_rtt_us) * 1000 };
    Ok(is_bbr.then_some(BbrInfo { in_startup, rate: high << 32 | low, rtt_ns }))
}

/// Structures of the kernel.
///
/// # Safety
/// They hold integers only, so that whatever the kernel writes is a value.
unsafe trait Integers: Default {}

// SAFETY: all fields are integers.
unsafe impl Integers for KernelTcpInfo {}
// SAFETY: all fields are integers.
unsafe impl Integers for KernelBbrInfo {}

/// Reads an option of TCP, and how many bytes of it the kernel told; the others are 0.
fn tcp_option<T: Integers>(socket: BorrowedFd<'_>, name: libc::c_int) -> io::Result<(T, usize)> {
    let mut value = T::default();
    let mut bytes = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `bytes` bytes to `value`, which is ours alone over the call
    // and holds integers only, as who implemented `Integers` for it has promised.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            name,
            (&raw mut value).cast(),
            &raw mut bytes,
        )
    };
    Errno::result(result)?;
    Ok((value, bytes as usize))
}

/// Chooses the congestion control, such as `bbr` or `cubic`.
///
/// # Errors
/// The kernel does not have it (`ENOENT`) or does not permit it (`EPERM`).
pub fn set_tcp_congestion(socket: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    Ok(setsockopt(&socket, sockopt::TcpCongestion, &OsString::from(name))?)
}

/// The congestion control that holds.
///
/// # Errors
/// The descriptor is no TCP socket.
pub fn tcp_congestion(socket: BorrowedFd<'_>) -> io::Result<String> {
    let name = nix::sys::socket::getsockopt(&socket, sockopt::TcpCongestion)?;
    Ok(name.to_string_lossy().trim_end_matches('\0').to_owned())
}

/// The kernel's congestion controls that may be chosen, as it lists them.
#[must_use]
pub fn available_congestion_controls() -> Vec<String> {
    let list = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control");
    list.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

/// Sends small segments at once (TCP_NODELAY): records are whole when they are sent.
///
/// # Errors
/// The descriptor is no TCP socket.
pub fn set_tcp_nodelay(socket: BorrowedFd<'_>) -> io::Result<()> {
    Ok(setsockopt(&socket, sockopt::TcpNoDelay, &true)?)
}

/// Bounds what waits unsent in the kernel's send buffer (TCP_NOTSENT_LOWAT).
///
/// # Errors
/// The descriptor is no TCP socket.
pub fn set_tcp_notsent_lowat(socket: BorrowedFd<'_>, bytes: u32) -> io::Result<()> {
    let value = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    // SAFETY: the kernel reads one integer of the size given, which lives over the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NOTSENT_LOWAT,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    Errno::result(result)?;
    Ok(())
}

/// Bounds the rate at which the kernel paces the connection, in bytes per second
/// (SO_MAX_PACING_RATE); `None`: no bound.
///
/// # Errors
/// The descriptor is no socket.
pub fn set_pacing_rate_max(socket: BorrowedFd<'_>, rate: Option<u64>) -> io::Result<()> {
    let value = rate.unwrap_or(u64::MAX);
    // SAFETY: the kernel reads one integer of the size given, which lives over the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MAX_PACING_RATE,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    Errno::result(result)?;
    Ok(())
}

/// Ends the connection when the peer's host leaves data unacknowledged for this long
/// (TCP_USER_TIMEOUT), and asks an idle peer for a sign of life in time (SO_KEEPALIVE).
///
/// # Errors
/// The descriptor is no TCP socket.
pub fn set_tcp_dead_after(socket: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
    const PROBES: u32 = 3;
    let millis = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
    let between = u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX).div_ceil(PROBES + 1).max(1);
    setsockopt(&socket, sockopt::TcpUserTimeout, &millis)?;
    setsockopt(&socket, sockopt::KeepAlive, &true)?;
    setsockopt(&socket, sockopt::TcpKeepIdle, &between)?;
    setsockopt(&socket, sockopt::TcpKeepInterval, &between)?;
    Ok(setsockopt(&socket, sockopt::TcpKeepCount, &PROBES)?)
}

/// Sets the size of the send buffer and returns what holds now. The kernel doubles the number for
/// its own books and caps it at `net.core.wmem_max` unless the process may exceed that.
///
/// # Errors
/// The descriptor is no socket.
pub fn set_send_buffer(socket: BorrowedFd<'_>, bytes: usize) -> io::Result<usize> {
    if setsockopt(&socket, sockopt::SndBufForce, &bytes).is_err() {
        setsockopt(&socket, sockopt::SndBuf, &bytes)?;
    }
    Ok(nix::sys::socket::getsockopt(&socket, sockopt::SndBuf)?)
}

/// Sets the size of the receive buffer and returns what holds now. The kernel doubles the number
/// for its own books and caps it at `net.core.rmem_max` unless the process may exceed that.
///
/// # Errors
/// The descriptor is no socket.
pub fn set_receive_buffer(socket: BorrowedFd<'_>, bytes: usize) -> io::Result<usize> {
    if setsockopt(&socket, sockopt::RcvBufForce, &bytes).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &bytes)?;
    }
    Ok(nix::sys::socket::getsockopt(&socket, sockopt::RcvBuf)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    fn connection() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn a_connection_is_measured() {
        let (mut client, mut server) = connection();
        client.write_all(&[1; 1000]).unwrap();
        server.read_exact(&mut [0; 1000]).unwrap();
        server.write_all(&[1]).unwrap();
        client.read_exact(&mut [0]).unwrap();
        let info = tcp_info(client.as_fd()).unwrap();
        assert!(info.rtt_ns > 0 && info.window_bytes > 0 && info.acked_bytes >= 1000, "{info:?}");
        assert!(info.is_app_limited && info.retransmitted_bytes == 0, "{info:?}");
        assert_eq!(tcp_info(server.as_fd()).unwrap().received_bytes, 1000);
    }

    #[test]
    fn bbr_starts_up_and_others_never_do() {
        let (client, _server) = connection();
        let socket = client.as_fd();
        set_tcp_congestion(socket, "reno").unwrap();
        assert_eq!(bbr_info(socket).unwrap(), None);
        if available_congestion_controls().iter().any(|name| name == "bbr") {
            set_tcp_congestion(socket, "bbr").unwrap();
            assert!(bbr_info(socket).unwrap().is_some_and(|bbr| bbr.in_startup));
        }
    }

    #[test]
    fn options_hold_or_are_refused() {
        let (client, _server) = connection();
        let socket = client.as_fd();
        set_tcp_nodelay(socket).unwrap();
        assert!(client.nodelay().unwrap());
        set_tcp_notsent_lowat(socket, 128 << 10).unwrap();
        set_pacing_rate_max(socket, Some(1_000_000)).unwrap();
        assert!(tcp_info(socket).unwrap().pacing_rate <= 1_000_000);
        set_pacing_rate_max(socket, None).unwrap();
        let controls = available_congestion_controls();
        set_tcp_congestion(socket, controls.first().unwrap()).unwrap();
        assert_eq!(
            set_tcp_congestion(socket, "no-such-thing").unwrap_err().raw_os_error(),
            Some(libc::ENOENT)
        );
        assert!(set_send_buffer(socket, 64 << 10).unwrap() >= 64 << 10);
        assert!(set_receive_buffer(socket, 64 << 10).unwrap() >= 64 << 10);
        let pair = std::os::unix::net::UnixStream::pair().unwrap().0;
        assert!(bbr_info(pair.as_fd()).is_err());
        assert!(tcp_info(pair.as_fd()).is_err() && set_tcp_nodelay(pair.as_fd()).is_err());
    }
}
