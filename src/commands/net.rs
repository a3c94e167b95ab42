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
    let mut table = TextTable::new(&["peer", "wire", "epoch", "lanes", "streams"]);
    for link in links.as_array().into_iter().flatten() {
        let streams = match &link["streams"] {
            Value::Array(streams) => streams.len().to_string(),
            other => show::plain(other),
        };
        let text = |name| show::text(link, name);
        let row = [text("peer"), text("wire_version"), text("epoch"), text("lanes"), streams];
        table.push(row.into());
    }
    let table = if table.is_empty() { "no link is open\n".to_owned() } else { table.render() };
    table + &render_tuned(links)
}

/// One line for each lane whose number of streams is found out.
fn render_tuned(links: &Value) -> String {
    let mut text = String::new();
    for link in links.as_array().into_iter().flatten() {
        for lane in show::list(link, "tuned") {
            let line = format!(
                "{}, lane {}: {} of {} carry, {}: {}\n",
                show::text(link, "peer"),
                show::text(lane, "lane"),
                show::text(lane, "carrying"),
                show::text(lane, "places"),
                show::text(lane, "congestion"),
                show::text(lane, "reason"),
            );
            text.push_str(&line);
        }
    }
    text
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
        "path rtt",
        "resent",
        "bound by",
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
                path_rtt(&stream["tcp"]),
                show::bytes(&stream["tcp"], "retransmitted_bytes"),
                bound_by(&stream["tcp"]).to_owned(),
                show::text(stream, "zero_copy"),
            ]);
        }
    }
    if table.is_empty() { String::new() } else { format!("\n{}", table.render()) }
}

/// The kernel's round trip; nothing before the first one.
fn path_rtt(tcp: &Value) -> String {
    match tcp["rtt_us"].as_f64() {
        Some(micros) if micros > 0.0 => format!("{:.1} ms", micros / 1e3),
        _ => "-".to_owned(),
    }
}

/// What keeps a stream from being faster: buffers that were full, or what the newest rate says.
fn bound_by(tcp: &Value) -> &'static str {
    /// Below this share of its time a full buffer does not matter.
    const SHARE_MIN: f64 = 0.2;
    let share = |field: &str| tcp[field].as_f64().unwrap_or(0.0);
    if tcp.is_null() {
        "-"
    } else if tcp["busy_ms"].as_u64().unwrap_or(0) == 0 {
        "idle"
    } else if share("receive_window_limited") >= SHARE_MIN {
        "receive window"
    } else if share("send_buffer_limited") >= SHARE_MIN {
        "send buffer"
    } else if tcp["app_limited"] == true {
        "sender"
    } else {
        "path"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn links_and_their_streams_render() {
        let links = json!([{"peer": "b", "wire_version": 2, "epoch": 2, "lanes": 1, "tuned": [
            {"lane": 0, "carrying": 8, "open": 8, "places": 64, "congestion": "cubic",
             "why": "path_full", "reason": "the path is full"}], "streams": [
            {"id": 0, "lane": 0, "sent_bytes": 1048576, "received_bytes": 10, "rtt_ms": 0.5,
             "in_flight_bytes": 0, "zero_copy": "kernel copies",
             "tcp": {"rtt_us": 40123, "retransmitted_bytes": 3072, "busy_ms": 7}}]}]);
        let text = render_links(&links) + &render_streams(&links);
        assert!(text.contains("1.0 MiB") && text.contains("kernel copies"), "{text}");
        assert!(text.contains("40.1 ms") && text.contains("3.0 KiB"), "{text}");
        assert!(text.contains("b, lane 0: 8 of 64 carry, cubic: the path is full\n"), "{text}");
        assert_eq!(render_links(&json!([])), "no link is open\n");
    }

    #[test]
    fn what_binds_a_stream_is_told_by_the_kernels_figures() {
        let told = |busy_ms: u64, window: f64, buffer: f64, app_limited: bool| {
            bound_by(&json!({"busy_ms": busy_ms, "receive_window_limited": window,
                "send_buffer_limited": buffer, "app_limited": app_limited}))
        };
        assert_eq!(told(0, 0.0, 0.0, true), "idle");
        assert_eq!(told(9, 0.5, 0.3, true), "receive window");
        assert_eq!(told(9, 0.1, 0.3, true), "send buffer");
        assert_eq!(told(9, 0.0, 0.1, true), "sender");
        assert_eq!(told(9, 0.0, 0.0, false), "path");
        assert_eq!((bound_by(&Value::Null), path_rtt(&Value::Null)), ("-", "-".to_owned()));
    }
}
