//! A link that is lost under a migration: the sessions of both ends wait, and go on over another
//! connection, or end as they must.

use super::fake::run;
use super::limits::{peer, peer_of};
use super::path::Path;
use super::vm::VmPair;
use crate::peer::{Established, read_message, write_message};
use dwcp_proto::ids::{Incarnation, LinkEpoch, SessionId, StreamId};
use dwcp_proto::wire::peer::PeerMessage;
use dwcp_proto::wire::preface::StreamPreface;
use dwcp_proto::wire::token::{LinkToken, ResumeToken};
use dwcp_proto::wire::version::WireVersion;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// A migration from `a` to `b` over a path of the test's.
struct Moving {
    pair: VmPair,
    path: Path,
    at_a: super::fake::Client,
    session: Value,
}

impl Moving {
    /// The migration waits at this point.
    async fn start(directory: tempfile::TempDir, point: &'static str) -> Self {
        // No more than the one that is resumed.
        let mut pair = VmPair::with_links(directory, 1).await;
        let path = Path::to(&pair.b.info["listen"]).await;
        pair.qemus.hold(point);
        let migrate = json!({ "name": "vm", "peer": path.address });
        pair.at_a.send("vm.migrate", migrate).await;
        let mut at_a = pair.other().await;
        let state = if point == "precopy" { "precopy" } else { "last_round" };
        let session = at_a.wait_state_of_only_session(state).await;
        Self { pair, path, at_a, session }
    }

    /// The path is cut and does not come back by itself.
    fn lose(&self) {
        self.path.hold();
        self.path.cut();
    }

    async fn both_parked(&mut self) {
        for client in [&mut self.at_a, &mut self.pair.at_b] {
            let record = client.wait_for(&self.session, "parked").await;
            let of = |name: &str| record["parked"][name].as_u64().unwrap();
            assert_eq!(of("until_unix_ms") - of("since_unix_ms"), 600_000, "{record}");
            assert!(record["parked"]["reason"].is_string(), "{record}");
        }
    }

    async fn commits(&mut self) {
        let answer = self.pair.at_a.next().await;
        assert_eq!(answer["result"]["state"], "committed", "{answer}");
        assert_eq!(self.pair.qemus.run_state("/qemu/b"), "running");
        let orders = self.pair.qemus.orders("/qemu/a");
        assert!(!orders.contains(&"keep") && !orders.contains(&"cancel"), "{orders:?}");
    }

    async fn fails(&mut self) -> Value {
        let answer = self.pair.at_a.next().await;
        assert_eq!(answer["error"]["data"]["guest"], "running", "{answer}");
        assert_eq!(self.pair.qemus.run_state("/qemu/a"), "running");
        answer
    }
}

#[test]
fn sessions_of_a_lost_link_wait_and_go_on_over_another_connection() {
    run(|directory| async move {
        let mut moving = Moving::start(directory, "precopy").await;
        let mut watcher = moving.pair.other().await;
        watcher.ask("subscribe", json!({ "topics": ["session.state"] })).await;
        moving.lose();
        moving.both_parked().await;
        let told = watcher.next().await;
        assert_eq!(told["params"]["state"], "parked", "{told}");
        assert!(told["params"]["parked"]["until_unix_ms"].is_u64(), "{told}");
        let status = moving.at_a.ask("status", json!({})).await;
        assert_eq!(status["result"]["sessions"][0]["state"], "parked", "{status}");
        assert_eq!(status["result"]["links"][0]["phase"], "parked", "{status}");
        moving.path.heal();
        let told = watcher.next().await;
        assert_eq!(told["params"]["state"], "precopy", "{told}");
        assert!(told["params"]["parked"].is_null(), "{told}");
        let session = moving.session.clone();
        moving.pair.at_b.wait_for(&session, "receiving").await;
        for (daemon, role) in [(&moving.pair.a, "source"), (&moving.pair.b, "sink")] {
            assert_eq!(daemon.counters.links_resumed.count(role), 1);
            let parked = daemon.counters.links_parked.snapshot();
            assert_eq!(parked.iter().map(|(_, count)| count).sum::<u64>(), 1, "{parked:?}");
        }
        moving.pair.qemus.free("precopy");
        moving.commits().await;
    });
}

#[test]
fn a_link_may_be_lost_again_and_again() {
    run(|directory| async move {
        let mut moving = Moving::start(directory, "precopy").await;
        let session = moving.session.clone();
        for _ in 0..4 {
            moving.lose();
            moving.both_parked().await;
            moving.path.heal();
            moving.at_a.wait_for(&session, "precopy").await;
            moving.pair.at_b.wait_for(&session, "receiving").await;
        }
        moving.pair.qemus.free("precopy");
        moving.commits().await;
    });
}

#[test]
fn a_half_open_connection_gives_way_to_a_new_one() {
    run(|directory| async move {
        let mut moving = Moving::start(directory, "precopy").await;
        let before = moving.at_a.ask("status", json!({})).await;
        let incarnation = |status: &Value| {
            status["result"]["links"][0]["streams"][0]["incarnation"].as_u64().unwrap()
        };
        // Nobody is told that the old connections are dead.
        moving.path.hold_old();
        loop {
            let status = moving.at_a.ask("status", json!({})).await;
            if incarnation(&status) > incarnation(&before) {
                break;
            }
            tokio::task::yield_now().await;
        }
        let session = moving.session.clone();
        moving.at_a.wait_for(&session, "precopy").await;
        moving.pair.at_b.wait_for(&session, "receiving").await;
        moving.pair.qemus.free("precopy");
        moving.commits().await;
    });
}

#[test]
fn what_the_sink_said_last_is_said_again() {
    run(|directory| async move {
        let mut moving = Moving::start(directory, "load").await;
        moving.path.hold();
        moving.pair.qemus.free("load");
        let session = moving.session.clone();
        moving.pair.at_b.wait_for(&session, "verified").await;
        moving.path.cut();
        moving.pair.at_b.wait_for(&session, "in_doubt").await;
        moving.path.heal();
        moving.commits().await;
    });
}

#[test]
fn every_channel_is_there_after_the_link_was_lost() {
    run(|directory| async move {
        let mut pair = VmPair::start(directory).await;
        pair.qemus.more_channels.set(4);
        let path = Path::to(&pair.b.info["listen"]).await;
        pair.qemus.hold("precopy");
        let migrate = json!({ "name": "vm", "peer": path.address });
        pair.at_a.send("vm.migrate", migrate).await;
        let mut at_a = pair.other().await;
        let session = at_a.wait_state_of_only_session("precopy").await;
        path.hold();
        path.cut();
        at_a.wait_for(&session, "parked").await;
        path.heal();
        at_a.wait_for(&session, "precopy").await;
        pair.qemus.free("precopy");
        let answer = pair.at_a.next().await;
        assert_eq!(answer["result"]["state"], "committed", "{answer}");
        assert_eq!((pair.a.script.channels.get(), pair.b.script.channels.get()), (5, 5));
    });
}

#[test]
fn a_guest_that_stands_still_waits_for_a_link_no_longer_than_it_may() {
    run(|directory| async move {
        for lost in [true, false] {
            let directory = tempfile::tempdir_in(directory.path()).unwrap();
            let mut moving = Moving::start(directory, "load").await;
            match lost {
                true => moving.lose(),
                false => moving.path.hold(),
            }
            let answer = moving.fails().await;
            assert_eq!(answer["error"]["data"]["vm_code"], "blackout_max", "{answer}");
            // The sink hears of it when the path is back.
            moving.path.heal();
            let session = moving.session.clone();
            moving.pair.at_b.wait_for(&session, "aborted").await;
            VmPair::free(&mut moving.pair.at_b).await;
            assert_eq!(VmPair::free(&mut moving.at_a).await["state"], "free");
        }
    });
}

#[test]
fn a_parked_session_is_cancelled_at_either_end() {
    run(|directory| async move {
        for at_source in [true, false] {
            let directory = tempfile::tempdir_in(directory.path()).unwrap();
            let mut moving = Moving::start(directory, "precopy").await;
            let session = moving.session.clone();
            moving.lose();
            moving.both_parked().await;
            let client = if at_source { &mut moving.at_a } else { &mut moving.pair.at_b };
            let aborted = client.ask("session.abort", json!({ "session": session })).await;
            assert_eq!(aborted["result"]["state"], "aborted", "{aborted}");
            moving.path.heal();
            let answer = moving.fails().await;
            if !at_source {
                assert_eq!(answer["error"]["data"]["code"], "session_failed", "{answer}");
            }
            moving.pair.at_b.wait_for(&session, "aborted").await;
            moving.pair.qemus.free("precopy");
            VmPair::free(&mut moving.at_a).await;
        }
    });
}

#[test]
fn sessions_wait_no_longer_than_the_window() {
    run(|directory| async move {
        let mut moving = Moving::start(directory, "precopy").await;
        let window = json!({ "name": "resume-window", "value": 1 });
        for client in [&mut moving.at_a, &mut moving.pair.at_b] {
            assert_eq!(client.ask("config.set", window.clone()).await["result"]["value"], 1);
        }
        moving.lose();
        let answer = moving.fails().await;
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains("within 1 s"), "{answer}");
        let session = moving.session.clone();
        moving.pair.at_b.wait_for(&session, "failed").await;
    });
}

#[test]
fn without_a_window_a_lost_link_ends_its_sessions_at_once() {
    run(|directory| async move {
        let mut moving = Moving::start(directory, "precopy").await;
        let window = json!({ "name": "resume-window", "value": 0 });
        moving.at_a.ask("config.set", window).await;
        moving.lose();
        moving.fails().await;
    });
}

#[test]
fn a_sink_that_is_dead_is_not_waited_for() {
    run(|directory| async move {
        let mut pair = VmPair::start(directory).await;
        pair.qemus.hold("precopy");
        pair.migrate().await;
        pair.other().await.wait_state_of_only_session("precopy").await;
        let b = pair.b.kill().await;
        let answer = pair.at_a.next().await;
        assert_eq!(answer["error"]["data"]["guest"], "running", "{answer}");
        drop(b);
    });
}

#[test]
fn a_restarted_sink_knows_nothing_to_go_on_with() {
    run(|directory| async move {
        let mut moving = Moving::start(directory, "precopy").await;
        moving.lose();
        moving.at_a.wait_for(&moving.session, "parked").await;
        let _b = moving.pair.b.kill().await.restart().await;
        moving.path.heal();
        let answer = moving.pair.at_a.next().await;
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.contains("resume_unknown"), "{answer}");
        assert_eq!(answer["error"]["data"]["guest"], "running", "{answer}");
    });
}

/// A source that says what the test wants it to say, with a link to `b` of one stream.
struct Source {
    channel: Established,
    _stream: TcpStream,
    token: LinkToken,
    resume: ResumeToken,
}

const EPOCH: LinkEpoch = LinkEpoch(77);

impl Source {
    async fn start(pair: &VmPair, name: &str) -> Self {
        let channel = peer(&pair.b, name).await;
        let open = PeerMessage::LinkOpen { epoch: EPOCH, lanes: 1, streams: 1 };
        write_message(&channel, &open).await.unwrap();
        let accepted = read_message(&channel).await.unwrap();
        let PeerMessage::LinkAccept { token, resume, .. } = accepted else {
            panic!("{accepted:?}")
        };
        let _stream = stream(pair, token, 1).await;
        Self { channel, _stream, token, resume: resume.unwrap() }
    }
}

async fn stream(pair: &VmPair, token: LinkToken, incarnation: u32) -> TcpStream {
    let address = pair.b.info["listen"].as_str().unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    let (id, incarnation) = (StreamId(0), Incarnation(incarnation));
    let version = WireVersion::HIGHEST;
    let preface = StreamPreface { version, token, stream: id, incarnation };
    stream.write_all(&preface.encode()).await.unwrap();
    stream
}

/// Shows a token to `b`; its answer.
async fn show(pair: &VmPair, name: &str, epoch: LinkEpoch, token: ResumeToken) -> PeerMessage {
    let channel = peer(&pair.b, name).await;
    ask(&channel, epoch, token).await
}

async fn ask(channel: &Established, epoch: LinkEpoch, token: ResumeToken) -> PeerMessage {
    let sessions = vec![SessionId([1; 16])];
    let resume = PeerMessage::LinkResume { epoch, token, sessions };
    write_message(channel, &resume).await.unwrap();
    read_message(channel).await.unwrap()
}

async fn ready_links(pair: &mut VmPair, count: usize) {
    loop {
        let links = pair.at_b.ask("net.show", json!({})).await;
        let links = links["result"].as_array().unwrap().clone();
        if links.iter().filter(|link| link["phase"] == "ready").count() == count {
            return;
        }
        tokio::task::yield_now().await;
    }
}

fn code(answer: &PeerMessage) -> &str {
    match answer {
        PeerMessage::LinkRefuse { code, .. } | PeerMessage::SessionFailed { code, .. } => {
            code.as_str()
        }
        other => other.name(),
    }
}

#[test]
fn nobody_takes_up_a_link_that_is_not_his_or_not_here() {
    run(|directory| async move {
        let mut pair = VmPair::start(directory).await;
        let source = Source::start(&pair, "x").await;
        ready_links(&mut pair, 1).await;
        let wrong = ResumeToken([9; 16]);
        let cases = [
            ("x", EPOCH, wrong, "resume_token_wrong"),
            ("x", LinkEpoch(78), wrong, "resume_unknown"),
            ("y", EPOCH, wrong, "resume_unknown"),
            ("y", EPOCH, source.resume, "resume_wrong_peer"),
        ];
        for (name, epoch, token, refusal) in cases {
            let before = pair.b.counters.refused.count(refusal);
            assert_eq!(code(&show(&pair, name, epoch, token).await), refusal);
            assert_eq!(pair.b.counters.refused.count(refusal), before + 1);
        }
        ready_links(&mut pair, 1).await;
        // A link is taken up by the first message alone.
        let late = ask(&source.channel, EPOCH, source.resume).await;
        assert_eq!(code(&late), "goodbye");
    });
}

#[test]
fn a_link_keeps_the_version_and_the_features_that_it_began_with() {
    run(|directory| async move {
        let mut pair = VmPair::start(directory).await;
        let source = Source::start(&pair, "x").await;
        ready_links(&mut pair, 1).await;
        let older = peer_of(&pair.b, "x", WireVersion::V1).await;
        let answer = ask(&older, EPOCH, source.resume).await;
        assert_eq!(code(&answer), "resume_agreement");
        assert_eq!(pair.b.counters.refused.count("resume_agreement"), 1);
        // The link that is there is untouched, and so is its token.
        ready_links(&mut pair, 1).await;
        let unknown = show(&pair, "x", EPOCH, source.resume).await;
        assert_eq!(code(&unknown), "resume_session_unknown");
    });
}

#[test]
fn a_token_is_good_once_and_wins_over_a_connection_that_seems_to_live() {
    run(|directory| async move {
        let mut pair = VmPair::start(directory).await;
        let source = Source::start(&pair, "x").await;
        ready_links(&mut pair, 1).await;
        let channel = peer(&pair.b, "x").await;
        // The session that it names is not here; the link goes on.
        let unknown = ask(&channel, EPOCH, source.resume).await;
        assert_eq!(code(&unknown), "resume_session_unknown");
        assert_eq!(pair.b.counters.ignored.count("resume_session_unknown"), 1);
        let resumed = read_message(&channel).await.unwrap();
        let PeerMessage::LinkResumed { token, resume } = resumed else { panic!("{resumed:?}") };
        assert!(token != source.token && resume != source.resume);
        let _stream = stream(&pair, token, 2).await;
        ready_links(&mut pair, 1).await;
        // What was said on the old connection is not heard, and the old token is of no use.
        assert_eq!(code(&show(&pair, "x", EPOCH, source.resume).await), "resume_token_stale");
        assert_eq!(
            code(&show(&pair, "x", EPOCH, ResumeToken([9; 16])).await),
            "resume_token_wrong"
        );
        let metrics = pair.at_b.ask("net.show", json!({})).await;
        assert_eq!(metrics["result"][0]["streams"][0]["incarnation"], 2, "{metrics}");
    });
}
