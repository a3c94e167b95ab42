//! What happens in a world, as the invariants see it and as a trace shows it.
//!
//! Plain values. The hash over all of them, with their times, names a run: the same seed must give
//! the same one.

use dwcp_dataplane::link::sim::Side;
use dwcp_dataplane::port::Event;
use dwcp_proto::ids::{LaneId, SessionId, SessionKey};
use dwcp_proto::session::reason::EndReason;
use dwcp_proto::time::Nanos;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::plan::Fault;
use crate::world::Record;

/// An order to a shard, as far as anyone awaits something of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Open,
    Round(u32),
    Verify,
    Close,
}

/// Something that happened.
#[derive(Clone)]
pub(crate) enum Fact {
    /// A shard was given an order about a session.
    Ordered { side: Side, lane: LaneId, session: SessionKey, order: Order },
    /// A shard reported.
    Reported { side: Side, lane: LaneId, event: Event },
    /// A session began at the source.
    Began { session: SessionId, key: SessionKey, job: usize },
    /// A machine asked its journal for this.
    Journal { side: Side, session: SessionId, record: Record },
    /// The journal answered.
    Written { side: Side, session: SessionId, record: Record, fails: bool },
    /// A session ended without a commit, or is in doubt.
    Ended { side: Side, session: SessionId, reason: EndReason },
    /// A machine says that the sink owns the region.
    Committed { side: Side, session: SessionId },
    /// A message reached an end's machine.
    Message { side: Side, name: &'static str },
    /// A link is new, ready, or gone.
    Link { side: Side, state: &'static str },
    /// Nothing of a session is left on a side; what its lanes counted there.
    Retired { side: Side, session: SessionId, frames: u64, nacks: u64, requeued: u64 },
    /// The sink needs a session's record no more.
    Forgot { session: SessionId },
    /// Harm was done.
    Harm(Fault),
    /// A daemon ended.
    Crashed(Side),
    /// A daemon started again.
    Restarted(Side),
    /// A page of a sink's region was changed by nobody.
    Corrupted { job: usize, page: u64 },
    /// All harm is over.
    Healed,
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ordered { side, lane, session, order } => {
                write!(f, "{side:?}/{lane} session {session:?} is ordered: {order:?}")
            }
            Self::Reported { side, lane, event } => write!(f, "{side:?}/{lane} reports {event:?}"),
            Self::Began { session, key, job } => {
                write!(f, "session {session} of job {job} begins as {key:?}")
            }
            Self::Journal { side, session, record } => {
                write!(f, "{side:?} session {session} asks its journal for {record:?}")
            }
            Self::Written { side, session, record, fails } => {
                let how = if *fails { "failed to write" } else { "wrote" };
                write!(f, "{side:?} session {session} {how} {record:?}")
            }
            Self::Ended { side, session, reason } => {
                write!(f, "{side:?} session {session} ended or is in doubt: {reason:?}")
            }
            Self::Committed { side, session } => write!(f, "{side:?} session {session} committed"),
            Self::Message { side, name } => write!(f, "{side:?} hears {name}"),
            Self::Link { side, state } => write!(f, "{side:?} link: {state}"),
            Self::Retired { side, session, frames, nacks, requeued } => write!(
                f,
                "{side:?} session {session} is history: {frames} frames, {nacks} refused, \
                 {requeued} pages again"
            ),
            Self::Forgot { session } => write!(f, "the sink forgets session {session}"),
            Self::Harm(fault) => write!(f, "HARM {fault:?}"),
            Self::Crashed(side) => write!(f, "{side:?} crashed"),
            Self::Restarted(side) => write!(f, "{side:?} restarted"),
            Self::Corrupted { job, page } => write!(f, "page {page} of job {job} is corrupted"),
            Self::Healed => f.write_str("HEALED"),
        }
    }
}

/// The record of a run.
#[derive(Debug)]
pub(crate) struct Trace {
    hasher: DefaultHasher,
    prints: bool,
    facts: u64,
}

impl Trace {
    pub(crate) fn new(prints: bool) -> Self {
        // Keyed by constants, so that the hash means the same in every process.
        Self { hasher: DefaultHasher::new(), prints, facts: 0 }
    }

    pub(crate) fn add(&mut self, now: Nanos, fact: &Fact) {
        let text = fact.to_string();
        now.hash(&mut self.hasher);
        text.hash(&mut self.hasher);
        self.facts += 1;
        if self.prints {
            println!("{:>13.6} {text}", now.0 as f64 / 1e9);
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hasher.finish()
    }

    pub(crate) fn facts(&self) -> u64 {
        self.facts
    }
}
