//! How many streams of a lane carry pages: found by trying it while they carry.
//!
//! A congestion control that takes every loss for a full path (cubic) leaves most of a long path
//! with loss empty, and the more streams share the loss, the less. Where nothing is lost, more
//! streams bring nothing and take from others. Which of both holds can't be told by a formula, so
//! the tuner measures: it takes what was acknowledged in a span of time, tries another number, and
//! keeps the one of higher utility. Utility is goodput, less what the streams and their losses cost
//! ([`Figure::utility`]); its shape, a price that grows as a power of the number of
//! streams, is that of Falcon (Arifuzzaman and Arslan, "Online optimization of file transfers in
//! high-speed networks", SC 2021), because with it senders that share a path come to rest at equal
//! numbers: who has more streams gains less by the next one than it costs.
//!
//! From a start with few, the number doubles while that pays, then it is tried in halved steps, and
//! then it rests. A rest ends when the path is another one (its rate, its queue), or after a time
//! that doubles with every trial in vain. On a path that is full (a queue stands) fewer are tried,
//! and in turn with that a few more; both are judged by what they bring to one of two equal
//! senders, so that who has more gives and who has fewer takes. Nothing is learnt while the source
//! is what is slow.
//!
//! A congestion control that finds the path's rate whatever is lost (BBR) fills it with one stream;
//! the next one helps only where buffers are too small for the path.
//!
//! Runs on the shard that owns the lane, some times a second. Pure, never allocates.

use crate::time::Nanos;

/// The price of streams: so many make goodput worth 1/e of itself. A sender for which every stream
/// brings as much as the first has most utility at this number; of many on a full path none has
/// more than half of it.
const STREAMS_PRICED: f64 = 160.0;
/// What a lost share costs, as a share of the goodput: ten times as much, and half of it at most.
const LOSS_PRICE: f64 = 10.0;
const LOSS_COST_MAX: f64 = 0.5;
/// A path with a queue of a quarter of its round trip is full. Below a millisecond it is the hosts
/// that are late.
const FULL_QUEUE: f64 = 0.25;
const QUEUE_LEAST: Nanos = Nanos::from_millis(1);
/// A step pays if it brings so much more: less is noise.
const GAIN_MIN: f64 = 1.02;
/// The same for a step that doubles: it costs more to find out, and is taken back in one piece.
const DOUBLING_GAIN_MIN: f64 = 1.08;
/// A path is another one if its rate is so much higher or lower than when it was measured, in so
/// many spans in a row.
const OTHER_RATE: f64 = 1.35;
const ODD_SPANS: u8 = 2;
/// The smallest step: one of so many parts of the number.
const STEPS: u16 = 8;

/// After a change new streams start up for some round trips, which shows what they will not keep.
const SETTLE_MIN: Nanos = Nanos::from_millis(500);
const SETTLE_ROUND_TRIPS: u64 = 10;
/// Streams that are dialled and do not come are not waited for longer.
const DIAL_WAIT_MAX: Nanos = Nanos(5 * Nanos::SECOND.0);
/// How long a number is measured: some round trips, in which most streams have lost something.
const SPAN_MIN: Nanos = Nanos::from_millis(1000);
const SPAN_ROUND_TRIPS: u64 = 10;
/// A pause in the samples after which what was measured counts no more: there was no work.
const PAUSE_MAX: Nanos = Nanos::from_millis(1500);
/// How long a number rests before the next trial: first, and at the most.
const REST_MIN: Nanos = Nanos(15 * Nanos::SECOND.0);
const REST_MAX: Nanos = Nanos(60 * Nanos::SECOND.0);

/// Streams that carry from the beginning where one does not fill the path alone.
pub const STREAMS_START: u16 = 4;
/// Streams that fill a path alone and still help each other where buffers are small.
const STREAMS_ALONE_MAX: u16 = 8;

/// What the streams that carry pages did since the sample before, all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// How many there are.
    pub live: u16,
    /// Bytes that the peer's kernel acknowledged.
    pub acked_bytes: u64,
    /// Bytes that were sent again.
    pub resent_bytes: u64,
    /// The mean of their smoothed round trips, each less what it varies by: a queue that stays.
    pub rtt: Nanos,
    /// The least round trip of the last minutes.
    pub rtt_least: Nanos,
    /// Something to send waited for them.
    pub is_held_back: bool,
    /// Each finds the path's rate whatever is lost.
    pub fills_alone: bool,
    /// One of them was mostly held back by a buffer of its own at either end.
    pub is_buffer_bound: bool,
}

/// Why so many streams carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The number to begin with, or to begin anew with on another path.
    Begun,
    /// More are tried; goodput is being measured.
    Trying {
        /// Those that carried before.
        from: u16,
    },
    /// The last step changed goodput by so many hundredths and was kept.
    Gained {
        /// Those that carried before.
        from: u16,
        /// Hundredths of the goodput of before.
        percent: i16,
    },
    /// Another number changed goodput by so many hundredths, which did not pay.
    NoGain {
        /// The number that was tried.
        tried: u16,
        /// Hundredths of the goodput of before.
        percent: i16,
    },
    /// The path is full.
    PathFull,
    /// There is room for no more.
    AllThereAre,
    /// The source does not fill what carries now.
    SourceSlow,
    /// Each fills the path alone.
    FillsAlone,
    /// A stream's buffers hold less than the path.
    BuffersSmall,
}

/// How many streams carry, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// So many.
    pub streams: u16,
    /// Why.
    pub why: Why,
}

/// What a number of streams brought.
#[derive(Clone, Copy, Debug)]
struct Figure {
    streams: u16,
    /// Bytes per second.
    rate: f64,
    /// The share of the bytes that were sent more than once.
    loss: f64,
    /// The queue in round trips without one.
    queue: f64,
    /// The source had more for them nearly all of the time.
    is_held_back: bool,
}

impl Figure {
    fn utility(&self) -> f64 {
        let streams = (-f64::from(self.streams) / STREAMS_PRICED).exp();
        let loss = 1.0 - (LOSS_PRICE * self.loss).min(LOSS_COST_MAX);
        self.rate * streams * loss
    }

    fn is_full(&self) -> bool {
        self.queue > FULL_QUEUE
    }

    /// It was measured on another path, or on one that others use otherwise.
    fn is_other(&self, known: &Self) -> bool {
        let ratio = self.rate.max(known.rate) / self.rate.min(known.rate).max(1.0);
        let is_drained = known.is_full() && self.queue < FULL_QUEUE / 2.0;
        let is_filled = !known.is_full() && self.queue > FULL_QUEUE * 2.0;
        ratio > OTHER_RATE || is_drained || is_filled
    }

    /// Both spans together, of the same number.
    fn mean(&self, other: &Self) -> Self {
        Self {
            rate: self.rate.midpoint(other.rate),
            loss: self.loss.midpoint(other.loss),
            queue: self.queue.midpoint(other.queue),
            ..*self
        }
    }

    /// By how much it is more than another, in hundredths.
    fn percent_over(&self, before: &Self) -> i16 {
        let percent = 100.0 * (self.rate / before.rate.max(1.0) - 1.0);
        percent.clamp(-100.0, 9999.0).round() as i16
    }
}

/// What was seen in a span of time.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    began: Nanos,
    acked_bytes: u64,
    resent_bytes: u64,
    rtt_sum_ns: u64,
    samples: u64,
    held_back: u64,
}

impl Span {
    fn at(now: Nanos) -> Self {
        Self { began: now, ..Self::default() }
    }

    fn add(&mut self, sample: &Sample) {
        self.acked_bytes += sample.acked_bytes;
        self.resent_bytes += sample.resent_bytes;
        self.rtt_sum_ns = self.rtt_sum_ns.saturating_add(sample.rtt.0);
        self.samples += 1;
        self.held_back += u64::from(sample.is_held_back);
    }

    /// What so many streams brought.
    fn figure(&self, now: Nanos, streams: u16, rtt_least: Nanos) -> Figure {
        let seconds = now.since(self.began).0 as f64 / Nanos::SECOND.0 as f64;
        let rtt = Nanos(self.rtt_sum_ns / self.samples.max(1));
        let queue = rtt.since(rtt_least);
        let sent = (self.acked_bytes + self.resent_bytes).max(1);
        Figure {
            streams,
            rate: self.acked_bytes as f64 / seconds,
            loss: self.resent_bytes as f64 / sent as f64,
            queue: if queue < QUEUE_LEAST {
                0.0
            } else {
                queue.0 as f64 / rtt_least.0.max(QUEUE_LEAST.0) as f64
            },
            is_held_back: self.held_back * 4 >= self.samples * 3,
        }
    }
}

/// A step that is tried: from a number, of which the figure is known.
#[derive(Clone, Copy, Debug)]
struct Trial {
    before: Figure,
    /// The first span of it, when that did not pay.
    first: Option<Figure>,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// The number is new or the path is: what it brings is measured.
    Measure,
    /// Another number is tried.
    Try(Trial),
    /// It stays.
    Rest { until: Nanos, figure: Figure, odd_spans: u8 },
}

/// The number of streams of one lane.
#[derive(Clone, Debug)]
pub struct Tuner {
    streams_max: u16,
    streams: u16,
    why: Why,
    phase: Phase,
    /// How much the next trial changes the number by.
    step: u16,
    /// A trial in vain is followed by one of half the step, not by a rest.
    searches: bool,
    /// On a full path more are tried next, not fewer.
    claims: bool,
    /// How long the next rest is.
    rest: Nanos,
    fills_alone: bool,
    span: Span,
    changed_at: Nanos,
    sampled_at: Nanos,
}

impl Tuner {
    /// A tuner of at most so many streams, of which one carries until the first sample.
    ///
    /// # Panics
    /// When there is to be no stream.
    #[must_use]
    pub fn new(streams_max: u16) -> Self {
        assert!(streams_max > 0, "a lane has a stream");
        Self {
            streams_max,
            streams: 1,
            why: Why::FillsAlone,
            phase: Phase::Measure,
            step: 0,
            searches: true,
            claims: false,
            rest: REST_MIN,
            fills_alone: true,
            span: Span::default(),
            changed_at: Nanos(0),
            sampled_at: Nanos(0),
        }
    }

    /// How many streams shall carry now, and why.
    #[must_use]
    pub const fn decision(&self) -> Decision {
        Decision { streams: self.streams, why: self.why }
    }

    /// Takes what was measured since the sample before.
    pub fn step(&mut self, now: Nanos, sample: &Sample) {
        let pause = now.since(std::mem::replace(&mut self.sampled_at, now));
        if sample.fills_alone {
            return self.step_alone(now, sample);
        }
        if std::mem::replace(&mut self.fills_alone, false) {
            self.begin(now, STREAMS_START.min(self.streams_max));
        }
        if pause > PAUSE_MAX {
            self.changed_at = now;
        }
        if !self.is_settled(now, sample) {
            self.span = Span::at(now);
            return;
        }
        self.span.add(sample);
        let enough = SPAN_MIN.max(Nanos(sample.rtt.0.saturating_mul(SPAN_ROUND_TRIPS)));
        if now.since(self.span.began) >= enough {
            // Fewer than wanted is what the peer or the path lets come.
            let live = sample.live.clamp(1, self.streams);
            let figure = self.span.figure(now, live, sample.rtt_least);
            self.span = Span::at(now);
            self.judge(now, figure);
        }
    }

    /// One stream is enough unless its buffers are not.
    fn step_alone(&mut self, now: Nanos, sample: &Sample) {
        if !std::mem::replace(&mut self.fills_alone, true) {
            self.change(now, 1, Why::FillsAlone);
            self.phase = Phase::Measure;
        }
        let most = self.streams_max.min(STREAMS_ALONE_MAX);
        if sample.is_buffer_bound && sample.live >= self.streams && self.streams < most {
            self.change(now, self.streams + 1, Why::BuffersSmall);
        }
    }

    /// New streams have come and have started up, as far as they do.
    fn is_settled(&self, now: Nanos, sample: &Sample) -> bool {
        let since = now.since(self.changed_at);
        let settles = SETTLE_MIN.max(Nanos(sample.rtt.0.saturating_mul(SETTLE_ROUND_TRIPS)));
        let has_come = sample.live >= self.streams || since >= DIAL_WAIT_MAX;
        since >= settles && has_come
    }

    fn begin(&mut self, now: Nanos, streams: u16) {
        self.change(now, streams, Why::Begun);
        self.phase = Phase::Measure;
        self.step = streams;
        (self.searches, self.claims) = (true, false);
        self.rest = REST_MIN;
    }

    fn change(&mut self, now: Nanos, streams: u16, why: Why) {
        if streams != self.streams {
            self.changed_at = now;
        }
        (self.streams, self.why) = (streams, why);
    }

    /// A span is over.
    fn judge(&mut self, now: Nanos, figure: Figure) {
        match self.phase {
            // How much more there is room for can't be told while less is sent.
            Phase::Measure | Phase::Try(_) if !figure.is_held_back => {
                (self.phase, self.why) = (Phase::Measure, Why::SourceSlow);
            }
            Phase::Measure => self.try_next(now, figure, Why::Begun),
            Phase::Try(trial) => self.judge_trial(now, trial, figure),
            Phase::Rest { until, figure: known, odd_spans } => {
                let is_odd = figure.is_held_back && figure.is_other(&known);
                let odd_spans = if is_odd { odd_spans + 1 } else { 0 };
                if odd_spans == ODD_SPANS {
                    self.begin(now, self.streams);
                    self.try_next(now, figure, Why::Begun);
                } else if now >= until && figure.is_held_back {
                    (self.searches, self.claims) = (false, !self.claims);
                    self.step = (self.streams / STEPS).max(1);
                    self.try_next(now, figure, self.why);
                } else {
                    self.phase = Phase::Rest { until, figure: known, odd_spans };
                }
            }
        }
    }

    /// Tries the next number, or lets this one rest if there is none.
    fn try_next(&mut self, now: Nanos, figure: Figure, why: Why) {
        let next = if figure.is_full() && !self.claims {
            // By a quarter at the most: what is taken away is missed at once.
            let step = self.step.clamp(1, (self.streams / 4).max(1));
            self.streams.saturating_sub(step).max(STREAMS_START.min(self.streams))
        } else {
            self.streams.saturating_add(self.step).min(self.streams_max)
        };
        if next == self.streams || figure.streams < self.streams {
            let why = match why {
                Why::Gained { .. } | Why::NoGain { .. } => why,
                _ if figure.is_full() => Why::PathFull,
                _ => Why::AllThereAre,
            };
            return self.rest(now, figure, why);
        }
        let from = self.streams;
        self.phase = Phase::Try(Trial { before: figure, first: None });
        self.change(now, next, Why::Trying { from });
    }

    fn judge_trial(&mut self, now: Nanos, trial: Trial, figure: Figure) {
        let Trial { before, first } = trial;
        let figure = first.map_or(figure, |first| first.mean(&figure));
        let gain = figure.utility() / before.utility().max(1.0);
        let percent = figure.percent_over(&before);
        let (from, tried) = (before.streams, self.streams);
        let is_doubled = tried >= from.saturating_mul(2);
        let gain_min = match before.is_full() || figure.is_full() {
            true => even_gain(from, tried),
            false if is_doubled => DOUBLING_GAIN_MIN,
            false => GAIN_MIN,
        };
        if gain >= gain_min {
            (self.rest, self.searches) = (REST_MIN, true);
            if is_doubled {
                self.step = tried;
            }
            return self.try_next(now, figure, Why::Gained { from, percent });
        }
        if first.is_none() {
            // A span is short: one that was unlucky is not the last word.
            self.phase = Phase::Try(Trial { before, first: Some(figure) });
            return;
        }
        let why = Why::NoGain { tried, percent };
        self.change(now, from, why);
        self.step = tried.abs_diff(from) / 2;
        if self.searches && self.step >= (from / STEPS).max(1) {
            return self.try_next(now, before, why);
        }
        self.rest(now, before, why);
        self.rest = Nanos(self.rest.0 * 2).min(REST_MAX);
    }

    fn rest(&mut self, now: Nanos, figure: Figure, why: Why) {
        self.why = why;
        self.phase = Phase::Rest { until: now + self.rest, figure, odd_spans: 0 };
    }
}

/// What another number brings to one of two senders that fill a path with as many streams each: who
/// has more gets less by a step, and loses less by giving one up.
fn even_gain(from: u16, to: u16) -> f64 {
    let (from, to) = (f64::from(from), f64::from(to));
    2.0 * to / (from + to)
}
