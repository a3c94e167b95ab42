//! The link emulator does what it says: bytes, rate, delay, loss, partitions, detours, cleaning up.
//!
//! Real sockets in real namespaces, hence root; passed over visibly without it. Bounds are wide,
//! since other tests run beside these.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use dwcp_tools::lab::{LinkSpec, Net, NetSpec, Schedule, networks_for_test, wait_for};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const SOON: Duration = Duration::from_secs(30);
const PORT: u16 = 9000;

/// The tests of this file measure time, so one runs at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// A network for a test; None if this machine can't have it.
fn pair(words: &str) -> Option<Net> {
    let spec = NetSpec::pair(words).unwrap();
    networks_for_test().then(|| Net::up(&spec).unwrap())
}

fn byte(at: usize) -> u8 {
    ((at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 37) as u8
}

/// A receiver on node `b` that checks every byte.
struct Sink {
    received: Arc<AtomicUsize>,
    /// Gives the time from the first byte to the last.
    thread: JoinHandle<Duration>,
}

impl Sink {
    fn start(net: &Net) -> Self {
        let address = (net.node("b").address(), PORT);
        let listener = net.node("b").enter(|| TcpListener::bind(address)).unwrap().unwrap();
        let received = Arc::new(AtomicUsize::new(0));
        let count = received.clone();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = vec![0; 1 << 16];
            let mut started = None;
            let mut ended = Instant::now();
            loop {
                let length = stream.read(&mut buffer).unwrap();
                let at = count.load(Ordering::Relaxed);
                for (offset, found) in buffer[..length].iter().enumerate() {
                    assert_eq!(*found, byte(at + offset), "byte {}", at + offset);
                }
                if length == 0 {
                    return ended - started.unwrap_or(ended);
                }
                ended = Instant::now();
                started = started.or(Some(ended));
                count.store(at + length, Ordering::Relaxed);
            }
        });
        Self { received, thread }
    }
}

fn connect(net: &Net) -> TcpStream {
    let address = (net.node("b").address(), PORT);
    net.node("a").enter(|| TcpStream::connect(address)).unwrap().unwrap()
}

/// Sends so many bytes from `a` to `b`; returns the time from the first to the last.
fn transfer(net: &Net, bytes: usize) -> Duration {
    let sink = Sink::start(net);
    let mut stream = connect(net);
    stream.write_all(&(0..bytes).map(byte).collect::<Vec<u8>>()).unwrap();
    drop(stream);
    let time = sink.thread.join().unwrap();
    assert_eq!(sink.received.load(Ordering::Relaxed), bytes);
    time
}

#[test]
fn bytes_survive_loss_full_queues_and_cuts() {
    let _alone = ALONE.lock();
    let Some(net) = pair("rate=400m delay=1ms queue=60k loss=0.005 seed=3") else { return };
    transfer(&net, 16 << 20);
    let stats = net.way("ab").stats();
    assert!(stats.lost > 0 && stats.queue_full > 0, "{stats}");
    assert!(stats.segments > stats.packets, "large packets pass uncut: {stats}");
    assert_eq!((stats.refused, stats.memory_full), (0, 0), "{stats}");
}

#[test]
fn goodput_is_the_rate_less_the_headers() {
    const BYTES: usize = 8_000_000;
    let _alone = ALONE.lock();
    let Some(net) = pair("rate=50m delay=5ms queue=1m") else { return };
    let time = transfer(&net, BYTES);
    let rate = BYTES as f64 * 8.0 / time.as_secs_f64() / 50e6;
    println!("goodput is {:.1} % of the rate; {}", rate * 100.0, net.way("ab").stats());
    assert!((0.75..1.02).contains(&rate), "{rate}");
}

#[test]
fn a_round_trip_takes_twice_the_delay_and_changes_live() {
    let _alone = ALONE.lock();
    let Some(net) = pair("delay=20ms") else { return };
    let round_trip = round_trip_ms(&net);
    assert!((40.0..50.0).contains(&round_trip), "{round_trip} ms");
    net.way("ba").set("delay=80ms").unwrap();
    let round_trip = round_trip_ms(&net);
    assert!((100.0..115.0).contains(&round_trip), "{round_trip} ms");
}

/// The median of some round trips of a datagram.
fn round_trip_ms(net: &Net) -> f64 {
    let (a, b) = (net.node("a"), net.node("b"));
    let near = a.enter(|| UdpSocket::bind((a.address(), 0))).unwrap().unwrap();
    let far = b.enter(|| UdpSocket::bind((b.address(), 0))).unwrap().unwrap();
    near.set_read_timeout(Some(SOON)).unwrap();
    far.set_read_timeout(Some(SOON)).unwrap();
    let mut times: Vec<f64> = (0..9)
        .map(|_| {
            let started = Instant::now();
            near.send_to(b"there", far.local_addr().unwrap()).unwrap();
            far.recv(&mut [0; 9]).unwrap();
            far.send_to(b"back", near.local_addr().unwrap()).unwrap();
            near.recv(&mut [0; 9]).unwrap();
            started.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

#[test]
fn every_datagram_arrives_or_is_counted_as_lost() {
    const COUNT: u64 = 6000;
    const SHARE: f64 = 0.05;
    let _alone = ALONE.lock();
    for burst in [0, 4] {
        let Some(net) = pair(&format!("loss={SHARE} burst={burst} seed=11")) else { return };
        let (a, b) = (net.node("a"), net.node("b"));
        let near = a.enter(|| UdpSocket::bind((a.address(), 0))).unwrap().unwrap();
        let far = b.enter(|| UdpSocket::bind((b.address(), 0))).unwrap().unwrap();
        far.set_nonblocking(true).unwrap();
        let way = net.way("ab");
        let mut received = 0;
        for sent in 1..=COUNT {
            near.send_to(&sent.to_le_bytes(), far.local_addr().unwrap()).unwrap();
            // The receiver's buffer must not be what loses datagrams.
            if sent % 50 == 0 || sent == COUNT {
                let through = || way.stats().delivered + way.stats().lost == sent;
                wait_for("datagrams", SOON, || Ok(through().then_some(()))).unwrap();
                while far.recv(&mut [0; 16]).is_ok() {
                    received += 1;
                }
            }
        }
        let stats = way.stats();
        assert_eq!((stats.segments, stats.delivered), (COUNT, received), "{stats}");
        assert_eq!(stats.lost, COUNT - received, "{stats}");
        let share = stats.lost as f64 / COUNT as f64;
        assert!((share / SHARE - 1.0).abs() < 0.35, "seed 11, burst {burst}: lost {share}");
    }
}

#[test]
fn a_partition_is_silent_and_heals() {
    const BYTES: usize = 4_000_000;
    let _alone = ALONE.lock();
    let Some(net) = pair("rate=20m delay=10ms") else { return };
    let sink = Sink::start(&net);
    let mut stream = connect(&net);
    let sending = std::thread::spawn(move || {
        stream.write_all(&(0..BYTES).map(byte).collect::<Vec<u8>>()).unwrap();
    });
    let arrived = || sink.received.load(Ordering::Relaxed);
    wait_for("first bytes", SOON, || Ok((arrived() > 100_000).then_some(()))).unwrap();
    net.link("ab").set("up=0 flush=1").unwrap();
    let down = || net.way("ab").stats().down;
    // What was under way is lost at once; whatever is sent again is lost too.
    wait_for("lost segments", SOON, || Ok((down() > 0).then_some(()))).unwrap();
    let (before, lost) = (arrived(), down());
    wait_for("further tries", SOON, || Ok((down() > lost).then_some(()))).unwrap();
    assert!(arrived() <= before + (1 << 16), "only what the socket held may still be read");
    net.link("ab").set("up=1").unwrap();
    sink.thread.join().unwrap();
    sending.join().unwrap();
    assert_eq!(sink.received.load(Ordering::Relaxed), BYTES);
}

#[test]
fn one_way_alone_can_fail() {
    let _alone = ALONE.lock();
    let Some(net) = pair("delay=1ms") else { return };
    let (a, b) = (net.node("a"), net.node("b"));
    let near = a.enter(|| UdpSocket::bind((a.address(), 0))).unwrap().unwrap();
    let far = b.enter(|| UdpSocket::bind((b.address(), 0))).unwrap().unwrap();
    far.set_read_timeout(Some(SOON)).unwrap();
    net.way("ba").set("up=0").unwrap();
    near.send_to(b"there", far.local_addr().unwrap()).unwrap();
    far.recv(&mut [0; 9]).unwrap();
    far.send_to(b"back", near.local_addr().unwrap()).unwrap();
    wait_for("the loss", SOON, || Ok((net.way("ba").stats().down == 1).then_some(()))).unwrap();
    assert_eq!(net.way("ab").stats().down, 0);
    net.way("ba").set("up=1").unwrap();
    assert!(round_trip_ms(&net) < 20.0);
}

#[test]
fn a_queue_without_limit_takes_no_more_memory_than_it_may() {
    const MEMORY_BYTES: u64 = 1_000_000;
    let _alone = ALONE.lock();
    let Some(net) = pair("rate=1m delay=1ms queue=0 memory=1m") else { return };
    let (a, b) = (net.node("a"), net.node("b"));
    let near = a.enter(|| UdpSocket::bind((a.address(), 0))).unwrap().unwrap();
    let way = net.way("ab");
    for sent in 1..=2000 {
        near.send_to(&[0; 1200], (b.address(), PORT)).unwrap();
        wait_for("the datagram", SOON, || Ok((way.stats().segments >= sent).then_some(())))
            .unwrap();
    }
    let stats = way.stats();
    assert_eq!(stats.queue_full, 0, "{stats}");
    assert!(stats.memory_full > 500, "{stats}");
    assert!((MEMORY_BYTES / 2..=MEMORY_BYTES).contains(&stats.memory_bytes_max), "{stats}");
}

/// Which of some datagrams arrive over a link with this seed.
fn survivors(seed: u64) -> Option<Vec<u16>> {
    const COUNT: u16 = 1000;
    let net = pair(&format!("loss=0.1 burst=2 seed={seed}"))?;
    let (a, b) = (net.node("a"), net.node("b"));
    let near = a.enter(|| UdpSocket::bind((a.address(), 0))).unwrap().unwrap();
    let far = b.enter(|| UdpSocket::bind((b.address(), 0))).unwrap().unwrap();
    far.set_nonblocking(true).unwrap();
    let mut arrived = Vec::new();
    for number in 0..COUNT {
        near.send_to(&number.to_le_bytes(), far.local_addr().unwrap()).unwrap();
        let through = || {
            let stats = net.way("ab").stats();
            stats.delivered + stats.lost > u64::from(number)
        };
        wait_for("the datagram", SOON, || Ok(through().then_some(()))).unwrap();
        let mut bytes = [0; 2];
        if far.recv(&mut bytes).is_ok() {
            arrived.push(u16::from_le_bytes(bytes));
        }
    }
    Some(arrived)
}

#[test]
fn a_seed_loses_the_same_again() {
    let _alone = ALONE.lock();
    let Some(first) = survivors(5) else { return };
    assert!((700..1000).contains(&first.len()), "seed 5: {} arrived", first.len());
    assert_eq!(Some(&first), survivors(5).as_ref());
    assert_ne!(Some(&first), survivors(6).as_ref());
}

#[test]
fn a_schedule_changes_links_in_its_time_and_ends_with_its_owner() {
    let _alone = ALONE.lock();
    let Some(net) = pair("delay=1ms") else { return };
    let schedule = "0s set ab rate=1g\n100ms way ba up=0 # one way\n300ms way ba up=1\n";
    let made = Arc::new(Mutex::new(Vec::new()));
    let (noted, started) = (made.clone(), Instant::now());
    let note = move |step: &dwcp_tools::lab::Step| {
        noted.lock().unwrap().push((step.to_string(), started.elapsed()));
    };
    let following = Schedule::parse(schedule).unwrap().follow(&net, note).unwrap();
    wait_for("its end", SOON, || Ok(following.is_over().then_some(()))).unwrap();
    let made = made.lock().unwrap().clone();
    assert_eq!(made[1].0, "0.1s way ba up=0");
    let times: Vec<u128> = made.iter().map(|(_, at)| at.as_millis()).collect();
    assert!(times.len() == 3 && times[1] >= 100 && times[2] >= 300, "{times:?}");
    assert_eq!(net.way("ba").spec().rate_bits, 1_000_000_000);
    assert!(net.way("ab").spec().is_up && net.way("ba").spec().is_up);
    // One that nobody holds any more changes nothing, and an unknown name is known at once.
    drop(Schedule::parse("3600s set ab up=0").unwrap().follow(&net, |_| {}).unwrap());
    assert!(net.way("ab").spec().is_up);
    assert!(Schedule::parse("0s set ac up=0").unwrap().follow(&net, |_| {}).is_err());
}

#[test]
fn a_third_node_is_the_way_round_a_dead_device() {
    let _alone = ALONE.lock();
    if !networks_for_test() {
        return;
    }
    let spec = NetSpec::pair("delay=1ms").unwrap();
    let spec = spec.with_link("ac", LinkSpec::parse("delay=10ms").unwrap()).unwrap();
    let spec = spec.with_link("cb", LinkSpec::parse("delay=10ms").unwrap()).unwrap();
    let net = Net::up(&spec).unwrap();
    assert!(round_trip_ms(&net) < 20.0);
    net.set_carrier("ab", false).unwrap();
    let round_trip = round_trip_ms(&net);
    assert!((40.0..60.0).contains(&round_trip), "{round_trip} ms");
    net.set_carrier("ab", true).unwrap();
    assert!(round_trip_ms(&net) < 20.0);
}

#[test]
fn nothing_stays_behind_even_after_a_failed_test() {
    let _alone = ALONE.lock();
    if !networks_for_test() {
        return;
    }
    let names = Mutex::new(Vec::new());
    let outcome = std::panic::catch_unwind(|| {
        let net = pair("delay=1ms").unwrap();
        let all = net.nodes().map(|node| node.namespace().to_owned());
        names.lock().unwrap().extend(all);
        // Not the panic's own message: nobody should look for what failed.
        std::panic::resume_unwind(Box::new("as a failed test does"));
    });
    assert!(outcome.is_err());
    let names = names.into_inner().unwrap();
    assert_eq!(names.len(), 2);
    for name in names {
        assert!(!Path::new("/run/netns").join(&name).exists(), "{name}");
    }
}
