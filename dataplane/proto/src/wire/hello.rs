//! The first bytes in each direction of a peer connection. Their layout never changes.
//!
//! ```text
//! 0..4   magic "DWCP"
//! 4..6   bytes of the whole HELLO; a reader skips what it does not know at the end
//! 6..8   lowest version        8..10  highest version
//! 10..12 reserved (zero)
//! 12..20 features offered      20..28 features required
//! 28..30 streams at most       30..32 lanes at most
//! 32..36 record bytes at most  36..40 page bytes
//! 40..56 instance of the daemon (random, new at every start)
//! 56     bytes of the host name
//! 57..64 reserved (zero)
//! 64..   host name, UTF-8
//! ```
//!
//! Used on the control thread. Nothing is agreed here; that is [`crate::negotiate`]'s work.

use super::WireError;
use super::bytes::{array, put, u16_at, u32_at, u64_at};
use super::limits::{
    HELLO_BYTES_MAX, HELLO_FIXED_BYTES, HOST_NAME_BYTES_MAX, LANES_MAX, PAGE_BYTES,
    RECORD_BYTES_MAX, STREAMS_MAX,
};
use super::text::Text;
use super::version::WireVersion;

/// The first bytes of a HELLO.
pub const HELLO_MAGIC: [u8; 4] = *b"DWCP";
/// Pages may be coded as their change against an acknowledged version.
pub const FEATURE_PAGES_DELTA: u64 = 1 << 0;
/// Pages may be coded by zstd.
pub const FEATURE_PAGES_ZSTD: u64 = 1 << 1;
/// Records travel in the clear. Offered and required by a daemon with `--insecure-plaintext`, so
/// that it never meets one without.
pub const FEATURE_PLAIN_RECORDS: u64 = 1 << 2;
/// Migration streams of VMMs may be carried (frames 10 to 13).
pub const FEATURE_STREAM: u64 = 1 << 3;
/// A link may go on over another connection (`link_resume`).
pub const FEATURE_RESUME: u64 = 1 << 4;
/// A stream that is not needed any more may be retired (frame 14).
pub const FEATURE_RETIRE: u64 = 1 << 5;
/// Sessions of regions wait for the next connection of a link that goes on (`link_resume`).
pub const FEATURE_RESUME_REGIONS: u64 = 1 << 6;
/// Carriers' sessions wait for the next connection of a link that goes on (`link_resume`).
pub const FEATURE_RESUME_CARRIERS: u64 = 1 << 7;
/// A virtual machine's session may use pages that both ends hold from an earlier one.
pub const FEATURE_BEFORE: u64 = 1 << 8;

/// Every feature that this program knows, and its name for people.
/// A sink may tell what it alone holds: `held` in a session's terms, and the frame of that name.
pub const FEATURE_HELD: u64 = 1 << 9;

const FEATURES: [(u64, &str); 10] = [
    (FEATURE_PAGES_DELTA, "pages_delta"),
    (FEATURE_PAGES_ZSTD, "pages_zstd"),
    (FEATURE_PLAIN_RECORDS, "plain_records"),
    (FEATURE_STREAM, "stream"),
    (FEATURE_RESUME, "resume"),
    (FEATURE_RETIRE, "retire"),
    (FEATURE_RESUME_REGIONS, "resume_regions"),
    (FEATURE_RESUME_CARRIERS, "resume_carriers"),
    (FEATURE_BEFORE, "before"),
    (FEATURE_HELD, "held"),
];

/// The names of the features that are in a set.
pub fn feature_names(features: u64) -> impl Iterator<Item = &'static str> {
    FEATURES.into_iter().filter(move |(bit, _)| features & bit != 0).map(|(_, name)| name)
}

/// The features that a version has. What a peer offers beyond them counts for nothing on its link.
#[must_use]
pub const fn features_of(version: WireVersion) -> u64 {
    let first = FEATURE_PAGES_DELTA
        | FEATURE_PAGES_ZSTD
        | FEATURE_PLAIN_RECORDS
        | FEATURE_STREAM
        | FEATURE_RESUME;
    match version {
        WireVersion::V1 => first,
        WireVersion::V2 => {
            first
                | FEATURE_RETIRE
                | FEATURE_RESUME_REGIONS
                | FEATURE_RESUME_CARRIERS
                | FEATURE_BEFORE
                | FEATURE_HELD
        }
    }
}

/// A host's name for people.
pub type HostName = Text<HOST_NAME_BYTES_MAX>;

/// What a daemon says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The lowest version it speaks.
    pub version_lowest: u16,
    /// The highest version it speaks.
    pub version_highest: u16,
    /// Features that it can use, a bit each.
    pub features_offered: u64,
    /// Features without which it does not talk.
    pub features_required: u64,
    /// The most streams of a link.
    pub streams_max: u16,
    /// The most lanes of a link.
    pub lanes_max: u16,
    /// The longest record that it takes.
    pub record_bytes_max: u32,
    /// The bytes of a page.
    pub page_bytes: u32,
    /// The running daemon: random, new at every start.
    pub instance: [u8; 16],
    /// The host's name. Not a proof of anything: that is the certificate's.
    pub host: HostName,
}

impl Hello {
    /// What this program says by default.
    #[must_use]
    pub const fn ours(host: HostName, instance: [u8; 16]) -> Self {
        Self {
            version_lowest: WireVersion::LOWEST.number(),
            version_highest: WireVersion::HIGHEST.number(),
            features_offered: features_of(WireVersion::HIGHEST) & !FEATURE_PLAIN_RECORDS,
            features_required: 0,
            streams_max: STREAMS_MAX,
            lanes_max: LANES_MAX,
            record_bytes_max: RECORD_BYTES_MAX as u32,
            page_bytes: PAGE_BYTES as u32,
            instance,
            host,
        }
    }

    /// The same for a program whose highest version it is.
    #[must_use]
    pub fn of_version(mut self, version: WireVersion) -> Self {
        self.version_highest = version.number();
        self.features_offered &= features_of(version);
        self
    }

    /// The same for a daemon whose records travel in the clear.
    #[must_use]
    pub fn with_plain_records(mut self) -> Self {
        self.features_offered |= FEATURE_PLAIN_RECORDS;
        self.features_required |= FEATURE_PLAIN_RECORDS;
        self
    }

    /// The HELLO as it stands on the wire.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let host = self.host.as_str().as_bytes();
        let bytes = HELLO_FIXED_BYTES + host.len();
        let mut out = vec![0; bytes];
        let mut at = 0;
        let mut field = |field: &[u8]| put(&mut out, &mut at, field);
        field(&HELLO_MAGIC);
        field(&(bytes as u16).to_be_bytes());
        field(&self.version_lowest.to_be_bytes());
        field(&self.version_highest.to_be_bytes());
        field(&[0; 2]);
        field(&self.features_offered.to_be_bytes());
        field(&self.features_required.to_be_bytes());
        field(&self.streams_max.to_be_bytes());
        field(&self.lanes_max.to_be_bytes());
        field(&self.record_bytes_max.to_be_bytes());
        field(&self.page_bytes.to_be_bytes());
        field(&self.instance);
        field(&[host.len() as u8, 0, 0, 0, 0, 0, 0, 0]);
        field(host);
        assert!(at == bytes, "the layout has no gap");
        out
    }

    /// Reads the HELLO at the start of a growing buffer and tells how long it is: `None` until all
    /// of it is there.
    ///
    /// # Errors
    /// The bytes are no HELLO.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, WireError> {
        let start = bytes.len().min(HELLO_MAGIC.len());
        if bytes[..start] != HELLO_MAGIC[..start] {
            return Err(WireError::BadMagic { what: "HELLO", found: bytes[0] });
        }
        if bytes.len() < 6 {
            return Ok(None);
        }
        let length = usize::from(u16_at(bytes, 4));
        if !(HELLO_FIXED_BYTES..=HELLO_BYTES_MAX).contains(&length) {
            return Err(WireError::OutOfRange { what: "a HELLO's length", found: length as u64 });
        }
        if bytes.len() < length {
            return Ok(None);
        }
        Self::decode_fields(&bytes[..length]).map(|hello| Some((hello, length)))
    }

    fn decode_fields(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes[10..12] != [0; 2] || bytes[57..64] != [0; 7] {
            return Err(WireError::Reserved { what: "a HELLO" });
        }
        let (version_lowest, version_highest) = (u16_at(bytes, 6), u16_at(bytes, 8));
        if version_lowest == 0 || version_lowest > version_highest {
            let found = version_lowest.into();
            return Err(WireError::OutOfRange { what: "a HELLO's lowest version", found });
        }
        let features_offered = u64_at(bytes, 12);
        let features_required = u64_at(bytes, 20);
        if features_required & !features_offered != 0 {
            let found = features_required;
            return Err(WireError::OutOfRange { what: "a HELLO's required features", found });
        }
        let (streams_max, lanes_max) = (u16_at(bytes, 28), u16_at(bytes, 30));
        if streams_max == 0 || lanes_max == 0 {
            return Err(WireError::OutOfRange { what: "a HELLO's streams or lanes", found: 0 });
        }
        let host_bytes = usize::from(bytes[56]);
        if host_bytes > HOST_NAME_BYTES_MAX || HELLO_FIXED_BYTES + host_bytes > bytes.len() {
            let found = bytes[56].into();
            return Err(WireError::OutOfRange { what: "a HELLO's host name length", found });
        }
        let host = std::str::from_utf8(&bytes[HELLO_FIXED_BYTES..][..host_bytes])
            .ok()
            .and_then(|host| HostName::new(host).ok())
            .ok_or(WireError::BadText { what: "a HELLO's host name" })?;
        Ok(Self {
            version_lowest,
            version_highest,
            features_offered,
            features_required,
            streams_max,
            lanes_max,
            record_bytes_max: u32_at(bytes, 32),
            page_bytes: u32_at(bytes, 36),
            instance: array(bytes, 40),
            host,
        })
    }
}
