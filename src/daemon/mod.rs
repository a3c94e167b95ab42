//! `dwcp daemon`: from settings to running threads.
//!
//! The main thread checks everything, starts the shards, and becomes the control thread. Nothing is
//! started before the whole configuration and the budget are right. Signals are the control
//! thread's; a panic on any thread ends the process with a diagnosis ([`mod@panic`]).

mod error;
mod log;
mod panic;
mod settings_port;

pub(crate) use error::DaemonError;
pub(crate) use settings_port::LiveTable;

use crate::budget::{Budget, Machine};
use crate::commands::print;
use crate::config::{self, DaemonConfig, LockMemory, Poll, Trust};
use crate::exit::Exit;
use crate::failure::Failure;
use clap::ArgMatches;
use dwcp_control::{
    ControlConfig, DaemonFacts, KernelFact, PeerSecurity, PeerTimeouts, STORE_INDEX_BYTES_PER_PAGE,
    SocketConfig, StoreConfig,
};
use dwcp_dataplane::port::ShardPort;
use dwcp_dataplane::shard::{self, PollMode, ShardConfig};
use dwcp_ffi::memory::{Caretaker, PagePool};
use dwcp_ffi::poll::{Waker, waker};
use dwcp_ffi::sys;
use dwcp_ffi::uring::Probe;
use log::LogLevel;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long shards may take to drain their rings when the daemon ends.
const STOP_WITHIN: Duration = Duration::from_secs(5);
/// How often an ending shard is looked at.
const STOP_LOOK: Duration = Duration::from_millis(5);

/// Runs the daemon until a signal or a fault ends it; with `--check` only checks.
pub(crate) fn run(matches: &ArgMatches) -> Result<Exit, Failure> {
    let file = matches.get_one::<PathBuf>("config");
    let (config, values) = config::load(matches, file.map(PathBuf::as_path))?;
    let budget = Budget::compute(&config, &Machine::look())?;
    if matches.get_flag("check") {
        let facts = budget.facts();
        let lines = facts.iter().map(|fact| format!("{:30} {}\n", fact.name, fact.amount));
        print(&(lines.collect::<String>() + "the settings are right and the budget fits\n"))?;
        return Ok(Exit::Done);
    }
    let (probe, log) = prepare(&config, &budget)?;
    let (wake_control, woken) = waker().map_err(DaemonError::Waker)?;
    let pages = page_pool(&budget)?;
    let caretaker = Caretaker::start(&pages, &config.cores).map_err(DaemonError::Caretaker)?;
    let (ports, threads) = start_shards(&config, &budget, &pages, &wake_control)?;
    let control = control_config(&config, &budget, &pages, &probe);
    let settings = LiveTable::new(values, &config, budget, log);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        socket = %config.socket.display(),
        listen = %config.listen,
        shards = ports.len(),
        "starting"
    );
    dwcp_control::run(control, Box::new(settings), ports, woken)
        .map_err(|source| DaemonError::Control { source })?;
    join(threads);
    drop(caretaker);
    tracing::info!("ended");
    Ok(Exit::Done)
}

/// What the process needs before its threads start: diagnosis, log, limits, a kernel that will do.
pub(crate) fn prepare(
    config: &DaemonConfig,
    budget: &Budget,
) -> Result<(Probe, LogLevel), DaemonError> {
    panic::install();
    let log = log::start(config.log);
    sys::forbid_core_dumps().map_err(DaemonError::CoreDumps)?;
    sys::raise_nofile(budget.descriptors).map_err(DaemonError::Descriptors)?;
    let probe = Probe::run().map_err(DaemonError::Uring)?;
    probe.require().map_err(DaemonError::Uring)?;
    Ok((probe, log))
}

/// What all sessions take the memory of their page versions from: address space alone.
pub(crate) fn page_pool(budget: &Budget) -> Result<PagePool, DaemonError> {
    PagePool::new(budget.pool_bytes).map_err(DaemonError::Pages)
}

/// Starts every shard on a thread of its own.
pub(crate) fn start_shards(
    config: &DaemonConfig,
    budget: &Budget,
    pages: &PagePool,
    wake_control: &Waker,
) -> Result<(Vec<ShardPort>, Vec<JoinHandle<()>>), DaemonError> {
    let mut ports = Vec::with_capacity(budget.shards);
    let mut threads = Vec::with_capacity(budget.shards);
    if config.lock_memory == LockMemory::Try && !budget.lock_memory {
        tracing::warn!(
            arena_bytes = budget.arena_bytes,
            limit_bytes = sys::memlock_limit(),
            "the limit of locked memory is too low: the arenas are neither locked nor registered"
        );
    }
    for index in 0..budget.shards {
        let shard = shard_config(config, budget, pages, index);
        let mut started = shard::spawn(shard.clone(), wake_control.clone());
        if let (Err(error), LockMemory::Try, true) =
            (&started, config.lock_memory, shard.lock_memory)
        {
            tracing::warn!(
                shard = index,
                %error,
                "the arena is neither locked nor registered: every send is copied"
            );
            let unlocked = ShardConfig { lock_memory: false, ..shard };
            started = shard::spawn(unlocked, wake_control.clone());
        }
        let (port, thread) = started.map_err(|source| DaemonError::Shard { index, source })?;
        ports.push(port);
        threads.push(thread);
    }
    Ok((ports, threads))
}

fn shard_config(
    config: &DaemonConfig,
    budget: &Budget,
    pages: &PagePool,
    index: usize,
) -> ShardConfig {
    ShardConfig {
        index,
        core: config.cores.get(index).copied(),
        poll: match config.poll {
            Poll::Busy => PollMode::Busy,
            Poll::Adaptive { spin } => PollMode::Adaptive { spin },
            Poll::Park => PollMode::Park,
        },
        send_slots: budget.send_slots,
        lock_memory: budget.lock_memory,
        zero_copy: config.zero_copy,
        sessions_max: usize::from(config.sessions_max),
        streams_max: budget.streams_per_shard,
        links_max: usize::from(config.links_max),
        pages: pages.clone(),
    }
}

/// What the control thread is told.
pub(crate) fn control_config(
    config: &DaemonConfig,
    budget: &Budget,
    pages: &PagePool,
    probe: &Probe,
) -> ControlConfig {
    ControlConfig {
        socket: Some(SocketConfig::new(config.socket.clone())),
        listen: Some(config.listen),
        security: match &config.trust {
            Trust::Pki(pki_dir) => PeerSecurity::Mutual { pki_dir: pki_dir.clone() },
            Trust::InsecurePlaintext => {
                PeerSecurity::InsecurePlaintext { host_name: machine_name() }
            }
        },
        state_dir: Some(config.state.clone()),
        store: (budget.store_bytes > 0).then_some(StoreConfig {
            bytes_max: config.store_bytes,
            pages_max: budget.store_bytes / STORE_INDEX_BYTES_PER_PAGE,
            ttl: config.store_ttl,
        }),
        metrics: config.metrics,
        memory: budget.for_control(),
        pages: pages.clone(),
        links_max: usize::from(config.links_max),
        streams_per_link_max: u16::try_from(
            budget.streams_per_shard / usize::from(config.links_max) * budget.shards,
        )
        .unwrap_or(u16::MAX),
        timeouts: PeerTimeouts {
            dial: config.accept_timeout,
            handshake: config.accept_timeout,
            preface: config.accept_timeout,
            ..PeerTimeouts::default()
        },
        facts: DaemonFacts {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            kernel: kernel_facts(config, probe),
            budget: budget.facts(),
        },
        break_invariant: config.test_break_invariant,
    }
}

fn kernel_facts(config: &DaemonConfig, probe: &Probe) -> Vec<KernelFact> {
    let facts = probe.features().iter().map(|feature| {
        // What has a fallback serves zero copy alone.
        let off = !feature.required && !config.zero_copy;
        let detail = match (feature.present, off) {
            (true, false) => "the kernel has it".to_owned(),
            (true, true) => "--zero-copy is off".to_owned(),
            (false, _) => format!("Linux {} has it", feature.since),
        };
        KernelFact { name: feature.name.to_owned(), used: feature.present && !off, detail }
    });
    facts.collect()
}

/// What this machine calls itself, as far as a host name may be written.
fn machine_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let name: String = name.trim().chars().filter(plain).take(63).collect();
    if name.is_empty() { "unnamed".to_owned() } else { name }
}

/// Waits for the shards, which the control thread has told to stop, as long as it may take.
pub(crate) fn join(threads: Vec<JoinHandle<()>>) {
    let deadline = Instant::now() + STOP_WITHIN;
    for thread in threads {
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::park_timeout(STOP_LOOK);
        }
        if !thread.is_finished() {
            // Leaving is safe: the kernel cancels what the process has in flight.
            tracing::warn!("a shard did not stop in time");
        }
    }
}
