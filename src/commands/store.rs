//! `dwcp store`: what is kept of guests that came or went.
//!
//! Main thread; one question to the daemon each.

use super::{ask, client_command, connect, show, show_answer, text_table::TextTable};
use crate::exit::Exit;
use crate::failure::Failure;
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The store's disk may have much to do first.
const REMOVED_WITHIN: Duration = Duration::from_secs(120);

/// The subcommand's part of the command line.
pub(super) fn command() -> Command {
    let remove = client_command("rm", "Remove what is kept of a guest, or everything")
        .arg(Arg::new("name").value_name("NAME").help("The guest's name"))
        .arg(
            Arg::new("all")
                .long("all")
                .action(ArgAction::SetTrue)
                .conflicts_with("name")
                .required_unless_present("name")
                .help("Remove everything"),
        );
    Command::new("store")
        .about("List and remove what is kept of guests that came or went")
        .subcommand_required(true)
        .disable_help_subcommand(true)
        .subcommand(client_command("ls", "List what is kept"))
        .subcommand(client_command("stats", "Show what the store holds and what became of it"))
        .subcommand(remove)
}

pub(super) fn run(matches: &ArgMatches) -> Result<Exit, Failure> {
    match matches.subcommand() {
        Some(("ls", matches)) => ask(matches, "store.list", render_list),
        Some(("stats", matches)) => ask(matches, "store.stats", render_stats),
        Some(("rm", matches)) => remove(matches),
        _ => unreachable!("clap requires a subcommand"),
    }
}

fn remove(matches: &ArgMatches) -> Result<Exit, Failure> {
    let params = match matches.get_one::<String>("name") {
        Some(name) => json!({ "name": name }),
        None => json!({}),
    };
    let mut client = connect(matches)?;
    client.set_timeout(REMOVED_WITHIN);
    let answer = client.call("store.remove", &params)?;
    show_answer(matches, &answer, |answer| {
        format!("{} segments are removed\n", show::text(answer, "removed"))
    })?;
    Ok(Exit::Done)
}

fn render_list(segments: &Value) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut table = TextTable::new(&["guest", "kind", "pages", "on disk", "last used"]);
    for segment in segments.as_array().into_iter().flatten() {
        let ago = segment["last_used_unix_s"].as_u64().map(|at| now.saturating_sub(at));
        let used = show::seconds(&json!({ "ago": ago }), "ago");
        let text = |name| show::text(segment, name);
        let bytes = show::bytes(segment, "bytes");
        table
            .push([text("name"), text("kind"), text("pages"), bytes, format!("{used} ago")].into());
    }
    if table.is_empty() { "nothing is kept\n".to_owned() } else { table.render() }
}

fn render_stats(stats: &Value) -> String {
    let mut table = TextTable::new(&["what", "so much"]);
    for (name, value) in stats.as_object().into_iter().flatten() {
        let shown = match name.ends_with("bytes") {
            true => show::bytes(stats, name),
            false => show::plain(value),
        };
        table.push([name.replace('_', " "), shown].into());
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_is_a_line_and_no_segment_is_said() {
        assert_eq!(render_list(&json!([])), "nothing is kept\n");
        let segment = json!({
            "segment": "00", "name": "web1", "kind": "guest", "pages": 12, "bytes": 4096,
            "last_used_unix_s": 0,
        });
        let text = render_list(&json!([segment]));
        assert!(
            text.contains("web1") && text.contains("4.0 KiB") && text.contains("ago"),
            "{text}"
        );
    }

    #[test]
    fn counters_are_shown_by_their_names() {
        let text = render_stats(&json!({ "left_alone_bytes": 2048, "pages": 7 }));
        assert!(text.contains("left alone bytes") && text.contains("2.0 KiB"), "{text}");
    }
}
