//! What an authority made: one record per certificate, kept beside its key in `issued.json`.
//!
//! Data. The list is the authority's memory for revocations; hosts never see it.

use serde::{Deserialize, Serialize};

/// One certificate that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Issued {
    /// The host.
    pub(crate) name: String,
    /// The serial number in hexadecimal.
    pub(crate) serial: String,
    /// When it begins to hold.
    pub(crate) not_before_unix_s: i64,
    /// When it ends.
    pub(crate) not_after_unix_s: i64,
    /// When it was revoked, if it was.
    pub(crate) revoked_unix_s: Option<i64>,
}

impl Issued {
    /// One word for people.
    pub(crate) fn state(&self, now_unix_s: i64) -> &'static str {
        match self.revoked_unix_s {
            Some(_) => "revoked",
            None if now_unix_s > self.not_after_unix_s => "expired",
            None => "valid",
        }
    }

    /// The serial number's bytes; nothing for a damaged record.
    pub(super) fn serial_bytes(&self) -> Option<Vec<u8>> {
        if !self.serial.is_ascii() || !self.serial.len().is_multiple_of(2) {
            return None;
        }
        let pairs = (0..self.serial.len()).step_by(2).map(|at| &self.serial[at..at + 2]);
        pairs.map(|pair| u8::from_str_radix(pair, 16).ok()).collect()
    }
}
