//! What both ends of a stream session compare: a digest over all parts, in order.
//!
//! Fed at the source when a part is made and at the sink when its turn comes, so that it covers
//! what lies between: keeping, sending again, holding, ordering. The pages of a part are covered by
//! the digest inside of it, which the sink holds against what it decoded. Neither covers the
//! records that the sink makes of them for its VMM: the source never had these bytes, since pages
//! that the sink has already are left out. The end of a channel is left out: it says nothing of
//! what the VMM was given, and comes when the VMM likes.

use crate::port::ChannelId;
use dwcp_codec::{DigestBuilder, DigestKind, PageHash, PageHasher};
use dwcp_proto::ids::Position;
use dwcp_proto::wire::frame::StreamKind;
use dwcp_proto::wire::limits::CHANNELS_MAX;

/// The digest of one channel's parts.
#[derive(Debug)]
pub(super) struct ChannelDigest {
    builder: DigestBuilder,
    parts: u64,
}

impl ChannelDigest {
    pub(super) fn new(hasher: &PageHasher) -> Self {
        Self { builder: DigestBuilder::new(hasher, DigestKind::Stream), parts: 0 }
    }

    /// Adds the channel's next part, whose payload comes in pieces.
    pub(super) fn add<'a>(
        &mut self,
        position: Position,
        kind: StreamKind,
        bytes: usize,
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) {
        if kind != StreamKind::End {
            self.builder.add_part(position.0, kind as u8, bytes, pieces);
            self.parts += 1;
        }
    }
}

/// How many parts all channels had, and the digest over them.
pub(super) fn digest_of<'a>(
    hasher: &PageHasher,
    channels: impl Iterator<Item = (ChannelId, &'a ChannelDigest)>,
) -> (u64, [u8; 16]) {
    // Both ends may have got their channels in another order, and one that carries nothing on one
    // end only.
    let mut of_channel = [None; CHANNELS_MAX as usize];
    let mut parts = 0;
    for (id, digest) in channels.filter(|(_, digest)| digest.parts > 0) {
        of_channel[usize::from(id.0)] = Some(digest.builder.finish());
        parts += digest.parts;
    }
    let mut all = DigestBuilder::new(hasher, DigestKind::Stream);
    for (number, digest) in (0..).zip(of_channel) {
        if let Some(digest) = digest {
            all.add(number, PageHash(digest.0));
        }
    }
    (parts, all.finish().0)
}
