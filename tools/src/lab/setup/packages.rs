//! The programs that the lab runs, from the system's own packages.
//!
//! Called by [`super::setup`] under its lock. Nothing is asked of apt when every program is there.

use super::super::command::{find, finish};
use super::super::error::LabError;
use super::say;
use std::path::Path;
use std::process::Command;

/// Longest that one call of apt may take.
const APT_SECONDS: &str = "900";

/// A program and the package that has it.
type Tool = (&'static str, &'static str);

const TOOLS: [Tool; 8] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("qemu-img", "qemu-utils"),
    ("busybox", "busybox-static"),
    ("cpio", "cpio"),
    ("xz", "xz-utils"),
    ("ip", "iproute2"),
    ("gcc", "gcc"),
    ("setpriv", "util-linux"),
];

/// What only the real workloads need.
const TOOLS_REAL: [Tool; 2] = [("debootstrap", "debootstrap"), ("mke2fs", "e2fsprogs")];

/// Installs what is missing.
pub(super) fn install(folder: &Path, real: bool) -> Result<(), LabError> {
    let wanted = TOOLS.iter().chain(if real { &TOOLS_REAL[..] } else { &[] });
    let mut missing: Vec<&str> = wanted
        .filter(|(program, _)| find(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if !Path::new("/usr/include/stdio.h").exists() {
        missing.push("libc6-dev");
    }
    // Guests have no shared libraries, so busybox must be the static one.
    let is_linked = |path| finish(Command::new("ldd").arg(path)).is_ok();
    if find("busybox").is_some_and(is_linked) {
        missing.push("busybox-static");
    }
    if missing.is_empty() {
        return Ok(());
    }
    say(&format!("installing {}", missing.join(" ")));
    let words: Vec<&str> = INSTALL.into_iter().chain(missing).collect();
    // A machine whose lists of packages are old or gone succeeds the second time.
    apt(folder, &words).or_else(|_| {
        update(folder)?;
        apt(folder, &words)
    })
}

/// The words of every installation.
pub(super) const INSTALL: [&str; 3] = ["install", "-y", "--no-install-recommends"];

/// Fetches the lists of packages.
pub(super) fn update(folder: &Path) -> Result<(), LabError> {
    apt(folder, &["update"])
}

/// Runs apt-get in `folder`, without questions.
pub(super) fn apt(folder: &Path, words: &[&str]) -> Result<(), LabError> {
    let mut command = Command::new("timeout");
    command.args([APT_SECONDS, "apt-get", "-q"]).args(words);
    // The sandbox's user could not write to a folder of root.
    command.args(["-o", "APT::Sandbox::User=root"]).current_dir(folder);
    command.env("DEBIAN_FRONTEND", "noninteractive").stdin(std::process::Stdio::null());
    finish(&mut command).map(drop)
}
