//! Clients of the control socket that misbehave: each is answered or dropped; others are served.

use crate::harness::client::{CallError, Client};
use crate::harness::daemon::{Daemon, DaemonSpec};
use crate::harness::memory::{MIB, Memory};
use crate::harness::{Rng, SOON, observe, wait_until};
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Clients at a time.
const CLIENTS_MAX: usize = 64;

/// How long a good client may wait for an answer while others misbehave.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// A daemon that needs no peer.
fn daemon() -> (Daemon, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let spec = DaemonSpec::new(&folder.path().join("daemon"), None);
    (Daemon::start(spec), folder)
}

/// A good client's call, in time.
fn good_call(client: &mut Client) {
    let started = Instant::now();
    let status = client.must("status", json!({}));
    assert_eq!(status["health"], "good");
    let took = started.elapsed();
    assert!(took < ANSWER_WITHIN, "a good client waited {took:?}");
}

/// Sends a line; its answer must be an error with this code.
fn refused(client: &mut Client, line: &[u8], code: &str) {
    client.send(line, &[]).expect("the line leaves");
    let answer = client.line(SOON).unwrap_or_else(|e| panic!("{code}: {e:?}"));
    assert_eq!(answer["error"]["data"]["code"], code, "{answer}");
    assert!(answer["error"]["code"].is_i64() && answer["error"]["message"].is_string());
}

#[test]
fn garbage_is_answered_line_by_line_and_the_connection_goes_on() {
    let (daemon, _folder) = daemon();
    let mut good = daemon.client();
    let mut bad = daemon.client();
    let cases: [(&[u8], &str); 14] = [
        (b"\x00\xff\xfe\n", "parse_error"),
        (b"hello\n", "parse_error"),
        (b"{\n", "parse_error"),
        (b"[]\n", "invalid_request"),
        (b"[{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"status\"}]\n", "invalid_request"),
        (b"7\n", "invalid_request"),
        (b"{\"id\":1,\"method\":\"status\"}\n", "invalid_request"),
        (b"{\"jsonrpc\":\"1.0\",\"id\":1,\"method\":\"status\"}\n", "invalid_request"),
        (b"{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"status\"}\n", "invalid_request"),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":7}\n", "invalid_request"),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"status\",\"more\":1}\n", "invalid_request"),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"reboot\"}\n", "method_unknown"),
        (b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"status\",\"params\":[]}\n", "params_invalid"),
        (
            b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"status\",\"params\":{\"x\":1}}\n",
            "params_invalid",
        ),
    ];
    for (line, code) in cases {
        refused(&mut bad, line, code);
        good_call(&mut good);
    }
    good_call(&mut bad);
    let counted = daemon.metrics().sum("dwcp_api_errors_total", &[]);
    assert!(counted >= cases.len() as f64, "{counted} errors were counted");
}

#[test]
fn wrong_parameters_of_every_method_are_refused() {
    let (daemon, _folder) = daemon();
    let mut client = daemon.client();
    let document = client.must("rpc.discover", json!({}));
    let methods = document["methods"].as_array().expect("methods").clone();
    assert!(methods.len() >= 17, "{} methods", methods.len());
    let values = [
        json!(null),
        json!(-1),
        json!(1e300),
        json!(""),
        json!("a".repeat(5000)),
        json!([[]]),
        json!({"a": {}}),
        json!(true),
    ];
    for method in &methods {
        let name = method["name"].as_str().expect("a name");
        let error = client.call(name, json!({"no_such_parameter": 1})).expect_err(name);
        assert_eq!(error.code(), "params_invalid", "{name}: {error:?}");
        let params = method["params"].as_array().expect("parameters");
        for param in params.iter().map(|param| param["name"].as_str().expect("a name")) {
            for value in &values {
                let answer = client.call(name, json!({param: value}));
                let closed = matches!(answer, Err(CallError::Closed | CallError::Late));
                assert!(!closed, "{name} {param} {value}: {answer:?}");
            }
        }
    }
    good_call(&mut client);
}

#[test]
fn unknown_names_and_wrong_descriptors_are_refused_with_a_cure() {
    let (daemon, folder) = daemon();
    let mut client = daemon.client();
    let unknown = json!({"session": "0".repeat(32)});
    for method in ["session.show", "session.abort", "session.round", "session.finish"] {
        let error = client.call(method, unknown.clone()).expect_err(method);
        assert_eq!(error.code(), "session_unknown");
    }
    let open = json!({"region": "none", "peer": "127.0.0.1:1"});
    assert_eq!(client.call("session.open", open).expect_err("none").code(), "region_unknown");
    let release = json!({"name": "none"});
    assert_eq!(client.call("region.release", release).expect_err("none").code(), "region_unknown");
    let params = json!({"name": "vm", "role": "source"});
    let error = client.call("region.register", params.clone()).expect_err("no descriptor");
    assert_eq!(error.code(), "descriptor_count");
    let path = folder.path().join("file");
    std::fs::write(&path, vec![0; 8192]).expect("a file");
    let file = std::fs::File::options().read(true).write(true).open(&path).expect("a file");
    let fds = [std::os::fd::AsFd::as_fd(&file)];
    let error =
        client.call_with_fds("region.register", params.clone(), &fds).expect_err("no memfd");
    assert_eq!(error.code(), "descriptor_unusable", "{error:?}");
    let memory = Memory::empty(MIB);
    let many = vec![memory.descriptors()[0]; 3];
    let error = client.call_with_fds("region.register", params.clone(), &many).expect_err("three");
    assert_eq!(error.code(), "descriptor_count");
    let fds = memory.descriptors();
    client.call_with_fds("region.register", params.clone(), &fds).expect("a good region");
    let error = client.call_with_fds("region.register", params, &fds).expect_err("a second one");
    assert_eq!(error.code(), "region_exists");
    let open = json!({"region": "vm", "peer": "127.0.0.1:1"});
    let error = client.call("session.open", open).expect_err("nobody listens there");
    assert_eq!(error.code(), "peer_unreachable");
    let regions = client.must("region.list", json!({}));
    assert!(regions[0]["session"].is_null(), "the region is free again: {regions}");
}

#[test]
fn a_request_of_two_mebibytes_is_refused_and_its_client_dropped() {
    let (daemon, _folder) = daemon();
    let mut good = daemon.client();
    let mut huge = daemon.client();
    // The daemon stops reading before the end, so the rest may not leave.
    let _ = huge.stream.write_all(&vec![b'a'; 2 << 20]);
    match huge.line(SOON) {
        Ok(answer) => assert_eq!(answer["error"]["data"]["code"], "request_too_long", "{answer}"),
        // The end of the connection may overtake the words.
        Err(error) => assert!(matches!(error, CallError::Closed), "{error:?}"),
    }
    good_call(&mut good);
    let dropped = || daemon.metrics().sum("dwcp_api_dropped_total", &["request_too_long"]) >= 1.0;
    wait_until("it is counted", SOON, dropped);
}

#[test]
fn half_a_request_held_open_holds_up_nobody() {
    let (daemon, _folder) = daemon();
    let mut good = daemon.client();
    let mut halves: Vec<Client> = (0..20).map(|_| daemon.client()).collect();
    let request = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"status\"}\n";
    for (index, half) in halves.iter_mut().enumerate() {
        half.send(&request[..1 + index], &[]).expect("a part leaves");
    }
    observe(Duration::from_millis(500), || good_call(&mut good));
    for (index, half) in halves.iter_mut().enumerate() {
        half.send(&request[1 + index..], &[]).expect("the rest leaves");
        assert_eq!(half.line(SOON).expect("an answer")["result"]["health"], "good");
    }
}

#[test]
fn of_two_hundred_clients_sixty_four_are_served_and_the_rest_told() {
    let (daemon, _folder) = daemon();
    let mut good = daemon.client();
    good_call(&mut good);
    let mut crowd: Vec<Client> = (0..200).map(|_| daemon.client()).collect();
    let mut served = Vec::new();
    let mut told = 0;
    for mut client in crowd.drain(..) {
        match client.call("daemon.info", json!({})) {
            Ok(_) => served.push(client),
            Err(CallError::Refused { code, .. }) => panic!("no answer to a call: {code}"),
            Err(_) => told += 1,
        }
    }
    assert_eq!(served.len(), CLIENTS_MAX - 1, "one place is taken");
    assert_eq!(told, 201 - CLIENTS_MAX);
    good_call(&mut good);
    let mut late = daemon.client();
    let answer = late.line(SOON).expect("a word");
    assert_eq!(answer["error"]["data"]["code"], "clients_too_many", "{answer}");
    served.iter_mut().for_each(good_call);
    drop(served);
    wait_until("their places are free", SOON, || daemon.client().call("status", json!({})).is_ok());
}

#[test]
fn a_client_that_never_reads_is_dropped_and_others_are_served() {
    let (daemon, _folder) = daemon();
    let mut good = daemon.client();
    let mut deaf = daemon.client();
    deaf.stream.set_nonblocking(true).expect("a socket");
    let request = b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"rpc.discover\"}\n";
    let is_dropped = |daemon: &Daemon| daemon.metrics().sum("dwcp_api_dropped_total", &[]) >= 1.0;
    wait_until("it is dropped", SOON, || {
        // Full buffers refuse; the end of the connection refuses for good.
        while deaf.stream.write(request).is_ok_and(|written| written == request.len()) {}
        good_call(&mut good);
        is_dropped(&daemon)
    });
    let resident = daemon.memory_bytes("RssAnon");
    assert!(resident < 200 * MIB, "{resident} bytes for one deaf client");
    good_call(&mut good);
}

#[test]
fn random_bytes_from_many_clients_change_nothing() {
    let (mut daemon, _folder) = daemon();
    let seed = 42;
    println!("seed {seed}");
    let mut rng = Rng(seed);
    let mut good = daemon.client();
    for _ in 0..60 {
        let mut client = daemon.client();
        let length = 1 + rng.below(4000);
        let mut bytes: Vec<u8> = (0..length).map(|_| rng.next().to_le_bytes()[0]).collect();
        bytes.push(b'\n');
        client.send(&bytes, &[]).expect("bytes leave");
        if rng.below(2) == 0 {
            // Half of them wait for a word, half hang up.
            client.stream.set_read_timeout(Some(SOON)).expect("a bound");
            let read = client.stream.read(&mut [0; 64]).expect("a word");
            assert!(read > 0, "an answer, not an end");
        }
        good_call(&mut good);
    }
    assert!(daemon.runs());
    let sessions: Value = good.must("session.list", json!({}));
    assert_eq!(sessions, json!([]));
}
