//! One run: the world of a seed, looked at after every event, until it is at rest or an invariant
//! is broken.

use crate::fact::Fact;
use crate::invariants::{self, Invariant};
use crate::plan::Fault;
use crate::world::{World, WorldError};
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Events of one run: more means that the world turns on the spot.
const STEPS_MAX: u64 = 3_000_000;

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Names the run: all facts with their times.
    pub(crate) hash: u64,
    pub(crate) steps: u64,
    pub(crate) facts: u64,
    pub(crate) sessions: u64,
    pub(crate) virtual_ms: u64,
    pub(crate) faults: u64,
    pub(crate) corrupts: bool,
    pub(crate) violation: Option<Violation>,
}

/// A broken invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) invariant: &'static str,
    pub(crate) step: u64,
    pub(crate) message: String,
}

thread_local! {
    /// What the last panic on this thread said.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Has panics told to the run that they end, instead of printed.
pub(crate) fn catch_panics() {
    std::panic::set_hook(Box::new(|info| {
        PANIC.with_borrow_mut(|said| *said = Some(info.to_string()));
    }));
}

/// Runs a seed.
pub(crate) fn run(seed: u64, prints: bool) -> Result<Outcome, WorldError> {
    let mut world = World::new(seed, prints)?;
    let mut invariants = invariants::all();
    let mut steps = 0;
    let mut violation = None;
    while violation.is_none() && !(world.is_at_rest() && world.facts.is_empty()) {
        if steps == STEPS_MAX {
            let message = format!("not at rest after {STEPS_MAX} events");
            violation = Some(Violation { invariant: "liveness", step: steps, message });
            break;
        }
        steps += 1;
        // A broken world is never looked at again.
        let stepped = catch_unwind(AssertUnwindSafe(|| world.step()));
        match stepped {
            Ok(done) => done?,
            Err(_) => {
                let message = PANIC.take().unwrap_or_default();
                violation = Some(Violation { invariant: "no_panic", step: steps, message });
                break;
            }
        }
        violation = look(&mut world, &mut invariants, steps);
    }
    let outcome = Outcome {
        hash: world.trace.hash(),
        steps,
        facts: world.trace.facts(),
        sessions: world.sessions.len() as u64,
        virtual_ms: world.now().0 / 1_000_000,
        faults: world.plan.faults.len() as u64,
        corrupts: world.plan.has(|fault| *fault == Fault::Corrupt),
        violation: violation.or_else(|| last_words(&world, &mut invariants, steps)),
    };
    if outcome.violation.as_ref().is_some_and(|it| it.invariant == "no_panic") {
        // What it holds may be in any state: nothing of it is touched again.
        std::mem::forget(world);
    }
    Ok(outcome)
}

fn look(world: &mut World, invariants: &mut [Box<dyn Invariant>], step: u64) -> Option<Violation> {
    let facts: Vec<Fact> = std::mem::take(&mut world.facts);
    for invariant in invariants {
        let seen = facts.iter().try_for_each(|fact| invariant.see(fact, world));
        if let Err(message) = seen.and_then(|()| invariant.look(world)) {
            return Some(Violation { invariant: invariant.name(), step, message });
        }
    }
    None
}

fn last_words(
    world: &World,
    invariants: &mut [Box<dyn Invariant>],
    step: u64,
) -> Option<Violation> {
    invariants.iter_mut().find_map(|invariant| {
        let message = invariant.end(world).err()?;
        Some(Violation { invariant: invariant.name(), step, message })
    })
}
