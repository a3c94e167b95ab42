//! What a virtual machine's session takes from the budget of memory, part by part.
//!
//! Pure arithmetic.

use crate::api::Role;
use dwcp_dataplane::port::{
    STORE_PAGE_BYTES, STORE_SLOT_BYTES, StreamSizes, stream_sink_bytes, stream_source_bytes,
};
use dwcp_proto::wire::vm::VmTerms;
use std::fmt;

/// The parts of one end's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VmMemory {
    /// What is kept of each page besides its content.
    pub(crate) tables_bytes: u64,
    /// Page versions kept as bases.
    pub(crate) bases_bytes: u64,
    /// Coded bytes that are not delivered yet: kept for a second sending at the source, waiting for
    /// their turn at the sink.
    pub(crate) held_bytes: u64,
    /// The long zstd window.
    pub(crate) window_bytes: u64,
}

impl VmMemory {
    /// What a session on these terms takes.
    pub(crate) fn of(terms: &VmTerms, role: Role) -> Self {
        let of = match role {
            Role::Source => stream_source_bytes,
            Role::Sink => stream_sink_bytes,
        };
        let bare = StreamSizes {
            pages_max: 0,
            base_pages: 0,
            window_log: 0,
            undelivered_bytes_max: terms.undelivered_bytes_max,
        };
        let held_bytes = of(bare);
        let windowed = of(StreamSizes { window_log: terms.window_log, ..bare });
        let slots = terms.base_pages.min(terms.pages_max);
        Self {
            tables_bytes: terms.pages_max.saturating_mul(STORE_PAGE_BYTES),
            bases_bytes: slots.saturating_mul(STORE_SLOT_BYTES),
            held_bytes,
            window_bytes: windowed.saturating_sub(held_bytes),
        }
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

    #[test]
    fn the_parts_are_said_and_no_offer_overflows() {
        let terms = VmTerms {
            window_log: 20,
            pages_max: 10,
            base_pages: 2,
            undelivered_bytes_max: 1 << 20,
        };
        for role in [Role::Source, Role::Sink] {
            let memory = VmMemory::of(&terms, role);
            assert!(memory.held_bytes >= 1 << 20);
            assert!(memory.window_bytes >= 1 << 20);
            let rest = memory.held_bytes + memory.window_bytes;
            assert_eq!(memory.total(), 320 + 8208 + rest);
            assert!(memory.to_string().starts_with("tables 320 + bases 8208 + undelivered "));
            let huge = VmTerms { pages_max: u64::MAX, base_pages: u64::MAX, ..terms };
            assert_eq!(VmMemory::of(&huge, role).total(), u64::MAX);
            assert_eq!(VmMemory::of(&VmTerms { window_log: 0, ..terms }, role).window_bytes, 0);
        }
    }
}
