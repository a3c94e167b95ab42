//! What two HELLOs agree on, or why they don't.
//!
//! Pure, used on the control thread. Both ends hold both HELLOs and come to the same result, so a
//! refusal needs no message of its own: each end closes the connection and reports it.

use crate::wire::hello::{Hello, features_of};
use crate::wire::limits::RECORD_BYTES_MAX;
use crate::wire::version::WireVersion;

/// What both ends will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// The highest version that both speak.
    pub version: WireVersion,
    /// The features that both offer and the version has.
    pub features: u64,
    /// The most streams of the link.
    pub streams_max: u16,
    /// The most lanes of the link.
    pub lanes_max: u16,
    /// The longest record.
    pub record_bytes_max: u32,
    /// The bytes of a page.
    pub page_bytes: u32,
}

impl Agreed {
    /// True when the feature (or all of several) was agreed on.
    #[must_use]
    pub const fn has(&self, feature: u64) -> bool {
        self.features & feature == feature
    }
}

/// Why two daemons can't talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The ranges of versions don't meet.
    #[error("no common version: here {ours_lowest} to {ours_highest}, there {lowest} to {highest}")]
    Version {
        /// The lowest version here.
        ours_lowest: u16,
        /// The highest version here.
        ours_highest: u16,
        /// The peer's lowest.
        lowest: u16,
        /// The peer's highest.
        highest: u16,
    },
    /// The peer does not offer what is required here.
    #[error("the peer lacks required features ({missing:#x})")]
    PeerLacksFeatures {
        /// The missing bits.
        missing: u64,
    },
    /// The peer requires what is not offered here.
    #[error("the peer requires features that this daemon lacks ({missing:#x})")]
    WeLackFeatures {
        /// The missing bits.
        missing: u64,
    },
    /// Pages of different length.
    #[error("pages have {ours} bytes here and {theirs} there")]
    PageBytes {
        /// Here.
        ours: u32,
        /// There.
        theirs: u32,
    },
    /// One end does not take the records that a whole extent needs.
    #[error("records of at most {record_bytes} bytes are too short for an extent")]
    RecordBytes {
        /// The smaller of both limits.
        record_bytes: u32,
    },
    /// Both ends are the same running daemon.
    #[error("the peer is this daemon itself")]
    SameInstance,
}

impl Refusal {
    /// The stable code of this refusal.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Version { .. } => "refused_version",
            Self::PeerLacksFeatures { .. } => "refused_peer_lacks_features",
            Self::WeLackFeatures { .. } => "refused_we_lack_features",
            Self::PageBytes { .. } => "refused_page_bytes",
            Self::RecordBytes { .. } => "refused_record_bytes",
            Self::SameInstance => "refused_same_instance",
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn cure(&self) -> &'static str {
        match self {
            Self::Version { .. } => "bring both hosts to releases at most one apart",
            Self::PeerLacksFeatures { .. } => {
                "upgrade the peer, or run both daemons with or both without --insecure-plaintext"
            }
            Self::WeLackFeatures { .. } => {
                "upgrade this host, or run both daemons with or both without --insecure-plaintext"
            }
            Self::PageBytes { .. } => "both hosts must use pages of the same length",
            Self::RecordBytes { .. } => "upgrade the host with the smaller limit",
            Self::SameInstance => "give the address of another host",
        }
    }
}

/// Compares two HELLOs. Both ends get the same answer, seen from their own side.
///
/// # Errors
/// The two can't talk.
pub fn agree(ours: &Hello, theirs: &Hello) -> Result<Agreed, Refusal> {
    if ours.instance == theirs.instance {
        return Err(Refusal::SameInstance);
    }
    let version = agree_on_version(ours, theirs)?;
    let features = ours.features_offered & theirs.features_offered & features_of(version);
    let missing = ours.features_required & !features;
    if missing != 0 {
        return Err(Refusal::PeerLacksFeatures { missing });
    }
    let missing = theirs.features_required & !features;
    if missing != 0 {
        return Err(Refusal::WeLackFeatures { missing });
    }
    if ours.page_bytes != theirs.page_bytes {
        return Err(Refusal::PageBytes { ours: ours.page_bytes, theirs: theirs.page_bytes });
    }
    let record_bytes = ours.record_bytes_max.min(theirs.record_bytes_max);
    if (record_bytes as usize) < RECORD_BYTES_MAX {
        return Err(Refusal::RecordBytes { record_bytes });
    }
    Ok(Agreed {
        version,
        features,
        streams_max: ours.streams_max.min(theirs.streams_max),
        lanes_max: ours.lanes_max.min(theirs.lanes_max),
        record_bytes_max: record_bytes,
        page_bytes: ours.page_bytes,
    })
}

/// The highest version that both speak.
fn agree_on_version(ours: &Hello, theirs: &Hello) -> Result<WireVersion, Refusal> {
    let highest = ours.version_highest.min(theirs.version_highest);
    let lowest = ours.version_lowest.max(theirs.version_lowest);
    WireVersion::new(highest).filter(|_| lowest <= highest).ok_or(Refusal::Version {
        ours_lowest: ours.version_lowest,
        ours_highest: ours.version_highest,
        lowest: theirs.version_lowest,
        highest: theirs.version_highest,
    })
}
