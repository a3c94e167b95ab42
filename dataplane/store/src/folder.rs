//! The store's directory: its names, its lock, and how a file comes into it and leaves it.
//!
//! Owns the lock while the store is open. A segment is `ID.seg`; one that is being written is
//! `ID.tmp`, so that what a crash left behind is known by its name. Everything else in the
//! directory is left alone.

use crate::error::StoreError;
use crate::segment::SegmentId;
use std::fs::{DirBuilder, File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

const LOCK_NAME: &str = "lock";
const SEGMENT_ENDING: &str = "seg";
const TEMPORARY_ENDING: &str = "tmp";

/// The store's directory.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    /// Locked until it is dropped.
    _lock: File,
}

/// A segment's file as the directory tells of it.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) id: SegmentId,
    pub(crate) path: PathBuf,
    pub(crate) metadata: Metadata,
}

impl Folder {
    /// Makes the directory if it is missing, and locks it.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(StoreError::io("make the directory", path))?;
        let metadata = path.metadata().map_err(StoreError::io("look at", path))?;
        let mode = metadata.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(StoreError::Exposed { path: path.to_owned(), mode });
        }
        let lock_path = path.join(LOCK_NAME);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(StoreError::io("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StoreError::Locked { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => Err(StoreError::io("lock", &lock_path)(source)),
        }
    }

    pub(crate) fn segment(&self, id: SegmentId) -> PathBuf {
        self.path.join(format!("{id}.{SEGMENT_ENDING}"))
    }

    pub(crate) fn is_of(&self, temporary: &Temporary) -> bool {
        temporary.path.parent() == Some(&self.path)
    }

    /// Removes what a crash left behind and tells how much, and what segments there are.
    pub(crate) fn scan(&self) -> Result<(u64, Vec<Found>), StoreError> {
        let reading = || StoreError::io("read the directory", &self.path);
        let (mut leftovers, mut found) = (0, Vec::new());
        for entry in self.path.read_dir().map_err(reading())? {
            let entry = entry.map_err(reading())?;
            let path = entry.path();
            let stem = path.file_stem().and_then(|stem| stem.to_str());
            let Some(id) = stem.and_then(SegmentId::parse) else { continue };
            match path.extension().and_then(|ending| ending.to_str()) {
                Some(TEMPORARY_ENDING) => {
                    std::fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
                    leftovers += 1;
                }
                Some(SEGMENT_ENDING) => {
                    let metadata = entry.metadata().map_err(StoreError::io("look at", &path))?;
                    found.push(Found { id, path, metadata });
                }
                _ => {}
            }
        }
        Ok((leftovers, found))
    }

    /// Begins a file that nobody sees until it is landed.
    pub(crate) fn create(&self, id: SegmentId) -> Result<Temporary, StoreError> {
        let path = self.path.join(format!("{id}.{TEMPORARY_ENDING}"));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(StoreError::io("make", &path))?;
        Ok(Temporary { path, file, landed: false })
    }

    /// Gives a written file its name, both durable; on an error the name is not there.
    pub(crate) fn land(&self, mut file: Temporary, id: SegmentId) -> Result<PathBuf, StoreError> {
        file.file.sync_all().map_err(StoreError::io("sync", &file.path))?;
        let path = self.segment(id);
        std::fs::rename(&file.path, &path).map_err(StoreError::io("rename", &file.path))?;
        // From here on the file goes by its new name, and so does its removal.
        file.path.clone_from(&path);
        self.sync()?;
        file.landed = true;
        Ok(path)
    }

    /// Makes names that came and went durable.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        File::open(&self.path)
            .and_then(|folder| folder.sync_all())
            .map_err(StoreError::io("sync the directory", &self.path))
    }
}

/// Removes a file; one that is gone already is as good.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A file that is being written, and is removed when it is dropped before it landed.
#[derive(Debug)]
pub(crate) struct Temporary {
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    landed: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.landed {
            // What can't be removed now goes when the store is opened again.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modes(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn the_directory_and_its_files_are_the_owners_alone() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/store");
        let folder = Folder::open(&path).unwrap();
        let id = SegmentId([1; 16]);
        let temporary = folder.create(id).unwrap();
        assert_eq!(modes(&temporary.path), 0o600);
        let landed = folder.land(temporary, id).unwrap();
        assert_eq!(modes(&path), 0o700);
        assert_eq!(modes(&landed), 0o600);
        assert_eq!(modes(&path.join(LOCK_NAME)), 0o600);
    }

    #[test]
    fn a_directory_that_others_may_enter_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        std::fs::set_permissions(parent.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let error = Folder::open(parent.path()).unwrap_err();
        assert_eq!(error.code(), "store_exposed", "{error}");
    }

    #[test]
    fn a_file_that_is_dropped_before_it_landed_leaves_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("store");
        let folder = Folder::open(&path).unwrap();
        let temporary = folder.create(SegmentId([1; 16])).unwrap();
        let path = temporary.path.clone();
        assert!(path.exists());
        drop(temporary);
        assert!(!path.exists());
    }

    #[test]
    fn leftovers_go_and_what_is_not_ours_stays() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("store");
        let folder = Folder::open(&path).unwrap();
        let id = "00112233445566778899aabbccddeeff";
        let names = [format!("{id}.tmp"), format!("{id}.seg"), format!("{id}.old"), "a.tmp".into()];
        for name in &names {
            std::fs::write(path.join(name), "x").unwrap();
        }
        let (leftovers, found) = folder.scan().unwrap();
        assert_eq!(leftovers, 1);
        assert_eq!(found.iter().map(|it| it.id.to_string()).collect::<Vec<_>>(), [id]);
        let there: Vec<bool> = names.iter().map(|name| path.join(name).exists()).collect();
        assert_eq!(there, [false, true, true, true]);
    }
}
