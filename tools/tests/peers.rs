//! The bench of peers moves a guest to and fro, and tells good migrations from failed ones.
//!
//! Needs root and `cargo xtask lab setup`; passed over visibly without.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use dwcp_tools::lab::Lab;
use dwcp_tools::peers::{Bench, Mode, Mover, table};
use std::time::Duration;

#[test]
fn a_failed_mover_leaves_the_guest_for_the_next_mode() {
    if Lab::for_test().is_none() {
        return;
    }
    let command = "test -S $DWCP_LAB_SINK_QMP && echo as ordered && exit 7".to_owned();
    let prepare = "sleep 1000 & test -S $DWCP_LAB_SOURCE_QMP".to_owned();
    let movers = [Mover { name: "broken".to_owned(), prepare, command }];
    let mode = |text| Mode::parse(text, &[], &movers, 128).unwrap();
    let bench = Bench {
        guest: "idle".to_owned(),
        ram_mib: None,
        modes: vec![mode("broken"), mode("multifd2")],
        link: "rate=1g,delay=2ms".to_owned(),
        congestion: None,
        repeat: 1,
        limit: Duration::from_secs(120),
        settle: Duration::ZERO,
    };
    let mut lines = Vec::new();
    let rows = bench.run(|row| lines.push(row.json())).unwrap();
    assert_eq!(lines.len(), 2);

    let [broken, moved] = &rows[..] else { panic!("{lines:?}") };
    assert_eq!(broken.figure("status"), "FAILED: the mover: code 7", "{lines:?}");
    assert_eq!(broken.figure("detail"), "as ordered", "{lines:?}");
    assert_eq!(broken.figure("guest_ok"), "stayed", "{lines:?}");
    assert!(broken.is_failure() && !broken.is_ok());

    assert!(moved.is_ok() && !moved.is_failure(), "{lines:?}");
    assert_eq!(moved.figure("guest_ok"), "ok", "{lines:?}");
    let figure = |name| moved.figure(name).as_f64().unwrap();
    assert!(figure("wire_mb") > 1.0 && figure("total_s") > 0.0 && figure("blackout_ms") > 0.0);
    assert!(figure("blackout_ms") < figure("total_s") * 1e3);
    assert!(table(&rows).contains("multifd2"));
}
