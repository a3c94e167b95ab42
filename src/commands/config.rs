//! `dwcp config`: the running daemon's settings, and a change of a live one.
//!
//! Main thread; asks `config.get`, or orders `config.set`. `--manual` prints the manual's table
//! without a daemon.

use super::{ask, client_command, connect, print, show, show_answer, text_table::TextTable};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::settings::value::{Kind, show_bytes, show_time};
use crate::settings::{self, manual};
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Value, json};
use std::time::Duration;

/// The command's part of the command line.
pub(super) fn command() -> Command {
    let set = client_command("set", "Change a live setting until the daemon ends")
        .arg(Arg::new("name").value_name("NAME").required(true).help("The setting"))
        .arg(Arg::new("value").value_name("VALUE").required(true).help("Its new value"));
    client_command("config", "Show the daemon's settings and where each value came from")
        .args_conflicts_with_subcommands(true)
        .subcommand(set)
        .arg(
            Arg::new("manual")
                .long("manual")
                .action(ArgAction::SetTrue)
                .help("Print the manual's table of settings; needs no daemon"),
        )
}

pub(super) fn run(matches: &ArgMatches) -> Result<Exit, Failure> {
    if let Some((_, matches)) = matches.subcommand() {
        return set(matches);
    }
    if matches.get_flag("manual") {
        print(&manual::markdown())?;
        return Ok(Exit::Done);
    }
    ask(matches, "config.get", render)
}

fn set(matches: &ArgMatches) -> Result<Exit, Failure> {
    let given = |name| matches.get_one::<String>(name).map_or("", String::as_str);
    let params = json!({"name": given("name"), "value": given("value")});
    let answer = connect(matches)?.call("config.set", &params)?;
    show_answer(matches, &answer, |_| format!("{} is {}\n", given("name"), given("value")))?;
    Ok(Exit::Done)
}

fn render(answer: &Value) -> String {
    let settings = answer.get("settings").unwrap_or(answer);
    let mut table = TextTable::new(&["setting", "value", "from", "default", "live"]);
    for row in settings.as_array().into_iter().flatten() {
        let name = show::text(row, "name");
        let live = if row["live"] == json!(true) { "yes" } else { "no" };
        let (value, default) = (human(&name, &row["value"]), human(&name, &row["default"]));
        table.push(vec![name, value, show::text(row, "from"), default, live.to_owned()]);
    }
    table.render()
}

/// A value as the flag would be written.
fn human(name: &str, value: &Value) -> String {
    let kind = settings::find(name).map(|setting| setting.kind);
    match (kind, value.as_u64()) {
        (Some(Kind::Bytes { .. } | Kind::Share { .. }), Some(bytes)) => show_bytes(bytes),
        (Some(Kind::Time { .. }), Some(micros)) => show_time(Duration::from_micros(micros)),
        _ => match value {
            Value::Null => "none".to_owned(),
            Value::Bool(on) => if *on { "on" } else { "off" }.to_owned(),
            other => show::plain(other),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_show_as_their_flags_are_written() {
        let answer = json!([
            {"name": "window", "value": 67108864, "unit": "bytes", "default": 67108864,
             "live": true, "from": "default"},
            {"name": "spin", "value": 50, "unit": "us", "default": 50, "live": false,
             "from": "file, line 3"}]);
        let text = render(&answer);
        assert!(text.contains("64MiB") && text.contains("50us"), "{text}");
        assert!(text.contains("file, line 3"), "{text}");
    }
}
