//! Properties of a lane's flow: no page version is lost whatever streams die and frames are
//! refused, only what the sink retained becomes a base, and window and tables bound what is in
//! flight.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use dwcp_proto::flow::FlowError;
use dwcp_proto::ids::{Incarnation, PageIndex, Sequence, SessionNumber, StreamId};
use dwcp_proto::sink::{SinkFlow, SinkFlowConfig};
use dwcp_proto::source::{Cargo, InFlight, SourceFlow, SourceFlowConfig};
use dwcp_proto::time::Nanos;
use dwcp_proto::window::{Window, WindowConfig};
use dwcp_proto::wire::frame::{Frame, NackReason};
use dwcp_proto::wire::limits::{RECORD_BYTES_MAX, WINDOW_BYTES_FLOOR};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const STREAMS: u16 = 3;
const SESSIONS: u32 = 2;
const FRAMES_MAX: usize = 12;

fn source_config(frames_max: usize) -> SourceFlowConfig {
    let window = WindowConfig::with_max(64 << 20);
    SourceFlowConfig { streams_max: 3, sessions_max: 2, frames_max, window }
}

fn cargo(first_page: PageIndex) -> Cargo {
    Cargo::Extent { first_page, mask: 1 }
}

fn page_of(cargo: Cargo) -> PageIndex {
    match cargo {
        Cargo::Extent { first_page, .. } => first_page,
        Cargo::Kept(name) => panic!("no part of a stream was sent: {name}"),
    }
}

fn frame(session: u32, sequence: u64, bytes: u64, sent_at: Nanos) -> InFlight {
    let (session, sequence) = (SessionNumber(session), Sequence(sequence));
    InFlight { session, sequence, cargo: cargo(PageIndex(0)), bytes, sent_at }
}

fn one_stream() -> SourceFlow {
    let mut flow = SourceFlow::new(source_config(FRAMES_MAX));
    flow.add_stream(StreamId(0), Incarnation(1)).unwrap();
    flow.add_session(SessionNumber(1)).unwrap();
    flow
}

#[test]
fn streams_are_given_what_their_transports_take_at_a_time() {
    let mut flow = SourceFlow::new(source_config(1000));
    flow.add_session(SessionNumber(1)).unwrap();
    let windows = [400_000, 100_000, 0];
    for (stream, window_bytes) in (0..).map(StreamId).zip(windows) {
        flow.add_stream(stream, Incarnation(1)).unwrap();
        flow.set_stream_window(stream, window_bytes);
    }
    let mut bytes = [0; 3];
    for sequence in 1..=50 {
        let stream = flow.pick_stream(|_| true).unwrap();
        flow.on_sent(stream, frame(1, sequence, 10_000, Nanos(0)));
        bytes[usize::from(stream.0)] += 10_000;
    }
    assert!(bytes[0] > bytes[1] * 3 && bytes[1] > bytes[2], "{bytes:?}");
    assert_eq!(flow.pick_stream(|stream| stream == StreamId(2)), Some(StreamId(2)));
}

#[test]
fn a_stream_that_comes_back_is_not_given_what_the_one_before_took() {
    let mut flow = SourceFlow::new(source_config(10));
    flow.add_stream(StreamId(0), Incarnation(1)).unwrap();
    flow.add_stream(StreamId(1), Incarnation(1)).unwrap();
    flow.set_stream_window(StreamId(0), 100_000);
    flow.set_stream_window(StreamId(1), 400_000);
    flow.on_stream_dead(StreamId(1), drop).unwrap();
    flow.add_stream(StreamId(1), Incarnation(2)).unwrap();
    assert_eq!(flow.pick_stream(|_| true), Some(StreamId(0)), "of the new one nothing is known");
}

#[test]
fn acks_that_a_sink_may_not_send_are_refused() {
    let mut flow = one_stream();
    let (stream, session) = (StreamId(0), SessionNumber(1));
    for sequence in 1..=3 {
        flow.on_sent(stream, frame(1, sequence, 100, Nanos(0)));
    }
    let mut ack = |through| flow.on_ack(stream, session, Sequence(through), Nanos(5), drop);
    assert!(matches!(ack(4), Err(FlowError::AckBeyondSent { .. })));
    let summary = ack(2).unwrap();
    assert_eq!((summary.frames, summary.bytes, summary.rtt), (2, 200, Some(Nanos(5))));
    assert_eq!(ack(2).unwrap().frames, 0, "the same ack again says nothing new");
    assert!(matches!(ack(1), Err(FlowError::AckBackwards { .. })));
    let error = flow.on_nack(stream, session, Sequence(2)).unwrap_err();
    assert_eq!(error.code(), "flow_nack_not_in_flight");
    assert!(error.is_violation());
    flow.forget_session(session).unwrap();
    assert_eq!((flow.in_flight_bytes(), flow.in_flight_frames()), (0, 0));
    let error = flow.on_ack(stream, session, Sequence(3), Nanos(6), drop).unwrap_err();
    assert!(!error.is_violation(), "answers to a closed session may still be under way");
}

#[test]
fn a_stream_comes_back_as_a_newer_incarnation_only() {
    let mut flow = one_stream();
    let stream = StreamId(0);
    assert_eq!(flow.add_stream(stream, Incarnation(2)), Err(FlowError::AlreadyOpen));
    flow.on_stream_dead(stream, drop).unwrap();
    assert_eq!(flow.pick_stream(|_| true), None);
    let error = flow.add_stream(stream, Incarnation(1)).unwrap_err();
    assert_eq!(error.code(), "flow_stale_incarnation");
    flow.add_stream(stream, Incarnation(2)).unwrap();
    assert_eq!(flow.pick_stream(|_| true), Some(stream));
    assert_eq!(flow.incarnation(stream), Some(Incarnation(2)));
}

#[test]
fn the_sink_refuses_frames_out_of_order_and_bounds_its_nacks() {
    let mut flow = SinkFlow::new(SinkFlowConfig { streams_max: 1, sessions_max: 1, nacks_max: 2 });
    let (stream, session) = (StreamId(0), SessionNumber(1));
    flow.add_stream(stream, Incarnation(1)).unwrap();
    let unknown = flow.accept(stream, session, Sequence(1)).unwrap_err();
    assert!(!unknown.is_violation());
    flow.add_session(session).unwrap();
    flow.accept(stream, session, Sequence(5)).unwrap();
    let error = flow.accept(stream, session, Sequence(5)).unwrap_err();
    assert!(matches!(error, FlowError::OutOfOrder { .. }) && error.is_violation());
    flow.refused(stream, session, Sequence(5), NackReason::UnknownBase).unwrap();
    flow.accept(stream, session, Sequence(6)).unwrap();
    flow.refused(stream, session, Sequence(6), NackReason::UnknownBase).unwrap();
    flow.accept(stream, session, Sequence(7)).unwrap();
    let error = flow.refused(stream, session, Sequence(7), NackReason::UnknownBase).unwrap_err();
    assert_eq!(error.code(), "sink_nacks_full");
    let due: Vec<_> = std::iter::from_fn(|| flow.next_due(stream)).collect();
    assert!(matches!(due[..], [Frame::Nack { .. }, Frame::Nack { .. }, Frame::Ack { .. }]));
}

/// What one connection carries in each direction.
#[derive(Default)]
struct Pipe {
    frames: VecDeque<InFlight>,
    answers: VecDeque<Frame<'static>>,
}

/// A lane at both ends. Each frame stands for one page, named by its first sequence.
struct Lane {
    now: Nanos,
    source: SourceFlow,
    sink: SinkFlow,
    pipes: BTreeMap<StreamId, Pipe>,
    incarnation: Incarnation,
    /// (session, page) that wait to be sent.
    queue: VecDeque<(SessionNumber, PageIndex)>,
    /// What the sink retained: page -> newest version.
    retained: BTreeMap<(SessionNumber, PageIndex), Sequence>,
    /// What the source believes to be acknowledged.
    acked: BTreeSet<(SessionNumber, PageIndex)>,
    pages: BTreeSet<(SessionNumber, PageIndex)>,
}

impl Lane {
    fn new() -> Self {
        let config = SinkFlowConfig { streams_max: 3, sessions_max: 2, nacks_max: 64 };
        let mut lane = Self {
            now: Nanos(1),
            source: SourceFlow::new(source_config(FRAMES_MAX)),
            sink: SinkFlow::new(config),
            pipes: BTreeMap::new(),
            incarnation: Incarnation(0),
            queue: VecDeque::new(),
            retained: BTreeMap::new(),
            acked: BTreeSet::new(),
            pages: BTreeSet::new(),
        };
        for session in (1..=SESSIONS).map(SessionNumber) {
            lane.source.add_session(session).unwrap();
            lane.sink.add_session(session).unwrap();
        }
        for stream in (0..STREAMS).map(StreamId) {
            lane.revive(stream);
        }
        lane
    }

    fn revive(&mut self, stream: StreamId) {
        if !self.pipes.contains_key(&stream) {
            self.incarnation = self.incarnation.next();
            self.source.add_stream(stream, self.incarnation).unwrap();
            self.sink.add_stream(stream, self.incarnation).unwrap();
            self.pipes.insert(stream, Pipe::default());
        }
    }

    fn kill(&mut self, stream: StreamId) {
        if self.pipes.remove(&stream).is_some() {
            let queue = &mut self.queue;
            let again = |lost: InFlight| queue.push_back((lost.session, page_of(lost.cargo)));
            self.source.on_stream_dead(stream, again).unwrap();
            self.sink.remove_stream(stream).unwrap();
        }
    }

    fn send(&mut self) {
        let Some(stream) = self.source.pick_stream(|_| true) else { return };
        let Some((session, first_page)) = self.queue.pop_front() else { return };
        let before = self.source.in_flight_bytes();
        assert!(before < self.source.window().window_bytes(), "the window bounds what is sent");
        let sequence = self.source.next_sequence(session).unwrap();
        let (bytes, sent_at) = (RECORD_BYTES_MAX as u64, self.now);
        let frame = InFlight { session, sequence, cargo: cargo(first_page), bytes, sent_at };
        self.source.on_sent(stream, frame);
        self.pipes.get_mut(&stream).unwrap().frames.push_back(frame);
    }

    fn receive(&mut self, stream: StreamId, refuse: bool) {
        let Some(pipe) = self.pipes.get_mut(&stream) else { return };
        let Some(InFlight { session, sequence, cargo, .. }) = pipe.frames.pop_front() else {
            return;
        };
        self.sink.accept(stream, session, sequence).unwrap();
        if refuse {
            self.sink.refused(stream, session, sequence, NackReason::UnknownBase).unwrap();
            return;
        }
        let held = self.retained.entry((session, page_of(cargo))).or_default();
        *held = sequence.max(*held);
        self.sink.applied(stream, session, sequence).unwrap();
    }

    fn answer(&mut self, stream: StreamId) {
        let Some(pipe) = self.pipes.get_mut(&stream) else { return };
        pipe.answers.extend(std::iter::from_fn(|| self.sink.next_due(stream)));
    }

    fn hear(&mut self, stream: StreamId) {
        let Some(pipe) = self.pipes.get_mut(&stream) else { return };
        match pipe.answers.pop_front() {
            Some(Frame::Ack { session, through }) => {
                let (retained, acked) = (&self.retained, &mut self.acked);
                let each = |frame: InFlight| {
                    let page = (frame.session, page_of(frame.cargo));
                    assert!(retained[&page] >= frame.sequence, "an ack means retained");
                    acked.insert(page);
                };
                self.source.on_ack(stream, session, through, self.now, each).unwrap();
            }
            Some(Frame::Nack { session, sequence, .. }) => {
                let lost = self.source.on_nack(stream, session, sequence).unwrap();
                self.queue.push_back((lost.session, page_of(lost.cargo)));
            }
            _ => {}
        }
    }

    fn event(&mut self, op: u8, pick: u8) {
        self.now = self.now + Nanos::from_millis(u64::from(pick % 7));
        let stream = StreamId(u16::from(pick) % STREAMS);
        match op % 32 {
            0..=7 => {
                let session = SessionNumber(u32::from(pick) % SESSIONS + 1);
                let page = (session, PageIndex(self.pages.len() as u64));
                self.pages.insert(page);
                self.queue.push_back(page);
                self.send();
            }
            8..=13 => self.send(),
            14..=19 => self.receive(stream, false),
            20 => self.receive(stream, true),
            21..=24 => self.answer(stream),
            25..=28 => self.hear(stream),
            29 => self.kill(stream),
            _ => self.revive(stream),
        }
        self.check();
    }

    fn check(&self) {
        let in_flight: usize = self.source.in_flight_frames();
        assert!(in_flight <= FRAMES_MAX);
        assert_eq!(self.source.in_flight_bytes(), (in_flight * RECORD_BYTES_MAX) as u64);
        let streams = (0..STREAMS).map(|s| self.source.stream_in_flight_bytes(StreamId(s)));
        assert_eq!(streams.sum::<u64>(), self.source.in_flight_bytes());
        assert_eq!(
            self.pages.len(),
            self.queue.len() + in_flight + self.acked.len(),
            "every page is queued, in flight or acknowledged, and only one of these"
        );
    }

    fn heal(&mut self) {
        let streams = || (0..STREAMS).map(StreamId);
        streams().for_each(|stream| self.revive(stream));
        for _ in 0..self.pages.len() * 4 + 100 {
            self.send();
            self.now = self.now + Nanos::from_millis(1);
            for stream in streams() {
                self.receive(stream, false);
                self.answer(stream);
                self.hear(stream);
                self.hear(stream);
            }
            self.check();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_page_is_lost_and_only_retained_pages_count_as_acknowledged(
        events in prop::collection::vec((any::<u8>(), any::<u8>()), 1..400),
    ) {
        let mut lane = Lane::new();
        for (op, pick) in events {
            lane.event(op, pick);
        }
        lane.heal();
        prop_assert_eq!(&lane.acked, &lane.pages);
        prop_assert!((1..=SESSIONS).all(|s| lane.source.is_idle(SessionNumber(s))));
        prop_assert_eq!(lane.source.in_flight_frames(), 0);
    }

    #[test]
    fn a_window_stays_in_its_bounds_whatever_acks_say(
        acks in prop::collection::vec((any::<u32>(), any::<u32>(), any::<u32>()), 1..200),
    ) {
        let config = WindowConfig::with_max(8 << 20);
        let mut window = Window::new(config);
        let mut now = Nanos(0);
        for (bytes, in_flight, wait) in acks {
            let mark = window.on_sent(now, in_flight.into(), bytes.into());
            now = now + Nanos(wait.into());
            window.on_acked(now, bytes.into(), mark);
            prop_assert!(window.window_bytes() >= config.floor_bytes);
            prop_assert!(window.window_bytes() <= config.max_bytes);
        }
    }
}

/// A path with a bottleneck and an endless buffer, driven for some time by a sender that always has
/// work. Returns the bytes delivered.
fn drive(window: &mut Window, now: &mut Nanos, rate: u64, rtt: Nanos, time: Nanos) -> u64 {
    drive_bunched(window, now, rate, rtt, time, Nanos(1))
}

/// The same where acks come in bunches, as they do behind a record that was lost on the way: all
/// of a span of time at its end.
fn drive_bunched(
    window: &mut Window,
    now: &mut Nanos,
    rate: u64,
    rtt: Nanos,
    time: Nanos,
    bunch: Nanos,
) -> u64 {
    const BYTES: u64 = 64 << 10;
    let end = *now + time;
    let (mut free_at, mut in_flight, mut delivered) = (*now, 0, 0);
    let mut frames = VecDeque::new();
    while *now < end {
        while in_flight < window.window_bytes() {
            let mark = window.on_sent(*now, in_flight, BYTES);
            in_flight += BYTES;
            free_at = free_at.max(*now) + Nanos(BYTES * Nanos::SECOND.0 / rate);
            let acked_at = (free_at + rtt).0.div_ceil(bunch.0) * bunch.0;
            frames.push_back((Nanos(acked_at), mark));
        }
        let (acked_at, mark) = frames.pop_front().unwrap();
        *now = acked_at;
        in_flight -= BYTES;
        delivered += BYTES;
        window.on_acked(*now, BYTES, mark);
    }
    delivered
}

#[test]
fn the_window_fills_paths_of_every_kind_and_bounds_the_backlog() {
    for (rate, rtt_ms) in [(12_500_000, 40), (125_000_000, 20), (1_250_000_000, 1)] {
        let rtt = Nanos::from_millis(rtt_ms);
        let mut window = Window::new(WindowConfig::with_max(256 << 20));
        let mut now = Nanos(0);
        let seconds = |count| Nanos(count * Nanos::SECOND.0);
        drive(&mut window, &mut now, rate, rtt, seconds(5));
        let delivered = drive(&mut window, &mut now, rate, rtt, seconds(25));
        assert!(delivered > rate * 25 / 100 * 95, "{delivered} bytes at {rate} B/s x {rtt_ms} ms");
        let bdp = rate * rtt_ms / 1000;
        let bound = (2 * bdp).max(bdp + rate / 20).max(WINDOW_BYTES_FLOOR);
        let window_bytes = window.window_bytes();
        assert!(window_bytes < bound / 2 * 3, "{window_bytes} for a bound of {bound}");
    }
}

#[test]
fn a_window_before_a_guest_fills_the_path_with_the_backlog_that_it_allows() {
    for (rate, rtt_ms) in [(12_500_000, 100), (125_000_000, 40), (125_000_000, 250)] {
        let (rtt, backlog) = (Nanos::from_millis(rtt_ms), Nanos::from_millis(50));
        let mut window = Window::new(WindowConfig::with_backlog(256 << 20, backlog));
        let mut now = Nanos(0);
        let seconds = |count| Nanos(count * Nanos::SECOND.0);
        drive(&mut window, &mut now, rate, rtt, seconds(5));
        let delivered = drive(&mut window, &mut now, rate, rtt, seconds(25));
        assert!(delivered > rate * 25 / 100 * 95, "{delivered} bytes at {rate} B/s x {rtt_ms} ms");
        let allowed = rate * rtt_ms / 1000 + rate / 20;
        let window_bytes = window.window_bytes();
        assert!(window_bytes <= allowed / 20 * 21, "{window_bytes} for {allowed}");
    }
}

#[test]
fn acks_in_bunches_do_not_pass_for_a_faster_path() {
    for bunch_ms in [10, 40, 70] {
        let (rate, rtt, backlog) = (12_500_000, Nanos::from_millis(100), Nanos::from_millis(50));
        let mut window = Window::new(WindowConfig::with_backlog(256 << 20, backlog));
        let mut now = Nanos(0);
        let (warm, time) = (Nanos(5 * Nanos::SECOND.0), Nanos(25 * Nanos::SECOND.0));
        let bunch = Nanos::from_millis(bunch_ms);
        drive_bunched(&mut window, &mut now, rate, rtt, warm, bunch);
        let delivered = drive_bunched(&mut window, &mut now, rate, rtt, time, bunch);
        assert!(delivered > rate * 25 / 100 * 95, "{delivered} bytes in bunches of {bunch_ms} ms");
        // A bunch lengthens the shortest round trip by as much as itself.
        let allowed = rate * (100 + bunch_ms) / 1000 + rate / 20;
        assert!(window.window_bytes() <= allowed / 4 * 5, "{} of {allowed}", window.window_bytes());
    }
}

#[test]
fn the_window_follows_a_path_that_gets_slower_and_faster() {
    let mut window = Window::new(WindowConfig::with_max(256 << 20));
    let (mut now, rtt) = (Nanos(0), Nanos::from_millis(20));
    let time = Nanos(15 * Nanos::SECOND.0);
    drive(&mut window, &mut now, 125_000_000, rtt, time);
    let fast = window.window_bytes();
    drive(&mut window, &mut now, 12_500_000, rtt, time);
    let slow = window.window_bytes();
    assert!(slow < fast / 4, "{slow} after {fast}");
    drive(&mut window, &mut now, 125_000_000, rtt, time);
    assert!(window.window_bytes() > fast / 4 * 3, "{} after {fast}", window.window_bytes());
}
