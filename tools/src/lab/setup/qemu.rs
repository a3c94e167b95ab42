//! A QEMU that keeps every page of an emulated guest while it migrates it, and the oldest one that
//! is supported beside it.
//!
//! Called by [`super::setup`] under its lock. QEMU 7.2 loses pages of emulated guests by itself, so
//! correctness is judged on 9 or newer. Where the release has an older one, its backports are
//! asked, on the mirror that apt uses for the release itself and with lists of their own: the
//! machine's lists and sources stay as they are. The older one is unpacked into the lab's folder.

use super::super::command::run;
use super::super::error::LabError;
use super::super::place::Lab;
use super::super::scratch;
use super::packages::{INSTALL, apt};
use super::say;
use std::fs::{create_dir_all, read_dir, read_to_string, remove_dir_all, rename, write};
use std::path::Path;

/// The release whose own QEMU is the oldest one that is supported, 7.2.
const RELEASE_OLD: &str = "bookworm";

/// All that such a QEMU needs to start, without the devices' and the users' modules.
const PACKAGES_OLD: [&str; 4] =
    ["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"];

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
    say(&format!("installing QEMU from {release}-backports"));
    let lists = Lists::of(&release, folder)?;
    lists.apt(folder, &["update"])?;
    let backports = format!("{release}-backports");
    let packages = ["-t", backports.as_str(), "qemu-system-x86", "qemu-utils"];
    lists.apt(folder, &[INSTALL.as_slice(), &packages].concat())
}

/// Unpacks the oldest QEMU that is supported, where the release has it; otherwise says so.
pub(super) fn unpack_old(lab: &Lab) {
    if lab.with_old_qemu().is_some() {
        return;
    }
    let unpacked = release().and_then(|release| match release.as_str() {
        RELEASE_OLD => unpack(lab),
        _ => Err(LabError::Missing {
            what: "QEMU 7.2 in this release".to_owned(),
            cure: "Tests of the oldest QEMU are passed over",
        }),
    });
    unpacked.unwrap_or_else(|error| say(&format!("no older QEMU: {error}")));
}

fn unpack(lab: &Lab) -> Result<(), LabError> {
    say(&format!("unpacking the QEMU of {RELEASE_OLD}"));
    let lists = Lists::of(RELEASE_OLD, lab.folder())?;
    let fresh = scratch("qemu")?;
    let words = PACKAGES_OLD.map(|package| format!("{package}/{RELEASE_OLD}"));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let download = || lists.apt(fresh.path(), &[&["download"], words.as_slice()].concat());
    // Lists that are old or not there yet succeed the second time.
    download().or_else(|_| {
        lists.apt(lab.folder(), &["update"])?;
        download()
    })?;
    let (place, half) = (lab.old_qemu_folder(), lab.folder().join("qemu-old.part"));
    if half.exists() {
        remove_dir_all(&half).map_err(LabError::file(&half))?;
    }
    for entry in read_dir(fresh.path()).map_err(LabError::file(fresh.path()))? {
        let package = entry.map_err(LabError::file(fresh.path()))?.path();
        run(&["dpkg-deb", "-x", &package.to_string_lossy(), &half.to_string_lossy()])?;
    }
    rename(&half, &place).map_err(LabError::file(&place))
}

/// Lists of packages that are the lab's own.
struct Lists(Vec<String>);

impl Lists {
    /// Those of a release and its backports, on the mirror that apt uses.
    fn of(release: &str, folder: &Path) -> Result<Self, LabError> {
        let format = "$(SITE) $(RELEASE) $(COMPONENT)";
        let targets =
            run(&["apt-get", "indextargets", "--format", format, "Created-By: Packages"])?;
        let mirror = mirror(&targets, release).ok_or_else(|| LabError::Missing {
            what: format!("a mirror of {release} among apt's sources"),
            cure: "Name one in apt's sources, or a QEMU 9 or newer in DWCP_LAB_QEMU",
        })?;
        let apt_folder = folder.join("apt");
        let lists = apt_folder.join("lists");
        create_dir_all(lists.join("partial")).map_err(LabError::file(&lists))?;
        let line = |suite: &str| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
        let sources = apt_folder.join("sources.list");
        let text = line(release) + &line(&format!("{release}-backports"));
        write(&sources, text).map_err(LabError::file(&sources))?;
        let own = [
            format!("Dir::Etc::SourceList={}", sources.display()),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            format!("Dir::State::Lists={}", lists.display()),
        ];
        Ok(Self(own.into_iter().flat_map(|option| ["-o".to_owned(), option]).collect()))
    }

    /// Runs apt-get in `folder` with these lists.
    fn apt(&self, folder: &Path, words: &[&str]) -> Result<(), LabError> {
        let own: Vec<&str> = self.0.iter().map(String::as_str).collect();
        apt(folder, &[own.as_slice(), words].concat())
    }
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
