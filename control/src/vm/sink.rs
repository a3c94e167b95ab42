//! The task of a sink.
use super::task::{Dropped, GuestState, TaskSide, VmNews, VmTarget};

/// Runs the task.
pub(super) async fn run(side: TaskSide, target: VmTarget) {
    tracing::debug!(?target, "sink task");
    let told: Result<(), Dropped> = side.tell(VmNews::Ended { guest: GuestState::Unknown }).await;
    tracing::debug!(?told, "ended");
}
