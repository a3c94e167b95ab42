//! The daemon's configuration as types that can't be wrong.
//!
//! Made once at start from the gathered values; relations between settings are checked here.
//! Read by the budget and the assembly.

use super::problem::{Place, Problem, ProblemKind};
use super::{Origin, Values};
use crate::settings::value::show_time;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// `sun_path` has 108 bytes, one of them for the final zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// A link is dead after so many missed probes at the least.
const KEEPALIVES_PER_DEATH: u32 = 3;

/// By what peers are believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// The certificates in this folder.
    Pki(PathBuf),
    /// Nothing, for comparisons on a test network.
    InsecurePlaintext,
}

/// How a shard waits for work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Poll {
    /// Never sleeps.
    Busy,
    /// Spins for so long, then sleeps.
    Adaptive { spin: Duration },
    /// Sleeps at once.
    Park,
}

/// Whether arenas must stay in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LockMemory {
    /// If the limit allows it.
    Try,
    /// Or the daemon doesn't start.
    Require,
    /// No.
    Off,
}

/// The daemon's configuration, fixed at start. What may change while it runs stays in [`Values`].
#[derive(Clone, Debug)]
pub(crate) struct DaemonConfig {
    pub(crate) socket: PathBuf,
    pub(crate) listen: SocketAddr,
    pub(crate) trust: Trust,
    pub(crate) state: PathBuf,
    /// 0: nothing is kept.
    pub(crate) store_bytes: u64,
    pub(crate) store_ttl: Duration,
    pub(crate) metrics: Option<SocketAddr>,
    /// Empty: one shard that isn't pinned.
    pub(crate) cores: Vec<usize>,
    pub(crate) poll: Poll,
    pub(crate) memory_bytes: u64,
    /// Per shard; nothing for "auto".
    pub(crate) arena_bytes: Option<u64>,
    pub(crate) lock_memory: LockMemory,
    /// Streams of a link to begin with.
    pub(crate) streams: u16,
    /// Whether it finds out how many more it needs.
    pub(crate) finds_streams: bool,
    pub(crate) window_bytes: u64,
    pub(crate) links_max: u16,
    pub(crate) zero_copy: bool,
    pub(crate) accept_timeout: Duration,
    pub(crate) sessions_max: u16,
    pub(crate) log: &'static str,
    pub(crate) test_break_invariant: bool,
}

impl DaemonConfig {
    /// How many shards run.
    pub(crate) fn shard_count(&self) -> usize {
        self.cores.len().max(1)
    }

    pub(super) fn from_values(values: &Values, problems: &mut Vec<Problem>) -> Option<Self> {
        let trust = trust(values, problems);
        check_relations(values, problems);
        Some(Self {
            trust: trust?,
            socket: required(values.path("socket")),
            listen: required(values.address("listen")),
            state: required(values.path("state")),
            store_bytes: required(values.bytes("store-bytes")),
            store_ttl: values.time("store-ttl"),
            metrics: values.address("metrics"),
            cores: values.cores("cores"),
            poll: match values.word("poll") {
                "busy" => Poll::Busy,
                "park" => Poll::Park,
                _ => Poll::Adaptive { spin: values.time("spin") },
            },
            memory_bytes: required(values.bytes("memory")),
            arena_bytes: values.bytes("arena"),
            lock_memory: match values.word("lock-memory") {
                "require" => LockMemory::Require,
                "off" => LockMemory::Off,
                _ => LockMemory::Try,
            },
            streams: small(values.count_or_auto("streams").unwrap_or(STREAMS_AUTO)),
            finds_streams: values.count_or_auto("streams").is_none(),
            window_bytes: required(values.bytes("window")),
            links_max: small(values.count("links-max")),
            zero_copy: values.word("zero-copy") == "auto",
            accept_timeout: values.time("accept-timeout"),
            sessions_max: small(values.count("sessions-max")),
            log: values.word("log"),
            test_break_invariant: values.switch("test-break-invariant"),
        })
    }
}

fn trust(values: &Values, problems: &mut Vec<Problem>) -> Option<Trust> {
    match (values.path("pki"), values.switch("insecure-plaintext")) {
        (Some(folder), false) => Some(Trust::Pki(folder)),
        (None, true) => Some(Trust::InsecurePlaintext),
        (Some(_), true) => {
            report(values, "insecure-plaintext", ProblemKind::TwoTrusts, problems);
            None
        }
        // A wrong --pki was reported where it was read.
        (None, false) if problems.iter().any(|problem| problem.setting == "pki") => None,
        (None, false) => {
            report(values, "pki", ProblemKind::NoTrust, problems);
            None
        }
    }
}

fn check_relations(values: &Values, problems: &mut Vec<Problem>) {
    use std::os::unix::ffi::OsStrExt as _;
    let socket_bytes = values.path("socket").map_or(0, |path| path.as_os_str().as_bytes().len());
    if socket_bytes > SOCKET_PATH_BYTES_MAX {
        let bytes_max = SOCKET_PATH_BYTES_MAX;
        let kind = ProblemKind::SocketPathTooLong { bytes: socket_bytes, bytes_max };
        report(values, "socket", kind, problems);
    }
    if !keepalive_is_quick(values) {
        let dead_after_min = values.time("keepalive") * KEEPALIVES_PER_DEATH;
        let kind = ProblemKind::KeepaliveTooSlow { cure: show_time(dead_after_min) };
        report(values, "keepalive", kind, problems);
    }
    let same = values.address("metrics").is_some_and(|a| Some(a) == values.address("listen"));
    if same && values.address("listen").is_some_and(|address| address.port() != 0) {
        report(values, "metrics", ProblemKind::SameAddress, problems);
    }
}

/// Whether a live link is probed often enough never to be taken for dead.
pub(crate) fn keepalive_is_quick(values: &Values) -> bool {
    values.time("dead-after") >= values.time("keepalive") * KEEPALIVES_PER_DEATH
}

/// Reports a problem where the setting was given; a default can only be cured by a flag.
fn report(values: &Values, name: &str, kind: ProblemKind, problems: &mut Vec<Problem>) {
    let place = match (values.origin(name), values.file_path()) {
        (Origin::File { line }, Some(path)) => Place::File { path: path.to_owned(), line },
        _ => Place::Flag,
    };
    problems.push(Problem { place, setting: name.to_owned(), kind });
}

/// A value that the table always gives by its default.
fn required<T>(value: Option<T>) -> T {
    value.unwrap_or_else(|| panic!("the table has no default for a required setting"))
}

/// The streams of a link when none are asked for.
const STREAMS_AUTO: u64 = 4;

/// A count whose range in the table ends below 65536.
fn small(count: u64) -> u16 {
    u16::try_from(count).unwrap_or_else(|_| panic!("the table allows {count}, too many"))
}
