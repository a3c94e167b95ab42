//! A path that drops to a tenth of its rate and comes back: how long until dwcp runs steadily at
//! the new rate, and how much waits in front of it meanwhile. iperf3 goes through the same.
#![forbid(unsafe_code)]

use dwcp_benches::transport::{
    self, BenchError, Carriers, Curve, Iperf, Load, Options, Place, Row, Rows, Series, Target,
    random_bytes,
};
use dwcp_tools::lab::{Net, NetSpec, Schedule};
use serde_json::json;
use std::process::ExitCode;
use std::sync::Arc;

const HELP: &str = "\
Usage: cargo run --release -p dwcp-benches --bin step -- [OPTION..]";

const DWCP_PORT: u16 = 41_000;
const IPERF: Iperf = Iperf { streams: 4, congestion: "bbr", port: 52_010 };

const LINK: &str = "rate=1g delay=20ms";
const LOW_BITS: f64 = 1e8;

/// When the path drops, comes back, and when everything ends.
const DOWN_S: u32 = 12;
const UP_S: u32 = 32;
const END_S: u32 = 52;

/// A phase's own level is the mean of so much of its end.
const LEVEL_S: f64 = 10.0;

/// A rate so near to the level is steady. BBR's look for the round trip costs a second a fifth, and
/// two round trips: 0.28 of it here.
const NEAR: f64 = 0.3;

fn main() -> ExitCode {
    transport::main("step", HELP, |options, rows| {
        let data = random_bytes(64 << 20);
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..options.repeats_or(3) {
            ours.push(beside_dwcp(options, &data)?);
            theirs.push(beside_iperf()?);
        }
        tell(&ours, &theirs, rows)
    })
}

/// What dwcp did: what arrived, and the bytes under way some fifty times a second.
struct Stepped {
    curve: Curve,
    /// Time and bytes.
    under_way: Vec<(f64, u64)>,
}

impl Stepped {
    /// The most that was under way at the low rate, as time at that rate.
    fn backlog_s(&self) -> f64 {
        let low = |(at_s, _): &&(f64, u64)| (f64::from(DOWN_S)..f64::from(UP_S)).contains(at_s);
        let most = self.under_way.iter().filter(low).map(|(_, bytes)| *bytes).max();
        most.unwrap_or(0) as f64 * 8.0 / LOW_BITS
    }
}

fn follow(net: &Net) -> Result<dwcp_tools::lab::Following, BenchError> {
    let text = format!("{DOWN_S}s set ab rate=100m\n{UP_S}s set ab rate=1g\n");
    Ok(Schedule::parse(&text)?.follow(net, |_| ())?)
}

fn beside_dwcp(options: &Options, data: &Arc<[u8]>) -> Result<Stepped, BenchError> {
    let net = Net::up(&NetSpec::pair(LINK)?)?;
    let [a, b] = ["a", "b"].map(|name| Place::Node(net.node(name)));
    let carriers = Carriers::start(a, b, DWCP_PORT, &options.flags)?;
    let load = Load::start(&carriers, data)?;
    let _following = follow(&net)?;
    let mut under_way = Vec::new();
    load.watch_until(END_S.into(), |load| {
        under_way.push((load.elapsed_s(), load.under_way_bytes()));
    })?;
    Ok(Stepped { curve: load.stop()?, under_way })
}

fn beside_iperf() -> Result<Curve, BenchError> {
    let net = Net::up(&NetSpec::pair(LINK)?)?;
    let run = IPERF.start(net.node("a"), net.node("b"), END_S)?;
    let _following = follow(&net)?;
    run.finish()
}

fn tell(ours: &[Stepped], theirs: &[Curve], rows: &mut Rows) -> Result<(), BenchError> {
    let phases =
        [("1 Gbit/s to 100 Mbit/s", DOWN_S, UP_S), ("100 Mbit/s to 1 Gbit/s", UP_S, END_S)];
    for (case, from_s, to_s) in phases {
        let (from_s, to_s) = (f64::from(from_s), f64::from(to_s));
        let level = |curve: &Curve| curve.rate_bits(to_s - LEVEL_S, to_s);
        let settled = |curve: &Curve| curve.settled_s(from_s, to_s, level(curve), NEAR);
        let figures = ours.iter().map(|stepped| settled(&stepped.curve)).collect();
        let mbit = |curve: &Curve| (level(curve) / 1e6).round();
        let row = Row::new(case, "seconds until steady", figures, "s", Target::AtMost(5.0));
        rows.add(&row.with_detail(json!({
            "dwcp_mbit": ours.iter().map(|stepped| mbit(&stepped.curve)).collect::<Vec<_>>(),
            "iperf3_seconds": theirs.iter().map(settled).collect::<Vec<_>>(),
            "iperf3_mbit": theirs.iter().map(mbit).collect::<Vec<_>>(),
        })))?;
    }
    let backlog = ours.iter().map(Stepped::backlog_s).collect();
    let row = Row::new(phases[0].0, "most backlog in seconds", backlog, "s", Target::AtMost(1.0));
    let drawn = |name: &str, curve: Option<&Curve>| {
        let values = curve.map(|curve| curve.megabits(0.25)).unwrap_or_default();
        Series { name: name.to_owned(), step_s: 0.25, values }
    };
    let series = vec![
        drawn("dwcp", ours.last().map(|stepped| &stepped.curve)),
        drawn("iperf3 bbr x4", theirs.last()),
    ];
    rows.add(&row.with_series("Mbit/s", series))
}
