//! The budget: every fixed size, computed at start from the configuration and from what the machine
//! allows, or refused with the arithmetic written out.
//!
//! Main thread, before anything is started. [`Budget::compute`] is pure; [`Machine::look`] asks the
//! kernel. Nothing is allocated or raised here.

mod error;
mod machine;
mod sum;

pub(crate) use error::{BudgetError, BudgetErrors};
pub(crate) use machine::Machine;

use crate::config::{DaemonConfig, LockMemory, Trust};
use crate::settings::value::{MIB, Share};
use dwcp_codec::PAGE_BYTES;
use dwcp_control::{BudgetFact, STORE_INDEX_BYTES_PER_PAGE};
use dwcp_dataplane::link::tcp::{SLOT_BYTES, SLOTS_PER_STREAM};
use dwcp_ffi::memory::CHUNK_BYTES;
use sum::MemorySum;

/// What "auto" gives each shard for sending, where nothing forbids it: over 180 of the largest
/// records, enough for every stream to have some under way while others are coded.
const SEND_BYTES_AUTO: u64 = 48 * MIB;
/// The control thread at rest: runtime, clients' buffers, journal, history of sessions.
const CONTROL_BYTES: u64 = 32 * MIB;
/// A guest's page on disk has so many bytes, most often, and the index of all may take this part of
/// what is left for sessions.
const STORE_PAGE_BYTES_USUAL: u64 = 2048;
const STORE_SHARE: u64 = 16;
/// Below this no session of any use could open: tables for 1 GiB and some bases.
const SESSIONS_BYTES_MIN: u64 = 16 * MIB;
/// Table of a source's page: hash 16, version 8, place of its base 4, flags, its dirty bit, and the
/// descriptor of a base, rounded up.
const SOURCE_BYTES_PER_PAGE: u64 = 96;
/// Table of a sink's page: hash 16, version 8, flags, rounded up.
const SINK_BYTES_PER_PAGE: u64 = 40;
/// A peer chooses the number of streams of a link to here; so many are provided for at the least.
const STREAMS_PER_LINK_MIN: u64 = 16;
/// The most streams of a link where their number is found out, and of all links together, where
/// that is more than the least for each.
const STREAMS_PER_LINK_FOUND: u64 = 64;
const STREAMS_FOUND: u64 = 256;
/// Records that a shard's streams of one link may have under way, besides one for small frames.
const SEND_SLOTS_PER_STREAM: u64 = 2;
/// What a session takes from the pool beyond its pages: those of its own, those from before, and
/// those that its sink alone holds, which come in parts of 8 MiB, may each end in memory that they
/// do not fill.
const CHUNKS_PER_SESSION: u64 = 8;
/// Descriptors of the control thread at its limits: 64 clients, 256 regions with their bitmaps,
/// 64 peers at the door, 8 metrics readers, and what a process has anyway.
const CONTROL_DESCRIPTORS: u64 = 64 + 2 * 256 + 64 + 8 + 40;
/// Descriptors of a shard: its ring and the two ends of its wake-up.
const SHARD_DESCRIPTORS: u64 = 4;

/// Every fixed size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    /// How many shards run.
    pub(crate) shards: usize,
    /// Arena slots of each shard for what it sends.
    pub(crate) send_slots: usize,
    /// Streams that each shard has room for.
    pub(crate) streams_per_shard: usize,
    /// Whether the arenas are locked.
    pub(crate) lock_memory: bool,
    /// Bytes of each shard's arena.
    pub(crate) arena_bytes: u64,
    /// Socket buffers of all links.
    pub(crate) windows_bytes: u64,
    /// The index of what is kept on disk.
    pub(crate) store_bytes: u64,
    /// What sessions may reserve.
    pub(crate) sessions_bytes: u64,
    /// Address space of the pool that they take their pages' memory from.
    pub(crate) pool_bytes: u64,
    /// Descriptors at all limits.
    pub(crate) descriptors: u64,
}

impl Budget {
    /// Computes every size, or says what doesn't fit.
    pub(crate) fn compute(config: &DaemonConfig, machine: &Machine) -> Result<Self, BudgetErrors> {
        let mut errors = Vec::new();
        check_cores(config, machine, &mut errors);
        let streams = StreamPlan::of(config);
        let arena_bytes = arena_bytes(config, machine, streams, &mut errors);
        let sum = MemorySum {
            shards: streams.shards,
            arena_bytes,
            links: u64::from(config.links_max),
            window_bytes: config.window_bytes,
            control_bytes: CONTROL_BYTES,
        };
        check_memory(config, machine, sum, &mut errors);
        let descriptors = CONTROL_DESCRIPTORS
            + streams.shards * SHARD_DESCRIPTORS
            + u64::from(config.links_max) * (1 + streams.per_link);
        if descriptors > machine.descriptors_max {
            errors.push(BudgetError::Descriptors {
                control: CONTROL_DESCRIPTORS,
                shards: streams.shards,
                per_shard: SHARD_DESCRIPTORS,
                links: u64::from(config.links_max),
                per_link: 1 + streams.per_link,
                limit: machine.descriptors_max,
            });
        }
        if !errors.is_empty() {
            return Err(BudgetErrors(errors));
        }
        let slots = arena_bytes / slot_bytes();
        let left_bytes = config.memory_bytes - sum.total();
        let store_bytes = store_bytes(config, left_bytes);
        Ok(Self {
            shards: config.shard_count(),
            send_slots: size(slots - streams.per_shard * SLOTS_PER_STREAM as u64),
            streams_per_shard: size(streams.per_shard),
            lock_memory: match config.lock_memory {
                LockMemory::Off => false,
                LockMemory::Try => sum.arena_bytes * sum.shards <= machine.lockable_bytes,
                LockMemory::Require => true,
            },
            arena_bytes,
            windows_bytes: u64::from(config.links_max) * config.window_bytes,
            store_bytes,
            sessions_bytes: left_bytes - store_bytes,
            pool_bytes: pool_bytes(config, left_bytes - store_bytes),
            descriptors,
        })
    }

    /// How many page versions a session may keep as bases.
    pub(crate) fn base_pages_max(&self, share: Share) -> u64 {
        let bytes = match share {
            Share::Percent(percent) => self.sessions_bytes / 100 * u64::from(percent),
            Share::Bytes(bytes) => bytes.min(self.sessions_bytes),
        };
        bytes / PAGE_BYTES as u64
    }

    /// What sessions may reserve and what one costs.
    pub(crate) const fn for_control(&self) -> dwcp_control::MemoryBudget {
        dwcp_control::MemoryBudget {
            sessions_bytes: self.sessions_bytes,
            source_bytes_per_page: SOURCE_BYTES_PER_PAGE,
            sink_bytes_per_page: SINK_BYTES_PER_PAGE,
        }
    }

    /// The figures for `daemon.info` and `dwcp daemon --check`.
    pub(crate) fn facts(&self) -> Vec<BudgetFact> {
        let fact = |name: &str, amount| BudgetFact { name: name.to_owned(), amount };
        vec![
            fact("shards", self.shards as u64),
            fact("arena_per_shard_bytes", self.arena_bytes),
            fact("send_slots_per_shard", self.send_slots as u64),
            fact("streams_per_shard", self.streams_per_shard as u64),
            fact("socket_buffers_bytes", self.windows_bytes),
            fact("control_bytes", CONTROL_BYTES),
            fact("store_index_bytes", self.store_bytes),
            fact("sessions_bytes", self.sessions_bytes),
            fact("source_table_bytes_per_page", SOURCE_BYTES_PER_PAGE),
            fact("sink_table_bytes_per_page", SINK_BYTES_PER_PAGE),
            fact("descriptors", self.descriptors),
        ]
    }
}

/// Address space for the pages of all sessions: what they may reserve, and what rounding up to
/// chunks costs those that are there, as many that are being put on disk, and the caretaker.
fn pool_bytes(config: &DaemonConfig, sessions_bytes: u64) -> u64 {
    let sessions = u64::from(config.sessions_max) * config.shard_count() as u64;
    let takers = 2 * sessions * CHUNKS_PER_SESSION;
    sessions_bytes + (takers + 1) * CHUNK_BYTES
}

/// Bytes for the index of what is kept: never what sessions can't do without.
fn store_bytes(config: &DaemonConfig, left_bytes: u64) -> u64 {
    let wanted = config.store_bytes / STORE_PAGE_BYTES_USUAL * STORE_INDEX_BYTES_PER_PAGE;
    match config.trust {
        Trust::Pki(_) => wanted.min(left_bytes.saturating_sub(SESSIONS_BYTES_MIN) / STORE_SHARE),
        Trust::InsecurePlaintext => 0,
    }
}

/// How many streams are provided for.
#[derive(Clone, Copy, Debug)]
struct StreamPlan {
    shards: u64,
    per_link: u64,
    per_shard: u64,
    send_slots_min: u64,
}

impl StreamPlan {
    fn of(config: &DaemonConfig) -> Self {
        let shards = config.shard_count() as u64;
        let share = STREAMS_FOUND / u64::from(config.links_max);
        let found = if config.finds_streams { share.min(STREAMS_PER_LINK_FOUND) } else { 0 };
        let per_link = u64::from(config.streams).max(found).max(STREAMS_PER_LINK_MIN);
        // A link's streams are dealt out to its lanes, its lanes to the shards.
        let per_shard = u64::from(config.links_max) * per_link.div_ceil(shards);
        let own = u64::from(config.streams).div_ceil(shards);
        Self { shards, per_link, per_shard, send_slots_min: own * SEND_SLOTS_PER_STREAM + 1 }
    }

    fn arena_bytes_min(self) -> u64 {
        (self.per_shard * SLOTS_PER_STREAM as u64 + self.send_slots_min) * slot_bytes()
    }
}

/// Bytes of each shard's arena, in whole slots.
fn arena_bytes(
    config: &DaemonConfig,
    machine: &Machine,
    streams: StreamPlan,
    errors: &mut Vec<BudgetError>,
) -> u64 {
    let min = streams.arena_bytes_min();
    if let Some(arena_bytes) = config.arena_bytes {
        if arena_bytes < min {
            errors.push(BudgetError::Arena {
                arena_bytes,
                slot_bytes: slot_bytes(),
                receive_slots: streams.per_shard * SLOTS_PER_STREAM as u64,
                send_slots: streams.send_slots_min,
            });
        }
        return arena_bytes.max(min) / slot_bytes() * slot_bytes();
    }
    let windows_bytes = u64::from(config.links_max) * config.window_bytes;
    let others = windows_bytes + CONTROL_BYTES + SESSIONS_BYTES_MIN;
    let by_memory = config.memory_bytes.saturating_sub(others) / streams.shards;
    let by_lock = match config.lock_memory {
        LockMemory::Require => machine.lockable_bytes / streams.shards,
        LockMemory::Try | LockMemory::Off => u64::MAX,
    };
    let receive = streams.per_shard * SLOTS_PER_STREAM as u64 * slot_bytes();
    let wished = (SEND_BYTES_AUTO + receive).min(by_memory).min(by_lock);
    wished.max(min) / slot_bytes() * slot_bytes()
}

/// Whether the parts fit into the budget, and the budget into the machine.
fn check_memory(
    config: &DaemonConfig,
    machine: &Machine,
    sum: MemorySum,
    errors: &mut Vec<BudgetError>,
) {
    let fixed_bytes = sum.total();
    if fixed_bytes + SESSIONS_BYTES_MIN > config.memory_bytes {
        errors.push(BudgetError::Memory {
            sum,
            sessions_bytes_min: SESSIONS_BYTES_MIN,
            memory_bytes: config.memory_bytes,
        });
    }
    if config.memory_bytes > machine.memory_bytes {
        errors.push(BudgetError::MachineMemory {
            memory_bytes: config.memory_bytes,
            machine_bytes: machine.memory_bytes,
        });
    }
    let locked_bytes = sum.arena_bytes * sum.shards;
    if config.lock_memory == LockMemory::Require && locked_bytes > machine.lockable_bytes {
        errors.push(BudgetError::Locked {
            shards: sum.shards,
            arena_bytes: sum.arena_bytes,
            limit_bytes: machine.lockable_bytes,
        });
    }
}

fn check_cores(config: &DaemonConfig, machine: &Machine, errors: &mut Vec<BudgetError>) {
    for core in config.cores.iter().copied() {
        if !machine.cores.contains(&core) {
            errors.push(BudgetError::Core { core, allowed: machine.cores.clone() });
        }
    }
}

const fn slot_bytes() -> u64 {
    SLOT_BYTES as u64
}

/// The budget is far below what an address space holds.
fn size(count: u64) -> usize {
    usize::try_from(count).unwrap_or_else(|_| panic!("{count} of anything fits into 64 bits"))
}

#[cfg(test)]
mod tests;
