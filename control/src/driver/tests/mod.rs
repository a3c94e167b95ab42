//! Whole control planes in one process, with fake shards in place of the data plane and fake QEMUs
//! in place of real ones.

mod carry;
mod doubt;
mod fake;
mod fake_shard;
mod held;
mod limits;
mod memory;
mod parked;
mod path;
mod qemus;
mod resume;
mod session;
mod vm;
mod vm_doubt;
mod vm_faults;
mod vm_parked;
mod vm_restart;
