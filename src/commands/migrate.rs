//! `dwcp migrate NAME --to HOST:PORT`: moves a guest, and shows how far it is until it is over.
//!
//! Main thread. The daemon does the work: this command starts it, follows it and tells how it
//! ended. Ctrl-C asks the daemon to give up, whereupon the guest runs on at the source; a second
//! one leaves at once, and the daemon goes on giving up.

use super::interrupts::Interrupts;
use super::{ANSWER_WITHIN, CANCEL_WITHIN, client_command, connect, show, show_answer};
use crate::client::{Client, Notification};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::settings::value::{parse_rate, parse_time};
use clap::{Arg, ArgAction, ArgMatches, Command};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Map, Value, json};
use std::io::{IsTerminal as _, stderr};
use std::time::Duration;

/// How often the signals are looked at.
const STEP: Duration = Duration::from_millis(100);
/// How long one look takes: enough for the runtime to see a signal.
const LOOK: Duration = Duration::from_millis(1);
const TEMPLATE: &str = "{msg:<12} [{bar:30}] {prefix}";

const EXAMPLES: &str = "\
Examples:
  dwcp migrate web1 --to host-b:7411
  dwcp migrate web1 --to host-b:7411 --downtime-limit 300ms --timeout 20m --on-timeout throttle
  dwcp migrate web1 --to host-b:7411 --mode passthrough --json

A guest that its user has paused is moved as well, and stays paused.

Exit codes: 0 the guest is at the sink; 1 it failed and the guest is at the source as before; 5 in
doubt: both ends stand paused, see 'dwcp status' and 'dwcp resolve'; 130 cancelled, the guest is at
the source as before.";

/// The subcommand's part of the command line.
pub(super) fn command() -> Command {
    client_command("migrate", "Move a guest to the host where it is attached as incoming")
        .arg(Arg::new("name").value_name("NAME").required(true).help("The guest, as attached"))
        .arg(
            Arg::new("to")
                .long("to")
                .value_name("[NAME@]HOST:PORT")
                .required(true)
                .help("Where the sink's daemon listens"),
        )
        .arg(time(
            "downtime-limit",
            "The longest pause that is accepted, such as 300ms [default: QEMU's]",
        ))
        .arg(
            Arg::new("bandwidth")
                .long("bandwidth")
                .value_name("RATE")
                .value_parser(|text: &str| {
                    parse_rate(text).ok_or("give a rate such as 900mbit or 10gbit")
                })
                .help("The most that QEMU may hand over, such as 900mbit [default: no limit]"),
        )
        .arg(time("timeout", "When --on-timeout applies, such as 20m [default: never]"))
        .arg(
            Arg::new("on-timeout")
                .long("on-timeout")
                .value_name("WORD")
                .requires("timeout")
                .value_parser(["abort", "throttle", "ramp"])
                .help("abort; throttle: slow the guest down; ramp: raise the downtime limit"),
        )
        .arg(
            Arg::new("mode")
                .long("mode")
                .value_name("WORD")
                .value_parser(["full", "passthrough"])
                .help("full: code the pages; passthrough: every byte as it is [default: full]"),
        )
        .arg(
            Arg::new("paused")
                .long("paused")
                .action(ArgAction::SetTrue)
                .help("Leave the guest paused at the sink; whoever owns it there starts it"),
        )
        .after_help(EXAMPLES)
}

fn time(name: &'static str, help: &'static str) -> Arg {
    let parse = |text: &str| {
        let time = parse_time(text).filter(|time| *time >= Duration::from_millis(1));
        time.ok_or("give a time such as 300ms, 10s or 20m")
    };
    Arg::new(name).long(name).value_name("TIME").value_parser(parse).help(help)
}

pub(super) fn run(matches: &ArgMatches) -> Result<Exit, Failure> {
    let mut interrupts = Interrupts::take()?;
    let mut client = connect(matches)?;
    client.call("subscribe", &json!({"topics": ["session.progress", "session.state"]}))?;
    let call = client.start("vm.migrate", &params(matches), &[])?;
    let name = matches.get_one::<String>("name").map_or("", String::as_str);
    let mut view = View::new(name);
    let mut cancelled = false;
    let answer = loop {
        match client.answer(call, STEP) {
            Ok(None) => {}
            Ok(Some(answer)) => break answer,
            Err(error) => {
                view.end();
                if cancelled && error.code() == Some("session_aborted") {
                    eprintln!("dwcp: {error}");
                    return Ok(Exit::Interrupted);
                }
                return Err(error.into());
            }
        }
        while let Some(notification) = client.kept_notification() {
            view.take(&notification);
        }
        if interrupts.within(LOOK) {
            if cancelled {
                view.end();
                eprintln!("dwcp: left; the daemon goes on giving up: see 'dwcp sessions'");
                return Ok(Exit::Interrupted);
            }
            cancelled = true;
            view.note("giving up; the guest stays here");
            cancel(matches, view.session.as_deref())?;
        }
    };
    view.warn(&answer);
    view.end();
    show_answer(matches, &answer, summary)?;
    Ok(Exit::Done)
}

fn params(matches: &ArgMatches) -> Value {
    let mut params = Map::new();
    let mut put = |name: &str, value: Value| params.insert(name.to_owned(), value);
    put("name", json!(matches.get_one::<String>("name")));
    put("peer", json!(matches.get_one::<String>("to")));
    let millis = |flag| {
        let time: Option<&Duration> = matches.get_one(flag);
        time.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    };
    let given = [
        ("downtime_limit_ms", millis("downtime-limit").map(Value::from)),
        ("timeout_ms", millis("timeout").map(Value::from)),
        (
            "bandwidth_bytes_per_second",
            matches.get_one::<u64>("bandwidth").copied().map(Value::from),
        ),
        ("on_timeout", matches.get_one::<String>("on-timeout").map(|word| json!(word))),
        ("mode", matches.get_one::<String>("mode").map(|word| json!(word))),
        ("paused", matches.get_flag("paused").then_some(json!(true))),
    ];
    for (name, value) in given {
        if let Some(value) = value {
            put(name, value);
        }
    }
    Value::Object(params)
}

/// Asks for the end over a connection of its own: the first one waits for the migration.
fn cancel(matches: &ArgMatches, session: Option<&str>) -> Result<(), Failure> {
    // A migration without a session has not begun: its answer comes by itself.
    let Some(session) = session else { return Ok(()) };
    let mut client: Client = connect(matches)?;
    client.set_timeout(CANCEL_WITHIN.max(ANSWER_WITHIN));
    match client.call("session.abort", &json!({ "session": session })) {
        Ok(_) => Ok(()),
        // Too late, or over already: the first connection tells how it ended.
        Err(error) if error.is_refusal() => {
            eprintln!("dwcp: {error}");
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// What people see meanwhile: a bar on a terminal, a line for each change elsewhere.
struct View<'a> {
    name: &'a str,
    session: Option<String>,
    /// It was said that the migration will not end by itself.
    is_hopeless: bool,
    /// The warnings were shown.
    warned: bool,
    bar: ProgressBar,
}

impl<'a> View<'a> {
    fn new(name: &'a str) -> Self {
        let shown = stderr().is_terminal();
        let target =
            if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        let style = ProgressStyle::with_template(TEMPLATE);
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
        Self { name, session: None, is_hopeless: false, warned: false, bar }
    }

    fn take(&mut self, notification: &Notification) {
        let params = &notification.params;
        // A change of state names the guest; progress tells more of it.
        let name = params["vm"].as_str().or(params["vm"]["name"].as_str());
        if name != Some(self.name) {
            return;
        }
        if let Some(session) = params["session"].as_str() {
            self.session = Some(session.to_owned());
        }
        match notification.method.as_str() {
            "session.state" => {
                self.warn(params);
                let state = show::text(params, "state");
                self.note(&format!("{}: {state}", self.name));
                self.bar.set_message(state);
            }
            _ => self.progress(params),
        }
    }

    fn progress(&mut self, params: &Value) {
        let vm = &params["vm"];
        let why = vm["because"].as_str();
        if let Some(why) = why.filter(|_| !self.is_hopeless) {
            self.note(&format!("{}: will not converge because {why}", self.name));
        }
        self.is_hopeless = why.is_some();
        let total = vm["total_bytes"].as_u64().unwrap_or(0);
        let remaining = vm["remaining_bytes"].as_u64().unwrap_or(total);
        self.bar.set_length(total);
        self.bar.set_position(total.saturating_sub(remaining));
        self.bar.set_prefix(progress_text(params));
    }

    /// Shows what the migration warns of, once.
    fn warn(&mut self, told: &Value) {
        if self.warned {
            return;
        }
        for warning in show::warnings(told) {
            self.note(&warning);
            self.warned = true;
        }
    }

    fn note(&self, line: &str) {
        self.bar.suspend(|| eprintln!("dwcp: {line}"));
    }

    fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// Rate, ratio, what is left and when it ends, or why it doesn't.
fn progress_text(params: &Value) -> String {
    let vm = &params["vm"];
    let rate = show::bytes(params, "rate_bytes_per_s");
    let ratio = vm["ratio_milli"].as_f64().map_or(1.0, |milli| milli / 1000.0);
    let mut text = format!("{rate}/s, ratio {ratio:.1}");
    if let Some(level @ 1..) = vm["zstd_level"].as_u64() {
        text.push_str(&format!(" at zstd-{level}"));
    }
    match vm["coding"]["bottleneck"].as_str() {
        Some("link") => text.push_str(", waits for the link"),
        Some("core") => text.push_str(", waits for its core"),
        _ => {}
    }
    if vm["remaining_bytes"].is_u64() {
        text.push_str(&format!(", {} left", show::bytes(vm, "remaining_bytes")));
    }
    match (vm["end_in_ms"].as_u64(), vm["because"].as_str()) {
        (_, Some(why)) => text.push_str(&format!("; will not converge because {why}")),
        (Some(ms), None) => text.push_str(&format!("; about {} s more", ms.div_ceil(1000))),
        (None, None) => {}
    }
    if let Some(why) = vm["opaque"].as_str() {
        text.push_str(&format!("; carried uncoded now ({why})"));
    }
    text
}

/// What a migration came to.
fn summary(answer: &Value) -> String {
    let counters = &answer["counters"];
    let count = |name: &str| counters[name].as_u64().unwrap_or(0);
    let (raw, wire) = (count("vmm_in_bytes"), count("wire_bytes"));
    let ratio = if wire == 0 {
        "-".to_owned()
    } else {
        // Far below 2^52 bytes in practice, and for display alone.
        format!("{:.2}", raw as f64 / wire as f64)
    };
    let (vm, peer) = (show::text(answer, "vm"), show::text(answer, "peer_name"));
    let paused = answer["paused"] == json!(true);
    let how = if paused { ", paused: cont in its monitor there starts it" } else { "" };
    let mut text = format!("{vm} is at {peer} now{how}\n");
    let rows = [
        ("total", show::seconds(answer, "seconds")),
        ("blackout", show::millis(answer, "blackout_ms")),
        ("from QEMU", show::human_bytes(raw)),
        ("on the wire", show::human_bytes(wire)),
        ("ratio", ratio),
    ];
    for (name, value) in rows {
        text.push_str(&format!("  {name:12} {value}\n"));
    }
    if let Some(pages) = answer["before_pages"].as_u64() {
        let bytes = show::human_bytes(pages * 4096);
        text.push_str(&format!("  {:12} {bytes}: held at both ends from before\n", "known"));
    }
    if count("held_pages") > 0 {
        let bytes = show::human_bytes(count("held_pages") * 4096);
        text.push_str(&format!("  {:12} {bytes}: known at the sink alone\n", "known"));
    }
    if let Some(why) = answer["opaque"].as_str() {
        let uncoded = show::human_bytes(count("opaque_bytes"));
        text.push_str(&format!("  {:12} {uncoded}: carried as it came ({why})\n", "uncoded"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_become_the_request_in_its_units() {
        let matches = command().get_matches_from([
            "migrate",
            "web1",
            "--to",
            "b:7411",
            "--downtime-limit",
            "300ms",
            "--bandwidth",
            "900mbit",
            "--timeout",
            "20m",
            "--on-timeout",
            "ramp",
            "--mode",
            "passthrough",
        ]);
        let expected = json!({"name": "web1", "peer": "b:7411", "downtime_limit_ms": 300,
            "bandwidth_bytes_per_second": 112_500_000, "timeout_ms": 1_200_000,
            "on_timeout": "ramp", "mode": "passthrough"});
        assert_eq!(params(&matches), expected);
    }

    #[test]
    fn a_wrong_unit_is_refused_with_an_example() {
        for args in [["--bandwidth", "900"], ["--timeout", "20"], ["--downtime-limit", "0ms"]] {
            let all = ["migrate", "web1", "--to", "b:7411"].into_iter().chain(args);
            let error = command().try_get_matches_from(all).unwrap_err().to_string();
            assert!(error.contains("such as"), "{error}");
        }
    }

    #[test]
    fn what_was_carried_uncoded_is_said_with_its_size() {
        let answer = json!({"vm": "web1", "peer_name": "b", "opaque": "qemu-xbzrle",
            "counters": {"vmm_in_bytes": 4096, "wire_bytes": 2048, "opaque_bytes": 1536}});
        let text = summary(&answer);
        assert!(text.contains("uncoded      1.5 KiB: carried as it came (qemu-xbzrle)"), "{text}");
        assert!(text.starts_with("web1 is at b now\n"), "{text}");
        let text = summary(&json!({"vm": "web1", "peer_name": "b", "paused": true}));
        assert!(text.starts_with("web1 is at b now, paused: "), "{text}");
    }

    #[test]
    fn a_migration_that_does_not_end_says_why() {
        let params = json!({"rate_bytes_per_s": 1024, "vm": {"name": "web1", "ratio_milli": 2500,
            "zstd_level": 3, "coding": {"bottleneck": "link"}, "because": "it writes too fast",
            "remaining_bytes": 2048, "end_in_ms": null}});
        let text = progress_text(&params);
        assert_eq!(
            text,
            "1.0 KiB/s, ratio 2.5 at zstd-3, waits for the link, 2.0 KiB left; will not converge \
             because it writes too fast"
        );
    }
}
