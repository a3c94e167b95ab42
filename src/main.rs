//! `dwcp` moves live VM memory between hosts over wide-area networks.
//!
//! This is the binary: flags, validated configuration, the budget of every fixed size, the
//! assembly of the daemon's threads, and the client commands. The main thread parses the command
//! line and becomes the control thread (`dwcp daemon`) or a client (everything else).
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

mod budget;
mod carry;
mod cli;
mod client;
mod commands;
mod config;
mod daemon;
mod demo;
mod doctor;
mod exit;
mod failure;
mod manual;
mod pki;
mod settings;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run(std::env::args_os())
}
