//! What peer messages say of a virtual machine's session: the source's offer, the sink's terms, the
//! findings of the preflight.
//!
//! Plain values with their bounds; used on the control thread.

use super::limits::{
    FACTS_BYTES_MAX, FINDINGS_MAX, REGION_PAGES_MAX, STREAM_WINDOW_LOG_MAX, STREAM_WINDOW_LOG_MIN,
    UNDELIVERED_BYTES_MAX,
};
use super::peer::{Code, Message, PeerCoding, PeerError, RegionName};
use super::text::Text;
use super::token::PagesDigest;
use crate::ids::SessionId;
use serde::{Deserialize, Serialize};

/// What a host knows of its virtual machine, as JSON that this crate does not read.
pub type FactsText = Text<FACTS_BYTES_MAX>;

/// Pages that both ends hold from an earlier session, in which the guest went one way or the other.
/// Only with [`FEATURE_BEFORE`](super::hello::FEATURE_BEFORE).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PagesBefore {
    /// The session that left them.
    pub session: SessionId,
    /// A digest of all that it left, the same at both ends.
    pub digest: PagesDigest,
    /// How many of them are used: the first so many in the order in which they are kept.
    pub pages: u64,
}

/// What both ends reserve for a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmTerms {
    /// The binary logarithm of the long zstd window, 0 for none.
    pub window_log: u8,
    /// The most guest pages in the tables.
    pub pages_max: u64,
    /// Page versions kept as bases.
    pub base_pages: u64,
    /// The most coded bytes that are sent and not yet handed to the VMM at the sink.
    pub undelivered_bytes_max: u64,
    /// What both ends hold from before; it counts as `base_pages`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<PagesBefore>,
    /// How many pages the sink may tell of that it alone holds; in the offer the most that the
    /// source takes. They count as `base_pages`. Only with
    /// [`FEATURE_HELD`](super::hello::FEATURE_HELD), and not beside `before`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<u64>,
}

impl VmTerms {
    pub(super) fn check(&self) -> Result<(), PeerError> {
        let range = |what, found: u64, least: u64, max: u64| match (least..=max).contains(&found) {
            true => Ok(()),
            false => Err(PeerError::OutOfRange { what, found, max }),
        };
        if self.window_log != 0 {
            let (least, most) = (STREAM_WINDOW_LOG_MIN.into(), STREAM_WINDOW_LOG_MAX.into());
            range("window_log", self.window_log.into(), least, most)?;
        }
        range("pages_max", self.pages_max, 1, REGION_PAGES_MAX)?;
        range("base_pages", self.base_pages, 0, self.pages_max)?;
        if let Some(before) = &self.before {
            range("before.pages", before.pages, 1, self.base_pages)?;
        }
        if let Some(held) = self.held {
            range("held", held, 1, self.base_pages)?;
        }
        range("undelivered_bytes_max", self.undelivered_bytes_max, 1, UNDELIVERED_BYTES_MAX)
    }

    /// True when nothing here is above what `offered` says.
    #[must_use]
    pub fn within(&self, offered: &Self) -> bool {
        self.window_log <= offered.window_log
            && self.pages_max <= offered.pages_max
            && self.base_pages <= offered.base_pages
            && self.undelivered_bytes_max <= offered.undelivered_bytes_max
            // What is from before is read by the source before it offers it, for as many bases.
            && (self.before.is_none()
                || self.before == offered.before && self.base_pages == offered.base_pages)
            && (self.held.is_none() || self.held <= offered.held && self.before.is_none())
    }
}

/// What the source offers to send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmOffer {
    /// The virtual machine's name, the same at both ends.
    pub name: RegionName,
    /// What the source knows of it.
    pub facts: FactsText,
    /// How its pages will be coded.
    pub coding: PeerCoding,
    /// What the source would reserve.
    pub terms: VmTerms,
    /// Whether the guest is left paused at the sink, for its owner there to start.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
}

/// One thing that does not fit at the sink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerFinding {
    /// Its stable name.
    pub code: Code,
    /// What was found, with both values.
    pub message: Message,
    /// What to do about it.
    pub cure: Message,
}

/// A list of findings that is never longer than it may be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<PeerFinding>", into = "Vec<PeerFinding>")]
pub struct PeerFindings(Vec<PeerFinding>);

impl PeerFindings {
    /// The first findings of a list, as many as a message may hold.
    #[must_use]
    pub fn cut(findings: impl IntoIterator<Item = PeerFinding>) -> Self {
        Self(findings.into_iter().take(FINDINGS_MAX).collect())
    }

    /// True when nothing was found.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The findings.
    #[must_use]
    pub fn as_slice(&self) -> &[PeerFinding] {
        &self.0
    }
}

/// More findings than a message may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found} findings are more than {FINDINGS_MAX}")]
pub struct TooManyFindings {
    /// How many.
    pub found: usize,
}

impl TryFrom<Vec<PeerFinding>> for PeerFindings {
    type Error = TooManyFindings;

    fn try_from(findings: Vec<PeerFinding>) -> Result<Self, TooManyFindings> {
        match findings.len() {
            0..=FINDINGS_MAX => Ok(Self(findings)),
            found => Err(TooManyFindings { found }),
        }
    }
}

impl From<PeerFindings> for Vec<PeerFinding> {
    fn from(findings: PeerFindings) -> Self {
        findings.0
    }
}
