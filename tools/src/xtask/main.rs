//! `cargo xtask`: everything that a developer and CI run on the repository.
//!
//! Owns the command line. One thread; each step is a child process whose output is passed on.
//! Of the product only `ffi` is built with it, so that it builds within seconds and can report a
//! product that does not build.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod apart;
mod arguments;
mod call;
mod ci;
mod context;
mod demo;
mod error;
mod fuzz;
mod guest;
mod lab;
mod metrics;
mod peers;
mod previous;
mod scratch;
mod setup;
mod sim;
mod tally;
mod tidy;

use arguments::Task;
use context::Context;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let task = match arguments::parse(&words) {
        Ok(task) => task,
        Err(error) => {
            eprintln!("xtask: {error}\n\n{}", arguments::HELP);
            return ExitCode::from(2);
        }
    };
    let outcome = Context::find().and_then(|mut context| match task {
        Task::Help => {
            println!("{}", arguments::HELP);
            Ok(())
        }
        Task::Ci(options) => ci::run(&mut context, &options),
        Task::Tidy => tidy::run(&context),
        Task::Fuzz { target, seconds } => fuzz::run(&context, target.as_deref(), seconds),
        Task::Previous => previous::run(&context),
        Task::Lab(words) => lab::run(&words),
        Task::Guest(words) => guest::run(&words),
        Task::Peers(words) => peers::run(&words),
        Task::Sim(words) => sim::run(&context, &words),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // The closing line of `ci` stays the last one.
        Err(error::TaskError::Reported) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}
