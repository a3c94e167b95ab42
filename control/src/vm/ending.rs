//! How a source ends: its guest made to run here, or left to the sink.
//!
//! Runs on the control thread at the end of a source's task. This is where a guest could be lost
//! or doubled, so it asks QEMU what is, instead of remembering what should be.
//!
//! Invariants: nothing is done to a guest that this migration has not touched; `cont` is given in
//! `postmigrate` alone, the state in which QEMU's own migration leaves a guest, never to a guest
//! that its user has paused: that one stays in `postmigrate`, where its user's `cont` starts it.

use super::error::{QmpError, VmError};
use super::gather::{migration_status, run_state};
use super::preflight::in_flight;
use super::qmp::Qmp;
use super::saved::SavedSettings;
use super::settings;
use super::task::{Dropped, GuestState, TaskSide, VmNews, VmOrder};
use serde_json::Value;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// How long QEMU may take until the guest runs again. While it writes to a socket that is not yet
/// closed its main loop answers nobody.
const SETTLE_WAIT: Duration = Duration::from_secs(60);

/// How often it is asked meanwhile.
const SETTLE_EVERY: Duration = Duration::from_millis(10);

/// The core's order how to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The guest runs here.
    Keep,
    /// The guest is the sink's.
    Release,
}

impl Ending {
    /// What an order to a source means; none if it is not an end.
    pub(super) fn of_source(order: &VmOrder) -> Option<Self> {
        match order {
            VmOrder::Cancel | VmOrder::Keep => Some(Self::Keep),
            VmOrder::Release => Some(Self::Release),
            _ => None,
        }
    }
}

/// A source's QEMU and what was done to it.
pub(super) struct Touched {
    /// Its monitor.
    pub(super) path: PathBuf,
    /// The connection, if there is one.
    pub(super) qmp: Option<Qmp>,
    /// The user's settings. None: neither this task nor one before has changed anything, so
    /// whatever QEMU does is its user's doing.
    pub(super) saved: Option<SavedSettings>,
}

/// Ends as ordered and tells it.
pub(super) async fn end(
    side: &TaskSide,
    mut touched: Touched,
    ending: Ending,
) -> Result<(), Dropped> {
    let deadline = Instant::now() + SETTLE_WAIT;
    let guest = loop {
        match settle(&mut touched, ending, deadline).await {
            Ok(guest) => break guest,
            Err(error) => {
                // A connection that broke says nothing of QEMU: another one is tried.
                touched.qmp = None;
                let gone = matches!(
                    error,
                    VmError::Monitor(QmpError::Missing { .. } | QmpError::NobodyListens { .. })
                );
                // An untouched guest is where it was, whatever its monitor says.
                let again = touched.saved.is_some()
                    && matches!(
                        error,
                        VmError::Monitor(
                            QmpError::Closed
                                | QmpError::Io(_)
                                | QmpError::Busy { .. }
                                | QmpError::Timeout { .. }
                        )
                    );
                if again && Instant::now() < deadline {
                    sleep(SETTLE_EVERY).await;
                    continue;
                }
                tracing::error!(code = error.code(), cure = error.cure(), %error, "the guest");
                let guest = match &error {
                    VmError::NotResumed { .. } => GuestState::Paused,
                    _ if gone => GuestState::Gone,
                    _ => GuestState::Unknown,
                };
                if touched.saved.is_some() {
                    side.tell(VmNews::Failed(error)).await?;
                }
                break guest;
            }
        }
    };
    if let Some((qmp, saved)) = touched.qmp.as_mut().zip(touched.saved.as_ref()) {
        // The guest is where it belongs; settings are a smaller matter.
        if let Err(error) = settings::restore(qmp, saved).await {
            tracing::warn!(code = error.code(), %error, "the user's migration settings are lost");
        }
    }
    // Before the news: whoever hears it may want the monitor, which serves one client.
    drop(touched);
    side.tell(VmNews::Ended { guest }).await
}

/// Brings the guest where it belongs.
async fn settle(
    touched: &mut Touched,
    ending: Ending,
    deadline: Instant,
) -> Result<GuestState, VmError> {
    let qmp = match &mut touched.qmp {
        Some(qmp) => qmp,
        none => none.insert(Qmp::connect(&touched.path).await?),
    };
    if touched.saved.is_none() || ending == Ending::Release {
        let run_state = run_state(qmp).await?;
        return Ok(seen(&run_state));
    }
    let paused = touched.saved.as_ref().is_some_and(|saved| saved.paused);
    let mut cancelled = false;
    loop {
        let status = migration_status(&qmp.execute("query-migrate", Value::Null).await?);
        let migrating = status.as_deref().is_some_and(in_flight);
        if migrating && !cancelled {
            qmp.execute("migrate_cancel", Value::Null).await?;
            cancelled = true;
        }
        let run_state = run_state(qmp).await?;
        match run_state.as_str() {
            "postmigrate" if !migrating && paused => return Ok(GuestState::Paused),
            "postmigrate" if !migrating => return resume(qmp).await,
            // QEMU is about to say how its migration ended.
            _ if migrating || run_state == "finish-migrate" => {}
            _ => return Ok(seen(&run_state)),
        }
        if Instant::now() >= deadline {
            return Err(VmError::NotResumed { run_state });
        }
        sleep(SETTLE_EVERY).await;
    }
}

async fn resume(qmp: &mut Qmp) -> Result<GuestState, VmError> {
    qmp.execute("cont", Value::Null).await?;
    match run_state(qmp).await? {
        run_state if run_state == "running" => Ok(GuestState::Running),
        run_state => Err(VmError::NotResumed { run_state }),
    }
}

/// What a run state means for the guest.
pub(super) fn seen(run_state: &str) -> GuestState {
    match run_state {
        "running" => GuestState::Running,
        "postmigrate" | "inmigrate" | "prelaunch" | "preconfig" => GuestState::Empty,
        _ => GuestState::Paused,
    }
}
