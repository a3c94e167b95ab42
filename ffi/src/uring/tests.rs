//! Tests of the ring over loopback: that it moves bytes, and above all that no memory comes back
//! while the kernel may still touch it.

mod faults;

use super::*;
use crate::poll::{Waker, waker};
use crate::sys::monotonic_now;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;

const SLOT: usize = 64 << 10;
const PATIENCE_NS: u64 = 20_000_000_000;

/// A completion that can be kept.
#[derive(Debug)]
enum Seen {
    Sent(SocketIndex, Result<usize, i32>),
    Released(Lease, Option<bool>),
    Received(Lease, Result<usize, i32>),
    Data(Vec<u8>),
    RecvEnded(Result<(), i32>),
    Closed(SocketIndex),
    Ready(u32),
    Woken,
}

impl From<Completion<'_>> for Seen {
    fn from(completion: Completion<'_>) -> Self {
        match completion {
            Completion::Sent { socket, result } => Self::Sent(socket, result),
            Completion::Released { lease, copied, .. } => Self::Released(lease, copied),
            Completion::Received { lease, result, .. } => Self::Received(lease, result),
            Completion::Data { bytes, .. } => Self::Data(bytes.to_vec()),
            Completion::RecvEnded { result, .. } => Self::RecvEnded(result),
            Completion::Closed { socket } => Self::Closed(socket),
            Completion::Ready { name } => Self::Ready(name),
            Completion::Woken => Self::Woken,
        }
    }
}

/// A ring, its arena and its waker.
struct Bench {
    uring: Uring,
    arena: Arena,
    waker: Waker,
}

impl Bench {
    /// None, said aloud, where there is no io_uring.
    fn new(config: UringConfig, slot_bytes: usize, slots: usize) -> Option<Self> {
        let arena = Arena::new(slot_bytes, slots, false).unwrap();
        let (waker, receiver) = waker().unwrap();
        match Uring::new(config, &arena, &receiver) {
            Ok(uring) => Some(Self { uring, arena, waker }),
            Err(error) => {
                eprintln!("passed over: {error}");
                None
            }
        }
    }

    fn small() -> Option<Self> {
        Self::new(UringConfig::default(), SLOT, 8)
    }

    /// A connected pair: one end in the ring, the other for the test.
    fn connect(&mut self) -> (SocketIndex, TcpStream) {
        let (near, far) = connection();
        (self.uring.add_socket(near.into()).unwrap(), far)
    }

    /// Polls until `enough` is pleased with what came so far.
    fn until(&mut self, enough: impl Fn(&[Seen]) -> bool) -> Vec<Seen> {
        let end = monotonic_now() + PATIENCE_NS;
        let mut seen = Vec::new();
        while !enough(&seen) {
            assert!(monotonic_now() < end, "not enough came: {seen:?}");
            let wait = Wait::Until(Duration::from_millis(100));
            self.uring.poll(wait, &mut |completion| seen.push(completion.into())).unwrap();
        }
        seen
    }

    /// Sends from a fresh lease that is filled with `byte`.
    fn send(&mut self, socket: SocketIndex, byte: u8, zero_copy: bool) {
        let mut lease = self.arena.lease().unwrap();
        lease.fill(byte);
        let all = 0..lease.len();
        self.uring.send(socket, lease, all, zero_copy).unwrap();
    }
}

fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let far = listener.accept().unwrap().0;
    far.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    (near, far)
}

fn released(seen: &[Seen]) -> usize {
    seen.iter().filter(|s| matches!(s, Seen::Released(..))).count()
}

fn closed(seen: &[Seen]) -> bool {
    seen.iter().any(|s| matches!(s, Seen::Closed(_)))
}

#[test]
fn sends_arrive_whole_and_say_how_they_went() {
    let Some(mut bench) = Bench::small() else { return };
    let (socket, mut far) = bench.connect();
    for zero_copy in [false, true] {
        let mut lease = bench.arena.lease().unwrap();
        lease[..7].copy_from_slice(b"unsent!");
        lease[7..].fill(5);
        let reading = thread::spawn(move || {
            let mut got = vec![0; SLOT - 7];
            far.read_exact(&mut got).unwrap();
            (far, got)
        });
        bench.uring.send(socket, lease, 7..SLOT, zero_copy).unwrap();
        let seen = bench.until(|seen| released(seen) == 1);
        let [Seen::Sent(on, Ok(bytes)), Seen::Released(lease, copied)] = &seen[..] else {
            panic!("{seen:?}")
        };
        assert_eq!((*on, *bytes, lease[6]), (socket, SLOT - 7, b'!'));
        if zero_copy && bench.uring.zero_copy() {
            // Loopback always copies, and the report says so: that is what the fallback rests on.
            assert_eq!(*copied, Some(true));
        } else {
            assert_eq!(*copied, None);
        }
        let (back, got) = reading.join().unwrap();
        far = back;
        assert!(got.iter().all(|&byte| byte == 5));
    }
    assert_eq!(bench.arena.free_slots(), 8);
}

#[test]
fn receives_fill_the_lease_and_report_the_end() {
    let Some(mut bench) = Bench::small() else { return };
    let (near, mut far) = connection();
    // What an asynchronous runtime hands over does not block; the ring must wait nevertheless.
    near.set_nonblocking(true).unwrap();
    let socket = bench.uring.add_socket(near.into()).unwrap();
    bench.uring.recv(socket, bench.arena.lease().unwrap(), 100..200).unwrap();
    assert_eq!(bench.uring.poll(Wait::No, &mut |_| ()).unwrap(), 0);
    far.write_all(b"hello").unwrap();
    let seen = bench.until(|seen| !seen.is_empty());
    let [Seen::Received(lease, Ok(5))] = &seen[..] else { panic!("{seen:?}") };
    assert_eq!((&lease[100..105], lease[105]), (&b"hello"[..], 0));
    drop(far);
    bench.uring.recv(socket, bench.arena.lease().unwrap(), 0..1).unwrap();
    let seen = bench.until(|seen| !seen.is_empty());
    assert!(matches!(&seen[..], [Seen::Received(_, Ok(0))]), "{seen:?}");
}

#[test]
fn a_multishot_receive_goes_on_when_buffers_run_out() {
    const BYTES: usize = 50_000;
    let config = UringConfig { data_buffers: 2, data_buffer_bytes: 64, ..UringConfig::default() };
    let Some(mut bench) = Bench::new(config, SLOT, 1) else { return };
    let (socket, mut far) = bench.connect();
    bench.uring.recv_multishot(socket);
    let sent: Vec<u8> = (0..BYTES).map(|i| (i % 253) as u8).collect();
    let writing = thread::spawn({
        let sent = sent.clone();
        move || far.write_all(&sent).unwrap()
    });
    let seen = bench.until(|seen| matches!(seen.last(), Some(Seen::RecvEnded(_))));
    writing.join().unwrap();
    let mut got = Vec::new();
    for part in &seen[..seen.len() - 1] {
        let Seen::Data(bytes) = part else { panic!("{part:?}") };
        assert!(!bytes.is_empty() && bytes.len() <= 64);
        got.extend_from_slice(bytes);
    }
    assert!(got == sent, "bytes were lost or out of order");
    assert!(matches!(seen.last(), Some(Seen::RecvEnded(Ok(())))));
}

#[test]
fn a_waker_ends_the_wait_again_and_again() {
    let Some(mut bench) = Bench::small() else { return };
    for _ in 0..50 {
        let waker = bench.waker.clone();
        let waking = thread::spawn(move || waker.wake());
        let seen = bench.until(|seen| !seen.is_empty());
        assert!(matches!(&seen[..], [Seen::Woken]), "{seen:?}");
        waking.join().unwrap();
    }
}

#[test]
fn a_watch_reports_once_and_shutting_the_socket_down_ends_it() {
    let config = UringConfig { watches_max: 2, ..UringConfig::default() };
    let Some(mut bench) = Bench::new(config, SLOT, 1) else { return };
    let (mut near, mut far) = UnixStream::pair().unwrap();
    assert!(bench.uring.watch(near.as_fd(), 7, Interest::Readable));
    assert!(bench.uring.watch(near.as_fd(), 8, Interest::Writable));
    let seen = bench.until(|seen| !seen.is_empty());
    assert!(matches!(&seen[..], [Seen::Ready(8)]), "there is room to write: {seen:?}");
    far.write_all(b"x").unwrap();
    let seen = bench.until(|seen| !seen.is_empty());
    assert!(matches!(&seen[..], [Seen::Ready(7)]), "{seen:?}");
    assert_eq!(bench.uring.in_flight(), 1, "only the wake-up's poll is left");
    near.read_exact(&mut [0]).unwrap();
    assert!(bench.uring.watch(near.as_fd(), 9, Interest::Readable));
    assert_eq!(bench.uring.poll(Wait::No, &mut |_| ()).unwrap(), 0, "nothing to read");
    near.shutdown(std::net::Shutdown::Both).unwrap();
    drop(near);
    let seen = bench.until(|seen| !seen.is_empty());
    assert!(matches!(&seen[..], [Seen::Ready(9)]), "{seen:?}");
}

#[test]
fn dropping_the_ring_ends_its_watches() {
    let config = UringConfig { watches_max: 2, ..UringConfig::default() };
    let Some(mut bench) = Bench::new(config, SLOT, 1) else { return };
    let (near, mut far) = UnixStream::pair().unwrap();
    assert!(bench.uring.watch(near.as_fd(), 1, Interest::Readable));
    assert_eq!(bench.uring.poll(Wait::No, &mut |_| ()).unwrap(), 0);
    assert!(bench.uring.watch(near.as_fd(), 2, Interest::Readable), "queued, not submitted");
    drop((bench.uring, near));
    assert!(far.write_all(b"x").is_err(), "nobody keeps the socket open");
}

#[test]
fn a_poll_hands_over_no_more_than_its_bound() {
    let config = UringConfig { completions_max: 1, ..UringConfig::default() };
    let Some(mut bench) = Bench::new(config, SLOT, 8) else { return };
    let sockets: Vec<_> = (0..4).map(|_| bench.connect()).collect();
    for (socket, far) in &sockets {
        bench.uring.recv(*socket, bench.arena.lease().unwrap(), 0..1).unwrap();
        (&*far).write_all(&[1]).unwrap();
    }
    let mut received = 0;
    let end = monotonic_now() + PATIENCE_NS;
    while received < 4 {
        let mut now = 0;
        let wait = Wait::Until(Duration::from_millis(100));
        bench.uring.poll(wait, &mut |_| now += 1).unwrap();
        assert!(now <= 1 && monotonic_now() < end);
        received += now;
    }
}

#[test]
fn dropping_the_ring_takes_everything_back_from_a_peer_that_never_reads() {
    for zero_copy in [false, true] {
        let Some(mut bench) = Bench::new(UringConfig::default(), 4 << 20, 6) else { return };
        let mut peers = Vec::new();
        for _ in 0..3 {
            let (socket, far) = bench.connect();
            // More than the socket buffers hold: the send stays in flight.
            crate::sys::tcp::set_send_buffer(bench.uring.socket_fd(socket), 64 << 10).unwrap();
            bench.send(socket, 0xAA, zero_copy);
            bench.uring.recv(socket, bench.arena.lease().unwrap(), 0..4096).unwrap();
            peers.push(far);
        }
        bench.uring.poll(Wait::No, &mut |completion| panic!("{completion:?}")).unwrap();
        assert_eq!(bench.arena.free_slots(), 0);
        let Bench { uring, arena, .. } = bench;
        drop(uring);
        assert_eq!(arena.free_slots(), 6, "leases did not come back");
        let mut again: Vec<_> = (0..6).map(|_| arena.lease().unwrap()).collect();
        again.iter_mut().for_each(|lease| lease.fill(0x55));
        for mut far in peers {
            // What the peer still gets was sent before the drop: never the new contents. What it
            // writes now goes nowhere.
            let _refused = far.write_all(&[0x77; 4096]);
            let mut got = Vec::new();
            let _reset = far.read_to_end(&mut got);
            assert!(got.len() < 4 << 20 && got.iter().all(|&byte| byte == 0xAA));
        }
        assert!(again.iter().all(|lease| lease.iter().all(|&byte| byte == 0x55)));
    }
}

#[test]
fn queued_but_never_submitted_operations_come_back_too() {
    let Some(mut bench) = Bench::small() else { return };
    let (socket, _far) = bench.connect();
    bench.send(socket, 1, true);
    bench.uring.recv(socket, bench.arena.lease().unwrap(), 0..SLOT).unwrap();
    assert_eq!(bench.arena.free_slots(), 6);
    let Bench { uring, arena, .. } = bench;
    drop(uring);
    assert_eq!(arena.free_slots(), 8);
}

#[test]
fn the_order_of_dropping_does_not_matter() {
    let Some(mut bench) = Bench::small() else { return };
    let (socket, far) = bench.connect();
    bench.uring.recv(socket, bench.arena.lease().unwrap(), 0..SLOT).unwrap();
    let mut kept = bench.arena.lease().unwrap();
    let Bench { mut uring, arena, waker } = bench;
    drop((arena, waker));
    (&far).write_all(b"late").unwrap();
    let mut came = None;
    let end = monotonic_now() + PATIENCE_NS;
    while came.is_none() && monotonic_now() < end {
        let wait = Wait::Until(Duration::from_millis(100));
        uring.poll(wait, &mut |completion| came = Some(Seen::from(completion))).unwrap();
    }
    let Some(Seen::Received(lease, Ok(4))) = came else { panic!("{came:?}") };
    drop(uring);
    assert_eq!(&lease[..4], b"late");
    drop(lease);
    kept.fill(1);
}

#[test]
fn closing_cancels_what_is_in_flight_and_ends_the_name() {
    for zero_copy in [false, true] {
        let Some(mut bench) = Bench::new(UringConfig::default(), 4 << 20, 2) else { return };
        let (socket, far) = bench.connect();
        crate::sys::tcp::set_send_buffer(bench.uring.socket_fd(socket), 64 << 10).unwrap();
        bench.send(socket, 3, zero_copy);
        bench.uring.recv(socket, bench.arena.lease().unwrap(), 0..4096).unwrap();
        bench.uring.poll(Wait::No, &mut |completion| panic!("{completion:?}")).unwrap();
        bench.uring.close(socket);
        let seen = bench.until(closed);
        assert!(matches!(seen.last(), Some(Seen::Closed(s)) if *s == socket), "{seen:?}");
        let sent = |s: &Seen| matches!(s, Seen::Sent(_, result) if *result != Ok(4 << 20));
        assert!(seen.iter().any(sent), "{seen:?}");
        assert!(seen.iter().any(|s| matches!(s, Seen::Received(_, Err(_) | Ok(0)))), "{seen:?}");
        assert_eq!((released(&seen), seen.len()), (1, 4), "{seen:?}");
        drop(seen);
        assert_eq!(bench.arena.free_slots(), 2);
        // The place is free for the next socket, under another name.
        let (next, _far) = bench.connect();
        assert_eq!(next.slot(), socket.slot());
        assert_ne!(next, socket);
        drop(far);
    }
}

#[test]
fn an_orderly_end_loses_no_byte() {
    let Some(mut bench) = Bench::small() else { return };
    let (socket, mut far) = bench.connect();
    bench.uring.recv_multishot(socket);
    bench.send(socket, 9, true);
    let reading = thread::spawn(move || {
        let mut got = Vec::new();
        far.read_to_end(&mut got).unwrap();
        got
    });
    let seen = bench.until(|seen| released(seen) == 1);
    drop(seen);
    bench.uring.shutdown_socket(socket).unwrap();
    let seen = bench.until(|seen| !seen.is_empty());
    assert!(matches!(&seen[..], [Seen::RecvEnded(Ok(()))]), "{seen:?}");
    bench.uring.close(socket);
    let seen = bench.until(closed);
    assert_eq!(seen.len(), 1);
    assert_eq!(reading.join().unwrap(), vec![9; SLOT]);
}

#[test]
fn closing_a_silent_multishot_receive_ends_it() {
    let Some(mut bench) = Bench::small() else { return };
    let (socket, _far) = bench.connect();
    bench.uring.recv_multishot(socket);
    bench.uring.poll(Wait::No, &mut |completion| panic!("{completion:?}")).unwrap();
    bench.uring.close(socket);
    let seen = bench.until(closed);
    assert!(matches!(&seen[..], [Seen::RecvEnded(Err(_) | Ok(())), Seen::Closed(_)]), "{seen:?}");
}

#[test]
fn a_peer_that_resets_is_an_error_not_a_signal() {
    let Some(mut bench) = Bench::small() else { return };
    let (socket, far) = bench.connect();
    super::drain::reset_connection(far.as_fd());
    for _ in 0..2 {
        bench.send(socket, 1, false);
        let seen = bench.until(|seen| released(seen) == 1);
        assert!(matches!(&seen[0], Seen::Sent(_, Err(_))), "{seen:?}");
    }
}

#[test]
fn a_full_table_of_sockets_is_said() {
    let config = UringConfig { sockets_max: 1, ..UringConfig::default() };
    let Some(mut bench) = Bench::new(config, SLOT, 1) else { return };
    let (socket, _far) = bench.connect();
    let refused = bench.uring.add_socket(connection().0.into());
    assert!(matches!(refused, Err(UringError::SocketsFull { sockets_max: 1 })));
    bench.uring.close(socket);
    bench.until(closed);
    bench.connect();
}

#[test]
#[should_panic(expected = "second send")]
fn two_sends_on_one_socket_are_the_callers_bug() {
    let Some(mut bench) = Bench::small() else { panic!("passed over: second send") };
    let (socket, _far) = bench.connect();
    bench.send(socket, 1, false);
    bench.send(socket, 1, false);
}

#[test]
#[should_panic(expected = "another arena")]
fn a_lease_of_another_arena_is_the_callers_bug() {
    let Some(mut bench) = Bench::small() else { panic!("passed over: another arena") };
    let (socket, _far) = bench.connect();
    let foreign = Arena::new(SLOT, 1, false).unwrap();
    let _ = bench.uring.send(socket, foreign.lease().unwrap(), 0..1, false);
}

#[test]
#[should_panic(expected = "not in a slot")]
fn a_range_beyond_the_slot_is_the_callers_bug() {
    let Some(mut bench) = Bench::small() else { panic!("passed over: not in a slot") };
    let (socket, _far) = bench.connect();
    let _ = bench.uring.recv(socket, bench.arena.lease().unwrap(), 0..SLOT + 1);
}

#[test]
#[should_panic(expected = "was closed")]
fn a_stale_name_is_the_callers_bug() {
    let Some(mut bench) = Bench::small() else { panic!("passed over: was closed") };
    let (socket, _far) = bench.connect();
    bench.uring.close(socket);
    bench.until(closed);
    bench.connect();
    bench.uring.recv_multishot(socket);
}
