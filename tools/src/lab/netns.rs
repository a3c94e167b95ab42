//! Entering a network namespace by name.
//!
//! A thread changes its namespace for good, so each call takes a thread of its own. Sockets and
//! devices that are made inside keep their namespace and may be used anywhere afterwards.

use super::error::LabError;
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::path::PathBuf;

/// Where `ip netns` keeps its namespaces.
pub(super) const FOLDER: &str = "/run/netns";

/// Runs `inside` on a thread in the namespace.
pub(super) fn enter<T: Send>(
    namespace: &str,
    inside: impl FnOnce() -> T + Send,
) -> Result<T, LabError> {
    let failed = |source| LabError::Namespace { namespace: namespace.to_owned(), source };
    let file = File::open(PathBuf::from(FOLDER).join(namespace)).map_err(failed)?;
    let outcome = std::thread::scope(|scope| {
        let thread = scope.spawn(|| setns(file, CloneFlags::CLONE_NEWNET).map(|()| inside()));
        thread.join()
    });
    match outcome {
        Ok(entered) => entered.map_err(|errno| failed(errno.into())),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
