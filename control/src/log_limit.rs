//! Keeps peers and clients from filling the log: so many lines per window, then a count of the
//! rest.
//!
//! Pure: time is an argument. One value per kind of event, owned by the task that logs it.

use crate::limits::{LOG_LINES_PER_WINDOW, LOG_WINDOW_NS};
use dwcp_proto::time::Nanos;

/// The allowance of one kind of event.
#[derive(Debug, Default)]
pub(crate) struct LogLimit {
    window: Option<Nanos>,
    lines: u32,
    suppressed: u64,
}

impl LogLimit {
    /// `Some(suppressed)` if a line may be written now, with the number of lines that were left out
    /// since the last one.
    pub(crate) fn allow(&mut self, now: Nanos) -> Option<u64> {
        if self.window.is_none_or(|start| now.since(start).0 >= LOG_WINDOW_NS) {
            self.window = Some(now);
            self.lines = 0;
        }
        if self.lines == LOG_LINES_PER_WINDOW {
            self.suppressed += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_writes_a_bounded_number_of_lines_and_counts_the_rest() {
        let mut limit = LogLimit::default();
        let written = (0..1000).filter(|_| limit.allow(Nanos(5)).is_some()).count();
        assert_eq!(written, usize::try_from(LOG_LINES_PER_WINDOW).unwrap());
        assert_eq!(limit.allow(Nanos(5 + LOG_WINDOW_NS)), Some(1000 - 10));
    }
}
