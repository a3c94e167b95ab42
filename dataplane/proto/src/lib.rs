//! dwcp-proto: the protocol as pure state machines. Bytes and time go in, actions come out.
//!
//! # What lives here
//! - [`wire`]: the byte layouts (HELLO, stream preface, record, frame, peer message), their limits,
//!   and the sealing of records.
//! - [`negotiate`]: what two HELLOs agree on, or why they don't.
//! - [`window`], [`source`], [`sink`], [`flow`]: one lane's flow: how much may be in flight, which
//!   stream takes the next frame, what an ack, a NACK or a dead stream means.
//! - [`tuner`]: how many streams of a lane carry pages.
//! - [`session`]: the phases of a session at the source and at the sink, and the commit between
//!   them.
//! - [`ids`] and [`time`]: the values that all of these speak in.
//!
//! # Rules
//! Nothing here does I/O, reads a clock, starts a thread or holds a lock. What a peer sends is
//! never trusted: every parser returns a typed error with a stable `code()`. A broken assertion is
//! a bug of this program and of nobody else. `wire::reader`, `source`, `sink` and `tuner` run on a
//! shard and allocate only when they are built; `session`, `negotiate` and `wire::peer` run on the
//! control thread.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod flow;
pub mod ids;
pub mod negotiate;
pub mod session;
pub mod sink;
pub mod source;
pub mod time;
pub mod tuner;
pub mod window;
pub mod wire;

const _: () = assert!(usize::BITS == 64, "lengths and counters are 64 bits wide");
