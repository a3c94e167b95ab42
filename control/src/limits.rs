//! Every fixed limit of the control thread, each with the reason for its size.
//!
//! Constants only: no state, no I/O. The operator's limits live in [`crate::ControlConfig`].

use dwcp_proto::time::Nanos;
use std::time::Duration;

/// Answers and notifications that may wait for one client; a client that lets more pile up does not
/// read and is dropped. 256 covers a burst of every session's final state with room to spare.
pub(crate) const CLIENT_QUEUE_LINES: usize = 256;

/// Bytes that may wait for one client: a full session list takes about half of it.
pub(crate) const CLIENT_QUEUE_BYTES: usize = 1 << 20;

/// Bytes that may wait for all clients together: eight of them may be as slow as they can be.
pub(crate) const CLIENTS_QUEUE_BYTES: usize = 8 << 20;

/// Bytes of requests that have not arrived whole yet, of all clients together. A request is short,
/// so that only clients that mean harm come near it.
pub(crate) const CLIENTS_PARTIAL_BYTES: usize = 8 << 20;

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

/// Bytes of a setting's value: the longest path.
pub(crate) const VALUE_BYTES_MAX: usize = 4096;

/// Hosts that one region may accept data from.
pub(crate) const ACCEPT_FROM_MAX: usize = 64;

/// Bytes of a Unix socket's path: what the kernel's `sun_path` holds besides the final zero.
pub(crate) const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Bytes of a command line that starts a QEMU: the longest seen in the field have some thousand.
pub(crate) const SPAWN_BYTES_MAX: usize = 64 << 10;

/// The longest downtime limit that QEMU takes: 2000 seconds.
pub(crate) const DOWNTIME_LIMIT_MS_MAX: u64 = 2_000_000;

/// The shortest and the longest time that a migration may be given: one second, one week.
pub(crate) const MIGRATE_TIMEOUT_MS: (u64, u64) = (1_000, 7 * 24 * 3_600_000);

/// How long a daemon that has drained waits for its peers to end their links.
pub(crate) const FAREWELL_WAIT: Nanos = Nanos(1_000_000_000);

/// How long the channel of a link whose streams are gone is heard for more, until it ends too: long
/// enough for what is on its way, and little beside what sessions wait for a lost link.
pub(crate) const LAST_WORDS_WAIT: Nanos = Nanos::from_millis(200);

/// The shortest and the longest long zstd window that a stream session is given, as binary
/// logarithms: 16 MiB find what a guest holds twice nearby, 128 MiB most of what it holds twice.
pub(crate) const STREAM_WINDOW_LOGS: (u8, u8) = (24, 27);
/// The share of the memory for sessions that one session's long window may take, beyond the
/// shortest: a quarter.
pub(crate) const STREAM_WINDOW_SHARE: u64 = 4;

/// Guest pages besides those of its RAM that tables have room for: firmware and video memory.
pub(crate) const STREAM_PAGES_EXTRA: u64 = 1 << 16;

/// How long a QEMU may take to tell what it is, started first if need be.
pub(crate) const VM_FACTS_TIMEOUT_NS: u64 = 30_000_000_000;

/// How long the task of a session that has ended may take to bring its guest to where it belongs.
pub(crate) const VM_END_TIMEOUT_NS: u64 = 60_000_000_000;

/// How long a source waits for the word that its committed guest runs at the sink.
pub(crate) const VM_RESUMED_TIMEOUT_NS: u64 = 10_000_000_000;

/// How long a source whose QEMU says that its migration failed waits for the sink's words. QEMU
/// has let the guest run again by then, so only the answer waits. A sink's QEMU is heard within a
/// round trip and the tick of its questions, on a busy host some seconds later; from a sink that
/// says nothing at all the source's own words do.
pub(crate) const VM_SINK_WORDS_NS: u64 = 10_000_000_000;

/// How often a task hears the data plane's figures.
pub(crate) const VM_FIGURES_PERIOD_NS: u64 = 200_000_000;

/// Virtual machines attached at a time.
pub(crate) const VMS_MAX: usize = 256;

/// Sessions that are not over yet, in both roles together.
pub(crate) const SESSIONS_LIVE_MAX: usize = 256;

/// Sessions that the journal and `session.list` remember, the newest first.
pub(crate) const SESSION_HISTORY_MAX: usize = 256;

/// Records of sessions that a peer asked about and that nothing was known of, over all peers. They
/// are kept apart from [`SESSION_HISTORY_MAX`], so that no question pushes out what people want.
pub(crate) const UNKNOWN_SESSIONS_MAX: usize = 64;

/// Of these, the ones of one peer: no peer can push out another's until four of them ask nonsense.
pub(crate) const UNKNOWN_SESSIONS_PER_PEER_MAX: usize = 16;

/// Questions of one peer about unknown sessions that may wait for the journal at a time; further
/// ones are not heard, and a source in doubt asks again. A flood of them can't fill the journal's
/// queue.
pub(crate) const UNKNOWN_QUERIES_PER_PEER_MAX: usize = 8;

/// Connections to the peer port that have not yet said who they are.
pub(crate) const PEERS_PENDING_MAX: usize = 64;

/// Peer messages that may wait to be sent on one control channel: a live session has at most two
/// outstanding, plus the channel's own pings.
pub(crate) const CHANNEL_QUEUE_MESSAGES: usize = 1024;

/// Inputs that may wait for the core: every client's and every peer's newest message.
pub(crate) const INPUT_QUEUE: usize = 1024;

/// Connections of a carrier that may wait for the core; further ones wait in the socket's queue.
pub(crate) const CARRY_QUEUE: usize = 16;

/// How often a carrier tells how far its session is.
pub(crate) const CARRY_PROGRESS_NS: u64 = 2_000_000_000;

/// How long a sink's VMM may keep its side of a migration open after the stream has ended: it loads
/// the last of it, which takes seconds at the most.
pub(crate) const CARRY_LINGER_NS: u64 = 60_000_000_000;

/// Jobs that may wait for the store's thread.
pub(crate) const KEPT_QUEUE: usize = 32;

/// Chunks of 8 MiB for running sessions that may be on their way to the core: no more of them is
/// read ahead, and the rest of the queue is for what jobs come to.
pub(crate) const HELD_AHEAD: usize = 2;

/// How long a session waits for what is kept of its guest; after that it does without.
pub(crate) const KEPT_READ_NS: u64 = 15_000_000_000;

/// Of the page versions that a session may hold, so many parts may be from before, of so many: the
/// rest is for what changes while it lasts.
pub(crate) const KEPT_SHARE: (u64, u64) = (3, 4);

/// The same of what the sink alone holds: half, since a page of it that is used is kept as a base
/// as well, for its changes.
pub(crate) const HELD_SHARE: (u64, u64) = (1, 2);

/// How often what was of no use for too long is removed from the store.
pub(crate) const KEPT_EXPIRE_NS: u64 = 3_600_000_000_000;

/// Writes that may wait for the journal's thread.
pub(crate) const JOURNAL_QUEUE: usize = 1024;

/// Of these, notes for the history: the rest is for what commits wait for, one for each session.
pub(crate) const JOURNAL_NOTES_MAX: usize = JOURNAL_QUEUE - SESSIONS_LIVE_MAX;

/// Commands that may wait for room in one shard's ring.
pub(crate) const COMMANDS_WAITING_MAX: usize = 4096;

/// Events taken from one shard before the other tasks of the thread get their turn.
pub(crate) const EVENTS_PER_TURN: usize = 256;

/// The core's clock tick: the shortest period of anything that it repeats.
pub(crate) const TICK: Duration = Duration::from_millis(50);

/// The shortest time between two progress notifications of one session.
pub(crate) const PROGRESS_PERIOD_NS: u64 = 100_000_000;

/// Streams that a peer of the first version takes on a link, whatever its HELLO says.
pub(crate) const STREAMS_FIRST_VERSION: u16 = 16;

/// How long a listening end waits for streams of a lane that has lost all it had, from when they
/// were agreed on: the other end dials them at once, and a connection takes this long at the most.
pub(crate) const STREAMS_COME_NS: Nanos = Nanos(5 * Nanos::SECOND.0);

/// The first and the longest wait before a lost stream or peer is dialled again.
pub(crate) const REDIAL_WAIT_NS: (u64, u64) = (500_000_000, 30_000_000_000);

/// The first and the longest wait between two attempts to give a link another connection: traffic
/// is back within a second of the path. Attempts overlap, so that a path of any length is found.
pub(crate) const RESUME_WAIT_NS: (u64, u64) = (250_000_000, 1_000_000_000);

/// Attempts under way at a time: all that start while the first one runs into its timeout of five
/// seconds each for connecting and for proving names.
pub(crate) const RESUMES_MAX: usize = 10;

/// A peer that is silent for so long, and for three pings, is dialled anew while its sessions are
/// under way; it may take TCP much longer to notice that the path is back.
pub(crate) const RESUME_SILENCE: Duration = Duration::from_secs(3);

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

/// What the budget of the binary sets aside for the control thread.
const CONTROL_BYTES: usize = 32 << 20;
/// Of that, what clients and peers can't fill: journal, history, certificates, the runtime itself.
const CONTROL_OWN_BYTES: usize = 4 << 20;
/// Clients and links that the sum is made for: the most that the settings allow.
const CLIENTS: usize = 64;
const LINKS: usize = 64;
/// What one control channel takes: a chunk being read and a message that has not arrived whole.
const CHANNEL_BYTES: usize = 2 * (64 << 10);

const _: () = assert!(
    CLIENTS_QUEUE_BYTES
        + CLIENTS_PARTIAL_BYTES
        + CLIENTS * CLIENT_READ_BYTES
        + LINKS * CHANNEL_BYTES
        + CONTROL_OWN_BYTES
        <= CONTROL_BYTES,
    "the control thread keeps within its part of the budget"
);
const _: () = assert!(CLIENT_REQUESTS_IN_FLIGHT < CLIENT_QUEUE_LINES);
const _: () = assert!(SESSIONS_LIVE_MAX <= JOURNAL_QUEUE);
