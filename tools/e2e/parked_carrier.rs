//! Carriers whose link is lost: neither VMM notices, every byte arrives once and in order, and
//! nobody waits longer than was said.

use crate::harness::binary::{previous, today};
use crate::harness::carrier::{Carrier, Carriers};
use crate::harness::lab::{SINK, SOURCE};
use crate::harness::pki::Pki;
use crate::harness::proxy::{Channel, Proxy, Way};
use crate::harness::{Rng, SOON, observe, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long the network stays away where that must not be felt.
const AWAY: Duration = Duration::from_millis(1500);

/// Two carriers with a proxy between them, and both ends of a VMM's connection.
struct Lab {
    carriers: Carriers,
    proxy: Proxy,
    near: UnixStream,
    far: UnixStream,
    // Last, so that the carriers have ended when it goes.
    _folder: TempDir,
}

impl Lab {
    fn start(flags: &[&str]) -> Self {
        Self::start_of(&[today(), today()], flags)
    }

    fn start_of(binaries: &[PathBuf; 2], flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let pki = Pki::init(folder.path().join("pki"));
        let (source, sink) = (pki.host(SOURCE), pki.host(SINK));
        let ends = [source.as_path(), sink.as_path()];
        let (carriers, proxy) = Carriers::start_through(folder.path(), binaries, ends, flags);
        let listener = carriers.listen();
        let (near, far) = carriers.channel(&listener);
        std::fs::remove_file(carriers.in_path()).expect("it is ours");
        Self { carriers, proxy, near, far, _folder: folder }
    }

    fn ends(&self) -> [&Carrier; 2] {
        [&self.carriers.source, &self.carriers.sink]
    }

    /// Something goes through: both ends have the session.
    fn go(&self) {
        let mut near = self.near.try_clone().expect("a descriptor");
        near.write_all(&[7; 1 << 16]).expect("the carrier takes it");
        let mut far = self.far.try_clone().expect("a descriptor");
        far.read_exact(&mut [0; 1 << 16]).expect("it arrives");
    }

    /// Cuts the network once something is under way, and keeps it away.
    fn lose(&self) {
        self.go();
        self.cut();
    }

    fn cut(&self) {
        self.proxy.refuse(true);
        self.proxy.cut();
        for end in self.ends() {
            let parked = end.event("parked");
            assert!(parked["reason"].is_string() && parked["window_s"].is_u64(), "{parked}");
        }
    }

    fn heal(&self) {
        self.proxy.refuse(false);
        for end in self.ends() {
            let resumed = end.event("resumed");
            assert!(resumed["seconds"].as_f64() > Some(0.0), "{resumed}");
        }
    }

    /// Neither VMM sees an end.
    fn assert_open(&self) {
        for vmm in [&self.near, &self.far] {
            vmm.set_nonblocking(true).expect("a flag of a socket");
            let read = { vmm }.read(&mut [0]).expect_err("nobody has written");
            assert_eq!(read.kind(), ErrorKind::WouldBlock);
            vmm.set_nonblocking(false).expect("a flag of a socket");
        }
    }

    fn assert_failed(&self, code: &str) {
        self.ends().into_iter().for_each(|end| assert_eq!(end.failure(), code));
    }

    fn assert_closed(&self) {
        for mut vmm in [&self.near, &self.far] {
            // What had arrived may still be there.
            let _ = vmm.read_to_end(&mut Vec::new());
            wait_until("writing fails", SOON, || vmm.write(&[0]).is_err());
        }
    }
}

/// Writes bytes to one end and checks that the other gets these and no others.
fn flow(from: &UnixStream, to: &UnixStream, seed: u64, count: usize) -> [JoinHandle<()>; 2] {
    let mut rng = Rng(seed);
    let words = std::iter::repeat_with(move || rng.next().to_le_bytes());
    let bytes: Vec<u8> = words.flatten().take(count).collect();
    let expected = bytes.clone();
    let clone = |socket: &UnixStream| socket.try_clone().expect("a descriptor");
    let (mut from, mut to) = (clone(from), clone(to));
    let writer = std::thread::spawn(move || {
        from.write_all(&bytes).expect("the carrier takes it");
    });
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; count];
        to.read_exact(&mut got).expect("the carrier goes on");
        assert!(got == expected, "seed {seed}");
    });
    [writer, reader]
}

/// Some bytes go through, and both VMMs close as they do after a migration.
fn ends_well(carriers: &Carriers, near: &UnixStream, far: &UnixStream) -> [Value; 2] {
    for thread in flow(near, far, 11, 100_000) {
        thread.join().expect("its bytes were right");
    }
    near.shutdown(Shutdown::Write).expect("a connected socket");
    assert_eq!({ far }.read(&mut [0]).expect("the carrier goes on"), 0, "no byte came twice");
    far.shutdown(Shutdown::Both).expect("a connected socket");
    assert_eq!({ near }.read(&mut [0]).expect("the carrier goes on"), 0, "no byte came twice");
    [carriers.source.ended_well(), carriers.sink.ended_well()]
}

#[test]
fn streams_in_both_directions_outlive_lost_links_byte_by_byte() {
    let lab = Lab::start(&[]);
    let (forth, back) = (24 << 20, 1 << 20);
    lab.proxy.slow_down(8 << 20);
    let flows = [flow(&lab.near, &lab.far, 3, forth), flow(&lab.far, &lab.near, 4, back)];
    for part in 1..=3 {
        let enough = part * (4 << 20);
        wait_until("bytes under way", SOON, || {
            lab.proxy.passed(Channel::Data, Way::Forth) > enough
        });
        lab.cut();
        observe(AWAY / 3, || assert!(flows.iter().flatten().any(|it| !it.is_finished())));
        lab.heal();
    }
    let threads = flows.into_iter().flatten();
    threads.for_each(|thread| thread.join().expect("its bytes were right"));
    let [near, far] = ends_well(&lab.carriers, &lab.near, &lab.far);
    assert_eq!((&near["session"], &near["coded_bytes"]), (&far["session"], &far["coded_bytes"]));
    assert_eq!(
        (&near["vmm_bytes"], &far["vmm_bytes"]),
        (&json!(forth + 100_000), &near["vmm_bytes"])
    );
    assert_eq!(near["reply_bytes"], json!(back));
}

#[test]
fn vmms_that_say_nothing_do_not_notice_a_lost_link() {
    let lab = Lab::start(&[]);
    lab.lose();
    observe(AWAY, || lab.assert_open());
    lab.heal();
    ends_well(&lab.carriers, &lab.near, &lab.far);
}

#[test]
fn a_link_that_stays_away_ends_the_session_at_both_ends_with_its_cure() {
    let lab = Lab::start(&["--resume-window", "2s"]);
    lab.lose();
    for (end, peer) in lab.ends().into_iter().zip([SINK, SOURCE]) {
        let ended = end.event("ended");
        let failure = &ended["failure"];
        assert_eq!(failure["code"], "resume_window", "{ended}");
        assert!(failure["message"].as_str().is_some_and(|it| it.contains(peer)), "{ended}");
        assert!(failure["cure"].as_str().is_some_and(|it| it.contains("--resume-window")));
    }
    lab.assert_closed();
    // Nothing is left of it: the next migration is as any other.
    lab.proxy.refuse(false);
    let listener = lab.carriers.listen();
    let (near, far) = lab.carriers.channel(&listener);
    ends_well(&lab.carriers, &near, &far);
}

#[test]
fn a_link_that_swallows_everything_is_waited_for_no_longer_than_one_that_is_cut() {
    let lab = Lab::start(&["--resume-window", "4s"]);
    lab.go();
    for channel in [Channel::Control, Channel::Data] {
        lab.proxy.hold(channel, Way::Forth);
        lab.proxy.hold(channel, Way::Back);
    }
    let since = Instant::now();
    // Without the window it would take as long as `--dead-after`, 30 s.
    lab.assert_failed("resume_window");
    assert!(since.elapsed() < Duration::from_secs(15), "{:?}", since.elapsed());
    lab.assert_closed();
}

#[test]
fn without_a_window_a_carrier_fails_with_its_link() {
    let lab = Lab::start(&["--resume-window", "0s"]);
    lab.go();
    lab.proxy.cut();
    lab.assert_failed("link_lost");
    lab.assert_closed();
}

#[test]
fn a_peer_of_the_version_before_fails_with_its_link() {
    let Some(old) = previous() else { return };
    for binaries in [[old.clone(), today()], [today(), old]] {
        let lab = Lab::start_of(&binaries, &[]);
        lab.go();
        lab.proxy.cut();
        lab.assert_failed("link_lost");
        lab.assert_closed();
    }
}

#[test]
fn a_parked_carrier_that_is_told_to_end_does_so_at_once() {
    for (at_source, signal) in
        [(true, Signal::SIGINT), (false, Signal::SIGTERM), (false, Signal::SIGINT)]
    {
        let mut lab = Lab::start(&["--resume-window", "5s"]);
        lab.lose();
        let since = Instant::now();
        let Carriers { source, sink, .. } = &mut lab.carriers;
        let (told, other) = if at_source { (source, sink) } else { (sink, source) };
        told.signal(signal);
        assert_eq!(told.ended().code(), Some(130));
        assert!(since.elapsed() < Duration::from_secs(3), "{:?}", since.elapsed());
        assert_eq!(told.failure(), "interrupted");
        // It can't hear of that, and waits no longer than it may.
        assert_eq!(other.failure(), "resume_window");
        lab.assert_closed();
    }
}

#[test]
fn a_vmm_that_closes_while_the_link_is_lost_ends_the_session_at_both_ends() {
    let lab = Lab::start(&[]);
    lab.lose();
    lab.far.shutdown(Shutdown::Both).expect("a connected socket");
    let mut near = lab.near.try_clone().expect("a descriptor");
    near.write_all(&[7; 1 << 16]).expect("the carrier takes it");
    lab.proxy.refuse(false);
    lab.ends().into_iter().for_each(|end| drop(end.failure()));
    lab.assert_closed();
}
