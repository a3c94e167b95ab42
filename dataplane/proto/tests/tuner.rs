//! The tuner on models of paths: senders under cubic that share a bottleneck, with what is lost on
//! the way and what its queue drops, and with noise.
#![forbid(unsafe_code)]

use dwcp_proto::time::Nanos;
use dwcp_proto::tuner::{Decision, STREAMS_START, Sample, Tuner, Why};

const SAMPLE: Nanos = Nanos::from_millis(250);
const STREAMS_MAX: u16 = 64;

/// Numbers that look random (xorshift64*).
struct Random(u64);

impl Random {
    /// From -1 to 1.
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11;
        bits as f64 / (1_u64 << 52) as f64 - 1.0
    }
}

/// A path as many streams see it.
#[derive(Clone, Copy, Debug)]
struct Path {
    /// Bytes per second.
    rate: f64,
    rtt_ms: u64,
    /// What one stream reaches, held back by what is lost on the way.
    stream_rate: f64,
    /// The share that is lost on the way.
    loss: f64,
    /// A queue of so many round trips.
    queue: f64,
    /// What a sample differs by at the most, as a share.
    noise: f64,
}

/// The lossy path of the lab: one cubic stream carries 12 Mbit/s, 64 of them most of it.
const LOSSY: Path =
    Path { rate: 120e6, rtt_ms: 40, stream_rate: 1.5e6, loss: 0.001, queue: 1.0, noise: 0.0 };
const CLEAN: Path = Path { stream_rate: f64::INFINITY, loss: 0.0, ..LOSSY };

/// Senders that share a path.
struct World {
    now: Nanos,
    tuners: Vec<Tuner>,
    /// When each began; before that it sends nothing.
    begins: Vec<Nanos>,
    /// The streams that each has ready, which follow what it wants after a connection's time.
    live: Vec<u16>,
    rates: Vec<f64>,
    random: Random,
}

impl World {
    fn new(senders: usize, seed: u64) -> Self {
        Self {
            now: Nanos(0),
            tuners: (0..senders).map(|_| Tuner::new(STREAMS_MAX)).collect(),
            begins: vec![Nanos(0); senders],
            live: vec![1; senders],
            rates: vec![0.0; senders],
            random: Random(seed),
        }
    }

    /// A quarter of a second.
    fn step(&mut self, path: &Path) {
        self.now = self.now + SAMPLE;
        let active = |index: usize| self.now >= self.begins[index];
        let wishes: Vec<f64> = (0..self.tuners.len())
            .map(|it| if active(it) { f64::from(self.live[it]) } else { 0.0 })
            .map(|streams| streams * path.stream_rate.min(path.rate * 1e3))
            .collect();
        let wished: f64 = wishes.iter().sum();
        let is_full = wished > path.rate;
        let streams: f64 = self.live.iter().map(|live| f64::from(*live)).sum();
        // What the queue drops grows with the number of streams that probe for room.
        let segments = path.rate * path.rtt_ms as f64 / 1e3 / 1448.0;
        let dropped =
            if is_full { 1.5 * (streams / segments / (1.0 + path.queue)).powi(2) } else { 0.0 };
        let queue = if is_full { 0.7 * path.queue } else { 0.03 };
        for (index, wish) in wishes.into_iter().enumerate() {
            if self.now < self.begins[index] {
                continue;
            }
            let share = if is_full { path.rate * wish / wished } else { wish };
            let rate = share * (1.0 + path.noise * self.random.next());
            self.rates[index] = share;
            let acked = rate / 4.0;
            let rtt =
                path.rtt_ms as f64 * 1e6 * (1.0 + queue * (1.0 + path.noise * self.random.next()));
            self.tuners[index].step(
                self.now,
                &Sample {
                    live: self.live[index],
                    acked_bytes: acked as u64,
                    resent_bytes: (acked * (path.loss + dropped)) as u64,
                    rtt: Nanos(rtt as u64),
                    rtt_least: Nanos::from_millis(path.rtt_ms),
                    is_held_back: true,
                    fills_alone: false,
                    is_buffer_bound: false,
                },
            );
            self.live[index] = self.tuners[index].decision().streams;
        }
    }

    fn run(&mut self, path: &Path, seconds: u64) {
        for _ in 0..seconds * 4 {
            self.step(path);
        }
    }

    fn streams(&self) -> Vec<u16> {
        self.tuners.iter().map(|tuner| tuner.decision().streams).collect()
    }
}

/// Jain's index: 1 when all have the same.
fn jain(rates: &[f64]) -> f64 {
    let sum: f64 = rates.iter().sum();
    let squares: f64 = rates.iter().map(|rate| rate * rate).sum();
    sum * sum / (rates.len() as f64 * squares)
}

#[test]
fn on_a_path_with_loss_the_number_doubles_to_what_fills_it_within_half_a_minute() {
    for seed in 1..50 {
        let mut world = World::new(1, seed);
        world.run(&Path { noise: 0.15, ..LOSSY }, 30);
        let best = LOSSY.stream_rate * f64::from(STREAMS_MAX);
        println!("seed {seed}: {:?}", world.tuners[0].decision());
        assert!(world.rates[0] >= 0.9 * best, "seed {seed}: {:?}", world.streams());
    }
}

#[test]
fn no_more_streams_than_the_path_needs() {
    for seed in 1..50 {
        let mut world = World::new(1, seed);
        // Full with 16.
        let path = Path { rate: 12.5e6, rtt_ms: 100, stream_rate: 0.78e6, noise: 0.05, ..LOSSY };
        world.run(&path, 120);
        println!("seed {seed}: {:?}", world.tuners[0].decision());
        assert!(world.rates[0] >= 0.9 * path.rate, "seed {seed}: {:?}", world.streams());
        assert!(world.streams()[0] <= 24, "seed {seed}: {:?}", world.streams());
    }
}

#[test]
fn on_a_path_without_loss_the_first_streams_stay_and_nothing_flaps() {
    for seed in 1..20 {
        let mut world = World::new(1, seed);
        let path = Path { noise: 0.03, ..CLEAN };
        let mut more = 0;
        for _ in 0..4 * 600 {
            world.step(&path);
            // One more is tried now and then.
            let streams = world.streams()[0];
            assert!(streams.abs_diff(STREAMS_START) <= 1, "seed {seed} at {:?}", world.now);
            more += u32::from(streams != STREAMS_START);
        }
        assert!(more <= 4 * 60, "seed {seed}: {more} quarters of a second in ten minutes");
    }
}

#[test]
fn on_a_steady_path_trials_become_rare() {
    for path in [LOSSY, Path { rate: 12.5e6, rtt_ms: 100, stream_rate: 0.78e6, ..LOSSY }] {
        for seed in 1..20 {
            let mut world = World::new(1, seed);
            let path = Path { noise: 0.05, ..path };
            world.run(&path, 300);
            let (mut changes, mut before) = (0, world.streams());
            for _ in 0..4 * 1200 {
                world.step(&path);
                changes += u32::from(world.streams() != before);
                before = world.streams();
            }
            // A trial is two changes, and there is one in a minute.
            assert!(changes <= 44, "seed {seed}, {path:?}: {changes} changes in 20 minutes");
        }
    }
}

#[test]
fn two_that_share_a_path_come_to_equal_parts_whoever_was_first() {
    // Over ten minutes, from ten minutes after the first began.
    let slow = Path { rate: 12.5e6, rtt_ms: 100, stream_rate: 0.78e6, ..LOSSY };
    for path in [LOSSY, CLEAN, slow, Path { stream_rate: 4e6, ..LOSSY }] {
        let mut mean = 0.0;
        for seed in 1..=20 {
            let mut world = World::new(2, seed);
            world.begins[1] = Nanos(seed % 5 * 15 * Nanos::SECOND.0);
            let path = Path { noise: 0.03, ..path };
            world.run(&path, 600);
            let mut sums = [0.0; 2];
            for _ in 0..4 * 600 {
                world.step(&path);
                sums[0] += world.rates[0];
                sums[1] += world.rates[1];
            }
            let (fair, used) = (jain(&sums), (sums[0] + sums[1]) / 2400.0 / path.rate);
            let words = format!("seed {seed}, {path:?}: {:?} {fair:.3} {used:.3}", world.streams());
            println!("{words}");
            // Few streams are not divided evenly by steps of one.
            assert!(fair >= 0.9, "{words}");
            mean += fair / 20.0;
        }
        assert!(mean >= 0.95, "{path:?}: {mean:.3}");
    }
}

#[test]
fn another_rate_of_the_path_is_followed_both_ways() {
    for seed in 1..20 {
        let mut world = World::new(1, seed);
        let fast = Path { noise: 0.1, ..LOSSY };
        // The queue is in bytes.
        let slow = Path { rate: 12e6, queue: 10.0, ..fast };
        world.run(&fast, 60);
        assert!(world.streams()[0] > 48, "seed {seed}: {:?}", world.streams());
        world.run(&slow, 30);
        assert!(world.rates[0] > 0.95 * slow.rate, "seed {seed}: {:?}", world.streams());
        assert!(world.streams()[0] <= 32, "seed {seed}: {:?}", world.streams());
        world.run(&fast, 20);
        assert!(
            world.rates[0] >= 0.85 * 64.0 * fast.stream_rate,
            "seed {seed}: {:?}",
            world.streams()
        );
    }
}

fn bbr(is_buffer_bound: bool, live: u16) -> Sample {
    Sample { live, fills_alone: true, is_buffer_bound, is_held_back: true, ..Sample::default() }
}

#[test]
fn streams_that_fill_the_path_alone_are_one_and_more_only_when_buffers_are_small() {
    let mut tuner = Tuner::new(STREAMS_MAX);
    let mut now = Nanos(0);
    let mut step = |tuner: &mut Tuner, sample| {
        now = now + SAMPLE;
        tuner.step(now, &sample);
        tuner.decision()
    };
    for _ in 0..100 {
        let decision = step(&mut tuner, bbr(false, 1));
        assert_eq!(decision, Decision { streams: 1, why: Why::FillsAlone });
    }
    assert_eq!(step(&mut tuner, bbr(true, 1)), Decision { streams: 2, why: Why::BuffersSmall });
    assert_eq!(step(&mut tuner, bbr(true, 1)).streams, 2, "the second is still on its way");
    assert_eq!(step(&mut tuner, bbr(false, 2)).streams, 2, "it stays");
    for _ in 0..100 {
        let live = tuner.decision().streams;
        step(&mut tuner, bbr(true, live));
    }
    assert_eq!(tuner.decision().streams, 8, "no more than help");
}

#[test]
fn nothing_is_learnt_while_the_source_is_slow() {
    let mut tuner = Tuner::new(STREAMS_MAX);
    for turn in 1..1000 {
        let sample = Sample {
            live: STREAMS_START,
            acked_bytes: 1000,
            rtt: Nanos::from_millis(40),
            rtt_least: Nanos::from_millis(40),
            ..Sample::default()
        };
        tuner.step(Nanos(SAMPLE.0 * turn), &sample);
    }
    assert_eq!(tuner.decision(), Decision { streams: STREAMS_START, why: Why::SourceSlow });
}

#[test]
fn streams_that_do_not_come_are_not_waited_for() {
    let mut tuner = Tuner::new(STREAMS_MAX);
    for turn in 1..200 {
        let live = tuner.decision().streams.min(6);
        let sample = Sample {
            live,
            acked_bytes: u64::from(live) * 1_000_000,
            rtt: Nanos::from_millis(40),
            rtt_least: Nanos::from_millis(40),
            is_held_back: true,
            ..Sample::default()
        };
        tuner.step(Nanos(SAMPLE.0 * turn), &sample);
    }
    let gained = Why::Gained { from: STREAMS_START, percent: 50 };
    assert_eq!(tuner.decision(), Decision { streams: 8, why: gained });
}
