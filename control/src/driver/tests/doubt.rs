//! The commit when hosts die in the middle of it: one end owns the region in the end, and the
//! daemons find out by themselves which.

use super::fake::{Client, Pair, run};
use serde_json::{Value, json};

/// A session whose source has yielded and whose sink does not commit yet.
async fn yielded(directory: tempfile::TempDir) -> (Pair, Value) {
    let mut pair = Pair::start(directory).await;
    let session = pair.open().await;
    pair.b.script.hold_verified.set(true);
    pair.at_a.send("session.finish", json!({ "session": session })).await;
    let mut other = Client::connect(pair.directory.path(), "a").await;
    other.wait_for(&session, "yielded").await;
    (pair, session)
}

#[test]
fn a_sink_that_died_before_its_commit_leaves_the_region_to_the_source() {
    run(|directory| async move {
        let (mut pair, session) = yielded(directory).await;
        let b = pair.b.kill().await;
        let doubt = pair.at_a.next().await;
        assert_eq!(doubt["error"]["data"]["code"], "session_in_doubt", "{doubt}");
        let message = doubt["error"]["message"].as_str().unwrap();
        assert!(message.contains("link to the peer was lost: "), "{doubt}");
        assert!(doubt["error"]["data"]["reason_cure"].as_str().unwrap().contains("neither copy"));
        let abort = pair.at_a.ask("session.abort", json!({ "session": session })).await;
        assert_eq!(abort["error"]["data"]["code"], "session_state", "{abort}");
        assert_eq!(abort["error"]["data"]["state"], "in_doubt", "{abort}");
        let cure = abort["error"]["data"]["cure"].as_str().unwrap();
        assert!(cure.contains("mend the link") && cure.contains("dwcp status"), "{cure}");
        // Both restart; the source's journal alone knows that it yielded.
        let a = pair.a.kill().await.restart().await;
        let mut at_a = Client::connect(pair.directory.path(), "a").await;
        assert_eq!(at_a.ask("status", json!({})).await["result"]["health"], "in doubt");
        let _b = b.restart().await;
        let shown = at_a.wait_for(&session, "failed").await;
        assert!(shown["reason"].as_str().unwrap().contains("did not commit"), "{shown}");
        assert_eq!(at_a.ask("status", json!({})).await["result"]["health"], "good");
        let mut at_b = Client::connect(pair.directory.path(), "b").await;
        let record = at_b.ask("session.show", json!({ "session": session })).await;
        assert_eq!(record["result"]["sink_record"]["record"], "aborted", "{record}");
        drop(a);
    });
}

#[test]
fn a_commit_whose_answer_was_lost_is_found_out_after_a_restart() {
    run(|directory| async move {
        let (mut pair, session) = yielded(directory).await;
        // The source stands still while the sink commits, and dies without having heard of it.
        pair.a.script.stopped.set(true);
        pair.b.script.hold_verified.set(false);
        pair.at_b.wait_for(&session, "committed").await;
        let _a = pair.a.kill().await.restart().await;
        let mut at_a = Client::connect(pair.directory.path(), "a").await;
        at_a.wait_for(&session, "committed").await;
        while pair.at_b.wait_for(&session, "committed").await["settled"] != true {
            tokio::task::yield_now().await;
        }
    });
}
