//! The demo's folder: keys, sockets, journals and logs of one run, removed at its end.
//!
//! Made and dropped on the main thread. Only its owner can enter it, since it holds private keys.

use super::rng::mix;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Names that are tried before giving up.
const ATTEMPTS: u64 = 16;

/// A folder that goes away with this value.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes a new folder in the system's folder for temporary files.
    ///
    /// # Errors
    /// The folder can't be made.
    pub(crate) fn create() -> io::Result<Self> {
        Self::create_in(&std::env::temp_dir())
    }

    fn create_in(parent: &Path) -> io::Result<Self> {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let start = clock.as_secs().rotate_left(32) ^ u64::from(clock.subsec_nanos());
        let mut result = Err(io::Error::from(io::ErrorKind::AlreadyExists));
        for attempt in 0..ATTEMPTS {
            let name = mix(start.wrapping_add(attempt)) >> 32;
            let path = parent.join(format!("dwcp-demo-{}-{name:08x}", std::process::id()));
            // Not made with its parents: an existing path is never taken over.
            result = DirBuilder::new().mode(0o700).create(&path).map(|()| Self { path });
            match &result {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                _ => break,
            }
        }
        result
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            eprintln!("dwcp demo: {} stays behind: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_folder_is_private_distinct_and_removed_with_its_content() {
        let (one, two) = (Scratch::create().unwrap(), Scratch::create().unwrap());
        assert_ne!(one.path(), two.path());
        let mode = std::fs::metadata(one.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        std::fs::create_dir(one.path().join("folder")).unwrap();
        std::fs::write(one.path().join("folder/file"), b"x").unwrap();
        let path = one.path().to_owned();
        drop(one);
        assert!(!path.exists() && two.path().exists());
    }

    #[test]
    fn a_missing_parent_is_an_error() {
        let scratch = Scratch::create().unwrap();
        assert!(Scratch::create_in(&scratch.path().join("missing")).is_err());
    }
}
