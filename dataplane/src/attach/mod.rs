//! Attach points: how pages get into a session at the source and out of it at the sink.

pub mod qemu;
pub(crate) mod region;
pub mod stream;
