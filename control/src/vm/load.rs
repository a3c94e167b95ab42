//! The load of a guest at the sink: from QEMU's first connection until the guest stands loaded.
//!
//! Runs on the control thread inside the sink's task, which owns the connection before and after.
//!
//! Invariants: a load counts as complete only when QEMU says so and its guest stands still; a
//! guest that runs before the commit is stopped at once.

use super::error::{QmpError, VmError};
use super::gather;
use super::private::PrivateSocket;
use super::qmp::{Qmp, QmpId, QmpItem};
use super::task::{TaskSide, VmNews, VmOrder};
use serde_json::Value;
use std::time::Duration;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// How often QEMU is asked about the load: its events come at once, this is the fallback.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// The core's order how to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The guest is ours.
    Resume,
    /// The guest is ours, and its owner starts it.
    LeavePaused,
    /// It never runs here.
    Discard,
}

pub(super) type Leave = super::leave::Leave<Ending>;

/// A load under way.
pub(super) struct Load {
    qmp: Qmp,
    asked: Option<QmpId>,
    channels: u16,
    channels_max: u16,
    /// QEMU says that the load is complete; this question asks whether the guest stands still.
    loaded: Option<QmpId>,
    tick: Interval,
}

impl Load {
    /// With QEMU's first connection made.
    pub(super) fn new(qmp: Qmp, channels_max: u16) -> Self {
        Self { qmp, asked: None, channels: 1, channels_max, loaded: None, tick: ticks() }
    }

    /// The monitor, for what follows.
    pub(super) fn into_qmp(self) -> Qmp {
        self.qmp
    }

    /// Until all is loaded and the guest stands.
    pub(super) async fn run(
        &mut self,
        side: &mut TaskSide,
        socket: &PrivateSocket,
    ) -> Result<(), Leave> {
        loop {
            tokio::select! {
                biased;
                item = self.qmp.next() => {
                    if self.heard(item?).await? {
                        side.tell(VmNews::Loaded).await?;
                        return Ok(());
                    }
                }
                order = side.order() => match order? {
                    VmOrder::Connect { channel } => self.connect(side, socket, channel).await?,
                    order => match ending_of(&order) {
                        Some(ending) => return Err(Leave::Order(ending)),
                        None => tracing::warn!(?order, "no order for a load under way"),
                    },
                },
                _ = self.tick.tick() => {
                    if self.asked.is_none() && self.loaded.is_none() {
                        self.asked = Some(self.qmp.ask("query-migrate", Value::Null).await?);
                    }
                }
            }
        }
    }

    async fn connect(
        &mut self,
        side: &TaskSide,
        socket: &PrivateSocket,
        channel: u16,
    ) -> Result<(), Leave> {
        if self.channels == self.channels_max {
            return Err(VmError::TooManyChannels { channels_max: self.channels_max }.into());
        }
        self.channels += 1;
        let socket = socket.connect().await?;
        Ok(side.tell(VmNews::Channel { channel, socket }).await?)
    }

    /// True when the guest is loaded and stands still.
    async fn heard(&mut self, item: QmpItem) -> Result<bool, Leave> {
        match item {
            QmpItem::Event(event) if event.name == "RESUME" => Err(halt(&mut self.qmp).await),
            QmpItem::Event(event) => {
                match event.migration_status() {
                    Some("completed") => self.complete().await?,
                    // The reason is in the answer to the question, not in the event.
                    Some("failed") => {
                        self.asked = Some(self.qmp.ask("query-migrate", Value::Null).await?);
                    }
                    _ => {}
                }
                Ok(false)
            }
            QmpItem::Answer { id, outcome } => {
                let refused = |(class, desc)| QmpError::Refused { command: "a query", class, desc };
                let answer = outcome.map_err(refused)?;
                if Some(id) == self.loaded {
                    return self.stands(&answer).await;
                }
                if Some(id) == self.asked {
                    self.asked = None;
                    self.asked_answer(&answer).await?;
                }
                Ok(false)
            }
        }
    }

    async fn asked_answer(&mut self, answer: &Value) -> Result<(), Leave> {
        match gather::migration_status(answer).as_deref() {
            Some("completed") => Ok(self.complete().await?),
            Some("failed" | "cancelled") => {
                let reason = answer.get("error-desc").and_then(Value::as_str);
                let reason = reason.unwrap_or("QEMU gave no reason").to_owned();
                Err(VmError::LoadFailed { reason }.into())
            }
            _ => Ok(()),
        }
    }

    async fn complete(&mut self) -> Result<(), QmpError> {
        if self.loaded.is_none() {
            self.loaded = Some(self.qmp.ask("query-status", Value::Null).await?);
        }
        Ok(())
    }

    async fn stands(&mut self, answer: &Value) -> Result<bool, Leave> {
        match answer.get("status").and_then(Value::as_str) {
            Some("running") => Err(halt(&mut self.qmp).await),
            Some("inmigrate") => {
                // Completed, and the guest not yet there: asked again by the next tick.
                self.loaded = None;
                Ok(false)
            }
            _ => Ok(true),
        }
    }
}

/// A guest that runs uncommitted is stopped at once. What it did meanwhile can't be undone.
pub(super) async fn halt(qmp: &mut Qmp) -> Leave {
    if let Err(error) = qmp.execute("stop", Value::Null).await {
        tracing::error!(code = error.code(), %error, "a guest runs uncommitted");
    }
    Leave::Fault(VmError::RunsUncommitted)
}

/// What an order to a sink means for its end; none if it is not one.
pub(super) fn ending_of(order: &VmOrder) -> Option<Ending> {
    match order {
        VmOrder::Resume => Some(Ending::Resume),
        VmOrder::LeavePaused => Some(Ending::LeavePaused),
        VmOrder::Discard | VmOrder::Cancel => Some(Ending::Discard),
        _ => None,
    }
}

fn ticks() -> Interval {
    let mut ticks = interval(ASK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}
