//! What every link does at its border, whatever carries its bytes: the same tests for each back
//! end.

use super::sim::{Conditions, Fabric, Rng, Side, SimClock, SimConfig, SimLink};
use super::tcp::{TcpConfig, TcpLink};
use super::{Clock, Link, LinkEvent, StreamSlot};
use crate::port::{StreamEnd, StreamSetup};
use dwcp_ffi::counters::counters;
use dwcp_ffi::poll::{Waker, waker};
use dwcp_ffi::uring::{Interest, Wait};
use dwcp_proto::ids::{Incarnation, LinkId, StreamId};
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::limits::{RECORD_HEADER_BYTES, RECORD_PLAIN_BYTES_MAX};
use dwcp_proto::wire::record::{DirectionKey, StreamKeys, StreamPlace};
use dwcp_proto::wire::version::WireVersion;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

const STREAMS: usize = 2;
const SLOTS: usize = 4;
const TURNS_MAX: usize = 200_000;

/// Two links with a way between them.
trait Pair {
    type Link: Link;

    fn new() -> Self;
    fn links(&mut self) -> [&mut Self::Link; 2];
    /// The sockets of both ends of a new connection.
    fn connect(&mut self) -> [OwnedFd; 2];
    /// Lets time pass.
    fn turn(&mut self);
}

struct TcpPair {
    links: [TcpLink; 2],
    listener: TcpListener,
    // The rings watch them.
    _wakers: [Waker; 2],
}

impl Pair for TcpPair {
    type Link = TcpLink;

    fn new() -> Self {
        let config = TcpConfig {
            streams_max: STREAMS,
            send_slots: SLOTS,
            watches_max: 2,
            lock_memory: false,
            zero_copy: false,
        };
        let ends = [waker().unwrap(), waker().unwrap()];
        let links = [0, 1].map(|at| TcpLink::new(config, &ends[at].1).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self { links, listener, _wakers: ends.map(|(waker, _)| waker) }
    }

    fn links(&mut self) -> [&mut TcpLink; 2] {
        self.links.each_mut()
    }

    fn connect(&mut self) -> [OwnedFd; 2] {
        let near = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
        [near.into(), self.listener.accept().unwrap().0.into()]
    }

    fn turn(&mut self) {
        std::thread::yield_now();
    }
}

struct SimPair {
    links: [SimLink; 2],
    fabric: Fabric,
    clock: SimClock,
}

impl Pair for SimPair {
    type Link = SimLink;

    fn new() -> Self {
        let clock = SimClock::default();
        let fabric = Fabric::new(clock.clone(), Rng::new(1));
        for side in [Side::Near, Side::Far] {
            let (delay, jitter) = (Nanos(1000), Nanos(5000));
            let capacity_bytes = 100_000;
            let conditions = Conditions { delay, jitter, capacity_bytes, ..Conditions::default() };
            fabric.set_conditions(side, conditions);
        }
        let config = SimConfig { streams_max: STREAMS, send_slots: SLOTS, watches_max: 2 };
        let links = [Side::Near, Side::Far]
            .map(|side| SimLink::new(config, fabric.clone(), clock.clone(), side).unwrap());
        Self { links, fabric, clock }
    }

    fn links(&mut self) -> [&mut SimLink; 2] {
        self.links.each_mut()
    }

    fn connect(&mut self) -> [OwnedFd; 2] {
        let (_, near, far) = self.fabric.connect().unwrap();
        [near, far]
    }

    fn turn(&mut self) {
        self.clock.set(self.clock.world() + Nanos(500));
    }
}

/// What a link reported, with copies of what it lent.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Record(StreamSlot, Vec<u8>),
    Down(StreamSlot, StreamEnd),
    Ready(u32),
}

fn key(byte: u8) -> DirectionKey {
    DirectionKey::from_exported(&[byte; 44])
}

fn place(stream: u16) -> StreamPlace {
    let (version, incarnation) = (WireVersion::HIGHEST, Incarnation(1));
    StreamPlace { version, stream: StreamId(stream), incarnation }
}

/// Both ends of a new stream; `far_receives` is 1 if they have the same keys.
fn join<P: Pair>(pair: &mut P, stream: u16, far_receives: u8) -> [StreamSlot; 2] {
    let [near, far] = pair.connect();
    let [first, second] = pair.links();
    let add = |link: &mut P::Link, socket, send, receive| {
        let keys = StreamKeys { send: key(send), receive: key(receive) };
        let stats = counters().0;
        let place = place(stream);
        link.add_stream(StreamSetup { link: LinkId(0), place, socket, keys, stats })
    };
    // Each stream has keys of its own, as derived ones are.
    let base = stream as u8 * 10;
    let near = add(first, near, base + 1, base + 2).unwrap();
    [near, add(second, far, base + 2, base + far_receives).unwrap()]
}

fn poll(link: &mut impl Link) -> Vec<Seen> {
    let mut seen = Vec::new();
    link.poll(Wait::No, |event| {
        seen.push(match event {
            LinkEvent::Record { stream, plain } => Seen::Record(stream, plain.to_vec()),
            LinkEvent::Down { stream, cause } => Seen::Down(stream, cause),
            LinkEvent::Ready { name } => Seen::Ready(name),
        });
    });
    seen
}

/// Polls both until `enough`.
fn poll_until<P: Pair>(pair: &mut P, enough: impl Fn(&[Vec<Seen>; 2]) -> bool) -> [Vec<Seen>; 2] {
    let mut seen = [Vec::new(), Vec::new()];
    for _ in 0..TURNS_MAX {
        if enough(&seen) {
            return seen;
        }
        for (link, seen) in pair.links().into_iter().zip(&mut seen) {
            seen.extend(poll(link));
        }
        pair.turn();
    }
    panic!("not enough came: {} and {} events", seen[0].len(), seen[1].len())
}

fn plain(number: u8, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at % 251) as u8 ^ number).collect()
}

fn post(link: &mut impl Link, stream: StreamSlot, plain: &[u8]) {
    let mut lease = link.lease().unwrap();
    lease[RECORD_HEADER_BYTES..][..plain.len()].copy_from_slice(plain);
    assert!(link.post(stream, lease, plain.len()).unwrap() > plain.len());
}

fn records_arrive_whole_and_in_order_and_leases_come_back<P: Pair>() {
    let mut pair = P::new();
    let slots = [0, 1].map(|stream| join(&mut pair, stream, 1));
    let free = pair.links()[0].free_leases();
    let sizes = [16, 4096, RECORD_PLAIN_BYTES_MAX, 100, RECORD_PLAIN_BYTES_MAX / 3];
    let mut came = Vec::new();
    let mut turn = |pair: &mut P| {
        assert_eq!(poll(pair.links()[0]), []);
        came.extend(poll(pair.links()[1]));
        pair.turn();
        came.len()
    };
    for (number, bytes) in (0..).zip(sizes) {
        for [near, _] in slots {
            let mut turns = 0;
            while !pair.links()[0].can_post(near) || pair.links()[0].free_leases() == 0 {
                turns += 1;
                assert!(turns < TURNS_MAX, "the stream takes nothing more");
                turn(&mut pair);
            }
            post(pair.links()[0], near, &plain(number, bytes));
        }
    }
    let mut turns = 0;
    while turn(&mut pair) < sizes.len() * 2 || pair.links()[0].free_leases() < free {
        turns += 1;
        assert!(turns < TURNS_MAX, "not everything came, or a lease is kept");
    }
    for [_, far] in slots {
        let of_stream = came.iter().filter_map(|seen| match seen {
            Seen::Record(stream, plain) if *stream == far => Some(plain),
            _ => None,
        });
        let expected: Vec<_> = (0..).zip(sizes).map(|(n, bytes)| plain(n, bytes)).collect();
        assert!(of_stream.eq(expected.iter()), "what arrived is not what was sent");
    }
}

fn a_full_queue_and_a_closed_stream_give_the_lease_back<P: Pair>() {
    let mut pair = P::new();
    let [near, _] = join(&mut pair, 0, 1);
    let link = &mut *pair.links()[0];
    let mut taken = 0;
    while link.can_post(near)
        && let Some(lease) = link.lease()
    {
        assert!(link.post(near, lease, RECORD_PLAIN_BYTES_MAX).is_ok());
        taken += 1;
    }
    assert!((1..=SLOTS).contains(&taken), "{taken} records wait unread");
    link.close_stream(near, StreamEnd::Dropped);
    assert!(!link.can_post(near));
    if let Some(lease) = link.lease() {
        assert!(link.post(near, lease, 100).is_err());
    }
}

fn a_closed_stream_ends_once_at_both_ends_and_its_place_is_free<P: Pair>() {
    let mut pair = P::new();
    for _ in 0..3 {
        let [near, far] = join(&mut pair, 0, 1);
        pair.links()[0].close_stream(near, StreamEnd::Protocol { code: "tested" });
        let seen = poll_until(&mut pair, |seen| seen.iter().all(|seen| !seen.is_empty()));
        assert_eq!(seen[0], [Seen::Down(near, StreamEnd::Protocol { code: "tested" })]);
        let closed = matches!(
            seen[1][..],
            [Seen::Down(slot, StreamEnd::ClosedByPeer | StreamEnd::Socket { .. })] if slot == far
        );
        assert!(closed, "{:?}", seen[1]);
    }
}

fn a_record_that_does_not_open_ends_its_stream_alone<P: Pair>() {
    let mut pair = P::new();
    let [near, far] = join(&mut pair, 0, 9);
    let [other, _] = join(&mut pair, 1, 1);
    post(pair.links()[0], near, &plain(1, 100));
    let seen = poll_until(&mut pair, |seen| seen.iter().all(|seen| !seen.is_empty()));
    let cause = StreamEnd::Protocol { code: "record_altered" };
    assert_eq!(seen[1], [Seen::Down(far, cause)]);
    assert!(pair.links()[0].can_post(other));
}

fn more_streams_than_places_are_refused<P: Pair>() {
    let mut pair = P::new();
    for stream in 0..STREAMS as u16 {
        join(&mut pair, stream, 1);
    }
    let [socket, _] = pair.connect();
    let (keys, stats) = (StreamKeys::plain(), counters().0);
    let setup = StreamSetup { link: LinkId(0), place: place(9), socket, keys, stats };
    assert_eq!(pair.links()[0].add_stream(setup), Err(StreamEnd::NoRoom));
}

fn a_watch_reports_once_when_its_socket_is_ready<P: Pair>() {
    let mut pair = P::new();
    let (ours, theirs) = UnixStream::pair().unwrap();
    assert!(pair.links()[0].watch(ours.as_fd(), 7, Interest::Readable));
    assert_eq!(poll(pair.links()[0]), []);
    std::io::Write::write_all(&mut &theirs, b"x").unwrap();
    let seen = poll_until(&mut pair, |seen| !seen[0].is_empty());
    assert_eq!(seen[0], [Seen::Ready(7)]);
    assert_eq!(poll(pair.links()[0]), [], "a watch reports once");
    assert!(pair.links()[0].watch(ours.as_fd(), 8, Interest::Writable));
    let seen = poll_until(&mut pair, |seen| !seen[0].is_empty());
    assert_eq!(seen[0], [Seen::Ready(8)]);
}

fn the_clock_never_goes_back<P: Pair>() {
    let mut pair = P::new();
    let clock = pair.links()[0].clock();
    let mut last = clock.now();
    for _ in 0..100 {
        pair.turn();
        let now = clock.now();
        assert!(now >= last);
        last = now;
    }
}

/// The tests of one kind of pair.
macro_rules! contract {
    ($kind:ident as $name:ident: $($test:ident)+) => {
        mod $name {
            $(#[test]
            fn $test() {
                super::$test::<super::$kind>();
            })+
        }
    };
    ($($kind:ident as $name:ident),+) => {
        $(contract! { $kind as $name:
            records_arrive_whole_and_in_order_and_leases_come_back
            a_full_queue_and_a_closed_stream_give_the_lease_back
            a_closed_stream_ends_once_at_both_ends_and_its_place_is_free
            a_record_that_does_not_open_ends_its_stream_alone
            more_streams_than_places_are_refused
            a_watch_reports_once_when_its_socket_is_ready
            the_clock_never_goes_back
        })+
    };
}

contract!(TcpPair as tcp, SimPair as sim);
