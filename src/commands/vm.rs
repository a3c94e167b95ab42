//! `dwcp vm`: which virtual machines the daemon knows, and how it reaches their QEMUs.
//!
//! Main thread; one question to the daemon each. A path is made absolute here, since the daemon has
//! another working folder.

use super::{client_command, connect, show, show_answer, text_table::TextTable};
use crate::exit::Exit;
use crate::failure::Failure;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::time::Duration;

/// How long the daemon may take to look at a QEMU.
const LOOK_WITHIN: Duration = Duration::from_secs(30);

const EXAMPLES: &str = "\
Examples:
  dwcp vm attach web1 --qmp /run/web1.qmp                 the host where it runs
  dwcp vm attach web1 --qmp /run/web1-in.qmp --incoming --accept-from host-a
                                          the host where QEMU waits (-incoming defer -S)
  dwcp vm attach web1 --incoming --accept-from host-a --spawn \\
      'qemu-system-x86_64 ... -incoming defer -S'         QEMU is started when it is needed";

/// The subcommand's part of the command line.
pub(super) fn command() -> Command {
    let name = || Arg::new("name").value_name("NAME").required(true).help("The guest's name");
    let attach = client_command("attach", "Make a guest known, by the monitor of its QEMU")
        .arg(name())
        .arg(
            Arg::new("qmp")
                .long("qmp")
                .value_name("PATH")
                .value_parser(value_parser!(PathBuf))
                .help(
                    "QEMU's QMP socket; QEMU serves one client there, which is dwcp now and then",
                ),
        )
        .arg(
            Arg::new("incoming")
                .long("incoming")
                .action(ArgAction::SetTrue)
                .help("This QEMU waits for the guest: it was started with -incoming defer -S"),
        )
        .arg(
            Arg::new("spawn")
                .long("spawn")
                .value_name("COMMAND")
                .requires("incoming")
                .conflicts_with("qmp")
                .help(
                    "Start QEMU with this command when the guest comes, and again after a failure",
                ),
        )
        .arg(
            Arg::new("accept-from")
                .long("accept-from")
                .value_name("HOST,..")
                .value_delimiter(',')
                .requires("incoming")
                .help("Which hosts may send this guest, by the names in their certificates"),
        )
        .arg(Arg::new("trust-domain").long("trust-domain").value_name("LABEL").help(
            "Share what is kept of guests of this label at both hosts; without it a guest shares \
             with itself alone",
        ))
        .after_help(EXAMPLES);
    Command::new("vm")
        .about("Attach, detach and list virtual machines")
        .subcommand_required(true)
        .disable_help_subcommand(true)
        .subcommand(attach)
        .subcommand(client_command("detach", "Forget a guest that no session moves").arg(name()))
        .subcommand(client_command("ls", "List the attached guests"))
}

pub(super) fn run(matches: &ArgMatches) -> Result<Exit, Failure> {
    match matches.subcommand() {
        Some(("attach", matches)) => attach(matches),
        Some(("detach", matches)) => detach(matches),
        Some(("ls", matches)) => super::ask(matches, "vm.list", render_list),
        _ => unreachable!("clap requires a subcommand"),
    }
}

fn attach(matches: &ArgMatches) -> Result<Exit, Failure> {
    let mut params = Map::new();
    params.insert("name".to_owned(), json!(matches.get_one::<String>("name")));
    if let Some(qmp) = matches.get_one::<PathBuf>("qmp") {
        params.insert("qmp".to_owned(), json!(std::path::absolute(qmp)?));
    }
    if matches.get_flag("incoming") {
        params.insert("incoming".to_owned(), json!(true));
    }
    if let Some(command) = matches.get_one::<String>("spawn") {
        params.insert("spawn".to_owned(), json!(command));
    }
    if let Some(hosts) = matches.get_many::<String>("accept-from") {
        params.insert("accept_from".to_owned(), json!(hosts.collect::<Vec<_>>()));
    }
    if let Some(label) = matches.get_one::<String>("trust-domain") {
        params.insert("trust_domain".to_owned(), json!(label));
    }
    let mut client = connect(matches)?;
    client.set_timeout(LOOK_WITHIN);
    let answer = client.call("vm.attach", &Value::Object(params))?;
    show_answer(matches, &answer, |answer| {
        let (name, role) = (show::text(answer, "name"), role(answer));
        format!("guest {name} is attached as {role}\n")
    })?;
    Ok(Exit::Done)
}

/// Which end of a migration a guest is attached for.
fn role(guest: &Value) -> &'static str {
    if guest["incoming"] == json!(true) { "sink" } else { "source" }
}

fn detach(matches: &ArgMatches) -> Result<Exit, Failure> {
    let name = matches.get_one::<String>("name");
    let answer = connect(matches)?.call("vm.detach", &json!({ "name": name }))?;
    show_answer(matches, &answer, |_| {
        format!("guest {} is forgotten\n", name.map_or("", String::as_str))
    })?;
    Ok(Exit::Done)
}

fn render_list(answer: &Value) -> String {
    let guests = answer.get("vms").unwrap_or(answer);
    let mut table =
        TextTable::new(&["guest", "role", "state", "monitor", "session", "accept from"]);
    for guest in guests.as_array().into_iter().flatten() {
        let monitor = if guest["spawn"].is_null() {
            show::text(guest, "qmp")
        } else {
            "started when needed".to_owned()
        };
        table.push(vec![
            show::text(guest, "name"),
            role(guest).to_owned(),
            show::text(guest, "state"),
            monitor,
            show::text(guest, "session"),
            show::text(guest, "accept_from"),
        ]);
    }
    if table.is_empty() { "no guest is attached\n".to_owned() } else { table.render() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_shows_each_guest_once() {
        let list = json!([{"name": "web1", "incoming": false, "qmp": "/run/web1.qmp",
            "session": null, "accept_from": []}]);
        let text = render_list(&list);
        assert!(text.contains("web1") && text.contains("/run/web1.qmp"), "{text}");
        assert_eq!(render_list(&json!([])), "no guest is attached\n");
    }

    #[test]
    fn a_spawned_guest_is_incoming_and_has_no_monitor_of_its_own() {
        let parse = |args: &[&str]| command().try_get_matches_from(args).is_ok();
        assert!(parse(&["vm", "attach", "a", "--incoming", "--spawn", "qemu"]));
        assert!(!parse(&["vm", "attach", "a", "--spawn", "qemu"]));
        assert!(!parse(&["vm", "attach", "a", "--incoming", "--spawn", "q", "--qmp", "p"]));
    }
}
