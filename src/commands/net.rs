//! `dwcp net`: links and their streams.
//!
//! Main thread; asks `net.show` once.

use super::{ask, show, text_table::TextTable};
use crate::exit::Exit;
use crate::failure::Failure;
use clap::ArgMatches;
use serde_json::Value;

pub(super) fn run(matches: &ArgMatches) -> Result<Exit, Failure> {
    ask(matches, "net.show", |answer| {
        let links = answer.get("links").unwrap_or(answer);
        render_links(links) + &render_streams(links)
    })
}

/// One line per link.
pub(super) fn render_links(links: &Value) -> String {
    let mut table = TextTable::new(&["peer", "epoch", "lanes", "streams"]);
    for link in links.as_array().into_iter().flatten() {
        let streams = match &link["streams"] {
            Value::Array(streams) => streams.len().to_string(),
            other => show::plain(other),
        };
        let peer = show::text(link, "peer");
        table.push(vec![peer, show::text(link, "epoch"), show::text(link, "lanes"), streams]);
    }
    if table.is_empty() { "no link is open\n".to_owned() } else { table.render() }
}

/// One line per stream.
fn render_streams(links: &Value) -> String {
    let mut table = TextTable::new(&[
        "peer",
        "stream",
        "lane",
        "sent",
        "received",
        "rtt",
        "in flight",
        "zero copy",
    ]);
    for link in links.as_array().into_iter().flatten() {
        for stream in show::list(link, "streams") {
            table.push(vec![
                show::text(link, "peer"),
                show::text(stream, "stream"),
                show::text(stream, "lane"),
                show::bytes(stream, "sent_bytes"),
                show::bytes(stream, "received_bytes"),
                show::millis(stream, "rtt_ms"),
                show::bytes(stream, "in_flight_bytes"),
                show::text(stream, "zero_copy"),
            ]);
        }
    }
    if table.is_empty() { String::new() } else { format!("\n{}", table.render()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn links_and_their_streams_render() {
        let links = json!([{"peer": "b", "epoch": 2, "lanes": 1, "streams": [
            {"id": 0, "lane": 0, "sent_bytes": 1048576, "received_bytes": 10, "rtt_ms": 0.5,
             "in_flight_bytes": 0, "zero_copy": "kernel copies"}]}]);
        let text = render_links(&links) + &render_streams(&links);
        assert!(text.contains("1.0 MiB") && text.contains("kernel copies"), "{text}");
        assert_eq!(render_links(&json!([])), "no link is open\n");
    }
}
