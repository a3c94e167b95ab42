//! The table of settings: the one place that names them, their ranges and their defaults.
//!
//! Constant data. Flags, the configuration file, `--help`, `dwcp config` and the manual's table
//! are all made from it.

use super::value::{GIB, Kind, MIB, Value};
use dwcp_codec::policy::ZSTD_LEVEL_MAX;
use dwcp_ffi::arena::ARENA_BYTES_MAX;
use std::time::Duration;

/// Who takes a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// `dwcp daemon` alone.
    Daemon,
    /// `dwcp daemon` and every command that talks to it.
    Everyone,
}

/// The heading under which `--help` shows a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    /// Files, addresses and trust.
    Places,
    /// Threads and cores.
    Threads,
    /// Memory.
    Memory,
    /// Links and their streams.
    Links,
    /// What sessions do.
    Sessions,
    /// Logging and tests.
    Diagnosis,
}

/// One setting.
#[derive(Debug)]
pub(crate) struct Setting {
    /// Its name: the flag without the dashes, and the key in the file.
    pub(crate) name: &'static str,
    /// What values it takes.
    pub(crate) kind: Kind,
    /// Its value when nothing is given; empty for none.
    pub(crate) default: &'static str,
    /// Whether `dwcp config set` changes it while the daemon runs.
    pub(crate) live: bool,
    /// Who takes it.
    pub(crate) scope: Scope,
    /// Its heading.
    pub(crate) group: Group,
    /// Left out of `--help` and the manual.
    pub(crate) hidden: bool,
    /// What it does, in one or two sentences.
    pub(crate) help: &'static str,
}

impl Group {
    /// The heading's text.
    pub(crate) const fn title(self) -> &'static str {
        match self {
            Self::Places => "Files, addresses and trust",
            Self::Threads => "Threads and cores",
            Self::Memory => "Memory",
            Self::Links => "Links",
            Self::Sessions => "Sessions",
            Self::Diagnosis => "Diagnosis",
        }
    }
}

/// The most shards, and so the most cores, of one daemon.
pub(crate) const SHARDS_MAX: usize = 64;

const fn daemon(name: &'static str, group: Group, kind: Kind, help: &'static str) -> Setting {
    Setting {
        name,
        kind,
        default: "",
        live: false,
        scope: Scope::Daemon,
        group,
        hidden: false,
        help,
    }
}

impl Setting {
    const fn default(mut self, text: &'static str) -> Self {
        self.default = text;
        self
    }

    const fn live(mut self) -> Self {
        self.live = true;
        self
    }

    const fn hidden(mut self) -> Self {
        self.hidden = true;
        self
    }

    const fn everyone(mut self) -> Self {
        self.scope = Scope::Everyone;
        self
    }

    /// The value when nobody gives one.
    ///
    /// # Panics
    /// When the table's default is no value of its kind: a bug that a test finds.
    pub(crate) fn default_value(&self) -> Value {
        match (self.default, self.kind) {
            ("", Kind::Switch) => Value::Switch(false),
            ("", _) => Value::Unset,
            (text, kind) => kind
                .parse(text)
                .unwrap_or_else(|error| panic!("the default of {}: {error}", self.name)),
        }
    }
}

/// All settings, in the order of `--help`.
pub(crate) const SETTINGS: &[Setting] = &[
    daemon(
        "socket",
        Group::Places,
        Kind::Path,
        "Unix socket of the control interface. Made with mode 0660; a live daemon's socket is \
         never taken over.",
    )
    .default("/run/dwcp.sock")
    .everyone(),
    daemon(
        "listen",
        Group::Places,
        Kind::Address,
        "Address on which peers reach this daemon: control channel and data streams.",
    )
    .default("0.0.0.0:7411"),
    daemon(
        "pki",
        Group::Places,
        Kind::Path,
        "Folder with ca.pem, host.pem, host.key and revoked.pem, as made by 'dwcp pki host'.",
    ),
    daemon(
        "insecure-plaintext",
        Group::Places,
        Kind::Switch,
        "Run without certificates and encryption. For comparisons on a test network only; \
         excludes --pki.",
    )
    .default("off"),
    daemon(
        "state",
        Group::Places,
        Kind::Path,
        "Folder of the journals that say who may run a guest. Must survive a restart.",
    )
    .default("/var/lib/dwcp"),
    daemon(
        "store-bytes",
        Group::Places,
        Kind::Bytes { min: 0, max: 1 << 50, auto: false },
        "The most bytes of guests' memory that are kept in the folder store of --state, sealed by \
         the host's key, so that a guest that comes back costs what it has changed. 0: nothing is \
         kept. Needs --pki.",
    )
    .default("4GiB"),
    daemon(
        "store-ttl",
        Group::Places,
        Kind::Time { min: Duration::from_secs(60), max: Duration::from_secs(366 * 86_400) },
        "What is kept of a guest and was of no use for so long is removed.",
    )
    .default("168h"),
    daemon(
        "metrics",
        Group::Places,
        Kind::Address,
        "Address that serves Prometheus metrics over HTTP. Without it there are none.",
    ),
    daemon(
        "cores",
        Group::Threads,
        Kind::Cores { max: SHARDS_MAX },
        "Cores for the data plane, one pinned shard each. Without it one shard runs unpinned.",
    ),
    daemon(
        "poll",
        Group::Threads,
        Kind::Choice(&["busy", "adaptive", "park"]),
        "How a shard waits: busy never sleeps, adaptive spins for --spin and then sleeps, park \
         sleeps at once.",
    )
    .default("adaptive"),
    daemon(
        "spin",
        Group::Threads,
        Kind::Time { min: Duration::from_micros(1), max: Duration::from_millis(10) },
        "How long an idle shard spins before it sleeps, with --poll adaptive.",
    )
    .default("50us"),
    daemon(
        "memory",
        Group::Memory,
        Kind::Bytes { min: 64 * MIB, max: 1 << 40, auto: false },
        "All memory that the daemon may use: arenas, socket buffers, page tables and bases. \
         Regions belong to their owners and don't count.",
    )
    .default("1GiB"),
    daemon(
        "arena",
        Group::Memory,
        Kind::Bytes { min: 4 * MIB, max: ARENA_BYTES_MAX as u64, auto: true },
        "Buffers of each shard. auto takes 48MiB to send and 264KiB for each stream that may come, \
         or less where --memory asks for it (with --lock-memory require also the limit of locked \
         memory).",
    )
    .default("auto"),
    daemon(
        "lock-memory",
        Group::Memory,
        Kind::Choice(&["try", "require", "off"]),
        "Lock the arenas in memory and register them with the kernel: try goes on without when \
         the limit of locked memory forbids it (every send is copied then), require refuses to \
         start.",
    )
    .default("try"),
    daemon(
        "base-budget",
        Group::Memory,
        Kind::Share { max: 1 << 40 },
        "Memory of a session for page versions that later rounds are coded against: a share of \
         what --memory leaves for sessions, or a size.",
    )
    .default("50%")
    .live(),
    daemon(
        "streams",
        Group::Links,
        Kind::Count { min: 1, max: 64, auto: true },
        "TCP connections of a link that this daemon opens. With auto they are 4 at first, and it \
         finds out how many of them carry pages, and whether more help.",
    )
    .default("auto"),
    daemon(
        "congestion",
        Group::Links,
        Kind::Choice(&["auto", "bbr", "cubic"]),
        "Congestion control of a link's streams. auto takes BBR where the kernel offers it, else \
         cubic; one that the kernel does not offer leaves a stream with the system's.",
    )
    .default("auto"),
    daemon(
        "window",
        Group::Links,
        Kind::Bytes { min: MIB, max: GIB, auto: false },
        "The most bytes in flight on one link. Give at least twice the link's rate times its \
         round trip: 64MiB fills 2.5 Gbit/s at 100 ms.",
    )
    .default("64MiB"),
    daemon(
        "links-max",
        Group::Links,
        Kind::Count { min: 1, max: 64, auto: false },
        "The most links at a time, to and from peers together.",
    )
    .default("4"),
    daemon(
        "zero-copy",
        Group::Links,
        Kind::Choice(&["auto", "off"]),
        "Send large frames without a copy while the kernel reports that it really makes none.",
    )
    .default("auto"),
    daemon(
        "keepalive",
        Group::Links,
        Kind::Time { min: Duration::from_millis(100), max: Duration::from_secs(60) },
        "How often an idle control channel is probed.",
    )
    .default("1s")
    .live(),
    daemon(
        "dead-after",
        Group::Links,
        Kind::Time { min: Duration::from_millis(500), max: Duration::from_secs(600) },
        "A link that stays silent for so long is dead. At least three times --keepalive.",
    )
    .default("30s")
    .live(),
    daemon(
        "resume-window",
        Group::Links,
        Kind::Time { min: Duration::ZERO, max: Duration::from_secs(86_400) },
        "How long sessions wait for a lost link to come back while the guest, or the writer of a \
         region, runs. 0s: not at all.",
    )
    .default("10min")
    .live(),
    daemon(
        "blackout-max",
        Group::Links,
        Kind::Time { min: Duration::from_millis(100), max: Duration::from_secs(600) },
        "How long a guest, or a region's owner, that stands still for its last round waits for a \
         link that says nothing; then it runs on at the source.",
    )
    .default("2s")
    .live(),
    daemon(
        "drain-timeout",
        Group::Sessions,
        Kind::Time { min: Duration::ZERO, max: Duration::from_secs(86_400) },
        "How long sessions that are under way may go on after SIGTERM, while no other begins. A \
         second SIGTERM, or SIGINT, ends them at once.",
    )
    .default("1min")
    .live(),
    daemon(
        "accept-timeout",
        Group::Links,
        Kind::Time { min: Duration::from_millis(100), max: Duration::from_secs(60) },
        "How long a peer may take to connect, prove its name and open its streams.",
    )
    .default("10s"),
    daemon(
        "sessions-max",
        Group::Sessions,
        Kind::Count { min: 1, max: 256, auto: false },
        "The most sessions at a time, as source and as sink together.",
    )
    .default("16"),
    daemon(
        "zstd-level",
        Group::Sessions,
        Kind::Count { min: 1, max: ZSTD_LEVEL_MAX as u64, auto: true },
        "Compression level of new sessions that name none themselves. With auto the streams of \
         virtual machines are compressed as hard as the link leaves a core time for, and regions \
         at level 1.",
    )
    .default("auto")
    .live(),
    daemon(
        "log",
        Group::Diagnosis,
        Kind::Choice(&["error", "warn", "info", "debug", "trace"]),
        "How much the daemon writes to standard error.",
    )
    .default("info")
    .live(),
    daemon(
        "test-break-invariant",
        Group::Diagnosis,
        Kind::Switch,
        "Break an invariant of the first shard on purpose as soon as a session opens.",
    )
    .default("off")
    .hidden(),
];
