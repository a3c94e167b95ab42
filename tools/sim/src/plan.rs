//! What a seed decides before its world begins: sizes, paths, jobs, and the harm that is done.
//!
//! Pure.

use dwcp_dataplane::link::PathState;
use dwcp_dataplane::link::sim::{Conditions, Rng, Side};
use dwcp_dataplane::port::Spread;
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::version::WireVersion;

/// Harm to the world at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Breaks one connection of a stream.
    CutStream,
    /// Breaks all connections of streams.
    CutStreams,
    /// Breaks the control channels.
    CutChannel,
    /// Nothing arrives on this way, or on both, for a time.
    Partition { near: bool, far: bool, lasts: Nanos },
    /// One stream delivers nothing for a time.
    Hold { side: Side, lasts: Nanos },
    /// A daemon ends at once, and starts again after a time.
    Crash { side: Side, down: Nanos },
    /// A host's clock leaps ahead.
    Leap { side: Side, by: Nanos },
    /// A host's disk is slow, or fails, for a time.
    Disk { side: Side, latency: Nanos, failures: u64, lasts: Nanos },
    /// A host's shards take long for each turn, for a time.
    Slow { side: Side, lasts: Nanos },
    /// A page of a sink's region changes by itself.
    Corrupt,
    /// A client gives its session up.
    Abort,
}

/// All that a seed decides.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// What both daemons speak.
    pub(crate) version: WireVersion,
    pub(crate) lanes: [u16; 2],
    pub(crate) streams: u16,
    pub(crate) window_bytes: u64,
    pub(crate) spread: Spread,
    pub(crate) conditions: [Conditions; 2],
    pub(crate) jobs: Vec<JobPlan>,
    /// In the order of time; the last of them is over when the world is healed.
    pub(crate) faults: Vec<(Nanos, Fault)>,
}

/// A region that is to move.
#[derive(Clone, Copy, Debug)]
pub(crate) struct JobPlan {
    pub(crate) pages: u64,
    pub(crate) rounds: u32,
    /// Pages that its writer changes at a time, and how often.
    pub(crate) burst: u64,
    pub(crate) every: Nanos,
    pub(crate) compares: bool,
    pub(crate) base_pages: usize,
}

/// The longest time in which harm begins.
const HARM_MAX: Nanos = Nanos(6_000_000_000);

impl Plan {
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let conditions = [draw_conditions(rng), draw_conditions(rng)];
        let jobs = (0..rng.within(1, 2)).map(|_| JobPlan::draw(rng)).collect();
        let lanes = [rng.within(1, 2) as u16, rng.within(1, 2) as u16];
        let streams = rng.within(1, 4) as u16;
        let spread = if rng.chance(1, 2) { Spread::All } else { Spread::AsNeeded };
        let window_bytes = 1 << rng.within(18, 22);
        let mut faults: Vec<_> = (0..rng.below(7)).map(|_| draw_fault(rng)).collect();
        faults.sort_by_key(|(at, _)| *at);
        let version = if rng.chance(1, 4) { WireVersion::V1 } else { WireVersion::V2 };
        Self { version, lanes, streams, window_bytes, spread, conditions, jobs, faults }
    }

    /// True if nothing of the kind is done.
    pub(crate) fn has(&self, kind: impl Fn(&Fault) -> bool) -> bool {
        self.faults.iter().any(|(_, fault)| kind(fault))
    }
}

impl JobPlan {
    fn draw(rng: &mut Rng) -> Self {
        Self {
            pages: rng.within(1, 330),
            rounds: rng.within(1, 5) as u32,
            burst: rng.within(1, 40),
            every: Nanos(rng.within(1, 60) * 1_000_000),
            compares: rng.chance(1, 4),
            base_pages: rng.below(400) as usize,
        }
    }
}

fn draw_conditions(rng: &mut Rng) -> Conditions {
    let fills_alone = rng.chance(1, 2);
    let bytes_per_second = rng.within(1 << 20, 64 << 20);
    Conditions {
        delay: Nanos(rng.within(10_000, 60_000_000)),
        jitter: Nanos(rng.below(20_000_000)),
        bytes_per_second,
        capacity_bytes: 1 << rng.within(15, 21),
        is_up: true,
        path: PathState {
            in_startup: rng.chance(1, 4),
            rate: if fills_alone { bytes_per_second } else { 0 },
            fills_alone,
            is_buffer_bound: rng.chance(1, 2),
            ..PathState::default()
        },
    }
}

fn draw_fault(rng: &mut Rng) -> (Nanos, Fault) {
    let at = Nanos(rng.below(HARM_MAX.0));
    let side = if rng.chance(1, 2) { Side::Near } else { Side::Far };
    let lasts = Nanos(rng.within(1, 3000) * 1_000_000);
    let fault = match rng.below(16) {
        0..=3 => Fault::CutStream,
        4 => Fault::CutStreams,
        5 => Fault::CutChannel,
        6 | 7 => {
            let (near, far) = match rng.below(3) {
                0 => (true, false),
                1 => (false, true),
                _ => (true, true),
            };
            let lasts = if rng.chance(1, 4) { Nanos(lasts.0 * 3) } else { lasts };
            Fault::Partition { near, far, lasts }
        }
        8 => Fault::Hold { side, lasts },
        9 | 10 => Fault::Crash { side, down: lasts },
        11 => Fault::Leap { side, by: Nanos(rng.within(1, 20_000) * 1_000_000) },
        12 => {
            let failures = if rng.chance(1, 2) { rng.within(100, 1000) } else { 0 };
            let latency = Nanos(rng.within(1, 4000) * 1_000_000);
            Fault::Disk { side, latency, failures, lasts: Nanos(lasts.0 * 2) }
        }
        13 => Fault::Slow { side, lasts },
        14 => Fault::Corrupt,
        _ => Fault::Abort,
    };
    (at, fault)
}
