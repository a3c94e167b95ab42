//! The control socket: JSON-RPC 2.0, one document per line, with descriptors beside the bytes.
//!
//! Runs on the control thread. `request` holds all validation and the one table of methods, from
//! which the dispatcher and the OpenRPC document both come; `framing` cuts lines out of bytes, and
//! `server` does the I/O.
//! Nothing here knows what a request does: the driver's core does.

mod client;
mod errors;
mod framing;
mod memory;
mod method;
mod notification;
mod openrpc;
mod request;
mod response;
mod schema;
mod server;
mod vm;

pub use errors::{API_CODES, ApiCode, ApiError};
pub use method::{Method, methods};
pub use notification::Topic;
pub use openrpc::document as openrpc_document;
pub use request::{
    CodingName, DirtyName, KeptName, PeerAddress, RegionRegister, Request, Role, SessionOpen,
};
pub use vm::{OnTimeoutName, VmAttach, VmMigrate};

pub(crate) use client::{ClientHandle, ClientId};
pub(crate) use notification::Subscription;
pub(crate) use request::name_is_plain;
pub(crate) use response::{Reply, notification_line};
pub(crate) use server::{ApiCall, ApiCounters, ApiInput, ApiServer};
