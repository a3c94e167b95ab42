//! What a live session of a virtual machine has besides what a region's has.
//!
//! Plain values on the control thread. The task drives the QEMU at this end; the flags say which of
//! its news a step of the machine still waits for.

use super::coder::Coder;
use crate::api::ApiError;
use crate::kept::ReadBefore;
use crate::limits::TICK;
use crate::vm::{MigrateOptions, MigrationProgress, VmOrder, VmTask};
use dwcp_dataplane::port::{HashKey, Heir, PagesLeft, StreamCoding};
use dwcp_proto::ids::LaneId;
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::vm::{PeerFindings, VmTerms};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;
use tokio::time::Instant;

/// How many frames a shard has carried, and their digest.
pub(crate) type StreamDigest = (u64, [u8; 16]);

/// The virtual machine of a live session.
#[derive(Debug)]
pub(crate) struct VmPart {
    /// The task; `None` once it is over.
    pub(crate) task: Option<VmTask>,
    /// It was told how to end.
    pub(crate) ending: bool,
    /// The lane that serves the session, of its link.
    pub(crate) lane: LaneId,
    pub(crate) coding: StreamCoding,
    /// At the sink; the source asks its machine.
    pub(crate) terms: Option<VmTerms>,
    /// What both ends may hold from before, read for this session, until its shard has it.
    pub(crate) before: Option<ReadBefore>,
    /// While it is there, what this end alone holds is read for the session.
    pub(crate) holding: Option<Arc<()>>,
    /// Where its shard puts what the session leaves, and the key of its page hash.
    pub(crate) left: Option<(Receiver<PagesLeft>, HashKey)>,
    /// At the source: what was asked for.
    pub(crate) options: MigrateOptions,
    /// The shard has reserved its memory.
    pub(crate) lane_open: bool,
    /// Sink: QEMU listens.
    pub(crate) prepared: bool,
    /// Channels that were handed to the shard.
    pub(crate) channels: u16,
    /// What the shard here has carried, once all was.
    pub(crate) digest: Option<StreamDigest>,
    /// Source: what the sink's QEMU has loaded.
    pub(crate) loaded: Option<StreamDigest>,
    /// Source: everything that the sink found not to fit.
    pub(crate) findings: PeerFindings,
    pub(crate) progress: Option<Box<MigrationProgress>>,
    /// The figures told to the task: when, and the counters then.
    pub(crate) figures: Figures,
    /// Source: where its time goes.
    pub(crate) coder: Coder,
    /// How the session ended, for the client of `vm.migrate`, while the guest is being brought to
    /// where it belongs.
    pub(crate) outcome: Option<Result<(), ApiError>>,
    /// When to stop waiting for the guest.
    pub(crate) give_up_at: Option<Nanos>,
    /// What was wrong with the QEMU here, for people: its cure.
    pub(crate) cure: Option<&'static str>,
    /// Source: QEMU's migration failed, and the sink is waited for, whose QEMU may know better why.
    pub(crate) failed: Option<FailedHere>,
    /// Sink: the source's QEMU has ended its stream.
    pub(crate) stream_ended: bool,
}

/// A migration that failed at the source, before it is known at which end the cause lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FailedHere {
    /// The code of the failure here.
    pub(crate) code: &'static str,
    /// Its words.
    pub(crate) message: String,
    /// When to stop waiting.
    pub(crate) by: Nanos,
}

/// How long a peer has said nothing, counted in the core's own ticks: a daemon that was stopped for
/// a while itself must not blame its peers for that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Silence {
    heard: Option<Instant>,
    silent: Duration,
}

impl Silence {
    /// Notes when the peer was heard last, once every tick; returns for how long it is silent now.
    pub(crate) fn tick(&mut self, heard: Instant) -> Duration {
        match self.heard == Some(heard) {
            true => self.silent += TICK,
            false => *self = Self { heard: Some(heard), silent: Duration::ZERO },
        }
        self.silent
    }

    /// For how long a peer is silent that was heard last then.
    pub(crate) fn since(&self, heard: Instant) -> Duration {
        if self.heard == Some(heard) { self.silent } else { Duration::ZERO }
    }
}

/// Counters of the data plane when its figures were taken last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    pub(crate) at: Nanos,
    pub(crate) coded_bytes: u64,
    pub(crate) raw_bytes: u64,
    /// Raw bytes for 1000 coded bytes, lately.
    pub(crate) ratio_milli: u32,
}

impl Figures {
    /// The coded bytes per second since the last figures.
    pub(crate) fn advance(&mut self, now: Nanos, coded_bytes: u64, raw_bytes: u64) -> u64 {
        let coded = coded_bytes.saturating_sub(self.coded_bytes);
        let raw = raw_bytes.saturating_sub(self.raw_bytes);
        let nanos = u128::from(now.since(self.at).0.max(1));
        let rate = u128::from(coded) * 1_000_000_000 / nanos;
        if coded > 0 {
            let ratio = u128::from(raw) * 1000 / u128::from(coded);
            self.ratio_milli = u32::try_from(ratio).unwrap_or(u32::MAX);
        }
        (self.at, self.coded_bytes, self.raw_bytes) = (now, coded_bytes, raw_bytes);
        u64::try_from(rate).unwrap_or(u64::MAX)
    }
}

impl VmPart {
    /// Who the session's shard gives what it leaves to.
    pub(crate) fn heir(&mut self, hash_key: &HashKey) -> Heir {
        let (heir, left) = sync_channel(1);
        self.left = Some((left, hash_key.clone()));
        heir
    }

    /// A part of a session whose lane is not open.
    pub(crate) fn new(task: VmTask, lane: LaneId) -> Self {
        Self {
            task: Some(task),
            ending: false,
            lane,
            coding: StreamCoding::Passthrough,
            before: None,
            holding: None,
            left: None,
            terms: None,
            options: MigrateOptions::default(),
            lane_open: false,
            prepared: false,
            channels: 0,
            digest: None,
            loaded: None,
            findings: PeerFindings::default(),
            progress: None,
            figures: Figures::default(),
            coder: Coder::default(),
            outcome: None,
            give_up_at: None,
            cure: None,
            failed: None,
            stream_ended: false,
        }
    }

    /// Gives the task an order. One that is over needs none.
    pub(crate) fn order(&self, order: VmOrder) {
        if let Some(task) = &self.task
            && let Err(refused) = task.order(order)
        {
            // The task is over and has said so, or says so next.
            tracing::debug!(?refused, "an order came too late");
        }
    }

    /// Tells the task once how to end; true the first time.
    pub(crate) fn end(&mut self, order: VmOrder) -> bool {
        if std::mem::replace(&mut self.ending, true) {
            return false;
        }
        self.order(order);
        true
    }

    /// True when the guest is where it belongs and everyone has heard.
    pub(crate) fn is_over(&self) -> bool {
        self.task.is_none() && self.outcome.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_counted_in_ticks_and_ends_with_a_word() {
        let start = Instant::now();
        let mut silence = Silence::default();
        assert_eq!(silence.tick(start), Duration::ZERO);
        assert_eq!(silence.tick(start), TICK);
        assert_eq!(silence.tick(start), 2 * TICK);
        assert_eq!((silence.since(start), silence.since(start + TICK)), (2 * TICK, Duration::ZERO));
        assert_eq!(silence.tick(start + TICK), Duration::ZERO);
    }

    #[test]
    fn figures_are_of_the_time_since_the_last_ones_and_a_silence_keeps_the_ratio() {
        let mut figures = Figures::default();
        let second = |n: u64| Nanos(n * 1_000_000_000);
        assert_eq!(figures.advance(second(2), 1000, 4000), 500);
        assert_eq!(figures.ratio_milli, 4000);
        assert_eq!(figures.advance(second(3), 1000, 4000), 0);
        assert_eq!(figures.ratio_milli, 4000);
        assert_eq!(figures.advance(second(4), 3000, 6000), 2000);
        assert_eq!(figures.ratio_milli, 1000);
    }
}
