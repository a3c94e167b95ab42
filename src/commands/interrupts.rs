//! Ctrl-C and SIGTERM as a question that a command asks between its steps.
//!
//! Main thread. While a value lives, neither signal ends the process by itself: the command decides
//! what is given up and what is told.

use std::io;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Both signals.
#[derive(Debug)]
pub(super) struct Interrupts {
    runtime: Runtime,
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    /// Takes both signals over.
    ///
    /// # Errors
    /// The kernel gives no descriptor to watch them.
    pub(super) fn take() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let signals = {
            let _inside = runtime.enter();
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
        };
        let (interrupt, terminate) = signals;
        Ok(Self { runtime, interrupt, terminate })
    }

    /// Waits at most so long; true when a signal came.
    pub(super) fn within(&mut self, time: Duration) -> bool {
        let Self { runtime, interrupt, terminate } = self;
        let either = async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        runtime.block_on(async { tokio::time::timeout(time, either).await.is_ok() })
    }
}
