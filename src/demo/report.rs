//! What the demo found out: one value, shown as a table or as one JSON object.
//!
//! Made by the pre-copy loop, printed by the main thread. Pure.
//!
//! What the figures mean:
//! - `raw_bytes`: 4096 times the pages sent, pages that were sent again in a later round included;
//!   dirty pages that held what the sink already had are not in it;
//! - `wire_bytes`: all sealed bytes of the session's frames, headers and tags included;
//! - `zstd1_bytes`: the same pages, each by itself through plain zstd level 1, without any framing;
//! - `ratio`: `raw_bytes` to `wire_bytes`, so it pays for framing and encryption;
//! - `seconds`: from opening the session to its commit, the pause and the time of the comparison
//!   with zstd-1 included;
//! - `pause_ms`: from stopping the writer to the commit.

use super::generator::PAGE_BYTES;
use super::options::Options;
use super::remote::{FinishReply, RoundReply};
use serde::Serialize;

/// What one class of pages came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Class {
    /// Pages sent so.
    pub(crate) pages: u64,
    /// Their size in memory.
    pub(crate) raw_bytes: u64,
    /// Their coded size, without framing.
    pub(crate) coded_bytes: u64,
    /// What plain zstd-1 makes of the same pages, each alone; none without the comparison.
    pub(crate) zstd1_bytes: Option<u64>,
}

/// The classes of pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Classes {
    /// All zero: a mark in the frame.
    pub(crate) zero: Class,
    /// Dirty, with the content that the sink had: nothing is sent.
    pub(crate) unchanged: Class,
    /// Sent as the change against what the sink has.
    pub(crate) delta: Class,
    /// Sent compressed with their neighbours.
    pub(crate) zstd: Class,
    /// Sent as they are.
    pub(crate) raw: Class,
}

impl Classes {
    /// Each with its name, in the order of the table.
    fn all(&self) -> [(&'static str, Class); 5] {
        [
            ("zero", self.zero),
            ("unchanged", self.unchanged),
            ("delta", self.delta),
            ("zstd", self.zstd),
            ("raw", self.raw),
        ]
    }

    /// The classes whose pages are sent.
    fn sent(&self) -> [Class; 4] {
        [self.zero, self.delta, self.zstd, self.raw]
    }
}

/// One round for the report.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct RoundLine {
    round: u32,
    pages: u64,
    pages_sent: u64,
    wire_bytes: u64,
    seconds: f64,
}

/// The times that the demo takes itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Timing {
    /// From opening the session to its commit.
    pub(crate) seconds: f64,
    /// From stopping the writer to the commit.
    pub(crate) pause_seconds: f64,
}

/// The result of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Report {
    pub(crate) verified: bool,
    pub(crate) pages: u64,
    pub(crate) pages_differing: u64,
    pub(crate) pages_sent: u64,
    /// Those with the writer running and the last one.
    pub(crate) rounds: u64,
    pub(crate) converged: bool,
    pub(crate) raw_bytes: u64,
    pub(crate) wire_bytes: u64,
    /// None without the comparison.
    pub(crate) zstd1_bytes: Option<u64>,
    pub(crate) ratio: f64,
    pub(crate) zstd1_ratio: Option<f64>,
    pub(crate) seconds: f64,
    pub(crate) raw_bytes_per_s: f64,
    pub(crate) wire_bytes_per_s: f64,
    pub(crate) pause_ms: f64,
    pub(crate) pause_target_ms: f64,
    pub(crate) last_round_ms: f64,
    pub(crate) verify_ms: f64,
    pub(crate) commit_ms: f64,
    pub(crate) classes: Classes,
    /// Bytes on the wire that are no page's: frame headers, page lists, record headers and tags.
    pub(crate) framing_bytes: u64,
    pub(crate) size_bytes: u64,
    pub(crate) seed: u64,
    pub(crate) streams: u64,
    pub(crate) coding: &'static str,
    pub(crate) zstd_level: u64,
    pub(crate) dirty_source: &'static str,
    pub(crate) dirty_rate: u64,
    pub(crate) dirty_rate_reached: f64,
    pub(crate) written_pages: u64,
    pub(crate) precopy_rounds: Vec<RoundLine>,
}

impl Report {
    /// The part that comes from the daemons; what the demo saw itself is filled in by its caller.
    pub(crate) fn new(
        options: &Options,
        rounds: &[RoundReply],
        finish: &FinishReply,
        timing: Timing,
    ) -> Self {
        let counter = |name: &str| finish.counters.get(name).copied().unwrap_or(0);
        let class = |name: &str| Class {
            pages: counter(&format!("{name}_pages")),
            raw_bytes: counter(&format!("{name}_pages")) * PAGE_BYTES as u64,
            // Zero and unchanged pages have no such counters: they have no bytes of their own.
            coded_bytes: counter(&format!("{name}_bytes")),
            zstd1_bytes: options.baseline.then(|| counter(&format!("{name}_zstd1_bytes"))),
        };
        let classes = Classes {
            zero: class("zero"),
            unchanged: class("unchanged"),
            delta: class("delta"),
            zstd: class("zstd"),
            raw: class("raw"),
        };
        let sum = |of: fn(&Class) -> u64| classes.sent().iter().map(of).sum::<u64>();
        let (raw_bytes, wire_bytes) = (sum(|class| class.raw_bytes), counter("wire_bytes"));
        let zstd1_bytes = options.baseline.then(|| counter("zstd1_bytes"));
        Self {
            verified: false,
            pages: options.size_bytes / PAGE_BYTES as u64,
            pages_differing: 0,
            pages_sent: sum(|class| class.pages),
            rounds: rounds.len() as u64 + 1,
            converged: false,
            raw_bytes,
            wire_bytes,
            zstd1_bytes,
            ratio: ratio(raw_bytes, wire_bytes),
            zstd1_ratio: zstd1_bytes.map(|bytes| ratio(raw_bytes, bytes)),
            seconds: rounded(timing.seconds),
            raw_bytes_per_s: per_second(raw_bytes, timing.seconds),
            wire_bytes_per_s: per_second(wire_bytes, timing.seconds),
            pause_ms: rounded(timing.pause_seconds * 1e3),
            pause_target_ms: rounded(options.pause_target.as_secs_f64() * 1e3),
            last_round_ms: rounded(finish.last_round_ms),
            verify_ms: rounded(finish.verify_ms),
            commit_ms: rounded(finish.commit_ms),
            classes,
            framing_bytes: wire_bytes.saturating_sub(sum(|class| class.coded_bytes)),
            size_bytes: options.size_bytes,
            seed: options.seed,
            streams: options.streams,
            coding: options.coding,
            zstd_level: options.zstd_level,
            dirty_source: "",
            dirty_rate: options.dirty_pages_per_second,
            dirty_rate_reached: 0.0,
            written_pages: 0,
            precopy_rounds: rounds.iter().map(round_line).collect(),
        }
    }

    /// The table for people, each line ended.
    pub(crate) fn table(&self) -> String {
        let mut lines = vec![
            format!(
                "{} of live memory (seed {}), writer at {:.0} of {} pages/s, {} streams",
                mebibytes(self.size_bytes),
                self.seed,
                self.dirty_rate_reached,
                self.dirty_rate,
                self.streams,
            ),
            String::new(),
        ];
        self.push_rounds(&mut lines);
        self.push_classes(&mut lines);
        lines.push(String::new());
        self.push_figures(&mut lines);
        lines.push(String::new());
        lines.join("\n")
    }

    fn push_rounds(&self, lines: &mut Vec<String>) {
        let row = |name: &str, cells: [&str; 4]| {
            let [dirty, sent, wire, time] = cells;
            format!("{name:<18} {dirty:>9} {sent:>9} {wire:>12} {time:>10}")
        };
        lines.push(row("round", ["dirty", "sent", "wire", "time"]));
        for line in &self.precopy_rounds {
            let time = format!("{:.0} ms", line.seconds * 1e3);
            let (dirty, sent) = (line.pages.to_string(), line.pages_sent.to_string());
            let wire = mebibytes(line.wire_bytes);
            lines.push(row(&line.round.to_string(), [&dirty, &sent, &wire, &time]));
        }
        let before = |of: fn(&RoundLine) -> u64| self.precopy_rounds.iter().map(of).sum::<u64>();
        let sent = self.pages_sent.saturating_sub(before(|line| line.pages_sent)).to_string();
        let wire = mebibytes(self.wire_bytes.saturating_sub(before(|line| line.wire_bytes)));
        let time = format!("{:.0} ms", self.last_round_ms);
        let name = format!("{} (writer stopped)", self.rounds);
        lines.push(row(&name, ["", &sent, &wire, &time]));
        lines.push(String::new());
    }

    fn push_classes(&self, lines: &mut Vec<String>) {
        let row = |name: &str, cells: [&str; 6]| {
            let [pages, raw, coded, ratio, zstd1, zstd1_ratio] = cells;
            let own = format!("{name:<18} {pages:>9} {raw:>12} {coded:>12} {ratio:>9}");
            format!("{own} {zstd1:>12} {zstd1_ratio:>9}").trim_end().to_owned()
        };
        let measured = |bytes: Option<u64>, raw_bytes: u64| match bytes {
            Some(bytes) => (mebibytes(bytes), times(raw_bytes, bytes)),
            None => (String::new(), String::new()),
        };
        let beside = if self.zstd1_bytes.is_some() { ["zstd-1/page", "ratio"] } else { ["", ""] };
        lines.push(row("pages", ["count", "raw", "sent as", "ratio", beside[0], beside[1]]));
        for (name, class) in self.classes.all() {
            let ratio = times(class.raw_bytes, class.coded_bytes);
            let (count, raw) = (class.pages.to_string(), mebibytes(class.raw_bytes));
            let coded = mebibytes(class.coded_bytes);
            // An unchanged page is not sent, so nothing stands beside it.
            let sent = if name == "unchanged" { None } else { class.zstd1_bytes };
            let (zstd1, zstd1_ratio) = measured(sent, class.raw_bytes);
            lines.push(row(name, [&count, &raw, &coded, &ratio, &zstd1, &zstd1_ratio]));
        }
        lines.push(row("framing, sealing", ["", "", &mebibytes(self.framing_bytes), "", "", ""]));
        let (count, raw) = (self.pages_sent.to_string(), mebibytes(self.raw_bytes));
        let (wire, ratio) = (mebibytes(self.wire_bytes), times(self.raw_bytes, self.wire_bytes));
        let (zstd1, zstd1_ratio) = measured(self.zstd1_bytes, self.raw_bytes);
        lines.push(row("all sent", [&count, &raw, &wire, &ratio, &zstd1, &zstd1_ratio]));
    }

    fn push_figures(&self, lines: &mut Vec<String>) {
        let baseline = if self.zstd1_bytes.is_some() { ", zstd-1 comparison included" } else { "" };
        lines.push(format!(
            "throughput    {:.0} MB/s of memory, {:.2} Gbit/s on the wire ({:.2} s{baseline})",
            self.raw_bytes_per_s / 1e6,
            self.wire_bytes_per_s * 8.0 / 1e9,
            self.seconds,
        ));
        lines.push(format!(
            "pause         {:.1} ms: last round {:.1}, verification {:.1}, commit {:.1}",
            self.pause_ms, self.last_round_ms, self.verify_ms, self.commit_ms,
        ));
        let target = format!("a last round of {:.0} ms", self.pause_target_ms);
        lines.push(if self.converged {
            format!("converged     to {target} or less, by the forecast")
        } else {
            format!("converged     NO: the writer was faster than the link for {target}")
        });
        lines.push(format!("dirty pages   by {}", self.dirty_source));
        lines.push(if self.verified {
            format!(
                "verification  all {} pages are equal at the sink, byte for byte, after the \
                 writer's last write",
                self.pages
            )
        } else {
            format!(
                "verification  FAILED: {} of {} pages differ at the sink",
                self.pages_differing, self.pages
            )
        });
    }
}

/// `amount` per second, without a part that nobody can read.
pub(crate) fn per_second(amount: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { (amount as f64 / seconds).round() } else { 0.0 }
}

fn round_line(reply: &RoundReply) -> RoundLine {
    let RoundReply { round, pages, pages_sent, wire_bytes, seconds } = *reply;
    RoundLine { round, pages, pages_sent, wire_bytes, seconds: rounded(seconds) }
}

/// To three decimals.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// How many times smaller; 0 where nothing was sent.
fn ratio(raw_bytes: u64, coded_bytes: u64) -> f64 {
    if coded_bytes == 0 { 0.0 } else { rounded(raw_bytes as f64 / coded_bytes as f64) }
}

/// A ratio for people; a dash where nothing was sent.
fn times(raw_bytes: u64, coded_bytes: u64) -> String {
    match coded_bytes {
        0 => "-".to_owned(),
        _ => format!("{:.2} x", raw_bytes as f64 / coded_bytes as f64),
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn options(baseline: bool) -> Options {
        Options {
            size_bytes: 100 * PAGE_BYTES as u64,
            dirty_pages_per_second: 20_000,
            streams: 4,
            source_cores: Vec::new(),
            sink_cores: Vec::new(),
            seed: 9,
            coding: "full",
            zstd_level: 1,
            poll: "adaptive",
            pause_target: Duration::from_millis(50),
            baseline,
            keep_logs: None,
            json: true,
        }
    }

    fn report(baseline: bool) -> Report {
        let finish = serde_json::from_value(serde_json::json!({
            "session": "00", "state": "committed",
            "last_round_ms": 7.25, "verify_ms": 3, "commit_ms": 1.5,
            "counters": {
                "scanned_pages": 130, "zero_pages": 10, "unchanged_pages": 5, "delta_pages": 20,
                "zstd_pages": 85, "raw_pages": 5, "delta_bytes": 2000, "zstd_bytes": 100_000,
                "raw_bytes": 20_480, "wire_bytes": 125_000, "zstd1_bytes": 200_000, "nacks": 0,
                "delta_zstd1_bytes": 30_000,
            },
        }));
        let round = serde_json::from_value(serde_json::json!({
            "round": 1, "pages": 100, "pages_sent": 100, "wire_bytes": 120_000, "seconds": 0.5,
        }));
        let timing = Timing { seconds: 2.0, pause_seconds: 0.0125 };
        let mut report =
            Report::new(&options(baseline), &[round.unwrap()], &finish.unwrap(), timing);
        report.verified = true;
        report
    }

    #[test]
    fn the_json_object_has_every_promised_field_with_its_documented_meaning() {
        let value = serde_json::to_value(report(true)).unwrap();
        let number = |name: &str| value[name].as_f64().unwrap_or_else(|| panic!("{name}"));
        assert_eq!(value["verified"], true);
        assert_eq!(number("rounds"), 2.0);
        assert_eq!(number("raw_bytes"), 120.0 * 4096.0, "unchanged pages are not sent");
        assert_eq!(number("wire_bytes"), 125_000.0);
        assert_eq!(number("zstd1_bytes"), 200_000.0);
        assert_eq!(number("ratio"), 3.932);
        assert_eq!(number("seconds"), 2.0);
        assert_eq!(number("pause_ms"), 12.5);
        assert_eq!(number("pages"), 100.0);
        assert_eq!(number("pages_sent"), 120.0);
        assert_eq!(number("seed"), 9.0);
        assert_eq!(number("framing_bytes"), 2520.0);
        assert_eq!(value["classes"]["delta"]["pages"], 20);
        assert_eq!(value["classes"]["delta"]["zstd1_bytes"], 30_000);
        assert_eq!(value["classes"]["unchanged"]["pages"], 5);
        assert_eq!(value["precopy_rounds"][0]["pages_sent"], 100);
    }

    #[test]
    fn without_the_comparison_its_fields_are_null() {
        let value = serde_json::to_value(report(false)).unwrap();
        assert!(value["zstd1_bytes"].is_null() && value["zstd1_ratio"].is_null());
        assert!(!report(false).table().contains("zstd-1/page"));
    }

    #[test]
    fn the_table_shows_ratio_beside_plain_zstd_pause_and_verification() {
        let table = report(true).table();
        for part in [
            "all sent                 120      0.5 MiB      0.1 MiB    3.93 x",
            "3.93 x      0.2 MiB    2.46 x",
            "2 (writer stopped)",
            "pause         12.5 ms: last round 7.2, verification 3.0, commit 1.5",
            "all 100 pages are equal at the sink, byte for byte",
        ] {
            assert!(table.contains(part), "'{part}' is missing in:\n{table}");
        }
        assert!(table.lines().all(|line| line.chars().count() <= 110), "{table}");
    }

    #[test]
    fn a_failed_verification_is_loud() {
        let mut report = report(true);
        (report.verified, report.pages_differing) = (false, 3);
        assert!(report.table().contains("FAILED: 3 of 100 pages differ"));
    }
}
