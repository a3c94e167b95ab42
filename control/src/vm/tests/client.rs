//! The monitor's client against servers that say anything.

use super::rig::run;
use crate::vm::QmpError;
use crate::vm::qmp::{Qmp, QmpItem};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

const GREETING: &str = "{\"QMP\": {}}\r\n{\"return\": {}, \"id\": 1}\r\n";

/// Says this to the first client and listens until it leaves.
struct Server {
    folder: TempDir,
    task: JoinHandle<()>,
}

impl Server {
    fn new(words: Vec<u8>, closes: bool) -> Self {
        let folder = TempDir::new().unwrap();
        let listener = UnixListener::bind(folder.path().join("qmp")).unwrap();
        let task = tokio::task::spawn_local(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            // A client that has heard enough leaves.
            let _ = stream.write_all(&words).await;
            if !closes {
                let mut heard = Vec::new();
                let _ = stream.read_to_end(&mut heard).await;
            }
        });
        Self { folder, task }
    }

    async fn connect(&self) -> Result<Qmp, QmpError> {
        Qmp::connect(&self.folder.path().join("qmp")).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[test]
fn answers_find_their_commands_and_events_keep_their_order() {
    run(async {
        let words = format!(
            "{GREETING}{}\r\n{}\r\n{}\r\n{}\r\n{}\r\n",
            json!({ "event": "STOP", "timestamp": { "seconds": 2, "microseconds": 5 } }),
            json!({ "return": "nobody asked", "id": 99 }),
            json!({ "return": "no number" }),
            json!({ "event": "RESUME", "timestamp": { "seconds": -1, "microseconds": -1 } }),
            json!({ "return": "this one", "id": 2 }),
        );
        let server = Server::new(words.into_bytes(), false);
        let mut qmp = server.connect().await.unwrap();
        assert_eq!(qmp.execute("query-x", Value::Null).await.unwrap(), "this one");
        let mut events = Vec::new();
        for _ in 0..2 {
            let QmpItem::Event(event) = qmp.next().await.unwrap() else { panic!("an event") };
            events.push((event.name, event.at_unix_us));
        }
        assert_eq!(events, [("STOP".to_owned(), 2_000_005), ("RESUME".to_owned(), 0)]);
    });
}

#[test]
fn every_way_of_not_being_a_monitor_has_its_name() {
    run(async {
        let folder = TempDir::new().unwrap();
        let missing = Qmp::connect(&folder.path().join("none")).await.unwrap_err();
        assert_eq!(missing.code(), "qmp_missing");
        let path = folder.path().join("left");
        drop(UnixListener::bind(&path).unwrap());
        assert_eq!(Qmp::connect(&path).await.unwrap_err().code(), "qmp_nobody_listens");
        for (words, closes, code) in [
            ("", false, "qmp_busy"),
            ("", true, "qmp_closed"),
            ("QEMU 10.0.2 monitor - type 'help'\r\n", false, "qmp_not_qmp"),
            ("{\"hello\": 1}\r\n", false, "qmp_not_qmp"),
            ("{\"QMP\": {}}\r\n[1]\r\n", false, "qmp_not_json"),
            ("{\"QMP\": {}}\r\n", true, "qmp_closed"),
        ] {
            let server = Server::new(words.as_bytes().to_vec(), closes);
            let error = server.connect().await.unwrap_err();
            assert_eq!(error.code(), code, "{words:?}: {error}");
            assert!(!error.cure().is_empty());
        }
    });
}

#[test]
fn a_refusal_keeps_the_words_of_qemu_and_a_line_without_end_is_cut() {
    run(async {
        let refusal = json!({ "error": { "class": "CommandNotFound", "desc": "no" }, "id": 2 });
        let server = Server::new(format!("{GREETING}{refusal}\r\n").into_bytes(), false);
        let mut qmp = server.connect().await.unwrap();
        match qmp.execute("query-x", Value::Null).await {
            Err(QmpError::Refused { command, class, desc }) => {
                assert_eq!(
                    (command, class.as_str(), desc.as_str()),
                    ("query-x", "CommandNotFound", "no")
                );
            }
            other => panic!("{other:?}"),
        }
        let mut words = GREETING.as_bytes().to_vec();
        words.resize((4 << 20) + (1 << 18), b' ');
        let server = Server::new(words, false);
        let mut qmp = server.connect().await.unwrap();
        let error = qmp.execute("query-x", Value::Null).await.unwrap_err();
        assert_eq!(error.code(), "qmp_line_too_long");
    });
}
