//! A guest that comes back costs what it has changed, and whatever becomes of what was kept of it,
//! it moves all the same and every page is right.

use super::harness::{At, Hosts, MOVE_MAX, NAME, path};
use super::pair::Pair;
use crate::harness::wait_until;
use dwcp_tools::lab::{Guest, Vm, VmConfig, ram};
use serde_json::{Value, json};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Its memory is 24 MiB that it writes to now and then, and what its kernel made of the rest.
const WORDS: &str = "dirty:24,40,3";

/// Does something to what a host keeps.
type Spoil = fn(&Hosts, At);

fn coded_bytes(told: &Value) -> u64 {
    told["counters"]["coded_bytes"].as_u64().expect("a counter")
}

/// What a host keeps of the guest.
fn kept(hosts: &Hosts, at: At) -> Vec<Value> {
    let list = hosts.must(at, &["store", "ls"]);
    let of_guest = |it: &&Value| it["name"] == json!(NAME);
    list.as_array().expect("a list").iter().filter(of_guest).cloned().collect()
}

/// Waits until both hosts have kept what so many sessions left.
fn wait_landed(hosts: &Hosts, times: u64) {
    wait_until("both hosts to keep what the guest left", MOVE_MAX, || {
        let landed = |at| hosts.must(at, &["store", "stats"])["landed"].as_u64();
        [At::A, At::B].into_iter().all(|at| landed(at) >= Some(times))
    });
}

/// The same of one guest, of which the newest alone is kept.
fn wait_kept(hosts: &Hosts, times: u64) {
    wait_landed(hosts, times);
    for at in [At::A, At::B] {
        assert_eq!(kept(hosts, at).len(), 1, "the newest takes the place of the one before");
    }
}

/// The file of what a host keeps.
fn segment(hosts: &Hosts, at: At) -> PathBuf {
    let folder = hosts.daemon(at).spec.folder.join("state/store");
    let files = std::fs::read_dir(&folder).expect("the store's folder");
    let mut files = files.map(|entry| entry.expect("an entry").path());
    files.find(|file| file.metadata().is_ok_and(|it| it.len() > 1 << 20)).expect("a segment")
}

#[test]
fn a_guest_that_comes_back_costs_what_it_has_changed() {
    let Some(mut hosts) = Hosts::up("rate=1g delay=5ms") else { return };
    let guest = Guest::new(&hosts.lab, WORDS).unwrap().with_ram_mib(96);
    let mut pair = Pair::boot(&hosts, &guest, At::A);
    let first = hosts.migrate(At::A, &[]);
    assert!(first["before_pages"].is_null(), "{first}");
    pair.assert_runs_at_sink();
    wait_kept(&hosts, 1);

    // Back, and every page is right.
    pair = pair.turn(&hosts);
    let back = hosts.migrate(pair.from, &["--paused"]);
    println!("{} bytes, back {}: {back}", coded_bytes(&first), coded_bytes(&back));
    assert!(back["before_pages"].as_u64() > Some(1000), "{back}");
    assert!(coded_bytes(&back) * 2 < coded_bytes(&first), "{first} {back}");
    pair.assert_same_memory();
    pair.sink.qmp().execute("cont", json!({})).unwrap();
    pair.assert_runs_at_sink();
    wait_kept(&hosts, 2);

    // What is kept is there after a crash.
    pair = pair.turn(&hosts);
    for at in [At::A, At::B] {
        hosts.daemon_mut(at).kill();
        hosts.daemon_mut(at).restart();
    }
    let again = hosts.migrate(pair.from, &["--paused"]);
    assert!(again["before_pages"].as_u64() > Some(1000), "{again}");
    assert!(coded_bytes(&again) * 2 < coded_bytes(&first), "{first} {again}");
    pair.assert_same_memory();
    pair.sink.qmp().execute("cont", json!({})).unwrap();
    pair.assert_runs_at_sink();
}

#[test]
fn whatever_becomes_of_what_was_kept_the_guest_moves() {
    let Some(hosts) = Hosts::up("rate=1g delay=5ms") else { return };
    let guest = Guest::new(&hosts.lab, WORDS).unwrap().with_ram_mib(96);
    let mut pair = Pair::boot(&hosts, &guest, At::A);
    hosts.migrate(At::A, &[]);
    wait_kept(&hosts, 1);
    let spoil: [(&str, Spoil); 3] = [
        ("removed", |hosts, at| {
            assert_eq!(hosts.must(at, &["store", "rm", NAME])["removed"], 1);
        }),
        ("damaged", |hosts, at| {
            let file = std::fs::File::options().write(true).open(segment(hosts, at));
            file.and_then(|file| file.write_all_at(&[0x5a; 4096], 1 << 19)).expect("our file");
        }),
        ("gone", |hosts, at| std::fs::remove_file(segment(hosts, at)).expect("our file")),
    ];
    for (round, (how, spoil)) in (2..).zip(spoil) {
        pair = pair.turn(&hosts);
        // At the source and at the sink in turn.
        let at = if round % 2 == 0 { pair.from } else { pair.to() };
        spoil(&hosts, at);
        let told = hosts.migrate(pair.from, &["--paused"]);
        assert!(told["before_pages"].is_null(), "{how}: {told}");
        pair.assert_same_memory();
        pair.sink.qmp().execute("cont", json!({})).unwrap();
        pair.assert_runs_at_sink();
        wait_kept(&hosts, round);
    }
    // Nothing is kept where nothing shall be.
    assert!(hosts.must(At::A, &["store", "rm", "--all"])["removed"].as_u64() >= Some(1));
    assert!(kept(&hosts, At::A).is_empty());
}

/// Moves a guest of a label that has just booted at A to B, and ends it there. What the command
/// said.
fn move_another(hosts: &Hosts, guest: &Guest, name: &str, label: &[&str]) -> Value {
    let config = VmConfig { incoming: true, paused: true, ..hosts.config(At::B) };
    let (mut source, mut sink) =
        (Vm::start(guest, hosts.config(At::A)).unwrap(), Vm::start(guest, config).unwrap());
    source.wait_ready(guest).unwrap();
    let qmp = [source.qmp_path(), sink.qmp_path()];
    let attach = |at, qmp: &PathBuf, words: &[&str]| {
        let attach = ["vm", "attach", name, "--qmp", path(qmp)];
        hosts.must(at, &[attach.as_slice(), label, words].concat());
    };
    attach(At::A, &qmp[0], &[]);
    attach(At::B, &qmp[1], &["--incoming", "--accept-from", At::A.host()]);
    let to = hosts.daemon(At::B).listen.to_string();
    let told = hosts.must(At::A, &["migrate", name, "--to", &to, "--paused"]);
    let [left, right] = [&source, &sink].map(|vm| vm.ram_file().unwrap());
    assert!(ram::differing_pages(&left, &right).unwrap().is_empty(), "{told}");
    assert_eq!(sink.qmp().status().unwrap(), "paused");
    told
}

#[test]
fn guests_of_one_label_share_what_is_kept_and_others_do_not() {
    let Some(hosts) = Hosts::up("rate=1g delay=5ms") else { return };
    let guest = Guest::new(&hosts.lab, "idle").unwrap().with_ram_mib(96);
    let label = ["--trust-domain", "blue"];
    let first = move_another(&hosts, &guest, "blue1", &label);
    assert!(first["before_pages"].is_null(), "{first}");
    wait_landed(&hosts, 1);
    let second = move_another(&hosts, &guest, "blue2", &label);
    wait_landed(&hosts, 2);
    println!("{} bytes, of its label {}", coded_bytes(&first), coded_bytes(&second));
    assert!(second["before_pages"].as_u64() > Some(1000), "{second}");
    assert!(coded_bytes(&second) * 2 < coded_bytes(&first), "{first} {second}");
    // The same image, and not the same owner: it gets nothing, and its bytes tell nothing.
    for (name, label) in [("red", &["--trust-domain", "red"][..]), ("plain", &[])] {
        let told = move_another(&hosts, &guest, name, label);
        assert!(told["before_pages"].is_null(), "{told}");
        let (bytes, usual) = (coded_bytes(&told), coded_bytes(&first));
        assert!(bytes * 10 > usual * 9 && bytes * 9 < usual * 10, "{bytes} as {usual}: {told}");
    }
}

/// Counters of a migration: coded bytes, bytes told of what the sink alone holds, pages named so.
fn held_counters(told: &Value) -> [u64; 3] {
    ["coded_bytes", "told_bytes", "held_pages"]
        .map(|name| told["counters"][name].as_u64().expect("a counter"))
}

/// What the sink alone knew made it cost no more than so many tenths, and to be told of it cost
/// next to nothing.
fn assert_known_at_sink(what: &str, (first, tenths): (&Value, u64), told: &Value) {
    let usual = coded_bytes(first);
    let [bytes, told_bytes, pages] = held_counters(told);
    let saved = usual.saturating_sub(bytes);
    println!(
        "{what}: {bytes} bytes of {usual}, {pages} pages named, {told_bytes} bytes told: {:.2} % \
         of what that saved",
        told_bytes as f64 * 100.0 / saved.max(1) as f64
    );
    assert!(told["before_pages"].is_null() && pages > 1000, "{what}: {told}");
    assert!(bytes * 10 <= usual * tenths, "{what}: {bytes} of {usual}: {told}");
    assert!(told_bytes > 0 && told_bytes * 100 < saved, "{what}: {told_bytes} for {saved}");
}

#[test]
fn a_guest_whose_source_has_lost_what_it_left_is_known_at_the_sink_all_the_same() {
    let Some(hosts) = Hosts::up("rate=100m delay=5ms") else { return };
    let guest = Guest::new(&hosts.lab, WORDS).unwrap().with_ram_mib(96);
    let mut pair = Pair::boot(&hosts, &guest, At::A);
    let first = hosts.migrate(At::A, &[]);
    wait_kept(&hosts, 1);
    pair = pair.turn(&hosts);
    assert_eq!(hosts.must(pair.from, &["store", "rm", "--all"])["removed"], 1);
    let back = hosts.migrate(pair.from, &["--paused"]);
    assert_known_at_sink("itself at the sink", (&first, 3), &back);
    pair.assert_same_memory();
    pair.sink.qmp().execute("cont", json!({})).unwrap();
    pair.assert_runs_at_sink();
}

/// Three of five pages of this guest are those of another one that booted from its image; those
/// that differ a little are sent whole, since the source has no bytes to make the difference of.
const OF_A_SIBLING: u64 = 5;

#[test]
fn what_the_sink_alone_holds_serves_guests_of_its_label_and_no_others() {
    let Some(hosts) = Hosts::up("rate=100m delay=5ms") else { return };
    let guest = Guest::new(&hosts.lab, "idle").unwrap().with_ram_mib(96);
    let blue = ["--trust-domain", "blue"];
    let first = move_another(&hosts, &guest, "blue1", &blue);
    assert_eq!(held_counters(&first)[1..], [0, 0], "{first}");
    wait_landed(&hosts, 1);
    // The source knows nothing of it any more, as if it had come to the sink from elsewhere.
    let forget = |at: At| hosts.must(at, &["store", "rm", "--all"]);
    assert_eq!(forget(At::A)["removed"], 1);
    let second = move_another(&hosts, &guest, "blue2", &blue);
    assert_known_at_sink("its sibling at the sink", (&first, OF_A_SIBLING), &second);
    wait_landed(&hosts, 2);

    // A snapshot that an operator adds at the sink, and nothing of any guest.
    let mut vm = Vm::start(&guest, hosts.config(At::B)).unwrap();
    vm.wait_ready(&guest).unwrap();
    vm.qmp().execute("stop", json!({})).unwrap();
    let file = vm.ram_file().unwrap();
    let words = ["store", "add", path(&file), "--name", "snapshot", "--trust-domain", "red"];
    [At::A, At::B].into_iter().for_each(|at| drop(forget(at)));
    let added = hosts.must(At::B, &words);
    assert!(added["pages"].as_u64() > Some(1000), "{added}");
    drop(vm);
    let red = move_another(&hosts, &guest, "red", &["--trust-domain", "red"]);
    assert_known_at_sink("an image at the sink", (&first, OF_A_SIBLING), &red);

    // The same image, and not the same owner: it gets nothing, and its bytes tell nothing.
    for (name, label) in [("green", &["--trust-domain", "green"][..]), ("plain", &[])] {
        let told = move_another(&hosts, &guest, name, label);
        let [bytes, told_bytes, pages] = held_counters(&told);
        let usual = coded_bytes(&first);
        assert_eq!([told_bytes, pages], [0, 0], "{told}");
        assert!(bytes * 10 > usual * 9 && bytes * 9 < usual * 10, "{bytes} as {usual}: {told}");
    }
}
