//! `dwcp doctor`: what this machine has, what it lacks, and what to change.
//!
//! Main thread, needs no daemon, changes nothing but an empty file in `--state` that it removes at
//! once. Each check stands alone: one that can't be made says so and the others go on. A missing
//! thing that has a fallback is a warning, one without is a failure.

mod check;
mod cores;
mod files;
mod kernel;
mod limits;
mod network;

use crate::commands::{json_flag, print, text_table::TextTable};
use crate::exit::Exit;
use crate::failure::Failure;
use check::{Check, Status};
use clap::{Arg, ArgMatches, Command, value_parser};
use serde_json::json;
use std::path::PathBuf;

/// The command's part of the command line.
pub(crate) fn command() -> Command {
    let folder = |name: &'static str, help: &'static str| {
        let arg = Arg::new(name).long(name).value_name("PATH");
        arg.value_parser(value_parser!(PathBuf)).help(help)
    };
    Command::new("doctor")
        .about("Check this machine and say what to change")
        .arg(json_flag())
        .arg(folder("pki", "Check this host's certificates too"))
        .arg(folder("state", "Check that the journals' folder can be written, too"))
        .after_help("Exit code 0 when nothing fails, 3 otherwise; warnings don't fail.")
}

/// Runs all checks and shows them.
pub(crate) fn run(matches: &ArgMatches) -> Result<Exit, Failure> {
    let mut checks = kernel::checks();
    checks.extend(limits::checks());
    checks.extend(cores::checks());
    checks.extend(network::checks());
    checks.extend(files::checks(
        matches.get_one::<PathBuf>("pki").map(PathBuf::as_path),
        matches.get_one::<PathBuf>("state").map(PathBuf::as_path),
    ));
    let failed = checks.iter().any(|check| check.status == Status::Fail);
    if matches.get_flag("json") {
        print(&format!("{:#}\n", json!({"ok": !failed, "checks": checks})))?;
    } else {
        print(&render(&checks))?;
    }
    Ok(if failed { Exit::Machine } else { Exit::Done })
}

fn render(checks: &[Check]) -> String {
    let mut table = TextTable::new(&["", "check", "found"]);
    for check in checks {
        let status = match check.status {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Fail => "FAIL",
        };
        table.push(vec![status.to_owned(), check.name.to_owned(), check.found.clone()]);
        if let Some(cure) = &check.cure {
            table.push(vec![String::new(), String::new(), format!("-> {cure}")]);
        }
    }
    let count = |status| checks.iter().filter(|check| check.status == status).count();
    let (failed, warned) = (count(Status::Fail), count(Status::Warn));
    let verdict = match (failed, warned) {
        (0, 0) => "this machine has all that dwcp can use".to_owned(),
        (0, warned) => format!("dwcp runs here; {warned} thing(s) could be better"),
        (failed, _) => format!("dwcp can't run here: {failed} thing(s) must change"),
    };
    format!("{}\n{verdict}\n", table.render())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_ok_says_what_to_change() {
        let mut checks = kernel::checks();
        checks.extend(limits::checks());
        checks.extend(cores::checks());
        checks.extend(network::checks());
        assert!(checks.len() >= 10);
        for check in &checks {
            assert!(!check.found.is_empty(), "{}", check.name);
            assert_eq!(check.status != Status::Ok, check.cure.is_some(), "{check:?}");
        }
    }

    #[test]
    fn the_verdict_counts_failures_before_warnings() {
        let checks = [
            Check::ok("a", "fine"),
            Check::warn("b", "slow", "speed it up"),
            Check::fail("c", "gone", "bring it back"),
        ];
        let text = render(&checks);
        assert!(text.contains("-> bring it back") && text.contains("1 thing(s) must"), "{text}");
        assert!(render(&checks[..2]).contains("dwcp runs here"));
    }
}
