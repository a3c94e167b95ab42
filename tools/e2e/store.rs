//! Images that an operator gives to a daemon: what is kept of them, what is shown, and what is
//! refused, with its cure.

use crate::harness::daemon::{Daemon, DaemonSpec};
use crate::harness::pki::Pki;
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};
use tempfile::TempDir;

const PAGE_BYTES: usize = 4096;

/// Bytes that zstd makes nothing of, the same for the same page.
fn noise(page: u64) -> Vec<u8> {
    let mut state = page.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..PAGE_BYTES / 8).flat_map(|_| next()).collect()
}

fn start(flags: &[&str]) -> (Daemon, TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let pki = Pki::init(folder.path().join("pki"));
    let spec = DaemonSpec::new(&folder.path().join("a"), Some(pki.host("host-a")));
    (Daemon::start(spec.with(flags)), folder)
}

fn run(daemon: &Daemon, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dwcp"));
    command.arg("store").args(words).arg("--socket").arg(daemon.spec.socket());
    command.output().expect("the binary runs")
}

fn must(daemon: &Daemon, words: &[&str]) -> Value {
    let output = run(daemon, &[words, &["--json"]].concat());
    assert!(output.status.success(), "{words:?}: {output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

fn add(daemon: &Daemon, file: &Path, words: &[&str]) -> Output {
    let file = file.to_str().expect("our paths are text");
    run(daemon, &[&["add", file, "--trust-domain", "blue"], words].concat())
}

#[test]
fn an_image_is_kept_without_its_zeros_and_its_repeated_pages_until_it_is_removed() {
    let (mut daemon, folder) = start(&[]);
    let file = folder.path().join("debian 13.raw");
    let pages: Vec<Vec<u8>> = (0..2000).map(|page| noise(page % 1500)).collect();
    let zeros = vec![0; 3000 * PAGE_BYTES];
    std::fs::write(&file, [pages.concat(), zeros, b"the end".to_vec()].concat()).expect("a file");
    let output = add(&daemon, &file, &[]);
    let said = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{said}");
    assert!(said.contains("debian-13.raw") && said.contains("1501"), "{said}");
    let list = must(&daemon, &["ls"]);
    let image = &list[0];
    assert_eq!(list.as_array().map(Vec::len), Some(1), "{list}");
    let kept = |name| image[name].as_str().expect("a word");
    assert_eq!(
        [kept("name"), kept("kind"), kept("trust_domain")],
        ["debian-13.raw", "image", "blue"]
    );
    assert_eq!(image["pages"], 1501);
    assert!(image["bytes"].as_u64() > Some(1500 * 4096), "{image}");
    assert_eq!(must(&daemon, &["stats"])["pages"], 1501);

    // Another one of its name and label takes its place; of another label it stands beside it.
    std::fs::write(&file, noise(7)).expect("a file");
    assert!(add(&daemon, &file, &[]).status.success());
    assert_eq!(must(&daemon, &["ls"])[0]["pages"], 1);
    let red = ["add", file.to_str().expect("text"), "--trust-domain", "red"];
    assert_eq!(must(&daemon, &red)["read_bytes"], PAGE_BYTES);
    daemon.kill();
    daemon.restart();
    assert_eq!(must(&daemon, &["ls"]).as_array().map(Vec::len), Some(2));
    assert_eq!(must(&daemon, &["rm", "debian-13.raw"])["removed"], 2);
    assert_eq!(must(&daemon, &["stats"])["segments"], 0);
}

#[test]
fn what_can_not_be_kept_is_refused_with_its_cure_and_leaves_nothing() {
    let (daemon, folder) = start(&["--store-bytes", "1MiB"]);
    let file = folder.path().join("image");
    std::fs::write(&file, (0..600).flat_map(noise).collect::<Vec<u8>>()).expect("a file");
    let missing = folder.path().join("missing");
    for (path, words) in [
        (file.as_path(), ["store_failed", "--store-bytes"]),
        (missing.as_path(), ["missing", "No such file"]),
        (folder.path(), ["not a regular file", "raw image"]),
    ] {
        let output = add(&daemon, path, &["--name", "image"]);
        let said = String::from_utf8(output.stderr).expect("text");
        assert!(!output.status.success(), "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    }
    let stats = must(&daemon, &["stats"]);
    assert_eq!([&stats["segments"], &stats["bytes"]], [0, 0], "{stats}");
    let left = std::fs::read_dir(daemon.spec.folder.join("state/store")).expect("the store");
    let segments = left.filter(|it| it.as_ref().is_ok_and(|it| it.metadata().unwrap().len() > 0));
    assert_eq!(segments.count(), 0);
}

#[test]
fn a_daemon_without_certificates_keeps_no_image_and_says_what_it_needs() {
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(DaemonSpec::new(&folder.path().join("a"), None));
    let file = folder.path().join("image");
    std::fs::write(&file, noise(1)).expect("a file");
    let output = add(&daemon, &file, &[]);
    let said = String::from_utf8(output.stderr).expect("text");
    assert!(!output.status.success() && said.contains("--pki"), "{said}");
}
