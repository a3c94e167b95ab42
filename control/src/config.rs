//! What the control thread is told at start: addresses, identities, limits and times.
//!
//! The binary's one table of settings builds this value and stays its owner; the control thread
//! reads settings back through [`SettingsPort`]. Nothing here does I/O.

use dwcp_dataplane::port::{Level, Spread};
use dwcp_ffi::memory::PagePool;
use serde::Serialize;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Everything that the control thread needs to know at start.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// The control socket; `None` for a process that nobody asks.
    pub socket: Option<SocketConfig>,
    /// Where peers connect; `None` for a daemon that only dials.
    pub listen: Option<SocketAddr>,
    /// How peers prove who they are.
    pub security: PeerSecurity,
    /// The directory of the journal; `None` for one in memory, of a process that commits nothing.
    pub state_dir: Option<PathBuf>,
    /// What is kept of guests that come and go; `None` for nothing.
    pub store: Option<StoreConfig>,
    /// Where Prometheus text is served, if at all.
    pub metrics: Option<SocketAddr>,
    /// Memory that sessions may reserve.
    pub memory: MemoryBudget,
    /// What they take the memory of their page versions from; the shards' own.
    pub pages: PagePool,
    /// Links at a time, in both directions together: what each shard has lanes for.
    pub links_max: usize,
    /// Streams of a link that the shards together have room for on each of their links.
    pub streams_per_link_max: u16,
    /// How long peers may take.
    pub timeouts: PeerTimeouts,
    /// What `daemon.info` says about this binary and this machine.
    pub facts: DaemonFacts,
    /// Test switch: `BreakInvariant` goes to the first shard when the daemon is up.
    pub break_invariant: bool,
}

/// What is kept of guests that come and go, in the directory `store` beside the journal.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The most bytes on disk.
    pub bytes_max: u64,
    /// The most pages: each takes [`STORE_INDEX_BYTES_PER_PAGE`](crate::STORE_INDEX_BYTES_PER_PAGE)
    /// of memory.
    pub pages_max: u64,
    /// How long what is of no use is kept.
    pub ttl: Duration,
}

/// The control socket and its limits.
#[derive(Clone, Debug)]
pub struct SocketConfig {
    /// The path of the Unix socket.
    pub path: PathBuf,
    /// Its permission bits.
    pub mode: u32,
    /// Its group, whose members may connect; `None` keeps the daemon's own group.
    pub group_id: Option<u32>,
    /// Clients at a time.
    pub clients_max: usize,
    /// Bytes of one request.
    pub request_bytes_max: usize,
}

impl SocketConfig {
    /// A socket at `path` with the default limits: mode 0660, 64 clients, requests of 1 MiB.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, mode: 0o660, group_id: None, clients_max: 64, request_bytes_max: 1 << 20 }
    }
}

/// How peers prove who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerSecurity {
    /// Mutual TLS 1.3 with the certificates of one directory: `ca.pem`, `host.pem`, `host.key` and,
    /// if it exists, `revoked.pem`.
    Mutual {
        /// The directory.
        pki_dir: PathBuf,
    },
    /// No proof and no secrecy, for comparisons alone.
    InsecurePlaintext {
        /// What this host calls itself.
        host_name: String,
    },
}

/// How long peers may take.
#[derive(Clone, Copy, Debug)]
pub struct PeerTimeouts {
    /// For a TCP connection to stand.
    pub dial: Duration,
    /// For TLS and HELLO.
    pub handshake: Duration,
    /// For the first bytes of a connection to the listener.
    pub preface: Duration,
    /// For the peer's answer to a request about a link or a session.
    pub answer: Duration,
}

impl Default for PeerTimeouts {
    fn default() -> Self {
        Self {
            dial: Duration::from_secs(5),
            handshake: Duration::from_secs(5),
            preface: Duration::from_secs(5),
            answer: Duration::from_secs(30),
        }
    }
}

/// Memory that all sessions together may reserve, and what one costs.
#[derive(Clone, Copy, Debug)]
pub struct MemoryBudget {
    /// For all sessions together.
    pub sessions_bytes: u64,
    /// Tables of a source session, per page of its region.
    pub source_bytes_per_page: u64,
    /// Tables of a sink session, per page of its region.
    pub sink_bytes_per_page: u64,
}

/// The congestion control of a link's streams at the end that dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Congestion {
    /// BBR where the kernel offers it, else cubic: BBR takes a lost packet for no sign of a full
    /// path, which on long paths most of them are not.
    Auto,
    /// BBR.
    Bbr,
    /// Cubic.
    Cubic,
}

impl Congestion {
    /// The kernel's names, the best first.
    #[must_use]
    pub const fn names(self) -> &'static [&'static str] {
        match self {
            Self::Auto => &["bbr", "cubic"],
            Self::Bbr => &["bbr"],
            Self::Cubic => &["cubic"],
        }
    }
}

/// The settings that may change while the daemon runs. They hold for links and sessions that open
/// after the change; keepalive, resume window and blackout hold at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveSettings {
    /// Data streams of a new link.
    pub streams: u16,
    /// Which of them carry pages.
    pub spread: Spread,
    /// The congestion control of streams that come up.
    pub congestion: Congestion,
    /// Bytes in flight on a new link, all lanes together.
    pub window_bytes_max: u64,
    /// Page versions that a new session keeps as bases, all lanes together.
    pub base_pages_max: u64,
    /// The zstd level of sessions that name none. Pages of regions are coded at the lowest level
    /// when it is to be chosen.
    pub zstd_level: Level,
    /// How often an idle control channel is tested.
    pub peer_ping_every: Duration,
    /// Silence after which a peer counts as gone. A peer that is only stopped for a while must
    /// not lose its sessions, so this is much longer than the ping's period.
    pub peer_dead_after: Duration,
    /// How long the sessions of a lost link wait for another connection; zero: not at all.
    pub resume_window: Duration,
    /// How long a guest stands still before the commit while nothing is heard of its peer.
    pub blackout_max: Duration,
    /// How long sessions go on after SIGTERM; zero: not at all.
    pub drain_timeout: Duration,
}

impl Default for LiveSettings {
    fn default() -> Self {
        Self {
            streams: 4,
            spread: Spread::AsNeeded,
            congestion: Congestion::Auto,
            window_bytes_max: 64 << 20,
            base_pages_max: 16 << 10,
            zstd_level: Level::Auto,
            peer_ping_every: Duration::from_secs(1),
            peer_dead_after: Duration::from_secs(30),
            resume_window: Duration::from_secs(600),
            blackout_max: Duration::from_secs(2),
            drain_timeout: Duration::from_secs(60),
        }
    }
}

/// One setting as `config.get` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct SettingView {
    /// Its name.
    pub name: String,
    /// Its value now.
    pub value: serde_json::Value,
    /// The unit of the value, or empty.
    pub unit: String,
    /// Its value when nobody sets it.
    pub default: serde_json::Value,
    /// Whether `config.set` may change it.
    pub live: bool,
    /// Who set it: `default`, `file`, `flag` or `config.set`.
    pub from: String,
}

/// Why a setting did not change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingRefused {
    /// There is no such setting.
    #[error("there is no setting named {name}")]
    Unknown {
        /// The name that was asked for.
        name: String,
    },
    /// The setting is fixed at start.
    #[error("{name} can be set at start only")]
    Fixed {
        /// The setting.
        name: String,
    },
    /// The value is of the wrong type or out of range.
    #[error("{name} takes {expected}")]
    Invalid {
        /// The setting.
        name: String,
        /// What it takes, with its range and unit.
        expected: String,
    },
}

/// The binary's one table of settings, as the control thread sees it. Called on the control thread.
pub trait SettingsPort {
    /// Every setting.
    fn list(&self) -> Vec<SettingView>;

    /// Changes a live setting.
    ///
    /// # Errors
    /// The setting is unknown or fixed, or the value is not allowed. Nothing changed then.
    fn set(&mut self, name: &str, value: &serde_json::Value)
    -> Result<SettingView, SettingRefused>;

    /// The live settings as they are now.
    fn live(&self) -> LiveSettings;
}

/// What `daemon.info` says about this binary and this machine.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DaemonFacts {
    /// The binary's version.
    pub version: String,
    /// Kernel features: used, or why not.
    pub kernel: Vec<KernelFact>,
    /// The budget computed at start.
    pub budget: Vec<BudgetFact>,
}

/// A kernel feature and what became of it.
#[derive(Clone, Debug, Serialize)]
pub struct KernelFact {
    /// The feature.
    pub name: String,
    /// Whether it is used.
    pub used: bool,
    /// Why, or why not.
    pub detail: String,
}

/// A size that was fixed at start.
#[derive(Clone, Debug, Serialize)]
pub struct BudgetFact {
    /// What it is for, unit last.
    pub name: String,
    /// The amount.
    pub amount: u64,
}
