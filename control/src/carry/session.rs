//! The one session of a carrier: its phase, its channels, what the peer said.
//!
//! Changed by the core alone; of the outside it asks only which connections the VMM has closed. A
//! channel has two directions: forth is the migration stream, back is the return path. The session
//! is over when every channel has ended in both.

use super::event::CarryFailure;
use super::socket::VmmHandles;
use crate::api::Role;
use dwcp_dataplane::stats::SessionStatsReader;
use dwcp_proto::ids::{LaneId, LinkId, SessionId, SessionKey};
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::limits::CHANNELS_MAX;
use dwcp_proto::wire::peer::PeerCoding;
use dwcp_proto::wire::vm::VmTerms;
use std::os::fd::OwnedFd;

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CarryPhase {
    /// The source waits for its link, the sink for its VMM.
    Connecting,
    /// The source waits for the sink's answer.
    Asking,
    /// The shard makes its part.
    Opening,
    /// Bytes move.
    Carrying,
    /// The shard gives its part back.
    Closing,
}

/// Frames that one end counted, and their digest.
pub(crate) type CarryDigest = (u64, [u8; 16]);

/// One session.
#[derive(Debug)]
pub(crate) struct CarrySession {
    pub(crate) id: SessionId,
    pub(crate) role: Role,
    pub(crate) phase: CarryPhase,
    pub(crate) peer: String,
    pub(crate) link: Option<LinkId>,
    /// Both ends have it wait for the next connection of a lost link.
    pub(crate) resumes: bool,
    pub(crate) key: Option<SessionKey>,
    pub(crate) lane: LaneId,
    pub(crate) coding: PeerCoding,
    pub(crate) terms: Option<VmTerms>,
    /// Source: which connections its VMM has closed.
    pub(crate) vmm: VmmHandles,
    /// Sockets of the VMM that wait for the shard.
    pub(crate) sockets: Vec<(u16, OwnedFd)>,
    /// The shard was told to open; it said that it has.
    pub(crate) lane_ordered: bool,
    pub(crate) lane_open: bool,
    pub(crate) stats: Option<SessionStatsReader>,
    /// For how many channels a digest was asked for.
    pub(crate) verified: u16,
    /// What this end counted.
    pub(crate) digest: Option<CarryDigest>,
    /// Source: what the sink says of how many channels.
    pub(crate) carried: Option<(u16, CarryDigest)>,
    /// When what is waited for must have come.
    pub(crate) deadline: Option<Nanos>,
    pub(crate) opened_at: Nanos,
    pub(crate) progress_at: Nanos,
    pub(crate) failure: Option<CarryFailure>,
    /// By channel: has it ended forth and back?
    ended: Vec<(bool, bool)>,
}

impl CarrySession {
    /// A session that begins.
    pub(crate) fn new(id: SessionId, role: Role, now: Nanos) -> Self {
        Self {
            id,
            role,
            phase: CarryPhase::Connecting,
            peer: String::new(),
            link: None,
            resumes: false,
            key: None,
            lane: LaneId(0),
            coding: PeerCoding::Full,
            terms: None,
            vmm: VmmHandles::default(),
            sockets: Vec::new(),
            lane_ordered: false,
            lane_open: false,
            stats: None,
            verified: 0,
            digest: None,
            carried: None,
            deadline: None,
            opened_at: now,
            progress_at: now,
            failure: None,
            ended: Vec::new(),
        }
    }

    /// One more channel; its number, if there may be more.
    pub(crate) fn add_channel(&mut self) -> Option<u16> {
        let channel = self.channels();
        if channel >= CHANNELS_MAX {
            return None;
        }
        self.ended.push((false, false));
        Some(channel)
    }

    /// How many channels there were.
    pub(crate) fn channels(&self) -> u16 {
        u16::try_from(self.ended.len()).unwrap_or(CHANNELS_MAX)
    }

    /// A channel's stream ended: nothing more is to be sent, or handed over.
    pub(crate) fn end_forth(&mut self, channel: u16) {
        if let Some((forth, _)) = self.ended.get_mut(usize::from(channel)) {
            *forth = true;
        }
    }

    /// A channel's return path ended.
    pub(crate) fn end_back(&mut self, channel: u16) {
        if let Some((_, back)) = self.ended.get_mut(usize::from(channel)) {
            *back = true;
        }
    }

    /// True when no channel has more to send.
    pub(crate) fn all_forth_ended(&self) -> bool {
        self.ended.iter().all(|(forth, _)| *forth)
    }

    /// True when every channel has ended in both directions.
    pub(crate) fn all_ended(&self) -> bool {
        self.ended.iter().all(|(forth, back)| *forth && *back)
    }

    /// Whether a further connection belongs to this session. A VMM closes all connections of a
    /// migration before it begins another, so that the kernel knows, whatever is still to be read.
    pub(crate) fn takes_channels(&self) -> bool {
        self.phase != CarryPhase::Closing && self.vmm.any_open()
    }

    /// True while a lost connection costs nothing but time, if another one comes: no word is under
    /// way without which the other end would not begin.
    pub(crate) fn may_park(&self) -> bool {
        let begun = match self.role {
            Role::Source => matches!(self.phase, CarryPhase::Opening | CarryPhase::Carrying),
            Role::Sink => self.phase == CarryPhase::Carrying,
        };
        self.resumes && begun
    }

    /// For how many channels the shard has to tell its digest now, if it has to.
    pub(crate) fn verify_due(&mut self) -> Option<u16> {
        let channels = self.channels();
        let told = self.role == Role::Sink || self.carried.is_some_and(|(of, _)| of == channels);
        let due = self.phase == CarryPhase::Carrying && self.all_ended() && told;
        if !due || self.verified == channels {
            return None;
        }
        self.verified = channels;
        self.digest = None;
        Some(channels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn carrying(role: Role) -> CarrySession {
        let mut session = CarrySession::new(SessionId([1; 16]), role, Nanos(0));
        assert_eq!(session.add_channel(), Some(0));
        session.phase = CarryPhase::Carrying;
        session
    }

    #[test]
    fn a_digest_is_asked_for_once_all_channels_ended_both_ways() {
        let mut sink = carrying(Role::Sink);
        sink.end_forth(0);
        assert_eq!(sink.verify_due(), None);
        sink.end_back(0);
        assert_eq!((sink.verify_due(), sink.verify_due()), (Some(1), None));
        // A connection that was on its way.
        assert_eq!(sink.add_channel(), Some(1));
        assert_eq!(sink.verify_due(), None);
        sink.end_back(1);
        sink.end_forth(1);
        assert_eq!(sink.verify_due(), Some(2));
    }

    #[test]
    fn a_session_waits_for_its_link_once_both_ends_have_it_and_know_how() {
        let (mut source, mut sink) = (carrying(Role::Source), carrying(Role::Sink));
        assert!(!source.may_park() && !sink.may_park());
        (source.resumes, sink.resumes) = (true, true);
        assert!(source.may_park() && sink.may_park());
        (source.phase, sink.phase) = (CarryPhase::Opening, CarryPhase::Opening);
        assert!(source.may_park() && !sink.may_park(), "the sink's answer is still to come");
        source.phase = CarryPhase::Asking;
        assert!(!source.may_park());
    }

    #[test]
    fn a_source_waits_for_a_sink_that_knows_all_its_channels() {
        let mut source = carrying(Role::Source);
        assert_eq!(source.add_channel(), Some(1));
        for channel in 0..2 {
            source.end_forth(channel);
            source.end_back(channel);
        }
        source.carried = Some((1, (7, [0; 16])));
        assert_eq!(source.verify_due(), None);
        source.carried = Some((2, (9, [0; 16])));
        assert_eq!(source.verify_due(), Some(2));
    }

    #[test]
    fn a_connection_after_the_end_of_all_others_is_another_migration() {
        let mut source = carrying(Role::Source);
        let (near, far) = UnixStream::pair().unwrap();
        source.vmm.add(&near.into()).unwrap();
        assert!(source.takes_channels());
        // Nobody has read the end of the stream yet.
        drop(far);
        assert!(!source.takes_channels());
        let mut many = carrying(Role::Source);
        assert_eq!((1..CHANNELS_MAX).filter_map(|_| many.add_channel()).last(), Some(31));
        assert_eq!(many.add_channel(), None);
    }
}
