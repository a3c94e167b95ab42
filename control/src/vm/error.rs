//! Why a virtual machine can't be driven: QEMU's monitor, its migration, its process.
//!
//! Built where the fault is found; the core turns it into a session's reason and cure.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why QEMU's monitor can't be used or refused a command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QmpError {
    /// Nothing is there.
    #[error("there is no QMP socket {}", path.display())]
    Missing {
        /// The socket.
        path: PathBuf,
    },
    /// The daemon may not use the socket.
    #[error("the QMP socket {} may not be used by this daemon", path.display())]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// The file is there, nobody listens.
    #[error("no QEMU listens on the QMP socket {}", path.display())]
    NobodyListens {
        /// The socket.
        path: PathBuf,
    },
    /// QEMU serves one client at a time and another one is there.
    #[error("the QMP socket {} doesn't answer: another client uses it", path.display())]
    Busy {
        /// The socket.
        path: PathBuf,
    },
    /// What answers is no QMP monitor.
    #[error("what listens on {} is not a QMP monitor", path.display())]
    NotQmp {
        /// The socket.
        path: PathBuf,
    },
    /// QEMU closed the connection, most often because it ended.
    #[error("QEMU closed its monitor")]
    Closed,
    /// An answer did not come.
    #[error("QEMU did not answer {command} within {within:?}")]
    Timeout {
        /// The command.
        command: &'static str,
        /// How long was waited.
        within: Duration,
    },
    /// QEMU refused a command.
    #[error("QEMU refused {command}: {desc}")]
    Refused {
        /// The command.
        command: &'static str,
        /// QEMU's error class.
        class: String,
        /// QEMU's words.
        desc: String,
    },
    /// An answer has another shape than this command's.
    #[error("QEMU's answer to {command} has no usable {field}")]
    Shape {
        /// The command.
        command: &'static str,
        /// What is missing or of another type.
        field: &'static str,
    },
    /// A line of the monitor is not JSON.
    #[error("QEMU's monitor said something that is not JSON")]
    NotJson,
    /// A line of the monitor is longer than anything QEMU says.
    #[error("QEMU's monitor sent a line longer than {bytes_max} bytes")]
    LineTooLong {
        /// The limit.
        bytes_max: usize,
    },
    /// The socket failed.
    #[error("QEMU's monitor failed: {0}")]
    Io(#[source] io::Error),
}

impl QmpError {
    /// The stable name of the fault.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "qmp_missing",
            Self::Denied { .. } => "qmp_denied",
            Self::NobodyListens { .. } => "qmp_nobody_listens",
            Self::Busy { .. } => "qmp_busy",
            Self::NotQmp { .. } => "qmp_not_qmp",
            Self::Closed => "qmp_closed",
            Self::Timeout { .. } => "qmp_timeout",
            Self::Refused { .. } => "qmp_refused",
            Self::Shape { .. } => "qmp_shape",
            Self::NotJson => "qmp_not_json",
            Self::LineTooLong { .. } => "qmp_line_too_long",
            Self::Io(_) => "qmp_failed",
        }
    }

    /// What to do about it.
    pub(crate) fn cure(&self) -> &'static str {
        match self {
            Self::Missing { .. } | Self::NobodyListens { .. } => {
                "start QEMU with -qmp unix:PATH,server=on,wait=off and attach that path"
            }
            Self::Denied { .. } => "give the daemon's user access to the socket and its directory",
            Self::Busy { .. } => {
                "end the other client, or give QEMU one more -qmp socket for dwcp alone"
            }
            Self::NotQmp { .. } => "attach a -qmp socket, not a -monitor socket",
            Self::Closed => "see why QEMU ended; its own log tells",
            Self::Timeout { .. } => "see whether QEMU hangs, for example on its storage",
            Self::Refused { .. } => "QEMU's own words say what it wants",
            Self::Shape { .. } | Self::NotJson | Self::LineTooLong { .. } => {
                "use QEMU 7.2 or newer; report its version if it is"
            }
            Self::Io(_) => "see the daemon's log and that of QEMU",
        }
    }
}

/// Why a migration's task can't do what it was told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmError {
    /// The monitor.
    #[error(transparent)]
    Monitor(#[from] QmpError),
    /// The guest to move neither runs nor was paused by its user.
    #[error("the guest is {run_state}, neither running nor paused")]
    GuestNotRunning {
        /// QEMU's run state.
        run_state: String,
    },
    /// Somebody paused or started the guest while its migration was being prepared.
    #[error("the guest was {before} when the migration was asked for and is {now} now")]
    GuestChanged {
        /// QEMU's run state when it was told to the sink.
        before: String,
        /// The run state now.
        now: String,
    },
    /// Somebody, or an error, stopped the guest while it was migrating.
    #[error("the guest was stopped while it was migrating, and is {now} now")]
    GuestStopped {
        /// QEMU's run state.
        now: String,
    },
    /// Another migration of this guest is under way.
    #[error("this guest is migrating already ({status})")]
    AlreadyMigrating {
        /// QEMU's state of the migration.
        status: String,
    },
    /// A migration of this guest has ended, and QEMU doesn't let go of it.
    #[error("QEMU hangs in a migration of this guest that has ended")]
    MigrationLingers,
    /// The QEMU at the sink does not wait for a guest.
    #[error("this QEMU is {run_state}, it doesn't wait for a guest")]
    NotIncoming {
        /// QEMU's run state.
        run_state: String,
    },
    /// A private socket can't be made.
    #[error("the socket {} can't be made: {source}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The migration socket of the QEMU at the sink can't be reached.
    #[error("the migration socket {} can't be reached: {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// QEMU opened more migration connections than a session carries.
    #[error("QEMU opened more than {channels_max} migration connections")]
    TooManyChannels {
        /// The limit.
        channels_max: u16,
    },
    /// Somebody that is not this QEMU connected to the migration socket.
    #[error("process {pid} of user {uid} connected to the migration socket, which is not QEMU's")]
    Stranger {
        /// Its process.
        pid: i32,
        /// Its user.
        uid: u32,
    },
    /// The source QEMU gave the migration up.
    #[error("QEMU's migration failed: {reason}")]
    MigrationFailed {
        /// QEMU's words.
        reason: String,
    },
    /// Somebody else cancelled the migration.
    #[error("the migration was cancelled in QEMU, not by dwcp")]
    CancelledElsewhere,
    /// The time for the migration is over.
    #[error("the migration did not end within {timeout_ms} ms")]
    TimedOut {
        /// The limit.
        timeout_ms: u64,
    },
    /// The QEMU at the sink could not load what came.
    #[error("QEMU at the sink could not load the guest: {reason}")]
    LoadFailed {
        /// QEMU's words.
        reason: String,
    },
    /// The QEMU at the sink ended before it had loaded the guest.
    #[error("QEMU at the sink ended while it loaded the guest: {how}")]
    LoadEnded {
        /// How, and its last words; of a QEMU that somebody else started little is known.
        how: String,
    },
    /// The guest runs at the sink although nobody committed.
    #[error("the guest runs at the sink before the commit")]
    RunsUncommitted,
    /// The guest does not run although QEMU was told so.
    #[error("the guest is {run_state} although it was told to run")]
    NotResumed {
        /// QEMU's run state.
        run_state: String,
    },
    /// The command line to start QEMU can't be used.
    #[error("the command line for QEMU can't be used: {why}")]
    SpawnCommand {
        /// What is wrong with it.
        why: &'static str,
    },
    /// QEMU can't be started.
    #[error("QEMU can't be started: {source}")]
    Spawn {
        /// The kernel's reason.
        source: io::Error,
    },
    /// QEMU ended right after its start.
    #[error("QEMU ended ({status}): {stderr}")]
    SpawnEnded {
        /// How.
        status: String,
        /// The end of what it said.
        stderr: String,
    },
}

impl VmError {
    /// The stable name of the fault.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Monitor(error) => error.code(),
            Self::GuestNotRunning { .. } => "guest_not_running",
            Self::GuestChanged { .. } => "guest_changed",
            Self::GuestStopped { .. } => "guest_stopped",
            Self::AlreadyMigrating { .. } => "already_migrating",
            Self::MigrationLingers => "migration_lingers",
            Self::NotIncoming { .. } => "not_incoming",
            Self::Listen { .. } => "vm_listen",
            Self::Connect { .. } => "vm_connect",
            Self::TooManyChannels { .. } => "too_many_channels",
            Self::Stranger { .. } => "vm_stranger",
            Self::MigrationFailed { .. } => "migration_failed",
            Self::CancelledElsewhere => "cancelled_elsewhere",
            Self::TimedOut { .. } => "migration_timed_out",
            Self::LoadFailed { .. } => "load_failed",
            Self::LoadEnded { .. } => "load_ended",
            Self::RunsUncommitted => "runs_uncommitted",
            Self::NotResumed { .. } => "not_resumed",
            Self::SpawnCommand { .. } => "spawn_command",
            Self::Spawn { .. } => "spawn_failed",
            Self::SpawnEnded { .. } => "spawn_ended",
        }
    }

    /// What to do about it.
    pub(crate) fn cure(&self) -> &'static str {
        match self {
            Self::Monitor(error) => error.cure(),
            Self::GuestNotRunning { .. } => {
                "mend what stopped it, then start it (cont) and migrate again"
            }
            Self::GuestChanged { .. } => "migrate again: it moves as it is then",
            Self::GuestStopped { .. } => {
                "migrate again: a paused guest moves and stays paused; a guest that an error has \
                 stopped has to be mended first"
            }
            Self::AlreadyMigrating { .. } => "wait for that migration, or cancel it",
            Self::MigrationLingers => {
                "it will never migrate again: shut the guest down when it suits, and start it anew"
            }
            Self::NotIncoming { .. } => "start QEMU anew with -incoming defer -S, or use --spawn",
            Self::Listen { .. } => "see that the daemon's state directory is there and writable",
            Self::Connect { .. } => {
                "let QEMU's user and the daemon both write to the daemon's VM directory"
            }
            Self::TooManyChannels { .. } => "lower QEMU's multifd-channels to 16 or less",
            Self::Stranger { .. } => "close the daemon's VM directory to other programs",
            Self::MigrationFailed { .. } => "QEMU's words say why; the guest stays at the source",
            Self::CancelledElsewhere => "find out who else uses this QEMU's monitor",
            Self::TimedOut { .. } => "raise --timeout, or let --on-timeout throttle or ramp",
            Self::LoadFailed { .. } => {
                "its standard error names what it can't take: give both QEMUs the same devices and \
                 options, and start this one anew for the next try"
            }
            Self::LoadEnded { .. } => {
                "see its standard error and this host's kernel log (a kill for want of memory is \
                 there), and start it anew for the next try"
            }
            Self::RunsUncommitted => "stop one of the two guests by hand, then dwcp resolve",
            Self::NotResumed { .. } => "look at QEMU's log, then give cont in its monitor",
            Self::SpawnCommand { .. } => {
                "give QEMU's whole command with -incoming defer and -S; dwcp adds its own -qmp"
            }
            Self::Spawn { .. } => "give the path of a QEMU that the daemon's user may start",
            Self::SpawnEnded { .. } => "try the command line by hand; its own words say why",
        }
    }
}
