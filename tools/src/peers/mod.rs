//! The bench of peers: one guest, moved to and fro over one link by QEMU's own means and by any
//! other, all measured by the same code in one run.
//!
//! Called by `cargo xtask peers` and by tests, on their thread. Guests and compression share the
//! machine's cores, so figures of one run are compared with each other and never with those of
//! another run.

mod bench;
mod course;
mod cpu;
mod helpers;
mod migration;
mod mode;
mod row;

pub use bench::Bench;
pub use course::Course;
pub use mode::{Carrier, Mode, Mover};
pub use row::{Row, table};
