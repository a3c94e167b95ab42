//! A session from its opening to its commit over a real peer channel, and what is left when it ends
//! early or its link is lost: above all, who may touch its region.

use super::fake::{Client, Daemon, Pair, run};
use dwcp_proto::wire::hello::{feature_names, features_of};
use dwcp_proto::wire::version::WireVersion;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::rc::Rc;

#[test]
fn a_session_goes_from_opening_to_commit_at_both_ends() {
    run(|directory| async move {
        let mut pair = Pair::start(directory).await;
        let session = pair.open().await;
        let open = pair.open_params();
        assert_eq!(pair.at_a.refusal("session.open", open).await, "region_busy");
        let named = json!({ "session": session });
        let round = pair.at_a.ask("session.round", named.clone()).await;
        assert_eq!(round["result"]["pages_sent"], 6, "three on each lane: {round}");
        let finished = pair.at_a.ask("session.finish", named.clone()).await;
        assert_eq!(finished["result"]["state"], "committed", "{finished}");
        assert_eq!(finished["result"]["rounds"], 2);
        pair.at_b.wait_for(&session, "committed").await;
        assert_eq!(pair.at_a.refusal("session.round", named).await, "session_state");
        // Released: nobody uses the region any more.
        while pair.at_b.ask("region.release", json!({ "name": "r" })).await["error"].is_object() {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn both_ends_of_a_link_tell_what_they_agreed_on() {
    run(|directory| async move {
        let mut pair = Pair::start(directory).await;
        pair.open().await;
        let of = |shown: Value| {
            let link = &shown["result"][0];
            (link["wire_version"].clone(), link["features"].clone())
        };
        let here = of(pair.at_a.ask("net.show", json!({})).await);
        assert_eq!(here.0, WireVersion::HIGHEST.number());
        let features = features_of(WireVersion::HIGHEST);
        assert_eq!(here.1, json!(feature_names(features).collect::<Vec<_>>()), "a plain link");
        assert_eq!(here, of(pair.at_b.ask("net.show", json!({})).await));
    });
}

#[test]
fn no_second_session_writes_to_a_region_that_was_committed() {
    run(|directory| async move {
        let mut pair = Pair::start(directory).await;
        let session = pair.open().await;
        let named = json!({ "session": session });
        let finished = pair.at_a.ask("session.finish", named).await;
        assert_eq!(finished["result"]["state"], "committed", "{finished}");
        pair.at_b.wait_for(&session, "committed").await;
        let mut open = pair.open_params();
        let again = loop {
            // Its lanes may still be closing.
            let refused = pair.at_a.refusal("session.open", open.clone()).await;
            if refused != "region_busy" {
                break refused;
            }
        };
        assert_eq!(again, "region_spent", "the source gave its right up");
        // Another region of the source can't be written over the sink's running copy either.
        pair.at_a.register(json!({ "name": "fresh", "role": "source" })).await;
        open["region"] = json!("fresh");
        open["sink_region"] = json!("r");
        let refused = pair.at_a.ask("session.open", open).await;
        assert_eq!(refused["error"]["data"]["code"], "peer_refused", "{refused}");
        let message = refused["error"]["message"].as_str().unwrap();
        assert!(message.contains("committed with region r"), "{message}");
    });
}

#[test]
fn a_sink_refuses_hosts_that_its_region_does_not_name() {
    run(|directory| async move {
        let mut pair = Pair::start(directory).await;
        let sink = json!({ "name": "other", "role": "sink", "accept_from": ["c"] });
        assert!(pair.at_b.register(sink).await["result"].is_object());
        for sink_region in ["other", "unknown"] {
            let mut open = pair.open_params();
            open["sink_region"] = json!(sink_region);
            let refused = pair.at_a.ask("session.open", open).await;
            assert_eq!(refused["error"]["data"]["code"], "peer_refused", "{refused}");
            assert!(refused["error"]["message"].as_str().unwrap().contains("does not accept"));
        }
    });
}

#[test]
fn a_peer_that_is_not_there_is_a_typed_error_and_frees_the_region() {
    run(|directory| async move {
        let verified = Rc::new(RefCell::new(0));
        let _a = Daemon::start(directory.path(), "a", &verified).await;
        let mut a = Client::connect(directory.path(), "a").await;
        a.register(json!({ "name": "r", "role": "source" })).await;
        let open = json!({ "region": "r", "peer": "127.0.0.1:1" });
        assert_eq!(a.refusal("session.open", open).await, "peer_unreachable");
        assert!(a.ask("region.release", json!({ "name": "r" })).await["result"].is_object());
    });
}

#[test]
fn a_lost_link_fails_the_session_and_leaves_the_region_to_the_source() {
    run(|directory| async move {
        let mut pair = Pair::start(directory).await;
        let session = pair.open().await;
        pair.a.script.hold_rounds.set(true);
        pair.a.script.hold_closed.set(true);
        let named = json!({ "session": session });
        pair.at_a.send("session.round", named.clone()).await;
        let mut other = Client::connect(pair.directory.path(), "a").await;
        while other.ask("session.show", named.clone()).await["result"]["round"] != 1 {
            tokio::task::yield_now().await;
        }
        let b = pair.b.kill().await;
        let failed = pair.at_a.next().await;
        let error = &failed["error"];
        assert_eq!(error["data"]["code"], "session_failed", "{failed}");
        let message = error["message"].as_str().unwrap();
        assert!(message.starts_with("the link to the peer was lost: "), "{failed}");
        assert_eq!(error["data"]["reason"], "session_link_lost", "{failed}");
        assert!(error["data"]["peer_code"].is_string(), "{failed}");
        let cure = "the source keeps its region; open a new session when the peer is back";
        assert_eq!(error["data"]["cure"], cure, "{failed}");
        let shown = pair.at_a.wait_for(&session, "failed").await;
        assert_eq!((&shown["reason"], &shown["cure"]), (&error["message"], &json!(cure)));
        // The shard may still read the region: it is busy although link and session are gone.
        let release = json!({ "name": "r" });
        assert_eq!(other.refusal("region.release", release.clone()).await, "region_busy");
        let b = b.restart().await;
        let open = json!({ "region": "r", "peer": b.info["listen"] });
        assert_eq!(other.refusal("session.open", open).await, "region_busy");
        pair.a.script.hold_rounds.set(false);
        pair.a.script.hold_closed.set(false);
        while other.ask("region.release", release.clone()).await["error"].is_object() {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn a_session_that_ends_before_its_lanes_are_open_keeps_its_region_busy_until_they_closed() {
    run(|directory| async move {
        let mut pair = Pair::start(directory).await;
        pair.a.script.hold_opened.set(true);
        let open = pair.open_params();
        pair.at_a.send("session.open", open).await;
        pair.at_b.wait_state_of_only_session("receiving").await;
        let mut other = Client::connect(pair.directory.path(), "a").await;
        let session = other.wait_state_of_only_session("opening").await;
        // The sink takes it and the lanes at the source were ordered; none has answered.
        let aborted = other.ask("session.abort", json!({ "session": session })).await;
        assert_eq!(aborted["result"]["state"], "aborted", "{aborted}");
        assert_eq!(pair.at_a.next().await["error"]["data"]["code"], "session_aborted");
        let release = json!({ "name": "r" });
        assert_eq!(other.refusal("region.release", release.clone()).await, "region_busy");
        pair.a.script.hold_opened.set(false);
        while other.ask("region.release", release.clone()).await["error"].is_object() {
            tokio::task::yield_now().await;
        }
        pair.at_b.wait_for(&session, "aborted").await;
    });
}
