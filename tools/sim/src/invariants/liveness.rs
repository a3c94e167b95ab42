//! A world in which nothing bad happens any more comes to rest: every region has moved, and no
//! session is left at either end.

use super::{Invariant, Verdict};
use crate::world::{PATIENCE, World};

pub(super) struct Liveness;

impl Invariant for Liveness {
    fn name(&self) -> &'static str {
        "liveness"
    }

    fn look(&mut self, world: &World) -> Verdict {
        let Some(healed) = world.healed_at else { return Ok(()) };
        let since = world.now().since(healed);
        if since < PATIENCE || world.is_at_rest() {
            return Ok(());
        }
        let clients: Vec<_> = world.jobs.iter().map(|job| job.client).collect();
        Err(format!("not at rest {} s after the last harm: {clients:?}", since.0 / 1_000_000_000))
    }
}
