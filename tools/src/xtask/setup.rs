//! What the tests need beside a Rust toolchain: found, or installed, and said.
//!
//! Runs first in `cargo xtask ci`. As root on a system with apt it installs what is missing; for
//! anybody else it says what to install, and steps that can't run without it are skipped. No
//! service is ever started: promtool is unpacked from its package into the target folder and not
//! installed.

use crate::call::Call;
use crate::context::Context;
use crate::error::TaskError;
use dwcp_tools::lab::{self, SetupOptions};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Longest that the system's packages may take.
const APT_SECONDS: u64 = 600;

/// Where promtool is unpacked, below the root.
const PROMETHEUS_FOLDER: &str = "target/xtask/prometheus";

/// A program of a Debian package.
struct Tool {
    program: &'static str,
    package: &'static str,
    why: &'static str,
    /// Without it the run fails; otherwise the steps that need it fail, or are skipped for
    /// somebody who may not install it.
    is_required: bool,
}

const TOOLS: [Tool; 4] = [
    Tool {
        program: "gcc",
        package: "gcc",
        why: "the cryptography and zstd libraries are C",
        is_required: true,
    },
    Tool { program: "g++", package: "g++", why: "libFuzzer is C++", is_required: true },
    Tool {
        program: "ip",
        package: "iproute2",
        why: "end-to-end tests make hosts of network namespaces",
        is_required: false,
    },
    Tool {
        program: "valgrind",
        package: "valgrind",
        why: "the performance gate counts instructions",
        is_required: false,
    },
];

/// Finds or installs everything and notes it in the context.
pub(crate) fn run(context: &mut Context) -> Result<(), TaskError> {
    check_toolchain(&context.root)?;
    let is_root = is_root();
    context.is_root = is_root;
    let missing: Vec<&Tool> = TOOLS.iter().filter(|tool| find(tool.program).is_none()).collect();
    let promtool = context.root.join(PROMETHEUS_FOLDER).join("usr/bin/promtool");
    context.promtool =
        find("promtool").or_else(|| Some(promtool.clone()).filter(|it| it.is_file()));

    for tool in TOOLS.iter() {
        let state = if find(tool.program).is_some() { "here" } else { "missing" };
        println!("{:9} {state}: {}", tool.program, tool.why);
    }
    let state = if context.promtool.is_some() { "here" } else { "missing" };
    println!("{:9} {state}: it checks the metrics page", "promtool");

    let has_apt = find("apt-get").is_some();
    let wants_packages = !missing.is_empty() || context.promtool.is_none();
    if wants_packages && has_apt && is_root {
        // An old list of packages is better than none, so a failure here is not the end.
        said(apt(&["update", "-q"]).run(&context.root));
    }
    if !missing.is_empty() && has_apt && is_root {
        let packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
        println!("installing {}", packages.join(" "));
        let install = apt(&["install", "-q", "-y", "--no-install-recommends"]).with(packages);
        said(install.run(&context.root));
    }
    if context.promtool.is_none() && has_apt {
        said(unpack_prometheus(&context.root));
        context.promtool = Some(promtool).filter(|path| path.is_file());
    }
    context.has_valgrind = find("valgrind").is_some();
    if is_root && has_apt {
        // Without it the tests with real guests are passed over, and say so.
        said(lab::setup(SetupOptions { real: context.full }).map(drop).map_err(TaskError::Lab));
    } else {
        println!("{}", lab_state());
    }
    complain(&missing, is_root, has_apt)
}

/// Whether guests can be booted here, for whoever can't install what they need.
fn lab_state() -> String {
    let state = lab::Lab::find().map_or_else(|error| error.to_string(), |_| "here".to_owned());
    format!("lab       {state}")
}

/// Says what is still missing; an error only for what no run can do without.
fn complain(missing: &[&Tool], is_root: bool, has_apt: bool) -> Result<(), TaskError> {
    let mut required = Vec::new();
    for tool in missing.iter().filter(|tool| find(tool.program).is_none()) {
        println!("still missing: {} ({})", tool.program, tool.why);
        if tool.is_required {
            required.push(tool.package);
        }
    }
    if required.is_empty() {
        return Ok(());
    }
    let cure = match (has_apt, is_root) {
        (true, false) => format!("Install it with `sudo apt-get install {}`", required.join(" ")),
        _ => "Install it with this system's package manager".to_owned(),
    };
    Err(TaskError::Missing { what: required.join(", "), cure })
}

fn unpack_prometheus(root: &Path) -> Result<(), TaskError> {
    let folder = root.join(PROMETHEUS_FOLDER);
    std::fs::create_dir_all(&folder)
        .map_err(|source| TaskError::File { path: folder.clone(), source })?;
    println!("fetching promtool out of Debian's package prometheus; nothing is installed");
    // The folder belongs to root in CI, where apt's own user could not write to it.
    apt(&["download", "-q", "-o", "APT::Sandbox::User=root", "prometheus"]).run(&folder)?;
    let entries = std::fs::read_dir(&folder)
        .map_err(|source| TaskError::File { path: folder.clone(), source })?;
    let archives = entries.flatten().map(|entry| entry.path());
    for archive in archives.filter(|path| path.extension().is_some_and(|it| it == "deb")) {
        let words = ["dpkg", "-x"].map(str::to_owned);
        let unpack = Call::new(&[]).with(words).with([archive.to_string_lossy(), ".".into()]);
        unpack.run(&folder)?;
        drop(std::fs::remove_file(&archive));
    }
    Ok(())
}

fn apt(words: &[&str]) -> Call {
    let call = Call::new(&["apt-get"]).with(words.iter().copied());
    call.set("DEBIAN_FRONTEND", "noninteractive").within(APT_SECONDS)
}

/// Prints an error that is not the end of the run.
fn said(outcome: Result<(), TaskError>) {
    if let Err(error) = outcome {
        println!("went on without it: {error}");
    }
}

/// The place of a program; the folders of administration count too.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let administration = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let folders = std::env::split_paths(&path).chain(administration);
    folders.map(|folder| folder.join(program)).find(|place| place.is_file())
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// CI judges formatting and lints, which differ between versions of the toolchain.
fn check_toolchain(root: &Path) -> Result<(), TaskError> {
    let path = root.join("rust-toolchain.toml");
    let text = std::fs::read_to_string(&path)
        .map_err(|source| TaskError::File { path: path.clone(), source })?;
    let pinned = pinned_version(&text).unwrap_or_default().to_owned();
    let command = "rustc --version";
    let output = Command::new("rustc").arg("--version").current_dir(root).output();
    let output =
        output.map_err(|source| TaskError::Start { command: command.to_owned(), source })?;
    let found = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    println!("{found}");
    if found.split(' ').nth(1) != Some(pinned.as_str()) {
        return Err(TaskError::Toolchain { found, pinned });
    }
    Ok(())
}

fn pinned_version(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("channel = \"")?.strip_suffix('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pin_is_read() {
        let text = "[toolchain]\nchannel = \"1.95.0\"\ncomponents = [\"clippy\"]\n";
        assert_eq!(pinned_version(text), Some("1.95.0"));
    }

    #[test]
    fn programs_are_found_by_name() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-of-dwcp").is_none());
    }
}
