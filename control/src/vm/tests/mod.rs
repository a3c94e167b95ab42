//! Tests of the monitor's client and of both tasks: against a scripted QEMU, for every phase and
//! failure, and against a real one where `qemu-system-x86_64` is installed.

mod client;
mod fake;
mod faults;
mod real;
mod rig;
