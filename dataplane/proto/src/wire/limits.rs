//! Every limit of the protocol in one place, each with its derivation.
//!
//! Plain constants, used on every thread. A change of a value that a peer can notice needs a new
//! [`WireVersion`](super::version::WireVersion). Relations between limits are checked when the
//! crate is compiled.

use crate::time::Nanos;

/// Bytes of a page: what x86-64 and most arm64 guests use, and the unit of dirty tracking.
pub const PAGE_BYTES: usize = 4096;
/// Pages of an extent: one bit each in a `u64` mask.
pub const EXTENT_PAGES: usize = 64;
/// Bytes of an extent's pages.
pub const EXTENT_BYTES: usize = PAGE_BYTES * EXTENT_PAGES;
/// What the coding of an extent may add to the bytes of its pages when nothing is compressible:
/// 64 bytes for each page cover its kind, base version and length, with room for the digests.
pub const CODING_OVERHEAD_BYTES_MAX: usize = 64 * EXTENT_PAGES;
/// The longest payload of a frame with pages.
pub const PAGES_PAYLOAD_BYTES_MAX: usize = EXTENT_BYTES + CODING_OVERHEAD_BYTES_MAX;

/// Bytes of a record's header.
pub const RECORD_HEADER_BYTES: usize = 16;
/// Bytes of the AES-256-GCM tag behind a sealed record's ciphertext.
pub const RECORD_TAG_BYTES: usize = 16;
/// Bytes in front of every frame's body: type, three reserved, length of the body.
pub const FRAME_HEADER_BYTES: usize = 8;
/// Bytes in front of the payload of a frame with pages: header, session, round, sequence.
pub const PAGES_FRAME_HEADER_BYTES: usize = FRAME_HEADER_BYTES + 4 + 4 + 8;
/// The longest frame without pages: `Verify`, with session, digest and page count.
pub const SMALL_FRAME_BYTES_MAX: usize = FRAME_HEADER_BYTES + 4 + 16 + 8;
/// Bytes in front of the payload of a frame of a migration stream: header, session, channel, kind,
/// one reserved, sequence, position.
pub const STREAM_FRAME_HEADER_BYTES: usize = FRAME_HEADER_BYTES + 4 + 2 + 1 + 1 + 8 + 8;
/// The longest payload of such a frame: a batch of as many pages as an extent has.
pub const STREAM_PAYLOAD_BYTES_MAX: usize = PAGES_PAYLOAD_BYTES_MAX;
/// Bytes in front of the payload of a reply: header, session, channel, two reserved, offset.
pub const REPLY_FRAME_HEADER_BYTES: usize = FRAME_HEADER_BYTES + 4 + 2 + 2 + 8;
/// The longest payload of a reply. A VMM answers with some bytes for each request; more than this
/// at a time only delays them.
pub const REPLY_BYTES_MAX: usize = 32 * 1024;
/// The most channels of a migration stream: its first connection and as many as fill the link.
pub const CHANNELS_MAX: u16 = 32;
/// The most pages that one frame tells of when a sink says what it alone holds: few enough that the
/// first of them are known soon, enough that the counts before them cost a quarter of a byte each.
pub const HELD_CHUNK_PAGES: usize = 2048;
/// Bytes in front of the hashes of such a frame: header, session, chunk, a count for each value of
/// a hash's first byte.
pub const HELD_FRAME_HEADER_BYTES: usize = FRAME_HEADER_BYTES + 4 + 4 + HELD_COUNTS_BYTES;
/// The counts.
pub const HELD_COUNTS_BYTES: usize = 256 * 2;
/// Bytes of each hash: eight, of which the first follows from the counts. At 2^24 pages at both
/// ends (64 GiB), two different ones look alike in one of 2^16 sessions, which then fails.
pub const HELD_HASH_BYTES: usize = 7;
/// The unit in which both ends of a migration stream count what is sent and not yet delivered.
pub const HELD_UNIT_BYTES: usize = 4096;
/// The least bound of undelivered bytes: some full records.
pub const UNDELIVERED_BYTES_MIN: u64 = 1 << 20;
/// The longest plaintext of a record: one frame with a whole incompressible extent.
pub const RECORD_PLAIN_BYTES_MAX: usize = STREAM_FRAME_HEADER_BYTES + STREAM_PAYLOAD_BYTES_MAX;
/// The longest record on the wire.
pub const RECORD_BYTES_MAX: usize = RECORD_HEADER_BYTES + RECORD_PLAIN_BYTES_MAX + RECORD_TAG_BYTES;
/// An arena slot that holds any record: the longest one in whole pages.
pub const RECORD_SLOT_BYTES: usize = RECORD_BYTES_MAX.next_multiple_of(PAGE_BYTES);

/// The most records under one key. Below 2^24, so that the bound of AES-GCM on data under one key
/// (2^24.5 full records of TLS 1.3 for an advantage of 2^-57) keeps room for our longer records.
pub const KEY_RECORDS_MAX: u32 = (1 << 24) - 1;

/// The most streams of a link: on-line search for the best number ends far below it.
pub const STREAMS_MAX: u16 = 256;
/// The most lanes of a link, so the most shards that share one: one bit each in a `u64`.
pub const LANES_MAX: u16 = 64;
/// The most sessions of a link at one time.
pub const LINK_SESSIONS_MAX: usize = 256;

/// The length of the HELLO's frozen part, without the host name.
pub const HELLO_FIXED_BYTES: usize = 64;
/// The longest host name in a HELLO: what the kernel's `HOST_NAME_MAX` allows.
pub const HOST_NAME_BYTES_MAX: usize = 64;
/// The longest HELLO that is read at all; a later version may append fields up to here.
pub const HELLO_BYTES_MAX: usize = 1024;

/// Bytes in front of a peer message: its length as a big-endian `u32`.
pub const PEER_LENGTH_BYTES: usize = 4;
/// The longest peer message. The longest real one opens a virtual machine's session.
pub const PEER_MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// The longest name of a region.
pub const REGION_NAME_BYTES_MAX: usize = 128;
/// The longest stable code of an error in a peer message.
pub const CODE_BYTES_MAX: usize = 64;
/// The longest text for people in a peer message.
pub const MESSAGE_BYTES_MAX: usize = 512;
/// The longest facts about a virtual machine: some hundred devices of a hundred bytes each.
pub const FACTS_BYTES_MAX: usize = 24 * 1024;
/// The most findings in a refusal: more than a person mends at once.
pub const FINDINGS_MAX: usize = 16;
/// The shortest and the longest zstd window of a stream session, as binary logarithms: what the
/// codec knows, 128 MiB at most. 0 stands for none.
pub const STREAM_WINDOW_LOG_MIN: u8 = 10;
/// See [`STREAM_WINDOW_LOG_MIN`].
pub const STREAM_WINDOW_LOG_MAX: u8 = 27;
/// The most bytes that a stream session may have sent and not delivered: 100 Gbit/s for 340 ms.
pub const UNDELIVERED_BYTES_MAX: u64 = 1 << 32;
/// The most sessions that one link takes up again: all that a daemon has.
pub const SESSIONS_RESUMED_MAX: usize = 256;
/// The most pages of a region: 2^36 pages are 256 TiB, the reach of 48-bit addresses.
pub const REGION_PAGES_MAX: u64 = 1 << 36;

/// The least window of a lane: one full record, since a lane may always exceed its window by the
/// frame that it sends next, so two are in flight and the link never idles between them. More would
/// be a standing queue on slow paths: a record takes 21 ms at 100 Mbit/s.
pub const WINDOW_BYTES_FLOOR: u64 = RECORD_BYTES_MAX as u64;
/// The window of a lane before anything was measured: four full records, so that coding, link and
/// acks overlap from the first moment.
pub const WINDOW_BYTES_START: u64 = 4 * RECORD_BYTES_MAX as u64;
/// Backlog allowed by default, beyond one bandwidth-delay product, as time at the current rate.
/// Longer queues turn into downtime of the guest, shorter ones starve the link on jitter.
pub const BACKLOG_DEFAULT: Nanos = Nanos::from_millis(50);

/// How long the sink may take to open a session: reserving and touching memory included.
pub const OPEN_TIMEOUT: Nanos = Nanos::from_millis(30_000);
/// How long the source waits for `Committed` before it calls the session in doubt and asks.
pub const COMMIT_TIMEOUT: Nanos = Nanos::from_millis(2_000);
/// How often a session in doubt asks again while the link is up.
pub const QUERY_INTERVAL: Nanos = Nanos::from_millis(1_000);

/// What a frame of a migration stream with this payload counts for while it is undelivered: whole
/// units, so that what the source may send is exactly what the sink has room to hold.
#[must_use]
pub const fn held_bytes(payload_bytes: usize) -> usize {
    if payload_bytes == 0 {
        HELD_UNIT_BYTES
    } else {
        payload_bytes.next_multiple_of(HELD_UNIT_BYTES)
    }
}

const _: () = {
    assert!(EXTENT_PAGES == u64::BITS as usize);
    assert!(LANES_MAX as u32 <= u64::BITS && LANES_MAX <= STREAMS_MAX);
    assert!(CODING_OVERHEAD_BYTES_MAX == 4096);
    assert!(PAGES_PAYLOAD_BYTES_MAX == 266_240);
    assert!(SMALL_FRAME_BYTES_MAX <= RECORD_PLAIN_BYTES_MAX);
    assert!(PAGES_FRAME_HEADER_BYTES <= STREAM_FRAME_HEADER_BYTES);
    assert!(REPLY_FRAME_HEADER_BYTES + REPLY_BYTES_MAX <= RECORD_PLAIN_BYTES_MAX);
    assert!(HELD_FRAME_HEADER_BYTES + HELD_CHUNK_PAGES * HELD_HASH_BYTES <= RECORD_PLAIN_BYTES_MAX);
    assert!(HELD_CHUNK_PAGES <= u16::MAX as usize);
    assert!(UNDELIVERED_BYTES_MIN as usize >= 2 * held_bytes(STREAM_PAYLOAD_BYTES_MAX));
    assert!(RECORD_BYTES_MAX == 266_304 && RECORD_BYTES_MAX <= RECORD_SLOT_BYTES);
    assert!(RECORD_SLOT_BYTES.is_multiple_of(PAGE_BYTES));
    assert!(KEY_RECORDS_MAX < 1 << 24);
    assert!(HELLO_FIXED_BYTES + HOST_NAME_BYTES_MAX <= HELLO_BYTES_MAX);
    assert!(
        6 * (MESSAGE_BYTES_MAX + CODE_BYTES_MAX + REGION_NAME_BYTES_MAX) < PEER_MESSAGE_BYTES_MAX
    );
    // A text has no control characters, so that JSON's escapes at most double it.
    assert!(2 * FACTS_BYTES_MAX + 4096 < PEER_MESSAGE_BYTES_MAX);
    assert!(
        (FINDINGS_MAX + 1) * (2 * (2 * MESSAGE_BYTES_MAX + CODE_BYTES_MAX) + 64)
            < PEER_MESSAGE_BYTES_MAX
    );
    // A session's name is 32 digits between quotes, with a comma.
    assert!(SESSIONS_RESUMED_MAX * 35 + 256 < PEER_MESSAGE_BYTES_MAX);
    assert!(WINDOW_BYTES_FLOOR >= RECORD_BYTES_MAX as u64);
    assert!(WINDOW_BYTES_FLOOR <= WINDOW_BYTES_START);
};
