//! The keys of a stream: how they are derived, held and forgotten.
//!
//! The control thread derives them from the TLS exporter of the control channel, one per direction
//! of one incarnation of one stream of one link epoch; the shard that owns the stream turns them
//! into a [`super::record::Sealer`] and an [`super::record::Opener`]. They are wiped on drop and
//! never printed.

use super::bytes::put;
use crate::ids::{Incarnation, LinkEpoch, StreamId};
use std::fmt;
use zeroize::Zeroize;

/// The exporter label of stream keys.
pub const STREAM_KEY_LABEL: &[u8] = b"EXPORTER-dwcp-stream";
/// The exporter label of the key of the page hash.
pub const PAGE_HASH_LABEL: &[u8] = b"EXPORTER-dwcp-page-hash";
/// Bytes of an AES-256 key.
pub const KEY_BYTES: usize = 32;
/// Bytes of a nonce and of the value that the counter is combined with.
pub const IV_BYTES: usize = 12;
/// Bytes to export for one direction: the key, then the iv.
pub const EXPORTED_BYTES: usize = KEY_BYTES + IV_BYTES;
/// Bytes of the exporter's context.
pub const KEY_CONTEXT_BYTES: usize = 8 + 2 + 4 + 1;

/// Which way a key's records travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the daemon that dialled to the one that listened.
    SourceToSink,
    /// The other way.
    SinkToSource,
}

/// The exporter's context for one key: epoch, stream, incarnation, direction.
#[must_use]
pub fn key_context(
    epoch: LinkEpoch,
    stream: StreamId,
    incarnation: Incarnation,
    direction: Direction,
) -> [u8; KEY_CONTEXT_BYTES] {
    let mut out = [0; KEY_CONTEXT_BYTES];
    let mut at = 0;
    put(&mut out, &mut at, &epoch.0.to_be_bytes());
    put(&mut out, &mut at, &stream.0.to_be_bytes());
    put(&mut out, &mut at, &incarnation.0.to_be_bytes());
    let direction = match direction {
        Direction::SourceToSink => 1,
        Direction::SinkToSource => 2,
    };
    put(&mut out, &mut at, &[direction]);
    out
}

/// The nonce of a record: the iv with the counter combined into its last eight bytes, as TLS 1.3
/// does it.
#[must_use]
pub fn nonce(iv: &[u8; IV_BYTES], counter: u32) -> [u8; IV_BYTES] {
    let mut out = *iv;
    let counter = u64::from(counter).to_be_bytes();
    out[IV_BYTES - 8..].iter_mut().zip(counter).for_each(|(byte, mask)| *byte ^= mask);
    out
}

/// The key of one direction of a stream, or the word that there is none.
pub enum DirectionKey {
    /// Records are sealed with AES-256-GCM.
    Sealed {
        /// The key.
        key: [u8; KEY_BYTES],
        /// What the counter is combined with.
        iv: [u8; IV_BYTES],
    },
    /// Records are neither encrypted nor authenticated (`--insecure-plaintext`, for comparisons).
    Plain,
}

impl DirectionKey {
    /// A key from what the TLS exporter gave. The caller's copy is its own to wipe.
    #[must_use]
    pub fn from_exported(exported: &[u8; EXPORTED_BYTES]) -> Self {
        let mut key = [0; KEY_BYTES];
        let mut iv = [0; IV_BYTES];
        key.copy_from_slice(&exported[..KEY_BYTES]);
        iv.copy_from_slice(&exported[KEY_BYTES..]);
        let sealed = Self::Sealed { key, iv };
        key.zeroize();
        iv.zeroize();
        sealed
    }
}

impl Drop for DirectionKey {
    fn drop(&mut self) {
        if let Self::Sealed { key, iv } = self {
            key.zeroize();
            iv.zeroize();
        }
    }
}

impl fmt::Debug for DirectionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sealed { .. } => "DirectionKey::Sealed(..)",
            Self::Plain => "DirectionKey::Plain",
        })
    }
}

/// The keys of one incarnation of a stream.
#[derive(Debug)]
pub struct StreamKeys {
    /// For the records that this end sends.
    pub send: DirectionKey,
    /// For the records that this end receives.
    pub receive: DirectionKey,
}

impl StreamKeys {
    /// No keys at all: records travel in the clear.
    #[must_use]
    pub const fn plain() -> Self {
        Self { send: DirectionKey::Plain, receive: DirectionKey::Plain }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_never_print_their_bytes() {
        let keys = StreamKeys {
            send: DirectionKey::from_exported(&[0x5a; EXPORTED_BYTES]),
            receive: DirectionKey::Plain,
        };
        let text = format!("{keys:?}");
        assert!(!text.contains("5a") && !text.contains("90"), "{text}");
    }

    #[test]
    fn every_part_of_the_context_changes_it() {
        let base = key_context(LinkEpoch(1), StreamId(1), Incarnation(1), Direction::SourceToSink);
        let others = [
            key_context(LinkEpoch(2), StreamId(1), Incarnation(1), Direction::SourceToSink),
            key_context(LinkEpoch(1), StreamId(2), Incarnation(1), Direction::SourceToSink),
            key_context(LinkEpoch(1), StreamId(1), Incarnation(2), Direction::SourceToSink),
            key_context(LinkEpoch(1), StreamId(1), Incarnation(1), Direction::SinkToSource),
        ];
        assert!(others.iter().all(|other| *other != base));
    }
}
