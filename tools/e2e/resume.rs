//! Links that wait for their connection, and those who would take them up without the right to:
//! wrong, used and replayed tokens are typed errors and counted, and what waits goes on afterwards.

use crate::harness::lab::{Lab, SINK, SOURCE};
use crate::harness::memory::{MIB, Memory};
use crate::harness::pki::Pki;
use crate::harness::proxy::{Channel, Way};
use crate::harness::stranger::Stranger;
use crate::harness::{SOON, wait_until};
use dwcp_proto::ids::{Incarnation, LinkEpoch, SessionId, SessionNumber};
use dwcp_proto::wire::hello::{Hello, HostName};
use dwcp_proto::wire::peer::{Code, Message, PeerCoding, PeerMessage, RegionName};
use dwcp_proto::wire::token::ResumeToken;
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

/// The host whose part a stranger plays.
const OTHER: &str = "host-c";

/// Long enough for every test.
const FLAGS: [&str; 2] = ["--resume-window", "2min"];

/// A token that nobody gave.
const WRONG: ResumeToken = ResumeToken([7; 16]);

/// A lab, the keys of its source, and those of one more host.
fn lab_and_keys() -> (Lab, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let pki = Pki::init(folder.path().join("ca"));
    let (source, sink, other) = (pki.host(SOURCE), pki.host(SINK), pki.host(OTHER));
    let stolen = source.clone();
    (Lab::start_in(folder, (Some(source), &FLAGS), (Some(sink), &FLAGS)), stolen, other)
}

/// A host with these keys that has exchanged HELLOs with the sink.
fn connect(lab: &Lab, name: &str, keys: &Path) -> Stranger {
    let hello = Hello::ours(HostName::cut(name), [9; 16]).encode();
    let mut peer = Stranger::connect(lab.sink.listen, keys, &hello);
    peer.hear_hello();
    peer
}

fn resume_of(epoch: LinkEpoch, token: ResumeToken, session: SessionId) -> PeerMessage {
    PeerMessage::LinkResume { epoch, token, sessions: vec![session] }
}

/// Says it to the sink over a connection of its own; the sink says no for this reason and counts
/// it.
fn assert_refused(lab: &Lab, (name, keys): (&str, &Path), resume: &PeerMessage, reason: &str) {
    let word = format!("=\"{reason}\"");
    let counted = || lab.sink.metrics().sum("dwcp_peer_refused_total", &[&word]);
    let before = counted();
    let mut peer = connect(lab, name, keys);
    peer.say(resume).expect("it leaves");
    match peer.answer() {
        PeerMessage::LinkRefuse { code, .. } => assert_eq!(code.as_str(), reason, "{name}"),
        other => panic!("{name}: {other:?} in place of {reason}"),
    }
    wait_until("the refusal is counted", SOON, || counted() == before + 1.0);
}

/// A source that the test plays: a link of one stream to the sink, and a session on it.
struct Played<'a> {
    lab: &'a Lab,
    keys: &'a Path,
    session: SessionId,
    incarnation: Incarnation,
    connection: Option<(Stranger, TcpStream)>,
    token: ResumeToken,
}

const EPOCH: LinkEpoch = LinkEpoch(7);

impl<'a> Played<'a> {
    fn start(lab: &'a Lab, keys: &'a Path, region: &Memory) -> Self {
        let params = json!({"name": "played", "role": "sink", "accept_from": [OTHER]});
        let client = lab.sink.client();
        { client }.call_with_fds("region.register", params, &region.descriptors()).expect("memory");
        let mut peer = connect(lab, OTHER, keys);
        peer.say(&PeerMessage::LinkOpen { epoch: EPOCH, lanes: 1, streams: 1 }).expect("it leaves");
        let PeerMessage::LinkAccept { token, resume, .. } = peer.answer() else {
            panic!("the link is not accepted")
        };
        let incarnation = Incarnation(1);
        let stream = peer.open_stream(lab.sink.listen, EPOCH, token, incarnation);
        let session = SessionId([5; 16]);
        let open = PeerMessage::SessionOpen {
            session,
            number: SessionNumber(1),
            region: RegionName::cut("played"),
            pages: region.pages(),
            coding: PeerCoding::Full,
        };
        peer.say(&open).expect("it leaves");
        let accepted = peer.answer();
        assert!(matches!(accepted, PeerMessage::SessionAccept { .. }), "{accepted:?}");
        let token = resume.expect("a link that can be taken up again");
        Self { lab, keys, session, incarnation, connection: Some((peer, stream)), token }
    }

    fn wait_state(&self, state: &str) {
        let id = self.session.to_string();
        wait_until(state, SOON, || self.lab.sink.state_of(&id) == state);
    }

    /// The connection dies, and the sink waits.
    fn lose(&mut self) {
        self.connection = None;
        self.wait_state("parked");
    }

    fn message(&self) -> PeerMessage {
        resume_of(EPOCH, self.token, self.session)
    }

    /// Goes on over another connection. Returns what was said for that, for a replay.
    fn resume(&mut self) -> PeerMessage {
        let said = self.message();
        let mut peer = connect(self.lab, OTHER, self.keys);
        peer.say(&said).expect("it leaves");
        let PeerMessage::LinkResumed { token, resume } = peer.answer() else {
            panic!("the link does not go on")
        };
        self.incarnation = self.incarnation.next();
        let stream = peer.open_stream(self.lab.sink.listen, EPOCH, token, self.incarnation);
        self.connection = Some((peer, stream));
        self.token = resume;
        self.wait_state("receiving");
        said
    }

    /// The sink refuses it from this host, and nothing changes.
    fn assert_refused(&self, who: (&str, &Path), resume: &PeerMessage, reason: &str) {
        let id = self.session.to_string();
        let before = self.lab.sink.state_of(&id);
        assert_refused(self.lab, who, resume, reason);
        assert_eq!(self.lab.sink.state_of(&id), before, "{reason}");
    }
}

#[test]
fn a_token_is_of_use_to_its_owner_once_and_a_replay_to_nobody() {
    let (lab, stolen, other) = lab_and_keys();
    let region = Memory::empty(MIB);
    let mut played = Played::start(&lab, &other, &region);
    let owner = (OTHER, other.as_path());
    played.lose();
    let session = played.session;
    let right = played.token;
    played.assert_refused(owner, &resume_of(EPOCH, WRONG, session), "resume_token_wrong");
    let elsewhere = resume_of(LinkEpoch(EPOCH.0 + 1), right, session);
    played.assert_refused(owner, &elsewhere, "resume_unknown");
    played.assert_refused((SOURCE, &stolen), &played.message(), "resume_wrong_peer");
    let first = played.resume();
    // The connection that took it up is there, and what it has shown is spent.
    played.assert_refused(owner, &first, "resume_token_stale");
    played.lose();
    played.assert_refused(owner, &first, "resume_token_stale");
    let second = played.resume();
    played.lose();
    for (said, reason) in [(&first, "resume_token_wrong"), (&second, "resume_token_stale")] {
        played.assert_refused(owner, said, reason);
    }
    played.resume();
    let resumed = lab.sink.metrics().sum("dwcp_links_resumed_total", &["=\"sink\""]);
    assert_eq!(resumed, 3.0, "no stranger has taken it up");

    // The session ends, and its link: what was said for them is of no use any more.
    let last = played.message();
    let (code, message) = (Code::cut("session_aborted"), Message::cut("enough"));
    let abort = PeerMessage::Abort { session, code, message };
    let (peer, _) = played.connection.as_mut().expect("a connection");
    peer.say(&abort).expect("it leaves");
    played.wait_state("aborted");
    played.connection = None;
    wait_until("the link's end", SOON, || lab.sink.metrics().sum("dwcp_links", &[]) == 0.0);
    for said in [&first, &second, &last] {
        assert_refused(&lab, owner, said, "resume_unknown");
    }
    assert!(region.written_pages().is_empty());
    lab.good_session("after");
}

#[test]
fn sessions_that_wait_are_not_harmed_by_what_strangers_show_and_replay() {
    let (lab, stolen, other) = lab_and_keys();
    lab.proxy.record();
    let transfer = lab.register("vm", Memory::random(3, 8 * MIB));
    let mut session = lab.must_open(&transfer);
    let epoch = LinkEpoch(lab.source.must("net.show", json!({}))[0]["epoch"].as_u64().unwrap());
    let id: SessionId = session.id.parse().expect("a session's name");
    let round = lab.hold_round(&session);
    let lose = || {
        lab.proxy.refuse(true);
        lab.proxy.cut();
        for daemon in [&lab.source, &lab.sink] {
            wait_until("it is parked", SOON, || daemon.state_of(&session.id) == "parked");
        }
    };
    let replay = || {
        for channel in [Channel::Control, Channel::Data] {
            let mut stream = TcpStream::connect(lab.sink.listen).expect("the port is open");
            stream.set_read_timeout(Some(SOON)).expect("a bound");
            // The daemon may end it before all was said.
            let _ = stream.write_all(&lab.proxy.recorded(channel));
            let _ = stream.read_to_end(&mut Vec::new());
        }
    };
    let refused = |reason: &str| {
        lab.sink.metrics().sum("dwcp_peer_refused_total", &[&format!("=\"{reason}\"")])
    };
    for turn in 1..=2 {
        lose();
        let cases = [
            ((SOURCE, &stolen), epoch, "resume_token_wrong"),
            ((SOURCE, &stolen), LinkEpoch(epoch.0 + 1), "resume_unknown"),
            ((OTHER, &other), epoch, "resume_unknown"),
        ];
        for ((name, keys), epoch, reason) in cases {
            assert_refused(&lab, (name, keys.as_path()), &resume_of(epoch, WRONG, id), reason);
        }
        // From the second turn on it holds how the link was taken up the time before.
        replay();
        lab.sink.wait_counted("dwcp_peer_refused_total", &["tls_failed", "tls_alert"]);
        wait_until("the data streams' refusal", SOON, || {
            refused("stream_unknown") >= f64::from(turn)
        });
        for daemon in [&lab.source, &lab.sink] {
            assert_eq!(daemon.state_of(&session.id), "parked");
        }
        // Streams come up and some more of the round, and the rest waits as before.
        lab.proxy.hold_after(Channel::Data, Way::Forth, MIB);
        lab.proxy.refuse(false);
        wait_until("it goes on", SOON, || {
            let states = [&lab.source, &lab.sink].map(|daemon| daemon.state_of(&session.id));
            states == ["precopy", "receiving"]
        });
        lab.proxy.wait_held(Channel::Data, Way::Forth);
    }
    lab.proxy.release(Channel::Data, Way::Forth);
    round.finish().expect("the round goes on");
    for daemon in [&lab.source, &lab.sink] {
        let resumed: Value = json!(daemon.metrics().sum("dwcp_links_resumed_total", &[]));
        assert_eq!(resumed, json!(2.0));
    }
    session.finish_committed();
    transfer.assert_equal();
    transfer.assert_source_intact();
}
