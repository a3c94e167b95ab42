//! Many seeds on some threads, with progress, and what is said of those that broke something.

use crate::arguments::Options;
use crate::run::{self, Outcome};
use crate::world::WorldError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Seeds of bugs that the simulator found in the product or in itself. What a seed means changes
/// with what the plan draws, so each bug has a test or a mutant of its own as well.
///
/// 510: a proof that was asked for twice was refused the second time. 1447: a frame of a dying
/// stream came after its pages had been sent again, and was rightly refused.
const KEPT: [u64; 2] = [510, 1447];

/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

/// What all runs came to.
#[derive(Debug, Default)]
struct Sum {
    seeds: u64,
    steps: u64,
    sessions: u64,
    faults: u64,
    corrupts: u64,
    virtual_ms: u64,
}

/// Runs what was asked for; true when nothing was broken.
pub(crate) fn run(options: &Options) -> Result<bool, WorldError> {
    if options.seeds == 1 {
        return run_twice(options.from, options.trace);
    }
    let seeds: Vec<u64> = match options.kept {
        true => KEPT.to_vec(),
        false => (options.from..options.from + options.seeds).collect(),
    };
    run_all(&seeds, options.threads)
}

/// Runs one seed twice: the same facts at the same times, or it is no simulation.
fn run_twice(seed: u64, trace: bool) -> Result<bool, WorldError> {
    let first = run::run(seed, trace)?;
    let second = run::run(seed, false)?;
    if first != second {
        println!("seed {seed} is not one run: {first:?} and then {second:?}");
        return Ok(false);
    }
    tell(seed, &first);
    Ok(first.violation.is_none())
}

fn run_all(seeds: &[u64], threads: u64) -> Result<bool, WorldError> {
    let started = Instant::now();
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let (sender, outcomes) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            let (next, stop, sender) = (&next, &stop, sender.clone());
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let at = next.fetch_add(1, Ordering::Relaxed) as usize;
                    let Some(&seed) = seeds.get(at) else { return };
                    if sender.send((seed, run::run(seed, false))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        let (mut sum, mut told) = (Sum::default(), started);
        let mut is_good = true;
        for (seed, outcome) in outcomes {
            let outcome = outcome?;
            sum.add(&outcome);
            if outcome.violation.is_some() {
                tell(seed, &outcome);
                stop.store(true, Ordering::Relaxed);
                is_good = false;
            }
            if told.elapsed() >= PROGRESS_EVERY {
                told = Instant::now();
                println!("sim: {} of {} seeds, {}", sum.seeds, seeds.len(), sum.text(started));
            }
        }
        println!("sim: {} seeds, {}", sum.seeds, sum.text(started));
        Ok(is_good)
    })
}

impl Sum {
    fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.steps += outcome.steps;
        self.sessions += outcome.sessions;
        self.faults += outcome.faults;
        self.corrupts += u64::from(outcome.corrupts);
        self.virtual_ms += outcome.virtual_ms;
    }

    fn text(&self, started: Instant) -> String {
        format!(
            "{} events, {} sessions, {} faults, {} s of their time in {:.1} s",
            self.steps,
            self.sessions,
            self.faults,
            self.virtual_ms / 1000,
            started.elapsed().as_secs_f64()
        )
    }
}

/// What a person needs to see a run again.
fn tell(seed: u64, outcome: &Outcome) {
    match &outcome.violation {
        None => println!("seed {seed}: {outcome:?}"),
        Some(violation) => println!(
            "seed {seed}: {} is broken at event {}: {}\n  repeat: cargo xtask sim --seed {seed} \
             --trace",
            violation.invariant, violation.step, violation.message
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_run_and_another_seed_another_one() {
        let runs = [3, 3, 4].map(|seed| run::run(seed, false).unwrap());
        assert_eq!(runs[0], runs[1]);
        assert_ne!(runs[0].hash, runs[2].hash);
    }
}
