//! The task of a source: from the facts of a running or paused guest to the end of its migration.
//!
//! Runs on the control thread, one task per migration, talks to the core by orders and news. Its
//! phases: facts, waiting for [`VmOrder::Begin`], setting up, migrating until QEMU has completed,
//! waiting for the order how to end, ending in `ending`.
//!
//! Invariants: `cont` is given for [`VmOrder::Cancel`] and [`VmOrder::Keep`] alone, and only when
//! this task (or one of a daemon that died) has touched the guest and found it running; after
//! [`VmOrder::Release`] it is never given. Every phase hears orders, QEMU's end included.

use super::ending::{Ending, Touched, end};
use super::error::{QmpError, VmError};
use super::forecast::{Forecast, QemuFigures, Switchover};
use super::gather;
use super::preflight::in_flight;
use super::private::PrivateSocket;
use super::qmp::{Qmp, QmpEvent, QmpId, QmpItem};
use super::saved::SavedSettings;
use super::settings;
use super::task::{Dropped, MigrateOptions, OnTimeout, Stage, TaskSide, VmNews, VmOrder, VmTarget};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, sleep_until};

/// How often QEMU is asked how far it is while the guest runs.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// How often while the guest stands still: QEMU's events come at once, this is the fallback.
const STOPPED_EVERY: Duration = Duration::from_millis(5);

/// With [`OnTimeout::Ramp`]: how long a raised downtime limit is tried before the next.
const RAMP_EVERY: Duration = Duration::from_secs(5);

/// The highest downtime limit of a ramp, as a multiple of the first.
const RAMP_FACTOR_MAX: u64 = 64;

/// How long QEMU may take to let go of a migration that has ended.
const CLEARED_WITHIN: Duration = Duration::from_secs(10);

/// The most connections: QEMU's first and 16 of multifd.
const CHANNELS_MAX: u16 = 17;

type Leave = super::leave::Leave<Ending>;

/// Runs the task.
pub(super) async fn run(mut side: TaskSide, target: VmTarget, saved: Option<SavedSettings>) {
    let (VmTarget::Monitor { qmp: path } | VmTarget::Spawn { qmp: path, .. }) = target;
    let mut touched = Touched { path, qmp: None, saved };
    let ending = match drive(&mut side, &mut touched).await {
        Leave::Order(ending) => ending,
        Leave::Dropped => return,
        Leave::Fault(error) => {
            tracing::warn!(code = error.code(), %error, "the migration's source");
            if side.tell(VmNews::Failed(error)).await.is_err() {
                return;
            }
            match final_order(&mut side).await {
                Ok(ending) => ending,
                Err(Dropped) => return,
            }
        }
    };
    // The core may be gone by now; then nobody needs to hear it.
    let _ = end(&side, touched, ending).await;
}

/// The phases up to the order how to end.
async fn drive(side: &mut TaskSide, touched: &mut Touched) -> Leave {
    match migrate(side, touched).await {
        Ok(()) => {}
        Err(leave) => return leave,
    }
    // Both sides are done; what follows is the core's commit.
    match final_order(side).await {
        Ok(ending) => Leave::Order(ending),
        Err(Dropped) => Leave::Dropped,
    }
}

async fn migrate(side: &mut TaskSide, touched: &mut Touched) -> Result<(), Leave> {
    let mut qmp = Qmp::connect(&touched.path).await?;
    let facts = gather::gather(&mut qmp).await?;
    let (migration, before) = (facts.migration.clone(), facts.run_state.clone());
    let (may_move, paused) = (facts.may_move(), facts.is_paused());
    side.tell(VmNews::Facts(Box::new(facts))).await?;
    let (options, socket_path) = begin_order(side).await?;

    // From the facts to the order any time may have passed, and the sink knows the facts.
    let run_state = gather::run_state(&mut qmp).await?;
    if let Some(status) = migration.filter(|status| in_flight(status)) {
        return Err(VmError::AlreadyMigrating { status }.into());
    }
    if run_state != before {
        return Err(VmError::GuestChanged { before, now: run_state }.into());
    }
    if !may_move {
        return Err(VmError::GuestNotRunning { run_state }.into());
    }
    let mut saved = settings::save_source(&mut qmp, &options).await?;
    saved.paused = paused;
    side.tell(VmNews::Saved(saved.clone())).await?;
    touched.saved = Some(saved.clone());
    settings::set_source(&mut qmp, &saved, &options).await?;
    let socket = PrivateSocket::new(socket_path, &qmp)?;
    let listener = socket.listen()?;
    cleared_up(side, &mut qmp).await?;
    let uri = format!("unix:{}", socket.path().display());
    let limit_ms = settings::downtime_limit_ms(&saved, &options);
    let forecast = Forecast::new(limit_ms, settings::knows_switchover(&saved));
    let mut watch = Watch::new(qmp, forecast, options, saved);
    watch.hold().await?;
    watch.qmp.execute("migrate", json!({ "uri": uri })).await?;
    let outcome = watch.run(side, &socket, &listener).await;
    touched.qmp = Some(watch.qmp);
    if let (Err(Leave::Fault(VmError::GuestStopped { .. })), Some(saved)) =
        (&outcome, &mut touched.saved)
    {
        // QEMU's migration may complete before it is cancelled: that is no reason to start it.
        saved.paused = true;
    }
    outcome
}

/// Waits until QEMU has let go of its last migration.
async fn cleared_up(side: &mut TaskSide, qmp: &mut Qmp) -> Result<(), Leave> {
    let deadline = Instant::now() + CLEARED_WITHIN;
    while gather::is_clearing_up(qmp).await? {
        if Instant::now() >= deadline {
            return Err(VmError::MigrationLingers.into());
        }
        tokio::select! {
            order = side.order() => heed(&order?)?,
            () = sleep(STOPPED_EVERY) => {}
        }
    }
    Ok(())
}

/// An order while a migration begins or is under way: only one to end it has a meaning.
fn heed(order: &VmOrder) -> Result<(), Leave> {
    match Ending::of_source(order) {
        Some(ending) => Err(Leave::Order(ending)),
        None => {
            tracing::warn!(?order, "no order for a migration under way");
            Ok(())
        }
    }
}

/// Waits for the order to begin.
async fn begin_order(side: &mut TaskSide) -> Result<(MigrateOptions, PathBuf), Leave> {
    loop {
        match side.order().await? {
            VmOrder::Begin { options, socket_path } => return Ok((options, socket_path)),
            order => {
                if let Some(ending) = Ending::of_source(&order) {
                    return Err(Leave::Order(ending));
                }
                tracing::warn!(?order, "no order for a source");
            }
        }
    }
}

/// Waits for the order how to end.
async fn final_order(side: &mut TaskSide) -> Result<Ending, Dropped> {
    loop {
        let order = side.order().await?;
        if let Some(ending) = Ending::of_source(&order) {
            return Ok(ending);
        }
        tracing::warn!(?order, "no order for a source that has ended");
    }
}

/// What QEMU said about the migration's end.
enum Step {
    Going,
    Completed,
}

/// A migration under way.
struct Watch {
    qmp: Qmp,
    forecast: Forecast,
    options: MigrateOptions,
    saved: SavedSettings,
    /// The limit that a ramp began with.
    first_limit_ms: u64,
    /// What was set last, so that QEMU is told only what changes.
    set: Option<Switchover>,
    asked: Option<QmpId>,
    /// The question why the guest stands still.
    asked_why: Option<QmpId>,
    stopped: bool,
    channels: u16,
    deadline: Option<Instant>,
    tick: Interval,
}

impl Watch {
    fn new(qmp: Qmp, forecast: Forecast, options: MigrateOptions, saved: SavedSettings) -> Self {
        let deadline = options.timeout_ms.map(Duration::from_millis);
        Self {
            qmp,
            first_limit_ms: forecast.limit_ms(),
            forecast,
            deadline: deadline.and_then(|limit| Instant::now().checked_add(limit)),
            options,
            saved,
            set: None,
            asked: None,
            asked_why: None,
            stopped: false,
            channels: 0,
            tick: ticks(PROGRESS_EVERY),
        }
    }

    /// Before the first figures of the link QEMU shall not stop the guest on its own judgement.
    async fn hold(&mut self) -> Result<(), QmpError> {
        let held = self.forecast.step(&QemuFigures::default(), &Default::default()).switchover;
        let limit = match held {
            Switchover::Bandwidth { .. } => self.forecast.limit_ms(),
            Switchover::Limit { ms } => ms,
        };
        self.qmp.execute("migrate-set-parameters", json!({ settings::DOWNTIME: limit })).await?;
        if let Switchover::Bandwidth { bytes_per_second } = held {
            let stated = json!({ settings::SWITCHOVER: bytes_per_second });
            self.qmp.execute("migrate-set-parameters", stated).await?;
        }
        self.set = Some(held);
        Ok(())
    }

    /// Until QEMU has completed, or something else happened.
    async fn run(
        &mut self,
        side: &mut TaskSide,
        socket: &PrivateSocket,
        listener: &UnixListener,
    ) -> Result<(), Leave> {
        loop {
            // A far deadline stands for none: the branch is never taken then.
            let deadline = self.deadline.filter(|_| !self.stopped);
            let until = deadline.unwrap_or_else(Instant::now);
            tokio::select! {
                biased;
                order = side.order() => heed(&order?)?,
                item = self.qmp.next() => {
                    if let Step::Completed = self.heard(side, item?).await? {
                        side.tell(VmNews::Completed).await?;
                        return Ok(());
                    }
                }
                accepted = listener.accept() => {
                    let (stream, _) = accepted.map_err(|source| VmError::Listen {
                        path: socket.path().to_path_buf(),
                        source,
                    })?;
                    self.connected(side, socket, stream).await?;
                }
                () = sleep_until(until), if deadline.is_some() => self.timed_out().await?,
                _ = self.tick.tick() => self.poll().await?,
            }
        }
    }

    async fn connected(
        &mut self,
        side: &TaskSide,
        socket: &PrivateSocket,
        stream: UnixStream,
    ) -> Result<(), Leave> {
        let channel = self.channels;
        if channel == CHANNELS_MAX {
            return Err(VmError::TooManyChannels { channels_max: CHANNELS_MAX }.into());
        }
        self.channels += 1;
        let socket = socket.admit(stream)?;
        Ok(side.tell(VmNews::Channel { channel, socket }).await?)
    }

    /// Asks how far QEMU is, unless it has not answered the last time.
    async fn poll(&mut self) -> Result<(), QmpError> {
        if self.asked.is_none() {
            self.asked = Some(self.qmp.ask("query-migrate", Value::Null).await?);
        }
        Ok(())
    }

    async fn heard(&mut self, side: &TaskSide, item: QmpItem) -> Result<Step, Leave> {
        match item {
            QmpItem::Event(event) => self.event(side, &event).await,
            QmpItem::Answer { id, outcome } if Some(id) == self.asked => {
                self.asked = None;
                let refused =
                    |(class, desc)| QmpError::Refused { command: "query-migrate", class, desc };
                self.answer(side, &outcome.map_err(refused)?).await
            }
            QmpItem::Answer { id, outcome: Ok(answer) } if Some(id) == self.asked_why => {
                stands_for_migration(&answer)?;
                Ok(Step::Going)
            }
            QmpItem::Answer { outcome, .. } => {
                if let Err((class, desc)) = outcome {
                    // A setting that QEMU does not take makes the forecast worse, not the guest.
                    tracing::warn!(class, desc, "QEMU refused a setting of the switchover");
                }
                Ok(Step::Going)
            }
        }
    }

    async fn event(&mut self, side: &TaskSide, event: &QmpEvent) -> Result<Step, Leave> {
        match event.name.as_str() {
            "STOP" if !self.stopped => {
                self.stopped = true;
                self.tick = ticks(STOPPED_EVERY);
                self.asked_why = Some(self.qmp.ask("query-status", Value::Null).await?);
                side.tell(VmNews::Stopped { at_unix_us: event.at_unix_us }).await?;
            }
            // QEMU has just counted what the guest wrote: the figures that decide are fresh.
            "MIGRATION_PASS" => self.poll().await?,
            "MIGRATION" => match event.migration_status() {
                // The reason is in the answer to the question, not in the event.
                Some("failed") => self.poll().await?,
                Some(status) => return self.status(status, None),
                None => {}
            },
            _ => {}
        }
        Ok(Step::Going)
    }

    async fn answer(&mut self, side: &TaskSide, answer: &Value) -> Result<Step, Leave> {
        let Some(status) = gather::migration_status(answer) else { return Ok(Step::Going) };
        if let Step::Completed = self.status(&status, answer.get("error-desc"))? {
            return Ok(Step::Completed);
        }
        let mut outlook = self.forecast.step(&QemuFigures::parse(answer), &side.figures());
        outlook.progress.stage = match status.as_str() {
            _ if self.stopped => Stage::Stopped,
            "active" | "device" => Stage::Precopy,
            _ => Stage::Setup,
        };
        side.tell_if_room(VmNews::Progress(Box::new(outlook.progress)));
        if !self.stopped {
            self.state(outlook.switchover).await?;
        }
        Ok(Step::Going)
    }

    fn status(&self, status: &str, reason: Option<&Value>) -> Result<Step, Leave> {
        match status {
            "completed" => Ok(Step::Completed),
            "cancelled" => Err(VmError::CancelledElsewhere.into()),
            "failed" => {
                let reason = reason.and_then(Value::as_str).unwrap_or("QEMU gave no reason");
                Err(VmError::MigrationFailed { reason: reason.to_owned() }.into())
            }
            _ => Ok(Step::Going),
        }
    }

    /// Tells QEMU what it may reckon with, if that changed by more than a twentieth.
    async fn state(&mut self, switchover: Switchover) -> Result<(), QmpError> {
        let (name, new, old) = match (switchover, self.set) {
            (Switchover::Bandwidth { bytes_per_second: new }, old) => {
                let old = match old {
                    Some(Switchover::Bandwidth { bytes_per_second }) => bytes_per_second,
                    _ => 0,
                };
                (settings::SWITCHOVER, new, old)
            }
            (Switchover::Limit { ms: new }, Some(Switchover::Limit { ms: old })) => {
                (settings::DOWNTIME, new, old)
            }
            (Switchover::Limit { ms: new }, _) => (settings::DOWNTIME, new, 0),
        };
        if new.abs_diff(old) > old / 20 {
            self.set = Some(switchover);
            self.qmp.ask("migrate-set-parameters", json!({ name: new })).await?;
        }
        Ok(())
    }

    async fn timed_out(&mut self) -> Result<(), Leave> {
        match self.options.on_timeout {
            OnTimeout::Abort => {
                let timeout_ms = self.options.timeout_ms.unwrap_or(0);
                Err(VmError::TimedOut { timeout_ms }.into())
            }
            OnTimeout::Throttle => {
                self.deadline = None;
                let users = settings::throttling(&self.saved);
                self.qmp.ask("migrate-set-parameters", users).await?;
                Ok(())
            }
            OnTimeout::Ramp => {
                let highest = self.first_limit_ms.saturating_mul(RAMP_FACTOR_MAX);
                let limit_ms = self.forecast.limit_ms().saturating_mul(2).min(highest);
                self.deadline = (limit_ms < highest).then(|| Instant::now() + RAMP_EVERY);
                self.forecast.set_limit_ms(limit_ms);
                if settings::knows_switchover(&self.saved) {
                    let limit = json!({ settings::DOWNTIME: limit_ms });
                    self.qmp.ask("migrate-set-parameters", limit).await?;
                }
                Ok(())
            }
        }
    }
}

/// Refuses a guest that something else than its migration has stopped: the sink, which was told of
/// a running one, would run it again. A guest that runs is one whose migration has just failed.
fn stands_for_migration(answer: &Value) -> Result<(), VmError> {
    let now = answer.get("status").and_then(Value::as_str).unwrap_or_default();
    match now {
        "finish-migrate" | "postmigrate" | "running" => Ok(()),
        _ => Err(VmError::GuestStopped { now: gather::short(now) }),
    }
}

fn ticks(every: Duration) -> Interval {
    let mut ticks = interval(every);
    // A late poll says all that the missed ones would have said.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}
