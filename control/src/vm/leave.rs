//! Why a task leaves the straight line of its phases, at either end.
//!
//! A plain value on the control thread. `E` is how that end may be ordered to end. It is made by
//! `?` in the phases, and the task alone says what follows.

use super::error::{QmpError, VmError};
use super::task::Dropped;

/// Why the straight line of phases was left.
pub(super) enum Leave<E> {
    /// The core ordered how to end.
    Order(E),
    /// It can't go on.
    Fault(VmError),
    /// The core is gone.
    Dropped,
}

impl<E> From<Dropped> for Leave<E> {
    fn from(Dropped: Dropped) -> Self {
        Self::Dropped
    }
}

impl<E> From<VmError> for Leave<E> {
    fn from(error: VmError) -> Self {
        Self::Fault(error)
    }
}

impl<E> From<QmpError> for Leave<E> {
    fn from(error: QmpError) -> Self {
        Self::Fault(error.into())
    }
}
