//! Which pages of a lane still have to be sent in the current round: one word per extent.
//!
//! Owned by one region source. The cursor walks the extents in order and wraps, so that pages put
//! back (a dead stream, a NACK) are found again. Finding work is bounded by the caller.

/// The pages of the current round.
#[derive(Debug)]
pub(crate) struct Pending {
    words: Vec<u64>,
    cursor: usize,
    pages: u64,
}

impl Pending {
    /// Nothing pending among `extents` extents.
    pub(crate) fn new(extents: usize) -> Self {
        Self { words: vec![0; extents], cursor: 0, pages: 0 }
    }

    /// How many pages are pending.
    pub(crate) const fn pages(&self) -> u64 {
        self.pages
    }

    /// Adds the pages of `mask` to extent `local`.
    pub(crate) fn add(&mut self, local: usize, mask: u64) {
        let word = &mut self.words[local];
        self.pages += u64::from((mask & !*word).count_ones());
        *word |= mask;
    }

    /// The next extent with pending pages, taken out; looks at no more than `steps_max` extents.
    pub(crate) fn take(&mut self, steps_max: usize) -> Option<(usize, u64)> {
        if self.pages == 0 {
            return None;
        }
        for _ in 0..steps_max.min(self.words.len()) {
            let local = self.cursor;
            self.cursor = (self.cursor + 1) % self.words.len();
            let mask = std::mem::take(&mut self.words[local]);
            if mask != 0 {
                self.pages -= u64::from(mask.count_ones());
                return Some((local, mask));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_is_taken_once() {
        let mut pending = Pending::new(3);
        pending.add(2, 0b101);
        pending.add(2, 0b100);
        pending.add(0, 1);
        assert_eq!(pending.pages(), 3);
        assert_eq!(pending.take(3), Some((0, 1)));
        assert_eq!(pending.take(1), None, "one step, nothing there");
        assert_eq!(pending.take(1), Some((2, 0b101)));
        assert_eq!(pending.take(3), None);
        pending.add(1, u64::MAX);
        assert_eq!(pending.take(3), Some((1, u64::MAX)));
    }
}
