//! The client commands: each asks the daemon one thing and shows the answer.
//!
//! Main thread, blocking, every wait bounded. With `--json` the daemon's answer is printed as it
//! came, in one document; without it, a table for people.

mod cancel;
mod config;
mod follow;
pub(crate) mod info;
mod interrupts;
mod migrate;
mod net;
mod resolve;
mod sessions;
mod show;
mod status;
mod store;
pub(crate) mod text_table;
mod vm;

use crate::client::Client;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::settings::table::Scope;
use crate::settings::{self, flags};
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

/// How long the daemon may take to answer a question; it answers from memory.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long it may take to end a session: the peer is told, the journal written.
const CANCEL_WITHIN: Duration = Duration::from_secs(60);

/// A command that talks to the daemon.
pub(crate) fn client_command(name: &'static str, about: &'static str) -> Command {
    Command::new(name).about(about).arg(json_flag()).args(flags(Scope::Everyone))
}

/// The flag for machines.
pub(crate) fn json_flag() -> Arg {
    Arg::new("json")
        .long("json")
        .action(ArgAction::SetTrue)
        .help("Print one JSON document instead of a table")
}

/// The client commands' part of the command line.
pub(crate) fn all() -> Vec<Command> {
    let id = Arg::new("id").value_name("ID").required(true).help("The session, or its beginning");
    vec![
        client_command("status", "Show the daemon's health, sessions, links and shards"),
        client_command("sessions", "List sessions, the newest first, ended ones included")
            .arg(follow::flag()),
        client_command("cancel", "Give up a session; its source keeps its region or guest").arg(id),
        client_command("net", "Show links and their streams"),
        config::command(),
        vm::command(),
        store::command(),
        migrate::command(),
        resolve::command(),
    ]
}

/// Runs the client command of that name.
pub(crate) fn run(name: &str, matches: &ArgMatches) -> Result<Exit, Failure> {
    match name {
        "status" => status::run(matches),
        "sessions" if matches.get_flag("follow") => follow::run(matches),
        "sessions" => sessions::run(matches),
        "cancel" => cancel::run(matches),
        "net" => net::run(matches),
        "config" => config::run(matches),
        "vm" => vm::run(matches),
        "store" => store::run(matches),
        "migrate" => migrate::run(matches),
        "resolve" => resolve::run(matches),
        other => unreachable!("the command line has a command '{other}' that nobody runs"),
    }
}

/// Connects to the socket that the command line names.
fn connect(matches: &ArgMatches) -> Result<Client, Failure> {
    let Some(setting) = settings::find("socket") else {
        unreachable!("the table has a setting 'socket'");
    };
    let given = settings::flag_text(matches, setting);
    let path = given.map_or_else(|| PathBuf::from(setting.default), PathBuf::from);
    Ok(Client::connect(&path, ANSWER_WITHIN)?)
}

/// Asks one question; shows the answer as JSON or by `table`.
fn ask(
    matches: &ArgMatches,
    method: &str,
    table: impl FnOnce(&Value) -> String,
) -> Result<Exit, Failure> {
    let answer = connect(matches)?.call(method, &json!({}))?;
    show_answer(matches, &answer, table)?;
    Ok(Exit::Done)
}

/// Shows an answer as JSON or by `table`.
fn show_answer(
    matches: &ArgMatches,
    answer: &Value,
    table: impl FnOnce(&Value) -> String,
) -> Result<(), Failure> {
    let text = if matches.get_flag("json") { format!("{answer:#}\n") } else { table(answer) };
    print(&text)
}

/// Writes to standard output; a reader that left is an error, not a panic.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut output = std::io::stdout().lock();
    output.write_all(text.as_bytes())?;
    Ok(output.flush()?)
}
