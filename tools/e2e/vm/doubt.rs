//! A commit that is cut in two: both guests stand still, both ends say so, and an operator or the
//! healed link ends it.

use super::harness::{At, Hosts, MOVE_MAX, told};
use super::is_full;
use super::pair::Pair;
use crate::harness::{observe, wait_until};
use dwcp_tools::lab::Guest;
use serde_json::json;
use std::time::Duration;

/// How long nobody may pretend to know.
const IN_DOUBT_FOR: Duration = Duration::from_secs(3);

/// Who ends the doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decides {
    OperatorForSource,
    OperatorForSink,
    HealedLink,
}

#[test]
fn a_guest_in_doubt_stands_still_with_evidence_until_someone_decides() {
    let Some(hosts) = Hosts::up("rate=1g delay=100ms") else { return };
    let guest = Guest::new(&hosts.lab, "dirty:24,400,3").unwrap().with_ram_mib(96);
    let mut pair = Pair::boot(&hosts, &guest, At::A);
    let all = [Decides::OperatorForSource, Decides::HealedLink, Decides::OperatorForSink];
    for decides in all.into_iter().take(if is_full() { 3 } else { 2 }) {
        let (from, to) = (pair.from, pair.to());
        let session = go_to_doubt(&hosts, &mut pair);
        observe(IN_DOUBT_FOR, || assert_eq!(pair.look(), 0, "nobody knows, so nobody runs it"));
        let id = session.as_str();
        match decides {
            Decides::OperatorForSource => {
                hosts.must(from, &["resolve", id, "--run", "source"]);
                wait_until("the guest at the source", MOVE_MAX, || pair.look() == 1);
                pair.assert_runs_at_source();
            }
            Decides::OperatorForSink => {
                // The sink waits for its source until the link has been silent for long.
                wait_until("the sink's doubt", MOVE_MAX, || {
                    hosts.record(to).is_some_and(|record| record["state"] == "in_doubt")
                });
                hosts.must(to, &["resolve", id, "--run", "sink"]);
                wait_until("the guest at the sink", MOVE_MAX, || pair.look() == 1);
                pair.assert_runs_at_sink();
            }
            Decides::HealedLink => {}
        }
        hosts.link("up=1");
        let ends = ["committed", "failed", "aborted"];
        wait_until("both ends to agree", MOVE_MAX, || {
            let over = |at| {
                let record = hosts.record(at).expect("a record");
                ends.iter().any(|end| record["state"] == *end)
            };
            pair.look() == 1 && over(from) && over(to)
        });
        for at in [from, to] {
            assert_eq!(hosts.daemon(at).must("status", json!({}))["health"], "good");
        }
        let (source, _) = pair.states();
        println!("{decides:?}: at the source {source}");
        let at_source = source == "running";
        assert_eq!(at_source, decides == Decides::OperatorForSource);
        pair = if at_source {
            pair.assert_runs_at_source();
            pair.renew_sink(&hosts)
        } else {
            pair.assert_runs_at_sink();
            pair.turn(&hosts)
        };
    }
}

/// Brings a session to where the source has given the guest up and the sink can't hear of it.
fn go_to_doubt(hosts: &Hosts, pair: &mut Pair<'_>) -> String {
    let (from, to) = (pair.from, pair.to());
    let mut sink = hosts.listen(to);
    let mut source = hosts.listen(from);
    let migrate = hosts.start_migrate(from, &["--downtime-limit", "2s"]);
    told(&mut sink, "the loaded guest", |method, params| {
        method == "session.state" && params["state"] == "verified"
    });
    // What the sink says still arrives; nothing reaches it any more.
    hosts.way(from, "up=0 flush=1");
    told(&mut source, "the doubt", |method, params| {
        method == "session.state" && params["state"] == "in_doubt"
    });
    hosts.link("up=0 flush=1");
    let end = migrate.finish();
    assert_eq!(end.code, Some(5), "{end:?}");
    assert_eq!(pair.states(), ("postmigrate".to_owned(), "paused".to_owned()));
    let record = hosts.record(from).expect("a record");
    assert_eq!(record["state"], "in_doubt", "{record}");
    assert!(record["reason"].is_string() && record["cure"].is_string(), "{record}");
    let status = hosts.must(from, &["status"]);
    assert_eq!(status["health"], "in doubt", "{status}");
    pair.assert_same_memory();
    record["session"].as_str().expect("a session").to_owned()
}
