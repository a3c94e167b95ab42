//! A guest moves between hosts of different wire versions, and its link may be lost meanwhile.

use super::harness::{At, Hosts};
use super::pair::Pair;
use crate::harness::binary::{previous, today};
use crate::harness::{observe, wait_until};
use crate::versions::FIRST;
use dwcp_tools::lab::Guest;
use serde_json::json;
use std::time::Duration;

/// Longer than the silence after which another connection is tried.
const DEAD_FOR: Duration = Duration::from_secs(6);

#[test]
fn a_dirtying_guest_moves_between_versions_each_way_over_links_that_are_lost() {
    let Some(old) = previous() else { return };
    let Some(hosts) = Hosts::up_of("rate=60m delay=10ms", &[old, today()], &[]) else { return };
    let guest = Guest::new(&hosts.lab, "dirty:24,400,3").unwrap().with_ram_mib(96);
    let mut pair = Pair::boot(&hosts, &guest, At::A);
    for (moves, from) in [(1.0, At::A), (2.0, At::B)] {
        if from == At::B {
            pair = pair.turn(&hosts);
        }
        let migrate = hosts.start_migrate(from, &["--downtime-limit", "300ms", "--paused"]);
        hosts.wait_record(from.other(), "receiving");
        let carried = || {
            let record = hosts.record(from).expect("a record");
            record["counters"]["delivered_bytes"].as_u64().unwrap_or(0)
        };
        wait_until("the stream is under way", Duration::from_secs(60), || carried() > 1 << 20);
        let links = hosts.daemon(At::B).must("net.show", json!({}));
        let link = links.as_array().expect("a list").last().expect("a link");
        assert_eq!((&link["wire_version"], &link["features"]), (&json!(1), &json!(FIRST)));
        hosts.link("up=0 flush=1");
        observe(DEAD_FOR, || assert_eq!(pair.look(), 1, "the guest feels nothing"));
        hosts.link("up=1");
        let end = migrate.finish();
        assert_eq!(end.code, Some(0), "{end:?}\n{}\n{}", hosts.tail(At::A), hosts.tail(At::B));
        assert_eq!(pair.states(), ("postmigrate".to_owned(), "paused".to_owned()));
        pair.assert_same_memory();
        let resumed = hosts.daemon(At::B).metrics().sum("dwcp_links_resumed_total", &[]);
        assert!(resumed >= moves, "it went on over another connection: {resumed}");
        pair.sink.qmp().execute("cont", json!({})).unwrap();
        pair.assert_runs_at_sink();
    }
}
