//! Wrong use and lacking machines: one line that names the fault and the cure, and the exit code
//! that the manual gives to it.

use crate::harness::client::Client;
use crate::harness::daemon::{Daemon, DaemonSpec, free_address};
use crate::harness::lab::{Lab, SOURCE};
use crate::harness::pki::Pki;
use crate::harness::wait_for;
use serde_json::json;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// A fault is noticed at start; the bound covers a busy machine.
const FAULT_WITHIN: Duration = Duration::from_secs(30);

/// What a fault must look like: exit code, and what its one line contains.
type Expected<'a> = (i32, &'a [&'a str]);

/// Runs a command that must fail at once.
fn fails(command: &mut Command, (code, parts): Expected<'_>) {
    let text = format!("{command:?}");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_for("the fault", FAULT_WITHIN, || child.try_wait().expect("our own child"))
    }));
    if ended.is_err() {
        let _ = child.kill();
        panic!("it goes on where it should fail: {text}");
    }
    let Output { status, stderr, .. } = child.wait_with_output().expect("our own child");
    let stderr = String::from_utf8(stderr).expect("text");
    assert_eq!(status.code(), Some(code), "{text}\n{stderr}");
    let lines: Vec<&str> = stderr.lines().filter(|line| line.starts_with("dwcp: ")).collect();
    assert_eq!(lines.len(), 1, "one line says it: {text}\n{stderr}");
    assert!(!stderr.contains("panicked") && !stderr.contains("broken"), "{stderr}");
    for part in parts {
        assert!(lines[0].contains(part), "'{part}' is missing in '{}'\n{text}", lines[0]);
    }
}

/// The binary with arguments in one string.
fn dwcp(words: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dwcp"));
    command.args(words.split_whitespace());
    command
}

/// A folder with certificates and the spec of a daemon that would start.
fn good() -> (DaemonSpec, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let pki = Pki::init(folder.path().join("ca")).host(SOURCE);
    let home = folder.path().join("daemon");
    std::fs::create_dir(&home).expect("a folder");
    (DaemonSpec::new(&home, Some(pki)), folder)
}

/// A daemon that would start but for the given flags must not.
fn daemon_fails(spec: &DaemonSpec, flags: &[&str], expected: Expected<'_>) {
    fails(&mut spec.clone().with(flags).command(free_address()), expected);
}

#[test]
fn wrong_words_end_with_code_2() {
    let cases: [(&str, &[&str]); 9] = [
        ("", &["--help"]),
        ("frobnicate", &["'frobnicate'", "--help"]),
        ("statsu", &["'statsu'", "'status'"]),
        ("daemon --steams 4", &["'--steams'", "'--streams'"]),
        ("daemon --streams 0 --pki x", &["--streams", "1 to 64"]),
        ("daemon --poll sometimes --pki x", &["--poll", "park"]),
        ("daemon", &["--pki", "dwcp pki host"]),
        ("daemon --pki x --insecure-plaintext", &["--pki", "leave one"]),
        ("cancel", &["<ID>", "--help"]),
    ];
    for (words, parts) in cases {
        fails(&mut dwcp(words), (2, parts));
    }
}

#[test]
fn a_wrong_file_of_settings_tells_every_fault_with_its_line() {
    let (spec, folder) = good();
    let path = folder.path().join("dwcp.toml");
    std::fs::write(&path, "zstd-level = 99\nfrob = 1\nwindow = \"0\"\n").expect("a file");
    let flag = path.to_str().expect("text");
    let output = spec.clone().with(&["--config", flag]).command(free_address()).output();
    let output = output.expect("it runs");
    let text = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(2), "{text}");
    for part in ["dwcp.toml:1: 'zstd-level'", "dwcp.toml:2: 'frob'"] {
        assert!(text.lines().any(|line| line.contains(part)), "{part} is missing in {text}");
    }
    daemon_fails(&spec, &["--config", "no-such-file"], (2, &["no-such-file", "--config"]));
}

#[test]
fn budgets_that_do_not_fit_are_refused_with_the_arithmetic() {
    let (spec, _folder) = good();
    let memory = ["--memory", "64MiB", "--window", "1GiB"];
    daemon_fails(&spec, &memory, (2, &["1GiB window", "raise --memory"]));
    daemon_fails(&spec, &["--cores", "9999"], (3, &["core 9999", "these may"]));
}

#[test]
fn missing_files_and_folders_are_named_with_the_cure() {
    let (spec, folder) = good();
    let missing = DaemonSpec { pki: Some(folder.path().join("none")), ..spec.clone() };
    daemon_fails(&missing, &[], (3, &["none/ca.pem", "dwcp pki"]));
    let pki = spec.pki.clone().expect("certificates");
    let key = std::fs::read(pki.join("host.key")).expect("a key");
    std::fs::write(pki.join("host.key"), "no key").expect("a file");
    daemon_fails(&spec, &[], (3, &["host.key", "PEM"]));
    std::fs::write(pki.join("host.key"), key).expect("a file");
    let state = folder.path().join("state");
    std::fs::write(&state, "").expect("a file where a folder should be");
    let state = state.to_str().expect("text");
    let mut unusable = dwcp("daemon --listen 127.0.0.1:0 --state");
    unusable.arg(format!("{state}/below")).arg("--pki").arg(&pki);
    unusable.arg("--socket").arg(spec.socket());
    fails(&mut unusable, (3, &["state/below", "--state"]));
    let mut nowhere = dwcp("daemon --listen 127.0.0.1:0 --pki");
    nowhere.arg(pki).arg("--state").arg(folder.path().join("journal"));
    nowhere.arg("--socket").arg(folder.path().join("none/socket"));
    fails(&mut nowhere, (3, &["none/socket", "make the directory"]));
}

#[test]
fn a_port_in_use_is_named_with_the_cure() {
    let (spec, _folder) = good();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    let mut command = Command::new(env!("CARGO_BIN_EXE_dwcp"));
    command.args(["daemon", "--listen", &address.to_string(), "--socket"]).arg(spec.socket());
    command.arg("--state").arg(spec.folder.join("state"));
    command.arg("--pki").arg(spec.pki.as_ref().expect("certificates"));
    fails(&mut command, (3, &[&address.to_string(), "in use", "another port"]));
    fails(&mut spec.command(address), (3, &[&address.to_string(), "in use", "another port"]));
}

#[test]
fn a_live_socket_is_not_taken_over_and_a_stale_one_is_replaced() {
    let (spec, folder) = good();
    let mut first = Daemon::start(spec.clone());
    let mode = std::fs::metadata(spec.socket()).expect("a socket").permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    // Another state folder, so that the socket is what they quarrel about.
    let state = folder.path().join("other");
    let mut second = Command::new(env!("CARGO_BIN_EXE_dwcp"));
    second.args(["daemon", "--listen", "127.0.0.1:0", "--socket"]).arg(spec.socket());
    second.arg("--state").arg(&state).arg("--pki").arg(spec.pki.as_ref().expect("certificates"));
    fails(&mut second, (3, &["socket", "another"]));
    first.must("status", json!({}));
    daemon_fails(&spec, &["--memory", "257MiB"], (3, &[]));
    first.must("status", json!({}));
    first.kill();
    assert!(spec.socket().exists(), "a killed daemon leaves its socket behind");
    first.restart();
    first.must("status", json!({}));
    drop(first);
    std::fs::remove_file(spec.socket()).expect("a socket");
    std::fs::write(spec.socket(), "precious").expect("a file");
    daemon_fails(&spec, &[], (3, &["not a socket", "another --socket"]));
    assert_eq!(std::fs::read(spec.socket()).expect("a file"), b"precious");
}

#[test]
fn commands_without_a_daemon_end_with_code_4() {
    let (spec, _folder) = good();
    let mut with_socket = |words: &str| {
        let mut command = dwcp(words);
        command.arg("--socket").arg(spec.socket());
        fails(&mut command, (4, &["no daemon listens", "dwcp daemon"]));
    };
    ["status", "sessions", "net", "config", "daemon info", "cancel 12"]
        .into_iter()
        .for_each(&mut with_socket);
    // A socket that nobody serves any more is no daemon either.
    drop(UnixListener::bind(spec.socket()).expect("a socket"));
    with_socket("status");
}

#[test]
fn refusals_of_the_daemon_end_with_code_1() {
    let lab = Lab::start(&[]);
    let mut command = dwcp("cancel 00112233445566778899aabbccddeeff");
    command.arg("--socket").arg(lab.source.spec.socket());
    fails(&mut command, (1, &["no session", "session_unknown"]));
    let mut command = dwcp("config set streams 8");
    command.arg("--socket").arg(lab.source.spec.socket());
    fails(&mut command, (1, &["streams", "setting_fixed"]));
}

/// Runs what follows with so much lockable memory, and without the right to exceed it.
fn with_lockable(bytes: &str) -> Command {
    let mut command = Command::new("prlimit");
    command.arg(format!("--memlock={bytes}")).args(["setpriv", "--bounding-set", "-ipc_lock"]);
    command.args(["--inh-caps", "-ipc_lock"]);
    command
}

#[test]
fn too_little_locked_memory_is_named_with_the_cure() {
    let (spec, _folder) = good();
    let (mut arena, mut ring) = (with_lockable("1048576"), with_lockable("4096"));
    let required = spec.clone().with(&["--lock-memory", "require"]);
    let Some(arena) = wrapped(&mut arena, &required) else { return };
    fails(arena, (3, &["locked memory", "1MiB", "ulimit -l"]));
    // The kernel charges the rings themselves as well.
    let Some(ring) = wrapped(&mut ring, &spec) else { return };
    fails(ring, (3, &["ring", "ulimit -l"]));
}

#[test]
fn a_daemon_that_need_not_lock_its_memory_serves_without_the_right_to() {
    let (spec, _folder) = good();
    let mut wrapper = with_lockable("8388608");
    let Some(command) = wrapped(&mut wrapper, &spec) else { return };
    let log = std::fs::File::create(spec.log()).expect("a log");
    let mut child = command.stderr(log).spawn().expect("it starts");
    let socket = spec.socket();
    let served = std::panic::catch_unwind(|| {
        wait_for("its socket", FAULT_WITHIN, || Client::try_connect(&socket).ok())
    });
    child.kill().expect("our own child");
    child.wait().expect("our own child");
    let log = std::fs::read_to_string(spec.log()).expect("a log");
    assert!(served.is_ok(), "{log}");
}

#[test]
fn too_few_descriptors_are_named_with_the_cure() {
    let (spec, _folder) = good();
    let mut command = Command::new("prlimit");
    command.arg("--nofile=100:100");
    let Some(command) = wrapped(&mut command, &spec) else { return };
    fails(command, (3, &["descriptors", "100", "ulimit -Hn"]));
}

/// Runs a program with one system call refused, by a seccomp filter that it inherits.
const REFUSE_CALL: &str = r#"
import ctypes, os, struct, sys
call, error = int(sys.argv[1]), int(sys.argv[2])
def step(code, on_true, on_false, value):
    return struct.pack("HBBI", code, on_true, on_false, value)
# Load the call's number; refuse it with the error if it is the one, else allow it.
steps = (step(0x20, 0, 0, 0) + step(0x15, 0, 1, call)
         + step(0x06, 0, 0, 0x00050000 | error) + step(0x06, 0, 0, 0x7fff0000))
code = ctypes.create_string_buffer(steps)
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_void_p)]
found = Filter(len(steps) // 8, ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
if (libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        or libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(found), 0, 0)):
    sys.exit("seccomp is not there")
os.execv(sys.argv[3], sys.argv[3:])
"#;

/// `io_uring_setup`, the same number on every architecture.
const IO_URING_SETUP: &str = "425";

#[test]
fn a_kernel_without_io_uring_is_named_with_the_cure() {
    // ENOSYS: not compiled in. EPERM: forbidden by the sandbox.
    for error in ["38", "1"] {
        let (spec, _folder) = good();
        let mut command = Command::new("python3");
        command.args(["-c", REFUSE_CALL, IO_URING_SETUP, error]);
        let Some(command) = wrapped(&mut command, &spec) else { return };
        fails(command, (3, &["io_uring", "dwcp doctor"]));
    }
}

/// Appends the daemon's own command to a wrapper's, if the wrapper works on this machine.
fn wrapped<'a>(wrapper: &'a mut Command, spec: &DaemonSpec) -> Option<&'a mut Command> {
    let arguments = |command: &Command| -> Vec<_> {
        command.get_args().map(std::ffi::OsStr::to_owned).collect()
    };
    let trial = Command::new(wrapper.get_program())
        .args(arguments(wrapper))
        .arg(first_in_path("true")?)
        .output();
    if !trial.as_ref().is_ok_and(|output| output.status.success()) {
        println!("skipped: {wrapper:?} does not work here: {trial:?}");
        return None;
    }
    let daemon = spec.command(free_address());
    wrapper.arg(daemon.get_program()).args(arguments(&daemon));
    Some(wrapper)
}

/// Where a program is.
fn first_in_path(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|folder| folder.join(program));
    let found = { found }.find(|path: &std::path::PathBuf| Path::is_file(path));
    if found.is_none() {
        println!("skipped: there is no program '{program}'");
    }
    found
}
