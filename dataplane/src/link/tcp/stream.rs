//! One TCP stream: its queue of sealed records, its receive buffer, its keys and its end.
//!
//! Owned by [`super::TcpLink`]. One send and one receive are in flight at most. A stream that
//! failed goes through three steps: `fail` notes why, `pump` closes the socket once, and the ring's
//! `Closed` makes it report its end; until then its slot is not used again.

use super::curb::Curb;
use crate::link::PathState;
use crate::port::StreamEnd;
use crate::stats::{StreamCounter, StreamStats};
use dwcp_ffi::arena::Lease;
use dwcp_ffi::spsc::Full;
use dwcp_ffi::sys::tcp::{TcpInfo, bbr_info, set_pacing_rate_max, tcp_info};
use dwcp_ffi::uring::{SocketIndex, Uring};
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::limits::RECORD_HEADER_BYTES;
use dwcp_proto::wire::reader::{next_record, record_bytes};
use dwcp_proto::wire::record::{Opener, Sealer, StreamKeys, StreamPlace};
use std::collections::VecDeque;
use std::ops::Range;

/// Records that wait for the send in flight. Two keep the socket busy while the next is coded; more
/// would only be backlog that an urgent frame waits behind.
const QUEUE_RECORDS_MAX: usize = 2;

/// Below this a zero-copy send costs more than the copy.
pub(super) const ZERO_COPY_BYTES_MIN: usize = 16 * 1024;

/// After this many reports of "copied" in a row the stream stops asking for zero copy. It asks no
/// more often ahead of a first report either: that comes a round trip later, and until then the
/// leases can't be used, whether the kernel copied or not.
pub(super) const COPIED_IN_A_ROW_MAX: u32 = 4;

/// Above this the rest of a record is received exactly, so that no bytes have to be moved to the
/// buffer's start; below it one receive may bring many small records.
const EXACT_RECEIVE_BYTES_MIN: usize = 32 * 1024;

#[derive(Debug)]
struct Queued {
    lease: Lease,
    bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Open,
    /// Failed; the socket is not closed yet.
    Failed(StreamEnd),
    /// The ring was told to close.
    Closing(StreamEnd),
    /// Nothing of it is in the ring any more.
    Ended(StreamEnd),
}

#[derive(Debug)]
pub(super) struct TcpStream {
    socket: SocketIndex,
    sealer: Sealer,
    opener: Opener,
    stats: StreamStats,
    queue: VecDeque<Queued>,
    /// Bytes of the send in flight.
    sending: Option<usize>,
    /// The receive buffer while no receive is in flight.
    buffer: Option<Lease>,
    /// Bytes received and not yet opened lie in this part of the buffer.
    unread: Range<usize>,
    copied_in_a_row: u32,
    /// Zero-copy sends that the kernel has not reported on, and whether its last report was that it
    /// did not copy.
    unreported: u32,
    is_zero_copy: bool,
    path: PathState,
    curb: Curb,
    /// What the kernel knew when it was asked last.
    known: TcpInfo,
    life: Life,
}

impl TcpStream {
    pub(super) fn new(
        socket: SocketIndex,
        place: StreamPlace,
        keys: StreamKeys,
        stats: StreamStats,
        buffer: Lease,
    ) -> Self {
        Self {
            socket,
            sealer: Sealer::new(keys.send, place),
            opener: Opener::new(keys.receive, place),
            stats,
            queue: VecDeque::with_capacity(QUEUE_RECORDS_MAX),
            sending: None,
            buffer: Some(buffer),
            unread: 0..0,
            copied_in_a_row: 0,
            unreported: 0,
            is_zero_copy: false,
            path: PathState::default(),
            curb: Curb::default(),
            known: TcpInfo::default(),
            life: Life::Open,
        }
    }

    pub(super) fn can_post(&self) -> bool {
        self.life == Life::Open && self.queue.len() < QUEUE_RECORDS_MAX
    }

    /// Seals a record and queues it: the order of the queue is the order of the nonces.
    pub(super) fn post(
        &mut self,
        mut lease: Lease,
        plain_bytes: usize,
    ) -> Result<usize, Full<Lease>> {
        if !self.can_post() {
            return Err(Full(lease));
        }
        match self.sealer.seal(&mut lease, plain_bytes) {
            Ok(bytes) => {
                self.queue.push_back(Queued { lease, bytes });
                Ok(bytes)
            }
            Err(error) => {
                self.fail(StreamEnd::Protocol { code: error.code() });
                Err(Full(lease))
            }
        }
    }

    pub(super) fn note(&self, rtt: Nanos, in_flight_bytes: u64) {
        self.stats.set(StreamCounter::RttNanos.index(), rtt.0);
        self.stats.set(StreamCounter::InFlightBytes.index(), in_flight_bytes);
    }

    /// Shows what the kernel knows about the connection.
    pub(super) fn sample(&mut self, ring: &Uring) {
        self.path.in_startup = false;
        if self.life != Life::Open {
            return;
        }
        // A connection that can't be measured has failed; its sends and receives tell why.
        let Ok(info) = tcp_info(ring.socket_fd(self.socket)) else { return };
        let bbr = bbr_info(ring.socket_fd(self.socket)).unwrap_or(None);
        let before = std::mem::replace(&mut self.known, info);
        let full_ns = |it: &TcpInfo| it.receive_window_limited_ns + it.send_buffer_limited_ns;
        self.path = PathState {
            in_startup: bbr.is_some_and(|it| it.in_startup),
            rate: bbr.map_or(0, |it| it.rate),
            rtt_path: Nanos(bbr.map_or(0, |it| it.rtt_ns)),
            fills_alone: bbr.is_some(),
            is_buffer_bound: full_ns(&info).saturating_sub(full_ns(&before))
                > info.busy_ns.saturating_sub(before.busy_ns) / 2,
            acked_bytes: info.acked_bytes.saturating_sub(before.acked_bytes),
            resent_bytes: info.retransmitted_bytes.saturating_sub(before.retransmitted_bytes),
            window_bytes: info.window_bytes,
            rtt: Nanos(info.rtt_ns.saturating_sub(info.rtt_ns_deviation * 2)),
            rtt_least: Nanos(info.rtt_ns_min),
        };
        let shown = [
            (StreamCounter::TcpRttNanos, info.rtt_ns),
            (StreamCounter::TcpRttMinNanos, info.rtt_ns_min),
            (StreamCounter::TcpWindowBytes, info.window_bytes),
            (StreamCounter::TcpUnsentBytes, info.unsent_bytes),
            (StreamCounter::TcpDeliveryRate, info.delivery_rate),
            (StreamCounter::TcpAppLimited, u64::from(info.is_app_limited)),
            (StreamCounter::TcpInStartup, u64::from(self.path.in_startup)),
            (StreamCounter::TcpRetransmittedSegments, info.retransmitted_segments),
            (StreamCounter::TcpRetransmittedBytes, info.retransmitted_bytes),
            (StreamCounter::TcpBusyNanos, info.busy_ns),
            (StreamCounter::TcpReceiveWindowNanos, info.receive_window_limited_ns),
            (StreamCounter::TcpSendBufferNanos, info.send_buffer_limited_ns),
        ];
        for (counter, value) in shown {
            self.stats.set(counter.index(), value);
        }
    }

    /// Bounds the pacing of a stream that looks for the path's rate and has filled the path.
    pub(super) fn curb(&mut self, ring: &Uring, now: Nanos) {
        if self.life != Life::Open || !(self.path.in_startup || self.curb.holds()) {
            return;
        }
        let socket = ring.socket_fd(self.socket);
        // A connection that can't be measured has failed; its sends and receives tell why.
        let (Ok(bbr), Ok(info)) = (bbr_info(socket), tcp_info(socket)) else { return };
        if let Some(bound) = self.curb.adapt(now, bbr.unwrap_or_default(), &info) {
            // Without the bound it works as well, on most paths.
            let _ = set_pacing_rate_max(socket, bound);
        }
    }

    /// How it fared when the kernel was asked last.
    pub(super) fn path_state(&self) -> PathState {
        self.path
    }

    /// Notes why the stream ends; the first reason stands.
    pub(super) fn fail(&mut self, cause: StreamEnd) {
        if self.life == Life::Open {
            self.life = Life::Failed(cause);
            self.queue.clear();
        }
    }

    /// A send finished. The kernel was asked to take all bytes, so less means the connection broke.
    pub(super) fn sent(&mut self, result: Result<usize, i32>) {
        let Some(bytes) = self.sending.take() else { return };
        match result {
            Ok(sent) if sent == bytes => {
                self.stats.add(StreamCounter::SentBytes.index(), bytes as u64);
                self.stats.add(StreamCounter::SentRecords.index(), 1);
            }
            Ok(_) => self.fail(StreamEnd::ClosedByPeer),
            Err(errno) => self.fail(StreamEnd::Socket { errno }),
        }
    }

    /// The kernel let go of a lease and said whether it had copied it (zero-copy sends only).
    pub(super) fn released(&mut self, copied: Option<bool>) {
        let Some(copied) = copied else { return };
        self.unreported = self.unreported.saturating_sub(1);
        self.is_zero_copy = !copied;
        self.copied_in_a_row = if copied { self.copied_in_a_row + 1 } else { 0 };
        let counter =
            if copied { StreamCounter::CopiedSends } else { StreamCounter::ZeroCopySends };
        self.stats.add(counter.index(), 1);
    }

    pub(super) fn received(&mut self, lease: Lease, result: Result<usize, i32>) {
        self.buffer = Some(lease);
        match result {
            Ok(0) => self.fail(StreamEnd::ClosedByPeer),
            Ok(bytes) => {
                self.stats.add(StreamCounter::ReceivedBytes.index(), bytes as u64);
                self.unread.end += bytes;
            }
            Err(errno) => self.fail(StreamEnd::Socket { errno }),
        }
    }

    pub(super) fn closed(&mut self) {
        let cause = match self.life {
            Life::Open => StreamEnd::Dropped,
            Life::Failed(cause) | Life::Closing(cause) | Life::Ended(cause) => cause,
        };
        self.life = Life::Ended(cause);
    }

    /// Why the stream ended, once nothing of it is in the ring any more.
    pub(super) fn ended(&self) -> Option<StreamEnd> {
        match self.life {
            Life::Ended(cause) => Some(cause),
            Life::Open | Life::Failed(_) | Life::Closing(_) => None,
        }
    }

    /// Opens every whole record in the buffer. Records that came before a broken one still count.
    pub(super) fn open_records(&mut self, mut on_plain: impl FnMut(&[u8])) {
        let Some(mut buffer) = self.buffer.take() else { return };
        while self.life == Life::Open && !self.unread.is_empty() {
            let whole = match next_record(&buffer[self.unread.clone()]) {
                Ok(Some(bytes)) => bytes,
                Ok(None) => break,
                Err(error) => {
                    self.refuse(error.code());
                    break;
                }
            };
            let start = self.unread.start;
            match self.opener.open(&mut buffer[start..start + whole]) {
                Ok(plain) => on_plain(plain),
                Err(error) => {
                    self.refuse(error.code());
                    break;
                }
            }
            // Guest memory does not stay in a buffer that waits for the next record.
            buffer[start..start + whole].fill(0);
            self.unread.start += whole;
            self.stats.add(StreamCounter::ReceivedRecords.index(), 1);
        }
        self.buffer = Some(buffer);
    }

    fn refuse(&mut self, code: &'static str) {
        self.stats.add(StreamCounter::RecordErrors.index(), 1);
        self.fail(StreamEnd::Protocol { code });
    }

    /// Starts the next send and the next receive, or closes a failed stream.
    pub(super) fn pump(&mut self, ring: &mut Uring, zero_copy: bool) {
        match self.life {
            Life::Open => {
                self.start_send(ring, zero_copy);
                self.start_receive(ring);
            }
            Life::Failed(cause) => {
                self.life = Life::Closing(cause);
                ring.close(self.socket);
            }
            Life::Closing(_) | Life::Ended(_) => {}
        }
    }

    fn start_send(&mut self, ring: &mut Uring, zero_copy: bool) {
        if self.sending.is_some() {
            return;
        }
        let Some(Queued { lease, bytes }) = self.queue.pop_front() else { return };
        let zero_copy = zero_copy && bytes >= ZERO_COPY_BYTES_MIN && self.may_zero_copy();
        match ring.send(self.socket, lease, 0..bytes, zero_copy) {
            Ok(()) => {
                self.sending = Some(bytes);
                self.unreported += u32::from(zero_copy);
            }
            Err(Full(lease)) => self.queue.push_front(Queued { lease, bytes }),
        }
    }

    fn may_zero_copy(&self) -> bool {
        let doubtful = if self.is_zero_copy { 0 } else { self.unreported };
        self.copied_in_a_row + doubtful < COPIED_IN_A_ROW_MAX
    }

    fn start_receive(&mut self, ring: &mut Uring) {
        let Some(mut buffer) = self.buffer.take() else { return };
        if self.unread.start > 0 {
            buffer.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
        }
        let filled = self.unread.end;
        let until = match record_bytes(&buffer[..filled]) {
            Ok(Some(bytes)) if bytes - filled >= EXACT_RECEIVE_BYTES_MIN => {
                (bytes + RECORD_HEADER_BYTES).min(buffer.len())
            }
            _ => buffer.len(),
        };
        if let Err(Full(buffer)) = ring.recv(self.socket, buffer, filled..until) {
            self.buffer = Some(buffer);
        }
    }
}
