//! Who hears what a carrier does.

use super::event::CarryEvent;

/// Takes the events of a carrier, in order, on the control thread. It must not wait.
pub trait CarryReport {
    /// Something happened.
    fn report(&mut self, event: &CarryEvent);
}
