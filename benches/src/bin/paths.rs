//! How full dwcp keeps a path, beside iperf3's best on the same path in the same run.
//!
//! For each path iperf3 is tried with several numbers of streams under each congestion control; the
//! best of each control then take turns with dwcp. A figure is the mean over ten seconds, which is
//! BBR's period, after a time to settle. dwcp carries random bytes through two carriers with
//! certificates, with its default settings.
#![forbid(unsafe_code)]

use dwcp_benches::transport::{
    self, BenchError, Carriers, Curve, Iperf, Load, Options, Place, Row, Rows, Series, Target,
    median, random_bytes,
};
use dwcp_tools::lab::{Net, NetSpec};
use serde_json::json;
use std::process::ExitCode;
use std::sync::Arc;

const HELP: &str = "\
Usage: cargo run --release -p dwcp-benches --bin paths -- [OPTION..]";

const DWCP_PORT: u16 = 41_000;
const IPERF_PORT: u16 = 52_010;

/// BBR looks for the path's round trip once in ten seconds; every span holds that once.
const SPAN_S: u32 = 10;

/// How long iperf3 settles before its span.
const IPERF_SETTLE_S: u32 = 5;

/// A path and what there is to reach on it.
struct Case {
    name: &'static str,
    link: &'static str,
    cubic_only: bool,
    share: f64,
}

const fn case(name: &'static str, link: &'static str) -> Case {
    Case { name, link, cubic_only: false, share: 0.97 }
}

const CASES: [Case; 7] = [
    case("1 Gbit/s 40 ms", "rate=1g delay=20ms"),
    case("1 Gbit/s 40 ms, 0.1 % loss", "rate=1g delay=20ms loss=0.001"),
    case("1 Gbit/s 40 ms, 1 % loss", "rate=1g delay=20ms loss=0.01"),
    case("100 Mbit/s 100 ms", "rate=100m delay=50ms"),
    case("100 Mbit/s 100 ms, 0.1 % loss", "rate=100m delay=50ms loss=0.001"),
    case("100 Mbit/s 100 ms, 1 % loss", "rate=100m delay=50ms loss=0.01"),
    Case {
        name: "1 Gbit/s 40 ms, 0.1 % loss, cubic only",
        link: "rate=1g delay=20ms loss=0.001",
        cubic_only: true,
        share: 0.9,
    },
];

/// The share of iperf3's best at which the way to fill the path counts as found.
const FOUND_SHARE: f64 = 0.9;

impl Case {
    /// Where iperf3 looks for its best.
    fn candidates(&self) -> Vec<Iperf> {
        let (streams, controls): (&[u32], &[&str]) = match self.cubic_only {
            true => (&[1, 2, 4, 8, 16, 32, 64], &["cubic"]),
            false => (&[1, 2, 4, 8], &["cubic", "bbr"]),
        };
        let all = controls.iter().flat_map(|congestion| {
            streams.iter().map(|streams| Iperf { streams: *streams, congestion, port: IPERF_PORT })
        });
        all.collect()
    }

    /// How long dwcp may take to find out how to fill it.
    fn found_within_s(&self) -> f64 {
        if self.cubic_only { 30.0 } else { 10.0 }
    }
}

fn main() -> ExitCode {
    transport::main("paths", HELP, |options, rows| {
        let data = random_bytes(64 << 20);
        let cases = CASES.iter().filter(|case| options.takes(case.name));
        cases.into_iter().try_for_each(|case| measure(case, options, &data, rows))
    })
}

/// One path.
fn measure(
    case: &Case,
    options: &Options,
    data: &Arc<[u8]>,
    rows: &mut Rows,
) -> Result<(), BenchError> {
    let net = Net::up(&NetSpec::pair(case.link)?)?;
    let finalists = screen(case, options, &net)?;
    let mut flags = options.flags.clone();
    if case.cubic_only {
        flags.extend(["--congestion", "cubic"].map(str::to_owned));
    }
    let (mut ours, mut dropped) = (Vec::new(), Vec::new());
    let mut theirs = vec![Vec::new(); finalists.len()];
    for _ in 0..options.repeats_or(3) {
        let before = net.way("ab").stats().queue_full;
        ours.push(carry(case, &net, &flags, data)?);
        dropped.push((net.way("ab").stats().queue_full - before) as f64);
        for (iperf, curves) in finalists.iter().zip(&mut theirs) {
            let seconds = IPERF_SETTLE_S + SPAN_S;
            curves.push(iperf.run(net.node("a"), net.node("b"), seconds)?);
        }
    }
    let their_rate = |curve: &Curve| curve.rate_bits(IPERF_SETTLE_S.into(), curve.seconds());
    let their_rates: Vec<Vec<f64>> =
        theirs.iter().map(|curves| curves.iter().map(their_rate).collect()).collect();
    let order =
        |a: &usize, b: &usize| median(&their_rates[*a]).total_cmp(&median(&their_rates[*b]));
    let best = (0..finalists.len()).max_by(order).unwrap_or(0);
    let our_rates: Vec<f64> = ours
        .iter()
        .map(|curve| {
            let settled_s = case.found_within_s();
            curve.rate_bits(settled_s, settled_s + f64::from(SPAN_S))
        })
        .collect();
    let level_bits = median(&their_rates[best]);
    let found = |share: f64| -> Vec<f64> {
        let reached = |curve: &Curve| curve.reached_s(0.0, share * level_bits, 1.0);
        ours.iter().map(|curve| reached(curve).unwrap_or(curve.seconds())).collect()
    };
    let mut series = vec![drawn("dwcp".to_owned(), ours.last())];
    let names = finalists.iter().map(Iperf::name);
    series.extend(names.zip(&theirs).map(|(name, curves)| drawn(name, curves.last())));
    let stats = net.way("ab").stats();
    let ratios = our_rates.iter().zip(&their_rates[best]).map(|(ours, theirs)| ours / theirs);
    let (what, target) = ("goodput of iperf3's best", Target::AtLeast(case.share));
    let row = Row::new(case.name, what, ratios.collect(), "", target);
    rows.add(&row.with_series("Mbit/s", series).with_detail(json!({
        "dwcp_mbit": (median(&our_rates) / 1e6).round(),
        "best": finalists[best].name(),
        "best_mbit": (level_bits / 1e6).round(),
        "dwcp_segments_dropped": median(&dropped),
        "late_us": stats.late_us.round(),
        "seconds_to_97_percent": median(&found(0.97)),
    })))?;
    let target = Target::AtMost(case.found_within_s());
    rows.add(&Row::new(case.name, "seconds to 0.9 of it", found(FOUND_SHARE), "s", target))
}

/// Tries all candidates for a short time: the best of each congestion control, unless it is far
/// from the best of all.
fn screen(case: &Case, options: &Options, net: &Net) -> Result<Vec<Iperf>, BenchError> {
    /// A candidate below this share of the best is not the best in a longer run either.
    const NEAR: f64 = 0.9;
    let (settle_s, span_s) = if options.quick { (2, 4) } else { (IPERF_SETTLE_S, SPAN_S) };
    let mut rated = Vec::new();
    for iperf in case.candidates() {
        let curve = iperf.run(net.node("a"), net.node("b"), settle_s + span_s)?;
        let rate = curve.rate_bits(settle_s.into(), curve.seconds());
        println!("  {}: {}: {:.1} Mbit/s", case.name, iperf.name(), rate / 1e6);
        rated.push((rate, iperf));
    }
    rated.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut finalists: Vec<Iperf> = Vec::new();
    for (rate, iperf) in &rated {
        let is_new = finalists.iter().all(|other| other.congestion != iperf.congestion);
        if is_new && *rate >= NEAR * rated[0].0 {
            finalists.push(*iperf);
        }
    }
    Ok(finalists)
}

/// dwcp on the path, until its span is over.
fn carry(case: &Case, net: &Net, flags: &[String], data: &Arc<[u8]>) -> Result<Curve, BenchError> {
    let [a, b] = ["a", "b"].map(|name| Place::Node(net.node(name)));
    let carriers = Carriers::start(a, b, DWCP_PORT, flags)?;
    let load = Load::start(&carriers, data)?;
    load.wait_until(case.found_within_s() + f64::from(SPAN_S))?;
    load.stop()
}

fn drawn(name: String, curve: Option<&Curve>) -> Series {
    const STEP_S: f64 = 0.5;
    let values = curve.map(|curve| curve.megabits(STEP_S)).unwrap_or_default();
    Series { name, step_s: STEP_S, values }
}
