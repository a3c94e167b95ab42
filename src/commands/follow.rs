//! `dwcp sessions --follow`: one line for each change of a session, until interrupted.
//!
//! Main thread; subscribes and then only reads. A reader that is too slow loses the oldest
//! notifications and is told how many.

use super::{connect, print, show};
use crate::exit::Exit;
use crate::failure::Failure;
use clap::{Arg, ArgAction, ArgMatches};
use serde_json::{Value, json};
use std::time::Duration;

/// The daemon is silent while nothing happens; waking up now and then costs nothing.
const WAIT: Duration = Duration::from_secs(60);

/// The flag that asks for it.
pub(super) fn flag() -> Arg {
    Arg::new("follow")
        .long("follow")
        .action(ArgAction::SetTrue)
        .help("Print a line for each change until interrupted")
}

pub(super) fn run(matches: &ArgMatches) -> Result<Exit, Failure> {
    let as_json = matches.get_flag("json");
    let mut client = connect(matches)?;
    client.call("subscribe", &json!({"topics": ["session.progress", "session.state"]}))?;
    let mut lost_before = 0;
    loop {
        let Some(notification) = client.next_notification(WAIT)? else { continue };
        let lost = client.notifications_lost();
        if lost > lost_before {
            eprintln!("dwcp: {} notifications were lost", lost - lost_before);
            lost_before = lost;
        }
        print(&if as_json {
            let (method, params) = (notification.method, notification.params);
            format!("{}\n", json!({"method": method, "params": params}))
        } else {
            line(&notification.method, &notification.params)
        })?;
    }
}

fn line(method: &str, params: &Value) -> String {
    let detail = match method {
        "session.progress" => format!(
            "round {}, {} pages pending, {}/s",
            show::text(params, "round"),
            show::text(params, "pages_pending"),
            show::bytes(params, "rate_bytes_per_s"),
        ),
        _ => {
            let reason = params["reason"].as_str().or(params["parked"]["reason"].as_str());
            reason.unwrap_or("").to_owned()
        }
    };
    let (session, role) = (show::text(params, "session"), show::text(params, "role"));
    let line = format!("{session}  {role:6}  {:10}  {detail}", show::text(params, "state"));
    format!("{}\n", line.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_and_a_progress_are_one_line_each() {
        let change = json!({"session": "aa", "role": "sink", "state": "failed", "reason": "cut"});
        assert_eq!(line("session.state", &change), "aa  sink    failed      cut\n");
        let progress = json!({"session": "aa", "role": "source", "state": "precopy", "round": 2,
            "pages_pending": 7, "rate_bytes_per_s": 1024});
        let text = line("session.progress", &progress);
        assert_eq!(text, "aa  source  precopy     round 2, 7 pages pending, 1.0 KiB/s\n");
    }
}
