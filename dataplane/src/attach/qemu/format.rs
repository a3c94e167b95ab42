//! The numbers of QEMU's stream format. Used by the parser and the emitter; only constants.
//!
//! They are the same from QEMU 7.2 to 11.1.

use dwcp_codec::PAGE_BYTES;

/// The first four bytes: "QEVM".
pub(super) const MAGIC: [u8; 4] = 0x5145_564d_u32.to_be_bytes();
/// The version that follows them.
pub(super) const VERSION: u32 = 3;

/// The type bytes of what the stream consists of.
pub(super) mod kind {
    pub(in super::super) const START: u8 = 0x01;
    pub(in super::super) const PART: u8 = 0x02;
    pub(in super::super) const END: u8 = 0x03;
    pub(in super::super) const SUBSECTION: u8 = 0x05;
    pub(in super::super) const CONFIGURATION: u8 = 0x07;
    pub(in super::super) const COMMAND: u8 = 0x08;
    pub(in super::super) const FOOTER: u8 = 0x7e;
}

/// Commands that don't change how the stream is to be read.
pub(super) mod command {
    pub(in super::super) const OPEN_RETURN_PATH: u16 = 1;
    pub(in super::super) const PING: u16 = 2;
    /// Only says that postcopy may follow.
    pub(in super::super) const POSTCOPY_ADVISE: u16 = 3;
    pub(in super::super) const SWITCHOVER_START: u16 = 11;
}

/// The flags in the low bits of a word of the RAM section.
pub(super) mod flag {
    pub(in super::super) const ALL: u64 = 0xfff;
    pub(in super::super) const ZERO: u64 = 0x02;
    pub(in super::super) const MEM_SIZE: u64 = 0x04;
    pub(in super::super) const PAGE: u64 = 0x08;
    pub(in super::super) const EOS: u64 = 0x10;
    pub(in super::super) const CONTINUE: u64 = 0x20;
    pub(in super::super) const XBZRLE: u64 = 0x40;
    pub(in super::super) const MULTIFD_FLUSH: u64 = 0x200;
}

/// The only section that is read, and its version.
pub(super) const RAM: &[u8] = b"ram";
pub(super) const RAM_VERSION: u32 = 4;

/// A target page is one of our pages.
pub(super) const TARGET_PAGE_BITS: u32 = PAGE_BYTES.ilog2();
const _: () = assert!(flag::ALL == PAGE_BYTES as u64 - 1, "an offset's low bits are the flags");

/// A word, a length byte, the longest name, a page.
pub const RECORD_BYTES_MAX: usize = 8 + 1 + 255 + PAGE_BYTES;
