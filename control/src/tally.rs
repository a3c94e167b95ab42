//! Counters of the control thread, by a fixed word each: refusals by reason, requests by method.
//!
//! Used on the control thread alone; clones share the same counts. Words come from the code, never
//! from a peer, so the number of entries is bounded.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Counts by word.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally(Rc<RefCell<BTreeMap<&'static str, u64>>>);

impl Tally {
    /// Adds one to `word`.
    pub(crate) fn add(&self, word: &'static str) {
        *self.0.borrow_mut().entry(word).or_default() += 1;
    }

    /// The count of `word`.
    #[cfg(test)]
    pub(crate) fn count(&self, word: &str) -> u64 {
        self.0.borrow().get(word).copied().unwrap_or_default()
    }

    /// Every word with its count.
    pub(crate) fn snapshot(&self) -> Vec<(&'static str, u64)> {
        self.0.borrow().iter().map(|(word, count)| (*word, *count)).collect()
    }
}
