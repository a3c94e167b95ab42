//! Builds and runs the fuzzers of `tools/fuzz` with the pinned stable toolchain.
//!
//! libFuzzer needs coverage counters in the code under test. `cargo fuzz` would do, but it is one
//! more thing to install; the same flags are given here. A run starts from the committed seeds and
//! from what earlier runs on this machine found; a finding is an input under `artifacts` and fails
//! the step.

use crate::call::{Call, Stream};
use crate::context::Context;
use crate::error::TaskError;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::thread::ScopedJoinHandle;

const FOLDER: &str = "tools/fuzz";
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Counters at every edge, a table of program points, and traced comparisons.
const RUSTFLAGS: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    --cfg fuzzing";

/// All parsers work within a few records' memory; libFuzzer itself takes up to 200 MB.
const MEMORY_MB: u32 = 1024;

/// No input may take so long.
const INPUT_SECONDS: u32 = 10;

/// Building libFuzzer and the instrumented crates on two slow cores.
const BUILD_SECONDS: u64 = 1200;

/// How many of libFuzzer's last lines are shown when a target fails.
const LINES_SHOWN: usize = 60;

/// Runs one target or all.
pub(crate) fn run(context: &Context, target: Option<&str>, seconds: u32) -> Result<(), TaskError> {
    let names = targets(&context.root)?;
    let chosen: Vec<&String> =
        names.iter().filter(|name| target.is_none_or(|wanted| wanted == name.as_str())).collect();
    if let (Some(name), true) = (target, chosen.is_empty()) {
        let known = names.join(", ");
        return Err(TaskError::NoTarget { name: name.to_owned(), known });
    }
    build(&context.root)?;
    // Each has a core of its own, so that as many inputs are tried as one after another.
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    for names in chosen.chunks(cores) {
        let outcomes: Vec<_> = std::thread::scope(|scope| {
            let root = &context.root;
            let running: Vec<_> = names
                .iter()
                .map(|name| scope.spawn(move || run_target(root, name, seconds)))
                .collect();
            running.into_iter().map(ScopedJoinHandle::join).collect()
        });
        for outcome in outcomes {
            outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
    }
    Ok(())
}

/// The names of all targets, sorted: one file each.
fn targets(root: &Path) -> Result<Vec<String>, TaskError> {
    let folder = root.join(FOLDER).join("src/bin");
    let failed = |source| TaskError::File { path: folder.clone(), source };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if let Some(stem) =
            path.file_stem().filter(|_| path.extension().is_some_and(|it| it == "rs"))
        {
            names.push(stem.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn build(root: &Path) -> Result<(), TaskError> {
    let words = ["cargo", "build", "--release", "--locked", "--target", TRIPLE];
    let manifest = format!("{FOLDER}/Cargo.toml");
    let target = format!("{FOLDER}/target");
    Call::new(&words)
        .with(["--manifest-path", &manifest, "--target-dir", &target])
        .set("RUSTFLAGS", RUSTFLAGS)
        .within(BUILD_SECONDS)
        .run(root)
}

fn run_target(root: &Path, name: &str, seconds: u32) -> Result<(), TaskError> {
    let corpus = format!("{FOLDER}/corpus/{name}");
    let seeds = format!("{FOLDER}/seeds/{name}");
    let artifacts = format!("{FOLDER}/artifacts/{name}/");
    for folder in [&corpus, &seeds, &artifacts] {
        let path: PathBuf = root.join(folder);
        std::fs::create_dir_all(&path).map_err(|source| TaskError::File { path, source })?;
    }
    let call = Call::new(&[&format!("{FOLDER}/target/{TRIPLE}/release/{name}"), &corpus, &seeds])
        .with([format!("-artifact_prefix={artifacts}"), format!("-max_total_time={seconds}")])
        .with([format!("-rss_limit_mb={MEMORY_MB}"), format!("-timeout={INPUT_SECONDS}")])
        .within(u64::from(seconds) + 120);
    let mut lines = Vec::new();
    let mut coverage = Coverage::default();
    let outcome = call.run_with(root, &mut |_: Stream, line| {
        coverage.add_line(line);
        lines.push(line.to_owned());
    });
    if outcome.is_err() {
        for line in &lines[lines.len().saturating_sub(LINES_SHOWN)..] {
            println!("{line}");
        }
    }
    outcome?;
    println!("fuzz {name}: {} runs, edges {} -> {}", coverage.runs, coverage.first, coverage.last);
    if coverage.last == 0 {
        return Err(TaskError::NoCoverage { target: name.to_owned() });
    }
    Ok(())
}

/// What libFuzzer says of its progress.
#[derive(Debug, Default, PartialEq, Eq)]
struct Coverage {
    runs: u64,
    first: u64,
    last: u64,
}

impl Coverage {
    /// Reads a line such as `#512 NEW cov: 71 ft: 90 corp: 8/60b ..`.
    fn add_line(&mut self, line: &str) {
        let mut words = line.split_whitespace();
        let Some(runs) = words.next().and_then(|word| word.strip_prefix('#')?.parse().ok()) else {
            return;
        };
        self.runs = runs;
        let edges = words.skip_while(|word| *word != "cov:").nth(1);
        if let Some(edges) = edges.and_then(|word| word.parse().ok()) {
            self.last = edges;
            if self.first == 0 {
                self.first = edges;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_lines_are_read_and_others_are_not() {
        let mut coverage = Coverage::default();
        for line in [
            "INFO: Seed: 1",
            "#2\tINITED cov: 12 ft: 13 corp: 1/1b exec/s: 0 rss: 40Mb",
            "#512\tNEW    cov: 71 ft: 90 corp: 8/60b lim: 4 exec/s: 0 rss: 40Mb",
            "#1024\tDONE   cov: 71 ft: 90 corp: 8/60b lim: 4 exec/s: 0 rss: 40Mb",
            "Done 1024 runs in 6 second(s)",
        ] {
            coverage.add_line(line);
        }
        assert_eq!(coverage, Coverage { runs: 1024, first: 12, last: 71 });
    }
}
