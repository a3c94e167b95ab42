//! What comes back from the sink is lost, while all that the source sends arrives: in the first
//! round, while the guest stands still, when the source's QEMU has completed, when the source has
//! given the guest up. Exactly one guest runs before the way is healed, too.

use super::harness::{At, Hosts, MOVE_MAX, told};
use super::pair::Pair;
use super::phase::{Phase, go_to};
use crate::harness::{observe, wait_until};
use dwcp_tools::lab::Guest;
use serde_json::json;
use std::time::Duration;

/// Silence is called death sooner than by default, so that a test is short, and no migration waits
/// for its link.
const IMPATIENT: [&str; 6] = ["--dead-after", "4s", "--keepalive", "1s", "--resume-window", "0s"];

/// How long a settled guest is watched for a second one.
const WATCHED: Duration = Duration::from_millis(500);

/// Cuts the way back in each of these phases; the guest moves on, or stays and gets a new sink.
fn cut_in(phases: &[Phase]) {
    let Some(hosts) = Hosts::up_with("rate=60m delay=5ms", &IMPATIENT) else { return };
    let guest = Guest::new(&hosts.lab, "idle").unwrap().with_ram_mib(96);
    let mut pair = Pair::boot(&hosts, &guest, At::A);
    for phase in phases {
        let is_at_sink = cut(&hosts, &mut pair, *phase);
        println!("{phase:?}: at the {}", if is_at_sink { "sink" } else { "source" });
        hosts.link("up=1");
        let ends = if is_at_sink { ["committed"; 2] } else { ["failed", "aborted"] };
        wait_until("both ends to agree", MOVE_MAX, || {
            assert_eq!(pair.look(), 1);
            [pair.from, pair.to()].iter().all(|at| {
                let record = hosts.record(*at).expect("a record");
                assert!(record["conflict"].is_null(), "{record}");
                ends.iter().any(|end| record["state"] == *end)
            })
        });
        observe(WATCHED, || assert_eq!(pair.look(), 1));
        // A dial that began while the way was cut fails later, and whatever joins it.
        wait_until("the end of all dialling", MOVE_MAX, || {
            let links = hosts.daemon(pair.from).must("net.show", json!({}));
            links.as_array().is_some_and(|all| all.iter().all(|link| link["phase"] == "ready"))
        });
        for at in [pair.from, pair.to()] {
            assert_eq!(hosts.daemon(at).must("status", json!({}))["health"], "good");
        }
        pair = match is_at_sink {
            true => pair.turn(&hosts),
            false => pair.renew_sink(&hosts),
        };
    }
    hosts.link("rate=1g delay=5ms");
    hosts.migrate(pair.from, &[]);
    pair.assert_runs_at_sink();
}

/// Cuts the way back in a phase and waits until the guest runs at one end; true if at the sink.
fn cut(hosts: &Hosts, pair: &mut Pair<'_>, phase: Phase) -> bool {
    let (from, to) = (pair.from, pair.to());
    let mut migrate = go_to(hosts, pair, phase);
    hosts.way(to, "up=0 flush=1");
    wait_until("the client to be told", MOVE_MAX, || {
        pair.look();
        migrate.is_over()
    });
    let end = migrate.finish();
    match end.code {
        Some(1) => {
            assert!(phase < Phase::Yielded, "{end:?}");
            // The sink has heard of it, or waits for a word that the healed link brings.
            wait_until("the sink to let go", MOVE_MAX, || {
                hosts.record(to).is_none_or(|record| {
                    ["failed", "aborted", "in_doubt"].iter().any(|end| record["state"] == *end)
                })
            });
            pair.assert_runs_at_source();
            assert_ne!(pair.states().1, "running", "{end:?}");
            false
        }
        Some(5) => {
            // The sink was told, and has committed; only the source can't know.
            wait_until("the guest at the sink", MOVE_MAX, || pair.look() == 1);
            pair.assert_runs_at_sink();
            let record = hosts.record(from).expect("a record");
            assert_eq!(record["state"], "in_doubt", "{record}");
            assert!(record["reason"].is_string() && record["cure"].is_string(), "{record}");
            assert_eq!(hosts.must(from, &["status"])["health"], "in doubt");
            let id = record["session"].as_str().expect("a session");
            hosts.must(from, &["resolve", id, "--run", "sink"]);
            assert_eq!(pair.states(), ("postmigrate".to_owned(), "running".to_owned()));
            true
        }
        _ => panic!("{phase:?}: {end:?}"),
    }
}

#[test]
fn a_way_back_that_is_lost_while_the_guest_runs_or_stands_still_leaves_it_at_the_source() {
    cut_in(&[Phase::RoundOne, Phase::Stopped]);
}

#[test]
fn a_way_back_that_is_lost_when_the_source_has_completed_never_makes_two() {
    cut_in(&[Phase::Completed, Phase::Yielded]);
}

/// Neither end hears anything for longer than either waits: the sink stands loaded, and what the
/// source has said of its end is lost with the link.
#[test]
fn a_long_cut_when_all_is_loaded_is_ended_by_the_healed_link() {
    let Some(hosts) = Hosts::up_with("rate=1g delay=100ms", &IMPATIENT) else { return };
    let guest = Guest::new(&hosts.lab, "idle").unwrap().with_ram_mib(96);
    let mut pair = Pair::boot(&hosts, &guest, At::A);
    let mut sink = hosts.listen(At::B);
    let migrate = hosts.start_migrate(At::A, &["--downtime-limit", "2s"]);
    told(&mut sink, "the loaded guest", |method, params| {
        method == "session.state" && params["state"] == "verified"
    });
    hosts.link("up=0 flush=1");
    let end = migrate.finish();
    assert_eq!(end.code, Some(1), "{end:?}");
    pair.assert_runs_at_source();
    let record = hosts.wait_record(At::B, "in_doubt");
    assert!(record["reason"].is_string() && record["cure"].is_string(), "{record}");
    assert_eq!(pair.states(), ("running".to_owned(), "paused".to_owned()));
    assert_eq!(hosts.must(At::B, &["status"])["health"], "in doubt");

    hosts.link("up=1");
    hosts.wait_record(At::B, "aborted");
    observe(WATCHED, || assert_eq!(pair.look(), 1));
    let mut pair = pair.renew_sink(&hosts);
    hosts.migrate(At::A, &[]);
    pair.assert_runs_at_sink();
}
