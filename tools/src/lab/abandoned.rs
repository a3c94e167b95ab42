//! What killed processes left behind: namespaces and folders, some of which are memory.
//!
//! Names carry the id of their process. Whoever makes something new first removes what belongs to
//! no process any more; once per process is enough.

use super::net::delete_namespace;
use super::netns;
use std::path::Path;
use std::sync::Once;

/// Names begin with this, the process's id and a dash.
pub(super) const PREFIX: &str = "dwcp-lab-";

/// Where files are memory.
pub(super) const MEMORY_FOLDER: &str = "/dev/shm";

static DONE: Once = Once::new();

/// Removes what is abandoned; what can't be removed stays, and nothing is said.
pub(super) fn remove() {
    DONE.call_once(|| {
        for name in abandoned(Path::new(netns::FOLDER)) {
            drop(delete_namespace(&name));
        }
        for folder in [std::env::temp_dir().as_path(), Path::new(MEMORY_FOLDER)] {
            for name in abandoned(folder) {
                drop(std::fs::remove_dir_all(folder.join(name)));
            }
        }
    });
}

/// The names in a folder that belong to no process any more.
fn abandoned(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let is_gone = |id: u32| !Path::new("/proc").join(id.to_string()).exists();
    names.filter(|name| owner(name).is_some_and(is_gone)).collect()
}

/// The process that made something, by its name.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_their_process() {
        assert_eq!(owner("dwcp-lab-123-0-a"), Some(123));
        assert_eq!(owner("dwcp-lab-x"), None);
        assert_eq!(owner("other"), None);
    }

    #[test]
    fn only_what_belongs_to_nobody_is_abandoned() {
        let folder = tempfile::tempdir().unwrap();
        let ours = format!("{PREFIX}{}-vm-x", std::process::id());
        // Ids of processes are smaller than this everywhere.
        for name in [ours.as_str(), "dwcp-lab-4294967295-vm-x", "other"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        assert_eq!(abandoned(folder.path()), ["dwcp-lab-4294967295-vm-x"]);
    }
}
