//! What the data plane counts: one table per subject, each counter with its metric name and
//! meaning.
//!
//! A shard owns the writers; the control thread owns the readers. Nothing here locks or allocates
//! after start. The names are the Prometheus names without the `dwcp_` prefix.

use dwcp_ffi::counters::{CounterReader, CounterWriter};

/// A counter's metric name (without prefix) and what it counts.
#[derive(Clone, Copy, Debug)]
pub struct CounterInfo {
    /// The metric's name, unit last.
    pub name: &'static str,
    /// One sentence for people.
    pub help: &'static str,
}

/// Declares an enum of counters and its table.
macro_rules! counters {
    (
        $(#[$doc:meta])*
        $name:ident[$count:ident, $table:ident] {
            $($variant:ident: $metric:literal, $help:literal;)+
        }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum $name { $(#[doc = $help] $variant),+ }

        /// How many counters the table has.
        pub const $count: usize = [$($metric),+].len();

        /// Name and meaning of each counter, in the order of the enum.
        pub const $table: [CounterInfo; $count] =
            [$(CounterInfo { name: $metric, help: $help }),+];

        impl $name {
            /// The counter's index in its block.
            #[must_use]
            pub const fn index(self) -> usize {
                self as usize
            }
        }
    };
}

counters! {
    /// What one shard did.
    ShardCounter[SHARD_COUNTER_COUNT, SHARD_COUNTERS] {
        Polls: "shard_polls_total",
            "Turns of the shard's loop.";
        BusyPolls: "shard_busy_polls_total",
            "Turns of the loop that found work.";
        Parks: "shard_parks_total",
            "Times that the shard slept in the kernel.";
        EncodeNanos: "shard_encode_nanoseconds_total",
            "Time spent coding extents.";
        DecodeNanos: "shard_decode_nanoseconds_total",
            "Time spent decoding extents.";
        BaselineNanos: "shard_baseline_nanoseconds_total",
            "Time spent on the zstd-1 comparison, when switched on.";
        LeasesFree: "shard_leases_free",
            "Arena slots that nobody holds.";
        FramesDropped: "shard_dropped_frames_total",
            "Frames of sessions that are not open here, or no longer.";
        CommandsRefused: "shard_commands_refused_total",
            "Commands that named no known link, stream or session.";
    }
}

counters! {
    /// What one stream carried.
    StreamCounter[STREAM_COUNTER_COUNT, STREAM_COUNTERS] {
        SentBytes: "stream_sent_bytes_total",
            "Bytes handed to the kernel, records and their overhead included.";
        ReceivedBytes: "stream_received_bytes_total",
            "Bytes received from the kernel.";
        SentRecords: "stream_sent_records_total",
            "Records sealed and sent.";
        ReceivedRecords: "stream_received_records_total",
            "Records received and opened.";
        ZeroCopySends: "stream_zero_copy_sends_total",
            "Sends that the kernel reported as not copied.";
        CopiedSends: "stream_copied_sends_total",
            "Zero-copy sends that the kernel reported as copied after all.";
        RecordErrors: "stream_record_errors_total",
            "Records refused: altered, replayed, oversized or out of place.";
        InFlightBytes: "stream_in_flight_bytes",
            "Bytes posted and not yet acknowledged by the peer.";
        RttNanos: "stream_rtt_nanoseconds",
            "Newest round trip, from posting a frame to its acknowledgement.";
        TcpRttNanos: "stream_tcp_rtt_nanoseconds",
            "The kernel's smoothed round trip of the connection.";
        TcpRttMinNanos: "stream_tcp_rtt_min_nanoseconds",
            "The kernel's least round trip of the connection's recent past.";
        TcpWindowBytes: "stream_tcp_window_bytes",
            "The congestion window.";
        TcpUnsentBytes: "stream_tcp_unsent_bytes",
            "Bytes in the send buffer that were never sent.";
        TcpDeliveryRate: "stream_tcp_delivery_bytes_per_second",
            "The kernel's newest rate of delivery.";
        TcpAppLimited: "stream_tcp_app_limited",
            "1 if that rate was bound by the sender, which had no more to send, else 0.";
        TcpInStartup: "stream_tcp_in_startup",
            "1 while BBR looks for the path's rate, else 0.";
        TcpRetransmittedSegments: "stream_tcp_retransmitted_segments_total",
            "Segments that the kernel sent more than once.";
        TcpRetransmittedBytes: "stream_tcp_retransmitted_bytes_total",
            "Bytes that the kernel sent more than once.";
        TcpBusyNanos: "stream_tcp_busy_nanoseconds_total",
            "Time with something to send or to be acknowledged.";
        TcpReceiveWindowNanos: "stream_tcp_receive_window_limited_nanoseconds_total",
            "The part of the busy time in which the peer's receive window was full.";
        TcpSendBufferNanos: "stream_tcp_send_buffer_limited_nanoseconds_total",
            "The part of the busy time in which the send buffer was full.";
    }
}

counters! {
    /// What one session's lane moved; source and sink count the same things on their own side.
    SessionCounter[SESSION_COUNTER_COUNT, SESSION_COUNTERS] {
        PagesScanned: "session_scanned_pages_total",
            "Pages looked at: dirty by the source of dirty pages.";
        PagesZero: "session_zero_pages_total",
            "Pages sent as all zero.";
        PagesUnchanged: "session_unchanged_pages_total",
            "Dirty pages that held what the sink already had; nothing was sent.";
        PagesPostponed: "session_postponed_pages_total",
            "Pages of a region that were written again before their turn; the next round has them.";
        PagesDelta: "session_delta_pages_total",
            "Pages sent as their change against an acknowledged version.";
        PagesZstd: "session_zstd_pages_total",
            "Pages sent compressed with their extent.";
        PagesRaw: "session_raw_pages_total",
            "Pages sent as they are.";
        DeltaBytes: "session_delta_bytes_total",
            "Coded bytes of delta pages.";
        ZstdBytes: "session_zstd_bytes_total",
            "Coded bytes of compressed pages.";
        RawBytes: "session_raw_bytes_total",
            "Coded bytes of raw pages.";
        WireBytes: "session_wire_bytes_total",
            "Bytes of the session's frames, sealed, as handed to the link.";
        BaselineBytes: "session_zstd1_bytes_total",
            "Bytes that plain zstd-1 makes of the same pages, each alone, with the comparison on.";
        BaselineZeroBytes: "session_zero_zstd1_bytes_total",
            "The part of it for pages sent as zero.";
        BaselineDeltaBytes: "session_delta_zstd1_bytes_total",
            "The part of it for pages sent as deltas.";
        BaselineZstdBytes: "session_zstd_zstd1_bytes_total",
            "The part of it for pages sent compressed with their extent.";
        BaselineRawBytes: "session_raw_zstd1_bytes_total",
            "The part of it for pages sent raw.";
        Frames: "session_frames_total",
            "Frames with pages.";
        Nacks: "session_nacks_total",
            "Frames that the sink could not decode and asked for again whole.";
        LatePages: "session_late_pages_total",
            "Older versions of a page that arrived late and were dropped.";
        PagesRequeued: "session_requeued_pages_total",
            "Pages coded anew because their stream died or the sink asked for them.";
        PagesVerified: "session_verified_pages_total",
            "Pages whose memory at the sink was read back and matched.";
        PagesPending: "session_pending_pages",
            "Pages of the current round that are not yet sent.";
        BasePages: "session_base_pages",
            "Page versions kept as bases.";
        BacklogBytes: "session_backlog_bytes",
            "Coded bytes sent and not yet acknowledged (migration streams: not yet taken by the \
             VMM), beyond one bandwidth-delay product.";
        VmmInBytes: "session_vmm_in_bytes_total",
            "Bytes of migration streams that the VMM wrote at the source.";
        VmmOutBytes: "session_vmm_out_bytes_total",
            "Bytes of migration streams that the VMM took at the sink.";
        OpaqueBytes: "session_opaque_bytes_total",
            "Bytes of migration streams that were carried as they are.";
        CodedBytes: "session_coded_bytes_total",
            "Payload of the frames of migration streams, each counted once.";
        DeliveredBytes: "session_delivered_bytes_total",
            "Payload that the VMM at the sink took.";
        UndeliveredBytes: "session_undelivered_bytes",
            "Payload sent and not yet taken by the VMM at the sink.";
        DeliveryRate: "session_delivery_bytes_per_second",
            "The rate at which the VMM at the sink takes payload while there is some; an average.";
        ZstdLevel: "session_zstd_level",
            "The zstd level at which a migration stream is coded now.";
        CodingNanos: "session_coding_nanoseconds_total",
            "Time that the source of a migration stream spent on coding.";
        HeldNanos: "session_link_wait_nanoseconds_total",
            "Time that it waited for the link with something to send.";
        RttMinNanos: "session_rtt_min_nanoseconds",
            "The least time from sending a frame of a migration stream to its delivery.";
        FramesResent: "session_resent_frames_total",
            "Frames of migration streams that were sent again since their stream died.";
        DuplicateFrames: "session_duplicate_frames_total",
            "Frames of migration streams that came more than once.";
        ReorderHighWater: "session_reorder_high_water_bytes",
            "The most that the sink of a migration stream held at a time, in units of 4 KiB.";
        ReplyBytes: "session_reply_bytes_total",
            "Bytes of migration streams that the VMM at the sink answered.";
        ToldBytes: "session_told_bytes_total",
            "Bytes of the frames in which the sink of a migration stream says what it alone holds.";
        PagesHeld: "session_held_pages_total",
            "Pages sent as the name of one that the sink alone held.";
    }
}

/// The writer that a shard keeps for itself.
pub type ShardStats = CounterWriter<SHARD_COUNTER_COUNT>;
/// The reader of a shard's counters.
pub type ShardStatsReader = CounterReader<SHARD_COUNTER_COUNT>;
/// The writer of a stream's counters.
pub type StreamStats = CounterWriter<STREAM_COUNTER_COUNT>;
/// The reader of a stream's counters.
pub type StreamStatsReader = CounterReader<STREAM_COUNTER_COUNT>;
/// The writer of a session lane's counters.
pub type SessionStats = CounterWriter<SESSION_COUNTER_COUNT>;
/// The reader of a session lane's counters.
pub type SessionStatsReader = CounterReader<SESSION_COUNTER_COUNT>;
