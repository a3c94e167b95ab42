//! A set of lanes as bits: which lanes have reported, and whether all have.

use crate::ids::LaneId;
use crate::wire::limits::LANES_MAX;

/// Counts each lane once, however often it reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LaneSet {
    lanes: u16,
    reported: u64,
}

impl LaneSet {
    /// No lane of `lanes` has reported.
    pub(super) fn new(lanes: u16) -> Self {
        assert!((1..=LANES_MAX).contains(&lanes), "a link has 1 to {LANES_MAX} lanes");
        Self { lanes, reported: 0 }
    }

    /// Notes a report and tells whether it was the last one missing.
    pub(super) fn report(&mut self, lane: LaneId) -> bool {
        assert!(lane.0 < self.lanes, "lane {lane} is one of {}", self.lanes);
        let before = self.reported;
        self.reported |= 1 << lane.0;
        before != self.reported && self.reported.count_ones() == u32::from(self.lanes)
    }

    /// Forgets all reports.
    pub(super) fn clear(&mut self) {
        self.reported = 0;
    }
}
