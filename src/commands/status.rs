//! `dwcp status`: the daemon at a glance.
//!
//! Main thread; asks `status` once.

use super::{ask, net, sessions, show, text_table::TextTable};
use crate::exit::Exit;
use crate::failure::Failure;
use clap::ArgMatches;
use serde_json::Value;

pub(super) fn run(matches: &ArgMatches) -> Result<Exit, Failure> {
    ask(matches, "status", render)
}

fn render(status: &Value) -> String {
    let daemon = &status["daemon"];
    let mut text = format!(
        "daemon   dwcp {} on {}, pid {}, up {}\nhealth   {}\n",
        show::text(daemon, "version"),
        show::text(daemon, "host"),
        show::text(daemon, "pid"),
        show::seconds(daemon, "uptime_s"),
        show::text(status, "health"),
    );
    text.push_str(&render_memory(&status["memory"]));
    text.push_str("\nSessions\n");
    text.push_str(&sessions::render_list(&status["sessions"], "no session is open"));
    text.push_str("\nLinks\n");
    text.push_str(&net::render_links(&status["links"]));
    text.push_str(&render_dialling(status));
    text.push_str("\nShards\n");
    text.push_str(&render_shards(status));
    text
}

/// The page memory for sessions; nothing of a daemon that does not tell it.
fn render_memory(memory: &Value) -> String {
    if memory.is_null() {
        return String::new();
    }
    format!(
        "memory   {} ready of {}, {} in use\n",
        show::bytes(memory, "ready_bytes"),
        show::bytes(memory, "wanted_bytes"),
        show::bytes(memory, "held_bytes"),
    )
}

/// Peers that are dialled until they answer; nothing where there are none.
fn render_dialling(status: &Value) -> String {
    let mut table = TextTable::new(&["peer", "address", "next", "until it has heard"]);
    for peer in show::list(status, "dialling") {
        let why = match peer["why"].as_str() {
            Some("in_doubt") => "the question how a session ended",
            Some("decision_untold") => "what an operator decided",
            Some("end_untold") => "that a session ended at the source",
            _ => "-",
        };
        table.push(vec![
            show::text(peer, "peer"),
            show::text(peer, "address"),
            format!("in {} s", show::text(peer, "next_in_s")),
            why.to_owned(),
        ]);
    }
    if table.is_empty() { String::new() } else { format!("\nDialling\n{}", table.render()) }
}

/// The shards' counters change with the version, so the daemon's own names are the headings.
fn render_shards(status: &Value) -> String {
    let Some(first) = show::list(status, "shards").next().and_then(Value::as_object) else {
        return "none\n".to_owned();
    };
    let scalar = |value: &Value| !value.is_object() && !value.is_array();
    let names: Vec<&str> =
        first.iter().filter(|(_, value)| scalar(value)).map(|(name, _)| name.as_str()).collect();
    let mut table = TextTable::new(&names);
    for shard in show::list(status, "shards") {
        table.push(names.iter().map(|name| show::text(shard, name)).collect());
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_idle_daemon_and_a_busy_one_both_render() {
        let idle = json!({"daemon": {"version": "0.1.0", "pid": 7, "uptime_s": 61, "host": "a"},
            "health": "ok", "sessions": [], "links": [], "shards": []});
        let text = render(&idle);
        assert!(text.contains("dwcp 0.1.0 on a, pid 7, up 1 min 1 s"), "{text}");
        assert!(text.contains("no session is open"), "{text}");
        assert!(!text.contains("Dialling") && !text.contains("memory"), "{text}");
        let mut busy = idle;
        busy["dialling"] = json!([{"peer": "b", "address": "b:7411", "why": "end_untold",
            "next_in_s": 7}]);
        busy["shards"] = json!([{"shard": 0, "polls": 12, "more": {}}]);
        busy["sessions"] = json!([{"session": "00ff", "role": "source", "state": "precopy"}]);
        busy["memory"] =
            json!({"ready_bytes": 4 << 20, "wanted_bytes": 6 << 20, "held_bytes": 2 << 20});
        let text = render(&busy);
        assert!(text.contains("memory   4.0 MiB ready of 6.0 MiB, 2.0 MiB in use"), "{text}");
        assert!(text.contains("POLLS") && text.contains("precopy"), "{text}");
        assert!(text.contains("b     b:7411   in 7 s  that a session ended"), "{text}");
    }
}
