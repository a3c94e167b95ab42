//! One simulated stream: its queue of sealed records, its receive buffer, its keys and its end.
//!
//! Owned by [`super::SimLink`]. The rules are those of a TCP stream: a few records wait, a failed
//! stream reports its end once, and records that came before a broken one still count.

use super::fabric::{ConnectionId, Fabric, Read, Side};
use crate::link::tcp::SLOT_BYTES;
use crate::port::{StreamEnd, StreamSetup};
use crate::stats::{StreamCounter, StreamStats};
use dwcp_ffi::arena::Lease;
use dwcp_ffi::spsc::Full;
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::header::RecordHeader;
use dwcp_proto::wire::limits::RECORD_HEADER_BYTES;
use dwcp_proto::wire::reader::next_record;
use dwcp_proto::wire::record::{DirectionKey, Opener, Sealer};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;

/// Records that wait to be written, as on a TCP stream.
const QUEUE_RECORDS_MAX: usize = 2;

/// What a reset connection tells, as Linux numbers it.
const ECONNRESET: i32 = 104;

#[derive(Debug)]
struct Queued {
    lease: Lease,
    bytes: usize,
    written: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Open,
    Failed(StreamEnd),
    Ended(StreamEnd),
}

#[derive(Debug)]
pub(super) struct SimStream {
    fabric: Fabric,
    side: Side,
    connection: ConnectionId,
    /// The token of the connection: it stays open as long as a socket would.
    _token: OwnedFd,
    /// What its records are sealed with, for the fabric's books; empty in the clear.
    key: Vec<u8>,
    sealer: Sealer,
    opener: Opener,
    stats: StreamStats,
    queue: VecDeque<Queued>,
    unread: Vec<u8>,
    life: Life,
}

impl SimStream {
    pub(super) fn new(
        setup: StreamSetup,
        connection: ConnectionId,
        fabric: Fabric,
        side: Side,
    ) -> Self {
        let StreamSetup { place, socket, keys, stats, .. } = setup;
        let key = match &keys.send {
            DirectionKey::Sealed { key, iv } => [&key[..], &iv[..]].concat(),
            DirectionKey::Plain => Vec::new(),
        };
        if !key.is_empty() {
            fabric.note_key(&key);
        }
        Self {
            fabric,
            side,
            connection,
            _token: socket,
            key,
            sealer: Sealer::new(keys.send, place),
            opener: Opener::new(keys.receive, place),
            stats,
            queue: VecDeque::with_capacity(QUEUE_RECORDS_MAX),
            unread: Vec::new(),
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
        let bytes = match self.sealer.seal(&mut lease, plain_bytes) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.fail(StreamEnd::Protocol { code: error.code() });
                return Err(Full(lease));
            }
        };
        if let (false, Some(Ok(header))) = (self.key.is_empty(), header_of(&lease)) {
            self.fabric.note_record(&self.key, header.counter);
        }
        self.queue.push_back(Queued { lease, bytes, written: 0 });
        Ok(bytes)
    }

    /// Writes what the connection takes, or closes a failed stream.
    pub(super) fn pump(&mut self) {
        if let Life::Failed(cause) = self.life {
            self.close();
            self.life = Life::Ended(cause);
        }
        while self.life == Life::Open
            && let Some(front) = self.queue.front_mut()
        {
            let left = &front.lease[front.written..front.bytes];
            let taken = self.fabric.write(self.connection, self.side, left);
            self.stats.add(StreamCounter::SentBytes.index(), taken as u64);
            front.written += taken;
            if front.written < front.bytes {
                break;
            }
            self.stats.add(StreamCounter::SentRecords.index(), 1);
            self.queue.pop_front();
        }
    }

    /// Reads what arrived and opens every whole record. True when anything came.
    pub(super) fn receive(&mut self, on_plain: impl FnMut(&[u8])) -> bool {
        if self.life != Life::Open {
            return false;
        }
        let room = SLOT_BYTES - self.unread.len();
        match self.fabric.read(self.connection, self.side, &mut self.unread, room) {
            Read::Nothing => return false,
            Read::Ended => self.fail(StreamEnd::ClosedByPeer),
            Read::Broken => self.fail(StreamEnd::Socket { errno: ECONNRESET }),
            Read::Bytes(bytes) => {
                self.stats.add(StreamCounter::ReceivedBytes.index(), bytes as u64);
                self.open_records(on_plain);
            }
        }
        true
    }

    fn open_records(&mut self, mut on_plain: impl FnMut(&[u8])) {
        let mut opened = 0;
        let outcome = loop {
            match next_record(&self.unread[opened..]) {
                Ok(Some(bytes)) => match self.opener.open(&mut self.unread[opened..][..bytes]) {
                    Ok(plain) => {
                        on_plain(plain);
                        self.stats.add(StreamCounter::ReceivedRecords.index(), 1);
                        opened += bytes;
                    }
                    Err(error) => break Err(error.code()),
                },
                Ok(None) => break Ok(()),
                Err(error) => break Err(error.code()),
            }
        };
        self.unread.drain(..opened);
        if let Err(code) = outcome {
            self.stats.add(StreamCounter::RecordErrors.index(), 1);
            self.fail(StreamEnd::Protocol { code });
        }
    }

    /// Notes why the stream ends; the first reason stands.
    pub(super) fn fail(&mut self, cause: StreamEnd) {
        if self.life == Life::Open {
            self.life = Life::Failed(cause);
            self.queue.clear();
        }
    }

    pub(super) fn close(&mut self) {
        self.fabric.close(self.connection, self.side);
    }

    pub(super) fn ended(&self) -> Option<StreamEnd> {
        match self.life {
            Life::Ended(cause) => Some(cause),
            Life::Open | Life::Failed(_) => None,
        }
    }

    pub(super) fn note(&mut self, rtt: Nanos, in_flight_bytes: u64) {
        self.stats.set(StreamCounter::RttNanos.index(), rtt.0);
        self.stats.set(StreamCounter::InFlightBytes.index(), in_flight_bytes);
    }
}

/// The header of the record at the start of a lease.
fn header_of(lease: &Lease) -> Option<Result<RecordHeader, dwcp_proto::wire::WireError>> {
    lease.first_chunk::<RECORD_HEADER_BYTES>().map(RecordHeader::decode)
}
