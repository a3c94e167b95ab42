//! The command line: the tree of subcommands, the one-line form of its errors, and the dispatch.
//!
//! Runs on the main thread. Settings of the daemon come from the table in [`crate::settings`]; this
//! module adds only what is no setting. It prints failures and turns them into exit codes; the work
//! is done in the modules that it calls.

use crate::carry;
use crate::commands;
use crate::daemon;
use crate::demo;
use crate::doctor;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::pki;
use crate::settings::{self, table::Scope};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command};
use std::ffi::OsString;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  dwcp demo                                     see it work on this machine
  dwcp pki init pki && dwcp pki host a pki      make the certificates of host 'a'
  dwcp daemon --pki pki/a --state /var/lib/dwcp --cores 2,3
  dwcp status                                   what the daemon does now
  dwcp doctor                                   what this machine lacks

Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 this machine lacks something,
4 daemon or peer unreachable, 5 in doubt, 130 interrupted.";

/// The whole command line.
pub(crate) fn command() -> Command {
    Command::new("dwcp")
        .about("Moves live VM memory between hosts over wide-area networks.")
        .version(env!("CARGO_PKG_VERSION"))
        .after_help(EXAMPLES)
        .subcommand_required(true)
        .disable_help_subcommand(true)
        .subcommand(demo::command())
        .subcommand(daemon_command())
        .subcommands(commands::all())
        .subcommand(carry::command())
        .subcommand(doctor::command())
        .subcommand(pki::command())
}

/// The daemon's own flags, beside its settings.
fn daemon_command() -> Command {
    let info = commands::client_command("info", "Show the running daemon's version and features");
    Command::new("daemon")
        .about("Run on a migration host: peers connect, clients give orders on the socket")
        .args_conflicts_with_subcommands(true)
        .subcommand(info)
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .value_parser(clap::value_parser!(std::path::PathBuf))
                .help("TOML file with 'setting = value' lines; a flag wins over the file"),
        )
        .arg(
            Arg::new("check")
                .long("check")
                .action(ArgAction::SetTrue)
                .help("Check the settings and the budget, print the budget, and end"),
        )
        .args(settings::flags(Scope::Daemon))
}

/// Parses, dispatches, and turns what comes of it into the exit code.
pub(crate) fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match command().try_get_matches_from(args) {
        Ok(matches) => finish(dispatch(&matches)),
        Err(error) if error.use_stderr() => {
            eprintln!("dwcp: {}", one_line(&error));
            Exit::Usage.into()
        }
        Err(help_or_version) => match help_or_version.print() {
            Ok(()) => Exit::Done.into(),
            Err(_) => Exit::Failed.into(),
        },
    }
}

fn dispatch(matches: &ArgMatches) -> Result<ExitCode, Failure> {
    let Some((name, matches)) = matches.subcommand() else {
        unreachable!("clap requires a subcommand");
    };
    let exit = match name {
        "daemon" => match matches.subcommand() {
            Some(("info", matches)) => commands::info::run(matches),
            _ => daemon::run(matches),
        },
        "carry" => carry::run(matches),
        "demo" => return Ok(demo::run(matches)),
        "doctor" => doctor::run(matches),
        "pki" => pki::run(matches),
        _ => commands::run(name, matches),
    }?;
    Ok(exit.into())
}

fn finish(result: Result<ExitCode, Failure>) -> ExitCode {
    match result {
        Ok(code) => code,
        // The reader of a pipe left: nobody is there to be told.
        Err(Failure::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            Exit::Done.into()
        }
        Err(failure) => {
            for line in failure.to_string().lines() {
                eprintln!("dwcp: {line}");
            }
            failure.exit().into()
        }
    }
}

/// A wrong command line in one line, with the cure.
fn one_line(error: &clap::Error) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => texts.first().cloned(),
        _ => None,
    };
    let hint = |kind| match context(kind) {
        Some(near) => format!("did you mean '{near}'?"),
        None => "'--help' lists what there is".to_owned(),
    };
    match error.kind() {
        ErrorKind::UnknownArgument => {
            let flag = context(ContextKind::InvalidArg).unwrap_or_default();
            format!("there is no flag '{flag}' here: {}", hint(ContextKind::SuggestedArg))
        }
        ErrorKind::InvalidSubcommand => {
            let name = context(ContextKind::InvalidSubcommand).unwrap_or_default();
            let hint = hint(ContextKind::SuggestedSubcommand);
            format!("there is no command '{name}': {hint}")
        }
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            "which command? 'dwcp --help' lists them".to_owned()
        }
        _ => plain(&error.to_string()),
    }
}

/// The first paragraph of clap's own text on one line.
fn plain(text: &str) -> String {
    let paragraph = text.split("\n\n").next().unwrap_or(text);
    let line = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    format!("{} ('--help' shows how)", line.trim_start_matches("error: "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(args: &[&str]) -> String {
        let args = std::iter::once("dwcp").chain(args.iter().copied());
        let error = command().try_get_matches_from(args).expect_err("the arguments are wrong");
        assert!(error.use_stderr(), "{error}");
        one_line(&error)
    }

    #[test]
    fn the_tree_of_commands_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn a_wrong_command_line_is_one_line_with_the_cure() {
        for (args, parts) in [
            (&["daemon", "--steams", "4"][..], ["'--steams'", "'--streams'"]),
            (&["statsu"], ["'statsu'", "'status'"]),
            (&["frobnicate"], ["'frobnicate'", "--help"]),
            (&["cancel"], ["<ID>", "--help"]),
            (&["pki"], ["command", "--help"]),
            (&["daemon", "--streams"], ["--streams", "--help"]),
        ] {
            let line = fault(args);
            assert!(parts.iter().all(|part| line.contains(part)), "{args:?}: {line}");
            assert!(!line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn help_is_short_and_names_every_command() {
        let help = command().render_help().to_string();
        assert!(help.lines().count() < 40, "{help}");
        let names = "demo daemon status sessions cancel net config vm migrate resolve doctor pki"
            .split(' ');
        for name in names {
            assert!(help.contains(&format!("\n  {name} ")), "{name} is missing in:\n{help}");
        }
    }
}
