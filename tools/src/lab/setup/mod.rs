//! Makes a machine ready for the lab: packages, QEMU, the guests' kernel and file systems.
//!
//! Called by `cargo xtask lab setup`, by the set-up of CI and by nobody else; one caller at a time,
//! the others wait for the lock. Does only what is missing and says what it does. Packages come by
//! apt from wherever this machine's apt takes them; everything else goes to the lab's folder.

mod image;
mod packages;
mod qemu;

use super::error::LabError;
use super::place::{CURE, Lab, folder, is_root};
use std::fs::{File, create_dir_all};

/// What to make ready.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetupOptions {
    /// Also the root image with redis, nginx, gcc and sqlite: some minutes and 1.5 GB.
    pub real: bool,
}

/// Installs and builds what is missing.
///
/// # Errors
/// Not root, a package can't be had, or a guest's program does not build.
pub fn setup(options: SetupOptions) -> Result<Lab, LabError> {
    let folder = folder()?;
    if !is_root() {
        return Err(LabError::Missing { what: "the rights of root".to_owned(), cure: CURE });
    }
    create_dir_all(&folder).map_err(LabError::file(&folder))?;
    let path = folder.join("lock");
    let lock = File::create(&path).map_err(LabError::file(&path))?;
    lock.lock().map_err(LabError::file(&path))?;

    packages::install(&folder, options.real)?;
    qemu::install(&folder)?;
    let lab = Lab::here()?;
    qemu::unpack_old(&lab);
    image::kernel(&lab)?;
    image::initramfs(&lab)?;
    if options.real {
        image::root(&lab)?;
    }
    say(&format!("ready: QEMU {} in {}", lab.qemu_version()?, lab.qemu().display()));
    say(&format!("ready: guests in {}", folder.display()));
    Ok(lab)
}

/// Every line that set-up prints begins alike.
fn say(line: &str) {
    println!("lab: {line}");
}
