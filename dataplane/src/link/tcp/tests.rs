//! The rule for zero copy, against the kernel: two links with registered arenas over loopback,
//! which always copies.

use super::stream::{COPIED_IN_A_ROW_MAX, ZERO_COPY_BYTES_MIN};
use super::*;
use crate::stats::{StreamCounter, StreamStatsReader};
use dwcp_ffi::counters::counters;
use dwcp_ffi::poll::{Waker, waker};
use dwcp_ffi::sys::tcp::{set_receive_buffer, set_send_buffer};
use dwcp_proto::ids::{Incarnation, LinkId, StreamId};
use dwcp_proto::wire::limits::{RECORD_HEADER_BYTES, RECORD_TAG_BYTES};
use dwcp_proto::wire::record::{DirectionKey, StreamKeys, StreamPlace};
use dwcp_proto::wire::version::WireVersion;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

const STREAMS: u16 = 2;

/// How long a test waits for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// One end: a link with a locked, registered arena and its streams' counters.
struct End {
    link: TcpLink,
    stats: Vec<StreamStatsReader>,
    // The ring watches it for wake-ups, so it lives as long.
    _waker: Waker,
}

impl End {
    /// `None`, said aloud, where the limits or the kernel have no zero copy.
    fn new() -> Option<Self> {
        let (waker, woken) = waker().unwrap();
        let config = TcpConfig {
            streams_max: usize::from(STREAMS),
            send_slots: 8,
            watches_max: 0,
            lock_memory: true,
            zero_copy: true,
        };
        match TcpLink::new(config, &woken) {
            Ok(link) if link.ring.zero_copy() => {
                Some(Self { link, stats: Vec::new(), _waker: waker })
            }
            Ok(_) => {
                eprintln!("passed over: the kernel has no zero-copy sends that it reports on");
                None
            }
            Err(error) => {
                eprintln!("passed over: {error}");
                None
            }
        }
    }

    fn add(&mut self, stream: u16, socket: OwnedFd, send: u8, receive: u8) {
        let (stats, reader) = counters();
        let key = |byte| DirectionKey::from_exported(&[byte; 44]);
        let slot = self.link.add_stream(StreamSetup {
            link: LinkId(1),
            place: StreamPlace {
                version: WireVersion::HIGHEST,
                stream: StreamId(stream),
                incarnation: Incarnation(1),
            },
            socket,
            keys: StreamKeys { send: key(send), receive: key(receive) },
            stats,
        });
        assert_eq!(slot.unwrap(), StreamSlot(stream), "slots are given out in order");
        self.stats.push(reader);
    }

    fn count(&self, stream: u16, counter: StreamCounter) -> u64 {
        self.stats[usize::from(stream)].snapshot()[counter.index()]
    }
}

/// Both ends of some streams, on the test's thread.
struct Ends {
    near: End,
    far: End,
}

impl Ends {
    fn new() -> Option<Self> {
        let mut ends = Self { near: End::new()?, far: End::new()? };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for stream in 0..STREAMS {
            let near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            ends.near.add(stream, near.into(), 2, 3);
            ends.far.add(stream, listener.accept().unwrap().0.into(), 3, 2);
        }
        Some(ends)
    }

    /// Sends a record of `sealed_bytes` and waits until it arrived and the kernel let go of its
    /// memory: no report is outstanding afterwards. The other end gets what was sent.
    fn carry(&mut self, stream: u16, sealed_bytes: usize, fill: u8) {
        let plain_bytes = sealed_bytes - RECORD_HEADER_BYTES - RECORD_TAG_BYTES;
        let free = self.near.link.free_leases();
        let mut lease = self.near.link.lease().unwrap();
        let sent: Vec<u8> = (0..plain_bytes).map(|at| (at % 251) as u8 ^ fill).collect();
        lease[RECORD_HEADER_BYTES..][..plain_bytes].copy_from_slice(&sent);
        let posted = self.near.link.post(StreamSlot(stream), lease, plain_bytes);
        assert_eq!(posted.unwrap(), sealed_bytes);
        let until = Instant::now() + PATIENCE;
        let mut arrived = None;
        while arrived.is_none() || self.near.link.free_leases() < free {
            assert!(Instant::now() < until, "a record of {sealed_bytes} bytes did not go through");
            self.near.link.poll(Wait::No, |event| panic!("at the sender: {event:?}"));
            self.far.link.poll(Wait::No, |event| match event {
                LinkEvent::Record { stream: at, plain } => {
                    assert_eq!(at, StreamSlot(stream));
                    assert!(arrived.replace(plain.to_vec()).is_none(), "one record was sent");
                }
                other => panic!("at the receiver: {other:?}"),
            });
        }
        assert!(arrived.unwrap() == sent, "what arrived is not what was sent");
    }

    /// Reports of the kernel on zero-copy sends: copied, and not copied.
    fn reports(&self, stream: u16) -> (u64, u64) {
        let copied = self.near.count(stream, StreamCounter::CopiedSends);
        (copied, self.near.count(stream, StreamCounter::ZeroCopySends))
    }
}

#[test]
fn small_records_never_ask_for_zero_copy() {
    let Some(mut ends) = Ends::new() else { return };
    let small = [64, 4096, ZERO_COPY_BYTES_MIN - 1];
    for (fill, bytes) in (0..).zip(small.into_iter().cycle().take(30)) {
        ends.carry(0, bytes, fill);
        assert_eq!(ends.reports(0), (0, 0), "a record of {bytes} bytes asked for zero copy");
    }
    ends.carry(0, ZERO_COPY_BYTES_MIN, 99);
    assert_eq!(ends.reports(0), (1, 0), "the first size that asks, and loopback copies");
}

#[test]
fn a_stream_that_is_told_copied_so_often_asks_no_more_and_the_others_still_do() {
    let Some(mut ends) = Ends::new() else { return };
    let most = u64::from(COPIED_IN_A_ROW_MAX);
    let sizes = [ZERO_COPY_BYTES_MIN, 100_000, RECORD_BYTES_MAX];
    for stream in 0..STREAMS {
        for (sent, bytes) in (1..).zip(sizes.into_iter().cycle().take(20)) {
            ends.carry(stream, bytes, sent);
            assert_eq!(ends.reports(stream), (most.min(u64::from(sent)), 0), "stream {stream}");
            // A small record in between is no report and starts nothing anew.
            ends.carry(stream, 1000, sent);
            assert_eq!(ends.reports(stream), (most.min(u64::from(sent)), 0), "stream {stream}");
        }
        assert_eq!(ends.near.count(stream, StreamCounter::SentRecords), 40);
        assert_eq!(ends.far.count(stream, StreamCounter::ReceivedRecords), 40);
        assert_eq!(ends.far.count(stream, StreamCounter::RecordErrors), 0);
    }
}

#[test]
fn a_stream_that_has_no_report_yet_keeps_few_leases_from_others() {
    let (Some(mut near), listener) = (End::new(), TcpListener::bind("127.0.0.1:0").unwrap()) else {
        return;
    };
    let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    set_send_buffer(client.as_fd(), 8 << 20).unwrap();
    // Nobody receives: what does not fit there stays in our kernel, which reports nothing.
    let (server, _) = listener.accept().unwrap();
    set_receive_buffer(server.as_fd(), 4096).unwrap();
    near.add(0, client.into(), 2, 3);
    let free = near.link.free_leases();
    let until = Instant::now() + PATIENCE;
    for sent in 1..=20 {
        let lease = near.link.lease().unwrap_or_else(|| panic!("no lease for record {sent}"));
        near.link.post(StreamSlot(0), lease, RECORD_BYTES_MAX / 2).unwrap();
        while near.count(0, StreamCounter::SentRecords) < sent {
            assert!(Instant::now() < until, "record {sent} was not sent");
            near.link.poll(Wait::No, |event| panic!("at the sender: {event:?}"));
        }
    }
    let held = free - near.link.free_leases();
    assert!((1..=COPIED_IN_A_ROW_MAX as usize).contains(&held), "{held} leases are held");
}

#[test]
fn a_sample_shows_how_the_kernel_sees_each_connection() {
    let Some(mut ends) = Ends::new() else { return };
    assert!(ends.near.count(1, StreamCounter::TcpRttNanos) > 0, "of the connecting alone");
    ends.carry(0, RECORD_BYTES_MAX, 1);
    assert_eq!(ends.near.count(0, StreamCounter::TcpDeliveryRate), 0, "nobody has asked since");
    ends.near.link.sample();
    let shown = |counter| ends.near.count(0, counter);
    assert!(shown(StreamCounter::TcpRttNanos) >= shown(StreamCounter::TcpRttMinNanos));
    let moved = [
        StreamCounter::TcpRttMinNanos,
        StreamCounter::TcpWindowBytes,
        StreamCounter::TcpDeliveryRate,
    ];
    for counter in moved {
        assert!(shown(counter) > 0, "{counter:?}");
    }
    assert_eq!(shown(StreamCounter::TcpUnsentBytes), 0, "all of it arrived");
    assert_eq!(ends.near.count(1, StreamCounter::TcpDeliveryRate), 0, "the other one was idle");
}
