//! A QEMU that keeps every page of an emulated guest while it migrates it.
//!
//! Called by [`super::setup`] under its lock. QEMU 7.2 loses pages of emulated guests by itself, so
//! correctness is judged on 9 or newer. Where the release has an older one, its backports are
//! asked, on the mirror that apt uses for the release itself and with lists of their own: the
//! machine's lists and sources stay as they are.

use super::super::command::run;
use super::super::error::LabError;
use super::super::place::Lab;
use super::packages::{INSTALL, apt};
use super::say;
use std::fs::{create_dir_all, read_to_string, write};
use std::path::Path;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Replaces a QEMU that is too old, if that can be done; otherwise says what it means.
pub(super) fn install(folder: &Path) -> Result<(), LabError> {
    let lab = Lab::here()?;
    if lab.qemu_keeps_pages() {
        return Ok(());
    }
    if std::env::var_os("DWCP_LAB_QEMU").is_none()
        && let Err(error) = from_backports(folder)
    {
        say(&format!("no newer QEMU: {error}"));
    }
    if !lab.qemu_keeps_pages() {
        let version = lab.qemu_version()?;
        say(&format!("note: QEMU {version} loses pages of emulated guests while it migrates them"));
    }
    Ok(())
}

fn from_backports(folder: &Path) -> Result<(), LabError> {
    let release = release()?;
    let format = "$(SITE) $(RELEASE) $(COMPONENT)";
    let targets = run(&["apt-get", "indextargets", "--format", format, "Created-By: Packages"])?;
    let mirror = mirror(&targets, &release).ok_or_else(|| LabError::Missing {
        what: format!("a mirror of {release} among apt's sources"),
        cure: "Install QEMU 9 or newer and name it in DWCP_LAB_QEMU",
    })?;
    let backports = format!("{release}-backports");
    say(&format!("installing QEMU from {backports}"));

    let apt_folder = folder.join("apt");
    let lists = apt_folder.join("lists");
    create_dir_all(lists.join("partial")).map_err(LabError::file(&lists))?;
    let line = |suite: &str| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
    let sources = apt_folder.join("sources.list");
    write(&sources, line(&release) + &line(&backports)).map_err(LabError::file(&sources))?;

    let own = [
        format!("Dir::Etc::SourceList={}", sources.display()),
        "Dir::Etc::SourceParts=/dev/null".to_owned(),
        format!("Dir::State::Lists={}", lists.display()),
    ];
    let own: Vec<&str> = own.iter().flat_map(|option| ["-o", option.as_str()]).collect();
    let with_own = |words: &[&str]| apt(folder, &[own.as_slice(), words].concat());
    with_own(&["update"])?;
    let packages = ["-t", backports.as_str(), "qemu-system-x86", "qemu-utils"];
    with_own(&[INSTALL.as_slice(), &packages].concat())
}

/// The code name of this machine's release.
pub(super) fn release() -> Result<String, LabError> {
    let path = Path::new("/etc/os-release");
    let text = read_to_string(path).map_err(LabError::file(path))?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    name.map(|name| name.trim_matches('"').to_owned()).ok_or_else(|| LabError::Missing {
        what: "the release's code name in os-release".to_owned(),
        cure: "The set-up knows Debian and systems made from it only",
    })
}

/// Where apt gets the main packages of a release.
fn mirror<'a>(targets: &'a str, release: &str) -> Option<&'a str> {
    targets.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let site = words.next()?;
        (words.next() == Some(release) && words.next() == Some("main")).then_some(site)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_one_of_the_release_itself() {
        let targets = "http://a/s stable-security main\nhttp://b/d stable contrib\n\
                       http://c/d stable main\n";
        assert_eq!(mirror(targets, "stable"), Some("http://c/d"));
        assert_eq!(mirror(targets, "other"), None);
    }
}
