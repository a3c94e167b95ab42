//! A source whose link is lost and who meets somebody else in its sink's place, or a sink that says
//! something else than before: each is a typed error, and what waits is not harmed by a stranger.

use super::fake::run;
use super::parked::Moving;
use crate::peer::random;
use dwcp_proto::ids::{LinkEpoch, SessionId};
use dwcp_proto::wire::hello::{FEATURE_RESUME_CARRIERS, Hello, HostName};
use dwcp_proto::wire::peer::{Code, Message, PeerCodec, PeerMessage};
use dwcp_proto::wire::token::{LinkToken, ResumeToken};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Stands where the path leads now, and answers like the sink of the test's wishes.
struct StandIn {
    stream: TcpStream,
    heard: Vec<u8>,
}

impl StandIn {
    /// Takes the place of the sink: the source's connection is cut and the next one comes here.
    async fn of(moving: &Moving, hello: &Hello) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        moving.path.redirect(listener.local_addr().unwrap());
        moving.path.cut();
        let (stream, _) = listener.accept().await.unwrap();
        let mut stand_in = Self { stream, heard: Vec::new() };
        // The byte of a channel in the clear comes first.
        stand_in.hear(|bytes| bytes.first().map(|byte| (*byte, 1))).await;
        stand_in.hear(|bytes| Hello::decode(bytes).unwrap()).await;
        stand_in.stream.write_all(&hello.encode()).await.unwrap();
        stand_in
    }

    async fn hear<T>(&mut self, read: impl Fn(&[u8]) -> Option<(T, usize)>) -> T {
        loop {
            if let Some((found, used)) = read(&self.heard) {
                self.heard.drain(..used);
                return found;
            }
            let count = self.stream.read_buf(&mut self.heard).await.unwrap();
            assert!(count > 0, "the source ended it");
        }
    }

    async fn says(&mut self, message: &PeerMessage) {
        self.stream.write_all(&PeerCodec::encode(message)).await.unwrap();
    }

    /// The question that a source asks first.
    async fn asked(&mut self) -> (LinkEpoch, ResumeToken, Vec<SessionId>) {
        match self.hear(|bytes| PeerCodec::decode(bytes).unwrap()).await {
            PeerMessage::LinkResume { epoch, token, sessions } => (epoch, token, sessions),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the source has ended the connection.
    async fn ended(mut self) {
        // A reset is an end as well.
        while matches!(self.stream.read_buf(&mut self.heard).await, Ok(1..)) {}
    }
}

/// What differs in a HELLO.
type Change = fn(&mut Hello);

/// What the sink itself says.
fn hello() -> Hello {
    Hello::ours(HostName::cut("b"), random()).with_plain_records()
}

async fn moving(directory: &tempfile::TempDir) -> Moving {
    let directory = tempfile::tempdir_in(directory.path()).unwrap();
    Moving::start(directory, "session.round").await
}

/// The path leads to the sink again, which is as it was: the session goes on and ends well.
async fn goes_on(mut moving: Moving) {
    let sink = serde_json::from_value(moving.pair.b.info["listen"].clone()).unwrap();
    moving.path.redirect(sink);
    moving.path.cut();
    let session = moving.session.clone();
    moving.other.wait_for(&session, "precopy").await;
    moving.pair.at_b.wait_for(&session, "receiving").await;
    moving.pair.a.script.long_rounds.set(false);
    assert_eq!(moving.pair.at_a.next().await["result"]["pages_sent"], 6);
}

#[test]
fn a_sink_whose_hello_differs_from_before_does_not_take_the_link_up() {
    run(|directory| async move {
        let cases: [(&str, Change); 4] = [
            ("another version", |hello| hello.version_highest = 1),
            ("a feature less", |hello| hello.features_offered &= !FEATURE_RESUME_CARRIERS),
            ("fewer streams", |hello| hello.streams_max = 3),
            ("fewer lanes", |hello| hello.lanes_max = 1),
        ];
        for (case, change) in cases {
            eprintln!("{case}");
            let mut moving = moving(&directory).await;
            let mut hello = hello();
            change(&mut hello);
            let stand_in = StandIn::of(&moving, &hello).await;
            let error = moving.fails().await;
            assert_eq!(error["data"]["peer_code"], "resume_agreement", "{case}: {error}");
            stand_in.ended().await;
        }
    });
}

#[test]
fn a_stranger_in_the_sinks_place_is_refused_and_the_session_waits() {
    run(|directory| async move {
        let cases: [(&str, Change); 4] = [
            ("resume_wrong_peer", |hello| hello.host = HostName::cut("c")),
            ("refused_version", |hello| (hello.version_lowest, hello.version_highest) = (90, 91)),
            ("refused_page_bytes", |hello| hello.page_bytes = 8192),
            ("refused_record_bytes", |hello| hello.record_bytes_max -= 1),
        ];
        for (code, change) in cases {
            let mut moving = moving(&directory).await;
            let mut hello = hello();
            change(&mut hello);
            StandIn::of(&moving, &hello).await.ended().await;
            while moving.pair.a.counters.refused.count(code) == 0 {
                tokio::task::yield_now().await;
            }
            let session = moving.session.clone();
            moving.other.wait_for(&session, "parked").await;
            goes_on(moving).await;
        }
    });
}

#[test]
fn what_is_no_answer_to_the_question_ends_the_link_by_its_name() {
    run(|directory| async move {
        let (token, resume) = (LinkToken([8; 16]), ResumeToken([9; 16]));
        let (epoch, sessions) = (LinkEpoch(1), vec![SessionId([1; 16])]);
        let refused = || (Code::cut("resume_token_wrong"), Message::cut("no"));
        let (code, message) = refused();
        let resumed = || PeerMessage::LinkResumed { token, resume };
        let out_of_place = "peer_message_out_of_place";
        let cases = [
            (vec![PeerMessage::LinkRefuse { code, message }], "link_refused"),
            (vec![PeerMessage::LinkAccept { token, lanes: 1, resume: Some(resume) }], out_of_place),
            (vec![PeerMessage::LinkOpen { epoch, lanes: 1, streams: 1 }], out_of_place),
            (vec![PeerMessage::LinkResume { epoch, token: resume, sessions }], out_of_place),
            (vec![resumed(), resumed()], out_of_place),
        ];
        for (answers, code) in cases {
            let mut moving = moving(&directory).await;
            let mut stand_in = StandIn::of(&moving, &hello()).await;
            let (_, _, sessions) = stand_in.asked().await;
            assert_eq!(json!(sessions), json!([moving.session]));
            for answer in &answers {
                stand_in.says(answer).await;
            }
            let error = moving.fails().await;
            assert_eq!(error["data"]["peer_code"], code, "{answers:?}: {error}");
        }
    });
}

#[test]
fn the_end_of_another_session_is_passed_over() {
    run(|directory| async move {
        let moving = moving(&directory).await;
        let mut stand_in = StandIn::of(&moving, &hello()).await;
        stand_in.asked().await;
        let (code, message) = (Code::cut("resume_session_unknown"), Message::cut("not here"));
        let session = SessionId([9; 16]);
        let failed = PeerMessage::SessionFailed { session, code, message };
        stand_in.says(&failed).await;
        while moving.pair.a.counters.ignored.count(failed.name()) == 0 {
            tokio::task::yield_now().await;
        }
        drop(stand_in);
        goes_on(moving).await;
    });
}

#[test]
fn tokens_that_are_not_the_sinks_are_of_no_use_at_the_sink_whose_session_waits() {
    run(|directory| async move {
        let mut moving = moving(&directory).await;
        let mut stand_in = StandIn::of(&moving, &hello()).await;
        stand_in.asked().await;
        let (token, resume) = (LinkToken([8; 16]), ResumeToken([9; 16]));
        let sink = serde_json::from_value(moving.pair.b.info["listen"].clone()).unwrap();
        moving.path.redirect(sink);
        stand_in.says(&PeerMessage::LinkResumed { token, resume }).await;
        // The source hears of the end behind the word.
        drop(stand_in);
        let error = moving.fails().await;
        assert_eq!(error["data"]["peer_code"], "link_refused", "{error}");
        assert!(error.to_string().contains("resume_token_wrong"), "{error}");
        assert_eq!(moving.pair.b.counters.refused.count("resume_token_wrong"), 1);
        let shown = json!({ "session": moving.session });
        let shown = moving.pair.at_b.ask("session.show", shown).await;
        assert_eq!(shown["result"]["state"], "parked", "{shown}");
    });
}
