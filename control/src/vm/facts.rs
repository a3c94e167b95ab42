//! What is known of a virtual machine before it moves: the input of the preflight.
//!
//! Pure values; `gather` fills them from QEMU's monitor, the peers exchange them as JSON.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A version of QEMU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct QemuVersion {
    /// The first number.
    pub(crate) major: u16,
    /// The second.
    pub(crate) minor: u16,
    /// The third.
    pub(crate) micro: u16,
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// One device that a guest sees.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct DeviceFact {
    /// Its user-given id, or else its place such as `pci/02.0`.
    pub(crate) place: String,
    /// Its type, such as `virtio-net-pci` or a PCI vendor and device number.
    pub(crate) kind: String,
}

/// One block device of a guest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct BlockFact {
    /// The back end's or the device's name.
    pub(crate) name: String,
    /// The image's driver, such as `qcow2`.
    pub(crate) driver: String,
    /// The image's file name or URL, as QEMU tells it.
    pub(crate) file: String,
    /// The guest can't write to it.
    pub(crate) read_only: bool,
    /// The size that the guest sees.
    pub(crate) size_bytes: u64,
    /// Where the image is.
    pub(crate) storage: Storage,
}

/// Where an image is, as far as its host can tell.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Storage {
    /// QEMU itself reaches it over the network, such as rbd or nbd.
    Network,
    /// A file on a file system that several hosts mount, such as NFS.
    SharedFile {
        /// The file's number there.
        inode: u64,
    },
    /// A file on this host alone.
    LocalFile {
        /// This start of this host.
        boot: String,
        /// The file system's device.
        device: u64,
        /// The file's number there.
        inode: u64,
    },
    /// A block device, or something that this daemon can't see.
    Unknown,
}

/// The run state of a guest that its user has paused.
const PAUSED: &str = "paused";

/// What one end knows of its virtual machine and its host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VmFacts {
    /// QEMU's version.
    pub(crate) version: QemuVersion,
    /// The run state by QEMU's name, such as `running` or `inmigrate`.
    pub(crate) run_state: String,
    /// The state of the last or running migration by QEMU's name, none if there was none.
    pub(crate) migration: Option<String>,
    /// The machine type with its version, such as `pc-i440fx-10.0`.
    pub(crate) machine: Option<String>,
    /// The guest's memory: base and plugged.
    pub(crate) ram_bytes: u64,
    /// How many virtual CPUs.
    pub(crate) cpu_count: u32,
    /// The type of the CPUs, such as `qemu64-x86_64-cpu`.
    pub(crate) cpu_kind: Option<String>,
    /// The devices, sorted.
    pub(crate) devices: Vec<DeviceFact>,
    /// The block devices, sorted.
    pub(crate) blocks: Vec<BlockFact>,
    /// Names of migration capabilities that are on, sorted.
    pub(crate) capabilities: Vec<String>,
    /// TLS credentials are set for migrations.
    pub(crate) migration_tls: bool,
    /// How many connections QEMU's multifd would make beside the first, if it is on.
    pub(crate) multifd_channels: Option<u16>,
    /// How multifd would compress.
    pub(crate) multifd_compression: Option<String>,
    /// Memory that the host could give to a process now.
    pub(crate) host_free_bytes: u64,
    /// How much memory this QEMU has already, if that can be told.
    pub(crate) resident_bytes: Option<u64>,
    /// The lists above were cut so that the facts stay small.
    pub(crate) truncated: bool,
}

impl VmFacts {
    /// True for a guest that its user has paused: it moves, and nobody but the user starts it.
    pub(crate) fn is_paused(&self) -> bool {
        self.run_state == PAUSED
    }

    /// True for a guest in a state in which it may move.
    pub(super) fn may_move(&self) -> bool {
        self.run_state == "running" || self.is_paused()
    }
}
