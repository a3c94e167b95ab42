//! Waiting for a condition, always with a bound; and ending every wait when a person wants to stop.
//!
//! Called on the thread that waits. Conditions of other processes can't be subscribed to, so they
//! are looked at in short intervals.

use super::error::LabError;
use nix::sys::signal::{SigSet, Signal};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Set once a signal has told the process to end.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on SIGINT and SIGTERM end the current wait with [`LabError::Interrupted`], so that what
/// was made is removed on the way out. Called by programs, on their main thread, before anything
/// else; a second signal is not waited for.
pub fn end_waits_on_signals() {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    // Refused only for signals that do not exist. Children start with no signal blocked.
    let is_blocked = signals.thread_block().is_ok();
    assert!(is_blocked, "SIGINT and SIGTERM can be blocked");
    std::thread::spawn(move || {
        let _ = signals.wait();
        INTERRUPTED.store(true, Ordering::Relaxed);
    });
}

/// How often a condition is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// Waits until `look` finds what it looks for.
///
/// # Errors
/// It was not found within `bound`, `look` failed, or a signal told the program to end.
pub fn wait_for<T>(
    what: &str,
    bound: Duration,
    mut look: impl FnMut() -> Result<Option<T>, LabError>,
) -> Result<T, LabError> {
    let deadline = Instant::now() + bound;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if INTERRUPTED.load(Ordering::Relaxed) {
            return Err(LabError::Interrupted);
        }
        if Instant::now() >= deadline {
            return Err(LabError::TooSlow {
                what: what.to_owned(),
                seconds: bound.as_secs(),
                detail: "the condition never held".to_owned(),
            });
        }
        std::thread::park_timeout(LOOK_INTERVAL);
    }
}
