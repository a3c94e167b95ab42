//! The border between the core and the task that drives one QEMU: orders in, news out.
//!
//! Both run on the control thread. Orders other than the link's figures are few and kept in a
//! bounded queue; the figures overwrite each other. News are awaited, so none is lost, except
//! progress, which a busy core may miss. The last news of every task is [`VmNews::Ended`].
//!
//! Dropping a [`VmTask`] ends the task without touching the guest: who drops it knows nothing, so
//! it decides nothing. The journal's recovery, a new task with one order, settles such guests.

use super::error::VmError;
use super::facts::VmFacts;
use super::saved::SavedSettings;
use dwcp_proto::ids::SessionId;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use tokio::sync::{mpsc, watch};

/// Which QEMU a task drives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum VmTarget {
    /// A QEMU that somebody else started.
    Monitor {
        /// Its QMP socket.
        qmp: PathBuf,
    },
    /// Sink only: a QEMU that dwcp starts when a guest comes.
    Spawn {
        /// The program and its arguments.
        command: Vec<String>,
        /// The QMP socket that dwcp adds, in a private directory; it stays this guest's monitor
        /// after the migration. Beside it, `.stderr` keeps what QEMU said.
        qmp: PathBuf,
    },
}

/// What to do when a migration takes longer than its timeout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OnTimeout {
    /// Give it up; the guest runs on at the source.
    #[default]
    Abort,
    /// Slow the guest down step by step (QEMU's auto-converge).
    Throttle,
    /// Raise the downtime limit step by step.
    Ramp,
}

/// How a guest is to be moved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MigrateOptions {
    /// The longest pause that the user accepts; none: as QEMU is set.
    pub(crate) downtime_limit_ms: Option<u64>,
    /// QEMU's own bandwidth limit; none: unlimited, since the link sets the pace.
    pub(crate) bandwidth_bytes_per_second: Option<u64>,
    /// When `on_timeout` applies; none: never.
    pub(crate) timeout_ms: Option<u64>,
    /// What then.
    pub(crate) on_timeout: OnTimeout,
}

/// What the core orders.
#[derive(Debug)]
pub(crate) enum VmOrder {
    /// Source: save the user's settings, set ours, listen on the socket and have QEMU migrate.
    Begin {
        /// How.
        options: MigrateOptions,
        /// Where QEMU connects to; made by the task (0600), removed at the end.
        socket_path: PathBuf,
    },
    /// Source: the data plane's figures, input of the forecast. Send them about 5 times a second.
    Links {
        /// Coded bytes that the link delivers.
        rate_bytes_per_second: u64,
        /// Raw bytes for 1000 coded bytes, lately.
        ratio_milli: u32,
        /// The link's round trip.
        rtt_ns: u64,
        /// Coded bytes accepted from QEMU and not yet delivered at the sink.
        backlog_bytes: u64,
    },
    /// Source: cancel the migration and see the guest running; then the task ends. One that its
    /// user had paused stays paused, also with [`VmOrder::Keep`].
    Cancel,
    /// Source: the session failed before the yield. The guest is made to run here; then the task
    /// ends. Also without [`VmOrder::Begin`], for a guest of a daemon that died: that task needs
    /// the saved settings, or else it takes the guest for untouched and leaves it.
    Keep,
    /// Source: committed at the sink. QEMU is left as it is; the task ends.
    Release,
    /// Sink: have QEMU listen on the socket and connect channel 0.
    Prepare {
        /// Where QEMU listens; removed at the end.
        socket_path: PathBuf,
        /// The most connections that will come.
        channels_max: u16,
    },
    /// Sink: one more connection (QEMU's multifd).
    Connect {
        /// Its number.
        channel: u16,
    },
    /// Sink: committed. The guest is told to run; then the task ends. Also without
    /// [`VmOrder::Prepare`], for a guest of a daemon that died.
    Resume,
    /// Sink: committed, and the guest's owner starts it: it is left as it stands; the task ends.
    /// Also without [`VmOrder::Prepare`], for a guest of a daemon that died.
    LeavePaused,
    /// Sink: the session failed. The guest never runs here; a QEMU that dwcp started is ended.
    Discard,
}

/// Which part of a migration it is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Stage {
    /// QEMU prepares.
    #[default]
    Setup,
    /// The guest runs and its memory is copied.
    Precopy,
    /// The guest stands still: last pages and device state.
    Stopped,
}

/// Will the migration end by itself?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// Too little was seen to tell.
    #[default]
    Unknown,
    /// It will end.
    Converging,
    /// It won't as things are.
    WillNotConverge {
        /// What the guest writes, as raw bytes per second.
        dirty_bytes_per_second: u64,
        /// What the link takes, as raw bytes per second.
        carried_bytes_per_second: u64,
        /// What QEMU's round began with.
        round_bytes: u64,
        /// The downtime limit with which it would end now.
        downtime_needed_ms: u64,
    },
}

impl Verdict {
    /// Why a migration won't end and what would help, for people.
    pub(crate) fn because(&self) -> Option<String> {
        let Self::WillNotConverge {
            dirty_bytes_per_second,
            carried_bytes_per_second,
            round_bytes,
            downtime_needed_ms,
        } = self
        else {
            return None;
        };
        Some(format!(
            "the guest writes {} MB/s, the link carries {} MB/s of it, and this round began with \
             {} MB; --downtime-limit {downtime_needed_ms}ms would end it now, \
             --on-timeout throttle slows the guest down",
            megabytes(*dirty_bytes_per_second),
            megabytes(*carried_bytes_per_second),
            megabytes(*round_bytes),
        ))
    }
}

/// For people, in tenths.
fn megabytes(bytes: u64) -> String {
    let tenths = bytes / 100_000;
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// How far a migration is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MigrationProgress {
    /// Which part.
    pub(crate) stage: Stage,
    /// The guest's memory.
    pub(crate) total_bytes: u64,
    /// What QEMU still has to send, in raw bytes.
    pub(crate) remaining_bytes: u64,
    /// What QEMU has sent.
    pub(crate) transferred_bytes: u64,
    /// QEMU's passes over the guest's memory.
    pub(crate) rounds: u64,
    /// What the guest writes, in raw bytes.
    pub(crate) dirty_bytes_per_second: u64,
    /// What the link carries, in raw bytes.
    pub(crate) carried_bytes_per_second: u64,
    /// Forecast of the time to the end, none if it can't be told.
    pub(crate) end_in_ms: Option<u64>,
    /// Forecast of the pause, were the guest stopped now.
    pub(crate) pause_ms: Option<u64>,
    /// How much QEMU slows the guest down, in percent.
    pub(crate) throttle_percent: u32,
    /// The downtime limit that QEMU works with now.
    pub(crate) downtime_limit_ms: u64,
    /// Will it end?
    pub(crate) verdict: Verdict,
}

/// What a guest does when its task has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum GuestState {
    /// It runs in this QEMU.
    Running,
    /// It stands still in this QEMU.
    Paused,
    /// This QEMU holds no guest, or only a spent one.
    Empty,
    /// QEMU is gone.
    Gone,
    /// Nobody can tell: QEMU doesn't answer.
    Unknown,
}

/// What a task tells.
#[derive(Debug)]
pub(crate) enum VmNews {
    /// What is known of this end. First news of every task that reaches its QEMU.
    Facts(Box<VmFacts>),
    /// The user's settings before ours, to be kept in the journal. From here on the task may
    /// change QEMU; a later task that is given them may end what this one began.
    Saved(SavedSettings),
    /// A connection to QEMU's migration, to be handed to the shard.
    Channel {
        /// Its number.
        channel: u16,
        /// The connected socket.
        socket: OwnedFd,
    },
    /// Source: how far it is.
    Progress(Box<MigrationProgress>),
    /// Source: the guest was stopped for the switchover. Not told of one that stood still before.
    Stopped {
        /// By QEMU's clock.
        at_unix_us: u64,
    },
    /// Source: QEMU has sent everything and its peer confirmed it over the return path.
    Completed,
    /// Sink: QEMU listens; its channel 0 was told before.
    Prepared,
    /// Sink: QEMU has loaded everything; the guest is paused.
    Loaded,
    /// Sink: the guest runs.
    Resumed {
        /// By QEMU's clock.
        at_unix_us: u64,
    },
    /// It can't go on. The task waits for the order how to end.
    Failed(VmError),
    /// The task is over.
    Ended {
        /// What the guest does now.
        guest: GuestState,
    },
}

/// News with its session.
#[derive(Debug)]
pub(crate) struct VmReport {
    /// The session that the task was started for.
    pub(crate) session: SessionId,
    /// What happened.
    pub(crate) news: VmNews,
}

/// The data plane's figures of [`VmOrder::Links`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LinkFigures {
    pub(super) rate_bytes_per_second: u64,
    pub(super) ratio_milli: u32,
    pub(super) rtt_ns: u64,
    pub(super) backlog_bytes: u64,
}

/// The most orders that wait: a connection for every channel and one of each other kind.
const ORDERS_WAITING_MAX: usize = 32;

/// The core's handle of a task.
#[derive(Debug)]
pub(crate) struct VmTask {
    orders: mpsc::Sender<VmOrder>,
    figures: watch::Sender<LinkFigures>,
}

impl VmTask {
    /// Gives an order.
    ///
    /// # Errors
    /// The task is over, or its queue is full of orders that a session never gives: the order
    /// comes back.
    pub(crate) fn order(&self, order: VmOrder) -> Result<(), VmOrder> {
        if let VmOrder::Links { rate_bytes_per_second, ratio_milli, rtt_ns, backlog_bytes } = order
        {
            self.figures.send_replace(LinkFigures {
                rate_bytes_per_second,
                ratio_milli,
                rtt_ns,
                backlog_bytes,
            });
            return Ok(());
        }
        self.orders.try_send(order).map_err(mpsc::error::TrySendError::into_inner)
    }
}

/// The task's side.
#[derive(Debug)]
pub(crate) struct TaskSide {
    session: SessionId,
    orders: mpsc::Receiver<VmOrder>,
    figures: watch::Receiver<LinkFigures>,
    reports: mpsc::Sender<VmReport>,
}

/// The core has dropped its handle or is gone: the task ends and touches nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dropped;

impl TaskSide {
    /// Waits for the next order.
    pub(crate) async fn order(&mut self) -> Result<VmOrder, Dropped> {
        self.orders.recv().await.ok_or(Dropped)
    }

    /// The newest figures of the data plane.
    pub(super) fn figures(&self) -> LinkFigures {
        *self.figures.borrow()
    }

    /// Tells news that must not be lost.
    pub(crate) async fn tell(&self, news: VmNews) -> Result<(), Dropped> {
        let report = VmReport { session: self.session, news };
        self.reports.send(report).await.map_err(|_| Dropped)
    }

    /// Tells news that may be lost when the core is busy.
    pub(super) fn tell_if_room(&self, news: VmNews) {
        // A full queue means that newer progress will be told before this one could be read.
        let _ = self.reports.try_send(VmReport { session: self.session, news });
    }
}

pub(crate) fn pair(session: SessionId, reports: mpsc::Sender<VmReport>) -> (VmTask, TaskSide) {
    let (orders, orders_taken) = mpsc::channel(ORDERS_WAITING_MAX);
    let (figures, figures_taken) = watch::channel(LinkFigures::default());
    let side = TaskSide { session, orders: orders_taken, figures: figures_taken, reports };
    (VmTask { orders, figures }, side)
}

/// Starts the task of a source. It connects to QEMU, tells [`VmNews::Facts`] (or
/// [`VmNews::Failed`]) and waits for orders. `saved` are the user's settings out of the journal
/// when a daemon that died has left its own behind; they are restored at the end.
pub(crate) fn spawn_source(
    session: SessionId,
    target: VmTarget,
    saved: Option<SavedSettings>,
    reports: mpsc::Sender<VmReport>,
) -> VmTask {
    let (task, side) = pair(session, reports);
    tokio::task::spawn_local(super::source::run(side, target, saved));
    task
}

/// Starts the task of a sink. It connects to QEMU, which it starts first if it is told to, tells
/// [`VmNews::Facts`] (or [`VmNews::Failed`]) and waits for orders.
///
/// A session that may still need the QEMU at `target` must be over before: an old QEMU that dwcp
/// started and that holds no guest is ended to make room. `saved` are the settings out of the
/// journal when a daemon that died had prepared this QEMU: it is ended by [`VmOrder::Discard`].
pub(crate) fn spawn_sink(
    session: SessionId,
    target: VmTarget,
    saved: Option<SavedSettings>,
    reports: mpsc::Sender<VmReport>,
) -> VmTask {
    let (task, side) = pair(session, reports);
    tokio::task::spawn_local(super::sink::run(side, target, saved));
    task
}

/// Asks a QEMU for its facts and leaves it: what `vm.attach` does to find faults early.
///
/// # Errors
/// The monitor can't be used.
pub(crate) async fn probe(qmp: &std::path::Path) -> Result<VmFacts, VmError> {
    super::gather::facts(qmp).await
}
