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

/// The levels that are tried. The costs are the source's time for the 427 MB of a guest with a data
/// base that are not zero, half a second of it for other work than zstd's. They came to 166, 124,
/// 116, 115 and 113 MB; level 3 to 121 in twice the time of level 2, and level 5 to 118 in nearly
/// the time of level 6.
const LADDER: [Step; 5] = [step(1, 10), step(2, 16), step(6, 35), step(7, 46), step(9, 65)];
const _: () = assert!(LADDER[0].level == ZSTD_LEVEL_MIN && LADDER[4].level == ZSTD_LEVEL_MAX);

/// The shares are those of so much time: several turns of the window on a path around the world.
const SPAN: Nanos = Nanos::from_millis(500);

/// The level rises when the source waited for the link for a quarter of the time: to the strongest
/// at which it would still code for no more than three quarters of it.
const HELD_TO_RISE: u64 = 4;
const CODING_TO_RISE: (u64, u64) = (3, 4);
/// It falls when the source coded for more than seven eighths of the time and the link took it all
/// at once. Where a core is short for all, the sink's too, fewer bytes are less work for everybody.
const CODING_TO_FALL: (u64, u64) = (7, 8);
const HELD_TO_FALL: u64 = 64;

/// Where a source's time went, since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spent {
    /// On coding.
    pub(super) coding: Nanos,
    /// On waiting for the link with something to send.
    pub(super) held: Nanos,
}

/// Chooses the level of one session.
#[derive(Debug)]
pub(super) struct LevelChooser {
    fixed: Option<i32>,
    at: usize,
    spent: Spent,
    /// The span so far: since when, and what was spent before.
    began: Nanos,
    before: Spent,
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
            at: 0,
            spent: Spent::default(),
            began: Nanos(0),
            before: Spent::default(),
            turn_coding: Nanos(0),
            held_since: None,
            may_rise: false,
        }
    }

    /// The level for what comes next.
    pub(super) fn level(&self) -> i32 {
        self.fixed.unwrap_or(LADDER[self.at].level)
    }

    /// Where the time went.
    pub(super) const fn spent(&self) -> Spent {
        self.spent
    }

    /// All levels that may be chosen.
    pub(super) fn levels(&self) -> RangeInclusive<i32> {
        self.fixed.map_or(ZSTD_LEVEL_MIN..=ZSTD_LEVEL_MAX, |level| level..=level)
    }

    /// To be called at the end of each turn, which began `now`: whether the source waits for the
    /// link since then, with something to send.
    pub(super) fn note_turn(&mut self, now: Nanos, waits: bool) {
        if let Some(since) = self.held_since {
            self.spent.held = self.spent.held + now.since(since);
        }
        let coding = std::mem::replace(&mut self.turn_coding, Nanos(0));
        self.spent.coding = self.spent.coding + coding;
        self.held_since = waits.then_some(now + coding);
        let span = now.since(self.began);
        if span >= SPAN {
            self.end_span(span);
            (self.began, self.before) = (now, self.spent);
        }
    }

    /// A batch took so long to code.
    pub(super) fn note_coding(&mut self, took: Nanos) {
        self.turn_coding = self.turn_coding + took;
    }

    fn end_span(&mut self, span: Nanos) {
        let coding = self.spent.coding.since(self.before.coding).0;
        let held = self.spent.held.since(self.before.held).0;
        let coding_at = |step: &Step| coding.saturating_mul(step.cost) / LADDER[self.at].cost;
        let share = |(of, parts): (u64, u64)| span.0 / parts * of;
        let has_time = |step: &Step| coding_at(step) <= share(CODING_TO_RISE);
        let strongest = LADDER.iter().rposition(has_time).filter(|step| *step > self.at);
        let may_rise = strongest.filter(|_| held >= span.0 / HELD_TO_RISE);
        let is_late = coding > share(CODING_TO_FALL);
        match may_rise {
            // A step up is judged by two spans of its own.
            Some(step) if self.may_rise => (self.at, self.may_rise) = (step, false),
            Some(_) => self.may_rise = true,
            None => self.may_rise = false,
        }
        if is_late && held < span.0 / HELD_TO_FALL {
            self.at = self.at.saturating_sub(1);
        }
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
        for (coding_us, level) in [(5, 9), (110, 9), (150, 7), (200, 6), (300, 2), (700, 1)] {
            let mut chooser = LevelChooser::new(Level::Auto);
            let levels = run(&mut chooser, 10, coding_us);
            assert!(levels[1500..].iter().all(|it| *it == level), "{coding_us}: {levels:?}");
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
    fn the_start_of_a_fast_path_is_no_reason_to_code_more() {
        let mut chooser = LevelChooser::new(Level::Auto);
        // Half of the first span waits for the window to open, then the core is the limit.
        let levels = [run(&mut chooser, 1, 500), run(&mut chooser, 9, 1000)].concat();
        assert!(levels[500..].iter().all(|it| *it == 1), "{levels:?}");
    }

    #[test]
    fn where_the_time_went_is_told() {
        let mut chooser = LevelChooser::new(Level::Fixed(1));
        run(&mut chooser, 2, 410);
        let Spent { coding, held } = chooser.spent();
        assert_eq!(coding, Nanos::from_millis(820));
        // The last turn still waits.
        assert_eq!(held, Nanos(1999 * 590_000));
    }

    #[test]
    fn a_source_without_work_learns_nothing() {
        let mut chooser = LevelChooser::new(Level::Auto);
        for second in 1..100 {
            chooser.note_turn(Nanos(second * Nanos::SECOND.0), false);
        }
        assert_eq!(chooser.level(), ZSTD_LEVEL_MIN);
    }

    #[test]
    fn a_level_that_was_asked_for_stays() {
        let mut chooser = LevelChooser::new(Level::Fixed(4));
        assert_eq!(chooser.levels(), 4..=4);
        assert!(run(&mut chooser, 3, 1).iter().all(|it| *it == 4));
        assert_eq!(LevelChooser::new(Level::Auto).levels(), 1..=9);
    }
}
