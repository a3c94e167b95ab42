//! The oldest QEMU that is supported, 7.2, at both ends.
//!
//! It loses pages of emulated guests while it migrates them, whatever the path, so what a guest
//! says of its own memory accuses nobody here: what arrived is held against the stream that left.

use super::carrier::{Carried, Manager};
use super::harness::{At, Hosts};
use super::pair::Pair;
use dwcp_tools::lab::{Guest, Lab, ram, stream};
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

/// The name that the lab gives a guest's memory.
const MEMORY: &str = "ram0";

/// A guest that changes 24 MiB, in the oldest QEMU; none where it can't be had, which is said.
fn guest(lab: &Lab) -> Option<Guest> {
    let Some(old) = lab.with_old_qemu() else {
        eprintln!("PASSED OVER: the oldest QEMU is not in the lab");
        return None;
    };
    let version = old.qemu_version().unwrap();
    assert!(version.starts_with("7.2"), "{version}");
    Some(Guest::new(&old, "dirty:24,400,3").unwrap().with_ram_mib(96))
}

/// Stands between the source's QEMU and its carrier, and keeps what QEMU writes.
struct Tap {
    path: PathBuf,
    kept: JoinHandle<std::io::Result<Vec<u8>>>,
}

impl Tap {
    fn before(out: &Path) -> Self {
        let path = out.with_extension("tap");
        let listener = UnixListener::bind(&path).expect("the path is free");
        let out = out.to_owned();
        let kept = std::thread::spawn(move || {
            let (mut qemu, _) = listener.accept()?;
            let mut carrier = UnixStream::connect(out)?;
            let (mut answers, mut back) = (carrier.try_clone()?, qemu.try_clone()?);
            std::thread::spawn(move || {
                // Either end may go first; what QEMU makes of it is told by its monitor.
                let _ = std::io::copy(&mut answers, &mut back);
                let _ = back.shutdown(Shutdown::Write);
            });
            let (mut kept, mut piece) = (Vec::new(), vec![0; 1 << 16]);
            loop {
                let bytes = qemu.read(&mut piece)?;
                if bytes == 0 {
                    carrier.shutdown(Shutdown::Write)?;
                    return Ok(kept);
                }
                kept.extend(&piece[..bytes]);
                carrier.write_all(&piece[..bytes])?;
            }
        });
        Self { path, kept }
    }

    /// All that QEMU wrote, once it has ended.
    fn stream(self) -> Vec<u8> {
        self.kept.join().expect("the tap runs").expect("QEMU and the carrier are there")
    }
}

#[test]
fn what_the_oldest_qemu_sent_is_what_arrives_through_carriers() {
    let Some(hosts) = Carried::up("rate=1g delay=5ms") else { return };
    let Some(guest) = guest(&hosts.lab) else { return };
    let mut pair = hosts.boot(&guest, At::A);
    let way = hosts.way(At::A);
    let tap = Tap::before(way.out());
    let mut manager = Manager::connect(&pair);
    manager.begin_by(&tap.path, way, &[]);
    manager.wait_status("completed");
    assert_eq!(pair.states(), ("postmigrate".to_owned(), "paused".to_owned()));

    let sent = stream::memory(&tap.stream(), MEMORY).unwrap();
    assert!(sent.iter().any(|byte| *byte != 0), "the guest has pages");
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("sent");
    std::fs::write(&file, sent).expect("room for the guest's memory");
    let (source, sink) = (pair.source.ram_file().unwrap(), pair.sink.ram_file().unwrap());
    let lost = ram::differing_pages(&source, &file).unwrap().len();
    println!("QEMU itself left {lost} pages out of its stream");
    assert_eq!(ram::differing_pages(&file, &sink).unwrap(), [0; 0]);

    manager.run_at_sink();
    assert_eq!(pair.look(), 1);
    let ended = way.source.ended_well();
    let bytes = |name: &str| ended[name].as_u64().expect("a counter");
    assert!(bytes("coded_bytes") < bytes("vmm_bytes") / 2, "its pages were coded: {ended}");
}

#[test]
fn the_oldest_qemu_moves_to_and_fro_by_the_daemons() {
    let Some(hosts) = Hosts::up("rate=1g delay=5ms") else { return };
    let Some(guest) = guest(&hosts.lab) else { return };
    let mut pair = Pair::boot(&hosts, &guest, At::A);
    for round in 0..2 {
        if round > 0 {
            pair = pair.turn(&hosts);
        }
        let told = hosts.migrate(pair.from, &[]);
        assert_eq!(pair.states(), ("postmigrate".to_owned(), "running".to_owned()), "{told}");
        assert_eq!(pair.look(), 1);
        assert!(told["opaque"].is_null(), "the stream was read: {told}");
        println!("move {round}: blackout {:?}, {told}", pair.blackout());
    }
}
