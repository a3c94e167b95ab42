//! A link that is lost under a region's session: both ends wait and go on over another connection,
//! no longer than they may, and whoever ends it meanwhile is heard later.

use super::fake::{Client, Pair, run};
use super::path::Path;
use serde_json::{Value, json};

/// A session from `a` to `b` over a path of the test's, with a round under way.
pub(super) struct Moving {
    pub(super) pair: Pair,
    pub(super) path: Path,
    pub(super) other: Client,
    pub(super) session: Value,
}

impl Moving {
    /// `order` is under way: `session.round` or `session.finish`.
    pub(super) async fn start(directory: tempfile::TempDir, order: &str) -> Self {
        let mut pair = Pair::start(directory).await;
        let path = Path::to(&pair.b.info["listen"]).await;
        let open = json!({ "region": "r", "peer": path.address });
        let opened = pair.at_a.ask("session.open", open).await;
        let session = opened["result"]["session"].clone();
        pair.a.script.long_rounds.set(true);
        pair.at_a.send(order, json!({ "session": session })).await;
        let mut other = Client::connect(pair.directory.path(), "a").await;
        while other.ask("session.show", json!({ "session": session })).await["result"]["round"] != 1
        {
            tokio::task::yield_now().await;
        }
        Self { pair, path, other, session }
    }

    /// The path is cut and does not come back by itself.
    fn lose(&self) {
        self.path.hold();
        self.path.cut();
    }

    async fn both_parked(&mut self) {
        for client in [&mut self.other, &mut self.pair.at_b] {
            let record = client.wait_for(&self.session, "parked").await;
            assert!(record["parked"]["reason"].is_string(), "{record}");
        }
    }

    async fn set_window(&mut self, seconds: u64) {
        let window = json!({ "name": "resume-window", "value": seconds });
        for client in [&mut self.other, &mut self.pair.at_b] {
            let set = client.ask("config.set", window.clone()).await;
            assert_eq!(set["result"]["value"], seconds);
        }
    }

    /// The answer to what was under way.
    pub(super) async fn fails(&mut self) -> Value {
        let answer = self.pair.at_a.next().await;
        assert!(answer["error"].is_object(), "{answer}");
        let release = json!({ "name": "r" });
        while self.other.ask("region.release", release.clone()).await["error"].is_object() {
            tokio::task::yield_now().await;
        }
        answer["error"].clone()
    }
}

#[test]
fn a_round_goes_on_over_another_connection() {
    run(|directory| async move {
        let mut moving = Moving::start(directory, "session.round").await;
        let session = moving.session.clone();
        for _ in 0..3 {
            moving.lose();
            moving.both_parked().await;
            moving.path.heal();
            moving.other.wait_for(&session, "precopy").await;
            moving.pair.at_b.wait_for(&session, "receiving").await;
        }
        assert_eq!(moving.pair.a.counters.links_resumed.count("source"), 3);
        moving.pair.a.script.long_rounds.set(false);
        let round = moving.pair.at_a.next().await;
        assert_eq!(round["result"]["pages_sent"], 6, "three on each lane: {round}");
        let finished = moving.pair.at_a.ask("session.finish", json!({ "session": session })).await;
        assert_eq!(finished["result"]["state"], "committed", "{finished}");
    });
}

#[test]
fn an_owner_that_has_paused_waits_for_the_link_no_longer_than_it_may() {
    run(|directory| async move {
        for lost in [true, false] {
            let directory = tempfile::tempdir_in(directory.path()).unwrap();
            let mut moving = Moving::start(directory, "session.finish").await;
            match lost {
                true => moving.lose(),
                false => moving.path.hold(),
            }
            let error = moving.fails().await;
            assert_eq!(error["data"]["peer_code"], "blackout_max", "{error}");
            // The sink hears of it when the path is back, long before its own window ends.
            moving.path.heal();
            moving.pair.at_b.wait_for(&moving.session, "aborted").await;
        }
    });
}

#[test]
fn a_last_round_goes_on_if_the_link_is_back_in_time() {
    run(|directory| async move {
        let mut moving = Moving::start(directory, "session.finish").await;
        moving.lose();
        moving.both_parked().await;
        moving.path.heal();
        moving.other.wait_for(&moving.session, "last_round").await;
        moving.pair.a.script.long_rounds.set(false);
        let finished = moving.pair.at_a.next().await;
        assert_eq!(finished["result"]["state"], "committed", "{finished}");
    });
}

#[test]
fn a_session_that_ends_while_its_link_is_lost_ends_at_both_ends() {
    run(|directory| async move {
        for at_source in [true, false] {
            let directory = tempfile::tempdir_in(directory.path()).unwrap();
            let mut moving = Moving::start(directory, "session.round").await;
            let session = moving.session.clone();
            moving.lose();
            moving.both_parked().await;
            let client = if at_source { &mut moving.other } else { &mut moving.pair.at_b };
            let aborted = client.ask("session.abort", json!({ "session": session })).await;
            assert_eq!(aborted["result"]["state"], "aborted", "{aborted}");
            moving.path.heal();
            let error = moving.fails().await;
            let code = if at_source { "session_aborted" } else { "session_failed" };
            assert_eq!(error["data"]["code"], code, "{error}");
            moving.pair.at_b.wait_for(&session, "aborted").await;
        }
    });
}

#[test]
fn sessions_of_regions_wait_no_longer_than_the_window() {
    run(|directory| async move {
        for seconds in [1, 0] {
            let directory = tempfile::tempdir_in(directory.path()).unwrap();
            let mut moving = Moving::start(directory, "session.round").await;
            moving.set_window(seconds).await;
            moving.lose();
            let error = moving.fails().await;
            let expected = if seconds == 0 { "peer_closed" } else { "resume_window" };
            assert_eq!(error["data"]["reason"], "session_link_lost", "{error}");
            assert_eq!(error["data"]["peer_code"], expected, "{error}");
            moving.pair.at_b.wait_for(&moving.session, "failed").await;
        }
    });
}
