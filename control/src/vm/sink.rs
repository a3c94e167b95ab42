//! The task of a sink: from the facts of a waiting QEMU to the guest that runs in it, or to the
//! end of that QEMU.
//!
//! Runs on the control thread, one task per migration, talks to the core by orders and news. Its
//! phases: starting QEMU (if dwcp is to), facts, waiting for [`VmOrder::Prepare`], receiving until
//! all is loaded, waiting for the commit, ending.
//!
//! Invariants: `cont` is given for [`VmOrder::Resume`] alone, and only to a guest that stands
//! loaded; a guest that runs before is stopped at once and told of. A QEMU that began to receive
//! and was not resumed is ended by `quit`: it holds a guest that must not run, and can't receive
//! another one.

use super::ending::seen;
use super::error::{QmpError, VmError};
use super::gather;
use super::load::{Ending, Leave, Load, ending_of, halt};
use super::private::PrivateSocket;
use super::qmp::{Qmp, QmpEvent, QmpItem};
use super::saved::SavedSettings;
use super::settings;
use super::spawn::{self, Spawned};
use super::task::{Dropped, GuestState, TaskSide, VmNews, VmOrder, VmTarget};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// How long QEMU may take to run the guest after `cont`: it opens the images first.
const RESUME_WAIT: Duration = Duration::from_secs(60);

/// How long a broken monitor is left alone before it is tried again.
const AGAIN_AFTER: Duration = Duration::from_millis(20);

/// From this version on QEMU can be told to stay and name the reason when a load fails.
const STAYS_AFTER_FAILURE: (u16, u16) = (9, 1);

/// Runs the task.
pub(super) async fn run(mut side: TaskSide, target: VmTarget, saved: Option<SavedSettings>) {
    let (command, path) = match target {
        VmTarget::Monitor { qmp } => (None, qmp),
        VmTarget::Spawn { command, qmp } => (Some(command), qmp),
    };
    let mut sink = Sink { path, command, spawned: None, qmp: None, saved, socket: None };
    // Without a core nobody hears how it ended, and nothing was decided.
    let _ = sink.phases(&mut side).await;
}

struct Sink {
    path: PathBuf,
    command: Option<Vec<String>>,
    spawned: Option<Spawned>,
    qmp: Option<Qmp>,
    /// The user's settings; there once QEMU was prepared, by this daemon or one that died, so
    /// this QEMU is spent.
    saved: Option<SavedSettings>,
    socket: Option<PrivateSocket>,
}

impl Sink {
    async fn phases(&mut self, side: &mut TaskSide) -> Result<(), Dropped> {
        let mut loaded = false;
        let leave = match self.receive(side).await {
            Ok(()) => {
                loaded = true;
                self.wait_for_commit(side).await
            }
            Err(leave) => leave,
        };
        let ending = match leave {
            Leave::Order(ending) => ending,
            Leave::Dropped => return Err(Dropped),
            Leave::Fault(error) => {
                tracing::warn!(code = error.code(), %error, "the migration's sink");
                side.tell(VmNews::Failed(error)).await?;
                final_order(side).await?
            }
        };
        let guest = match ending {
            Ending::Resume => self.resume(side, loaded).await?,
            Ending::LeavePaused => self.leave_paused(side).await?,
            Ending::Discard => self.discard(side).await?,
        };
        self.socket = None;
        self.qmp = None;
        side.tell(VmNews::Ended { guest }).await
    }

    /// From nothing to a loaded guest.
    async fn receive(&mut self, side: &mut TaskSide) -> Result<(), Leave> {
        let mut qmp = self.open(side).await?;
        let facts = gather::gather(&mut qmp).await?;
        let version = (facts.version.major, facts.version.minor);
        let spent = facts.migration.is_some();
        side.tell(VmNews::Facts(Box::new(facts))).await?;
        let (socket_path, channels_max) = self.idle(side, &mut qmp).await?;

        let run_state = gather::run_state(&mut qmp).await?;
        if run_state != "inmigrate" || spent {
            return Err(VmError::NotIncoming { run_state }.into());
        }
        let saved = settings::save_sink(&mut qmp).await?;
        side.tell(VmNews::Saved(saved.clone())).await?;
        self.saved = Some(saved.clone());
        // While it waits, this keeps QEMU from running the guest when it is loaded: what `-S` does.
        qmp.execute("stop", Value::Null).await?;
        settings::set_sink(&mut qmp, &saved).await?;
        let socket = PrivateSocket::new(socket_path, &qmp)?;
        let mut incoming = json!({ "uri": format!("unix:{}", socket.path().display()) });
        if version >= STAYS_AFTER_FAILURE {
            incoming["exit-on-error"] = Value::Bool(false);
        }
        qmp.execute("migrate-incoming", incoming).await?;
        let first = socket.connect().await?;
        side.tell(VmNews::Channel { channel: 0, socket: first }).await?;
        side.tell(VmNews::Prepared).await?;
        let mut load = Load::new(qmp, channels_max);
        let outcome = load.run(side, &socket).await;
        self.socket = Some(socket);
        self.qmp = Some(load.into_qmp());
        match outcome {
            Ok(()) => Ok(()),
            Err(leave) => Err(self.explain(leave).await),
        }
    }

    /// Connects to QEMU; starts it first if it is ours to start.
    async fn open(&mut self, side: &mut TaskSide) -> Result<Qmp, Leave> {
        let Some(command) = &self.command else { return Ok(Qmp::connect(&self.path).await?) };
        // Recovery needs the QEMU that is there, not a new one.
        match Qmp::connect(&self.path).await {
            Err(QmpError::Missing { .. } | QmpError::NobodyListens { .. }) => {}
            Err(error) => return Err(error.into()),
            Ok(mut qmp) => {
                let run_state = gather::run_state(&mut qmp).await?;
                if seen(&run_state) != GuestState::Empty {
                    return Ok(qmp);
                }
            }
        }
        tokio::select! {
            started = spawn::start(command, &self.path) => {
                let (spawned, qmp) = started?;
                self.spawned = Some(spawned);
                Ok(qmp)
            }
            order = final_order(side) => Err(Leave::Order(order?)),
        }
    }

    /// Waits for the order to prepare.
    async fn idle(&self, side: &mut TaskSide, qmp: &mut Qmp) -> Result<(PathBuf, u16), Leave> {
        loop {
            tokio::select! {
                biased;
                order = side.order() => match order? {
                    VmOrder::Prepare { socket_path, channels_max } => {
                        return Ok((socket_path, channels_max));
                    }
                    order => match ending_of(&order) {
                        Some(ending) => return Err(Leave::Order(ending)),
                        None => tracing::warn!(?order, "no order for a sink that waits"),
                    },
                },
                // Only its end matters here.
                item = qmp.next() => drop(item?),
            }
        }
    }

    /// Loaded: nothing but the commit may move the guest now.
    async fn wait_for_commit(&mut self, side: &mut TaskSide) -> Leave {
        let Some(qmp) = &mut self.qmp else { return Leave::Fault(QmpError::Closed.into()) };
        loop {
            tokio::select! {
                biased;
                order = side.order() => match order.map(|order| (ending_of(&order), order)) {
                    Ok((Some(ending), _)) => return Leave::Order(ending),
                    Ok((None, order)) => tracing::warn!(?order, "no order for a loaded sink"),
                    Err(Dropped) => return Leave::Dropped,
                },
                item = qmp.next() => match item {
                    Ok(QmpItem::Event(event)) if event.name == "RESUME" => {
                        return halt(qmp).await;
                    }
                    Ok(_) => {}
                    Err(error) => {
                        self.qmp = None;
                        return Leave::Fault(error.into());
                    }
                },
            }
        }
    }

    /// QEMU's end during the load is the load's failure; the last words of a QEMU of ours say why.
    async fn explain(&mut self, leave: Leave) -> Leave {
        let fault = match leave {
            Leave::Fault(VmError::Monitor(QmpError::Closed)) => {
                let how = match &mut self.spawned {
                    Some(spawned) => spawned.ended().await,
                    None => spawn::MONITOR_CLOSED.to_owned(),
                };
                VmError::LoadEnded { how }
            }
            Leave::Fault(VmError::LoadFailed { mut reason }) => {
                let words = self.spawned.as_ref().map(Spawned::last_words).unwrap_or_default();
                if !words.is_empty() {
                    reason = format!("{reason}: {words}");
                }
                VmError::LoadFailed { reason }
            }
            other => return other,
        };
        Leave::Fault(fault)
    }

    /// Committed: runs the guest, whatever it takes.
    async fn resume(&mut self, side: &TaskSide, loaded: bool) -> Result<GuestState, Dropped> {
        let deadline = Instant::now() + RESUME_WAIT;
        let mut certain = loaded;
        let error = loop {
            match self.run_guest(certain).await {
                Ok(at_unix_us) => {
                    side.tell(VmNews::Resumed { at_unix_us }).await?;
                    self.restore().await;
                    return Ok(GuestState::Running);
                }
                Err(error) => {
                    let broken = matches!(
                        error,
                        VmError::Monitor(
                            QmpError::Closed | QmpError::Io(_) | QmpError::Busy { .. }
                        )
                    );
                    if !broken || Instant::now() >= deadline {
                        break error;
                    }
                    // Whether `cont` was heard is not known: QEMU is asked before the next.
                    self.qmp = None;
                    certain = false;
                    sleep(AGAIN_AFTER).await;
                }
            }
        };
        tracing::error!(code = error.code(), cure = error.cure(), %error, "the guest");
        let guest = match &error {
            VmError::NotResumed { .. } | VmError::Monitor(QmpError::Refused { .. }) => {
                GuestState::Paused
            }
            VmError::NotIncoming { .. } => GuestState::Empty,
            VmError::Monitor(QmpError::Missing { .. } | QmpError::NobodyListens { .. }) => {
                GuestState::Gone
            }
            _ => GuestState::Unknown,
        };
        side.tell(VmNews::Failed(error)).await?;
        Ok(guest)
    }

    /// Committed, and left for its owner to start.
    async fn leave_paused(&mut self, side: &TaskSide) -> Result<GuestState, Dropped> {
        let found = async {
            let qmp = match &mut self.qmp {
                Some(qmp) => qmp,
                none => none.insert(Qmp::connect(&self.path).await?),
            };
            Ok::<_, VmError>(seen(&gather::run_state(qmp).await?))
        };
        match found.await {
            Ok(guest) => {
                self.restore().await;
                Ok(guest)
            }
            Err(error) => {
                let gone = matches!(
                    error,
                    VmError::Monitor(QmpError::Missing { .. } | QmpError::NobodyListens { .. })
                );
                side.tell(VmNews::Failed(error)).await?;
                Ok(if gone { GuestState::Gone } else { GuestState::Unknown })
            }
        }
    }

    /// Gives `cont` and waits until the guest runs; says when. `certain`: the guest stands loaded
    /// for sure, so no question costs time in the blackout.
    async fn run_guest(&mut self, certain: bool) -> Result<u64, VmError> {
        let qmp = match &mut self.qmp {
            Some(qmp) => qmp,
            none => none.insert(Qmp::connect(&self.path).await?),
        };
        if !certain {
            let run_state = gather::run_state(qmp).await?;
            match seen(&run_state) {
                // It runs already: when it began nobody here knows.
                GuestState::Running => return Ok(0),
                GuestState::Paused => {}
                // `cont` would make a QEMU that waits run whatever comes.
                _ => return Err(VmError::NotIncoming { run_state }),
            }
        }
        qmp.execute("cont", Value::Null).await?;
        match timeout(RESUME_WAIT, resumed(qmp)).await {
            Ok(at_unix_us) => Ok(at_unix_us?),
            Err(_) => {
                let run_state = gather::run_state(qmp).await?;
                Err(VmError::NotResumed { run_state })
            }
        }
    }

    /// Sees to it that the guest never runs here.
    async fn discard(&mut self, side: &TaskSide) -> Result<GuestState, Dropped> {
        if let Some(spawned) = self.spawned.take() {
            spawned.end(self.qmp.take()).await;
            return Ok(GuestState::Gone);
        }
        if self.saved.is_none() {
            // Nothing was asked of this QEMU: it waits for the next guest as before.
            return Ok(GuestState::Empty);
        }
        let error = match self.quit().await {
            Ok(()) => return Ok(GuestState::Gone),
            Err(error) => error,
        };
        let guest = match &error {
            VmError::Monitor(QmpError::Missing { .. } | QmpError::NobodyListens { .. }) => {
                return Ok(GuestState::Gone);
            }
            VmError::RunsUncommitted => GuestState::Running,
            _ => GuestState::Unknown,
        };
        tracing::error!(code = error.code(), cure = error.cure(), %error, "a spent QEMU stays");
        side.tell(VmNews::Failed(error)).await?;
        Ok(guest)
    }

    /// Ends a QEMU by its monitor, unless a guest runs in it.
    async fn quit(&mut self) -> Result<(), VmError> {
        let mut qmp = match self.qmp.take() {
            Some(qmp) => qmp,
            None => Qmp::connect(&self.path).await?,
        };
        let quit = async {
            if gather::run_state(&mut qmp).await? == "running" {
                return Err(VmError::RunsUncommitted);
            }
            qmp.execute("quit", Value::Null).await?;
            Ok(())
        };
        match quit.await {
            Err(VmError::Monitor(QmpError::Closed)) => Ok(()),
            other => other,
        }
    }

    async fn restore(&mut self) {
        let Some((qmp, saved)) = self.qmp.as_mut().zip(self.saved.as_ref()) else { return };
        // The guest runs; settings are a smaller matter.
        if let Err(error) = settings::restore(qmp, saved).await {
            tracing::warn!(code = error.code(), %error, "the user's migration settings are lost");
        }
    }
}

/// The time of the next `RESUME`.
async fn resumed(qmp: &mut Qmp) -> Result<u64, QmpError> {
    loop {
        if let QmpItem::Event(QmpEvent { name, at_unix_us, .. }) = qmp.next().await?
            && name == "RESUME"
        {
            return Ok(at_unix_us);
        }
    }
}

async fn final_order(side: &mut TaskSide) -> Result<Ending, Dropped> {
    loop {
        let order = side.order().await?;
        if let Some(ending) = ending_of(&order) {
            return Ok(ending);
        }
        tracing::warn!(?order, "no order for a sink that has ended");
    }
}
