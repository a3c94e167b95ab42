//! What clients and peers may ask for, and how the daemon says no: settings, memory, links,
//! streams, questions, notifications.

use super::fake::{Client, Daemon, Pair, config, run};
use crate::config::PeerSecurity;
use crate::limits::{PROGRESS_PERIOD_NS, UNKNOWN_SESSIONS_PER_PEER_MAX};
use crate::peer::{Established, Identity, random, read_message, write_message};
use dwcp_proto::ids::{LinkEpoch, SessionId};
use dwcp_proto::wire::peer::{Outcome, PeerMessage};
use dwcp_proto::wire::token::JournalId;
use dwcp_proto::wire::version::WireVersion;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// A peer named `name` that says what the test wants it to say.
pub(super) async fn peer(daemon: &Daemon, name: &str) -> Established {
    peer_of(daemon, name, WireVersion::HIGHEST).await
}

/// The same with a program of that version.
pub(super) async fn peer_of(daemon: &Daemon, name: &str, version: WireVersion) -> Established {
    let host_name = name.to_owned();
    let security = PeerSecurity::InsecurePlaintext { host_name };
    let identity = Identity::load(&security, random()).unwrap().of_version(version);
    let stream = TcpStream::connect(daemon.info["listen"].as_str().unwrap()).await.unwrap();
    identity.connect(stream, None).await.unwrap()
}

fn numbered(number: u32) -> SessionId {
    let mut name = [7; 16];
    name[..4].copy_from_slice(&number.to_be_bytes());
    SessionId(name)
}

#[test]
fn a_live_setting_changes_new_sessions_and_others_are_refused() {
    run(|directory| async move {
        let mut pair = Pair::start(directory).await;
        let set = |name: &str, value: Value| json!({ "name": name, "value": value });
        let changed = pair.at_a.ask("config.set", set("zstd-level", json!(7))).await;
        assert_eq!(changed["result"]["value"], 7, "{changed}");
        let settings = pair.at_a.ask("config.get", json!({})).await;
        assert_eq!(settings["result"][0]["value"], 7, "{settings}");
        pair.open().await;
        assert_eq!(pair.a.script.zstd_level.get(), 7);
        let refused = pair.at_a.refusal("config.set", set("zstd-level", json!(99))).await;
        assert_eq!(refused, "setting_invalid");
        let refused = pair.at_a.refusal("config.set", set("listen", json!("x"))).await;
        assert_eq!(refused, "setting_fixed");
        assert_eq!(
            pair.at_a.refusal("config.set", set("nothing", json!(1))).await,
            "setting_unknown"
        );
        let long = set("zstd-level", json!("x".repeat(5000)));
        assert_eq!(pair.at_a.refusal("config.set", long).await, "params_invalid");
        let settings = pair.at_a.ask("config.get", json!({})).await;
        assert_eq!(settings["result"][0]["value"], 7, "a refusal changes nothing");
    });
}

#[test]
fn a_session_beyond_the_memory_budget_is_refused_with_its_arithmetic() {
    run(|directory| async move {
        let verified = Rc::new(RefCell::new(0));
        let mut small = config(directory.path(), "a");
        small.memory.sessions_bytes = 100_000;
        let _a = Daemon::start_with(small, &verified).await;
        let mut a = Client::connect(directory.path(), "a").await;
        for name in ["one", "two"] {
            a.register(json!({ "name": name, "role": "source" })).await;
        }
        // 16 pages at 64 bytes, and as many bases of 4096 bytes.
        let wanted: u64 = 16 * 64 + 16 * 4096;
        // The first one waits for a link to a peer that never answers.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = silent.local_addr().unwrap().to_string();
        a.send("session.open", json!({ "region": "one", "peer": address })).await;
        let mut other = Client::connect(directory.path(), "a").await;
        let refused = other.ask("session.open", json!({ "region": "two", "peer": address })).await;
        let error = &refused["error"];
        assert_eq!(error["data"]["code"], "memory_budget", "{refused}");
        let message = format!(
            "this session needs {wanted} bytes; {wanted} of 100000 bytes are reserved already"
        );
        assert_eq!(error["message"], message, "{refused}");
        assert_eq!(error["data"]["wanted_bytes"], wanted);
        assert_eq!(error["data"]["reserved_bytes"], wanted);
        assert_eq!(error["data"]["total_bytes"], 100_000);
    });
}

#[test]
fn progress_is_told_at_most_ten_times_a_second() {
    run(|directory| async move {
        let mut pair = Pair::start(directory).await;
        pair.open().await;
        let mut subscriber = Client::connect(pair.directory.path(), "a").await;
        let topics = json!({ "topics": ["session.progress"] });
        subscriber.ask("subscribe", topics).await;
        assert_eq!(subscriber.next().await["method"], "session.progress");
        let begun = Instant::now();
        let told = 6;
        for _ in 0..told {
            assert_eq!(subscriber.next().await["method"], "session.progress");
        }
        // The first of them may have been read late, by less than one period.
        let least = Duration::from_nanos(PROGRESS_PERIOD_NS) * (told - 1);
        assert!(begun.elapsed() >= least, "{:?}", begun.elapsed());
        assert!(subscriber.ask("unsubscribe", json!({})).await.is_object());
    });
}

#[test]
fn a_link_too_many_is_refused_by_name_at_both_ends() {
    run(|directory| async move {
        let verified = Rc::new(RefCell::new(0));
        let mut one = config(directory.path(), "b");
        one.links_max = 1;
        let b = Daemon::start_with(one, &verified).await;
        let first = peer(&b, "host-x").await;
        let open = PeerMessage::LinkOpen { epoch: LinkEpoch(1), lanes: 1, streams: 2 };
        write_message(&first, &open).await.unwrap();
        let accepted = read_message(&first).await.unwrap();
        assert!(matches!(accepted, PeerMessage::LinkAccept { .. }), "{accepted:?}");
        let a = Daemon::start(directory.path(), "a", &verified).await;
        let mut at_a = Client::connect(directory.path(), "a").await;
        at_a.register(json!({ "name": "r", "role": "source" })).await;
        let open = json!({ "region": "r", "peer": b.info["listen"] });
        let refused = at_a.ask("session.open", open.clone()).await;
        let data = &refused["error"]["data"];
        assert_eq!(data["code"], "peer_refused", "{refused}");
        assert_eq!(data["peer_code"], "link_refused", "{refused}");
        assert_eq!(data["refused_code"], "links_too_many", "{refused}");
        // The same limit holds for links that a daemon dials.
        let mut at_b = Client::connect(directory.path(), "b").await;
        at_b.register(json!({ "name": "r", "role": "source" })).await;
        let open = json!({ "region": "r", "peer": a.info["listen"] });
        let refused = at_b.ask("session.open", open).await;
        assert_eq!(refused["error"]["data"]["peer_code"], "links_too_many", "{refused}");
        // The place is free again when the first peer leaves.
        drop(first);
        let sink = json!({ "name": "s", "role": "sink", "accept_from": ["a"] });
        at_b.register(sink).await;
        let open = json!({ "region": "r", "peer": b.info["listen"], "sink_region": "s" });
        while at_a.ask("session.open", open.clone()).await["error"].is_object() {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn streams_beyond_the_room_of_the_shards_are_refused_by_name() {
    run(|directory| async move {
        let verified = Rc::new(RefCell::new(0));
        let mut few = config(directory.path(), "b");
        few.streams_per_link_max = 3;
        let b = Daemon::start_with(few, &verified).await;
        let greedy = peer(&b, "host-x").await;
        let open = |streams| PeerMessage::LinkOpen { epoch: LinkEpoch(1), lanes: 1, streams };
        write_message(&greedy, &open(4)).await.unwrap();
        let refused = read_message(&greedy).await.unwrap();
        let PeerMessage::LinkRefuse { code, message } = refused else { panic!("{refused:?}") };
        assert_eq!(code.as_str(), "streams_too_many");
        assert!(message.as_str().contains("room for 3"), "{message}");
        let modest = peer(&b, "host-x").await;
        write_message(&modest, &open(3)).await.unwrap();
        let accepted = read_message(&modest).await.unwrap();
        assert!(matches!(accepted, PeerMessage::LinkAccept { .. }), "{accepted:?}");
    });
}

#[test]
fn questions_about_unknown_sessions_are_answered_and_push_nothing_out() {
    run(|directory| async move {
        let mut pair = Pair::start(directory).await;
        let session = pair.open().await;
        let finished = pair.at_a.ask("session.finish", json!({ "session": session })).await;
        assert_eq!(finished["result"]["state"], "committed", "{finished}");
        let info = pair.at_b.ask("daemon.info", json!({})).await;
        let journal: JournalId = serde_json::from_value(info["result"]["journal"].clone()).unwrap();
        let asker = peer(&pair.b, "host-x").await;
        for number in 0..300 {
            let session = numbered(number);
            write_message(&asker, &PeerMessage::Query { session, journal }).await.unwrap();
            let answer = read_message(&asker).await.unwrap();
            let outcome = Outcome::NotCommitted;
            assert_eq!(answer, PeerMessage::Outcome { session, outcome });
        }
        let list = pair.at_b.ask("session.list", json!({})).await;
        let listed = list["result"].as_array().unwrap().len();
        assert!(listed <= 1 + UNKNOWN_SESSIONS_PER_PEER_MAX + 1, "{listed}");
        pair.at_b.wait_for(&session, "committed").await;
        // What is settled leaves the journal at once.
        let settled = numbered(299);
        let message = PeerMessage::Settled { session: settled };
        write_message(&asker, &message).await.unwrap();
        let shown = json!({ "session": settled });
        while pair.at_b.refusal("session.show", shown.clone()).await != "session_unknown" {
            tokio::task::yield_now().await;
        }
        // A flood without waiting is answered in part, and the daemon serves on.
        for number in 1000..2000 {
            let session = numbered(number);
            write_message(&asker, &PeerMessage::Query { session, journal }).await.unwrap();
        }
        pair.at_b.wait_for(&session, "committed").await;
        let b = pair.b.kill().await.restart().await;
        let mut at_b = Client::connect(pair.directory.path(), "b").await;
        at_b.wait_for(&session, "committed").await;
        let list = at_b.ask("session.list", json!({})).await;
        let listed = list["result"].as_array().unwrap().len();
        assert!(listed <= 1 + UNKNOWN_SESSIONS_PER_PEER_MAX, "{listed}");
        drop(b);
    });
}

#[test]
fn a_scrape_names_every_family_once_and_no_counter_lacks_its_ending() {
    run(|directory| async move {
        let verified = Rc::new(RefCell::new(0));
        let text = Daemon::start(directory.path(), "m", &verified).await.metrics;
        let families: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let mut names = families.clone();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), families.len());
        assert!(families.len() > 40, "{text}");
        assert!(!text.contains("nanoseconds"), "{text}");
    });
}
