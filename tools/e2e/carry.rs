//! Carrier mode: two `dwcp carry` processes between what stands for VMMs, and between real QEMUs.

use crate::harness::carrier::{Carrier, Carriers, accept};
use crate::harness::daemon::free_address;
use crate::harness::lab::{SINK, SOURCE};
use crate::harness::metrics::Metrics;
use crate::harness::pki::Pki;
use crate::harness::qemu::Qemu;
use crate::harness::{Rng, SOON, wait_until};
use nix::sys::signal::Signal;
use serde_json::json;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use tempfile::TempDir;

/// Two carriers with fresh certificates.
struct Lab {
    carriers: Carriers,
    // Last, so that the carriers have ended when it goes.
    folder: TempDir,
}

impl Lab {
    fn start() -> Self {
        Self::start_with(&[], &[])
    }

    fn start_with(source_flags: &[&str], sink_flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let pki = Pki::init(folder.path().join("pki"));
        let (source, sink) = (pki.host(SOURCE), pki.host(SINK));
        let source = (Some(source.as_path()), source_flags);
        let sink = (Some(sink.as_path()), sink_flags);
        Self { carriers: Carriers::start(folder.path(), source, sink), folder }
    }
}

fn bytes(seed: u64, count: usize) -> Vec<u8> {
    let mut rng = Rng(seed);
    let words = std::iter::repeat_with(|| rng.next().to_le_bytes());
    words.flatten().take(count).collect()
}

/// Writes `forth` at the source and `back` at the sink, checks both, and closes both ends.
fn exchange((mut near, mut far): (UnixStream, UnixStream), seed: u64, count: usize) {
    let (forth, back) = (bytes(seed, count), bytes(seed + 1, count / 50));
    let writer = {
        let (mut near, forth) = (near.try_clone().expect("a descriptor"), forth.clone());
        std::thread::spawn(move || {
            near.write_all(&forth).expect("the carrier takes it");
            near.shutdown(Shutdown::Write).expect("a connected socket");
        })
    };
    let mut got = Vec::new();
    far.read_to_end(&mut got).expect("the carrier goes on");
    assert!(got == forth, "seed {seed}: {} of {} bytes", got.len(), forth.len());
    far.write_all(&back).expect("the carrier takes it");
    far.shutdown(Shutdown::Both).expect("a connected socket");
    let mut got = Vec::new();
    near.read_to_end(&mut got).expect("the carrier goes on");
    assert!(got == back, "seed {seed}: {} of {} reply bytes", got.len(), back.len());
    writer.join().expect("it wrote everything");
}

/// The VMM at this end finds its connection closed.
fn assert_closed(mut vmm: &UnixStream) {
    let end = vmm.read_to_end(&mut Vec::new());
    let reset = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionReset;
    assert!(end.as_ref().is_ok() || end.as_ref().is_err_and(reset), "{end:?}");
    // Half closed would not do: a VMM without return path finds out by writing alone.
    wait_until("writing fails", SOON, || vmm.write(&[0]).is_err());
}

#[test]
fn bytes_go_both_ways_one_session_after_the_other() {
    let lab = Lab::start();
    let Carriers { source, sink, .. } = &lab.carriers;
    let mode = std::fs::metadata(lab.carriers.out_path()).expect("it is there").permissions();
    assert_eq!(mode.mode() & 0o777, 0o600, "the socket belongs to its owner alone");
    let listener = lab.carriers.listen();
    for seed in [3, 5] {
        let count = 3_000_001;
        exchange(lab.carriers.channel(&listener), seed, count);
        let (near, far) = (source.ended_well(), sink.ended_well());
        assert_eq!((&near["session"], &near["vmm_bytes"]), (&far["session"], &json!(count)));
        assert_eq!((&far["vmm_bytes"], &far["channels"]), (&json!(count), &json!(1)));
        assert_eq!(near["reply_bytes"], json!(count / 50));
    }
}

#[test]
fn the_metrics_count_what_is_carried() {
    let addresses = [free_address(), free_address()];
    let [near, far] = addresses.map(|address| address.to_string());
    let lab = Lab::start_with(&["--metrics", &near], &["--metrics", &far]);
    let listener = lab.carriers.listen();
    let (mut near, mut far) = lab.carriers.channel(&listener);
    let sent = bytes(61, 300_000);
    near.write_all(&sent).expect("the carrier takes it");
    far.read_exact(&mut vec![0; sent.len()]).expect("it arrives");
    let families = ["dwcp_session_vmm_in_bytes_total", "dwcp_session_vmm_out_bytes_total"];
    for ((address, family), role) in addresses.iter().zip(families).zip(["source", "sink"]) {
        let counted = || Metrics::scrape(*address).sum(family, &[&format!("role=\"{role}\"")]);
        // The VMM may have its bytes before the shard has counted them.
        wait_until(family, SOON, || counted() == 300_000.0);
    }
}

#[test]
fn a_connection_right_behind_the_last_one_is_a_migration_of_its_own() {
    let lab = Lab::start();
    let listener = lab.carriers.listen();
    for seed in [51, 53, 55, 57] {
        let (mut near, mut far) = lab.carriers.channel(&listener);
        let first = bytes(seed, 100_000);
        near.write_all(&first).expect("the carrier takes it");
        // Said to the socket itself: a process that another test is starting may still hold it.
        near.shutdown(Shutdown::Both).expect("a connected socket");
        drop(near);
        // The next VMM does not wait until anybody has seen the end of the last stream.
        let next = lab.carriers.connect();
        let mut got = Vec::new();
        far.read_to_end(&mut got).expect("the carrier goes on");
        assert!(got == first, "seed {seed}: {} of {} bytes", got.len(), first.len());
        drop(far);
        exchange((next, accept(&listener)), seed + 1, 100_000);
        for _ in 0..2 {
            assert_eq!(lab.carriers.source.ended_well()["channels"], json!(1), "seed {seed}");
            lab.carriers.sink.ended_well();
        }
    }
}

#[test]
fn several_channels_are_one_session() {
    let lab = Lab::start_with(&["--mode", "passthrough"], &[]);
    let listener = lab.carriers.listen();
    // The first connection stays open until all have been made, as a VMM's main channel does.
    let channels: Vec<_> = (0..4).map(|_| lab.carriers.channel(&listener)).collect();
    let threads: Vec<_> = (0..4)
        .zip(channels)
        .map(|(seed, channel)| std::thread::spawn(move || exchange(channel, 10 * seed, 900_000)))
        .collect();
    threads.into_iter().for_each(|thread| thread.join().expect("its bytes were right"));
    for carrier in [&lab.carriers.source, &lab.carriers.sink] {
        let ended = carrier.ended_well();
        assert_eq!((&ended["channels"], &ended["vmm_bytes"]), (&json!(4), &json!(3_600_000)));
    }
}

#[test]
fn a_missing_destination_is_named_and_the_next_migration_works() {
    let lab = Lab::start();
    let near = lab.carriers.connect();
    assert_closed(&near);
    let ended = lab.carriers.source.event("ended");
    assert_eq!(ended["failure"]["code"], "vmm_unreachable", "{ended}");
    let cure = ended["failure"]["cure"].as_str().expect("a cure");
    let path = lab.carriers.in_path();
    assert!(cure.contains(path.to_str().expect("UTF-8")) && cure.contains("-incoming"), "{cure}");
    assert_eq!(lab.carriers.sink.failure(), "vmm_unreachable");
    let listener = lab.carriers.listen();
    exchange(lab.carriers.channel(&listener), 21, 100_000);
    lab.carriers.source.ended_well();
}

#[test]
fn a_destination_that_closes_midway_fails_the_source_at_once() {
    let lab = Lab::start();
    let listener = lab.carriers.listen();
    let (mut near, far) = lab.carriers.channel(&listener);
    near.write_all(&bytes(31, 1 << 20)).expect("the carrier takes it");
    (&far).read_exact(&mut [0; 4096]).expect("it begins to arrive");
    drop(far);
    // More than all buffers between the two hold.
    while near.write(&bytes(32, 1 << 20)).is_ok() {}
    assert_closed(&near);
    assert_eq!(lab.carriers.source.failure(), "vmm_closed");
    assert_eq!(lab.carriers.sink.failure(), "vmm_closed");
    exchange(lab.carriers.channel(&listener), 33, 100_000);
    lab.carriers.source.ended_well();
}

#[test]
fn a_killed_carrier_closes_both_vmms() {
    for kill_source in [true, false] {
        // Its peer would wait for the link: what died can't be told from what is far away.
        let at_once = ["--resume-window", "0s"];
        let mut lab = Lab::start_with(&at_once, &at_once);
        let listener = lab.carriers.listen();
        let (mut near, mut far) = lab.carriers.channel(&listener);
        near.write_all(&[7; 100]).expect("the carrier takes it");
        far.read_exact(&mut [0; 100]).expect("it arrives");
        let Carriers { source, sink, .. } = &mut lab.carriers;
        let (killed, other) = if kill_source { (source, sink) } else { (sink, source) };
        killed.signal(Signal::SIGKILL);
        killed.ended();
        assert_closed(&near);
        assert_closed(&far);
        assert_eq!(other.failure(), "link_lost");
    }
}

#[test]
fn an_interrupted_carrier_closes_both_vmms_and_says_so() {
    for (interrupt_source, signal) in [(true, Signal::SIGINT), (false, Signal::SIGTERM)] {
        let mut lab = Lab::start();
        let listener = lab.carriers.listen();
        let (mut near, mut far) = lab.carriers.channel(&listener);
        near.write_all(&[7; 100]).expect("the carrier takes it");
        far.read_exact(&mut [0; 100]).expect("it arrives");
        let out = lab.carriers.out_path();
        let Carriers { source, sink, .. } = &mut lab.carriers;
        let (told, other) = if interrupt_source { (source, sink) } else { (sink, source) };
        told.signal(signal);
        assert_eq!(told.ended().code(), Some(130));
        assert_eq!(told.failure(), "interrupted");
        assert_eq!(other.failure(), "interrupted");
        assert!(told.log().contains("every connection to a VMM is closed"), "{}", told.log());
        assert_closed(&near);
        assert_closed(&far);
        assert_eq!(out.exists(), !interrupt_source, "its own socket goes with it");
    }
}

#[test]
fn a_peer_that_was_held_up_meanwhile_hears_of_the_interrupt_all_the_same() {
    for interrupt_source in [true, false] {
        let mut lab = Lab::start();
        let listener = lab.carriers.listen();
        let (mut near, mut far) = lab.carriers.channel(&listener);
        near.write_all(&[7; 100]).expect("the carrier takes it");
        far.read_exact(&mut [0; 100]).expect("it arrives");
        let Carriers { source, sink, .. } = &mut lab.carriers;
        let (told, other) = if interrupt_source { (source, sink) } else { (sink, source) };
        other.signal(Signal::SIGSTOP);
        told.signal(Signal::SIGINT);
        assert_eq!(told.ended().code(), Some(130));
        other.signal(Signal::SIGCONT);
        assert_eq!(other.failure(), "interrupted");
        assert_closed(&near);
        assert_closed(&far);
    }
}

#[test]
fn only_certified_and_named_hosts_may_send() {
    let folder = tempfile::tempdir().expect("a folder");
    let pki = Pki::init(folder.path().join("pki"));
    let foreign = Pki::init(folder.path().join("foreign"));
    let (own, other, sink) = (pki.host(SOURCE), foreign.host(SOURCE), pki.host(SINK));
    for (source, accept_from, code) in
        [(&other, SOURCE, None), (&own, "host-c", Some("not_allowed"))]
    {
        let flags = ["--accept-from", accept_from];
        let source = (Some(source.as_path()), &[][..]);
        let carriers = Carriers::start(folder.path(), source, (Some(&sink), &flags));
        let _listener = carriers.listen();
        let near = carriers.connect();
        assert_closed(&near);
        let failure = carriers.source.failure();
        assert!(code.is_none_or(|code| failure == code), "{failure}");
        std::fs::remove_file(carriers.in_path()).expect("it is ours");
    }
}

#[test]
fn the_link_stands_before_a_vmm_comes() {
    let lab = Lab::start();
    assert_eq!(lab.carriers.source.event("linked")["peer"], SINK);
    assert_eq!(lab.carriers.sink.event("linked")["peer"], SOURCE);
    let listener = lab.carriers.listen();
    exchange(lab.carriers.channel(&listener), 42, 1000);
}

#[test]
fn a_live_socket_is_never_taken_over() {
    let lab = Lab::start();
    let out = lab.carriers.out_path();
    let out = out.to_str().expect("UTF-8");
    let command = Carrier::command(None, &["--listen-unix", out, "--to", "127.0.0.1:1"]);
    let mut second = Carrier::start(command, lab.folder.path().join("second.log"));
    assert_eq!(second.ended().code(), Some(3));
    assert!(second.log().contains("--listen-unix"), "{}", second.log());
    let listener = lab.carriers.listen();
    exchange(lab.carriers.channel(&listener), 41, 1000);
}

#[test]
fn the_two_sides_need_their_own_flags() {
    for flags in [&[][..], &["--listen-unix", "/x"], &["--connect-unix", "/x"]] {
        let output = Carrier::command(None, flags).output().expect("the binary runs");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
}

/// Two QEMUs with an empty guest, and carriers between them.
struct Guests {
    near: Qemu,
    far: Qemu,
    lab: Lab,
}

impl Guests {
    /// Both with these of QEMU's capabilities; none without QEMU.
    fn start(capabilities: &[&str]) -> Option<Self> {
        if !Qemu::is_installed() {
            eprintln!("left out: this machine has no QEMU");
            return None;
        }
        let lab = Lab::start();
        let mut far = Qemu::start(lab.folder.path(), "far", &["-incoming", "defer"]);
        let mut near = Qemu::start(lab.folder.path(), "near", &[]);
        near.set_capabilities(capabilities);
        far.set_capabilities(capabilities);
        Some(Self { near, far, lab })
    }

    fn begin(&mut self) {
        let uri = format!("unix:{}", self.lab.carriers.out_path().display());
        self.near.call("migrate", json!({ "uri": uri }));
    }

    /// A migration that nobody waits for: the source goes on with its guest.
    fn fail(&mut self) {
        self.begin();
        assert_eq!(self.near.migration_ended(), "failed");
        assert_eq!(self.lab.carriers.source.failure(), "vmm_unreachable");
        assert_eq!(self.near.call("query-status", json!({}))["status"], "prelaunch");
        assert_eq!(self.lab.carriers.sink.failure(), "vmm_unreachable");
    }

    /// One that arrives; how many connections it had.
    fn migrate(&mut self) -> u64 {
        let uri = format!("unix:{}", self.lab.carriers.in_path().display());
        self.far.call("migrate-incoming", json!({ "uri": uri }));
        self.begin();
        assert_eq!(self.near.migration_ended(), "completed");
        assert_eq!(self.far.migration_ended(), "completed");
        let ended = self.lab.carriers.source.ended_well();
        self.lab.carriers.sink.ended_well();
        ended["channels"].as_u64().expect("a number")
    }
}

#[test]
fn a_qemu_migrates_through_carriers_after_one_that_nobody_took() {
    let Some(mut guests) = Guests::start(&["return-path"]) else { return };
    guests.fail();
    // QEMU still clears up after the failure when it says that it has failed.
    wait_until("the end of the failed migration", SOON, || {
        let held = guests.near.call("query-yank", json!({}));
        !held.as_array().expect("a list").contains(&json!({"type": "migration"}))
    });
    assert_eq!(guests.migrate(), 1);
}

// Another guest than the one that failed: QEMU 10.0.2 can hang for good when multifd's connections
// are closed while it sets them up, whoever closes them.
#[test]
fn a_qemu_with_multifd_migrates_through_carriers_and_fails_when_nobody_waits() {
    let capabilities = ["return-path", "multifd"];
    let Some(mut guests) = Guests::start(&capabilities) else { return };
    guests.fail();
    let Some(mut guests) = Guests::start(&capabilities) else { return };
    assert!(guests.migrate() > 1);
}
