//! No key seals two streams, and no nonce is used twice.

use super::{Invariant, Verdict};
use crate::world::World;

pub(super) struct FreshKeys;

impl Invariant for FreshKeys {
    fn name(&self) -> &'static str {
        "fresh_keys"
    }

    fn look(&mut self, world: &World) -> Verdict {
        match world.fabric.fault() {
            Some(fault) => Err(format!("{fault:?}")),
            None => Ok(()),
        }
    }
}
