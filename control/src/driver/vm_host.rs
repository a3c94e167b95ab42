//! Where the tasks come from that drive QEMUs: the real ones, or what a test puts in their place.
//!
//! On the control thread.

use crate::vm::{
    SavedSettings, VmError, VmFacts, VmReport, VmTarget, VmTask, probe, spawn_sink, spawn_source,
};
use dwcp_proto::ids::SessionId;
use std::path::PathBuf;
use std::pin::Pin;
use tokio::sync::mpsc;

/// What is known of a QEMU, in time.
pub(crate) type Probe = Pin<Box<dyn Future<Output = Result<VmFacts, VmError>>>>;

/// Starts tasks, each of which tells its news to the core's queue.
pub(crate) trait VmHost {
    /// Starts the task of a source.
    fn source(&self, session: SessionId, target: VmTarget, saved: Option<SavedSettings>) -> VmTask;

    /// Starts the task of a sink.
    fn sink(&self, session: SessionId, target: VmTarget, saved: Option<SavedSettings>) -> VmTask;

    /// Asks a QEMU what it is.
    fn probe(&self, qmp: PathBuf) -> Probe;
}

/// Tasks of real QEMUs.
#[derive(Debug)]
pub(crate) struct QemuHost(pub(crate) mpsc::Sender<VmReport>);

impl VmHost for QemuHost {
    fn source(&self, session: SessionId, target: VmTarget, saved: Option<SavedSettings>) -> VmTask {
        spawn_source(session, target, saved, self.0.clone())
    }

    fn sink(&self, session: SessionId, target: VmTarget, saved: Option<SavedSettings>) -> VmTask {
        spawn_sink(session, target, saved, self.0.clone())
    }

    fn probe(&self, qmp: PathBuf) -> Probe {
        Box::pin(async move { probe(&qmp).await })
    }
}
