//! What doesn't fit, with the arithmetic and the cure.
//!
//! Data and its text; made by the budget, printed by the command line.

use super::sum::{MemorySum, counted};
use crate::exit::Exit;
use crate::settings::value::{MIB, show_bytes};
use std::fmt;

/// One thing that doesn't fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BudgetError {
    /// The parts are more than the whole.
    #[error(
        "{sum}, and sessions need {} at least, but --memory is {}: raise --memory to {} or lower \
         --window, --links-max or --arena",
        show_bytes(*sessions_bytes_min), show_bytes(*memory_bytes),
        whole_mib(sum.total() + sessions_bytes_min)
    )]
    Memory { sum: MemorySum, sessions_bytes_min: u64, memory_bytes: u64 },
    /// The machine is smaller than the budget.
    #[error(
        "--memory is {}, but this machine has {}: lower --memory",
        show_bytes(*memory_bytes), whole_mib_down(*machine_bytes)
    )]
    MachineMemory { memory_bytes: u64, machine_bytes: u64 },
    /// The arena has too few slots.
    #[error(
        "({receive_slots} slots to receive + {send_slots} to send) x {slot_bytes} bytes = {} per \
         shard, but --arena is {}: raise --arena to {} or lower --streams or --links-max",
        show_bytes((receive_slots + send_slots) * slot_bytes), show_bytes(*arena_bytes),
        whole_mib((receive_slots + send_slots) * slot_bytes)
    )]
    Arena { arena_bytes: u64, slot_bytes: u64, receive_slots: u64, send_slots: u64 },
    /// The arenas are registered with the kernel, which counts as locked.
    #[error(
        "{} x {} arena = {} of locked memory, but the limit is {}: raise it ('ulimit -l', or \
         LimitMEMLOCK= in the unit), run with CAP_IPC_LOCK, or lower --arena, --streams or \
         --links-max",
        counted(*shards, "shard"), show_bytes(*arena_bytes), show_bytes(shards * arena_bytes),
        show_bytes(*limit_bytes)
    )]
    Locked { shards: u64, arena_bytes: u64, limit_bytes: u64 },
    /// Too few descriptors.
    #[error(
        "{control} descriptors for control + {} x {per_shard} + {} x {per_link} = {}, but the \
         hard limit is {limit}: raise it ('ulimit -Hn', or LimitNOFILE= in the unit) or lower \
         --streams or --links-max",
        counted(*shards, "shard"), counted(*links, "link"),
        control + shards * per_shard + links * per_link
    )]
    Descriptors {
        control: u64,
        shards: u64,
        per_shard: u64,
        links: u64,
        per_link: u64,
        // The hard one.
        limit: u64,
    },
    /// The core isn't ours.
    #[error("--cores: core {core} may not be used by this process, these may: {}", list(allowed))]
    Core { core: usize, allowed: Vec<usize> },
}

impl BudgetError {
    fn exit(&self) -> Exit {
        match self {
            Self::Memory { .. } | Self::Arena { .. } => Exit::Usage,
            _ => Exit::Machine,
        }
    }
}

/// Everything that doesn't fit, one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BudgetErrors(pub(crate) Vec<BudgetError>);

impl BudgetErrors {
    /// The exit code that belongs to them: a wrong configuration before a small machine.
    pub(crate) fn exit(&self) -> Exit {
        let usage = self.0.iter().any(|error| error.exit() == Exit::Usage);
        if usage { Exit::Usage } else { Exit::Machine }
    }
}

impl fmt::Display for BudgetErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(BudgetError::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for BudgetErrors {}

fn whole_mib(bytes: u64) -> String {
    show_bytes(bytes.next_multiple_of(MIB))
}

fn whole_mib_down(bytes: u64) -> String {
    show_bytes(bytes / MIB * MIB)
}

fn list(cores: &[usize]) -> String {
    cores.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}
