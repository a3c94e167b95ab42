//! One of eight streams is killed under load: how long nothing arrives, and what is sent again.
//!
//! The socket with the most bytes is destroyed in the kernel (`ss -K`), which is a reset for both
//! ends; it needs a kernel with INET_DIAG_DESTROY.
#![forbid(unsafe_code)]

use dwcp_benches::transport::{
    self, BenchError, Carriers, Load, Metrics, Options, Place, Row, Rows, Series, Target,
    random_bytes, run,
};
use dwcp_tools::lab::{Net, NetSpec, Node};
use serde_json::json;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;

const HELP: &str = "\
Usage: cargo run --release -p dwcp-benches --bin kill -- [OPTION..]
A repeat is one more stream killed in the same run.";

const DWCP_PORT: u16 = 41_000;
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 41_100);

const LINK: &str = "rate=1g delay=20ms";
const STREAMS: &str = "8";

/// 50 ms and two round trips of 40 ms.
const GAP_MS: f64 = 130.0;

/// When the first is killed, and what passes until the next: the stream is dialled again.
const FIRST_S: f64 = 6.0;
const EVERY_S: f64 = 5.0;

/// The gap is looked for in so much time behind the kill, which is short beside BBR's period: when
/// that looks for the round trip, hardly anything arrives for a fifth of a second.
const AFTER_S: f64 = 1.0;

/// How often what is in flight is looked at before the kill.
const LOOKS: u32 = 20;

fn main() -> ExitCode {
    transport::main("kill", HELP, |options, rows| {
        let data = random_bytes(64 << 20);
        let net = Net::up(&NetSpec::pair(LINK)?)?;
        measure(&net, options, &data, rows)
    })
}

/// A stream that was killed.
struct Kill {
    at_s: f64,
    /// The most that it had in flight shortly before.
    in_flight_bytes: f64,
    resent_bytes: f64,
}

fn measure(
    net: &Net,
    options: &Options,
    data: &Arc<[u8]>,
    rows: &mut Rows,
) -> Result<(), BenchError> {
    let [a, b] = ["a", "b"].map(|name| Place::Node(net.node(name)));
    let mut flags =
        ["--streams", STREAMS, "--metrics", &METRICS.to_string()].map(str::to_owned).to_vec();
    flags.extend_from_slice(&options.flags);
    let carriers = Carriers::start(a, b, DWCP_PORT, &flags)?;
    let load = Load::start(&carriers, data)?;
    let mut kills = Vec::new();
    for number in 0..if options.quick { 3 } else { options.repeats_or(8) } {
        load.wait_until(FIRST_S + number as f64 * EVERY_S)?;
        kills.push(kill(net.node("a"), &load)?);
    }
    load.wait_until(load.elapsed_s() + 1.0)?;
    let curve = load.stop()?;
    let silence = |from_s: f64| curve.longest_silence_s(from_s, from_s + AFTER_S) * 1e3;
    let gaps = kills.iter().map(|kill| silence(kill.at_s)).collect();
    let before: Vec<f64> = kills.iter().map(|kill| silence(kill.at_s - AFTER_S)).collect();
    let case = "1 Gbit/s 40 ms, one of 8 streams killed";
    let row = Row::new(case, "longest time without goodput", gaps, "ms", Target::AtMost(GAP_MS));
    let lost = |kill: &Kill| {
        let mean = |from_s: f64| curve.rate_bits(from_s, from_s + 1.0);
        ((1.0 - mean(kill.at_s) / mean(kill.at_s - 1.0)) * 1e3).round()
    };
    let lost_ms: Vec<f64> = kills.iter().map(lost).collect();
    let detail = json!({
        "without_a_kill_ms": before,
        "goodput_lost_in_a_second_ms": lost_ms,
    });
    let values = around(&kills, &curve.megabits(0.02));
    let series = vec![Series { name: "dwcp".to_owned(), step_s: 0.02, values }];
    rows.add(&row.with_detail(detail).with_series("Mbit/s", series))?;
    let of_flight = kills.iter().map(|kill| kill.resent_bytes / kill.in_flight_bytes).collect();
    let what = "sent again, of what was in flight";
    let bytes = kills.iter().map(|kill| [kill.resent_bytes.round(), kill.in_flight_bytes]);
    let row = Row::new(case, what, of_flight, "", Target::AtMost(1.0));
    rows.add(&row.with_detail(json!({"bytes": bytes.collect::<Vec<_>>()})))
}

/// The second before the last kill and the two behind it.
fn around(kills: &[Kill], megabits: &[f64]) -> Vec<f64> {
    let step = |seconds: f64| ((seconds / 0.02) as usize).min(megabits.len());
    kills
        .last()
        .map_or(Vec::new(), |kill| megabits[step(kill.at_s - 1.0)..step(kill.at_s + 2.0)].to_vec())
}

/// Kills the stream that has sent most.
fn kill(source: &Node, load: &Load) -> Result<Kill, BenchError> {
    let scrape = || Metrics::scrape(Place::Node(source), METRICS);
    let mut in_flight_bytes = 0.0_f64;
    for _ in 0..LOOKS {
        in_flight_bytes = in_flight_bytes.max(in_flight_of_busiest(&scrape()?));
    }
    let before = scrape()?;
    let port = busiest_port(source)?;
    let at_s = load.elapsed_s();
    let mut command = source.command("ss");
    command.args(["-K", "-tnH", "sport", "=", &format!(":{port}")]);
    let said = run("ss -K", &command)?;
    if !said.contains(&port.to_string()) {
        let what = "that it killed the socket (CONFIG_INET_DIAG_DESTROY?)";
        return Err(BenchError::Answer { program: "ss -K", what, answer: said });
    }
    load.wait_until(at_s + 1.0)?;
    let after = scrape()?;
    // A record of a load like this one is a frame, and all are of one size.
    let records = before.sum("dwcp_stream_sent_records_total");
    let record_bytes = before.sum("dwcp_stream_sent_bytes_total") / records;
    let resent = |metrics: &Metrics| metrics.sum("dwcp_session_resent_frames_total");
    let resent_bytes = (resent(&after) - resent(&before)) * record_bytes;
    Ok(Kill { at_s, in_flight_bytes, resent_bytes })
}

/// What the stream that has sent most has in flight.
fn in_flight_of_busiest(metrics: &Metrics) -> f64 {
    let sent = metrics.samples("dwcp_stream_sent_bytes_total");
    let busiest = sent.max_by(|a, b| a.1.total_cmp(&b.1)).map(|(labels, _)| labels);
    let mut in_flight = metrics.samples("dwcp_stream_in_flight_bytes");
    in_flight.find(|(labels, _)| Some(*labels) == busiest).map_or(0.0, |(_, bytes)| bytes)
}

/// The local port of the connection to the sink that has sent most.
fn busiest_port(source: &Node) -> Result<u16, BenchError> {
    let mut command = source.command("ss");
    command.args(["-tinOH", "state", "established", "dport", "=", &format!(":{DWCP_PORT}")]);
    let said = run("ss", &command)?;
    let busiest = said.lines().filter_map(port_and_sent).max_by_key(|(_, sent)| *sent);
    let (program, what) = ("ss", "which connections there are");
    busiest.map(|(port, _)| port).ok_or(BenchError::Answer { program, what, answer: said })
}

/// Local port and bytes sent of a line of `ss`, whose third word is the local address.
fn port_and_sent(line: &str) -> Option<(u16, u64)> {
    let port = line.split_whitespace().nth(2)?.rsplit(':').next()?.parse().ok()?;
    let sent = line.split_once("bytes_sent:")?.1.split(' ').next()?.parse().ok()?;
    Some((port, sent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_known_by_its_port_and_what_it_sent() {
        let line = "0      3456   10.70.0.1:40312 10.70.0.2:41000 bbr wscale:7,7 rto:244 \
                    bytes_sent:9812 bytes_acked:7000 segs_out:9";
        assert_eq!(port_and_sent(line), Some((40312, 9812)));
        assert_eq!(port_and_sent("0 0 10.70.0.1:40312 10.70.0.2:41000 bbr"), None);
    }
}
