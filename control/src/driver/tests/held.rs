//! What a sink alone holds, from an operator's image to the shard of a session.

use super::fake::{Client, run};
use super::vm::VmPair;
use crate::config::{ControlConfig, StoreConfig};
use dwcp_proto::wire::limits::HELD_CHUNK_PAGES;
use serde_json::{Value, json};
use std::fs::File;
use std::time::Duration;

/// More chunks than are read ahead, and more pages than may be told of.
const PAGES: usize = 6 * HELD_CHUNK_PAGES + 500;
/// Half of the bases that both ends keep here.
const TOLD: usize = 8 << 10;

/// Two daemons that keep, and a machine that has a label at `b`.
async fn labelled(directory: tempfile::TempDir, label: &str) -> VmPair {
    let ttl = Duration::from_secs(3600);
    let store = StoreConfig { bytes_max: 1 << 30, pages_max: 1 << 20, ttl };
    let change = |config| ControlConfig { store: Some(store.clone()), ..config };
    let mut pair = VmPair::with(directory, change).await;
    assert!(pair.at_b.ask("vm.detach", json!({ "name": "vm" })).await["result"].is_object());
    let incoming = json!({
        "name": "vm", "qmp": "/qemu/b", "incoming": true, "accept_from": ["a"],
        "trust_domain": label,
    });
    assert_eq!(pair.at_b.ask("vm.attach", incoming).await["result"]["incoming"], true);
    pair
}

/// Adds an image of the label blue to what `b` keeps.
async fn add_image(pair: &mut VmPair) -> Value {
    let path = pair.directory.path().join("image");
    let page = |number: usize| {
        let mut page = vec![7; 4096];
        page[..8].copy_from_slice(&number.to_le_bytes());
        page
    };
    std::fs::write(&path, (0..PAGES).flat_map(page).collect::<Vec<u8>>()).unwrap();
    let params = json!({ "name": "image", "trust_domain": "blue" });
    pair.at_b.add(&File::open(path).unwrap(), params).await
}

/// What became of it in `b`'s metrics.
fn outcomes(pair: &VmPair, code: &str) -> u64 {
    pair.b.counters.kept.count(code)
}

#[test]
fn a_sink_hands_what_it_alone_holds_to_the_sessions_shard_and_nothing_to_another_label() {
    for (label, expected) in [("blue", TOLD), ("red", 0)] {
        run(|directory| async move {
            let mut pair = labelled(directory, label).await;
            let added = add_image(&mut pair).await;
            assert_eq!(added["result"]["pages"], PAGES, "{added}");
            pair.qemus.hold("precopy");
            pair.migrate().await;
            let mut other = pair.other().await;
            other.wait_state_of_only_session("precopy").await;
            while pair.b.script.held.get() < expected {
                tokio::task::yield_now().await;
            }
            pair.qemus.free("precopy");
            let answer = pair.at_a.next().await;
            assert_eq!(answer["result"]["state"], "committed", "{answer}");
            assert_eq!(pair.b.script.held.get(), expected);
        });
    }
}

#[test]
fn a_store_whose_file_goes_meanwhile_only_stops_to_tell() {
    run(|directory| async move {
        let mut pair = labelled(directory, "blue").await;
        add_image(&mut pair).await;
        let store = pair.directory.path().join("b.state/store");
        for file in std::fs::read_dir(store).unwrap() {
            let file = file.unwrap().path();
            if file.metadata().unwrap().len() > 4096 {
                std::fs::remove_file(file).unwrap();
            }
        }
        pair.migrate().await;
        let answer = pair.at_a.next().await;
        assert_eq!(answer["result"]["state"], "committed", "{answer}");
        assert_eq!(pair.b.script.held.get(), 0);
        while outcomes(&pair, "held") + outcomes(&pair, "kept_stopped") == 0 {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn an_image_is_refused_without_its_file_or_its_label() {
    run(|directory| async move {
        let mut pair = labelled(directory, "blue").await;
        let params = json!({ "name": "image", "trust_domain": "blue" });
        let no_file = pair.at_b.refusal("store.add", params.clone()).await;
        assert_eq!(no_file, "descriptor_count");
        let no_label = pair.at_b.refusal("store.add", json!({ "name": "image" })).await;
        assert_eq!(no_label, "params_invalid");
        let folder = File::open(pair.directory.path()).unwrap();
        let refused = pair.at_b.add(&folder, params).await;
        assert_eq!(refused["error"]["data"]["store_code"], "image_not_a_file", "{refused}");
        let mut client = Client::connect(pair.directory.path(), "b").await;
        assert_eq!(client.ask("store.list", json!({})).await["result"], json!([]));
    });
}
