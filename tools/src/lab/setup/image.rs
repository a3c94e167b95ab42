//! The guests' kernel, their first file system, and the root image of the real workloads.
//!
//! Called by [`super::setup`] under its lock. Each piece is made under another name and then moved
//! to its place, so that whoever finds it finds it whole. Pieces that depend on our sources keep a
//! copy of those beside them and are made anew when they differ.

use super::super::command::{find, finish, run};
use super::super::error::LabError;
use super::super::place::Lab;
use super::packages::{apt, update};
use super::qemu::release;
use super::say;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const INIT: &str = include_str!("../../../guest/init.sh");
const DIRTY: &str = include_str!("../../../guest/dirty.c");
const LOADGEN: &str = include_str!("../../../guest/loadgen.c");
const WORKLOAD: &str = include_str!("../../../guest/workload.sh");

/// Names the newest kernel for virtual machines: small, and quick to boot.
const KERNEL: &str = "linux-image-cloud-amd64";

/// The modules that a guest with a disk loads.
const MODULES: [&str; 6] = [
    "virtio",
    "virtio_ring",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
];

/// What the real workloads are made of.
const REAL_PACKAGES: &str =
    "redis-server,redis-tools,sqlite3,gcc,libc6-dev,nginx-light,procps,apache2-utils";

/// The root image's size; the file is sparse.
const ROOT_BYTES: u64 = 1500 << 20;

/// The kernel and its modules, out of their package, which is never installed.
pub(super) fn kernel(lab: &Lab) -> Result<(), LabError> {
    if lab.kernel().is_file() && modules(lab).is_dir() {
        return Ok(());
    }
    let depends = || run(&["apt-cache", "depends", KERNEL]);
    let package = match depends().ok().as_deref().and_then(image_package) {
        Some(package) => package,
        None => {
            update(lab.folder())?;
            image_package(&depends()?).ok_or_else(|| LabError::Missing {
                what: format!("package {KERNEL}"),
                cure: "The set-up knows Debian and systems made from it only",
            })?
        }
    };
    say(&format!("taking the guests' kernel out of {package}"));
    let folder = fresh_folder(lab, "kernel.new")?;
    apt(&folder, &["download", &package])?;
    let archive = files(&folder, "deb")?.pop().unwrap_or_default();
    let unpacked = folder.join("unpacked");
    run(&["dpkg", "-x", &text(&archive), &text(&unpacked)])?;
    collect_modules(lab, &unpacked)?;
    let boot = unpacked.join("boot");
    let kernel = entries(&boot)?.into_iter().find(|path| text(path).contains("vmlinuz"));
    let kernel = kernel.ok_or_else(|| missing("a kernel in its package"))?;
    fs::rename(&kernel, lab.kernel()).map_err(LabError::file(&kernel))?;
    fs::remove_dir_all(&folder).map_err(LabError::file(&folder))
}

fn collect_modules(lab: &Lab, unpacked: &Path) -> Result<(), LabError> {
    let folder = fresh_folder(lab, "modules")?;
    for module in MODULES {
        let pattern = format!("{module}.ko*");
        let target = format!("--target-directory={}", folder.display());
        let root = text(unpacked);
        run(&["find", &root, "-name", &pattern, "-exec", "cp", &target, "{}", "+"])?;
    }
    for packed in files(&folder, "xz")? {
        run(&["xz", "-d", &text(&packed)])?;
    }
    Ok(())
}

/// The first file system: busybox, the page dirtier, the modules and our init.
pub(super) fn initramfs(lab: &Lab) -> Result<(), LabError> {
    let sources = format!("{INIT}{DIRTY}");
    if lab.initramfs().is_file() && is_made_of(&lab.initramfs(), &sources) {
        return Ok(());
    }
    say("building the guests' first file system");
    let root = fresh_folder(lab, "initramfs.new")?;
    for name in ["bin", "proc", "sys", "dev", "mnt", "modules"] {
        let folder = root.join(name);
        fs::create_dir_all(&folder).map_err(LabError::file(&folder))?;
    }
    compile(lab, "dirty", DIRTY, &root.join("bin/dirty"))?;
    copy(&busybox()?, &root.join("bin/busybox"))?;
    for module in files(&modules(lab), "ko")? {
        copy(&module, &root.join("modules").join(module.file_name().unwrap_or_default()))?;
    }
    write_program(&root.join("init"), INIT)?;
    let packed = lab.folder().join("initramfs.packed");
    let pack = "find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet | gzip -9 > \"$0\"";
    finish(Command::new("sh").args(["-ec", pack]).arg(&packed).current_dir(&root))?;
    finish_piece(&packed, &lab.initramfs(), &sources)?;
    fs::remove_dir_all(&root).map_err(LabError::file(&root))
}

/// The root image with the real workloads.
pub(super) fn root(lab: &Lab) -> Result<(), LabError> {
    let sources = format!("{WORKLOAD}{LOADGEN}{REAL_PACKAGES}");
    let image = lab.root_image();
    if image.is_file() && is_made_of(&image, &sources) {
        return Ok(());
    }
    let tree = lab.folder().join("root");
    if !is_made_of(&tree, REAL_PACKAGES) {
        say("installing the real workloads into a root image: some minutes");
        let tree = fresh_folder(lab, "root.new")?;
        let include = format!("--include={REAL_PACKAGES}");
        let mut command = Command::new("debootstrap");
        command.args(["--variant=minbase", &include, &release()?]).arg(&tree);
        finish(command.stdin(Stdio::null()))?;
        let purge = "rm -rf \"$0\"/var/cache/apt/archives/*.deb \"$0\"/var/lib/apt/lists/*";
        run(&["sh", "-ec", purge, &text(&tree)])?;
        drop(fs::remove_dir_all(lab.folder().join("root")));
        finish_piece(&tree, &lab.folder().join("root"), REAL_PACKAGES)?;
    }
    say("building the root image");
    let own = tree.join("lab");
    fs::create_dir_all(&own).map_err(LabError::file(&own))?;
    compile(lab, "loadgen", LOADGEN, &own.join("loadgen"))?;
    copy(&busybox()?, &own.join("busybox"))?;
    fs::create_dir_all(tree.join("scratch")).map_err(LabError::file(&tree))?;
    write_program(&tree.join("workload.sh"), WORKLOAD)?;
    let fresh = lab.folder().join("root.img.new");
    let file = fs::File::create(&fresh).map_err(LabError::file(&fresh))?;
    file.set_len(ROOT_BYTES).map_err(LabError::file(&fresh))?;
    let words = ["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d"];
    finish(Command::new(find("mke2fs").unwrap_or_default()).args(words).args([&tree, &fresh]))?;
    finish_piece(&fresh, &image, &sources)
}

/// The package that the meta package stands for.
fn image_package(depends: &str) -> Option<String> {
    let mut lines = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    lines.find(|name| name.starts_with("linux-image-")).map(str::to_owned)
}

fn compile(lab: &Lab, name: &str, source: &str, program: &Path) -> Result<(), LabError> {
    let path = lab.folder().join(format!("{name}.c"));
    fs::write(&path, source).map_err(LabError::file(&path))?;
    run(&["gcc", "-O2", "-static", "-o", &text(program), &text(&path)]).map(drop)
}

fn busybox() -> Result<PathBuf, LabError> {
    find("busybox").ok_or_else(|| missing("busybox"))
}

fn modules(lab: &Lab) -> PathBuf {
    lab.folder().join("modules")
}

/// An empty folder in the lab's.
fn fresh_folder(lab: &Lab, name: &str) -> Result<PathBuf, LabError> {
    let folder = lab.folder().join(name);
    drop(fs::remove_dir_all(&folder));
    fs::create_dir_all(&folder).map_err(LabError::file(&folder))?;
    Ok(folder)
}

/// Moves a piece to its place and notes what it was made of.
fn finish_piece(made: &Path, place: &Path, sources: &str) -> Result<(), LabError> {
    let note = note_of(place);
    drop(fs::remove_file(&note));
    fs::rename(made, place).map_err(LabError::file(place))?;
    fs::write(&note, sources).map_err(LabError::file(&note))
}

fn is_made_of(place: &Path, sources: &str) -> bool {
    fs::read_to_string(note_of(place)).is_ok_and(|noted| noted == sources)
}

fn note_of(place: &Path) -> PathBuf {
    place.with_added_extension("sources")
}

fn write_program(path: &Path, content: &str) -> Result<(), LabError> {
    fs::write(path, content).map_err(LabError::file(path))?;
    fs::set_permissions(path, Permissions::from_mode(0o755)).map_err(LabError::file(path))
}

fn copy(from: &Path, to: &Path) -> Result<(), LabError> {
    fs::copy(from, to).map(drop).map_err(LabError::file(from))
}

/// The files of a folder with an ending.
fn files(folder: &Path, ending: &str) -> Result<Vec<PathBuf>, LabError> {
    let all = entries(folder)?.into_iter();
    Ok(all.filter(|path| path.extension().is_some_and(|it| it == ending)).collect())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, LabError> {
    let found = fs::read_dir(folder).map_err(LabError::file(folder))?;
    Ok(found.flatten().map(|entry| entry.path()).collect())
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn missing(what: &str) -> LabError {
    LabError::Missing { what: what.to_owned(), cure: "Run the set-up again" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_the_one_that_the_meta_package_depends_on() {
        let depends = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-9-cloud-amd64\n";
        assert_eq!(image_package(depends).as_deref(), Some("linux-image-6.1.0-9-cloud-amd64"));
        assert_eq!(image_package(""), None);
    }
}
