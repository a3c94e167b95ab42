//! Good sessions: what an operator and a VMM see when nothing fails.

use crate::harness::lab::{Lab, SINK, SOURCE};
use crate::harness::memory::{MIB, Memory};
use crate::harness::metrics::Metrics;
use crate::harness::proxy::{Channel, Way};
use crate::harness::{Rng, SOON, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::process::Command;

/// The region of a usual test: long enough to be caught in the middle, short enough to be quick.
const REGION: u64 = 24 * MIB;

#[test]
fn live_memory_told_by_a_bitmap_arrives_byte_for_byte() {
    let lab = Lab::start(&[]);
    let memory = Memory::filled(1, REGION, true);
    live_session(&lab, memory, 4);
}

#[test]
fn live_memory_told_by_comparison_arrives_byte_for_byte() {
    let lab = Lab::start(&[]);
    let memory = Memory::filled(2, REGION, false);
    live_session(&lab, memory, 4);
}

#[test]
fn two_shards_at_each_end_carry_two_lanes() {
    let cores = dwcp_ffi::cpu::allowed_cores();
    let [one, two, ..] = cores[..] else {
        println!("skipped: two lanes need two cores, this process may use {}", cores.len());
        return;
    };
    let cores = format!("{one},{two}");
    let lab = Lab::start(&["--cores", &cores, "--memory", "512MiB"]);
    let memory = Memory::filled(3, REGION, true);
    live_session(&lab, memory, 4);
    let links = lab.source.must("net.show", json!({}));
    assert_eq!(links[0]["lanes"], 2, "{links}");
}

/// Moves memory while a writer changes it; the sink must hold what the writer wrote last.
fn live_session(lab: &Lab, memory: Memory, pages_per_ms: u64) {
    let transfer = lab.register("vm", memory);
    let writer = transfer.source.start_writer(11, pages_per_ms);
    let mut session = lab.must_open(&transfer);
    let first = session.round().expect("the first round");
    assert_eq!(first["pages"], json!(transfer.source.pages()), "the first round sends all");
    let second = session.round().expect("the second round");
    assert!(second["pages"].as_u64() > Some(0), "the writer is noticed: {second}");
    assert_eq!(second["round"], 2);
    writer.stop();
    let end = session.finish_committed();
    transfer.assert_equal();
    transfer.assert_source_intact();
    assert_eq!(end["counters"]["nacks"], 0, "{end}");
    for class in ["zero_pages", "delta_pages", "zstd_pages"] {
        assert!(end["counters"][class].as_u64() > Some(0), "no {class}: {end}");
    }
    wait_until("the sink's record", SOON, || lab.sink.state_of(&session.id) == "committed");
    let record = lab.sink.session(&session.id).expect("a record");
    assert_eq!((&record["role"], &record["peer"]), (&json!("sink"), &json!(SOURCE)));
    let record = lab.source.session(&session.id).expect("a record");
    assert_eq!((&record["role"], &record["peer"]), (&json!("source"), &json!(SINK)));
}

#[test]
fn a_lost_stream_costs_no_page_and_no_session() {
    let lab = Lab::start(&[]);
    let transfer = lab.register("vm", Memory::filled(4, REGION, true));
    let mut session = lab.must_open(&transfer);
    let round = lab.hold_round(&session);
    lab.proxy.cut_one_stream();
    lab.proxy.release_all();
    round.finish().expect("the other stream carries on");
    session.finish_committed();
    transfer.assert_equal();
    let links = || lab.source.must("net.show", json!({}));
    wait_until("the stream to come back", SOON, || {
        let streams = links()[0]["streams"].clone();
        streams.as_array().expect("streams").iter().all(|stream| stream["up"] == json!(true))
    });
    let ended = lab.source.metrics().sum("dwcp_streams_ended_total", &[]);
    assert!(ended >= 1.0, "a lost stream is counted");
}

#[test]
fn an_aborted_session_leaves_the_source_alone_and_frees_both_regions() {
    let lab = Lab::start(&[]);
    let transfer = lab.register("vm", Memory::filled(5, REGION, true));
    let mut session = lab.must_open(&transfer);
    let round = lab.hold_round(&session);
    let busy = lab.source.call("region.release", json!({"name": "vm"})).expect_err("it is used");
    assert_eq!(busy.code(), "region_busy");
    let answer = lab.source.must("session.abort", session.params());
    assert_eq!(answer["state"], "aborted");
    assert_eq!(round.finish().expect_err("its session is gone").code(), "session_aborted");
    lab.proxy.release_all();
    wait_until("the sink hears of it", SOON, || {
        ["aborted", "failed"].contains(&lab.sink.state_of(&session.id).as_str())
    });
    transfer.assert_source_intact();
    let again = session.round().expect_err("no round after the end");
    assert_eq!(again.code(), "session_state");
    for daemon in [&lab.source, &lab.sink] {
        wait_until("the region is free", SOON, || {
            daemon.call("region.release", json!({"name": "vm"})).is_ok()
        });
    }
    lab.good_session("after");
}

#[test]
fn two_sessions_share_a_link() {
    let lab = Lab::start(&[]);
    let one = lab.register("one", Memory::filled(6, REGION / 2, true));
    let two = lab.register("two", Memory::filled(7, REGION / 2, false));
    let (mut first, mut second) = (lab.must_open(&one), lab.must_open(&two));
    let links = lab.source.must("net.show", json!({}));
    assert_eq!(links.as_array().map(Vec::len), Some(1), "one link to one peer: {links}");
    let rounds = [&first, &second].map(|s| lab.source.pending("session.round", s.params()));
    rounds.into_iter().for_each(|round| drop(round.finish().expect("a round")));
    let mut rng = Rng(8);
    one.source.touch_some(&mut rng, 100);
    two.source.touch_some(&mut rng, 100);
    let ends = [&first, &second].map(|s| lab.source.pending("session.finish", s.params()));
    ends.into_iter()
        .for_each(|end| assert_eq!(end.finish().expect("an end")["state"], "committed"));
    one.assert_equal();
    two.assert_equal();
    assert_eq!(first.round().expect_err("over").code(), "session_state");
    assert_eq!(second.round().expect_err("over").code(), "session_state");
}

#[test]
fn subscribers_hear_of_states_and_progress() {
    let lab = Lab::start(&[]);
    let transfer = lab.register("vm", Memory::filled(9, REGION, true));
    let mut listener = lab.source.client();
    listener.must("subscribe", json!({"topics": ["session.progress", "session.state"]}));
    let mut session = lab.must_open(&transfer);
    // Slow enough that progress is due several times.
    lab.proxy.hold_after(Channel::Data, Way::Forth, MIB);
    let round = lab.source.pending("session.round", session.params());
    let (mut states, mut progress) = (Vec::new(), 0);
    let id = session.id.clone();
    let mut hear = |until: &dyn Fn(&[String], u32) -> bool| {
        while !until(&states, progress) {
            let (method, params) = listener.notification(SOON).expect("a notification in time");
            assert_eq!(params["session"], json!(id));
            match method.as_str() {
                "session.state" => states.push(params["state"].as_str().expect("a word").into()),
                "session.progress" => {
                    let said = ["role", "state", "round", "pages_pending", "counters"];
                    said.iter().for_each(|name| assert!(!params[name].is_null(), "{params}"));
                    assert!(params["rate_bytes_per_s"].is_u64(), "{params}");
                    progress += 1;
                }
                other => panic!("nobody subscribed to {other}"),
            }
        }
    };
    hear(&|_, progress| progress >= 2);
    lab.proxy.release_all();
    round.finish().expect("a round");
    session.finish_committed();
    hear(&|states, _| states.last().is_some_and(|state| state == "committed"));
    for state in ["precopy", "last_round", "verifying"] {
        assert!(states.iter().any(|heard| heard == state), "{state} is missing in {states:?}");
    }
}

#[test]
fn metrics_scraped_in_mid_run_are_well_formed_and_tell_of_the_session() {
    let lab = Lab::start(&[]);
    let transfer = lab.register("vm", Memory::filled(10, REGION, true));
    let mut session = lab.must_open(&transfer);
    let round = lab.hold_round(&session);
    for daemon in [&lab.source, &lab.sink] {
        let metrics = daemon.metrics();
        check_shape(&metrics);
        let label = format!("session=\"{}\"", session.id);
        assert!(metrics.sum("dwcp_session_frames_total", &[&label]) > 0.0);
        assert!(metrics.sum("dwcp_sessions", &[]) == 1.0);
        let families: BTreeSet<&str> = metrics.samples().map(|(name, ..)| name).collect();
        for family in ["dwcp_shard_polls_total", "dwcp_encode_seconds_count", "dwcp_build_info"] {
            assert!(families.contains(family), "{family} is missing in {families:?}");
        }
    }
    lab.proxy.release_all();
    round.finish().expect("a round");
    let metrics = lab.source.metrics();
    check_shape(&metrics);
    let on_streams = metrics.sum("dwcp_stream_frame_rtt_seconds_count", &["peer=\"", "stream=\""]);
    assert!(on_streams > 0.0, "every frame's round trip is one of its stream");
    let on_all = metrics.sum("dwcp_frame_rtt_seconds_count", &[]);
    assert!((on_streams - on_all).abs() < 0.5, "{on_streams} on streams, {on_all} in all");
    session.finish_committed();
    // A session is over when its lanes are closed, a moment after its commit is told.
    wait_until("its end is counted", SOON, || {
        lab.source.metrics().sum("dwcp_sessions_ended_total", &["state=\"committed\""]) > 0.0
    });
}

/// The text format's rules that a scraper trips over: every sample belongs to a family that was
/// announced, families are announced once, counters end in `_total`, no series comes twice.
fn check_shape(metrics: &Metrics) {
    let mut families = BTreeSet::new();
    let mut kinds = std::collections::BTreeMap::new();
    for line in metrics.lines().filter(|line| line.starts_with("# TYPE ")) {
        let mut words = line.split(' ').skip(2);
        let (name, kind) = (words.next().expect("a name"), words.next().expect("a kind"));
        assert!(families.insert(name), "{name} is announced twice");
        kinds.insert(name, kind);
        assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
    }
    let mut series = BTreeSet::new();
    for (name, labels, value) in metrics.samples() {
        let family = ["_sum", "_count"].iter().find_map(|tail| {
            let family = name.strip_suffix(tail)?;
            (kinds.get(family) == Some(&"summary")).then_some(family)
        });
        assert!(families.contains(family.unwrap_or(name)), "{name} was not announced");
        // A quantile of nothing is not a number, by the format's own rule.
        let is_empty_quantile = value.is_nan() && labels.contains("quantile=");
        assert!(name.starts_with("dwcp_"), "{name}");
        assert!(value >= 0.0 || is_empty_quantile, "{name} {value}");
        assert!(series.insert((name, labels)), "{name}{{{labels} comes twice");
    }
}

#[test]
fn client_commands_print_json_and_tables_of_a_live_daemon() {
    let lab = Lab::start(&[]);
    let transfer = lab.register("vm", Memory::filled(12, 4 * MIB, true));
    let mut session = lab.must_open(&transfer);
    session.round().expect("a round");
    let socket = lab.source.spec.socket();
    let run = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dwcp"));
        let output = command.args(words).arg("--socket").arg(&socket).output().expect("it runs");
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8(output.stdout).expect("text")
    };
    let commands: [&[&str]; 5] =
        [&["status"], &["sessions"], &["net"], &["daemon", "info"], &["config"]];
    for words in commands {
        let text = run(words);
        assert!(text.lines().count() > 1, "{words:?}: {text}");
        let json = run(&[words, &["--json"]].concat());
        let value: Value = serde_json::from_str(&json).expect("one JSON document");
        assert!(!value.is_null(), "{words:?}");
    }
    let sessions = run(&["sessions"]);
    assert!(sessions.contains(&session.id) && sessions.contains("precopy"), "{sessions}");
    let record = lab.source.session(&session.id).expect("a record");
    let row = sessions.lines().find(|line| line.contains(&session.id)).expect("its row");
    assert!(!row.contains(" - "), "every column has a value: {row}\n{record}");
    let net = run(&["net"]);
    assert!(net.contains(SINK) && !net.contains(" - "), "every column has a value:\n{net}");
    let output = run(&["cancel", &session.id[..8]]);
    assert!(output.contains("aborted"), "{output}");
}

#[test]
fn a_signal_ends_a_daemon_in_order() {
    let mut lab = Lab::start(&[]);
    let transfer = lab.register("vm", Memory::filled(13, REGION, true));
    let mut session = lab.must_open(&transfer);
    let round = lab.hold_round(&session);
    lab.sink.signal(Signal::SIGINT);
    assert_eq!(lab.sink.ended().code(), Some(0), "{}", lab.sink.log());
    assert!(!lab.sink.spec.socket().exists(), "the socket's file goes with the daemon");
    lab.proxy.release_all();
    let error = round.finish().expect_err("the sink is gone");
    assert!(["session_failed", "link_lost"].contains(&error.code()), "{error:?}");
    assert_eq!(lab.source.state_of(&session.id), "failed");
    assert_eq!(session.finish().expect_err("it is over").code(), "session_state");
    transfer.assert_source_intact();
    lab.source.signal(Signal::SIGTERM);
    assert_eq!(lab.source.ended().code(), Some(0), "{}", lab.source.log());
    assert!(!lab.source.spec.socket().exists(), "the socket's file goes with the daemon");
}

#[test]
fn a_daemon_that_drains_finishes_what_is_under_way_and_begins_nothing() {
    let mut lab = Lab::start(&[]);
    let transfer = lab.register("vm", Memory::filled(14, REGION, true));
    let late = lab.register("late", Memory::filled(15, MIB, true));
    let mut session = lab.must_open(&transfer);
    let round = lab.hold_round(&session);
    for draining in [&lab.source, &lab.sink] {
        draining.signal(Signal::SIGTERM);
        wait_until("the daemon drains", SOON, || {
            draining.must("status", json!({}))["health"] == "draining"
        });
    }
    assert_eq!(lab.open(&late).expect_err("nothing begins").code(), "stopping");
    lab.proxy.release_all();
    round.finish().expect("the round goes on");
    session.finish_committed();
    for draining in [&mut lab.source, &mut lab.sink] {
        assert_eq!(draining.ended().code(), Some(0), "{}", draining.log());
    }
    transfer.assert_equal();
}

#[test]
fn draining_ends_with_its_time_or_with_a_second_signal() {
    for (timeout, again) in [("300ms", false), ("1min", true)] {
        let mut lab = Lab::start(&["--drain-timeout", timeout]);
        let transfer = lab.register("vm", Memory::filled(16, REGION, true));
        let session = lab.must_open(&transfer);
        let round = lab.hold_round(&session);
        lab.source.signal(Signal::SIGTERM);
        if again {
            wait_until("the daemon drains", SOON, || {
                lab.source.must("status", json!({}))["health"] == "draining"
            });
            lab.source.signal(Signal::SIGTERM);
        }
        assert_eq!(lab.source.ended().code(), Some(0), "{}", lab.source.log());
        assert!(round.finish().is_err(), "the round did not end");
        transfer.assert_source_intact();
    }
}
