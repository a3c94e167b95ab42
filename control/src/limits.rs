//! Every fixed limit of the control thread, each with the reason for its size.
//!
//! Constants only: no state, no I/O. The operator's limits live in [`crate::ControlConfig`].

use std::time::Duration;

/// Answers and notifications that may wait for one client; a client that lets more pile up does not
/// read and is dropped. 256 covers a burst of every session's final state with room to spare.
pub(crate) const CLIENT_QUEUE_LINES: usize = 256;

/// Bytes that may wait for one client: eight of the largest answers (a full session list).
pub(crate) const CLIENT_QUEUE_BYTES: usize = 8 << 20;

/// Requests of one client that may be without an answer; further ones are not read from its socket.
pub(crate) const CLIENT_REQUESTS_IN_FLIGHT: usize = 32;

/// Descriptors that one request may carry: memory and bitmap are two, the rest is refused by count.
pub(crate) const REQUEST_DESCRIPTORS_MAX: usize = 4;

/// How long the socket of a client may stay unwritable before the client is dropped.
pub(crate) const CLIENT_WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes read from a client at once.
pub(crate) const CLIENT_READ_BYTES: usize = 64 << 10;

/// Regions registered at a time.
pub(crate) const REGIONS_MAX: usize = 256;

/// Bytes of a region's, host's or setting's name.
pub(crate) const NAME_BYTES_MAX: usize = 128;

/// Hosts that one region may accept data from.
pub(crate) const ACCEPT_FROM_MAX: usize = 64;

/// Sessions that are not over yet, in both roles together.
pub(crate) const SESSIONS_LIVE_MAX: usize = 256;

/// Sessions that the journal and `session.list` remember, the newest first.
pub(crate) const SESSION_HISTORY_MAX: usize = 256;

/// Links at a time, in both directions together.
pub(crate) const LINKS_MAX: usize = 64;

/// Connections to the peer port that have not yet said who they are.
pub(crate) const PEERS_PENDING_MAX: usize = 64;

/// Peer messages that may wait to be sent on one control channel: a live session has at most two
/// outstanding, plus the channel's own pings.
pub(crate) const CHANNEL_QUEUE_MESSAGES: usize = 1024;

/// Inputs that may wait for the core: every client's and every peer's newest message.
pub(crate) const INPUT_QUEUE: usize = 1024;

/// Writes that may wait for the journal's thread: each live session has at most one.
pub(crate) const JOURNAL_QUEUE: usize = 1024;

/// Commands that may wait for room in one shard's ring.
pub(crate) const COMMANDS_WAITING_MAX: usize = 4096;

/// Events taken from one shard before the other tasks of the thread get their turn.
pub(crate) const EVENTS_PER_TURN: usize = 256;

/// The core's clock tick: the shortest period of anything that it repeats.
pub(crate) const TICK: Duration = Duration::from_millis(50);

/// The shortest time between two progress notifications of one session.
pub(crate) const PROGRESS_PERIOD_NS: u64 = 100_000_000;

/// The first and the longest wait before a lost stream or peer is dialled again.
pub(crate) const REDIAL_WAIT_NS: (u64, u64) = (500_000_000, 30_000_000_000);

/// How long an orderly stop may take before the thread leaves without it.
pub(crate) const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of an HTTP request head on the metrics port.
pub(crate) const METRICS_REQUEST_BYTES: usize = 8 << 10;

/// Connections to the metrics port at a time.
pub(crate) const METRICS_CLIENTS_MAX: usize = 8;

/// How long one metrics exchange may take.
pub(crate) const METRICS_TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of one certificate, key or revocation file: a list of tens of thousands of serials.
pub(crate) const PKI_FILE_BYTES_MAX: u64 = 4 << 20;

/// Log lines that one kind of peer-caused event may write per [`LOG_WINDOW_NS`].
pub(crate) const LOG_LINES_PER_WINDOW: u32 = 10;

/// The window of [`LOG_LINES_PER_WINDOW`]: ten seconds.
pub(crate) const LOG_WINDOW_NS: u64 = 10_000_000_000;

const _: () = assert!(CLIENT_REQUESTS_IN_FLIGHT < CLIENT_QUEUE_LINES);
const _: () = assert!(SESSIONS_LIVE_MAX <= JOURNAL_QUEUE);
