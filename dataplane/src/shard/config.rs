//! What a shard is started with, and how it is started: every size is fixed here.
//!
//! Called by the assembly in the binary, on the control thread, before any data moves.

use super::Shard;
use crate::attach::stream::Pipes;
use crate::link::tcp::{TcpConfig, TcpLink, TcpLinkError};
use crate::port::{Command, Event, ShardPort};
use crate::stats::ShardStats;
use dwcp_ffi::arena::ArenaError;
use dwcp_ffi::counters::{HistogramWriter, counters, histogram};
use dwcp_ffi::cpu::{PinError, pin_current_thread};
use dwcp_ffi::memory::PagePool;
use dwcp_ffi::poll::{WakeReceiver, Waker, waker};
use dwcp_ffi::spsc::{Consumer, Producer, ring};
use dwcp_proto::wire::limits::CHANNELS_MAX;
use std::sync::mpsc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// What the loop does when it finds no work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollMode {
    /// Look again at once; takes the whole core.
    Busy,
    /// Look again for this long, then sleep in the kernel.
    Adaptive {
        /// How long to spin.
        spin: Duration,
    },
    /// Sleep in the kernel at once.
    Park,
}

/// Sizes and habits of one shard.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// The shard's number, part of its thread's name.
    pub index: usize,
    /// The core that it is pinned to.
    pub core: Option<usize>,
    /// What it does without work.
    pub poll: PollMode,
    /// Arena slots for records in flight; each holds [`crate::link::tcp::SLOT_BYTES`].
    pub send_slots: usize,
    /// Lock the arena into memory and register it with the kernel, or fail to start.
    pub lock_memory: bool,
    /// Use SEND_ZC while the kernel reports that it does not copy.
    pub zero_copy: bool,
    /// The most sessions at a time, sources and sinks together.
    pub sessions_max: usize,
    /// The most streams at a time.
    pub streams_max: usize,
    /// The most links at a time.
    pub links_max: usize,
    /// What stream sessions take the memory of their page versions from.
    pub pages: PagePool,
}

impl ShardConfig {
    /// Arena slots in all: what is sent, and a receive buffer for each stream.
    #[must_use]
    pub const fn arena_slots(&self) -> usize {
        self.send_slots + self.streams_max * crate::link::tcp::SLOTS_PER_STREAM
    }

    /// Local sockets of VMMs at a time: for each session some, and for one all that it may have.
    #[must_use]
    pub const fn pipes_max(&self) -> usize {
        self.sessions_max * 4 + CHANNELS_MAX as usize
    }

    /// Commands that may wait: setting up everything that the tables hold, and one order for each.
    #[must_use]
    pub const fn commands_max(&self) -> usize {
        (self.sessions_max * 4 + self.pipes_max() + self.streams_max + self.links_max * 2 + 2)
            .next_power_of_two()
    }

    /// Events that accepted commands may bring at the most before the shard takes another command:
    /// a stream comes up and goes down; a session opens, ends a round, verifies, fails and closes;
    /// one refusal; the end of the shard. What stream sessions have to tell of their channels waits
    /// with them until there is more room than this.
    #[must_use]
    pub const fn events_reserved(&self) -> usize {
        self.streams_max * 2 + self.sessions_max * 5 + 2
    }

    /// Room of the event ring: what is reserved, for commands already taken and as many again.
    #[must_use]
    pub const fn events_max(&self) -> usize {
        (self.events_reserved() * 2).next_power_of_two()
    }
}

/// Why a shard can't start.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// Its transport can't start.
    #[error(transparent)]
    Link(#[from] TcpLinkError),
    /// Its working memory can't be had.
    #[error("the shard's working memory: {0}")]
    Scratch(#[from] ArenaError),
    /// It can't be pinned.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// No thread, or no descriptor to wake it by.
    #[error("the shard's thread can't start: {0}")]
    Thread(#[from] std::io::Error),
}

/// A shard's ends of what it shares with the control thread.
#[derive(Debug)]
pub struct ShardEnds {
    pub(super) commands: Consumer<Command>,
    pub(super) events: Producer<Event>,
    pub(super) control: Waker,
    pub(super) stats: ShardStats,
    pub(super) encode_ns: HistogramWriter,
}

impl ShardEnds {
    /// Makes both ends, and what the shard's transport is woken by. Events wake `control`.
    ///
    /// # Errors
    /// No descriptor is left to wake the shard by.
    pub fn new(
        config: &ShardConfig,
        control: Waker,
    ) -> std::io::Result<(Self, ShardPort, WakeReceiver)> {
        let (commands, command_inbox) = ring(config.commands_max());
        let (event_outbox, events) = ring(config.events_max());
        let (wake_shard, woken) = waker()?;
        let (stats_writer, stats) = counters();
        let (encode_writer, encode_ns) = histogram();
        let ends = Self {
            commands: command_inbox,
            events: event_outbox,
            control,
            stats: stats_writer,
            encode_ns: encode_writer,
        };
        Ok((ends, ShardPort { commands, events, wake_shard, stats, encode_ns }, woken))
    }
}

/// Starts a shard on its own thread and returns when it runs. Events wake `control`.
///
/// # Errors
/// Whatever the shard needs and this machine does not give; nothing is left running.
pub fn spawn(
    config: ShardConfig,
    control: Waker,
) -> Result<(ShardPort, JoinHandle<()>), ShardError> {
    let (ends, port, woken) = ShardEnds::new(&config, control)?;
    let (started, outcome) = mpsc::sync_channel(1);
    let thread = Builder::new().name(format!("dwcp-shard-{}", config.index)).spawn(move || {
        // The ring and the arena belong to the thread that uses them, so they are made on it.
        let made = make_link(&config, &woken).and_then(|link| Shard::new(config, link, ends));
        // The starter waits for exactly this message; it can't have gone away.
        match made {
            Ok(mut shard) => {
                let _ = started.send(Ok(()));
                shard.run();
            }
            Err(error) => {
                let _ = started.send(Err(error));
            }
        }
    })?;
    match outcome.recv() {
        Ok(Ok(())) => Ok((port, thread)),
        Ok(Err(error)) => Err(error),
        Err(_) => panic!("a shard's thread ended before it reported"),
    }
}

fn make_link(config: &ShardConfig, woken: &WakeReceiver) -> Result<TcpLink, ShardError> {
    if let Some(core) = config.core {
        pin_current_thread(core)?;
    }
    let sizes = TcpConfig {
        streams_max: config.streams_max,
        send_slots: config.send_slots,
        watches_max: Pipes::watches_max(config.pipes_max()),
        lock_memory: config.lock_memory,
        zero_copy: config.zero_copy,
    };
    Ok(TcpLink::new(sizes, woken)?)
}
