//! The thread that has memory ready: `dwcp-memory`.
//!
//! Started by the binary and ended by it. It touches as many chunks as are wanted before anybody
//! takes them, and zeroes those that come back; what is too much goes to the kernel. It runs where
//! no shard is pinned and only while nobody else wants the core, so it may be slow; nobody waits
//! for it.

use super::PagePool;
use crate::cpu::{keep_current_thread_off, lower_current_thread};
use std::io;
use std::thread::{Builder, JoinHandle, park};

/// Ends the thread when it is dropped.
#[derive(Debug)]
pub struct Caretaker {
    pool: PagePool,
    thread: Option<JoinHandle<()>>,
}

impl Caretaker {
    /// Starts it for a pool that has none. It keeps off these cores if there are others.
    ///
    /// # Errors
    /// The thread can't start.
    ///
    /// # Panics
    /// When the pool has one.
    pub fn start(pool: &PagePool, cores: &[usize]) -> io::Result<Self> {
        pool.0.assert_untended();
        let (shared, cores) = (pool.0.clone(), cores.to_vec());
        let thread = Builder::new().name("dwcp-memory".to_owned()).spawn(move || {
            // Neither is needed for the work to be right.
            let _ = keep_current_thread_off(&cores);
            let _ = lower_current_thread();
            let mut next = 0;
            while !shared.has_ended() {
                if !shared.tend(&mut next) {
                    park();
                }
            }
        })?;
        pool.0.tended_by(thread.thread().clone());
        Ok(Self { pool: pool.clone(), thread: Some(thread) })
    }
}

impl Drop for Caretaker {
    fn drop(&mut self) {
        self.pool.0.end();
        if let Some(thread) = self.thread.take() {
            // A panic there was reported there; here only the end matters.
            let _ = thread.join();
        }
    }
}
