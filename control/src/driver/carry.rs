//! The core's one session in a carrier's process: from its first channel to its end.
//!
//! Part of [`Core`], on the control thread. What the two ends do differently is in `carry_source`
//! and `carry_sink`. Every failure, here or there, closes the VMM's sockets at this end and is told
//! to the other; an end is reported as good only when both ends counted the same frames.

use super::core::Core;
use crate::api::Role;
use crate::carry::{
    CarryConfig, CarryCounts, CarryEvent, CarryFailure, CarryInput, CarryPhase, CarryReport,
    CarrySession, VmmHandles,
};
use crate::limits::CARRY_PROGRESS_NS;
use crate::peer::PeerError;
use dwcp_dataplane::port::Command;
use dwcp_dataplane::stats::SessionCounter;
use dwcp_proto::ids::{LinkId, SessionId, SessionNumber};
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::peer::{Code, Message, PeerCoding, PeerMessage};
use dwcp_proto::wire::vm::VmTerms;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use tokio::sync::mpsc;

/// A source's offer that waits for the end of the session before.
#[derive(Clone, Debug)]
pub(super) struct CarryOffer {
    pub(super) link: LinkId,
    pub(super) peer: String,
    pub(super) session: SessionId,
    pub(super) number: SessionNumber,
    pub(super) coding: PeerCoding,
    pub(super) terms: VmTerms,
}

/// What a carrier's process has besides the rest of the core.
pub(crate) struct Carry {
    pub(super) config: CarryConfig,
    pub(super) report: Box<dyn CarryReport>,
    pub(super) inputs: mpsc::Sender<CarryInput>,
    pub(super) session: Option<CarrySession>,
    /// Source: connections that belong to the next session.
    pub(super) backlog: VecDeque<OwnedFd>,
    /// Sink: the offer of the next session.
    pub(super) next_offer: Option<CarryOffer>,
}

impl Carry {
    /// What a carrier starts with.
    pub(super) fn new(
        config: CarryConfig,
        report: Box<dyn CarryReport>,
        inputs: mpsc::Sender<CarryInput>,
    ) -> Self {
        let backlog = VecDeque::new();
        Self { config, report, inputs, session: None, backlog, next_offer: None }
    }
}

/// A failure with its cure.
pub(super) fn failure(code: &str, message: impl Into<String>, cure: &str) -> CarryFailure {
    CarryFailure { code: code.to_owned(), message: message.into(), cure: cure.to_owned() }
}

/// What to do when the network took the session. The VMMs may have been done just before.
pub(super) const LINK_CURE: &str = "if the source's migration failed, its guest runs on there: \
                                    migrate again; if it completed, run the guest at the sink";

/// The same where waiting for it was in vain.
const WINDOW_CURE: &str = "mend the network between the hosts, or raise --resume-window at both \
                           ends; if the source's migration failed, its guest runs on there: \
                           migrate again; if it completed, run the guest at the sink";

impl Core {
    /// The session, unless it is on its way out.
    pub(super) fn carried(&mut self) -> Option<&mut CarrySession> {
        let session = self.carry.as_mut()?.session.as_mut()?;
        (session.phase != CarryPhase::Closing).then_some(session)
    }

    pub(super) fn report_carry(&mut self, event: &CarryEvent) {
        if let Some(carry) = &mut self.carry {
            carry.report.report(event);
        }
    }

    /// The VMM's sockets tell something.
    pub(crate) fn on_carry(&mut self, input: CarryInput) {
        match input {
            // Dropping a connection closes it.
            CarryInput::Accepted(socket) if self.is_leaving() => drop(socket),
            CarryInput::Accepted(socket) => self.on_vmm_connected(socket),
            CarryInput::Connected { session, channel, outcome } => {
                self.on_connected_to_vmm(session, channel, outcome);
            }
        }
    }

    /// A peer's message about a session; true if it was for a carrier.
    pub(super) fn on_carry_message(
        &mut self,
        link: LinkId,
        peer: &str,
        id: SessionId,
        message: &PeerMessage,
    ) -> bool {
        let dialled = self.links.get(&link).is_some_and(|entry| entry.link.is_dialled());
        if self.carry.is_none() {
            if let PeerMessage::CarryOpen { session, number, .. } = message {
                let why = failure(
                    "not_a_carrier",
                    "a daemon answers here, which takes no carrier's sessions",
                    "start 'dwcp carry --listen' at the sink, or migrate with 'dwcp migrate'",
                );
                self.refuse_carry(link, *session, *number, &why);
                return true;
            }
            return false;
        }
        if !dialled && self.open_at_carrier(link, peer, message) {
            return true;
        }
        let ours = self.carried().is_some_and(|s| s.id == id && s.link == Some(link));
        match (ours, dialled) {
            (true, true) => self.on_sink_says(message),
            (true, false) => self.on_source_says(message),
            (false, _) => self.counters.ignored.add(message.name()),
        }
        true
    }

    /// Does what is due.
    pub(super) fn tick_carry(&mut self, now: Nanos) {
        // Nobody can be late while the link is lost.
        if self.is_carry_parked() {
            return;
        }
        let Some(session) = self.carried() else { return };
        if session.deadline.is_some_and(|deadline| deadline <= now) {
            let why = match (session.phase, session.role) {
                (CarryPhase::Carrying, _) => failure(
                    "vmm_lingers",
                    "the destination VMM keeps its socket open after the end of the stream",
                    "look at the destination VMM's own messages",
                ),
                (_, Role::Source) => failure(
                    "peer_silent",
                    "the peer did not answer in time",
                    "look at the messages of the carrier at the sink",
                ),
                (_, Role::Sink) => failure(
                    "opening_late",
                    "the data plane did not open the session in time",
                    "look at the lines above",
                ),
            };
            return self.fail_carry(why);
        }
        let carrying = session.phase == CarryPhase::Carrying;
        if carrying && now.since(session.progress_at).0 >= CARRY_PROGRESS_NS {
            session.progress_at = now;
            let (session, counts) = (session.id.to_string(), counts_of(session, now));
            self.report_carry(&CarryEvent::Progress { session, counts });
        }
    }

    /// A link is gone.
    pub(super) fn carry_link_lost(&mut self, link: LinkId, cause: &PeerError) {
        if let Some(carry) = &mut self.carry
            && carry.next_offer.as_ref().is_some_and(|offer| offer.link == link)
        {
            carry.next_offer = None;
        }
        let Some(session) = self.carried().filter(|session| session.link == Some(link)) else {
            return;
        };
        let why = match (session.role, session.phase) {
            (Role::Source, CarryPhase::Connecting) => {
                let error = cause.to_api();
                failure(cause.code(), error.message, error.code.cure())
            }
            _ => {
                let message = format!("the link with {} was lost: {cause}", session.peer);
                match cause {
                    PeerError::ResumeWindow { .. } => failure(cause.code(), message, WINDOW_CURE),
                    _ => failure("link_lost", message, LINK_CURE),
                }
            }
        };
        session.link = None;
        self.end_carry(Some(why));
    }

    /// The process was told to end: both VMMs lose their connections at once.
    pub(super) fn stop_carry(&mut self) {
        if let Some(carry) = &mut self.carry {
            carry.backlog.clear();
            carry.next_offer = None;
        }
        self.fail_carry(failure(
            "interrupted",
            "the carrier was told to end",
            "start it again, then migrate again",
        ));
    }

    /// The session can't go on: the other end is told, and it ends here.
    pub(super) fn fail_carry(&mut self, why: CarryFailure) {
        let Some(session) = self.carried() else { return };
        let (id, link, phase) = (session.id, session.link, session.phase);
        let key = session.key;
        if let (Some(link), Some(key)) = (link, key) {
            let (code, message) = (Code::cut(&why.code), Message::cut(&words(&why)));
            match (session.role, phase) {
                (Role::Source, _) => {
                    self.send_peer(link, PeerMessage::Abort { session: id, code, message });
                }
                (Role::Sink, CarryPhase::Carrying) => {
                    let failed = PeerMessage::SessionFailed { session: id, code, message };
                    self.send_peer(link, failed);
                }
                (Role::Sink, _) => self.refuse_carry(link, id, key.number, &why),
            }
        }
        self.end_carry(Some(why));
    }

    /// Closes the VMM's sockets; the session is over when the shard has given its part back.
    pub(super) fn end_carry(&mut self, why: Option<CarryFailure>) {
        let Some(session) = self.carried() else { return };
        session.phase = CarryPhase::Closing;
        session.failure = why;
        session.deadline = None;
        session.sockets.clear();
        session.vmm = VmmHandles::default();
        match session.key.filter(|_| session.lane_ordered) {
            Some(key) => {
                let lane = session.lane;
                self.shards.send(key.link, lane, Command::CloseSession { session: key });
            }
            None => self.carry_over(),
        }
    }

    /// Nothing is left of the session here: it is reported, and the next one begins.
    pub(super) fn carry_over(&mut self) {
        let (now, leaving) = (self.now(), self.is_leaving());
        let Some(carry) = &mut self.carry else { return };
        let Some(session) = carry.session.take() else { return };
        let state = if session.failure.is_some() { "failed" } else { "carried" };
        self.counters.sessions_ended.add(state);
        let counts = counts_of(&session, now);
        let (failure, session) = (session.failure, session.id.to_string());
        carry.report.report(&CarryEvent::Ended { session, counts, failure });
        if leaving {
            return;
        }
        if let Some(offer) = carry.next_offer.take() {
            return self.take_offer(offer);
        }
        for socket in std::mem::take(&mut carry.backlog) {
            self.on_vmm_connected(socket);
        }
    }

    /// Says no to a source.
    pub(super) fn refuse_carry(
        &mut self,
        link: LinkId,
        session: SessionId,
        number: SessionNumber,
        why: &CarryFailure,
    ) {
        let refuse = PeerMessage::SessionRefuse {
            session,
            number,
            code: Code::cut(&why.code),
            message: Message::cut(&words(why)),
            findings: Default::default(),
        };
        self.send_peer(link, refuse);
    }
}

fn words(why: &CarryFailure) -> String {
    format!("{}: {}", why.message, why.cure)
}

/// What was carried so far.
pub(super) fn counts_of(session: &CarrySession, now: Nanos) -> CarryCounts {
    let counts = session.stats.as_ref().map(|stats| stats.snapshot());
    let count = |counter: SessionCounter| counts.map_or(0, |counts| counts[counter.index()]);
    let vmm = match session.role {
        Role::Source => SessionCounter::VmmInBytes,
        Role::Sink => SessionCounter::VmmOutBytes,
    };
    CarryCounts {
        channels: session.channels(),
        vmm_bytes: count(vmm),
        coded_bytes: count(SessionCounter::CodedBytes),
        zstd_level: count(SessionCounter::ZstdLevel),
        reply_bytes: count(SessionCounter::ReplyBytes),
        seconds: super::reports::seconds(now.since(session.opened_at).0),
    }
}
