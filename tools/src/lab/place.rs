//! Where the lab keeps what it made: one folder, and the QEMU to use.
//!
//! Read-only after [`super::setup()`]; any number of processes use it at once.

use super::command::{find, run};
use super::error::LabError;
use nix::sched::{CloneFlags, unshare};
use std::io::Write;
use std::path::{Path, PathBuf};

/// What brings everything that may be missing.
pub(crate) const CURE: &str = "Run `cargo xtask lab setup` as root (`--real` for real workloads)";

/// The first QEMU that keeps every page of an emulated guest while it migrates it.
const QEMU_MAJOR_MIN: u32 = 9;

/// The lab's folder and QEMU.
#[derive(Clone, Debug)]
pub struct Lab {
    pub(crate) folder: PathBuf,
    pub(crate) qemu: PathBuf,
}

impl Lab {
    /// The lab on this machine, ready to boot guests.
    ///
    /// # Errors
    /// Not root, or `cargo xtask lab setup` was never run here.
    pub fn find() -> Result<Self, LabError> {
        can_make_networks()?;
        let lab = Self::here()?;
        for path in [lab.kernel(), lab.initramfs()] {
            if !path.is_file() {
                return missing(&path.display().to_string());
            }
        }
        Ok(lab)
    }

    /// The lab for a test; None when this machine can't have it, which is said on standard error
    /// past the test's captured output.
    #[must_use]
    pub fn for_test() -> Option<Self> {
        Self::find().map_err(|error| pass_over(&error)).ok()
    }

    /// The lab's folder and QEMU, whether or not its guests were made already.
    pub(crate) fn here() -> Result<Self, LabError> {
        let named = std::env::var_os("DWCP_LAB_QEMU").map(PathBuf::from);
        match named.or_else(|| find("qemu-system-x86_64")) {
            Some(qemu) => Ok(Self { folder: folder()?, qemu }),
            None => missing("qemu-system-x86_64"),
        }
    }

    /// The folder: `DWCP_LAB_DIR`, else `dwcp-lab` in the user's cache.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The guests' kernel.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// The guests' first file system, with the page dirtier.
    #[must_use]
    pub fn initramfs(&self) -> PathBuf {
        self.folder.join("initramfs.gz")
    }

    /// The root image of the real workloads.
    #[must_use]
    pub fn root_image(&self) -> PathBuf {
        self.folder.join("root.img")
    }

    /// QEMU's program.
    #[must_use]
    pub fn qemu(&self) -> &Path {
        &self.qemu
    }

    /// The same lab with the oldest QEMU that is supported, where set-up could get it. It loses
    /// pages by itself, see [`Lab::qemu_keeps_pages`].
    #[must_use]
    pub fn with_old_qemu(&self) -> Option<Self> {
        let qemu = self.old_qemu_folder().join("usr/bin/qemu-system-x86_64");
        qemu.is_file().then(|| Self { folder: self.folder.clone(), qemu })
    }

    /// Where the packages of that QEMU are unpacked.
    pub(super) fn old_qemu_folder(&self) -> PathBuf {
        self.folder.join("qemu-old")
    }

    /// QEMU's version, such as `10.0.2`.
    ///
    /// # Errors
    /// QEMU does not run.
    pub fn qemu_version(&self) -> Result<String, LabError> {
        let text = run(&[&self.qemu.to_string_lossy(), "--version"])?;
        Ok(text.split_whitespace().nth(3).unwrap_or_default().to_owned())
    }

    /// True if this QEMU keeps every page of an emulated guest while it migrates it. QEMU 7.2 loses
    /// some, by whatever path: with it, what a guest says of its own memory accuses nobody.
    #[must_use]
    pub fn qemu_keeps_pages(&self) -> bool {
        let version = self.qemu_version().unwrap_or_default();
        let major = version.split('.').next().and_then(|word| word.parse::<u32>().ok());
        major.is_some_and(|major| major >= QEMU_MAJOR_MIN)
    }
}

/// The lab's folder on this machine.
pub(crate) fn folder() -> Result<PathBuf, LabError> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("DWCP_LAB_DIR")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("dwcp-lab")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/dwcp-lab")))
        .ok_or(LabError::Missing { what: "a folder for the lab".into(), cure: "Set DWCP_LAB_DIR" })
}

/// True if a test may make networks; otherwise says on standard error, past the test's captured
/// output, that it is passed over.
#[must_use]
pub fn networks_for_test() -> bool {
    can_make_networks().map_err(|error| pass_over(&error)).is_ok()
}

/// Whether this process may make namespaces and devices; root in a container may not.
fn can_make_networks() -> Result<(), LabError> {
    if !is_root() {
        return missing("the rights of root (namespaces and TUN devices need them)");
    }
    if !Path::new("/dev/net/tun").exists() {
        return missing("/dev/net/tun");
    }
    // On a thread of its own, which takes the namespace with it.
    let made = std::thread::scope(|scope| scope.spawn(|| unshare(CloneFlags::CLONE_NEWNET)).join());
    match made {
        Ok(Ok(())) => Ok(()),
        _ => missing("the right to make network namespaces"),
    }
}

fn pass_over(error: &LabError) {
    let thread = std::thread::current();
    let line = format!("{} is PASSED OVER: {error}\n", thread.name().unwrap_or("a test"));
    drop(std::io::stderr().write_all(line.as_bytes()));
}

/// True if this process has root's rights.
#[must_use]
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

fn missing<T>(what: &str) -> Result<T, LabError> {
    Err(LabError::Missing { what: what.to_owned(), cure: CURE })
}
