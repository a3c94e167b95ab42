//! What must hold in every world, one file each.
//!
//! Each sees every fact in the order of time, looks at the world after every event, and has a last
//! word when the run ends. None changes anything.

mod bounded_memory;
mod commands_end;
mod commit_order;
mod fresh_keys;
mod honest_peers;
mod liveness;
mod no_page_lost;
mod no_page_stale;
mod no_page_twice;
mod one_owner;
mod refusals_return;

use crate::fact::Fact;
use crate::world::World;

/// What was found, for people.
pub(crate) type Verdict = Result<(), String>;

/// Something that always holds.
pub(crate) trait Invariant {
    /// Its name, which is that of its file.
    fn name(&self) -> &'static str;

    /// Something happened; the world is as it is after the whole event.
    fn see(&mut self, _fact: &Fact, _world: &World) -> Verdict {
        Ok(())
    }

    /// An event is over.
    fn look(&mut self, _world: &World) -> Verdict {
        Ok(())
    }

    /// The run is over, and everything is at rest.
    fn end(&mut self, _world: &World) -> Verdict {
        Ok(())
    }
}

/// All of them, for a new world.
pub(crate) fn all() -> Vec<Box<dyn Invariant>> {
    vec![
        Box::<one_owner::OneOwner>::default(),
        Box::new(commit_order::CommitOrder),
        Box::new(no_page_lost::NoPageLost),
        Box::<no_page_stale::NoPageStale>::default(),
        Box::<no_page_twice::NoPageTwice>::default(),
        Box::<refusals_return::RefusalsReturn>::default(),
        Box::<honest_peers::HonestPeers>::default(),
        Box::new(fresh_keys::FreshKeys),
        Box::new(bounded_memory::BoundedMemory),
        Box::<commands_end::CommandsEnd>::default(),
        Box::new(liveness::Liveness),
    ]
}
