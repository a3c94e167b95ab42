//! Where lanes lie: which shard owns which lane of which link.
//!
//! Pure, used on the control thread. A link's number says it: its lanes lie on neighbouring shards,
//! the first one on the shard that the number leaves as a remainder. So the shard of a lane follows
//! from what every command and every event names anyway, for as long as anybody names the link,
//! parked or dropped: nothing is remembered, and nothing can go stale. The choice is made once, by
//! the number that a new link gets. Invariant: no two lanes of a link lie on one shard.

use dwcp_proto::ids::{LaneId, LinkId};

/// A shard, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ShardIndex(pub(super) u16);

/// The rule for a number of shards, which is not 0.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placement {
    shards: u16,
}

impl Placement {
    pub(super) fn of(shards: u16) -> Self {
        assert!(shards > 0, "a daemon has shards");
        Self { shards }
    }

    /// The shard that owns a lane.
    pub(super) fn shard_of(self, link: LinkId, lane: LaneId) -> ShardIndex {
        ShardIndex((self.first_of(link) + lane.0) % self.shards)
    }

    /// The lane of a link that a shard owns; a number beyond the link's lanes where it owns none.
    pub(super) fn lane_on(self, link: LinkId, shard: ShardIndex) -> LaneId {
        LaneId((shard.0 + self.shards - self.first_of(link)) % self.shards)
    }

    /// The number of a new link: the next one whose first lane lies on the shard with the fewest
    /// lanes, and of those on one where the fewest links begin. The lanes of a new link are not
    /// agreed on yet; those of `links` that are count.
    ///
    /// The second part matters where every link has lanes on every shard: the guests that they
    /// move, each on one lane, begin on different shards.
    pub(super) fn number(self, next: LinkId, links: impl Iterator<Item = (LinkId, u16)>) -> LinkId {
        let mut load = vec![(0_usize, 0_usize); usize::from(self.shards)];
        for (link, lanes) in links {
            load[usize::from(self.first_of(link))].1 += 1;
            for lane in (0..lanes).map(LaneId) {
                load[usize::from(self.shard_of(link, lane).0)].0 += 1;
            }
        }
        let numbers = (0..u32::from(self.shards)).map(|skipped| LinkId(next.0 + skipped));
        let load_of = |link: &LinkId| load[usize::from(self.first_of(*link))];
        numbers.min_by_key(load_of).unwrap_or(next)
    }

    fn first_of(self, link: LinkId) -> u16 {
        u16::try_from(link.0 % u32::from(self.shards)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Adds links of so many lanes, one after the other; the shards of each.
    fn place(shards: u16, links: &mut Vec<(LinkId, u16)>, lanes: &[u16]) -> Vec<Vec<u16>> {
        let placement = Placement::of(shards);
        let next = |links: &[(LinkId, u16)]| links.last().map_or(LinkId(0), |(id, _)| id.next());
        let mut place_one = |lanes: u16| {
            let link = placement.number(next(links), links.iter().copied());
            links.push((link, lanes));
            (0..lanes).map(|lane| placement.shard_of(link, LaneId(lane)).0).collect()
        };
        lanes.iter().map(|lanes| place_one(*lanes)).collect()
    }

    #[test]
    fn links_of_one_lane_use_as_many_shards_as_there_are_links() {
        let placed = place(4, &mut Vec::new(), &[1; 8]);
        let shards: Vec<u16> = placed.into_iter().flatten().collect();
        assert_eq!(shards, [0, 1, 2, 3, 0, 1, 2, 3]);
    }

    #[test]
    fn links_of_two_lanes_take_shards_of_their_own_while_there_are_any() {
        let placed = place(4, &mut Vec::new(), &[2; 4]);
        assert_eq!(placed, [[0, 1], [2, 3], [3, 0], [1, 2]], "then two on each");
    }

    #[test]
    fn links_with_lanes_on_every_shard_begin_on_different_ones() {
        assert_eq!(place(3, &mut Vec::new(), &[3; 3]), [[0, 1, 2], [1, 2, 0], [2, 0, 1]]);
    }

    #[test]
    fn a_new_link_goes_where_one_has_ended_and_not_where_the_numbers_lead() {
        let mut links = Vec::new();
        place(2, &mut links, &[1; 4]);
        // What is left lies on shard 0, and so would the next number.
        links.retain(|(link, _)| link.0 % 2 == 0);
        let placement = Placement::of(2);
        assert_eq!(placement.number(LinkId(4), links.iter().copied()), LinkId(5));
        assert_eq!(place(2, &mut links, &[1; 2]), [[1], [1]]);
    }

    #[test]
    fn a_link_whose_lanes_are_not_agreed_yet_counts_by_where_it_begins() {
        let placement = Placement::of(2);
        assert_eq!(placement.number(LinkId(2), [(LinkId(0), 0)].into_iter()), LinkId(3));
    }

    #[test]
    fn every_lane_has_a_shard_of_its_own_and_is_found_again_by_it() {
        for shards in [1, 2, 3, 64] {
            let placement = Placement::of(shards);
            for link in (0..70).chain([u32::MAX]).map(LinkId) {
                let lanes = || (0..shards).map(LaneId);
                let taken: BTreeSet<u16> =
                    lanes().map(|lane| placement.shard_of(link, lane).0).collect();
                assert_eq!(taken.len(), usize::from(shards));
                for lane in lanes() {
                    assert_eq!(placement.lane_on(link, placement.shard_of(link, lane)), lane);
                }
            }
        }
    }
}
