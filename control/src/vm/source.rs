//! The task of a source.
use super::saved::SavedSettings;
use super::task::{Dropped, GuestState, TaskSide, VmNews, VmTarget};

/// Runs the task.
pub(super) async fn run(side: TaskSide, target: VmTarget, saved: Option<SavedSettings>) {
    tracing::debug!(?target, ?saved, "source task");
    let told: Result<(), Dropped> = side.tell(VmNews::Ended { guest: GuestState::Unknown }).await;
    tracing::debug!(?told, "ended");
}
