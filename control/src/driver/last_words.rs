//! The last words of a peer whose streams are gone.
//!
//! Part of [`Core`], on the control thread. A peer that ends says so on its channel and closes its
//! streams. Their end may be noticed first, above all by a host that was held up meanwhile, and
//! would look like a lost link, for which sessions wait. So the channel is heard until it ends too,
//! for a short time.

use super::core::Core;
use crate::limits::LAST_WORDS_WAIT;
use crate::peer::PeerError;
use dwcp_dataplane::port::StreamEnd;
use dwcp_proto::ids::LinkId;
use dwcp_proto::time::Nanos;

/// What is held against a link whose channel may have more to say.
#[derive(Clone, Copy, Debug)]
pub(super) struct LastWords {
    until: Nanos,
    /// The lane that lost its last stream, and how.
    lane: u16,
    cause: StreamEnd,
}

impl Core {
    /// Whether a link that seems to be lost is heard first. Its channel's own end is its last word.
    pub(super) fn awaits_last_words(&mut self, link: LinkId, cause: &PeerError) -> bool {
        let until = self.now() + LAST_WORDS_WAIT;
        let Some(entry) = self.links.get_mut(&link) else { return false };
        let PeerError::LaneLost { lane, cause } = *cause else { return false };
        if entry.channel.is_none() || entry.parked.is_some() {
            return false;
        }
        entry.last_words.get_or_insert(LastWords { until, lane, cause });
        true
    }

    /// The wait is over: the link is lost as it seemed to be.
    pub(super) fn tick_last_words(&mut self, link: LinkId, now: Nanos) {
        let Some(entry) = self.links.get_mut(&link) else { return };
        if let Some(LastWords { lane, cause, .. }) = entry.last_words.take_if(|it| it.until <= now)
        {
            self.link_is_lost(link, &PeerError::LaneLost { lane, cause });
        }
    }
}
