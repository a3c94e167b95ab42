//! `cargo xtask ci`: all steps in order, each timed; the first failure ends the run.
//!
//! The last line of the output is `N passed, N failed` over all tests that ran, so that whoever
//! reads the log sees that tests ran at all.

use crate::arguments::CiOptions;
use crate::call::{Call, Stream};
use crate::context::Context;
use crate::error::TaskError;
use crate::tally::Tally;
use crate::{demo, fuzz, metrics, previous, setup, sim, tidy};
use std::num::NonZero;
use std::time::{Duration, Instant};

/// Seconds for each fuzzer: a smoke test in CI, a search in a full run.
const FUZZ_SECONDS_SMOKE: u32 = 5;
const FUZZ_SECONDS_FULL: u32 = 120;

/// Compiling all of it from nothing on two cores.
const BUILD_SECONDS: u64 = 1800;

/// Tests of a full run walk through every fault.
const TEST_SECONDS: u64 = 2400;
const TEST_SECONDS_FULL: u64 = 4500;

/// How a step that did not fail ended.
enum Outcome {
    Done,
    Skipped(String),
}

/// A step of CI.
struct Step {
    name: &'static str,
    why: &'static str,
    /// What to type to see only this again.
    repeat: &'static str,
    run: fn(&mut Context) -> Result<Outcome, TaskError>,
}

const STEPS: [Step; 11] = [
    Step {
        name: "fmt",
        why: "one form of the text, so that diffs show changes only",
        repeat: "cargo fmt --all --check",
        run: fmt,
    },
    Step {
        name: "tidy",
        why: "layout, dependency direction, sizes, words, licences",
        repeat: "cargo xtask tidy",
        run: |context| tidy::run(context).map(done),
    },
    Step {
        name: "clippy",
        why: "no warning of compiler or linter",
        repeat: "cargo clippy --workspace --all-targets --locked -- -D warnings",
        run: clippy,
    },
    Step {
        name: "doc",
        why: "the documentation builds and its links lead somewhere",
        repeat: "RUSTDOCFLAGS='-D warnings -A rustdoc::private-intra-doc-links' \
                 cargo doc --workspace --no-deps --document-private-items --locked",
        run: doc,
    },
    Step {
        name: "previous",
        why: "the binary of the wire version before, for the tests of versions",
        repeat: "cargo xtask previous",
        run: |context| previous::run(context).map(done),
    },
    Step {
        name: "tests",
        why: "unit, property, contract, documentation and end-to-end tests",
        repeat: "cargo test --workspace --no-fail-fast --locked",
        run: tests,
    },
    Step {
        name: "sim",
        why: "no simulated world breaks an invariant, and a mutant of the product does",
        repeat: "cargo xtask sim --seeds 150",
        run: |context| sim::run_ci(context).map(done),
    },
    Step {
        name: "fuzz",
        why: "no input crashes a parser",
        repeat: "cargo xtask fuzz --seconds 5",
        run: |context| fuzz::run(context, None, context.fuzz_seconds).map(done),
    },
    Step {
        name: "demo",
        why: "the main job from end to end; a full run does it as the README's first command does",
        repeat: "cargo run -- demo --json --size 128MiB",
        run: |context| demo::run(context).map(done),
    },
    Step {
        name: "metrics",
        why: "the metrics page passes promtool",
        repeat: "cargo xtask ci --only metrics",
        run: check_metrics,
    },
    Step {
        name: "counts",
        why: "codec and protocol take no more instructions than before",
        repeat: "cargo run --release -p dwcp-benches --bin counts -- check",
        run: counts,
    },
];

/// Runs the steps that were asked for.
pub(crate) fn run(context: &mut Context, options: &CiOptions) -> Result<(), TaskError> {
    check_names(&options.only)?;
    context.full = options.full;
    let default = if options.full { FUZZ_SECONDS_FULL } else { FUZZ_SECONDS_SMOKE };
    context.fuzz_seconds = options.fuzz_seconds.unwrap_or(default);

    let started = Instant::now();
    println!("== setup: what the tests need beside a Rust toolchain");
    let mut outcome = setup::run(context);
    let mut rows = vec![row("setup", state(&outcome), started.elapsed())];
    let is_wanted =
        |step: &&Step| options.only.is_empty() || options.only.iter().any(|it| it == step.name);
    for step in STEPS.iter().filter(is_wanted) {
        if outcome.is_err() {
            rows.push(row(step.name, "not run", Duration::ZERO));
            continue;
        }
        println!("\n== {}: {}", step.name, step.why);
        let step_started = Instant::now();
        let (state, next) = match (step.run)(context) {
            Ok(Outcome::Done) => ("ok".to_owned(), Ok(())),
            Ok(Outcome::Skipped(reason)) => (format!("SKIPPED because {reason}"), Ok(())),
            Err(error) => {
                println!("\n{error}");
                let repeat = step.repeat.to_owned();
                ("FAILED".to_owned(), Err(TaskError::Step { step: step.name, repeat }))
            }
        };
        rows.push(row(step.name, &state, step_started.elapsed()));
        outcome = next;
    }
    conclude(context.tally, &rows, started.elapsed(), outcome)
}

/// Prints the table and the closing line, which must be the last one on standard output.
fn conclude(
    tally: Tally,
    rows: &[String],
    elapsed: Duration,
    outcome: Result<(), TaskError>,
) -> Result<(), TaskError> {
    println!("\n== summary");
    for row in rows {
        println!("{row}");
    }
    println!("{}", row("total", state(&outcome), elapsed));
    if let Err(error) = &outcome {
        println!("\n{error}");
    }
    println!("\n{} passed, {} failed", tally.passed, tally.failed);
    outcome.map_err(|_| TaskError::Reported)
}

fn row(name: &str, state: &str, elapsed: Duration) -> String {
    format!("{name:8} {:7.1} s  {state}", elapsed.as_secs_f64())
}

fn state(outcome: &Result<(), TaskError>) -> &'static str {
    if outcome.is_ok() { "ok" } else { "FAILED" }
}

fn done((): ()) -> Outcome {
    Outcome::Done
}

fn check_names(names: &[String]) -> Result<(), TaskError> {
    let is_known = |name: &&String| STEPS.iter().any(|step| step.name == name.as_str());
    match names.iter().find(|name| !is_known(name)) {
        None => Ok(()),
        Some(name) => {
            let known = STEPS.map(|step| step.name).join(", ");
            Err(TaskError::NoStep { name: name.clone(), known })
        }
    }
}

fn fmt(context: &mut Context) -> Result<Outcome, TaskError> {
    Call::new(&["cargo", "fmt", "--all", "--check"]).run(&context.root)?;
    let fuzzers = ["--manifest-path", "tools/fuzz/Cargo.toml", "--check"];
    Call::new(&["cargo", "fmt"]).with(fuzzers).run(&context.root).map(done)
}

fn clippy(context: &mut Context) -> Result<Outcome, TaskError> {
    let words = ["cargo", "clippy", "--workspace", "--all-targets", "--locked", "--"];
    let call = Call::new(&words).with(["-D", "warnings"]).within(BUILD_SECONDS);
    call.run(&context.root).map(done)
}

fn doc(context: &mut Context) -> Result<Outcome, TaskError> {
    let call = Call::new(&[
        "cargo",
        "doc",
        "--workspace",
        "--no-deps",
        "--document-private-items",
        "--locked",
    ]);
    let call = call
        .set("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links")
        .within(BUILD_SECONDS);
    call.run(&context.root).map(done)
}

fn tests(context: &mut Context) -> Result<Outcome, TaskError> {
    let limit = if context.full { TEST_SECONDS_FULL } else { TEST_SECONDS };
    let words = ["cargo", "test", "--workspace", "--no-fail-fast", "--locked"];
    let call = if context.full {
        Call::new(&[&words[..], &["--", "--include-ignored"]].concat()).set("DWCP_E2E_FULL", "1")
    } else {
        Call::new(&words)
    };
    // End-to-end tests wait more than they compute.
    let threads = 2 * std::thread::available_parallelism().map_or(1, NonZero::get);
    let call = call.set("RUST_TEST_THREADS", threads.to_string());
    // With it named, a test that does not find it fails instead of being passed over.
    let previous = context.root.join(previous::BINARY);
    let call = call.set("DWCP_PREVIOUS", previous.to_string_lossy());
    let mut tally = Tally::default();
    let outcome = call.within(limit).run_with(&context.root, &mut |stream, line| {
        if stream == Stream::Out {
            tally.add_line(line);
        }
        println!("{line}");
    });
    context.tally.passed += tally.passed;
    context.tally.failed += tally.failed;
    if tally.failed > 0 {
        return Err(TaskError::Tests { failed: tally.failed, run: tally.passed + tally.failed });
    }
    outcome?;
    if tally == Tally::default() { Err(TaskError::NoTests) } else { Ok(Outcome::Done) }
}

fn check_metrics(context: &mut Context) -> Result<Outcome, TaskError> {
    let Some(promtool) = &context.promtool else {
        return lacking(context, "promtool", "prometheus");
    };
    metrics::run(context, &promtool.to_string_lossy()).map(done)
}

/// A step without its tool: a gap that nobody sees would be as good as no step. Root could have
/// installed it; anybody else is told.
fn lacking(
    context: &Context,
    tool: &'static str,
    package: &'static str,
) -> Result<Outcome, TaskError> {
    if context.is_root {
        return Err(TaskError::NotInstalled { tool, package });
    }
    let reason = format!("{tool} is missing and only root may install it (Debian's {package})");
    Ok(Outcome::Skipped(reason))
}

fn counts(context: &mut Context) -> Result<Outcome, TaskError> {
    if !context.has_valgrind {
        return lacking(context, "valgrind", "valgrind");
    }
    let words = ["cargo", "run", "--release", "--locked", "-p", "dwcp-benches", "--bin", "counts"];
    let call = Call::new(&words).with(["--", "check"]).within(BUILD_SECONDS);
    call.run(&context.root).map(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_without_its_tool_fails_for_root_and_is_skipped_visibly_for_others() {
        let mut context = Context::find().unwrap();
        for step in [check_metrics, counts] {
            context.is_root = true;
            assert!(matches!(step(&mut context), Err(TaskError::NotInstalled { .. })));
            context.is_root = false;
            assert!(matches!(step(&mut context), Ok(Outcome::Skipped(why)) if !why.is_empty()));
        }
    }

    #[test]
    fn names_of_steps_are_unique_and_checked() {
        for (at, step) in STEPS.iter().enumerate() {
            assert!(STEPS[..at].iter().all(|earlier| earlier.name != step.name));
            assert!(check_names(&[step.name.to_owned()]).is_ok());
        }
        assert!(check_names(&["no-such-step".to_owned()]).is_err());
    }
}
