//! What the lab's link emulator needs of the kernel: TUN devices and a place before other threads.
//!
//! Compiled for the project's tools only (feature `lab`), never into the product. Called by the
//! emulator's threads when a link is made; packets then go through the file with the standard
//! library's safe calls.

use nix::errno::Errno;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

/// Bytes of the header that the kernel puts before each packet of a [`tun`] device (`struct
/// virtio_net_hdr`): it tells how a large packet is to be cut into segments.
pub const VNET_HEADER_BYTES: usize = 10;

/// Makes a network device named `name` in the namespace of the calling thread. What its IP stack
/// sends can be read from the file, what is written to the file arrives there. TCP over IPv4 comes
/// as packets of up to 64 KiB, not yet cut into segments and without checksums. The file never
/// blocks, and the device goes away with it.
///
/// # Errors
/// No right to make devices, no TUN in this kernel, or a device of that name exists.
///
/// # Panics
/// `name` has 16 bytes or more, which no device's name may have.
pub fn tun(name: &str) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    let file = options.open("/dev/net/tun")?;
    let fd = file.as_raw_fd();

    // SAFETY: `ifreq` is a C struct of integers and byte arrays, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    assert!(name.len() < request.ifr_name.len(), "a device's name has at most 15 bytes");
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: this call reads and writes one `ifreq`, which lives until it returns.
    Errno::result(unsafe { libc::ioctl(fd, libc::TUNSETIFF, &raw mut request) })?;

    let header_bytes = VNET_HEADER_BYTES as libc::c_int;
    // SAFETY: this call reads one int, which lives until it returns.
    Errno::result(unsafe { libc::ioctl(fd, libc::TUNSETVNETHDRSZ, &raw const header_bytes) })?;
    // The emulator has its own queue; the device must not add one that pushes back.
    let send_bytes = libc::c_int::MAX;
    // SAFETY: as above.
    Errno::result(unsafe { libc::ioctl(fd, libc::TUNSETSNDBUF, &raw const send_bytes) })?;
    let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO_ECN;
    // SAFETY: the argument of this call is a number and no address.
    let done = unsafe { libc::ioctl(fd, libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) };
    Errno::result(done)?;
    Ok(file)
}

/// Puts the calling thread before all ordinary threads of the machine (SCHED_FIFO, priority 10).
///
/// # Errors
/// The process lacks CAP_SYS_NICE.
pub fn run_before_others() -> io::Result<()> {
    // SAFETY: `sched_param` is a C struct of integers, for which zero is a value.
    let mut parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    parameters.sched_priority = 10;
    // SAFETY: the call reads one `sched_param`, which lives until it returns; 0 is this thread.
    let done = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
    Errno::result(done)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_too_long_is_our_bug() {
        // Without a TUN in the kernel the file can't be opened, and the name is never looked at.
        let outcome = std::panic::catch_unwind(|| tun("sixteen-bytes-is"));
        assert!(outcome.is_err() || outcome.is_ok_and(|made| made.is_err()));
    }
}
