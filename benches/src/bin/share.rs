//! How dwcp shares a path: with another dwcp, and with one stream of iperf3 under BBR.
//!
//! With the kernel's default bounds iperf3's buffers hold less than the longer path, and one stream
//! leaves a third of it to whoever else is there. What is measured here is how senders share, so
//! the buffers of both hosts may grow to what the path holds.
#![forbid(unsafe_code)]

use dwcp_benches::transport::{
    self, BenchError, Carriers, Curve, Iperf, Load, Options, Place, Row, Rows, Series, Target,
    evenness, io, random_bytes,
};
use dwcp_tools::lab::{Net, NetSpec, Node};
use serde_json::json;
use std::fs;
use std::process::ExitCode;
use std::sync::Arc;

const HELP: &str = "\
Usage: cargo run --release -p dwcp-benches --bin share -- [OPTION..]";

const PORTS: [u16; 2] = [41_000, 41_001];
const IPERF: Iperf = Iperf { streams: 1, congestion: "bbr", port: 52_010 };

const PATHS: [(&str, &str); 2] =
    [("1 Gbit/s 40 ms", "rate=1g delay=20ms"), ("100 Mbit/s 100 ms", "rate=100m delay=50ms")];

/// The least, the first and the largest buffer of a connection, in bytes.
const BUFFERS: &str = "4096 131072 67108864";

/// The second sender comes so much later, when the first has the path.
const SECOND_AFTER_S: u32 = 5;
/// Both have so long to find their shares; BBR looks for the round trip, and so gives way, once in
/// ten seconds.
const SETTLE_S: u32 = 20;
const SPAN_S: u32 = 20;

fn main() -> ExitCode {
    transport::main("share", HELP, |options, rows| {
        let data = random_bytes(64 << 20);
        let paths = PATHS.iter().filter(|(name, _)| options.takes(name));
        paths.into_iter().try_for_each(|path| measure(*path, options, &data, rows))
    })
}

fn measure(
    (name, link): (&str, &str),
    options: &Options,
    data: &Arc<[u8]>,
    rows: &mut Rows,
) -> Result<(), BenchError> {
    let net = Net::up(&NetSpec::pair(link)?)?;
    ["a", "b"].into_iter().try_for_each(|name| let_buffers_grow(net.node(name)))?;
    let (mut even, mut twins) = (Vec::new(), Vec::new());
    let (mut least, mut mixed) = (Vec::new(), Vec::new());
    for _ in 0..options.repeats_or(3) {
        let pair = two_dwcp(&net, options, data)?;
        even.push(evenness(&shares(&pair)));
        twins.push(pair);
        let pair = dwcp_and_iperf(&net, options, data)?;
        least.push(shares(&pair).into_iter().fold(f64::INFINITY, f64::min));
        mixed.push(pair);
    }
    let row = Row::new(name, "evenness of two dwcp", even, "", Target::AtLeast(0.95));
    rows.add(&told(row, &twins, ["first dwcp", "second dwcp"]))?;
    let what = "least share of dwcp and iperf3 bbr";
    let row = Row::new(name, what, least, "", Target::AtLeast(0.35));
    rows.add(&told(row, &mixed, ["dwcp", "iperf3 bbr x1"]))
}

/// Adds the shares of every repeat, and the curves of the last.
fn told(row: Row, pairs: &[[Curve; 2]], names: [&str; 2]) -> Row {
    const STEP_S: f64 = 0.5;
    let all: Vec<[f64; 2]> = pairs.iter().map(shares).collect();
    let all: Vec<[f64; 2]> =
        all.iter().map(|pair| pair.map(|it| (it * 1e3).round() / 1e3)).collect();
    let megabits = pairs.iter().map(|[a, b]| {
        let sum = rate(a, 0) + rate(b, SECOND_AFTER_S);
        (sum / 1e6).round()
    });
    let detail = json!({"shares": all, "mbit": megabits.collect::<Vec<f64>>()});
    let curves = pairs.last().into_iter().flatten();
    let late = [0, SECOND_AFTER_S].map(|s| vec![0.0; (f64::from(s) / STEP_S) as usize]);
    let series = names.into_iter().zip(late).zip(curves).map(|((name, mut values), curve)| {
        values.extend(curve.megabits(STEP_S));
        Series { name: name.to_owned(), step_s: STEP_S, values }
    });
    row.with_detail(detail).with_series("Mbit/s", series.collect())
}

/// The shares of both in what they had together.
fn shares(pair: &[Curve; 2]) -> [f64; 2] {
    let rates = [rate(&pair[0], 0), rate(&pair[1], SECOND_AFTER_S)];
    rates.map(|rate| rate / rates.iter().sum::<f64>())
}

/// The rate over the span of a sender that began so late.
fn rate(curve: &Curve, late_s: u32) -> f64 {
    let from = SECOND_AFTER_S + SETTLE_S - late_s;
    curve.rate_bits(from.into(), (from + SPAN_S).into())
}

/// Lets the kernel give a host's connections as large buffers as they come to need.
fn let_buffers_grow(node: &Node) -> Result<(), BenchError> {
    let write = |name: &str| fs::write(format!("/proc/sys/net/ipv4/{name}"), BUFFERS);
    let written = node.enter(|| ["tcp_rmem", "tcp_wmem"].into_iter().try_for_each(write))?;
    written.map_err(io("the bounds of a host's buffers"))
}

fn two_dwcp(net: &Net, options: &Options, data: &Arc<[u8]>) -> Result<[Curve; 2], BenchError> {
    let carriers = PORTS.map(|port| start(net, port, options));
    let [first, second] = carriers;
    let (first, second) = (first?, second?);
    let one = Load::start(&first, data)?;
    one.wait_until(SECOND_AFTER_S.into())?;
    let two = Load::start(&second, data)?;
    two.wait_until((SETTLE_S + SPAN_S).into())?;
    Ok([one.stop()?, two.stop()?])
}

fn dwcp_and_iperf(
    net: &Net,
    options: &Options,
    data: &Arc<[u8]>,
) -> Result<[Curve; 2], BenchError> {
    let carriers = start(net, PORTS[0], options)?;
    let load = Load::start(&carriers, data)?;
    load.wait_until(SECOND_AFTER_S.into())?;
    let theirs = IPERF.run(net.node("a"), net.node("b"), SETTLE_S + SPAN_S)?;
    Ok([load.stop()?, theirs])
}

fn start(net: &Net, port: u16, options: &Options) -> Result<Carriers, BenchError> {
    let [a, b] = ["a", "b"].map(|name| Place::Node(net.node(name)));
    Carriers::start(a, b, port, &options.flags)
}
