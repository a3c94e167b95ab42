//! How many bytes a lane, or a stream before a guest, may have in flight: found from acks alone.
//!
//! The window is steered by the queue that it makes: the least round trip of a span of time, beyond
//! the least of the last ten seconds. A longer queue than is allowed makes it smaller, a shorter
//! one larger, by the ratio of the round trip that is allowed to the one that was seen. The least
//! of a span is blind to what delays single records (a loss on the way, a bunch of acks), which is
//! no queue of ours; but records that wait at the sink for a lost one come out as a burst, so the
//! window does not get much larger either than what the highest rate of late needs for the round
//! trip that is allowed. A cut that finds the same queue and costs throughput is taken back: then
//! the queue belongs to others. When the least round trip grows old, the window shrinks to half of
//! a bandwidth-delay product for a moment, so that a standing queue drains and can't pass for
//! distance; hardly ever where the transport tells the path's round trip. At the start the window
//! doubles with every other round trip in which it was full, until there is a queue or no more
//! throughput. A sender that was not held back by its window learns nothing about it.
//!
//! While the transport itself still looks for the path's rate, the window stays ahead of it: a
//! congestion control that is given no more than it sends takes its sender for slow, keeps looking,
//! and meanwhile sends in bursts that overrun the path. The queue that this makes at the beginning
//! is gone when the transport has found the rate, or should have.
//!
//! Runs on the shard that owns the lane, called for every frame sent and every ack. Never
//! allocates.

mod path;

pub use path::PathReport;

use crate::time::Nanos;
use crate::wire::limits::{BACKLOG_DEFAULT, WINDOW_BYTES_FLOOR, WINDOW_BYTES_START};

/// A span is two round trips, so that the window at its beginning shows in its acks, and not so
/// short that a pause of the machine fills it.
const SPAN_ROUND_TRIPS: u64 = 2;
const SPAN_MIN: Nanos = Nanos::from_millis(50);
/// For so many spans a cut that cost throughput is not tried again.
const PATIENCE_SPANS: u8 = 4;
/// Over so many spans the highest rate bounds the window.
const RATE_SPANS: usize = 8;
/// How long a least round trip counts; longer where the transport looks for the path's itself: then
/// only what the two ends add to it can have changed unseen.
const RTT_AGE_MAX: Nanos = Nanos(10 * Nanos::SECOND.0);
const RTT_AGE_MAX_TOLD: Nanos = Nanos(60 * Nanos::SECOND.0);
/// How long the window shrinks to measure the round trip anew, at least.
const PROBE_MIN: Nanos = Nanos::from_millis(200);
/// Full round trips in a row without a quarter more rate, after which start-up ends.
const START_PLATEAU_ROUNDS: u8 = 2;

/// What is lost is sent again a round trip later at the least, and one more passes until it is
/// delivered; most of what waits came half a round trip after it.
const RECOVERY_HALF_ROUND_TRIPS: u64 = 3;

/// Bandwidth-delay products that a transport needs in order to find the path's rate: BBR sends 2.89
/// times what it saw in the last round trip, and must not run dry.
const STARTUP_BDPS: u64 = 8;
/// The same once the rate has not grown by a quarter for some round trips: the path is full, its
/// queue with it, and BBR wants to see that three times.
const FULL_BDPS: u64 = 3;
const FULL_ROUND_TRIPS: u64 = 2;
/// Round trips without a quarter more rate in which it finds it: BBR takes three, each with up to
/// 2.89 products in flight. If it does not, the sender is slower than the path, and a large window
/// only makes its bursts larger. The transport is asked a few times a second.
const STARTUP_ROUND_TRIPS: u64 = 12;
const STARTUP_MIN: Nanos = Nanos::from_millis(500);

/// The bounds of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowConfig {
    /// The window never gets smaller.
    pub floor_bytes: u64,
    /// The window before anything was measured.
    pub start_bytes: u64,
    /// The window never gets larger: what the lane's arena can hold.
    pub max_bytes: u64,
    /// The queue allowed beyond one bandwidth-delay product, as time.
    pub backlog: Nanos,
    /// The same in round trips; the longer of both counts.
    pub backlog_round_trips: u64,
}

impl WindowConfig {
    /// The default window below a bound: two bandwidth-delay products, where nothing waits for the
    /// end of the queue.
    #[must_use]
    pub const fn with_max(max_bytes: u64) -> Self {
        Self {
            floor_bytes: lesser(WINDOW_BYTES_FLOOR, max_bytes),
            start_bytes: lesser(WINDOW_BYTES_START, max_bytes),
            max_bytes,
            backlog: BACKLOG_DEFAULT,
            backlog_round_trips: 1,
        }
    }

    /// The window below a bound of what stands in front of a guest's downtime: what the path holds
    /// and this backlog, no more.
    #[must_use]
    pub const fn with_backlog(max_bytes: u64, backlog: Nanos) -> Self {
        Self { backlog, backlog_round_trips: 0, ..Self::with_max(max_bytes) }
    }
}

/// What the window remembers of a frame in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendMark {
    sent_at: Nanos,
    /// Nothing else was in flight: the frame met no queue of ours.
    alone: bool,
    /// The window was nearly full: the sender was held back by it.
    full: bool,
}

/// Growth before the path is full.
#[derive(Clone, Copy, Debug, Default)]
struct Start {
    rate: u64,
    plateau_rounds: u8,
}

/// A transport that looks for the path's rate: what it has reached, and when.
#[derive(Clone, Copy, Debug, Default)]
struct Startup {
    rate: u64,
    grown_at: Nanos,
    /// It has not grown for long: the window does not wait for it.
    given_up: bool,
}

/// A short time with a small window, to see the round trip without a queue.
#[derive(Clone, Copy, Debug)]
struct Probe {
    until: Nanos,
    rtt_min: Option<Nanos>,
}

/// A span of time: what was acknowledged in it.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    began: Nanos,
    bytes: u64,
    /// Of these, what a sender brought that was held back by its window.
    full_bytes: u64,
    rtt_min: Option<Nanos>,
}

/// A window that was made smaller: what it was, and what it brought.
#[derive(Clone, Copy, Debug)]
struct Cut {
    window_bytes: u64,
    rate: u64,
    rtt: Nanos,
}

impl Cut {
    /// True if a smaller window brought less and found the same queue: both fell by less, or more,
    /// than half of what they would have in a queue of one's own.
    fn was_in_vain(&self, window_bytes: u64, rate: u64, rtt: Nanos) -> bool {
        let halfway = self.window_bytes.midpoint(window_bytes);
        let scaled_rate = u128::from(self.rate) * u128::from(halfway);
        let scaled_rtt = u128::from(self.rtt.0) * u128::from(halfway);
        u128::from(rate) * u128::from(self.window_bytes) < scaled_rate
            && u128::from(rtt.0) * u128::from(self.window_bytes) > scaled_rtt
    }
}

/// The window of one lane.
#[derive(Clone, Debug)]
pub struct Window {
    config: WindowConfig,
    window_bytes: u64,
    start: Option<Start>,
    startup: Option<Startup>,
    /// Nothing was faster: records that waited for a lost one arrive in a bunch.
    rate_max: u64,
    /// Nothing is nearer: the path's round trip as the transport takes it, or 0.
    rtt_told: Nanos,
    /// What the path delivers waits for what was lost.
    recovers: bool,
    streams: u64,
    probe: Option<Probe>,
    span: Span,
    /// The span's least round trip is not this window's: it has just grown, or was drained.
    stale: bool,
    cut: Option<Cut>,
    patience: u8,
    /// Bytes per second: lately, and in the last spans.
    rate: u64,
    rates: [u64; RATE_SPANS],
    rate_before: u64,
    rtt_min: Option<Nanos>,
    rtt_min_at: Nanos,
    /// The least round trip of the span before.
    rtt_recent: Nanos,
}

impl Window {
    /// A window that has seen nothing yet.
    ///
    /// # Panics
    /// When the bounds are not in order, or zero.
    #[must_use]
    pub fn new(config: WindowConfig) -> Self {
        let WindowConfig { floor_bytes, start_bytes, max_bytes, .. } = config;
        assert!(floor_bytes > 0 && floor_bytes <= start_bytes && start_bytes <= max_bytes);
        Self {
            config,
            window_bytes: start_bytes,
            start: Some(Start::default()),
            startup: None,
            rate_max: u64::MAX,
            rtt_told: Nanos(0),
            recovers: false,
            streams: 1,
            probe: None,
            span: Span::default(),
            stale: false,
            cut: None,
            patience: 0,
            rate: 0,
            rates: [0; RATE_SPANS],
            rate_before: 0,
            rtt_min: None,
            rtt_min_at: Nanos(0),
            rtt_recent: Nanos(0),
        }
    }

    /// Takes what the transport says of the path.
    pub fn set_path(&mut self, path: PathReport) {
        self.rate_max = if path.rate > 0 { path.rate } else { u64::MAX };
        self.rtt_told = path.rtt;
        self.rtt_min = self.rtt_min.map(|least| least.max(path.rtt));
        self.recovers = path.recovers;
        self.streams = path.streams.max(1);
        if path.in_startup {
            self.startup = self.startup.or(Some(Startup::default()));
        } else if self.startup.take().is_some_and(|it| !it.given_up) {
            self.end_startup();
        }
    }

    /// True while the window is kept ahead of a transport that looks for the path's rate.
    fn is_ahead(&self) -> bool {
        self.startup.is_some_and(|it| !it.given_up)
    }

    /// Keeps the window ahead of a transport that has been seen to fill so much.
    fn keep_ahead(&mut self, now: Nanos, rtt_min: Nanos, bdp_bytes: u64) {
        let WindowConfig { start_bytes, max_bytes, .. } = self.config;
        let full_after = Nanos(rtt_min.0.saturating_mul(FULL_ROUND_TRIPS));
        let is_full = self
            .startup
            .is_some_and(|it| it.grown_at > Nanos(0) && now.since(it.grown_at) > full_after);
        let (at_least, bdps) =
            if is_full { (start_bytes, FULL_BDPS) } else { (self.window_bytes, STARTUP_BDPS) };
        let ahead = self.bdp_bytes().max(bdp_bytes).saturating_mul(bdps);
        self.window_bytes = ahead.max(at_least).min(max_bytes);
    }

    /// Takes a rate that two spans in a row have reached, since a bunch reaches its own alone. True
    /// if the transport should have found the path's rate by now. What it finds later, after a
    /// pause of its own for example, the window follows by its queue.
    fn gives_startup_up(&mut self, now: Nanos, rtt_min: Nanos, rate: u64) -> bool {
        let Some(startup) = self.startup.as_mut().filter(|it| !it.given_up) else { return false };
        let patience = STARTUP_MIN.max(Nanos(rtt_min.0.saturating_mul(STARTUP_ROUND_TRIPS)));
        if rate / 5 * 4 > startup.rate || startup.grown_at == Nanos(0) {
            *startup = Startup { rate, grown_at: now, given_up: false };
        }
        startup.given_up = now.since(startup.grown_at) > patience;
        startup.given_up
    }

    /// Goes from a window ahead of the transport to one that is steered by its queue.
    fn end_startup(&mut self) {
        // Growing, it took acks of more than one round trip for those of one, and what is
        // acknowledged next was sent by a larger window.
        self.start = None;
        let seen = self.rates.into_iter().max().filter(|rate| *rate > 0);
        self.rate = seen.map_or(self.rate, |seen| seen.min(self.rate)).min(self.rate_max);
        self.rates = [0; RATE_SPANS];
        self.stale = true;
        let drained = self.bdp_bytes().saturating_mul(2);
        self.window_bytes = self.window_bytes.min(drained.max(self.config.floor_bytes));
    }

    /// How many bytes may be in flight.
    #[must_use]
    pub fn window_bytes(&self) -> u64 {
        match self.probe {
            None => self.window_bytes,
            Some(_) => (self.bdp_bytes() / 2).clamp(self.config.floor_bytes, self.window_bytes),
        }
    }

    /// How long a record may be at the most: on a slow path the connections of a link would keep
    /// each other's records waiting, and what has arrived of an unfinished record is backlog too.
    #[must_use]
    pub fn record_bytes(&self, max_bytes: u64) -> u64 {
        path::record_bytes(self.rate, self.streams).min(max_bytes)
    }

    /// The estimated rate; zero before the first round trip.
    #[must_use]
    pub const fn rate_bytes_per_second(&self) -> u64 {
        self.rate
    }

    /// The least round trip; `None` before the first ack.
    #[must_use]
    pub const fn rtt_min(&self) -> Option<Nanos> {
        self.rtt_min
    }

    /// One bandwidth-delay product; zero before the first ack.
    #[must_use]
    pub fn bdp_bytes(&self) -> u64 {
        self.rtt_min.map_or(0, |rtt| bytes_in(self.rate, rtt))
    }

    /// What is in flight beyond one bandwidth-delay product: the backlog.
    #[must_use]
    pub fn backlog_bytes(&self, in_flight_bytes: u64) -> u64 {
        in_flight_bytes.saturating_sub(self.bdp_bytes())
    }

    /// To be called for each frame sent; `in_flight_bytes` counts without that frame, `bytes` is
    /// the frame's.
    #[must_use]
    pub fn on_sent(&mut self, now: Nanos, in_flight_bytes: u64, bytes: u64) -> SendMark {
        let alone = in_flight_bytes == 0;
        if alone {
            // The pipe was empty: time without work must not count as slow delivery.
            self.span = Span { began: now, ..Span::default() };
            self.stale = true;
            self.rtt_recent = self.rtt_min.unwrap_or_default();
        }
        let full = in_flight_bytes + bytes >= self.window_bytes() / 8 * 7;
        SendMark { sent_at: now, alone, full }
    }

    /// To be called for each ack: `bytes` became acknowledged, `newest` is the mark of the newest
    /// frame among them. Returns the round trip.
    pub fn on_acked(&mut self, now: Nanos, bytes: u64, newest: SendMark) -> Nanos {
        let rtt = now.since(newest.sent_at);
        self.learn_rtt(now, rtt, newest.alone);
        let span = &mut self.span;
        span.bytes += bytes;
        span.full_bytes += if newest.full { bytes } else { 0 };
        span.rtt_min = Some(span.rtt_min.map_or(rtt, |least| least.min(rtt)));
        if self.probe.is_some() {
            // A window that is small on purpose says nothing of the path.
            self.span = Span { began: now, ..Span::default() };
            self.stale = true;
        }
        let time = now.since(self.span.began);
        if let Some(least) = self.rtt_min.filter(|_| self.is_ahead()) {
            // The transport may double what it sends in each round trip; the end of a span is too
            // late for that.
            self.keep_ahead(now, least, scaled(self.span.bytes, least, time.max(least)));
        }
        let enough = match self.start {
            Some(_) => rtt,
            None => SPAN_MIN.max(Nanos(self.rtt_recent.0.saturating_mul(SPAN_ROUND_TRIPS))),
        };
        if time >= enough && self.span.bytes > 0 {
            self.end_span(now, rate_of(self.span.bytes, time));
        }
        rtt
    }

    fn learn_rtt(&mut self, now: Nanos, rtt: Nanos, alone: bool) {
        let shortest = self.rtt_min.is_none_or(|least| rtt <= least);
        if self.rtt_min.is_some_and(|least| rtt.0 <= least.0 / 16 * 17) {
            self.rtt_min_at = now;
        }
        let age_max = if self.rtt_told.0 > 0 { RTT_AGE_MAX_TOLD } else { RTT_AGE_MAX };
        let aged = now.since(self.rtt_min_at) > age_max;
        if shortest || (aged && alone) {
            self.rtt_min = Some(rtt);
            self.rtt_min_at = now;
        } else if aged && self.probe.is_none() {
            let span = PROBE_MIN.max(Nanos(rtt.0.saturating_mul(2)));
            self.probe = Some(Probe { until: now + span, rtt_min: None });
        }
        if let Some(probe) = &mut self.probe {
            probe.rtt_min = Some(probe.rtt_min.map_or(rtt, |least| least.min(rtt)));
            if now >= probe.until {
                self.rtt_min = probe.rtt_min;
                self.rtt_min_at = now;
                self.probe = None;
            }
        }
    }

    /// A span is over: the window follows what it showed.
    fn end_span(&mut self, now: Nanos, rate: u64) {
        let Span { bytes, full_bytes, rtt_min, .. } = self.span;
        self.span = Span { began: now, ..Span::default() };
        let (Some(least), Some(rtt)) = (self.rtt_min, rtt_min) else { return };
        self.rtt_recent = rtt;
        let rate = if self.is_ahead() { rate } else { rate.min(self.rate_max) };
        let WindowConfig { floor_bytes, max_bytes, backlog, backlog_round_trips, .. } = self.config;
        let queue = backlog.max(Nanos(least.0.saturating_mul(backlog_round_trips)));
        let recovery = if self.recovers { least.0 / 2 * RECOVERY_HALF_ROUND_TRIPS } else { 0 };
        let allowed = least + queue + Nanos(recovery);
        let held_back = full_bytes >= bytes / 2;
        // Two spans together: a bunch at the border counts for one of them alone.
        let before = std::mem::replace(&mut self.rate_before, rate);
        let both = if before == 0 { rate } else { rate.midpoint(before) };
        self.rates.rotate_right(1);
        self.rates[0] = both;
        if self.start.is_some() || rate > self.rate {
            self.rate = self.rate.max(rate);
        } else if held_back {
            self.rate = self.rate.midpoint(rate);
        }
        let stale = std::mem::replace(&mut self.stale, false);
        if self.gives_startup_up(now, least, rate.min(before)) {
            self.end_startup();
            return;
        }
        if !held_back || stale {
            self.cut = None;
            return;
        }
        if self.is_ahead() {
            self.cut = None;
            self.keep_ahead(now, least, 0);
            return;
        }
        let fitting_bytes = scaled(self.window_bytes, allowed, rtt);
        let window_bytes = if let Some(start) = &mut self.start {
            if rtt <= allowed && start.goes_on(rate) {
                // What is acknowledged next was sent before: it says nothing of the new window.
                self.stale = true;
                self.window_bytes * 2
            } else {
                self.start = None;
                // Growing, it took acks of more than one round trip for those of one.
                self.rates = [0; RATE_SPANS];
                fitting_bytes.min(self.window_bytes)
            }
        } else if rtt > allowed {
            self.cut_bytes(rate, rtt, fitting_bytes)
        } else {
            self.cut = None;
            let rate_max = self.rates.iter().copied().max().unwrap_or(rate);
            let needed = bytes_in(rate_max, allowed);
            fitting_bytes.min(self.window_bytes * 2).min(needed / 8 * 9)
        };
        self.window_bytes = window_bytes.clamp(floor_bytes, max_bytes);
    }

    /// The window when its queue is too long, unless the last cut has shown that it is not its own.
    fn cut_bytes(&mut self, rate: u64, rtt: Nanos, fitting_bytes: u64) -> u64 {
        let here = Cut { window_bytes: self.window_bytes, rate, rtt };
        self.patience = self.patience.saturating_sub(1);
        match self.cut.take() {
            Some(cut) if cut.was_in_vain(self.window_bytes, rate, rtt) => {
                self.patience = PATIENCE_SPANS;
                cut.window_bytes
            }
            _ if self.patience > 0 => self.window_bytes,
            _ => {
                self.cut = Some(here);
                fitting_bytes.max(self.window_bytes / 2)
            }
        }
    }
}

impl Start {
    /// True until the rate has stopped growing.
    fn goes_on(&mut self, rate: u64) -> bool {
        self.plateau_rounds = if rate / 5 * 4 > self.rate { 0 } else { self.plateau_rounds + 1 };
        self.rate = self.rate.max(rate);
        self.plateau_rounds < START_PLATEAU_ROUNDS
    }
}

/// The rate that delivers so many bytes in a time; zero for no time.
fn rate_of(bytes: u64, time: Nanos) -> u64 {
    let rate = (u128::from(bytes) * u128::from(Nanos::SECOND.0)).checked_div(time.0.into());
    rate.map_or(0, |rate| u64::try_from(rate).unwrap_or(u64::MAX))
}

/// What a rate delivers in a time.
fn bytes_in(bytes_per_second: u64, time: Nanos) -> u64 {
    scaled(bytes_per_second, time, Nanos::SECOND)
}

/// Bytes, in the ratio of two times.
fn scaled(bytes: u64, to: Nanos, from: Nanos) -> u64 {
    let scaled = (u128::from(bytes) * u128::from(to.0)).checked_div(from.0.into());
    scaled.map_or(u64::MAX, |scaled| u64::try_from(scaled).unwrap_or(u64::MAX))
}

const fn lesser(a: u64, b: u64) -> u64 {
    if a < b { a } else { b }
}
