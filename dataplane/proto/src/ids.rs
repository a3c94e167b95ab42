//! The identifiers of the protocol: one newtype each, so that none can stand in for another.
//!
//! Plain values, used on every thread. Nothing here allocates or does I/O.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Declares a newtype over an unsigned integer with its accessors.
macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[derive(Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl $name {
            /// The value after this one.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

id! {
    /// A link as one daemon numbers it; never sent to a peer.
    LinkId(u32)
}
id! {
    /// How many times this link was established: a part of every key's context.
    LinkEpoch(u64)
}
id! {
    /// A data stream of a link, from 0.
    StreamId(u16)
}
id! {
    /// How many times a stream was opened: a new connection is a new incarnation with new keys.
    Incarnation(u32)
}
id! {
    /// The part of a link that one shard owns at each end.
    LaneId(u16)
}
id! {
    /// A session's short name on its link, given by the source.
    SessionNumber(u32)
}
id! {
    /// A frame's place in its lane's session, and the version of every page that it carries.
    /// 0 means "no version".
    Sequence(u64)
}
id! {
    /// A page's place in its region.
    PageIndex(u64)
}
id! {
    /// One pass of pre-copy, from 1.
    Round(u32)
}

id! {
    /// A connection of a VMM whose migration stream is carried: 0 is the first one, more follow
    /// when the VMM opens several.
    ChannelId(u16)
}
id! {
    /// A frame's place in its channel of a migration stream, from 0: the order in which the sink
    /// handles frames, whatever order they come in.
    Position(u64)
}

/// A session as one daemon's threads name it: the link that carries it and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionKey {
    /// The link.
    pub link: LinkId,
    /// The number on that link.
    pub number: SessionNumber,
}

/// A session's name for people, journals and peers: 128 random bits, written in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub [u8; 16]);

/// Why a text is no [`SessionId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a session id is 32 hexadecimal digits")]
pub struct BadSessionId;

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for SessionId {
    type Err = BadSessionId;

    fn from_str(text: &str) -> Result<Self, BadSessionId> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(BadSessionId);
        }
        u128::from_str_radix(text, 16).map(|n| Self(n.to_be_bytes())).map_err(|_| BadSessionId)
    }
}

impl Serialize for SessionId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SessionId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_id_survives_its_text_form() {
        let id = SessionId([0xab; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!("ab".parse::<SessionId>(), Err(BadSessionId));
        assert_eq!("+b".repeat(16).parse::<SessionId>(), Err(BadSessionId));
    }
}
