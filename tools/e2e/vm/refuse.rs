//! What does not fit is refused before the guest is touched, with everything that does not fit.

use super::harness::{At, Hosts, NAME, Told, path, told};
use super::pair::Pair;
use dwcp_tools::lab::{Guest, Vm, VmConfig};
use serde_json::json;

/// A migration that must be refused, with a word of why.
fn refused(hosts: &Hosts, words: &[&str]) -> Told {
    let end = hosts.start_migrate(At::A, &[]).finish();
    assert_ne!(end.code, Some(0), "{end:?}");
    for word in words {
        assert!(end.stderr.contains(word), "no {word} in {end:?}");
    }
    end
}

#[test]
fn what_does_not_fit_is_refused_and_the_guest_is_not_touched() {
    let Some(hosts) = Hosts::up("rate=1g delay=2ms") else { return };
    let guest = Guest::new(&hosts.lab, "idle").unwrap().with_ram_mib(96);
    let mut source = hosts.boot(&guest, At::A, &[]);
    refused(&hosts, &[NAME]);

    let waiting = VmConfig { incoming: true, paused: true, ..hosts.config(At::B) };
    let larger = Guest::new(&hosts.lab, "idle").unwrap().with_ram_mib(128);
    let unlike = [
        (&larger, waiting, vec!["100663296", "134217728"]),
        (&guest, VmConfig { options: &["-machine", "q35"], ..waiting }, vec!["machine type"]),
        (&guest, VmConfig { incoming: false, ..waiting }, vec!["-incoming defer"]),
    ];
    for (guest, config, words) in unlike {
        let sink = Vm::start(guest, config).unwrap();
        hosts.attach_sink(&sink, At::B);
        let end = refused(&hosts, &words);
        println!("{}", end.stderr);
    }
    let other = VmConfig { options: &["-machine", "q35", "-smp", "2"], ..waiting };
    let sink = Vm::start(&larger, other).unwrap();
    hosts.attach_sink(&sink, At::B);
    let end = refused(&hosts, &[]);
    for word in ["100663296", "machine type", "virtual CPUs"] {
        assert!(end.stderr.contains(word), "the whole list: {word} in {end:?}");
    }

    hosts.detach(At::A);
    refused(&hosts, &[NAME]);
    assert_eq!(source.qmp().status().unwrap(), "running");
    let stops = source.qmp().events().unwrap().iter().filter(|it| it.name == "STOP").count();
    assert_eq!(stops, 0);
}

/// The memory that a session takes is reserved before the sink's QEMU is asked for anything.
#[test]
fn a_sink_without_the_memory_for_a_session_says_what_it_lacks_before_the_first_byte() {
    let Some(mut hosts) = Hosts::up("rate=1g delay=2ms") else { return };
    let guest = Guest::new(&hosts.lab, "idle").unwrap().with_ram_mib(96);
    let mut pair = Pair::boot(&hosts, &guest, At::A);
    let sink = hosts.daemon_mut(At::B);
    sink.kill();
    let enough = sink.spec.flags.clone();
    sink.spec.flags = ["--memory", "128MiB"].map(str::to_owned).into();
    sink.restart();
    let words = ["this session needs", "bytes are reserved already", "(memory_budget)"];
    let parts = ["tables", "bases", "undelivered", "zstd window"];
    let end = refused(&hosts, &[words.as_slice(), &parts].concat());
    println!("{}", end.stderr);
    assert_eq!(pair.states(), ("running".to_owned(), "inmigrate".to_owned()));
    assert_eq!(pair.look(), 1);
    assert!(pair.source.qmp().stamp_of("STOP").is_none(), "the guest was not touched");
    let migration = pair.sink.qmp().execute("query-migrate", json!({})).unwrap();
    assert!(migration["status"].is_null(), "not a byte came: {migration}");

    let sink = hosts.daemon_mut(At::B);
    sink.kill();
    sink.spec.flags = enough;
    sink.restart();
    hosts.migrate(At::A, &[]);
    pair.assert_runs_at_sink();
}

/// Without `-S` QEMU itself would run the guest as soon as it is loaded: finding B.
#[test]
fn a_sink_without_its_pause_never_runs_the_guest_before_the_commit() {
    let Some(hosts) = Hosts::up("rate=1g delay=2ms") else { return };
    let guest = Guest::new(&hosts.lab, "idle").unwrap().with_ram_mib(96);
    let config = VmConfig { incoming: true, ..hosts.config(At::B) };
    let mut sink = Vm::start(&guest, config).unwrap();
    hosts.attach_sink(&sink, At::B);
    let mut source = hosts.boot(&guest, At::A, &[]);
    hosts.migrate(At::A, &["--paused"]);
    assert_eq!(sink.qmp().status().unwrap(), "paused");
    assert_eq!(source.qmp().status().unwrap(), "postmigrate");
    let resumed = sink.qmp().events().unwrap().iter().any(|event| event.name == "RESUME");
    assert!(!resumed, "the guest ran at the sink");
    sink.qmp().execute("cont", json!({})).unwrap();
    sink.wait_for("TICK", super::harness::MOVE_MAX).unwrap();
}

/// How many pages QEMU has compressed by xbzrle in the migration that has ended.
fn xbzrle_pages(vm: &mut Vm) -> u64 {
    let answer = vm.qmp().execute("query-migrate", json!({})).unwrap();
    answer["xbzrle-cache"]["pages"].as_u64().expect("its counters, since it is on")
}

#[test]
fn a_guest_moves_once_at_a_time_and_qemus_own_compression_is_carried_and_said() {
    let Some(hosts) = Hosts::up("rate=30m delay=5ms") else { return };
    // It writes more than the link carries, so that there are rounds enough for xbzrle.
    let guest = Guest::new(&hosts.lab, "dirty:24,3000,3").unwrap().with_ram_mib(96);
    let mut pair = Pair::boot(&hosts, &guest, At::A);
    let on = |vm: &mut Vm, name: &str, on: bool| {
        let list = json!({"capabilities": [{"capability": name, "state": on}]});
        vm.qmp().execute("migrate-set-capabilities", list).unwrap();
    };
    let mut listener = hosts.listen(At::A);
    on(&mut pair.source, "xbzrle", true);
    let first = hosts.start_migrate(At::A, &[]);
    told(&mut listener, "a later round", |method, params| {
        method == "session.progress" && params["vm"]["rounds"].as_u64() >= Some(3)
    });
    let to = hosts.daemon(At::B).listen.to_string();
    let second = hosts.run(At::A, &["migrate", NAME, "--to", &to]);
    assert_eq!(second.status.code(), Some(1), "{second:?}");
    let said = String::from_utf8_lossy(&second.stderr);
    let session = hosts.record(At::A).expect("a record")["session"].clone();
    let session = session.as_str().expect("a session");
    for word in [session, "uses virtual machine", "wait for its session to end", "[vm_busy]"] {
        assert!(said.contains(word), "no {word} in {said}");
    }
    hosts.link("rate=1g");
    let end = first.finish();
    assert_eq!(end.code, Some(0), "{end:?}");
    assert_eq!(end.json["opaque"], "qemu-xbzrle", "{end:?}");
    assert!(xbzrle_pages(&mut pair.source) > 0, "it is what QEMU did");
    let warned = |words: &str| words.contains("warning: QEMU's own xbzrle is on");
    assert!(warned(&end.stderr), "{end:?}");
    assert_eq!(end.json["warnings"][0]["code"], "carried_opaque", "{end:?}");
    pair.assert_runs_at_sink();

    let mut pair = pair.turn(&hosts);
    on(&mut pair.source, "xbzrle", false);
    for vm in [&mut pair.source, &mut pair.sink] {
        on(vm, "multifd", true);
        vm.qmp().execute("migrate-set-parameters", json!({"multifd-channels": 2})).unwrap();
    }
    let said = hosts.migrate(At::B, &["--paused"]);
    assert!(said["opaque"].is_string(), "carried opaque, and said so: {said}");
    pair.assert_same_memory();

    // A paused guest needs one pass, and xbzrle begins in the second: all of it is coded.
    let mut pair = pair.turn(&hosts);
    on(&mut pair.source, "multifd", false);
    on(&mut pair.source, "xbzrle", true);
    let end = hosts.start_migrate(At::A, &[]).finish();
    assert_eq!((end.code, xbzrle_pages(&mut pair.source)), (Some(0), 0), "{end:?}");
    assert!(end.json["opaque"].is_null() && warned(&end.stderr), "{end:?}");
    pair.assert_same_memory();
    pair.sink.qmp().execute("cont", json!({})).unwrap();
    pair.assert_runs_at_sink();
}

#[test]
fn qemus_own_tls_is_carried_and_said() {
    let Some(hosts) = Hosts::up("rate=1g delay=5ms") else { return };
    let guest = Guest::new(&hosts.lab, "dirty:24,400,3").unwrap().with_ram_mib(96);
    let mut pair = Pair::boot(&hosts, &guest, At::A);
    let folder = tempfile::tempdir().expect("a folder");
    let keys = folder.path().join("keys.psk");
    std::fs::write(keys, "qemu:30313233343536373839616263646566\n").expect("a file");
    for (vm, endpoint) in [(&mut pair.source, "client"), (&mut pair.sink, "server")] {
        let dir = path(folder.path());
        let object =
            json!({"qom-type": "tls-creds-psk", "id": "tls0", "endpoint": endpoint, "dir": dir});
        vm.qmp().execute("object-add", object).unwrap();
        vm.qmp().execute("migrate-set-parameters", json!({"tls-creds": "tls0"})).unwrap();
    }
    let said = hosts.migrate(At::A, &["--paused"]);
    assert!(said["opaque"].is_string(), "carried opaque, and said so: {said}");
    let warning = &said["warnings"][0]["message"];
    assert!(warning.as_str().is_some_and(|text| text.contains("QEMU's own TLS is on")), "{said}");
    pair.assert_same_memory();
    pair.sink.qmp().execute("cont", json!({})).unwrap();
    pair.assert_runs_at_sink();
}
