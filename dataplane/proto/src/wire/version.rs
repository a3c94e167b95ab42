//! The versions of records, frames and peer messages that this program speaks.
//!
//! Plain values, used on every thread. A HELLO names versions by number, since a peer may know
//! others; past [`crate::negotiate`] there are only those of [`WireVersion`]. Each link has one for
//! as long as it lives, and everything on its streams is of that version.

/// A version that this program speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum WireVersion {
    /// The first one.
    V1 = 1,
    /// Features 5 and 6, and the frames that come with them.
    V2 = 2,
}

impl WireVersion {
    /// The lowest.
    pub const LOWEST: Self = Self::V1;
    /// The highest.
    pub const HIGHEST: Self = Self::V2;
    /// All of them, in order.
    pub const ALL: [Self; 2] = [Self::V1, Self::V2];

    /// The version of that number, if it is spoken here.
    #[must_use]
    pub const fn new(number: u16) -> Option<Self> {
        match number {
            1 => Some(Self::V1),
            2 => Some(Self::V2),
            _ => None,
        }
    }

    /// Its number, as a HELLO and a preface have it.
    #[must_use]
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// Its number in the one byte that a record has for it.
    #[must_use]
    pub const fn byte(self) -> u8 {
        self as u8
    }
}

impl std::fmt::Display for WireVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.number().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_what_its_number_says() {
        for version in WireVersion::ALL {
            assert_eq!(WireVersion::new(version.number()), Some(version));
        }
        let (lowest, highest) = (WireVersion::LOWEST.number(), WireVersion::HIGHEST.number());
        assert_eq!((WireVersion::new(lowest - 1), WireVersion::new(highest + 1)), (None, None));
        assert!(WireVersion::ALL.is_sorted());
    }
}
