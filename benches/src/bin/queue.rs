//! What a full path costs everybody else: `ping` beside dwcp, and beside one stream of iperf3 under
//! BBR, on a path whose queue holds one bandwidth-delay product.
#![forbid(unsafe_code)]

use dwcp_benches::transport::{
    self, BenchError, Carriers, Iperf, Load, Options, Ping, Place, Row, Rows, Series, Target,
    Trips, median, random_bytes,
};
use dwcp_tools::lab::{LinkStats, Net, NetSpec};
use serde_json::json;
use std::process::ExitCode;
use std::sync::Arc;

const HELP: &str = "\
Usage: cargo run --release -p dwcp-benches --bin queue -- [OPTION..]";

const DWCP_PORT: u16 = 41_000;
const IPERF: Iperf = Iperf { streams: 1, congestion: "bbr", port: 52_010 };

/// Without a word of its own the queue holds one round trip.
const PATHS: [(&str, &str, f64); 2] = [
    ("1 Gbit/s 40 ms", "rate=1g delay=20ms", 1e9),
    ("100 Mbit/s 100 ms", "rate=100m delay=50ms", 1e8),
];

const SETTLE_S: u32 = 10;
const SPAN_S: u32 = 20;

/// Bytes of IP and TCP headers of each segment after a packet's first, which the emulator's counter
/// of bytes leaves out.
const HEADER_BYTES: u64 = 52;

/// What one sender did to the path.
struct Loaded {
    trips: Trips,
    /// Share of the path's rate that was used.
    use_share: f64,
}

fn main() -> ExitCode {
    transport::main("queue", HELP, |options, rows| {
        let data = random_bytes(64 << 20);
        let paths = PATHS.iter().filter(|(name, ..)| options.takes(name));
        paths.into_iter().try_for_each(|path| measure(*path, options, &data, rows))
    })
}

fn measure(
    (name, link, rate_bits): (&str, &str, f64),
    options: &Options,
    data: &Arc<[u8]>,
    rows: &mut Rows,
) -> Result<(), BenchError> {
    let net = Net::up(&NetSpec::pair(link)?)?;
    let base_ms = Ping::start(net.node("a"), net.node("b"), 3)?.finish()?.quantile_ms(0.0);
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..options.repeats_or(3) {
        ours.push(beside_dwcp(&net, options, data, rate_bits)?);
        theirs.push(beside_iperf(&net, rate_bits)?);
    }
    let loaded = [("dwcp", &ours), ("iperf3 bbr x1", &theirs)];
    let series = loaded.iter().filter_map(|(who, all)| {
        let values = all.last()?.trips.times_ms.clone();
        Some(Series { name: (*who).to_owned(), step_s: 0.05, values })
    });
    let series: Vec<Series> = series.collect();
    for (who, all) in loaded {
        let is_ours = who == "dwcp";
        let figures = |of: &dyn Fn(&Loaded) -> f64| all.iter().map(of).collect::<Vec<f64>>();
        let of_base = figures(&|loaded| loaded.trips.mean_ms() / base_ms);
        let target = |target| if is_ours { target } else { Target::None };
        let case = format!("{name}, {who}");
        let row = Row::new(&case, "ping of its base", of_base, "", target(Target::AtMost(1.5)));
        let row = row.with_detail(json!({
            "base_ms": base_ms,
            "mean_ms": median(&figures(&|loaded| loaded.trips.mean_ms())),
            "p50_ms": median(&figures(&|loaded| loaded.trips.quantile_ms(0.5))),
            "p99_ms": median(&figures(&|loaded| loaded.trips.quantile_ms(0.99))),
        }));
        rows.add(&if is_ours { row.with_series("ms", series.clone()) } else { row })?;
        let used = figures(&|loaded| loaded.use_share);
        rows.add(&Row::new(&case, "use of the rate", used, "", target(Target::AtLeast(0.95))))?;
    }
    Ok(())
}

fn beside_dwcp(
    net: &Net,
    options: &Options,
    data: &Arc<[u8]>,
    rate_bits: f64,
) -> Result<Loaded, BenchError> {
    let [a, b] = ["a", "b"].map(|name| Place::Node(net.node(name)));
    let carriers = Carriers::start(a, b, DWCP_PORT, &options.flags)?;
    let load = Load::start(&carriers, data)?;
    load.wait_until(SETTLE_S.into())?;
    let loaded = watch(net, rate_bits)?;
    load.stop()?;
    Ok(loaded)
}

fn beside_iperf(net: &Net, rate_bits: f64) -> Result<Loaded, BenchError> {
    let run = IPERF.start(net.node("a"), net.node("b"), SETTLE_S + SPAN_S + 2)?;
    // The time to settle is spent on pings that nobody looks at.
    Ping::start(net.node("a"), net.node("b"), SETTLE_S)?.finish()?;
    let loaded = watch(net, rate_bits)?;
    run.finish()?;
    Ok(loaded)
}

/// Pings through the loaded path for the length of a span.
fn watch(net: &Net, rate_bits: f64) -> Result<Loaded, BenchError> {
    let before = net.way("ab").stats();
    let started = std::time::Instant::now();
    let trips = Ping::start(net.node("a"), net.node("b"), SPAN_S)?.finish()?;
    let bits = wire_bytes(&net.way("ab").stats(), &before) as f64 * 8.0;
    Ok(Loaded { trips, use_share: bits / (rate_bits * started.elapsed().as_secs_f64()) })
}

/// Bytes on the wire between two looks, as the rate counts them; what a full queue dropped never
/// was on the wire.
fn wire_bytes(after: &LinkStats, before: &LinkStats) -> u64 {
    let cut = (after.segments - before.segments) - (after.packets - before.packets);
    let offered = (after.bytes - before.bytes) + cut * HEADER_BYTES;
    let segments = (after.segments - before.segments).max(1);
    let dropped = (after.queue_full - before.queue_full).min(segments);
    offered - offered / segments * dropped
}
