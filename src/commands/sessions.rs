//! `dwcp sessions`: every session that the daemon remembers.
//!
//! Main thread; asks `session.list` once. The list is the daemon's: newest first, ended ones and
//! those from before a restart included.

use super::{ask, show, text_table::TextTable};
use crate::exit::Exit;
use crate::failure::Failure;
use clap::ArgMatches;
use serde_json::Value;
use std::time::{SystemTime, UNIX_EPOCH};

pub(super) fn run(matches: &ArgMatches) -> Result<Exit, Failure> {
    ask(matches, "session.list", |answer| render_list(rows_of(answer), "no sessions yet"))
}

/// The records, whether the answer is the list itself or an object around it.
pub(super) fn rows_of(answer: &Value) -> &Value {
    answer.get("sessions").unwrap_or(answer)
}

/// The table of sessions, and below it the reason and the cure of each that needs attention.
pub(super) fn render_list(sessions: &Value, none: &str) -> String {
    let mut table = TextTable::new(&[
        "session", "role", "peer", "moves", "state", "round", "pages", "pending", "wire",
    ]);
    let mut notes = String::new();
    for session in sessions.as_array().into_iter().flatten() {
        let counters = &session["counters"];
        table.push(vec![
            show::text(session, "session"),
            show::text(session, "role"),
            show::text(session, "peer"),
            moves(session),
            state(session),
            show::text(session, "round"),
            show::text(session, "pages"),
            show::text(counters, "pending_pages"),
            show::bytes(counters, "wire_bytes"),
        ]);
        let id = show::text(session, "session");
        if let Some(until_unix_ms) = session["parked"]["until_unix_ms"].as_u64() {
            let reason = show::text(&session["parked"], "reason");
            let left_s = until_unix_ms.saturating_sub(unix_ms()) / 1000;
            notes.push_str(&format!(
                "{id}: its link is lost ({reason}); waits for {left_s} s more\n"
            ));
        }
        if let Some(reason) = session["reason"].as_str() {
            notes.push_str(&format!("{id}: {reason}"));
            if let Some(cure) = session["cure"].as_str() {
                notes.push_str(&format!("; {cure}"));
            }
            notes.push('\n');
        }
        // What an ended session warned of helps nobody any more; --json has it.
        if session["ended_unix_ms"].is_null() {
            let vm = &session["vm"];
            let opaque = vm["opaque"].as_str();
            let uncoded = opaque.map(|why| format!("carried uncoded by now ({why})"));
            let coding = vm["coding"]["why"].as_str().map(str::to_owned);
            for note in coding.into_iter().chain(show::warnings(vm)).chain(uncoded) {
                notes.push_str(&format!("{id}: {note}\n"));
            }
        }
    }
    if table.is_empty() { format!("{none}\n") } else { table.render() + &notes }
}

/// The wall clock, as the daemon on this host has it.
fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The state; a guest that arrived to stay paused is not one that runs.
fn state(session: &Value) -> String {
    let state = show::text(session, "state");
    let left = session["vm"]["stays_paused"] == Value::Bool(true) && state == "committed";
    if left { format!("{state}, paused") } else { state }
}

/// The region or the guest.
fn moves(session: &Value) -> String {
    match session["vm"]["name"].as_str() {
        Some(guest) => guest.to_owned(),
        None => show::text(session, "region"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_guest_is_named_and_warned_of_while_it_moves() {
        let warning = json!({"code": "carried_opaque", "message": "xbzrle is on", "cure": "off"});
        let mut session = json!({"session": "aa", "region": "", "vm": {"name": "web1",
            "opaque": "qemu-xbzrle", "warnings": [warning],
            "coding": {"why": "zstd-6 since 4.1 s: the link is the bottleneck"}}});
        let text = render_list(&json!([session]), "none");
        for words in [
            "  web1  ",
            "aa: zstd-6 since 4.1 s",
            "aa: warning: xbzrle is on: off [carried_opaque]",
            "qemu-xbzrle",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        session["ended_unix_ms"] = json!(7);
        session["state"] = json!("committed");
        session["vm"]["stays_paused"] = json!(true);
        assert!(render_list(&json!([session]), "none").contains("committed, paused"));
        assert!(!render_list(&json!([session]), "none").contains("warning"), "it is over");
    }

    #[test]
    fn a_session_that_needs_attention_says_why_and_what_to_do() {
        let list = json!([{"session": "aa", "role": "source", "peer": "b", "region": "vm",
            "state": "in_doubt", "reason": "the link was cut", "cure": "wait for b", "round": 3,
            "pages": 10, "counters": {"wire_bytes": 2048, "pending_pages": 0}}]);
        let text = render_list(&list, "none");
        assert!(text.contains("aa: the link was cut; wait for b"), "{text}");
        assert!(text.contains("2.0 KiB"), "{text}");
        assert_eq!(render_list(&json!([]), "none"), "none\n");
        let parked = json!([{"session": "bb", "state": "parked", "parked": {
            "since_unix_ms": 0, "until_unix_ms": unix_ms() + 90_500, "reason": "it was silent"}}]);
        let text = render_list(&parked, "none");
        assert!(text.contains("bb: its link is lost (it was silent); waits for 90 s"), "{text}");
    }
}
