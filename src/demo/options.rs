//! What the demo was asked to do: its flags, checked.
//!
//! Runs on the main thread at start. An [`Options`] that exists is complete and in range.

use crate::settings::table::SHARDS_MAX;
use crate::settings::value::{GIB, Kind, MIB, Value, ValueError};
use clap::{Arg, ArgAction, ArgMatches};
use std::path::PathBuf;
use std::time::Duration;

const SIZE: Kind = Kind::Bytes { min: MIB, max: 256 * GIB, auto: false };
const DIRTY_RATE: Kind = Kind::Count { min: 0, max: 10_000_000, auto: false };
const STREAMS: Kind = Kind::Count { min: 1, max: 64, auto: false };
const CORES: Kind = Kind::Cores { max: 2 * SHARDS_MAX };
const SEED: Kind = Kind::Count { min: 0, max: u64::MAX, auto: false };
const CODING: Kind = Kind::Choice(&["full", "passthrough"]);
const LEVEL: Kind = Kind::Count { min: 1, max: 19, auto: false };
const POLL: Kind = Kind::Choice(&["busy", "adaptive", "park"]);
const TARGET: Kind = Kind::Time { min: Duration::from_millis(1), max: Duration::from_secs(60) };

/// What the demo does.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Options {
    /// Bytes of the region, a multiple of the page.
    pub(crate) size_bytes: u64,
    /// Pages that the writer changes per second.
    pub(crate) dirty_pages_per_second: u64,
    /// TCP connections of the link.
    pub(crate) streams: u64,
    /// Cores of the source daemon's shards; empty for one shard that isn't pinned.
    pub(crate) source_cores: Vec<usize>,
    /// Cores of the sink daemon's shards, likewise.
    pub(crate) sink_cores: Vec<usize>,
    /// Names the memory's content.
    pub(crate) seed: u64,
    /// `full` or `passthrough`.
    pub(crate) coding: &'static str,
    /// The level of zstd.
    pub(crate) zstd_level: u64,
    /// How the shards wait.
    pub(crate) poll: &'static str,
    /// The writer is stopped when the last round should take no longer than this.
    pub(crate) pause_target: Duration,
    /// Whether plain zstd-1 is measured on the same bytes.
    pub(crate) baseline: bool,
    /// Where the daemons' logs stay after the end.
    pub(crate) keep_logs: Option<PathBuf>,
    /// One JSON object in place of the table.
    pub(crate) json: bool,
}

impl Options {
    /// The flags.
    pub(crate) fn flags() -> [Arg; 12] {
        [
            flag("size", SIZE, "1GiB", "Memory to move"),
            flag("dirty-rate", DIRTY_RATE, "20000", "Pages that the writer changes per second"),
            flag("streams", STREAMS, "4", "TCP connections between the daemons"),
            flag(
                "cores",
                CORES,
                "",
                "Cores for the shards, dealt in turn to source and sink; \
                without it each daemon runs one shard that isn't pinned",
            ),
            flag("seed", SEED, "1", "Names the memory's content; the same seed, the same bytes"),
            flag("coding", CODING, "full", "Code pages fully, or pass them as they are"),
            flag("zstd-level", LEVEL, "1", "Level of zstd with --coding full"),
            flag("poll", POLL, "adaptive", "How the daemons' shards wait"),
            flag(
                "pause-target",
                TARGET,
                "50ms",
                "Stop the writer when the last round is forecast \
                to take no longer",
            ),
            Arg::new("no-baseline")
                .long("no-baseline")
                .action(ArgAction::SetTrue)
                .help("Don't measure plain zstd-1 beside it: takes its time out of the throughput"),
            Arg::new("keep-logs")
                .long("keep-logs")
                .value_name("DIR")
                .value_parser(clap::value_parser!(PathBuf))
                .help("Leave the daemons' logs in this folder"),
            Arg::new("json")
                .long("json")
                .action(ArgAction::SetTrue)
                .help("Print one JSON object in place of the table"),
        ]
    }

    /// Reads the flags.
    pub(crate) fn read(matches: &ArgMatches) -> Self {
        let count = |name| match value(matches, name) {
            Some(Value::Count(count)) => count,
            other => unreachable!("--{name} is a count with a default, not {other:?}"),
        };
        let choice = |name| match value(matches, name) {
            Some(Value::Choice(word)) => word,
            other => unreachable!("--{name} is a word with a default, not {other:?}"),
        };
        let size_bytes = match value(matches, "size") {
            Some(Value::Bytes(bytes)) => bytes,
            other => unreachable!("--size is a size with a default, not {other:?}"),
        };
        let pause_target = match value(matches, "pause-target") {
            Some(Value::Time(time)) => time,
            other => unreachable!("--pause-target is a time with a default, not {other:?}"),
        };
        let cores = match value(matches, "cores") {
            Some(Value::Cores(cores)) => cores,
            _ => Vec::new(),
        };
        let (source_cores, sink_cores) = deal(&cores);
        Self {
            size_bytes: size_bytes.next_multiple_of(super::generator::PAGE_BYTES as u64),
            dirty_pages_per_second: count("dirty-rate"),
            streams: count("streams"),
            source_cores,
            sink_cores,
            seed: count("seed"),
            coding: choice("coding"),
            zstd_level: count("zstd-level"),
            poll: choice("poll"),
            pause_target,
            baseline: !matches.get_flag("no-baseline"),
            keep_logs: matches.get_one("keep-logs").cloned(),
            json: matches.get_flag("json"),
        }
    }
}

/// Deals the cores in turn, so that each daemon has some; a single core serves both.
fn deal(cores: &[usize]) -> (Vec<usize>, Vec<usize>) {
    let every_other = |skip| cores.iter().copied().skip(skip).step_by(2).collect();
    match cores {
        [single] => (vec![*single], vec![*single]),
        _ => (every_other(0), every_other(1)),
    }
}

fn value(matches: &ArgMatches, name: &str) -> Option<Value> {
    matches.get_one::<Value>(name).cloned()
}

fn flag(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> Arg {
    let parse = move |text: &str| -> Result<Value, ValueError> { kind.parse(text) };
    let arg = Arg::new(name)
        .long(name)
        .value_name(kind.placeholder())
        .value_parser(parse)
        .allow_hyphen_values(true)
        .help(format!("{help} [{}]", kind.range()));
    if default.is_empty() { arg } else { arg.default_value(default) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str]) -> Result<Options, clap::Error> {
        let command = clap::Command::new("demo").args(Options::flags());
        let arguments = std::iter::once("demo").chain(arguments.iter().copied());
        command.try_get_matches_from(arguments).map(|matches| Options::read(&matches))
    }

    #[test]
    fn the_defaults_are_the_documented_ones() {
        let options = read(&[]).unwrap();
        assert_eq!(options.size_bytes, GIB);
        assert_eq!(options.dirty_pages_per_second, 20_000);
        assert_eq!((options.streams, options.seed, options.zstd_level), (4, 1, 1));
        assert_eq!((options.coding, options.poll), ("full", "adaptive"));
        assert_eq!(options.pause_target, Duration::from_millis(50));
        assert!(options.baseline && !options.json);
        assert_eq!((options.source_cores, options.sink_cores), (vec![], vec![]));
    }

    #[test]
    fn cores_are_dealt_in_turn_and_a_single_one_serves_both() {
        assert_eq!(deal(&[0, 1, 2]), (vec![0, 2], vec![1]));
        assert_eq!(deal(&[7]), (vec![7], vec![7]));
        let options = read(&["--cores", "2-5"]).unwrap();
        assert_eq!((options.source_cores, options.sink_cores), (vec![2, 4], vec![3, 5]));
    }

    #[test]
    fn bad_flags_name_the_flag_and_the_cure() {
        for (flag, text) in [("--size", "12"), ("--streams", "0"), ("--coding", "zip")] {
            let error = read(&[flag, text]).unwrap_err().to_string();
            assert!(error.contains(flag), "{error}");
        }
        assert!(read(&["--zstd-level", "20"]).is_err());
        assert!(read(&["--pause-target", "50"]).is_err());
    }
}
