//! A migration that is given up leaves the guest where it was, and QEMU as its user had set it.

use super::harness::{At, Hosts, told};
use super::pair::Pair;
use crate::harness::wait_until;
use dwcp_tools::lab::{Guest, Vm};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// What the user set: unlike QEMU's defaults and unlike what dwcp sets.
fn set_own_settings(vm: &mut Vm) {
    let own = json!({"downtime-limit": 777, "max-bandwidth": 123_456_789});
    vm.qmp().execute("migrate-set-parameters", own).unwrap();
}

fn settings(vm: &mut Vm) -> (Value, Value) {
    let mut ask = |command| vm.qmp().execute(command, json!({})).unwrap();
    (ask("query-migrate-parameters"), ask("query-migrate-capabilities"))
}

#[test]
fn a_cancelled_migration_leaves_the_guest_and_its_settings_and_the_next_one_works() {
    // Slow, so that there is time to give up.
    let Some(hosts) = Hosts::up("rate=30m delay=5ms") else { return };
    let guest = Guest::new(&hosts.lab, "dirty:24,400,3").unwrap().with_ram_mib(96);
    let mut pair = Pair::boot(&hosts, &guest, At::A);
    set_own_settings(&mut pair.source);
    let before = settings(&mut pair.source);

    for by_signal in [false, true] {
        let mut listener = hosts.listen(At::A);
        let migrate = hosts.start_migrate(At::A, &[]);
        let params = told(&mut listener, "progress of the first round", |method, params| {
            method == "session.progress" && params["vm"]["stage"] == "precopy"
        });
        if by_signal {
            migrate.interrupt();
        } else {
            let session = params["session"].as_str().expect("a session").to_owned();
            hosts.must(At::A, &["cancel", &session]);
        }
        let end = migrate.finish();
        assert_eq!(end.code, Some(if by_signal { 130 } else { 1 }), "{end:?}");
        let record = hosts.record(At::A).expect("a record");
        assert_eq!(record["state"], "aborted", "{record}");
        pair.assert_runs_at_source();
        assert_eq!(settings(&mut pair.source), before, "QEMU's settings are the user's again");
        // A QEMU that has received something can't receive another guest.
        wait_until("the sink to let go", super::harness::MOVE_MAX, || {
            hosts.record(At::B).is_some_and(|record| record["state"] == "aborted")
        });
        pair = pair.renew_sink(&hosts);
    }

    hosts.link("rate=1g");
    hosts.migrate(At::A, &["--downtime-limit", "300ms"]);
    pair.assert_runs_at_sink();
}

#[test]
fn a_guest_that_its_user_pauses_meanwhile_stays_at_the_source_and_paused() {
    let Some(hosts) = Hosts::up("rate=30m delay=5ms") else { return };
    let guest = Guest::new(&hosts.lab, "dirty:24,400,3").unwrap().with_ram_mib(96);
    let mut pair = Pair::boot(&hosts, &guest, At::A);
    let mut listener = hosts.listen(At::A);
    let migrate = hosts.start_migrate(At::A, &[]);
    told(&mut listener, "progress of the first round", |method, params| {
        method == "session.progress" && params["vm"]["stage"] == "precopy"
    });
    pair.source.qmp().execute("stop", json!({})).unwrap();
    let end = migrate.finish();
    assert_eq!(end.code, Some(1), "{end:?}");
    assert!(end.stderr.contains("stopped while it was migrating"), "{end:?}");
    assert_eq!(pair.source.qmp().status().unwrap(), "paused");
    // Its user starts it again, and it may go.
    pair.source.qmp().execute("cont", json!({})).unwrap();
    wait_until("the sink to let go", super::harness::MOVE_MAX, || {
        hosts.record(At::B).is_some_and(|record| record["state"] == "aborted")
    });
    pair = pair.renew_sink(&hosts);
    hosts.link("rate=1g");
    hosts.migrate(At::A, &["--downtime-limit", "300ms"]);
    pair.assert_runs_at_sink();
}

#[test]
fn a_daemon_that_is_told_to_end_finishes_its_migration_first() {
    let Some(mut hosts) = Hosts::up("rate=100m delay=5ms") else { return };
    let guest = Guest::new(&hosts.lab, "dirty:24,400,3").unwrap().with_ram_mib(96);
    let mut pair = Pair::boot(&hosts, &guest, At::A);
    let mut listener = hosts.listen(At::A);
    let migrate = hosts.start_migrate(At::A, &["--downtime-limit", "300ms"]);
    told(&mut listener, "progress of the first round", |method, params| {
        method == "session.progress" && params["vm"]["stage"] == "precopy"
    });
    hosts.daemon(At::A).signal(Signal::SIGTERM);
    let end = migrate.finish();
    assert_eq!(end.code, Some(0), "{end:?}");
    assert_eq!(hosts.daemon_mut(At::A).ended().code(), Some(0));
    pair.assert_runs_at_sink();
}
