//! Why a stream is carried without being read any further.
//!
//! Plain values, made by the parser, and by a stream session that sees a reason of its own.

/// Why a stream is opaque from some byte on. No error: the migration goes on, it only costs more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Trouble {
    /// The stream does not start as one of QEMU's: TLS, or a connection of multifd.
    NotQemu,
    /// A version of the stream or of its RAM section that is not known.
    Version,
    /// A configuration that changes the format or is not known.
    Configuration,
    /// A section other than `ram` before the end of `ram`.
    Section,
    /// A command that changes what follows: postcopy, or one that is not known.
    Command,
    /// The list of RAM blocks breaks the format or is longer than what is held here.
    BlockList,
    /// A page record names no block of the list, or an offset outside its block.
    Record,
    /// A page coded by XBZRLE.
    Xbzrle,
    /// QEMU opened further connections: pages no longer come in the order of one of them.
    Multifd,
    /// Flags that are not known.
    Flags,
}

impl Trouble {
    /// All, for tables and tests.
    pub const ALL: [Self; 10] = [
        Self::NotQemu,
        Self::Version,
        Self::Configuration,
        Self::Section,
        Self::Command,
        Self::BlockList,
        Self::Record,
        Self::Xbzrle,
        Self::Multifd,
        Self::Flags,
    ];

    /// The stable code for logs, metrics and notes.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::NotQemu => "qemu-not-a-stream",
            Self::Version => "qemu-version",
            Self::Configuration => "qemu-configuration",
            Self::Section => "qemu-section",
            Self::Command => "qemu-command",
            Self::BlockList => "qemu-block-list",
            Self::Record => "qemu-record",
            Self::Xbzrle => "qemu-xbzrle",
            Self::Multifd => "qemu-multifd",
            Self::Flags => "qemu-flags",
        }
    }
}
