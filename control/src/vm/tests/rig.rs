//! What the tests run tasks in: a runtime with a bound, the news of a session, a pump between two
//! migration sockets.

use crate::vm::{GuestState, VmError, VmNews, VmOrder, VmReport, VmTask};
use dwcp_proto::ids::SessionId;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::os::unix::net;
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// No test waits longer for one thing. TCG guests on a loaded machine are slow.
pub(super) const WAIT: Duration = Duration::from_secs(60);

pub(super) const SESSION: SessionId = SessionId([7; 16]);

/// Runs a test on a runtime like the control thread's.
pub(super) fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        timeout(3 * WAIT, test).await.expect("the test ends in time");
    });
}

/// A task and its news.
pub(super) struct Task {
    pub(super) task: VmTask,
    news: mpsc::Receiver<VmReport>,
}

impl Task {
    pub(super) fn new(start: impl FnOnce(mpsc::Sender<VmReport>) -> VmTask) -> Self {
        let (reports, news) = mpsc::channel(64);
        Self { task: start(reports), news }
    }

    pub(super) fn order(&self, order: VmOrder) {
        self.task.order(order).expect("the task takes orders");
    }

    /// The next news but progress.
    pub(super) async fn news(&mut self) -> VmNews {
        loop {
            let report = timeout(WAIT, self.news.recv()).await.expect("news in time");
            let report = report.expect("the last news is Ended");
            assert_eq!(report.session, SESSION);
            if !matches!(report.news, VmNews::Progress(_)) {
                return report.news;
            }
        }
    }

    /// The next progress.
    pub(super) async fn progress(&mut self) -> crate::vm::MigrationProgress {
        loop {
            let report = timeout(WAIT, self.news.recv()).await.expect("progress in time");
            match report.expect("the last news is Ended").news {
                VmNews::Progress(progress) => return *progress,
                VmNews::Failed(error) => panic!("{error}"),
                _ => {}
            }
        }
    }

    /// Waits for news of one kind; an unexpected failure ends the test.
    pub(super) async fn until<T>(&mut self, mut wanted: impl FnMut(VmNews) -> Option<T>) -> T {
        loop {
            match self.news().await {
                VmNews::Failed(error) => panic!("{}: {error}", error.code()),
                news => {
                    if let Some(found) = wanted(news) {
                        return found;
                    }
                }
            }
        }
    }

    pub(super) async fn facts(&mut self) -> crate::vm::VmFacts {
        let take = |news| match news {
            VmNews::Facts(facts) => Some(*facts),
            _ => None,
        };
        self.until(take).await
    }

    pub(super) async fn channel(&mut self) -> OwnedFd {
        let take = |news| match news {
            VmNews::Channel { socket, .. } => Some(socket),
            _ => None,
        };
        self.until(take).await
    }

    pub(super) async fn failure(&mut self) -> VmError {
        loop {
            if let VmNews::Failed(error) = self.news().await {
                return error;
            }
        }
    }

    /// The end, whatever was told before.
    pub(super) async fn ended(&mut self) -> GuestState {
        loop {
            if let VmNews::Ended { guest } = self.news().await {
                return guest;
            }
        }
    }
}

/// Carries bytes both ways between two sockets until dropped or either ends.
pub(super) struct Pump(JoinHandle<()>);

impl Pump {
    pub(super) fn new(one: OwnedFd, other: OwnedFd) -> Self {
        let (mut one, mut other) = (stream(one), stream(other));
        Self(tokio::task::spawn_local(async move {
            // A cut is what some tests are about.
            let _ = tokio::io::copy_bidirectional(&mut one, &mut other).await;
        }))
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn stream(socket: OwnedFd) -> UnixStream {
    UnixStream::from_std(net::UnixStream::from(socket)).expect("it was not blocking")
}
