//! Why a page can't be written for the destination.
//!
//! The peer's fault: what it sent is authentic but breaks the order or the bounds of the format.

/// Why an emitter refused what the peer sent. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EmitError {
    /// Blocks are numbered 0, 1, 2 ..
    #[error("RAM block {number} was announced where {next} comes next")]
    BlockOrder {
        /// The number announced.
        number: u16,
        /// The one expected.
        next: u16,
    },
    /// A block's name is empty, too long or known already, its size is not one of whole pages, or
    /// there are too many blocks or pages.
    #[error("RAM block {number} is not one that can be")]
    BlockInvalid {
        /// The block.
        number: u16,
    },
    /// No block has this page.
    #[error("page {page} is in no RAM block")]
    PageUnknown {
        /// The page.
        page: u64,
    },
}

impl EmitError {
    /// The stable name for counters and logs.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::BlockOrder { .. } => "qemu-block-order",
            Self::BlockInvalid { .. } => "qemu-block-invalid",
            Self::PageUnknown { .. } => "qemu-page-unknown",
        }
    }
}
