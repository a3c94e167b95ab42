//! The bytes between two daemons: layouts, limits, sealing. Every integer is big-endian.
//!
//! A peer connection starts with a HELLO in each direction ([`hello`]) and goes on with JSON
//! messages behind a length ([`peer`], [`vm`]). A data stream starts with a clear [`preface`] and
//! goes on with records ([`header`], [`record`], [`reader`]), each of which holds one or more
//! frames ([`frame`]). Pure functions over slices; nothing is kept between calls but a record's
//! counters.

pub mod frame;
pub mod header;
pub mod hello;
pub mod keys;
pub mod limits;
pub mod peer;
pub mod preface;
pub mod reader;
pub mod record;
pub mod text;
pub mod token;
pub mod version;
pub mod vm;

mod bytes;
mod error;

pub use error::WireError;
