//! The window of a stream before a guest, on a model of its path: records over several connections
//! that share a bottleneck, delivered in the order of the stream.
#![forbid(unsafe_code)]

use dwcp_proto::time::Nanos;
use dwcp_proto::window::{PathReport, SendMark, Window, WindowConfig};
use std::collections::VecDeque;

const SEGMENT_BYTES: u64 = 1448;

/// A record on its way.
#[derive(Clone, Copy)]
struct Record {
    position: usize,
    bytes_left: u64,
}

/// What a path is.
#[derive(Clone, Copy, Debug)]
struct Path {
    rate: u64,
    rtt_ms: u64,
    streams: usize,
    /// Each so many-th record takes a round trip longer: a segment of it was lost.
    lossy: usize,
    /// The sink is held up by others for so many milliseconds four times a second.
    held_up_ms: u64,
    /// For so long the transport looks for the path's rate.
    startup_ms: u64,
    /// What the transport says of its rate, if anything.
    said: u64,
    /// The round trip that it says.
    told_ms: u64,
    /// It says that what is behind a loss waits for it.
    recovers: bool,
}

const CLEAN: Path = Path {
    rate: 12_500_000,
    rtt_ms: 100,
    streams: 1,
    lossy: 0,
    held_up_ms: 0,
    startup_ms: 0,
    said: 0,
    told_ms: 0,
    recovers: false,
};

impl Path {
    fn segment_time(&self) -> Nanos {
        Nanos(SEGMENT_BYTES * Nanos::SECOND.0 / self.rate)
    }

    fn report(&self, now: Nanos) -> PathReport {
        let in_startup = now < Nanos::from_millis(self.startup_ms);
        let rtt = Nanos::from_millis(self.told_ms);
        PathReport { streams: 1, in_startup, rate: self.said, rtt, recovers: self.recovers }
    }
}

/// What came of it, after the path is known.
#[derive(Debug, Default)]
struct Outcome {
    delivered_bytes: u64,
    /// Bytes sent and not delivered, summed over all sends, and how many these were.
    in_flight_sum: u64,
    sends: u64,
    /// When nine tenths of the rate were first reached, on an average of half a second.
    filled_at: Option<Nanos>,
    /// The smallest window while the figures count, and the largest before.
    window_bytes_min: u64,
    window_bytes_max: u64,
}

impl Outcome {
    fn note_window(&mut self, is_warm: bool, bytes: u64) {
        if is_warm {
            self.window_bytes_min = self.window_bytes_min.min(bytes);
        } else {
            self.window_bytes_max = self.window_bytes_max.max(bytes);
        }
    }
}

/// Runs a sender that always has work until `seconds`; figures count from `warm` on.
fn run(path: Path, window: &mut Window, warm: u64, seconds: u64) -> Outcome {
    let (rtt, segment) = (Nanos::from_millis(path.rtt_ms), path.segment_time());
    let (mut now, end) = (Nanos(0), Nanos(seconds * Nanos::SECOND.0));
    let mut queues = vec![VecDeque::<Record>::new(); path.streams];
    // By position: bytes, mark, when it is complete at the sink.
    let mut sent: Vec<(u64, SendMark, Option<Nanos>)> = Vec::new();
    let (mut acked, mut in_flight, mut turn) = (0, 0_u64, 0);
    let mut outcome = Outcome { window_bytes_min: u64::MAX, ..Outcome::default() };
    let (mut half, mut half_bytes) = (Nanos(0), 0);
    while now < end {
        // What the sink has told by now: a record is delivered when all before it are.
        let mut complete_at = Nanos(0);
        while let Some(&(bytes, mark, Some(at))) = sent.get(acked) {
            complete_at = complete_at.max(at);
            if complete_at + rtt > now {
                break;
            }
            acked += 1;
            in_flight -= bytes;
            half_bytes += bytes;
            if now.0 >= warm * Nanos::SECOND.0 {
                outcome.delivered_bytes += bytes;
            }
            window.on_acked(now, bytes, mark);
        }
        if now.since(half).0 >= Nanos::SECOND.0 / 2 {
            if half_bytes >= path.rate / 20 * 9 && outcome.filled_at.is_none() {
                outcome.filled_at = Some(now);
            }
            (half, half_bytes) = (now, 0);
        }
        window.set_path(path.report(now));
        outcome.note_window(now.0 >= warm * Nanos::SECOND.0, window.window_bytes());
        while in_flight < window.window_bytes() {
            let bytes = window.record_bytes(256 << 10);
            let mark = window.on_sent(now, in_flight, bytes);
            let position = sent.len();
            let queue = (0..path.streams)
                .min_by_key(|&at| queues[at].iter().map(|record| record.bytes_left).sum::<u64>());
            queues[queue.unwrap_or(0)].push_back(Record { position, bytes_left: bytes });
            sent.push((bytes, mark, None));
            in_flight += bytes;
            if now.0 >= warm * Nanos::SECOND.0 {
                outcome.in_flight_sum += in_flight;
                outcome.sends += 1;
            }
        }
        // One segment of the next connection that has any.
        for _ in 0..path.streams {
            turn = (turn + 1) % path.streams;
            let Some(record) = queues[turn].front_mut() else { continue };
            record.bytes_left = record.bytes_left.saturating_sub(SEGMENT_BYTES);
            if record.bytes_left == 0 {
                let late = path.lossy > 0 && record.position % path.lossy == path.lossy - 1;
                let late = Nanos(if late { rtt.0 } else { 0 });
                let quarter = Nanos::SECOND.0 / 4;
                let at = (now + segment + late).0;
                let free = at.next_multiple_of(quarter);
                let held_up = free - at < path.held_up_ms * 1_000_000;
                sent[record.position].2 = Some(Nanos(if held_up { free } else { at }));
                queues[turn].pop_front();
            }
            break;
        }
        now = now + segment;
    }
    outcome
}

#[test]
fn paths_of_every_kind_are_filled_with_a_bounded_backlog() {
    for rate in [12_500_000, 125_000_000] {
        for rtt_ms in [20, 40, 100, 250] {
            for (streams, lossy, held_up_ms) in
                [(1, 0, 0), (2, 0, 0), (4, 0, 0), (4, 0, 40), (4, 40, 0)]
            {
                // A round trip of silence for every tenth of a second of data: no window helps.
                if lossy > 0 && rtt_ms > 100 {
                    continue;
                }
                fills(Path { rate, rtt_ms, streams, lossy, held_up_ms, ..CLEAN });
            }
        }
    }
}

#[test]
fn a_transport_that_looks_for_the_rate_gets_more_than_it_sends_and_its_queue_goes_afterwards() {
    for rate in [12_500_000, 125_000_000] {
        for rtt_ms in [20, 40, 100] {
            for (streams, held_up_ms) in [(1, 0), (4, 0), (4, 40)] {
                let startup_ms = 20 * rtt_ms;
                let path = Path { rate, rtt_ms, streams, held_up_ms, startup_ms, ..CLEAN };
                let outcome = fills(path);
                fills(Path { said: rate, ..path });
                let needed = rate * rtt_ms / 1000 * 33 / 10;
                assert!(outcome.window_bytes_max >= needed, "{path:?}: {outcome:?}, {needed}");
            }
        }
    }
}

#[test]
fn a_transport_that_never_finds_the_rate_leaves_no_queue() {
    for rate in [12_500_000, 125_000_000] {
        for rtt_ms in [20, 100] {
            for (streams, lossy, held_up_ms) in [(1, 0, 0), (4, 0, 40), (4, 40, 0)] {
                let startup_ms = u64::MAX / 1_000_000;
                fills(Path { rate, rtt_ms, streams, lossy, held_up_ms, startup_ms, ..CLEAN });
            }
        }
    }
}

#[test]
fn many_streams_that_recover_from_losses_all_the_time_keep_the_path_busy() {
    for (rate, rtt_ms, streams) in [(12_500_000, 100, 16), (125_000_000, 40, 64)] {
        // A record of twelve, so that there is hardly a moment without one that waits.
        let path = Path { rate, rtt_ms, streams, lossy: 12, ..CLEAN };
        let used = |path: Path| {
            let backlog = Nanos::from_millis(50);
            let mut window = Window::new(WindowConfig::with_backlog(64 << 20, backlog));
            run(path, &mut window, 5, 15).delivered_bytes * 100 / (rate * 10)
        };
        let (plain, told) = (used(path), used(Path { recovers: true, ..path }));
        println!("{path:?}: {plain} % used, {told} % when the transport says so");
        assert!(told >= 90 && told > plain + 5, "{path:?}: {plain} % and {told} %");
    }
}

#[test]
fn a_window_does_not_shrink_to_find_out_what_the_transport_tells() {
    let least = |told_ms: u64| {
        let mut window = Window::new(WindowConfig::with_max(64 << 20));
        let outcome = run(Path { told_ms, ..CLEAN }, &mut window, 5, 30);
        (outcome.window_bytes_min * 100 / window.window_bytes(), window.rtt_min())
    };
    let (percent, _) = least(0);
    assert!(percent < 50, "{percent} %: it looks for the round trip itself");
    let (percent, rtt) = least(CLEAN.rtt_ms);
    assert!(percent > 80, "{percent} %");
    assert!(rtt < Some(Nanos::from_millis(CLEAN.rtt_ms + 10)), "{rtt:?}");
    let longer = 150;
    assert_eq!(least(longer).1, Some(Nanos::from_millis(longer)), "nothing is nearer than that");
}

/// Asserts that a window before a guest uses a path, with a bounded backlog.
fn fills(path: Path) -> Outcome {
    let Path { rate, rtt_ms, lossy, .. } = path;
    let backlog = Nanos::from_millis(50);
    let mut window = Window::new(WindowConfig::with_backlog(64 << 20, backlog));
    let outcome = run(path, &mut window, 5, 15);
    let used = outcome.delivered_bytes * 100 / (rate * 10);
    let mean = outcome.in_flight_sum / outcome.sends;
    let allowed = mean * 100 / (rate * (rtt_ms + 50) / 1000);
    let words = format!("{path:?}: {used} % used, {allowed} % of what is allowed");
    println!("{words}, full after {:?}", outcome.filled_at);
    assert!(used >= if lossy > 0 { 80 } else { 90 }, "{words}");
    // Connections that share the path keep parts of records waiting, and a record that was lost
    // keeps all behind it.
    assert!(allowed <= 160, "{words}");
    assert!(outcome.filled_at.is_some_and(|at| at <= Nanos(5 * Nanos::SECOND.0)), "{words}");
    outcome
}
