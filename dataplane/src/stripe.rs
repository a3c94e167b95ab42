//! Which extents of a region a lane owns, and how it numbers them.
//!
//! Extent `e` holds pages `64e..64e+64`. Lane `l` of `n` owns every extent with `e % n == l` and
//! counts them from 0, so that its tables have no holes. Pure arithmetic; used by both ends.

use dwcp_codec::EXTENT_PAGES;

/// A lane's share of a region.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stripe {
    lane: u64,
    lane_count: u64,
    region_pages: u64,
}

impl Stripe {
    /// The share of `lane` among `lane_count` in a region of `region_pages`.
    pub(crate) fn new(lane: u16, lane_count: u16, region_pages: u64) -> Self {
        assert!(lane < lane_count, "a lane is one of its link's lanes");
        Self { lane: u64::from(lane), lane_count: u64::from(lane_count), region_pages }
    }

    /// How many pages the whole region has.
    pub(crate) const fn region_pages(&self) -> u64 {
        self.region_pages
    }

    /// How many pages the lane owns.
    pub(crate) fn pages(&self) -> u64 {
        match self.extents().checked_sub(1) {
            // Only the last extent may be a partial one.
            Some(last) => (last * EXTENT_PAGES) as u64 + u64::from(self.mask(last).count_ones()),
            None => 0,
        }
    }

    /// How many extents the lane owns.
    pub(crate) fn extents(&self) -> usize {
        let all = self.region_pages.div_ceil(EXTENT_PAGES as u64);
        (all.saturating_sub(self.lane)).div_ceil(self.lane_count) as usize
    }

    /// The number of table entries that the lane needs: whole extents.
    pub(crate) fn slots(&self) -> usize {
        self.extents() * EXTENT_PAGES
    }

    /// The first page of the lane's extent `local`.
    pub(crate) const fn first_page(&self, local: usize) -> u64 {
        (local as u64 * self.lane_count + self.lane) * EXTENT_PAGES as u64
    }

    /// The lane's number for the extent that starts at `first_page`, if the lane owns it.
    pub(crate) fn local(&self, first_page: u64) -> Option<usize> {
        let extent = first_page / EXTENT_PAGES as u64;
        let aligned = first_page.is_multiple_of(EXTENT_PAGES as u64);
        let ours =
            aligned && first_page < self.region_pages && extent % self.lane_count == self.lane;
        ours.then_some((extent / self.lane_count) as usize)
    }

    /// The table slot of a page that the lane owns.
    pub(crate) fn slot(&self, page: u64) -> Option<usize> {
        let within = page % EXTENT_PAGES as u64;
        let local = self.local(page - within)?;
        (page < self.region_pages).then_some(local * EXTENT_PAGES + within as usize)
    }

    /// Which pages of the lane's extent `local` exist: all but in the region's last extent.
    pub(crate) fn mask(&self, local: usize) -> u64 {
        let left = self.region_pages - self.first_page(local);
        if left >= EXTENT_PAGES as u64 { u64::MAX } else { (1 << left) - 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_belongs_to_exactly_one_lane_and_slot() {
        for (lanes, pages) in [(1, 1), (1, 64), (2, 65), (3, 1000), (4, 63), (5, 64 * 11 + 7)] {
            let stripes: Vec<_> = (0..lanes).map(|lane| Stripe::new(lane, lanes, pages)).collect();
            for page in 0..pages {
                let owners: Vec<_> = stripes.iter().filter_map(|s| s.slot(page)).collect();
                assert_eq!(owners.len(), 1, "page {page} of {pages} over {lanes} lanes");
            }
            let total: u32 =
                stripes.iter().flat_map(|s| (0..s.extents()).map(|e| s.mask(e).count_ones())).sum();
            assert_eq!(u64::from(total), pages);
            assert_eq!(stripes.iter().map(Stripe::pages).sum::<u64>(), pages);
            assert!(stripes.iter().all(|s| s.slot(pages).is_none()));
        }
    }

    #[test]
    fn an_extent_has_one_number_both_ways() {
        let stripe = Stripe::new(2, 3, 64 * 20);
        for local in 0..stripe.extents() {
            assert_eq!(stripe.local(stripe.first_page(local)), Some(local));
        }
        assert_eq!(stripe.local(1), None);
        assert_eq!(stripe.local(0), None, "extent 0 is lane 0's");
    }
}
