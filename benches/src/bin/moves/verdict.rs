//! dwcp's moves beside QEMU's best of the same rounds, and what there was to reach.
//!
//! Pure. For each figure QEMU's best is the mode with the least median of it, so one mode may be
//! the best in bytes and another in time; each round is then compared with that mode's own move in
//! the round. A guest that did not arrive whole counts as one that takes for ever.

use dwcp_benches::transport::{Row, Target, median};
use dwcp_tools::peers;
use serde_json::{Map, Value, json};

/// QEMU's own ways.
pub(crate) const QEMU: [&str; 5] =
    ["tcp", "multifd4", "multifd4-zstd1", "multifd4-zstd3", "xbzrle"];
/// By the daemons, with nothing kept.
pub(crate) const COLD: &str = "cold";
/// By the daemons, back to where the guest was.
pub(crate) const BACK: &str = "return";

/// By the daemons, another guest of the image, which both hosts know.
pub(crate) const SIBLING: &str = "sibling";
/// The same, which only the host knows that it moves to.
pub(crate) const AT_SINK: &str = "sibling-at-sink";

/// A return takes at most so much of QEMU's bytes.
const BACK_BYTES: f64 = 0.15;

/// A link, and what is to be reached over it, as shares of QEMU's best.
pub(crate) struct Path {
    pub(crate) name: &'static str,
    pub(crate) words: &'static str,
    pub(crate) rtt_ms: f64,
    pub(crate) cold_bytes: Option<f64>,
    pub(crate) cold_time: Option<f64>,
    /// Beyond QEMU's, besides one round trip.
    pub(crate) cold_pause_ms: Option<f64>,
    pub(crate) back_time: Option<f64>,
    /// Bytes and time of another guest of the image.
    pub(crate) sibling: Option<(f64, f64)>,
}

/// A migration and its round.
pub(crate) type Moved = (usize, peers::Row);

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Figure {
    /// Both ways of the link.
    Bytes,
    Time,
    Pause,
}

impl Figure {
    /// In MB, seconds or milliseconds; nothing if the guest did not arrive whole.
    fn of(self, row: &peers::Row) -> Option<f64> {
        if !row.is_ok() || row.is_failure() {
            return None;
        }
        let figure = |name| row.figure(name).as_f64();
        match self {
            // Both have one decimal, and so has their sum.
            Self::Bytes => Some(((figure("wire_mb")? + figure("back_mb")?) * 10.0).round() / 10.0),
            Self::Time => figure("total_s"),
            Self::Pause => figure("blackout_ms"),
        }
    }

    /// Ours beside QEMU's.
    fn compare(self, ours: f64, qemu: f64) -> f64 {
        match self {
            Self::Bytes | Self::Time => ours / qemu,
            Self::Pause => ours - qemu,
        }
    }
}

/// A row of ours: the mode, what is compared, as which figure, its unit, and what is to be reached.
type Wanted = (&'static str, &'static str, Figure, &'static str, Target);

/// Every row of one guest on one path.
pub(crate) fn rows(case: &str, path: &Path, moves: &[Moved]) -> Vec<Row> {
    let pause = most(path.cold_pause_ms.map(|bound| bound + path.rtt_ms));
    let wanted = [
        (COLD, "cold: bytes of QEMU's best", Figure::Bytes, "", most(path.cold_bytes)),
        (COLD, "cold: time of QEMU's best", Figure::Time, "", most(path.cold_time)),
        (COLD, "cold: blackout beyond QEMU's best", Figure::Pause, "ms", pause),
        (BACK, "return: bytes of QEMU's best", Figure::Bytes, "", Target::AtMost(BACK_BYTES)),
        (BACK, "return: time of QEMU's best", Figure::Time, "", most(path.back_time)),
        (BACK, "return: blackout beyond QEMU's best", Figure::Pause, "ms", Target::None),
    ];
    rows_of(case, moves, &wanted)
}

/// Every row of another guest of the image.
pub(crate) fn sibling_rows(case: &str, path: &Path, moves: &[Moved]) -> Vec<Row> {
    let bytes = || most(path.sibling.map(|(bytes, _)| bytes));
    let time = || most(path.sibling.map(|(_, time)| time));
    let wanted = [
        (SIBLING, "sibling: bytes of QEMU's best", Figure::Bytes, "", bytes()),
        (SIBLING, "sibling: time of QEMU's best", Figure::Time, "", time()),
        (AT_SINK, "sibling at the sink: bytes of QEMU's best", Figure::Bytes, "", bytes()),
        (AT_SINK, "sibling at the sink: time of QEMU's best", Figure::Time, "", time()),
    ];
    rows_of(case, moves, &wanted)
}

fn most(bound: Option<f64>) -> Target {
    bound.map_or(Target::None, Target::AtMost)
}

fn rows_of(case: &str, moves: &[Moved], wanted: &[Wanted]) -> Vec<Row> {
    let rows = wanted.iter().filter_map(|(mode, what, figure, unit, target)| {
        let (figures, detail) = compared(moves, mode, *figure)?;
        Some(Row::new(case, what, figures, unit, *target).with_detail(detail))
    });
    let ours = |row: &&Moved| wanted.iter().any(|(mode, ..)| row.1.figure("mode") == *mode);
    let hurt = moves.iter().filter(ours).filter(|(_, row)| row.is_failure()).count();
    let what = "moves by dwcp that failed or hurt the guest";
    let hurt = Row::new(case, what, vec![hurt as f64], "", Target::AtMost(0.0));
    rows.chain([hurt]).collect()
}

/// Each round's comparison, and what was compared; None if dwcp never tried, or nobody arrived.
fn compared(moves: &[Moved], mode: &str, figure: Figure) -> Option<(Vec<f64>, Value)> {
    let of_mode = |mode: &str| -> Vec<(usize, Option<f64>)> {
        let rows = moves.iter().filter(|(_, row)| row.figure("mode") == mode);
        rows.map(|(round, row)| (*round, figure.of(row))).collect()
    };
    let arrived = |mode: &str| -> Vec<f64> {
        of_mode(mode).into_iter().filter_map(|(_, figure)| figure).collect()
    };
    let all: Vec<(&str, Vec<f64>)> = QEMU.iter().map(|mode| (*mode, arrived(mode))).collect();
    let some = all.iter().filter(|(_, figures)| !figures.is_empty());
    let (best, figures) = some.min_by(|one, other| median(&one.1).total_cmp(&median(&other.1)))?;
    let typical = median(figures);
    let best_of = of_mode(best);
    let in_round = |round: usize| {
        let found = best_of.iter().find(|(other, _)| *other == round);
        found.and_then(|(_, figure)| *figure).unwrap_or(typical)
    };
    let ours = of_mode(mode);
    let compare = |(round, ours): &(usize, Option<f64>)| {
        ours.map_or(f64::INFINITY, |ours| figure.compare(ours, in_round(*round)))
    };
    let compared: Vec<f64> = ours.iter().map(compare).collect();
    let qemu: Map<String, Value> =
        all.iter().map(|(mode, figures)| ((*mode).to_owned(), json!(figures))).collect();
    let detail = json!({"dwcp": arrived(mode), "qemu": qemu, "best": best});
    Some((compared, detail)).filter(|(figures, _)| !figures.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(round: usize, mode: &str, status: &str, mb: f64) -> Moved {
        let guest = if status == "ok" { "ok" } else { "stayed" };
        let figures = json!({
            "mode": mode, "status": status, "guest_ok": guest,
            "wire_mb": mb - 1.0, "back_mb": 1.0, "total_s": mb / 10.0, "blackout_ms": 300,
        });
        (round, figures.as_object().cloned().map(peers::Row::from).unwrap_or_default())
    }

    #[test]
    fn each_round_is_compared_with_the_best_modes_own_move() {
        let moves = [
            moved(0, "tcp", "NOT CONVERGED", 1.0),
            moved(0, "multifd4", "ok", 500.0),
            moved(0, "multifd4-zstd1", "ok", 200.0),
            moved(0, COLD, "ok", 100.0),
            moved(1, "multifd4-zstd1", "ok", 400.0),
            moved(1, COLD, "ok", 100.0),
            moved(2, "multifd4-zstd1", "NOT CONVERGED", 1.0),
            moved(2, COLD, "ok", 100.0),
            moved(3, COLD, "NOT CONVERGED", 1.0),
        ];
        let (figures, detail) = compared(&moves, COLD, Figure::Bytes).unwrap_or_default();
        assert_eq!(figures[..3], [0.5, 0.25, 0.25]);
        assert!(figures[3].is_infinite());
        assert_eq!(detail["best"], "multifd4-zstd1");
        assert_eq!(detail["qemu"]["multifd4-zstd1"], json!([200.0, 400.0]));
        let (pauses, _) = compared(&moves, COLD, Figure::Pause).unwrap_or_default();
        assert_eq!(pauses[0], 0.0);
        assert!(compared(&moves, BACK, Figure::Bytes).is_none());
        assert!(compared(&moves[..1], COLD, Figure::Bytes).is_none());
    }
}
