//! Both tasks against real QEMUs, a plain pump between them. No guest kernel: the firmware of a
//! small machine runs, which is a guest that stands for none in time and for all in form.

use super::rig::{Pump, SESSION, Task, WAIT, run};
use crate::vm::qmp::Qmp;
use crate::vm::{
    GuestState, MigrateOptions, OnTimeout, Severity, VmNews, VmOrder, VmTarget, preflight, probe,
    shell_words, spawn_sink, spawn_source,
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::{interval, timeout};

const QEMU: &str = "qemu-system-x86_64";
const MACHINE: &str = "-machine pc -accel tcg -m 64 -nodefaults -display none";
const RNG: &str = "-device virtio-rng-pci,id=rng0";
const INCOMING: &str = "-incoming defer";

/// True if there is a QEMU. Says so when there is none.
fn there_is_qemu(test: &str) -> bool {
    let asked = Command::new(QEMU).arg("--version").stdout(Stdio::null()).status();
    let there = asked.is_ok_and(|status| status.success());
    if !there {
        eprintln!("PASSED OVER: {test}: no {QEMU} is installed");
    }
    there
}

/// A QEMU that ends with the test.
struct Qemu {
    child: Child,
    qmp: PathBuf,
}

impl Qemu {
    async fn start(folder: &Path, name: &str, arguments: &str) -> Self {
        let qmp = folder.join(format!("{name}.qmp"));
        let child = Command::new(QEMU)
            .args(shell_words(&format!("{MACHINE} {arguments}")).unwrap())
            .args(["-qmp", &format!("unix:{},server=on,wait=off", qmp.display())])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("QEMU starts");
        let qemu = Self { child, qmp };
        let opened = async {
            let mut tries = interval(Duration::from_millis(5));
            while Qmp::connect(&qemu.qmp).await.is_err() {
                tries.tick().await;
            }
        };
        timeout(WAIT, opened).await.expect("the monitor opens in time");
        qemu
    }

    fn target(&self) -> VmTarget {
        VmTarget::Monitor { qmp: self.qmp.clone() }
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A QEMU that a task started ends with the test, by its monitor.
struct SpawnedGuard(PathBuf);

impl SpawnedGuard {
    async fn quit(self) {
        if let Ok(mut qmp) = Qmp::connect(&self.0).await {
            let _ = qmp.execute("quit", Value::Null).await;
        }
    }
}

async fn ask(qmp: &Path, command: &'static str) -> Value {
    // The monitor serves one client; a task that has just ended may still be leaving it.
    let mut qmp = Qmp::connect(qmp).await.expect("the monitor answers");
    qmp.execute(command, Value::Null).await.expect("QEMU answers")
}

async fn run_state(qmp: &Path) -> String {
    ask(qmp, "query-status").await["status"].as_str().unwrap().to_owned()
}

fn sorted(capabilities: Value) -> Vec<String> {
    let mut all: Vec<String> =
        capabilities.as_array().unwrap().iter().map(Value::to_string).collect();
    all.sort();
    all
}

async fn settings(qmp: &Path) -> (Vec<String>, Value) {
    let capabilities = ask(qmp, "query-migrate-capabilities").await;
    (sorted(capabilities), ask(qmp, "query-migrate-parameters").await)
}

fn links() -> VmOrder {
    VmOrder::Links {
        rate_bytes_per_second: 100_000_000,
        ratio_milli: 2000,
        rtt_ns: 1_000_000,
        backlog_bytes: 0,
    }
}

fn source_of(target: VmTarget) -> Task {
    Task::new(|reports| spawn_source(SESSION, target, None, reports))
}

fn sink_of(target: VmTarget) -> Task {
    Task::new(|reports| spawn_sink(SESSION, target, None, reports))
}

/// Both tasks up to the point where QEMU's first connection is there at both ends.
async fn begun(
    folder: &Path,
    source: VmTarget,
    sink: VmTarget,
    options: MigrateOptions,
) -> (Task, Task, Pump) {
    let (mut source, mut sink) = (source_of(source), sink_of(sink));
    let (here, there) = (source.facts().await, sink.facts().await);
    let found = preflight(&here, &there);
    assert!(found.iter().all(|finding| finding.severity == Severity::Warning), "{found:?}");
    let socket_path = folder.join("sink.d").join("in");
    sink.order(VmOrder::Prepare { socket_path, channels_max: 17 });
    let to_sink = sink.channel().await;
    sink.until(|news| matches!(news, VmNews::Prepared).then_some(())).await;
    source.order(links());
    let socket_path = folder.join("source.d").join("out");
    source.order(VmOrder::Begin { options, socket_path });
    let from_source = source.channel().await;
    (source, sink, Pump::new(from_source, to_sink))
}

/// Waits until the source has completed and the sink has loaded; the pause of the source.
async fn moved(source: &mut Task, sink: &mut Task) -> u64 {
    let stop = |news| match news {
        VmNews::Stopped { at_unix_us } => Some(at_unix_us),
        _ => None,
    };
    let stopped = source.until(stop).await;
    source.until(|news| matches!(news, VmNews::Completed).then_some(())).await;
    sink.until(|news| matches!(news, VmNews::Loaded).then_some(())).await;
    stopped
}

async fn committed(source: &mut Task, sink: &mut Task, stopped: u64) {
    source.order(VmOrder::Release);
    assert_eq!(source.ended().await, GuestState::Empty);
    sink.order(VmOrder::Resume);
    let run = |news| match news {
        VmNews::Resumed { at_unix_us } => Some(at_unix_us),
        _ => None,
    };
    let resumed = sink.until(run).await;
    assert!(resumed >= stopped, "one clock: {resumed} {stopped}");
    println!("STOP to RESUME {} us", resumed - stopped);
    assert_eq!(sink.ended().await, GuestState::Running);
}

#[test]
fn a_paused_guest_moves_and_stays_paused_at_either_end() {
    if !there_is_qemu("a_paused_guest_moves") {
        return;
    }
    run(async {
        let folder = TempDir::new().unwrap();
        let (path, options) = (folder.path(), MigrateOptions::default);
        let source = Qemu::start(path, "a", "").await;
        ask(&source.qmp, "stop").await;
        // Given up on the way: QEMU itself brings the pause back.
        let sink = Qemu::start(path, "b", INCOMING).await;
        let (mut out, _into, _pump) = begun(path, source.target(), sink.target(), options()).await;
        out.order(VmOrder::Cancel);
        assert_eq!(out.ended().await, GuestState::Paused);
        assert_eq!(run_state(&source.qmp).await, "paused");

        let sink = Qemu::start(path, "c", INCOMING).await;
        let (mut out, mut into, _pump) =
            begun(path, source.target(), sink.target(), options()).await;
        out.until(|news| {
            assert!(!matches!(news, VmNews::Stopped { .. }), "it stood still before");
            matches!(news, VmNews::Completed).then_some(())
        })
        .await;
        into.until(|news| matches!(news, VmNews::Loaded).then_some(())).await;
        out.order(VmOrder::Release);
        into.order(VmOrder::LeavePaused);
        assert_eq!(
            (out.ended().await, into.ended().await),
            (GuestState::Empty, GuestState::Paused)
        );
        assert_eq!(run_state(&source.qmp).await, "postmigrate");
        assert_eq!(run_state(&sink.qmp).await, "paused");

        // It moves on from there; kept when all was sent, it stands where its user can start it.
        let back = Qemu::start(path, "d", INCOMING).await;
        let (mut out, mut into, _pump) = begun(path, sink.target(), back.target(), options()).await;
        out.until(|news| matches!(news, VmNews::Completed).then_some(())).await;
        out.order(VmOrder::Keep);
        assert_eq!(out.ended().await, GuestState::Paused);
        into.order(VmOrder::Discard);
        into.ended().await;
        assert_eq!(run_state(&sink.qmp).await, "postmigrate");
        ask(&sink.qmp, "cont").await;
        assert_eq!(run_state(&sink.qmp).await, "running");
    });
}

#[test]
fn a_guest_moves_and_moves_on_and_the_users_settings_come_back() {
    if !there_is_qemu("a_guest_moves_and_moves_on") {
        return;
    }
    run(async {
        let folder = TempDir::new().unwrap();
        let source = Qemu::start(folder.path(), "a", RNG).await;
        // Without -S: the task keeps it from running the guest.
        let sink = Qemu::start(folder.path(), "b", &format!("{RNG} {INCOMING}")).await;
        println!("QEMU {}", probe(&source.qmp).await.unwrap().version);
        Qmp::connect(&source.qmp)
            .await
            .unwrap()
            .execute("migrate-set-parameters", json!({ "downtime-limit": 777 }))
            .await
            .unwrap();
        let (users, sinks) = (settings(&source.qmp).await, settings(&sink.qmp).await);
        let path = folder.path();
        let (mut out, mut into, _pump) =
            begun(path, source.target(), sink.target(), MigrateOptions::default()).await;
        let stopped = moved(&mut out, &mut into).await;
        committed(&mut out, &mut into, stopped).await;
        assert_eq!(run_state(&source.qmp).await, "postmigrate");
        assert_eq!(run_state(&sink.qmp).await, "running");
        assert_eq!(settings(&source.qmp).await, users);
        assert_eq!(settings(&sink.qmp).await, sinks);

        // On to a third QEMU, which dwcp starts itself.
        let qmp = path.join("spawned").join("c.qmp");
        let guard = SpawnedGuard(qmp.clone());
        let command = shell_words(&format!("{QEMU} {MACHINE} {RNG} {INCOMING} -S")).unwrap();
        let third = VmTarget::Spawn { command, qmp };
        let options = MigrateOptions {
            timeout_ms: Some(600_000),
            on_timeout: OnTimeout::Throttle,
            ..MigrateOptions::default()
        };
        let users = settings(&sink.qmp).await;
        let (mut out, mut into, _pump) = begun(path, sink.target(), third, options).await;
        let stopped = moved(&mut out, &mut into).await;
        committed(&mut out, &mut into, stopped).await;
        assert_eq!(run_state(&guard.0).await, "running");
        assert_eq!(settings(&sink.qmp).await, users);
        assert!(!path.join("sink.d").exists() && !path.join("source.d").exists());
        guard.quit().await;
    });
}

#[test]
fn before_the_yield_the_guest_is_kept_in_every_phase() {
    if !there_is_qemu("before_the_yield_the_guest_is_kept") {
        return;
    }
    run(async {
        let folder = TempDir::new().unwrap();
        let path = folder.path();
        let source = Qemu::start(path, "a", RNG).await;
        let users = settings(&source.qmp).await;
        let incoming = format!("{RNG} {INCOMING} -S");
        for (name, phase) in [("b", 0), ("c", 1), ("d", 2), ("e", 3)] {
            let sink = Qemu::start(path, name, &incoming).await;
            let options = MigrateOptions::default();
            let (mut out, mut into, pump) =
                begun(path, source.target(), sink.target(), options).await;
            match phase {
                // Cancelled by the core, while data flows or is about to.
                0 => out.order(VmOrder::Cancel),
                // The link is cut.
                1 => {
                    drop(pump);
                    let failed = out.failure().await;
                    assert_eq!(failed.code(), "migration_failed", "{failed}");
                    assert_eq!(into.failure().await.code(), "load_failed");
                    out.order(VmOrder::Keep);
                }
                // All is loaded, nobody has committed.
                2 => {
                    moved(&mut out, &mut into).await;
                    out.order(VmOrder::Keep);
                }
                // The sink's QEMU dies.
                _ => {
                    let mut sink = sink;
                    sink.kill();
                    assert_eq!(into.failure().await.code(), "load_ended");
                    drop(pump);
                    out.failure().await;
                    out.order(VmOrder::Keep);
                }
            }
            assert_eq!(out.ended().await, GuestState::Running, "phase {phase}");
            into.order(VmOrder::Discard);
            assert_eq!(into.ended().await, GuestState::Gone, "phase {phase}");
            assert_eq!(run_state(&source.qmp).await, "running");
            assert_eq!(settings(&source.qmp).await, users, "phase {phase}");
        }
    });
}

#[test]
fn what_the_sink_cannot_load_is_found_before_and_named_after() {
    if !there_is_qemu("what_the_sink_cannot_load") {
        return;
    }
    run(async {
        let folder = TempDir::new().unwrap();
        let source = Qemu::start(folder.path(), "a", RNG).await;
        let sink = Qemu::start(folder.path(), "b", &format!("{INCOMING} -S")).await;
        let here = probe(&source.qmp).await.unwrap();
        let there = probe(&sink.qmp).await.unwrap();
        let found = preflight(&here, &there);
        assert!(found.iter().any(|finding| finding.code == "device_differs"), "{found:?}");
        assert_eq!(here.ram_bytes, 64 << 20);
        assert_eq!((here.cpu_count, here.cpu_kind.as_deref()), (1, Some("qemu64-x86_64-cpu")));
        assert!(here.machine.as_deref().unwrap().starts_with("pc-i440fx-"), "{here:?}");
        assert_eq!((here.run_state.as_str(), there.run_state.as_str()), ("running", "inmigrate"));
        assert!(here.resident_bytes.unwrap() > 0);

        // Nobody listened to the preflight.
        let (mut out, mut into) = (source_of(source.target()), sink_of(sink.target()));
        into.facts().await;
        let socket_path = folder.path().join("sink.d").join("in");
        into.order(VmOrder::Prepare { socket_path, channels_max: 17 });
        let to_sink = into.channel().await;
        out.facts().await;
        out.order(links());
        let socket_path = folder.path().join("source.d").join("out");
        out.order(VmOrder::Begin { options: MigrateOptions::default(), socket_path });
        let _pump = Pump::new(out.channel().await, to_sink);
        let failed = into.failure().await;
        assert_eq!(failed.code(), "load_failed");
        println!("sink: {failed}");
        let failed = out.failure().await;
        assert_eq!(failed.code(), "migration_failed");
        println!("source: {failed}");
        out.order(VmOrder::Keep);
        assert_eq!(out.ended().await, GuestState::Running);
        into.order(VmOrder::Discard);
        assert_eq!(into.ended().await, GuestState::Gone);
    });
}

#[test]
fn a_source_that_dies_is_told_in_every_phase() {
    if !there_is_qemu("a_source_that_dies") {
        return;
    }
    run(async {
        let folder = TempDir::new().unwrap();
        let mut source = Qemu::start(folder.path(), "a", RNG).await;
        let mut out = source_of(source.target());
        out.facts().await;
        let options = MigrateOptions::default();
        let socket_path = folder.path().join("source.d").join("out");
        out.order(VmOrder::Begin { options, socket_path });
        // Nobody reads the other end: the migration stands.
        let _held = out.channel().await;
        out.progress().await;
        source.kill();
        assert_eq!(out.failure().await.code(), "qmp_closed");
        out.order(VmOrder::Keep);
        assert_eq!(out.failure().await.code(), "qmp_nobody_listens");
        assert_eq!(out.ended().await, GuestState::Gone);
    });
}

#[test]
fn a_migration_that_takes_too_long_is_given_up_and_a_guest_moves_only_once_at_a_time() {
    if !there_is_qemu("a_migration_that_takes_too_long") {
        return;
    }
    run(async {
        let folder = TempDir::new().unwrap();
        let source = Qemu::start(folder.path(), "a", RNG).await;
        let mut out = source_of(source.target());
        out.facts().await;
        let options = MigrateOptions { timeout_ms: Some(500), ..MigrateOptions::default() };
        let socket_path = folder.path().join("source.d").join("out");
        out.order(VmOrder::Begin { options, socket_path: socket_path.clone() });
        let _held = out.channel().await;
        // The monitor is the task's.
        let mut second = source_of(source.target());
        assert_eq!(second.failure().await.code(), "qmp_busy");
        second.order(VmOrder::Keep);
        assert_eq!(out.failure().await.code(), "migration_timed_out");
        out.order(VmOrder::Keep);
        assert_eq!(out.ended().await, GuestState::Running);
        assert_eq!(run_state(&source.qmp).await, "running");

        // Somebody else's migration is left alone.
        let _listener = tokio::net::UnixListener::bind(folder.path().join("other")).unwrap();
        let uri = format!("unix:{}", folder.path().join("other").display());
        let mut other = Qmp::connect(&source.qmp).await.unwrap();
        other.execute("migrate", json!({ "uri": uri })).await.unwrap();
        drop(other);
        let mut out = source_of(source.target());
        out.facts().await;
        out.order(VmOrder::Begin { options: MigrateOptions::default(), socket_path });
        assert_eq!(out.failure().await.code(), "already_migrating");
        out.order(VmOrder::Keep);
        assert_eq!(out.ended().await, GuestState::Running);
        let status = ask(&source.qmp, "query-migrate").await["status"].clone();
        assert!(status == "active" || status == "setup", "{status}");
    });
}

#[test]
fn a_spawned_sink_makes_room_and_says_why_it_cannot_start() {
    if !there_is_qemu("a_spawned_sink") {
        return;
    }
    run(async {
        let folder = TempDir::new().unwrap();
        let qmp = folder.path().join("spawned").join("c.qmp");
        let guard = SpawnedGuard(qmp.clone());
        let spawn = |more: &str| VmTarget::Spawn {
            command: shell_words(&format!("{QEMU} {MACHINE} {INCOMING} -S {more}")).unwrap(),
            qmp: qmp.clone(),
        };
        // One whose daemon died, then one that is discarded, then one that finds room.
        let mut first = sink_of(spawn(""));
        first.facts().await;
        drop(first);
        let mut second = sink_of(spawn(""));
        assert_eq!(second.facts().await.run_state, "inmigrate");
        second.order(VmOrder::Discard);
        assert_eq!(second.ended().await, GuestState::Gone);
        assert!(Qmp::connect(&guard.0).await.is_err());

        let mut bad = sink_of(spawn("-device nonsense"));
        let failed = bad.failure().await;
        assert_eq!(failed.code(), "spawn_ended");
        assert!(failed.to_string().contains("nonsense"), "{failed}");
        bad.order(VmOrder::Discard);
        assert_eq!(bad.ended().await, GuestState::Empty);
        guard.quit().await;
    });
}
