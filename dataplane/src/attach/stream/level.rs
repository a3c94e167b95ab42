//! The zstd level of a stream session: as strong as the link leaves time for.
//!
//! Pure; owned by a stream source. While the source waits for the link and its core has time to
//! spare, for two spans in a row, stronger coding makes the link's work less and costs nothing: the
//! level rises. When the core is what everything waits for, it falls. Both are shares of the time
//! that went by, so another thread on the same core counts as a slow core.

use crate::port::Level;
use dwcp_codec::policy::{ZSTD_LEVEL_MAX, ZSTD_LEVEL_MIN};
use dwcp_proto::time::Nanos;
use std::ops::RangeInclusive;

/// A level, and what a batch costs at it beside the first one, in tenths.
#[derive(Clone, Copy, Debug)]
struct Step {
    level: i32,
    cost: u64,
}

const fn step(level: i32, cost: u64) -> Step {
    Step { level, cost }
}

/// The levels that are tried. The costs are the source's whole time for the memory of a guest with
/// a data base, 512 MiB, which came to 169, 162, 156, 148 and 144 MB; level 3 made it no smaller
/// than 2 does with long distance matching, and took a fifth longer.
const LADDER: [Step; 5] = [step(1, 10), step(2, 12), step(5, 22), step(7, 33), step(9, 49)];
const _: () = assert!(LADDER[0].level == ZSTD_LEVEL_MIN && LADDER[4].level == ZSTD_LEVEL_MAX);

/// Where it begins: hardly slower than the first, and right for most links.
const FIRST: usize = 1;

/// The shares are those of so much time: several turns of the window on a path around the world.
const SPAN: Nanos = Nanos::from_millis(500);

/// The level rises when the source waited for the link for a quarter of the time, and would still
/// code for no more than half of it.
const HELD_TO_RISE: u64 = 4;
const CODING_AT_MOST: u64 = 2;
/// It falls when the source coded for more than half of the time and the link took it all at once.
/// Where a core is short for all, the sink's too, fewer bytes are less work for everybody.
const HELD_TO_FALL: u64 = 64;

/// Chooses the level of one session.
#[derive(Debug)]
pub(super) struct LevelChooser {
    fixed: Option<i32>,
    at: usize,
    /// The span so far: since when, and its parts.
    began: Nanos,
    held: Nanos,
    coding: Nanos,
    /// What was coded in this turn.
    turn_coding: Nanos,
    /// The source waits for the link since this time.
    held_since: Option<Nanos>,
    /// The span before would have let the level rise.
    may_rise: bool,
}

impl LevelChooser {
    pub(super) fn new(level: Level) -> Self {
        Self {
            fixed: match level {
                Level::Auto => None,
                Level::Fixed(level) => Some(level),
            },
            at: FIRST,
            began: Nanos(0),
            held: Nanos(0),
            coding: Nanos(0),
            turn_coding: Nanos(0),
            held_since: None,
            may_rise: false,
        }
    }

    /// The level for what comes next.
    pub(super) fn level(&self) -> i32 {
        self.fixed.unwrap_or(LADDER[self.at].level)
    }

    /// All levels that may be chosen.
    pub(super) fn levels(&self) -> RangeInclusive<i32> {
        self.fixed.map_or(ZSTD_LEVEL_MIN..=ZSTD_LEVEL_MAX, |level| level..=level)
    }

    /// To be called at the end of each turn, which began `now`: whether the source waits for the
    /// link since then, with something to send.
    pub(super) fn note_turn(&mut self, now: Nanos, waits: bool) {
        if let Some(since) = self.held_since {
            self.held = self.held + now.since(since);
        }
        let coding = std::mem::replace(&mut self.turn_coding, Nanos(0));
        self.coding = self.coding + coding;
        self.held_since = waits.then_some(now + coding);
        let span = now.since(self.began);
        if span >= SPAN {
            self.end_span(span);
            (self.began, self.held, self.coding) = (now, Nanos(0), Nanos(0));
        }
    }

    /// A batch took so long to code.
    pub(super) fn note_coding(&mut self, took: Nanos) {
        self.turn_coding = self.turn_coding + took;
    }

    fn end_span(&mut self, span: Nanos) {
        let coding_after =
            |next: Step| self.coding.0.saturating_mul(next.cost) / LADDER[self.at].cost.max(1);
        let next = LADDER.get(self.at + 1);
        let has_time = next.is_some_and(|next| coding_after(*next) <= span.0 / CODING_AT_MOST);
        let may_rise = has_time && self.held.0 >= span.0 / HELD_TO_RISE;
        let is_late = self.coding.0 > span.0 / CODING_AT_MOST;
        if may_rise && self.may_rise {
            self.at += 1;
        } else if is_late && self.held.0 < span.0 / HELD_TO_FALL {
            self.at = self.at.saturating_sub(1);
        }
        // A step up is judged by two spans of its own.
        self.may_rise = may_rise && !self.may_rise;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TURN: Nanos = Nanos::from_millis(1);

    /// A link and a core: of each millisecond the source codes so many microseconds at level 1,
    /// more at others, and waits for the rest.
    fn run(chooser: &mut LevelChooser, seconds: u64, coding_us: u64) -> Vec<i32> {
        let start = chooser.began;
        (1..=seconds * 1000)
            .map(|turn| {
                let at = LADDER.iter().find(|it| it.level == chooser.level());
                let coding_us = (coding_us * at.map_or(10, |it| it.cost) / 10).min(1000);
                chooser.note_coding(Nanos(coding_us * 1000));
                chooser.note_turn(Nanos(start.0 + turn * TURN.0), true);
                chooser.level()
            })
            .collect()
    }

    #[test]
    fn a_slow_link_is_given_the_strongest_level_that_the_core_has_time_for() {
        for (coding_us, level) in [(5, 9), (100, 9), (150, 7), (300, 2), (600, 2), (900, 1)] {
            let mut chooser = LevelChooser::new(Level::Auto);
            let levels = run(&mut chooser, 10, coding_us);
            assert!(levels[4000..].iter().all(|it| *it == level), "{coding_us}: {levels:?}");
        }
    }

    #[test]
    fn the_level_falls_when_the_link_gets_faster_than_the_core_and_stays() {
        let mut chooser = LevelChooser::new(Level::Auto);
        assert_eq!(run(&mut chooser, 5, 100).last(), Some(&9));
        let levels = run(&mut chooser, 10, 900);
        assert!(levels[4000..].iter().all(|it| *it == 1), "{levels:?}");
    }

    #[test]
    fn a_source_without_work_learns_nothing() {
        let mut chooser = LevelChooser::new(Level::Auto);
        for second in 1..100 {
            chooser.note_turn(Nanos(second * Nanos::SECOND.0), false);
        }
        assert_eq!(chooser.level(), LADDER[FIRST].level);
    }

    #[test]
    fn a_level_that_was_asked_for_stays() {
        let mut chooser = LevelChooser::new(Level::Fixed(4));
        assert_eq!(chooser.levels(), 4..=4);
        assert!(run(&mut chooser, 3, 1).iter().all(|it| *it == 4));
        assert_eq!(LevelChooser::new(Level::Auto).levels(), 1..=9);
    }
}
