//! What the kernel tells about a QEMU and its images: free memory, resident memory, the user it
//! runs as, the storage of a file.
//!
//! Runs on the control thread; reads a few files of `/proc`, which never wait. Everything here is
//! best effort: a daemon in a container may see nothing, and says so by `None` or
//! [`Storage::Unknown`].

use super::facts::Storage;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// File systems that several hosts can mount at once with one content.
const SHARED_FILE_SYSTEMS: [&str; 12] = [
    "nfs",
    "nfs4",
    "ceph",
    "cifs",
    "smb3",
    "gfs2",
    "ocfs2",
    "lustre",
    "beegfs",
    "glusterfs",
    "9p",
    "virtiofs",
];

/// Memory that the host could give to a process now.
pub(super) fn free_bytes() -> u64 {
    fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| kib(&text, "MemAvailable:"))
        .unwrap_or(0)
}

/// Memory that a process has, huge pages included.
pub(super) fn resident_bytes(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(kib(&status, "VmRSS:")? + kib(&status, "HugetlbPages:").unwrap_or(0))
}

/// The user that a process runs as now: QEMU may have changed it after it began to listen.
pub(super) fn user_of(pid: i32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    users.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The user that this daemon runs as.
pub(super) fn own_user() -> Option<u32> {
    user_of(i32::try_from(std::process::id()).ok()?)
}

/// Where an image is. `file` is QEMU's name for it.
pub(super) fn storage_of(file: &str) -> Storage {
    if file.starts_with("json:") || file.contains("://") {
        return if file.contains("\"filename\"") { Storage::Unknown } else { Storage::Network };
    }
    let protocol = file.split(':').next().filter(|head| head.len() < file.len());
    if protocol.is_some_and(|head| head.bytes().all(|byte| byte.is_ascii_alphanumeric())) {
        return Storage::Network;
    }
    let Ok(path) = fs::canonicalize(file) else { return Storage::Unknown };
    let Ok(metadata) = fs::metadata(&path) else { return Storage::Unknown };
    if metadata.file_type().is_block_device() || !metadata.is_file() {
        return Storage::Unknown;
    }
    let inode = metadata.ino();
    let Some(kind) = file_system_of(&path) else { return Storage::Unknown };
    if SHARED_FILE_SYSTEMS.contains(&kind.as_str()) {
        return Storage::SharedFile { inode };
    }
    if kind.starts_with("fuse") {
        // It may be a cluster's or a user's own: nobody but the user knows.
        return Storage::Unknown;
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Storage::LocalFile { boot: boot.trim().to_owned(), device: metadata.dev(), inode }
}

/// The type of the file system that a path is on: the longest mount point that leads to it.
fn file_system_of(path: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let entries = mounts.lines().filter_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let point = mount.split_ascii_whitespace().nth(4)?;
        Some((point.replace("\\040", " "), kind.split_ascii_whitespace().next()?))
    });
    let leading = entries.filter(|(point, _)| path.starts_with(point));
    leading.max_by_key(|(point, _)| point.len()).map(|(_, kind)| kind.to_owned())
}

fn kib(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = rest.split_ascii_whitespace().next()?.parse().ok()?;
    number.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_to_its_host() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(resident_bytes(own).unwrap() > 0);
        assert_eq!(user_of(own), own_user());
        assert!(free_bytes() > 0);
        assert_eq!(kib("Name:\tx\nVmRSS:\t  12 kB\n", "VmRSS:"), Some(12 << 10));
    }

    #[test]
    fn an_image_is_found_where_it_is() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let storage = storage_of(file.path().to_str().unwrap());
        assert!(!matches!(storage, Storage::Network | Storage::SharedFile { .. }), "{storage:?}");
        for name in ["rbd:pool/image", "nbd://host/x", "json:{\"driver\":\"rbd\"}"] {
            assert_eq!(storage_of(name), Storage::Network, "{name}");
        }
        for name in ["/nonexistent/file", "json:{\"file\":{\"filename\":\"/x\"}}", "/dev/null"] {
            assert_eq!(storage_of(name), Storage::Unknown, "{name}");
        }
    }
}
