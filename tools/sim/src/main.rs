//! `sim`: runs simulated worlds and says which invariants they broke. `cargo xtask sim` is the way
//! to call it.
//!
//! Owns the command line and the worker threads; each thread runs whole worlds, one after another.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod arguments;
mod fact;
mod invariants;
mod plan;
mod run;
mod seeds;
mod world;

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let options = match arguments::parse(&words) {
        Ok(options) => options,
        Err(problem) => {
            eprintln!("sim: {problem}\n\n{}", arguments::HELP);
            return ExitCode::from(2);
        }
    };
    run::catch_panics();
    match seeds::run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("sim: this machine can't run it: {error}");
            ExitCode::from(2)
        }
    }
}
