//! Which pages of a lane still have to be sent in the current round: words of one bit per page, one
//! word per extent.
//!
//! Owned by one region source. Pages that were sent in the round before and are dirty again come
//! last: they keep changing, and what is sent late is old for a shorter time. The cursor walks the
//! extents in order and wraps, so that pages put back (a dead stream, a NACK) are found again.
//! Finding work is bounded by the caller.

/// The pages of the current round.
#[derive(Debug)]
pub(crate) struct Pending {
    first: Words,
    late: Words,
    /// What was sent, until the next round asks for it.
    sent: Vec<u64>,
}

impl Pending {
    /// Nothing pending among `extents` extents.
    pub(crate) fn new(extents: usize) -> Self {
        Self { first: Words::new(extents), late: Words::new(extents), sent: vec![0; extents] }
    }

    /// How many pages are pending.
    pub(crate) const fn pages(&self) -> u64 {
        self.first.pages + self.late.pages
    }

    /// The round has the pages of `mask` in extent `local`; once in each round, for each extent.
    pub(crate) fn collect(&mut self, local: usize, mask: u64) {
        let again = mask & std::mem::take(&mut self.sent[local]);
        self.first.add(local, mask & !again);
        self.late.add(local, again);
    }

    /// The pages of `mask` in extent `local` have to be sent again, soon.
    pub(crate) fn put_back(&mut self, local: usize, mask: u64) {
        self.first.add(local, mask);
    }

    /// The pages of `mask` in extent `local` have changed since the round before, and were sent.
    pub(crate) fn note_sent(&mut self, local: usize, mask: u64) {
        self.sent[local] |= mask;
    }

    /// The next extent with pending pages, taken out; looks at no more than `steps_max` extents.
    pub(crate) fn take(&mut self, steps_max: usize) -> Option<(usize, u64)> {
        if self.first.pages > 0 { self.first.take(steps_max) } else { self.late.take(steps_max) }
    }
}

/// Pages, and where to look next.
#[derive(Debug)]
struct Words {
    words: Vec<u64>,
    cursor: usize,
    pages: u64,
}

impl Words {
    fn new(extents: usize) -> Self {
        Self { words: vec![0; extents], cursor: 0, pages: 0 }
    }

    fn add(&mut self, local: usize, mask: u64) {
        let word = &mut self.words[local];
        self.pages += u64::from((mask & !*word).count_ones());
        *word |= mask;
    }

    fn take(&mut self, steps_max: usize) -> Option<(usize, u64)> {
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
        pending.collect(2, 0b101);
        pending.put_back(2, 0b100);
        pending.put_back(0, 1);
        assert_eq!(pending.pages(), 3);
        assert_eq!(pending.take(3), Some((0, 1)));
        assert_eq!(pending.take(1), None, "one step, nothing there");
        assert_eq!(pending.take(1), Some((2, 0b101)));
        assert_eq!(pending.take(3), None);
        pending.put_back(1, u64::MAX);
        assert_eq!(pending.take(3), Some((1, u64::MAX)));
    }

    #[test]
    fn what_changes_in_every_round_comes_last() {
        let mut pending = Pending::new(2);
        pending.note_sent(0, 0b0110);
        pending.collect(0, 0b1010);
        pending.collect(1, 0b1);
        assert_eq!(pending.pages(), 3);
        assert_eq!(pending.take(2), Some((0, 0b1000)));
        assert_eq!(pending.take(2), Some((1, 0b1)));
        assert_eq!(pending.take(2), Some((0, 0b0010)), "it was sent in the round before");
        assert_eq!((pending.take(2), pending.pages()), (None, 0));
        pending.collect(0, 0b0110);
        assert_eq!(pending.take(2), Some((0, 0b0110)), "that was two rounds ago");
    }
}
