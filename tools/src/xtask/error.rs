//! Why a step of xtask failed.

use dwcp_tools::lab::LabError;
use dwcp_tools::tidy::TidyError;
use std::path::PathBuf;

/// A failed step; every variant says what to look at.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TaskError {
    #[error("cannot start `{command}`: {source}")]
    Start { command: String, source: std::io::Error },
    #[error("cannot wait for `{command}`: {source}")]
    Wait { command: String, source: std::io::Error },
    #[error("`{command}` failed: {status}")]
    Failed { command: String, status: std::process::ExitStatus },
    #[error("`{command}` was ended after {seconds} s, the most that it may take")]
    TooSlow { command: String, seconds: u64 },
    #[error("no workspace found from here upwards: run `cargo xtask` inside of the clone")]
    NoWorkspace,
    #[error("{path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("there is no step `{name}`; the steps are {known}")]
    NoStep { name: String, known: String },
    #[error("there is no fuzz target `{name}`; the targets are {known}")]
    NoTarget { name: String, known: String },
    #[error("there is no mutant `{name}`; the mutants are {known}")]
    NoMutant { name: String, known: String },
    #[error("mutant {name} is not of the form that the manual gives")]
    MutantForm { name: String },
    #[error(
        "mutant {name} wants to change text that stands {times} times in {file}, not once: bring \
         tools/sim/mutants/{name}.txt up to date"
    )]
    MutantStale { name: String, file: String, times: usize },
    #[error("mutant {name} lived through {seeds} seeds: no invariant sees what it breaks")]
    MutantLives { name: String, seeds: u64 },
    #[error("missing: {what}. {cure}")]
    Missing { what: String, cure: String },
    #[error(
        "{tool} could not be installed (see the set-up above), and this step does not pass without \
         it when it runs as root: install Debian's package {package}"
    )]
    NotInstalled { tool: &'static str, package: &'static str },
    #[error(
        "the toolchain is `{found}`, but rust-toolchain.toml pins {pinned}: run with rustup, or \
         with a toolchain of that version"
    )]
    Toolchain { found: String, pinned: String },
    #[error(transparent)]
    Lab(#[from] LabError),
    #[error(transparent)]
    Tidy(#[from] TidyError),
    #[error("{count} violations of the repository's rules")]
    Untidy { count: usize },
    #[error("{failed} of {run} tests failed")]
    Tests { failed: u64, run: u64 },
    #[error("{failed} of {run} migrations failed or hurt the guest")]
    Migrations { failed: usize, run: usize },
    #[error("not one test ran")]
    NoTests,
    #[error("fuzz target {target} shows no coverage: it was not built with instrumentation")]
    NoCoverage { target: String },
    #[error("`dwcp demo --json` printed no JSON object: {source}\n{output}")]
    DemoForm { source: serde_json::Error, output: String },
    #[error("`dwcp demo --json`: {fault}\n{output}")]
    Demo { fault: String, output: String },
    #[error("the daemon did not serve metrics within {seconds} s: {last}")]
    NoMetrics { seconds: u64, last: String },
    #[error("the metrics page is wrong: {fault}")]
    Metrics { fault: String },
    #[error("step `{step}` failed; repeat it with `cargo xtask ci --only {step}`, or: {repeat}")]
    Step { step: &'static str, repeat: String },
    #[error("the run failed; see above")]
    Reported,
}
