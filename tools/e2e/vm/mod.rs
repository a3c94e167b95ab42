//! Real guests move between two hosts: two daemons in namespaces of their own, QEMUs beside them,
//! an emulated link between them, and the command line that an operator would use.
//!
//! Needs root and `cargo xtask lab setup`; passed over visibly without. Whatever a test does, a
//! referee reads the events of both QEMUs: never do two of them run the guest at one time.
//! `DWCP_E2E_FULL=1` runs more faults and larger guests.

mod cancel;
mod carried;
mod carrier;
mod collapse;
mod doubt;
mod faults;
mod harness;
mod link;
mod load;
mod memory_group;
mod migrate;
mod old;
mod pair;
mod phase;
mod ready;
mod referee;
mod refuse;
mod returned;
mod spawned;
mod survive;
mod versions;
mod way_back;

/// Whether everything is to be run.
fn is_full() -> bool {
    std::env::var("DWCP_E2E_FULL").is_ok_and(|full| full == "1")
}
