//! Handshakes between two identities over loopback: who is let in, and how a refusal is named.

use super::channel::{ChannelHandle, read_some, write_all};
use super::handshake::{Established, Identity};
use super::listener::{Gate, Listener, PeerInput};
use super::{ConnectionId, PeerError, random};
use crate::api::PeerAddress;
use crate::config::{LiveSettings, PeerSecurity, PeerTimeouts};
use crate::tally::Tally;
use dwcp_proto::ids::{Incarnation, LinkEpoch, SessionId, StreamId};
use dwcp_proto::wire::hello::features_of;
use dwcp_proto::wire::peer::{PeerCodec, PeerMessage};
use dwcp_proto::wire::version::WireVersion;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

fn authority() -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "cluster");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let pem = params.self_signed(&key).unwrap().pem();
    Authority { pem, issuer: Issuer::new(params, key) }
}

impl Authority {
    /// Writes the directory of host `name`, certified by this authority, that believes `believes`.
    fn host(&self, directory: &Path, name: &str, serial: u64, expired: bool, believes: &Self) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.serial_number = Some(SerialNumber::from(serial));
        if expired {
            params.not_before = date_time_ymd(2001, 1, 1);
            params.not_after = date_time_ymd(2002, 1, 1);
        }
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(directory.join("ca.pem"), &believes.pem).unwrap();
        std::fs::write(directory.join("host.pem"), certificate.pem()).unwrap();
        std::fs::write(directory.join("host.key"), key.serialize_pem()).unwrap();
    }

    fn revoke(&self, directory: &Path, serial: u64) {
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(2100, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let pem = list.signed_by(&self.issuer).unwrap().pem().unwrap();
        std::fs::write(directory.join("revoked.pem"), pem).unwrap();
    }
}

fn identity(directory: &Path) -> Identity {
    Identity::load(&PeerSecurity::Mutual { pki_dir: directory.to_owned() }, random()).unwrap()
}

fn plaintext() -> Identity {
    let host_name = "plain".to_owned();
    Identity::load(&PeerSecurity::InsecurePlaintext { host_name }, random()).unwrap()
}

/// What came of one dialling, seen from both ends.
struct Meeting {
    dialled: Result<Box<Established>, PeerError>,
    accepted: Option<Box<Established>>,
    refused: Tally,
}

/// Lets `dialler` dial `listener`, which it expects to be `name`.
fn meet(listener: Identity, dialler: Identity, name: Option<&str>) -> Meeting {
    let expected = name.map(str::to_owned);
    with_listener(listener, |address, refused, mut inputs| async move {
        let (sender, mut dials) = mpsc::channel(1);
        let peer = PeerAddress { expected_name: expected, address };
        super::dial_peer(ConnectionId(0), peer, dialler, PeerTimeouts::default(), sender);
        let Some(PeerInput::Dialled { outcome, .. }) = dials.recv().await else { panic!() };
        let mut accepted = None;
        while refused.snapshot().is_empty() && accepted.is_none() {
            tokio::select! {
                Some(input) = inputs.recv() => {
                    let PeerInput::Accepted(peer) = input else { panic!("{input:?}") };
                    accepted = Some(peer);
                }
                () = tokio::task::yield_now() => {}
            }
        }
        Meeting { dialled: outcome, accepted, refused }
    })
}

#[test]
fn what_one_end_has_not_is_off_at_both() {
    for (ours, theirs) in [(WireVersion::V1, WireVersion::V2), (WireVersion::V2, WireVersion::V1)] {
        let (near, far) = (plaintext().of_version(ours), plaintext().of_version(theirs));
        let met = meet(near, far, None);
        let (dialled, accepted) = (met.dialled.unwrap().agreed, met.accepted.unwrap().agreed);
        assert_eq!(dialled, accepted);
        assert_eq!(
            (dialled.version, dialled.features),
            (WireVersion::V1, features_of(WireVersion::V1))
        );
    }
}

/// Runs a listener on a port of its own and a test against it.
fn with_listener<T, F: Future<Output = T>>(
    identity: Identity,
    test: impl FnOnce(String, Tally, mpsc::Receiver<PeerInput>) -> F,
) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let listener = Listener::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let address = listener.address().unwrap().to_string();
        let (sender, inputs) = mpsc::channel(16);
        let refused = Tally::default();
        let gate = Gate {
            identity,
            timeouts: PeerTimeouts::default(),
            refused: refused.clone(),
            accept_failures: Tally::default(),
            inputs: sender,
        };
        tokio::task::spawn_local(listener.serve(gate));
        let test = test(address, refused, inputs);
        tokio::time::timeout(Duration::from_secs(30), test).await.expect("the test hangs")
    })
}

fn directories() -> (tempfile::TempDir, tempfile::TempDir) {
    (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap())
}

#[test]
fn hosts_of_one_cluster_meet_and_share_keys_that_nobody_else_has() {
    let (a, b) = directories();
    let ca = authority();
    ca.host(a.path(), "host-a", 1, false, &ca);
    ca.host(b.path(), "host-b", 2, false, &ca);
    let meeting = meet(identity(b.path()), identity(a.path()), Some("host-b"));
    let (dialled, accepted) = (meeting.dialled.unwrap(), meeting.accepted.unwrap());
    assert_eq!((dialled.peer_name.as_str(), accepted.peer_name.as_str()), ("host-b", "host-a"));
    let keys = |peer: &Established, stream, dialled| {
        let (epoch, incarnation) = (LinkEpoch(1), Incarnation(1));
        peer.exporter.stream_keys(epoch, StreamId(stream), incarnation, dialled).unwrap()
    };
    let (ours, theirs) = (keys(&dialled, 1, true), keys(&accepted, 1, false));
    let bytes = |key: &dwcp_proto::wire::keys::DirectionKey| match key {
        dwcp_proto::wire::keys::DirectionKey::Sealed { key, .. } => *key,
        dwcp_proto::wire::keys::DirectionKey::Plain => panic!("a TLS channel has keys"),
    };
    assert_eq!(bytes(&ours.send), bytes(&theirs.receive));
    assert_eq!(bytes(&ours.receive), bytes(&theirs.send));
    assert_ne!(bytes(&ours.send), bytes(&ours.receive));
    assert_ne!(bytes(&ours.send), bytes(&keys(&dialled, 2, true).send));
}

#[test]
fn a_listener_refuses_foreign_expired_and_revoked_hosts_by_name_of_the_fault() {
    let (ca, foreign) = (authority(), authority());
    let refusal = |dialler: &dyn Fn(&Path), revoke: bool| {
        let (a, b) = directories();
        ca.host(b.path(), "host-b", 2, false, &ca);
        if revoke {
            ca.revoke(b.path(), 1);
        }
        dialler(a.path());
        let meeting = meet(identity(b.path()), identity(a.path()), None);
        assert!(meeting.accepted.is_none());
        assert!(meeting.dialled.is_err(), "the dialler hears of it");
        meeting.refused.snapshot()
    };
    let from_foreign = refusal(&|a| foreign.host(a, "host-a", 1, false, &ca), false);
    assert_eq!(from_foreign, [("certificate_untrusted", 1)]);
    let expired = refusal(&|a| ca.host(a, "host-a", 1, true, &ca), false);
    assert_eq!(expired, [("certificate_expired", 1)]);
    let revoked = refusal(&|a| ca.host(a, "host-a", 1, false, &ca), true);
    assert_eq!(revoked, [("certificate_revoked", 1)]);
}

#[test]
fn a_dialler_refuses_foreign_expired_revoked_and_unexpected_hosts() {
    let (ca, foreign) = (authority(), authority());
    let refusal = |listener: &dyn Fn(&Path), revoke: bool, name: Option<&str>| {
        let (a, b) = directories();
        ca.host(a.path(), "host-a", 1, false, &ca);
        if revoke {
            ca.revoke(a.path(), 2);
        }
        listener(b.path());
        let meeting = meet(identity(b.path()), identity(a.path()), name);
        assert!(meeting.accepted.is_none());
        meeting.dialled.unwrap_err().code()
    };
    let host = |ca: &Authority, b: &Path, expired| ca.host(b, "host-b", 2, expired, ca);
    let untrusted = refusal(&|b| host(&foreign, b, false), false, None);
    assert_eq!(untrusted, "certificate_untrusted");
    assert_eq!(refusal(&|b| host(&ca, b, true), false, None), "certificate_expired");
    assert_eq!(refusal(&|b| host(&ca, b, false), true, None), "certificate_revoked");
    let other = refusal(&|b| host(&ca, b, false), false, Some("host-c"));
    assert_eq!(other, "certificate_wrong_name");
}

#[test]
fn a_revocation_holds_from_the_next_handshake_on() {
    let (a, b) = directories();
    let ca = authority();
    ca.host(a.path(), "host-a", 1, false, &ca);
    ca.host(b.path(), "host-b", 2, false, &ca);
    let listener = identity(b.path());
    let before = meet(listener.clone(), identity(a.path()), None);
    assert!(before.accepted.is_some());
    ca.revoke(b.path(), 1);
    let after = meet(listener, identity(a.path()), None);
    assert_eq!(after.refused.snapshot(), [("certificate_revoked", 1)]);
}

#[test]
fn plaintext_and_tls_refuse_each_other_and_plaintext_meets_plaintext() {
    let (a, b) = directories();
    let ca = authority();
    ca.host(b.path(), "host-b", 2, false, &ca);
    ca.host(a.path(), "host-a", 1, false, &ca);
    let meeting = meet(identity(b.path()), plaintext(), None);
    assert_eq!(meeting.refused.snapshot(), [("plaintext_refused", 1)]);
    assert!(meeting.dialled.is_err());
    let meeting = meet(plaintext(), identity(a.path()), None);
    assert_eq!(meeting.refused.snapshot(), [("tls_refused", 1)]);
    let meeting = meet(plaintext(), plaintext(), None);
    assert_eq!(meeting.accepted.unwrap().peer_name, "plain");
}

#[test]
fn garbage_on_the_peer_port_is_refused_and_counted() {
    let first_bytes: [(&[u8], &str); 3] = [
        (b"GET / HTTP/1.1\r\n\r\n", "first_byte_unknown"),
        (&[b'D'; 32], "wire_bad_magic"),
        (b"P, and then what is no HELLO at all", "wire_bad_magic"),
    ];
    for (bytes, code) in first_bytes {
        with_listener(plaintext(), |address, refused, inputs| async move {
            let mut stream = TcpStream::connect(&address).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            // Closed or reset, as the kernel likes it.
            let _ = stream.read_to_end(&mut Vec::new()).await;
            let counted = refused.snapshot();
            assert_eq!(counted.len(), 1, "{counted:?}");
            assert!(inputs.is_empty(), "the core hears nothing of it");
            assert_eq!(counted[0].0, code);
        });
    }
}

/// The next message of a peer but its pings, which are answered. One read may bring several, so
/// that a caller asks for one answer at a time.
pub(crate) async fn read_message(peer: &Established) -> Result<PeerMessage, PeerError> {
    let mut bytes = peer.rest.clone();
    loop {
        while let Some((message, used)) = PeerCodec::decode(&bytes)? {
            bytes.drain(..used);
            let PeerMessage::Ping { stamp } = message else { return Ok(message) };
            write_message(peer, &PeerMessage::Pong { stamp }).await?;
        }
        let mut chunk = [0; 1024];
        match read_some(&peer.transport, &mut chunk).await? {
            0 => return Err(PeerError::Closed),
            read => bytes.extend_from_slice(&chunk[..read]),
        }
    }
}

/// Says something to a daemon.
pub(crate) async fn write_message(
    peer: &Established,
    message: &PeerMessage,
) -> Result<(), PeerError> {
    write_all(&peer.transport, &PeerCodec::encode(message)).await
}

#[test]
fn an_idle_peer_that_answers_stays_and_one_that_falls_silent_ends_the_channel() {
    with_listener(plaintext(), |address, _, mut inputs| async move {
        let stream = TcpStream::connect(&address).await.unwrap();
        let them = plaintext().connect(stream, None).await.unwrap();
        let Some(PeerInput::Accepted(us)) = inputs.recv().await else { panic!() };
        let dead_after = Duration::from_secs(1);
        let peer_ping_every = Duration::from_millis(20);
        let live =
            LiveSettings { peer_ping_every, peer_dead_after: dead_after, ..Default::default() };
        let (sender, mut news) = mpsc::channel(16);
        let _channel = ChannelHandle::start(ConnectionId(0), *us, sender, Rc::new(Cell::new(live)));
        // It says nothing but its pongs for longer than a silent peer may take.
        let begun = Instant::now();
        let answers = async {
            let _ = read_message(&them).await;
        };
        let answered = tokio::time::timeout(dead_after * 3 / 2, answers).await;
        assert!(answered.is_err(), "the channel stays as long as it answers");
        assert!(news.try_recv().is_err());
        let silent_since = Instant::now();
        let Some(PeerInput::Ended { end, .. }) = news.recv().await else { panic!() };
        assert_eq!(end.code(), "peer_silent", "{end}");
        let noticed = silent_since.elapsed();
        // A wait may have begun while the peer still spoke, so that one ping's period is lost.
        assert!(noticed + 2 * peer_ping_every >= dead_after, "{noticed:?}");
        assert!(begun.elapsed() >= dead_after * 2);
    });
}

#[test]
fn a_peer_that_talks_without_a_pause_starves_neither_writing_nor_the_watch() {
    with_listener(plaintext(), |address, _, mut inputs| async move {
        let talker = std::net::TcpStream::connect(&address).unwrap();
        talker.set_nonblocking(true).unwrap();
        let stream = TcpStream::from_std(talker.try_clone().unwrap()).unwrap();
        let _them = plaintext().connect(stream, None).await.unwrap();
        let Some(PeerInput::Accepted(us)) = inputs.recv().await else { panic!() };
        let peer_ping_every = Duration::from_millis(10);
        let patient = LiveSettings { peer_ping_every, ..Default::default() };
        let live = Rc::new(Cell::new(patient));
        // More places than tokio grants steps in one go: only a rest of the reader lets others in.
        let (sender, mut news) = mpsc::channel(1024);
        let channel = ChannelHandle::start(ConnectionId(0), *us, sender, Rc::clone(&live));
        // It does not read either, so that the watch alone can end a channel that was let go.
        let word = PeerMessage::Settled { session: SessionId([7; 16]) };
        while channel.send(word.clone()).is_ok() {
            tokio::task::yield_now().await;
        }
        drop(channel);
        live.set(LiveSettings { peer_dead_after: 10 * peer_ping_every, ..patient });
        let words = PeerCodec::encode(&word).repeat(1000);
        let talking = std::thread::spawn(move || {
            talker.set_nonblocking(false).unwrap();
            while std::io::Write::write_all(&mut &talker, &words).is_ok() {}
        });
        let ended =
            async { while !matches!(news.recv().await, Some(PeerInput::Ended { .. }) | None) {} };
        let ended = tokio::time::timeout(Duration::from_secs(10), ended).await;
        ended.expect("a channel that was let go ends");
        talking.join().unwrap();
    });
}

#[test]
fn missing_files_are_named_with_a_cure() {
    let directory = tempfile::tempdir().unwrap();
    let security = PeerSecurity::Mutual { pki_dir: directory.path().to_owned() };
    let error = Identity::load(&security, random()).unwrap_err();
    assert_eq!(error.code(), "pki_unreadable");
    assert!(error.to_string().contains("ca.pem"), "{error}");
    assert!(error.cure().contains("dwcp pki"));
}
