//! Fake QEMUs: what they do outlives the daemons that drive them, so that daemons may be killed. A
//! test holds them at a point or lets them fail there.
//!
//! Whatever happens, never two of them run: the fakes themselves check that at every step.

use super::super::vm_host::{Probe, VmHost};
use crate::vm::{
    Dropped, GuestState, MigrationProgress, QemuVersion, QmpError, SavedSettings, TaskSide,
    VmError, VmFacts, VmNews, VmOrder, VmReport, VmTarget, VmTask, pair,
};
use dwcp_proto::ids::SessionId;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use tokio::sync::mpsc;

/// One QEMU.
#[derive(Debug)]
struct Qemu {
    run_state: RefCell<&'static str>,
    loaded: Cell<bool>,
    ram_bytes: Cell<u64>,
    capabilities: RefCell<Vec<String>>,
    orders: RefCell<Vec<&'static str>>,
}

/// All QEMUs of a test.
#[derive(Debug, Default)]
pub(super) struct Qemus {
    all: RefCell<BTreeMap<PathBuf, Rc<Qemu>>>,
    /// Points at which tasks wait.
    held: RefCell<BTreeSet<&'static str>>,
    /// Points at which they fail.
    failing: RefCell<BTreeSet<&'static str>>,
    /// The guest was stopped at the source.
    stopped: Cell<bool>,
    /// Connections besides the first.
    pub(super) more_channels: Cell<u16>,
    /// How often a QEMU has failed.
    pub(super) failures: Cell<u16>,
    /// Operators have let two run on purpose.
    pub(super) two_may_run: Cell<bool>,
}

impl Qemus {
    /// A running guest at `a`, an empty QEMU at `b`.
    pub(super) fn start() -> Rc<Self> {
        let qemus = Rc::new(Self::default());
        qemus.add("/qemu/a", "running");
        qemus.add("/qemu/b", "inmigrate");
        qemus
    }

    /// Starts one, in place of what was there.
    pub(super) fn add(&self, path: &str, run_state: &'static str) {
        let qemu = Qemu {
            run_state: RefCell::new(run_state),
            loaded: Cell::new(false),
            ram_bytes: Cell::new(64 << 20),
            capabilities: RefCell::default(),
            orders: RefCell::new(Vec::new()),
        };
        self.stopped.set(false);
        self.all.borrow_mut().insert(path.into(), Rc::new(qemu));
    }

    pub(super) fn hold(&self, point: &'static str) {
        self.held.borrow_mut().insert(point);
    }

    pub(super) fn free(&self, point: &'static str) {
        self.held.borrow_mut().remove(point);
    }

    pub(super) fn fail(&self, point: &'static str) {
        self.failing.borrow_mut().insert(point);
    }

    pub(super) fn no_failures(&self) {
        self.failing.borrow_mut().clear();
    }

    pub(super) fn set_ram_bytes(&self, path: &str, bytes: u64) {
        self.all.borrow()[Path::new(path)].ram_bytes.set(bytes);
    }

    /// Switches one of QEMU's own migration capabilities on.
    pub(super) fn set_capability(&self, path: &str, name: &str) {
        self.all.borrow()[Path::new(path)].capabilities.borrow_mut().push(name.to_owned());
    }

    /// What the QEMU at this path does.
    pub(super) fn run_state(&self, path: &str) -> &'static str {
        *self.all.borrow()[Path::new(path)].run_state.borrow()
    }

    /// What its tasks were told.
    pub(super) fn orders(&self, path: &str) -> Vec<&'static str> {
        self.all.borrow()[Path::new(path)].orders.borrow().clone()
    }

    /// Waits until it does that.
    pub(super) async fn wait_for(&self, path: &str, run_state: &str) {
        while self.run_state(path) != run_state {
            tokio::task::yield_now().await;
        }
    }

    /// Ends one.
    pub(super) fn end(&self, path: &str) {
        self.all.borrow_mut().remove(Path::new(path));
    }

    /// Waits until a task of it was told this.
    pub(super) async fn wait_order(&self, path: &str, order: &str) {
        while !self.orders(path).contains(&order) {
            tokio::task::yield_now().await;
        }
    }

    fn set(&self, qemu: &Qemu, run_state: &'static str) {
        *qemu.run_state.borrow_mut() = run_state;
        let all = self.all.borrow();
        let running = all.values().filter(|qemu| *qemu.run_state.borrow() == "running").count();
        assert!(running <= 1 || self.two_may_run.get(), "two guests run");
    }

    fn loaded(&self) -> bool {
        self.all.borrow().values().any(|qemu| qemu.loaded.get())
    }
}

/// The tasks of one daemon.
pub(super) struct FakeHost {
    pub(super) qemus: Rc<Qemus>,
    pub(super) reports: mpsc::Sender<VmReport>,
}

impl FakeHost {
    fn start(
        &self,
        session: SessionId,
        target: &VmTarget,
        saved: Option<SavedSettings>,
        run: impl AsyncFnOnce(Drive) -> Result<(), Dropped> + 'static,
    ) -> VmTask {
        let (task, side) = pair(session, self.reports.clone());
        let (VmTarget::Monitor { qmp } | VmTarget::Spawn { qmp, .. }) = target;
        let found = self.qemus.all.borrow().get(qmp).cloned();
        let qemus = Rc::clone(&self.qemus);
        tokio::task::spawn_local(async move {
            let Some(qemu) = found else { return missing(side).await };
            // A task whose core is gone ends without a word.
            let _ = run(Drive { side, qemu, qemus, saved }).await;
        });
        task
    }
}

async fn missing(mut side: TaskSide) {
    let error = VmError::Monitor(QmpError::Missing { path: "/qemu".into() });
    if side.tell(VmNews::Failed(error)).await.is_ok() && side.order().await.is_ok() {
        let _ = side.tell(VmNews::Ended { guest: GuestState::Unknown }).await;
    }
}

impl VmHost for FakeHost {
    fn source(&self, session: SessionId, target: VmTarget, saved: Option<SavedSettings>) -> VmTask {
        self.start(session, &target, saved, Drive::source)
    }

    fn sink(&self, session: SessionId, target: VmTarget, saved: Option<SavedSettings>) -> VmTask {
        self.start(session, &target, saved, Drive::sink)
    }

    fn probe(&self, qmp: PathBuf) -> Probe {
        let found = self.qemus.all.borrow().get(&qmp).cloned();
        Box::pin(async move {
            let missing = || VmError::Monitor(QmpError::Missing { path: qmp.clone() });
            found.as_deref().map(facts).ok_or_else(missing)
        })
    }
}

fn facts(qemu: &Qemu) -> VmFacts {
    VmFacts {
        version: QemuVersion { major: 10, minor: 0, micro: 0 },
        run_state: (*qemu.run_state.borrow()).to_owned(),
        ram_bytes: qemu.ram_bytes.get(),
        capabilities: qemu.capabilities.borrow().clone(),
        ..VmFacts::default()
    }
}

/// A task and its QEMU.
struct Drive {
    side: TaskSide,
    qemu: Rc<Qemu>,
    qemus: Rc<Qemus>,
    /// What this task or one of a killed daemon has kept before it touched the guest.
    saved: Option<SavedSettings>,
}

/// What a wait ended with.
enum Next {
    Reached,
    Ordered(VmOrder),
}

impl Drive {
    async fn order(&mut self) -> Result<VmOrder, Dropped> {
        let order = self.side.order().await?;
        let name = match order {
            VmOrder::Begin { .. } => "begin",
            VmOrder::Links { .. } => "links",
            VmOrder::Cancel => "cancel",
            VmOrder::Keep => "keep",
            VmOrder::Release => "release",
            VmOrder::Prepare { .. } => "prepare",
            VmOrder::Connect { .. } => "connect",
            VmOrder::Resume => "resume",
            VmOrder::LeavePaused => "leave paused",
            VmOrder::Discard => "discard",
        };
        self.qemu.orders.borrow_mut().push(name);
        Ok(order)
    }

    /// Waits for a condition, or for an order before it.
    async fn until(&mut self, condition: impl Fn(&Qemus) -> bool) -> Result<Next, Dropped> {
        let qemus = Rc::clone(&self.qemus);
        let reached = async {
            while !condition(&qemus) {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            order = self.order() => order.map(Next::Ordered),
            () = reached => Ok(Next::Reached),
        }
    }

    /// Passes a point: waits while it is held, fails if it is to fail.
    async fn pass(&mut self, point: &'static str) -> Result<Option<VmOrder>, Dropped> {
        if let Next::Ordered(order) =
            self.until(move |qemus| !qemus.held.borrow().contains(point)).await?
        {
            return Ok(Some(order));
        }
        if !self.qemus.failing.borrow().contains(point) {
            return Ok(None);
        }
        let reason = format!("at {point}");
        let error = match point {
            "load" => VmError::LoadFailed { reason },
            _ => VmError::MigrationFailed { reason },
        };
        self.side.tell(VmNews::Failed(error)).await?;
        self.qemus.failures.set(self.qemus.failures.get() + 1);
        self.order().await.map(Some)
    }

    async fn channels(&mut self, first: u16, last: u16) -> Result<(), Dropped> {
        for channel in first..=last {
            let (ours, _) = UnixStream::pair().unwrap();
            let socket = OwnedFd::from(ours);
            self.side.tell(VmNews::Channel { channel, socket }).await?;
        }
        Ok(())
    }

    async fn source(mut self) -> Result<(), Dropped> {
        self.side.tell(VmNews::Facts(Box::new(facts(&self.qemu)))).await?;
        let mut order = self.order().await?;
        if let VmOrder::Begin { .. } = order {
            order = match self.migrate().await? {
                Some(order) => order,
                None => self.order().await?,
            };
        }
        let guest = match order {
            VmOrder::Release => GuestState::Paused,
            _ => {
                let (run_state, guest) = match self.found_paused() {
                    true => ("paused", GuestState::Paused),
                    false => ("running", GuestState::Running),
                };
                self.qemus.set(&self.qemu, run_state);
                self.qemus.stopped.set(false);
                guest
            }
        };
        self.side.tell(VmNews::Ended { guest }).await
    }

    /// Whether its user had paused the guest; one that was not touched tells it itself.
    fn found_paused(&self) -> bool {
        let now = || *self.qemu.run_state.borrow() == "paused";
        self.saved.as_ref().map_or_else(now, |saved| saved.paused)
    }

    /// The migration up to its end, or to the order that ended it.
    async fn migrate(&mut self) -> Result<Option<VmOrder>, Dropped> {
        let paused = self.found_paused();
        let saved = SavedSettings { paused, ..SavedSettings::default() };
        self.saved = Some(saved.clone());
        self.side.tell(VmNews::Saved(saved)).await?;
        let more = self.qemus.more_channels.get();
        self.channels(0, more).await?;
        let progress = MigrationProgress { total_bytes: 64 << 20, ..MigrationProgress::default() };
        self.side.tell(VmNews::Progress(Box::new(progress))).await?;
        if let Some(order) = self.pass("precopy").await? {
            return Ok(Some(order));
        }
        self.qemus.set(&self.qemu, "finish-migrate");
        if !paused {
            self.side.tell(VmNews::Stopped { at_unix_us: 1_000_000 }).await?;
        }
        if let Some(order) = self.pass("stopped").await? {
            return Ok(Some(order));
        }
        self.qemus.stopped.set(true);
        // Before the sink's own failure is known QEMU hears of one over its return path.
        if let Some(order) = self.pass("sibling").await? {
            return Ok(Some(order));
        }
        if let Next::Ordered(order) = self.until(Qemus::loaded).await? {
            return Ok(Some(order));
        }
        self.qemus.set(&self.qemu, "postmigrate");
        if let Some(order) = self.pass("completed").await? {
            return Ok(Some(order));
        }
        self.side.tell(VmNews::Completed).await?;
        Ok(None)
    }

    async fn sink(mut self) -> Result<(), Dropped> {
        self.side.tell(VmNews::Facts(Box::new(facts(&self.qemu)))).await?;
        let mut order = self.order().await?;
        if let VmOrder::Prepare { .. } = order {
            order = self.load().await?;
        }
        while let VmOrder::Connect { channel } = order {
            self.channels(channel, channel).await?;
            order = self.order().await?;
        }
        if let VmOrder::Resume = order {
            // No order follows this one: what ends the wait early is a core that is gone.
            if let Next::Ordered(_) =
                self.until(|qemus| !qemus.held.borrow().contains("resume")).await?
            {
                return Ok(());
            }
            if self.qemus.failing.borrow().contains("resume") {
                let run_state = (*self.qemu.run_state.borrow()).to_owned();
                self.side.tell(VmNews::Failed(VmError::NotResumed { run_state })).await?;
                return self.side.tell(VmNews::Ended { guest: GuestState::Paused }).await;
            }
            assert!(self.qemu.loaded.get(), "nothing was loaded that could run");
            self.qemus.set(&self.qemu, "running");
            self.side.tell(VmNews::Resumed { at_unix_us: 1_250_000 }).await?;
            return self.side.tell(VmNews::Ended { guest: GuestState::Running }).await;
        }
        if let VmOrder::LeavePaused = order {
            if let Next::Ordered(_) =
                self.until(|qemus| !qemus.held.borrow().contains("leave")).await?
            {
                return Ok(());
            }
            assert!(self.qemu.loaded.get(), "nothing was loaded that could be left");
            return self.side.tell(VmNews::Ended { guest: GuestState::Paused }).await;
        }
        self.qemu.loaded.set(false);
        self.qemus.set(&self.qemu, "spent");
        self.side.tell(VmNews::Ended { guest: GuestState::Empty }).await
    }

    /// Listens and loads; returns the first order that is about something else.
    async fn load(&mut self) -> Result<VmOrder, Dropped> {
        if let Some(order) = self.pass("prepare").await? {
            return Ok(order);
        }
        self.channels(0, 0).await?;
        self.side.tell(VmNews::Prepared).await?;
        loop {
            match self.until(|qemus| qemus.stopped.get()).await? {
                Next::Ordered(VmOrder::Connect { channel }) => {
                    self.channels(channel, channel).await?;
                }
                Next::Ordered(order) => return Ok(order),
                Next::Reached => break,
            }
        }
        if let Some(order) = self.pass("load").await? {
            return Ok(order);
        }
        self.qemu.loaded.set(true);
        self.qemus.set(&self.qemu, "paused");
        self.side.tell(VmNews::Loaded).await?;
        self.order().await
    }
}
