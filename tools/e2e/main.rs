//! End-to-end tests of the `dwcp` binary: real daemons, certificates, sockets, memory and faults.
//!
//! Runs under `cargo test` as the root package's `e2e` target; CI calls it. Each test starts its
//! own daemons in a folder of its own, waits for conditions with a bound, and ends what it started.
//! Nothing here reaches into the product: what is checked is what an operator or a VMM could see.
//!
//! `DWCP_E2E_SEED` names the faults that a short run picks; `DWCP_E2E_FULL=1` runs them all, and
//! `DWCP_E2E_POINT` those of a guest whose name has a text in it.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod carry;
mod demo;
mod faults;
mod harness;
mod hostile;
mod invariant;
mod parked;
mod parked_carrier;
mod resume;
mod session;
mod shards;
mod slow;
mod socket;
mod store;
mod trust;
mod tuned;
mod usage;
mod versions;
mod vm;
