//! What the transport says of the path, and how long a record may be on it.
//!
//! Pure; part of the window.

use super::bytes_in;
use crate::time::Nanos;

/// A record shall be on its stream for no longer, unless it would get too short to code well: what
/// comes on faster streams waits for it at the sink. Where so many streams share the path that
/// each is slow, short records do less harm than long waits.
const RECORD_TIME: Nanos = Nanos::from_millis(5);
const RECORD_BYTES_LEAST: u64 = 64 << 10;
const RECORD_BYTES_LEAST_SHARED: u64 = 16 << 10;
const FEW_STREAMS: u64 = 8;
/// What the transport says of the path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PathReport {
    /// So many streams share it.
    pub streams: u64,
    /// It still looks for the path's rate.
    pub in_startup: bool,
    /// The path's rate as it takes it, in bytes per second; 0: it does not say.
    pub rate: u64,
    /// The path's round trip as it takes it, measured again and again; 0: it does not say.
    pub rtt: Nanos,
    /// Something was lost on it of late: what is behind it waits at the sink for a round trip and
    /// more, and meanwhile there has to be something to send.
    pub recovers: bool,
}

/// How long a record may be where so many streams share a rate.
pub(super) fn record_bytes(rate_bytes_per_second: u64, streams: u64) -> u64 {
    let streams = streams.max(1);
    let least = RECORD_BYTES_LEAST * FEW_STREAMS / streams.max(FEW_STREAMS);
    let fitting = bytes_in(rate_bytes_per_second / streams, RECORD_TIME);
    fitting.max(least.max(RECORD_BYTES_LEAST_SHARED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_short_where_its_stream_is_slow_and_not_too_short_to_code_well() {
        const MIB: u64 = 1 << 20;
        assert_eq!(record_bytes(0, 1), 64 << 10, "nothing is known yet");
        assert_eq!(record_bytes(200 * MIB, 1), MIB);
        assert_eq!(record_bytes(200 * MIB, 4), MIB / 4);
        assert_eq!(record_bytes(10 * MIB, 8), 64 << 10);
        assert_eq!(record_bytes(100 * MIB, 16), 32 << 10);
        assert_eq!(record_bytes(100 * MIB, 64), 16 << 10);
    }
}
