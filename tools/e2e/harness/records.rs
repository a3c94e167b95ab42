//! Data streams cut into records, and what an attacker on the path can do to one.
//!
//! Used by the proxy, which knows no key: it sees the clear headers alone.

use dwcp_proto::wire::limits::{RECORD_BYTES_MAX, RECORD_HEADER_BYTES};
use dwcp_proto::wire::preface::PREFACE_BYTES;
use std::io::{self, Read};

/// Records below this carry no pages worth tampering with: acks, pings, verification.
const PAGES_RECORD_BYTES_MIN: usize = 2000;

/// What is done to a record with pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tamper {
    /// One bit of its body flips.
    Altered,
    /// It says that it belongs to another stream.
    WrongStream,
    /// It comes twice.
    Replayed,
    /// It comes after its successor.
    OutOfPlace,
    /// Half of it comes, then the connection ends.
    Truncated,
    /// Its header claims more than any record may have.
    Oversized,
    /// It claims to be of another wire version.
    Version,
    /// It claims to be neither encrypted nor authenticated.
    Plain,
}

impl Tamper {
    /// All, with the reasons under which the sink counts the end of the stream: a connection that
    /// just ends may be noticed by the source first, which then drops the link.
    pub(crate) const ALL: [(Self, &'static [&'static str]); 8] = [
        (Self::Altered, &["record_altered"]),
        (Self::WrongStream, &["record_wrong_stream"]),
        (Self::Replayed, &["record_replayed"]),
        (Self::OutOfPlace, &["record_out_of_place"]),
        (Self::Truncated, &["closed_by_peer", "socket", "dropped"]),
        (Self::Oversized, &["wire_record_too_long"]),
        (Self::Version, &["wire_bad_version"]),
        (Self::Plain, &["record_plain_refused"]),
    ];

    /// Whether a record is one that is worth it.
    pub(crate) fn wants(record: &[u8]) -> bool {
        record.len() >= PAGES_RECORD_BYTES_MIN
    }
}

/// The first record with pages of a recorded data stream.
pub(crate) fn first_with_pages(mut recorded: &[u8]) -> Option<Vec<u8>> {
    let mut piece = next_piece(&mut recorded, true).ok()?;
    while !piece.is_empty() {
        piece = next_piece(&mut recorded, false).ok()?;
        if Tamper::wants(&piece) {
            return Some(piece);
        }
    }
    None
}

/// A piece of a data stream: its preface, then one record at a time, then what was cut off.
pub(crate) fn next_piece(stream: &mut impl Read, first: bool) -> io::Result<Vec<u8>> {
    if first {
        return read_up_to(stream, PREFACE_BYTES);
    }
    let mut record = read_up_to(stream, RECORD_HEADER_BYTES)?;
    if record.len() == RECORD_HEADER_BYTES {
        let body = record[8..12].try_into().expect("four bytes");
        let body = usize::try_from(u32::from_be_bytes(body)).expect("32 bits fit");
        assert!(body < RECORD_BYTES_MAX, "a daemon of ours sends no such record");
        record.extend(read_up_to(stream, body)?);
    }
    Ok(record)
}

/// So many bytes, or fewer at the end of the stream.
fn read_up_to(stream: &mut impl Read, bytes: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; bytes];
    let mut filled = 0;
    while filled < bytes {
        match stream.read(&mut buffer[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    buffer.truncate(filled);
    Ok(buffer)
}

/// What goes on in place of a record, and whether the connection ends after it. `next` gives the
/// record after it.
pub(crate) fn tampered(
    how: Tamper,
    mut record: Vec<u8>,
    next: impl FnOnce() -> io::Result<Vec<u8>>,
) -> io::Result<(Vec<u8>, bool)> {
    match how {
        Tamper::Altered => {
            let middle = record.len() / 2;
            record[middle] ^= 0x10;
        }
        Tamper::WrongStream => record[5] ^= 1,
        Tamper::Replayed => record.extend_from_within(..),
        Tamper::OutOfPlace => {
            let mut later = next()?;
            later.append(&mut record);
            record = later;
        }
        Tamper::Truncated => {
            record.truncate(record.len() / 2);
            return Ok((record, true));
        }
        Tamper::Oversized => record[8..12].copy_from_slice(&0x00ff_ffff_u32.to_be_bytes()),
        Tamper::Version => record[1] += 1,
        Tamper::Plain => record[3] |= 1,
    }
    Ok((record, false))
}
