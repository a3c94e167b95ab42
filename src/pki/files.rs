//! The files of an authority and of its hosts: made with the right permissions, replaced whole.
//!
//! Main thread. Keys are 0600 from the first byte on; nothing that exists is overwritten except by
//! [`replace`], which swaps the file in one step.

use super::PkiError;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

/// No certificate, key or record of a sane cluster comes near this.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// For keys.
pub(super) const PRIVATE: u32 = 0o600;
/// For everything that others may read.
pub(super) const PUBLIC: u32 = 0o644;

/// Makes a folder, its parents too; an existing one is fine.
pub(super) fn make_folder(path: &Path) -> Result<(), PkiError> {
    let made = DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.map_err(|source| PkiError::Write { path: path.to_owned(), source })
}

/// Writes a file that must not exist.
pub(super) fn create(path: &Path, mode: u32, text: &str) -> Result<(), PkiError> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(mode).open(path);
    let written = file.and_then(|file| write_through(file, text));
    written.map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => PkiError::Exists { path: path.to_owned() },
        _ => PkiError::Write { path: path.to_owned(), source },
    })
}

/// Puts a file in the place of another in one step: a reader sees the old one or the new one.
pub(super) fn replace(path: &Path, mode: u32, text: &str) -> Result<(), PkiError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let beside = path.with_file_name(name);
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(mode).open(&beside);
    let written = file.and_then(|file| write_through(file, text));
    written
        .and_then(|()| std::fs::rename(&beside, path))
        .map_err(|source| PkiError::Write { path: path.to_owned(), source })
}

fn write_through(mut file: File, text: &str) -> io::Result<()> {
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Reads a bounded text file.
pub(super) fn read(path: &Path, what: &'static str) -> Result<String, PkiError> {
    let failed = |source| PkiError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    match file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text) {
        Ok(bytes) if u64::try_from(bytes).is_ok_and(|bytes| bytes <= FILE_BYTES_MAX) => Ok(text),
        Ok(_) => Err(PkiError::Malformed { path: path.to_owned(), what }),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(PkiError::Malformed { path: path.to_owned(), what })
        }
        Err(source) => Err(failed(source)),
    }
}
