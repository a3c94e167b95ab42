//! The network: congestion control, socket buffers, RDMA.
//!
//! Main thread; reads sysctls and /sys, changes nothing.

use super::check::{Check, kernel_file};
use crate::settings::value::{MIB, show_bytes};

/// Socket buffers that carry 1 Gbit/s over 100 ms: 12.5 MB, doubled for losses.
const BUFFER_BYTES_WISHED: u64 = 24 * MIB;

/// All checks of the network.
pub(super) fn checks() -> Vec<Check> {
    let available = kernel_file("/proc/sys/net/ipv4/tcp_available_congestion_control");
    let limits = ["wmem_max", "rmem_max"].map(|name| {
        let text = kernel_file(&format!("/proc/sys/net/core/{name}"));
        (name, text.and_then(|text| text.parse().ok()))
    });
    let devices = std::fs::read_dir("/sys/class/infiniband").map(|devices| {
        let names = devices.flatten().map(|device| device.file_name());
        names.map(|name| name.to_string_lossy().into_owned()).collect()
    });
    vec![congestion_control(available.as_deref()), buffers(limits), rdma(devices.ok())]
}

fn congestion_control(available: Option<&str>) -> Check {
    const NAME: &str = "congestion control";
    let Some(available) = available else {
        return Check::warn(NAME, "the list can't be read", "mount /proc, with its sys part");
    };
    if available.split_whitespace().any(|name| name == "bbr") {
        return Check::ok(NAME, "bbr is there");
    }
    Check::warn(
        NAME,
        format!("no bbr, only: {available}"),
        "'modprobe tcp_bbr'; until then give links that lose packets more --streams",
    )
}

fn buffers(limits: [(&str, Option<u64>); 2]) -> Check {
    const NAME: &str = "socket buffers";
    let small: Vec<String> = limits
        .iter()
        .filter_map(|(name, bytes)| Some((name, (*bytes)?)))
        .filter(|(_, bytes)| *bytes < BUFFER_BYTES_WISHED)
        .map(|(name, bytes)| format!("net.core.{name} is {}", show_bytes(bytes)))
        .collect();
    if small.is_empty() {
        return Check::ok(NAME, format!("at least {} each way", show_bytes(BUFFER_BYTES_WISHED)));
    }
    Check::warn(
        NAME,
        small.join(", "),
        format!(
            "'sysctl -w net.core.wmem_max={0} net.core.rmem_max={0}' for fast links of long \
             distance; on a local network nothing is lost",
            BUFFER_BYTES_WISHED
        ),
    )
}

/// This version moves data over TCP alone; a device is named so that nobody wonders.
fn rdma(devices: Option<Vec<String>>) -> Check {
    const NAME: &str = "rdma";
    match devices {
        None => Check::ok(NAME, "the kernel has no RDMA; links use TCP"),
        Some(devices) if devices.is_empty() => Check::ok(NAME, "no RDMA device; links use TCP"),
        Some(devices) => {
            Check::ok(NAME, format!("{}; this version's links use TCP", devices.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::Status;
    use super::*;

    #[test]
    fn each_lack_is_a_warning_with_its_cure() {
        assert_eq!(congestion_control(Some("reno cubic bbr")).status, Status::Ok);
        assert_eq!(congestion_control(Some("reno cubic")).status, Status::Warn);
        assert_eq!(congestion_control(None).status, Status::Warn);
        let small = buffers([("wmem_max", Some(212_992)), ("rmem_max", Some(1 << 30))]);
        assert_eq!(small.status, Status::Warn);
        assert_eq!(small.found, "net.core.wmem_max is 208KiB");
        assert_eq!(buffers([("wmem_max", None), ("rmem_max", Some(1 << 30))]).status, Status::Ok);
        assert_eq!(rdma(None).status, Status::Ok);
        assert_eq!(rdma(Some(vec!["rxe0".to_owned()])).status, Status::Ok);
    }
}
