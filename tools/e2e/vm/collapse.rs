//! A guest whose pages shrink well while they are sent for the first time, and no more when it
//! changes them: the guest is stopped when the remaining pages fit by what they really cost, or
//! not at all, and then that is said.

use super::harness::{At, Hosts, MOVE_MAX, Migrate, Told};
use super::is_full;
use super::pair::Pair;
use crate::harness::wait_until;
use dwcp_tools::lab::{Guest, Vm, VmConfig};
use serde_json::{Value, json};
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// What is asked for.
const LIMIT: Duration = Duration::from_millis(300);

/// 100 Mbit/s, and a tenth for an estimate that is too high.
const RATE_BYTES_PER_S: u64 = 13_750_000;

/// The switchover's own two round trips, which are no time for pages.
const TRIPS: Duration = Duration::from_millis(80);

/// A ratio of pages that are nearly empty, and one of random pages with the guest's own tables
/// among them, in thousandths.
const GOOD_MILLI: u64 = 10_000;
const BAD_MILLI: u64 = 2500;

/// Of the progress, what a failed test shows.
const FIELDS: [&str; 7] = [
    "stage",
    "rounds",
    "remaining_bytes",
    "dirty_bytes_per_second",
    "ratio_milli",
    "pause_ms",
    "because",
];

/// A QEMU that waits at a host, with the devices of the guest that comes.
fn wait_at(hosts: &Hosts, guest: &Guest, at: At) -> Vm {
    // A second serial line at which nobody talks.
    let options = ["-serial", "null"];
    let config = VmConfig { incoming: true, paused: true, options: &options, ..hosts.config(at) };
    let vm = Vm::start(guest, config).unwrap();
    hosts.attach_sink(&vm, at);
    vm
}

/// Boots the guest with a second serial line, whose other end is `line`.
fn boot<'a>(hosts: &Hosts, guest: &'a Guest, line: &Path) -> Pair<'a> {
    let sink = wait_at(hosts, guest, At::B);
    let end = format!("socket,id=line,path={},server=on,wait=off", line.display());
    let options = ["-chardev", &end, "-serial", "chardev:line"];
    let config = VmConfig { options: &options, ..hosts.config(At::A) };
    let mut source = Vm::start(guest, config).unwrap();
    source.wait_ready(guest).unwrap();
    hosts.attach_source(&source, At::A);
    Pair::of(guest, At::A, &[], (source, sink))
}

/// Listens to a migration that runs; returns all that was said, in order. `heed` is shown each
/// word as it comes.
fn follow(
    hosts: &Hosts,
    pair: &mut Pair<'_>,
    limit: Duration,
    mut heed: impl FnMut(&Migrate, &Value),
) -> (Told, Vec<Value>) {
    let mut listener = hosts.listen(pair.from);
    let limit = format!("{}ms", limit.as_millis());
    let mut migrate = hosts.start_migrate(pair.from, &["--downtime-limit", &limit]);
    let mut said = Vec::new();
    wait_until("the end of the migration", MOVE_MAX, || {
        if let Some((method, params)) = listener.notification(Duration::from_millis(100))
            && method == "session.progress"
            && params["vm"]["rounds"].is_u64()
        {
            let field = |name: &str| params["vm"][name].to_string();
            println!("{}", FIELDS.map(field).join(" "));
            heed(&migrate, &params["vm"]);
            said.push(params["vm"].clone());
        }
        pair.look();
        migrate.is_over()
    });
    (migrate.finish(), said)
}

#[test]
fn a_ratio_that_collapses_neither_stretches_the_blackout_nor_stops_a_guest_in_vain() {
    let Some(hosts) = Hosts::up("rate=100m delay=20ms") else { return };
    // The larger one's first round is longer than any memory of its ratios.
    let (words, ram_mib) =
        if is_full() { ("dirty:400,2000,4", 640) } else { ("dirty:80,2000,4", 192) };
    let guest = Guest::new(&hosts.lab, words).unwrap().with_ram_mib(ram_mib);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("line");
    let mut pair = boot(&hosts, &guest, &path);
    let mut line = UnixStream::connect(&path).expect("QEMU listens");
    let mut is_told = false;
    let (end, said) = follow(&hosts, &mut pair, LIMIT, |_, vm| {
        // Late in the first round, so that most pages that change then were sent before.
        let left = vm["remaining_bytes"].as_u64() < vm["total_bytes"].as_u64().map(|all| all / 2);
        if !is_told && vm["rounds"] == 1 && left {
            line.write_all(b"now\n").expect("QEMU reads");
            is_told = true;
        }
    });
    assert_eq!(end.code, Some(0), "{end:?}");
    // What the test stands on: the first round's pages shrank, those that were sent again did not.
    assert!(is_told && pair.source.serial().contains("COLLAPSED"), "{}", pair.source.serial());
    assert_follows(&said);
    assert_fits(&mut pair);

    // On the way back the link is too slow for what the guest writes now.
    let Pair { guest, source, sink, .. } = pair;
    drop(source);
    let waiting = wait_at(&hosts, guest, At::A);
    hosts.attach_source(&sink, At::B);
    let mut pair = Pair::of(guest, At::B, &[], (sink, waiting));
    hosts.link(if is_full() { "rate=40m" } else { "rate=20m" });
    let mut because = None;
    let (end, _) = follow(&hosts, &mut pair, LIMIT, |migrate, vm| {
        if because.is_none() && vm["because"].is_string() {
            because = Some(vm["because"].clone());
            migrate.interrupt();
        }
    });
    assert_eq!(end.code, Some(130), "{end:?}");
    assert!(end.stderr.contains("will not converge because the guest writes"), "{}", end.stderr);
    let stops = pair.source.qmp().events().unwrap().iter().filter(|it| it.name == "STOP").count();
    assert_eq!(stops, 0, "it was never stopped in vain");
    assert_eq!((pair.states().0.as_str(), pair.look()), ("running", 1));
    // It has checked all of its pages again and again meanwhile.
    assert_eq!(pair.source.trouble(), None, "{}", pair.source.serial());
}

/// What QEMU sent while the guest stood still takes the link no longer than was asked for, by what
/// such pages really shrink. Bytes, since the time that it stood still is the machine's load too.
fn assert_fits(pair: &mut Pair<'_>) {
    println!("blackout {:?}", pair.blackout());
    let ram = pair.source.qmp().execute("query-migrate", json!({})).unwrap()["ram"].clone();
    let sent = ram["downtime-bytes"].as_u64().expect("QEMU counts it");
    let pages_ms = u64::try_from((LIMIT - TRIPS).as_millis()).expect("short");
    let fits = RATE_BYTES_PER_S * pages_ms / 1000 * BAD_MILLI / 1000;
    println!("{sent} bytes while it stood still, at most {fits}");
    assert!((1..=fits).contains(&sent), "{ram}");
}

/// The forecasts of the later rounds followed what their pages cost.
fn assert_follows(said: &[Value]) {
    let number = |vm: &Value, name: &str| vm[name].as_u64().unwrap_or_default();
    let best = said.iter().filter(|vm| vm["rounds"] == 1).map(|vm| number(vm, "ratio_milli")).max();
    assert!(best >= Some(GOOD_MILLI), "{best:?}");
    let later = said.iter().filter(|vm| number(vm, "rounds") >= 2 && vm["stage"] == "precopy");
    let later: Vec<&Value> = later.collect();
    let last = later.last().expect("more than one round");
    assert!(number(last, "ratio_milli") < BAD_MILLI, "{last}");
    for vm in later {
        let pages_ms = number(vm, "remaining_bytes") * 1_000_000 / RATE_BYTES_PER_S / BAD_MILLI;
        assert!(vm["pause_ms"].as_u64().is_none_or(|ms| ms >= pages_ms), "{vm}: {pages_ms} ms");
    }
}
