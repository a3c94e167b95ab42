//! The loop of the control thread: start, inputs one at a time, orderly stop.
//!
//! Everything that can be missing or taken is asked for before the first input, so that a daemon
//! either serves or says in one line why it can't.

use super::core::{Core, CoreParts, Counters};
use super::shards::Shards;
use super::vm_host::{QemuHost, VmHost};
use super::vms::Probed;
use crate::api::{ApiInput, ApiServer};
use crate::carry::CarryInput;
use crate::config::{ControlConfig, PeerSecurity, SettingsPort};
use crate::error::ControlError;
use crate::kept::{Keeper, KeptNews};
use crate::limits::{CARRY_QUEUE, INPUT_QUEUE, METRICS_CLIENTS_MAX, STOP_TIMEOUT, TICK};
use crate::network::metrics::{MetricsServer, Scrape};
use crate::peer::{Gate, Identity, Listener, PeerInput, host_key, random};
use crate::state::{Journal, JournalDone};
use crate::vm::VmReport;
use dwcp_dataplane::port::ShardPort;
use dwcp_ffi::poll::WakeReceiver;
use dwcp_proto::wire::token::JournalId;
use dwcp_store::{StoreKey, StoreLimits};
use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

/// Runs the control plane on the calling thread until SIGTERM or SIGINT, or until a shard is lost.
/// The shards are told to stop before it returns; joining their threads is the caller's part.
///
/// # Errors
/// Something that it needs is missing or taken, or a shard ended by itself.
pub fn run(
    config: ControlConfig,
    settings: Box<dyn SettingsPort>,
    shards: Vec<ShardPort>,
    wake: WakeReceiver,
) -> Result<(), ControlError> {
    on_this_thread(async move {
        let mut ends = Inputs::open(wake)?;
        let host = Box::new(QemuHost(ends.vms.0.clone()));
        let mut core = start(config, settings, shards, host, &mut ends).await?;
        let outcome = ends.serve(&mut core).await;
        ends.stop(&mut core).await;
        outcome
    })
}

/// Does the control thread's work on the calling thread, which it never leaves.
pub(super) fn on_this_thread(
    work: impl Future<Output = Result<(), ControlError>>,
) -> Result<(), ControlError> {
    let failed = |source| ControlError::Runtime { source };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    tokio::task::LocalSet::new().block_on(&runtime, work)
}

/// The receiving ends of everything that tells the core something.
pub(super) struct Inputs {
    wake: WakeReceiver,
    /// A second descriptor of the same eventfd, for the runtime to watch.
    woken: AsyncFd<OwnedFd>,
    /// The last turn left events behind.
    more: bool,
    terminate: Signal,
    interrupt: Signal,
    api: (mpsc::Sender<ApiInput>, mpsc::Receiver<ApiInput>),
    peers: (mpsc::Sender<PeerInput>, mpsc::Receiver<PeerInput>),
    scrapes: (mpsc::Sender<Scrape>, mpsc::Receiver<Scrape>),
    pub(super) vms: (mpsc::Sender<VmReport>, mpsc::Receiver<VmReport>),
    probes: (mpsc::Sender<Probed>, mpsc::Receiver<Probed>),
    pub(super) carry: (mpsc::Sender<CarryInput>, mpsc::Receiver<CarryInput>),
    journal: Option<mpsc::Receiver<JournalDone>>,
    pub(super) kept: Option<mpsc::Receiver<KeptNews>>,
}

/// What connections to the peer port need.
fn gate(
    config: &ControlConfig,
    identity: &Identity,
    counters: &Counters,
    inputs: mpsc::Sender<PeerInput>,
) -> Gate {
    Gate {
        identity: identity.clone(),
        timeouts: config.timeouts,
        refused: counters.refused.clone(),
        accept_failures: counters.accept_failures.clone(),
        inputs,
    }
}

/// Takes sockets, files and ports, and starts the tasks that serve them.
pub(super) async fn start(
    config: ControlConfig,
    settings: Box<dyn SettingsPort>,
    ports: Vec<ShardPort>,
    vm_host: Box<dyn VmHost>,
    ends: &mut Inputs,
) -> Result<Core, ControlError> {
    if ports.is_empty() {
        return Err(ControlError::NoShards);
    }
    let counters = Counters::default();
    let identity = identity(&config)?;
    let fresh = JournalId(random());
    let (journal, reports, stored) = match &config.state_dir {
        Some(directory) => Journal::open(directory, fresh)?,
        None => Journal::in_memory(fresh)?,
    };
    ends.journal = Some(reports);
    let keeper = keeper(&config, ends)?;
    let listener = match config.listen {
        Some(address) => Some(Listener::bind(address).await?),
        None => None,
    };
    let listen = listener.as_ref().and_then(|listener| listener.address().ok());
    let metrics = match config.metrics {
        Some(address) => Some(MetricsServer::bind(address).await?),
        None => None,
    };
    // Last, so that a daemon whose socket is there is one that works.
    let api = match config.socket.clone() {
        Some(socket) => Some(ApiServer::bind(socket, counters.api.clone())?),
        None => None,
    };
    tracing::info!(
        listen = listen.map(tracing::field::display),
        host = identity.host_name(),
        "control plane up"
    );
    if let Some(listener) = listener {
        let gate = gate(&config, &identity, &counters, ends.peers.0.clone());
        tokio::task::spawn_local(listener.serve(gate));
    }
    if let Some(metrics) = metrics {
        tokio::task::spawn_local(
            metrics.serve(ends.scrapes.0.clone(), counters.accept_failures.clone()),
        );
    }
    if let Some(api) = api {
        tokio::task::spawn_local(api.serve(ends.api.0.clone(), counters.accept_failures.clone()));
    }
    let live = Rc::new(Cell::new(settings.live()));
    let peers = ends.peers.0.clone();
    let core = Core::new(CoreParts {
        config,
        settings,
        live,
        identity,
        listen,
        shards: Shards::new(ports),
        journal,
        stored,
        vm_host,
        keeper,
        probes: ends.probes.0.clone(),
        peers,
        counters,
    });
    Ok(core)
}

/// Opens the store of what guests leave, where there is to be one. It is sealed by the host's own
/// key, so a host without one keeps nothing.
fn keeper(config: &ControlConfig, ends: &mut Inputs) -> Result<Option<Keeper>, ControlError> {
    let PeerSecurity::Mutual { pki_dir } = &config.security else { return Ok(None) };
    let (Some(store), Some(state_dir)) = (&config.store, &config.state_dir) else {
        return Ok(None);
    };
    let key = StoreKey::derive(host_key(pki_dir)?.secret_der());
    let limits =
        StoreLimits { bytes_max: store.bytes_max, pages_max: store.pages_max, ttl: store.ttl };
    let (keeper, news, report) =
        Keeper::open(&state_dir.join("store"), key, limits, config.pages.clone())?;
    for file in &report.unusable {
        tracing::warn!(file = %file.path.display(), reason = %file.reason, "the store");
    }
    tracing::info!(segments = report.segments, "the store of what guests leave is open");
    ends.kept = Some(news);
    Ok(Some(keeper))
}

/// Who this host is, and how many streams of a link it takes.
fn identity(config: &ControlConfig) -> Result<Identity, ControlError> {
    let identity = Identity::load(&config.security, random())?;
    Ok(identity.with_streams_max(config.streams_per_link_max))
}

impl Inputs {
    pub(super) fn open(wake: WakeReceiver) -> Result<Self, ControlError> {
        let failed = |source| ControlError::Runtime { source };
        let woken = wake.as_fd().try_clone_to_owned().map_err(failed)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe; an OwnedFd is open as long as it is"
        )]
        let woken = AsyncFd::new(woken).map_err(failed)?;
        Ok(Self {
            wake,
            woken,
            more: false,
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            api: mpsc::channel(INPUT_QUEUE),
            peers: mpsc::channel(INPUT_QUEUE),
            scrapes: mpsc::channel(METRICS_CLIENTS_MAX),
            vms: mpsc::channel(INPUT_QUEUE),
            probes: mpsc::channel(INPUT_QUEUE),
            carry: mpsc::channel(CARRY_QUEUE),
            journal: None,
            kept: None,
        })
    }

    /// Feeds the core until it is told to stop.
    pub(super) async fn serve(&mut self, core: &mut Core) -> Result<(), ControlError> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => core.on_tick(),
                input = self.next() => {
                    let stop = match input {
                        Input::Stop => !core.leave(),
                        Input::Drain => !core.drain(),
                        _ => false,
                    };
                    if stop {
                        return Ok(());
                    }
                    self.more = input.feed(core);
                }
            }
            if core.is_drained() {
                return Ok(());
            }
            if let Some(shard) = core.shards().first_lost() {
                return Err(ControlError::ShardLost { shard });
            }
        }
    }

    /// The next input, whatever it is.
    async fn next(&mut self) -> Input {
        let journal = async {
            match &mut self.journal {
                Some(reports) => reports.recv().await,
                None => std::future::pending().await,
            }
        };
        let kept = async {
            match &mut self.kept {
                Some(news) => news.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => Input::Drain,
            _ = self.interrupt.recv() => Input::Stop,
            Ok(mut ready) = self.woken.readable() => {
                ready.clear_ready();
                self.wake.drain();
                Input::Wake
            }
            () = tokio::task::yield_now(), if self.more => Input::Wake,
            Some(done) = journal => Input::Journal(done),
            Some(news) = kept => Input::Kept(Box::new(news)),
            Some(report) = self.vms.1.recv() => Input::Vm(Box::new(report)),
            Some(probed) = self.probes.1.recv() => Input::Probed(Box::new(probed)),
            Some(input) = self.carry.1.recv() => Input::Carry(input),
            Some(input) = self.peers.1.recv() => Input::Peer(Box::new(input)),
            Some(input) = self.api.1.recv() => Input::Api(input),
            Some(scrape) = self.scrapes.1.recv() => Input::Scrape(scrape),
            else => std::future::pending().await,
        }
    }

    /// Ends sessions, links and shards in this order, each as far as it gets in time.
    pub(super) async fn stop(&mut self, core: &mut Core) {
        tracing::info!("stopping");
        core.begin_stop();
        let deadline = Instant::now() + STOP_TIMEOUT;
        while !(core.vms_are_settled() && core.journal_is_idle() && core.shards().all_stopped()) {
            match timeout_at(deadline, self.next()).await {
                Ok(input) => self.more = input.feed(core),
                Err(_) => {
                    tracing::warn!("the journal, a shard or a guest was not done in time");
                    break;
                }
            }
        }
    }
}

/// One input of the core.
enum Input {
    /// SIGINT: everything is ended in order, now.
    Stop,
    /// SIGTERM: what is under way may finish first.
    Drain,
    Wake,
    Journal(JournalDone),
    Kept(Box<KeptNews>),
    Peer(Box<PeerInput>),
    Vm(Box<VmReport>),
    Probed(Box<Probed>),
    Carry(CarryInput),
    Api(ApiInput),
    Scrape(Scrape),
}

impl Input {
    /// Feeds the core; true if shards have more events than one turn takes.
    fn feed(self, core: &mut Core) -> bool {
        match self {
            // The loop has acted on it; while stopping a signal changes nothing.
            Self::Stop | Self::Drain => {}
            Self::Wake => return core.on_wake(),
            Self::Journal(done) => core.on_journal(done),
            Self::Kept(news) => core.on_kept(*news),
            Self::Carry(input) => {
                // Which session a new connection belongs to depends on which channels have ended.
                let more = core.on_wake();
                core.on_carry(input);
                return more;
            }
            Self::Peer(input) => core.on_peer(*input),
            Self::Vm(report) => core.on_vm(*report),
            Self::Probed(probed) => core.on_probed(*probed),
            Self::Api(input) => core.on_api(input),
            // A scraper that hung up needs no text.
            Self::Scrape(Scrape(reply)) => drop(reply.send(core.metrics())),
        }
        false
    }
}
