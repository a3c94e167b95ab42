//! Opaque 128-bit values that peers hand to each other, written in hexadecimal.

use crate::ids::SessionId;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What the sink gives the source to show in each stream's preface. It is a secret of the link and
/// ends with it, so it is never printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LinkToken(pub [u8; 16]);

impl fmt::Debug for LinkToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LinkToken(..)")
    }
}

/// What the sink gives the source to show when it takes the link up again over another connection:
/// good for one such time. A secret of the link, so it is never printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ResumeToken(pub [u8; 16]);

impl fmt::Debug for ResumeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ResumeToken(..)")
    }
}

/// The name of a journal, made with the state directory. It tells a sink that never committed a
/// session from one that lost the memory of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JournalId(pub [u8; 16]);

impl fmt::Debug for JournalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&SessionId(self.0), f)
    }
}

impl fmt::Display for JournalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&SessionId(self.0), f)
    }
}

/// The digest of the pages that a session left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagesDigest(pub [u8; 16]);

/// Writes a 128-bit value as a session id is written: 32 hexadecimal digits.
macro_rules! as_hexadecimal {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                SessionId(self.0).serialize(serializer)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                SessionId::deserialize(from).map(|id| Self(id.0))
            }
        }
    };
}

as_hexadecimal!(LinkToken);
as_hexadecimal!(ResumeToken);
as_hexadecimal!(JournalId);
as_hexadecimal!(PagesDigest);
