//! What a virtual machine's session takes from the budget of memory, part by part.
//!
//! Pure arithmetic.

use crate::api::Role;
use crate::kept::HOLDING_BYTES_PER_PAGE;
use crate::limits::{STREAM_WINDOW_LOGS, STREAM_WINDOW_SHARE};
use dwcp_dataplane::port::{STORE_PAGE_BYTES, StreamSizes, stream_sink_bytes, stream_source_bytes};
use dwcp_proto::wire::vm::VmTerms;
use std::fmt;

/// The parts of one end's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VmMemory {
    /// What is kept of each page besides its content.
    pub(crate) tables_bytes: u64,
    /// Page versions kept as bases, with what finds those from before.
    pub(crate) bases_bytes: u64,
    /// Coded bytes that are not delivered yet: kept for a second sending at the source, waiting for
    /// their turn at the sink; with the buffers of sockets.
    pub(crate) held_bytes: u64,
    /// The long zstd window.
    pub(crate) window_bytes: u64,
}

/// The long window of a session, as a binary logarithm: none longer than the guest's memory, and
/// none that takes more than its share of the memory for sessions, but for the shortest.
pub(crate) fn window_log(ram_bytes: u64, sessions_bytes: u64) -> u8 {
    let (least, most) = STREAM_WINDOW_LOGS;
    let share = sessions_bytes / STREAM_WINDOW_SHARE;
    let fits = |log: &u8| 1 << log <= share && 1 << (log - 1) < ram_bytes;
    (least..=most).rev().find(fits).unwrap_or(least)
}

impl VmMemory {
    /// What a session on these terms takes.
    pub(crate) fn of(terms: &VmTerms, role: Role) -> Self {
        let bytes = match role {
            Role::Source => stream_source_bytes,
            Role::Sink => stream_sink_bytes,
        };
        let sizes = StreamSizes {
            pages_max: terms.pages_max,
            base_pages: terms.base_pages,
            before_pages: terms.before.map_or(0, |before| before.pages),
            held_pages: terms.held.unwrap_or(0),
            window_log: terms.window_log,
            undelivered_bytes_max: terms.undelivered_bytes_max,
        };
        let reading = match role {
            Role::Source => 0,
            Role::Sink => sizes.held_pages.saturating_mul(HOLDING_BYTES_PER_PAGE),
        };
        let all = bytes(sizes).saturating_add(reading);
        let tables_bytes = terms.pages_max.saturating_mul(STORE_PAGE_BYTES);
        let window_bytes = bytes(sizes) - bytes(StreamSizes { window_log: 0, ..sizes });
        let none = StreamSizes { base_pages: 0, before_pages: 0, held_pages: 0, ..sizes };
        let bases_bytes = all - bytes(none);
        let held_bytes = all.saturating_sub(tables_bytes + bases_bytes + window_bytes);
        Self { tables_bytes, bases_bytes, held_bytes, window_bytes }
    }

    /// All of it.
    pub(crate) fn total(&self) -> u64 {
        let parts = [self.tables_bytes, self.bases_bytes, self.held_bytes, self.window_bytes];
        parts.into_iter().fold(0, u64::saturating_add)
    }
}

impl fmt::Display for VmMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tables_bytes, bases_bytes, held_bytes, window_bytes } = self;
        write!(
            f,
            "tables {tables_bytes} + bases {bases_bytes} + undelivered {held_bytes} + zstd window \
             {window_bytes} bytes"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_proto::wire::limits::{
        REGION_PAGES_MAX, STREAM_WINDOW_LOG_MAX, UNDELIVERED_BYTES_MAX,
    };

    #[test]
    fn the_parts_are_said_and_make_the_whole() {
        let terms = VmTerms {
            window_log: 20,
            pages_max: 10,
            base_pages: 2,
            undelivered_bytes_max: 1 << 20,
            before: None,
            held: None,
        };
        for role in [Role::Source, Role::Sink] {
            let memory = VmMemory::of(&terms, role);
            assert_eq!((memory.tables_bytes, memory.bases_bytes), (320, 2 * 4104));
            assert!(memory.held_bytes >= 1 << 20 && memory.window_bytes >= 1 << 20);
            assert!(memory.to_string().starts_with("tables 320 + bases 8208 + undelivered "));
            let without = VmMemory::of(&VmTerms { window_log: 0, ..terms }, role);
            assert_eq!(without.window_bytes, 0);
            assert_eq!(without.total() + memory.window_bytes, memory.total());
        }
    }

    #[test]
    fn a_window_is_as_long_as_the_guest_and_the_memory_allow() {
        let (mib, gib) = (1 << 20, 1 << 30);
        assert_eq!(window_log(8 * gib, gib), 27);
        assert_eq!(window_log(100 * mib, gib), 27);
        assert_eq!(window_log(64 * mib, gib), 26);
        assert_eq!(window_log(8 * gib, 511 * mib), 26);
        assert_eq!(window_log(8 * gib, 20 * mib), 24);
        assert_eq!(window_log(mib, gib), 24);
    }

    #[test]
    fn the_most_that_a_peer_may_offer_does_not_overflow() {
        let terms = VmTerms {
            window_log: STREAM_WINDOW_LOG_MAX,
            pages_max: REGION_PAGES_MAX,
            base_pages: REGION_PAGES_MAX,
            undelivered_bytes_max: UNDELIVERED_BYTES_MAX,
            before: None,
            held: None,
        };
        assert!(VmMemory::of(&terms, Role::Sink).total() > 1 << 40);
    }
}
