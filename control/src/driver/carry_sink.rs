//! The sink's side of a carrier: offers come, the VMM here is connected to.
//!
//! Part of [`Core`], on the control thread. Nothing is promised before the VMM has taken the first
//! connection.

use super::carry::{CarryOffer, failure};
use super::core::Core;
use super::vm_opening::lane_of;
use crate::api::{ApiCode, ApiError, Role};
use crate::carry::{CarryFailure, CarryPhase, CarrySession, CarrySide, connect};
use crate::migration::VmMemory;
use dwcp_proto::ids::{LaneId, LinkId, SessionId, SessionKey};
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::hello::FEATURE_RESUME_CARRIERS;
use dwcp_proto::wire::peer::PeerMessage;
use dwcp_proto::wire::vm::VmTerms;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

impl Core {
    /// A peer wants to open a session; true if the message was that.
    pub(super) fn open_at_carrier(
        &mut self,
        link: LinkId,
        peer: &str,
        message: &PeerMessage,
    ) -> bool {
        match message {
            PeerMessage::CarryOpen { session, number, coding, terms } => {
                self.on_carry_open(CarryOffer {
                    link,
                    peer: peer.to_owned(),
                    session: *session,
                    number: *number,
                    coding: *coding,
                    terms: *terms,
                });
            }
            PeerMessage::SessionOpen { session, number, .. }
            | PeerMessage::VmOpen { session, number, .. } => {
                let message = "this is a carrier, which takes only what 'dwcp carry' sends";
                let cure = "use dwcp carry at the source as well, or start a daemon at the sink";
                let error = ApiError::new(ApiCode::NotAllowed, message).with("cure", cure);
                self.refuse_session(link, *session, *number, &error);
            }
            _ => return false,
        }
        true
    }

    fn on_carry_open(&mut self, offer: CarryOffer) {
        let (link, id, number) = (offer.link, offer.session, offer.number);
        if self.is_leaving() {
            let why = failure("interrupted", "the carrier was told to end", "start it again");
            return self.refuse_carry(link, id, number, &why);
        }
        if let Err(why) = self.may_carry(&offer.peer) {
            return self.refuse_carry(link, id, number, &why);
        }
        let Some(carry) = &mut self.carry else { return };
        let Some(session) = &carry.session else { return self.take_offer(offer) };
        let same_peer = session.peer == offer.peer && session.link != Some(link);
        if session.phase != CarryPhase::Closing && !same_peer {
            let why = failure(
                "busy",
                format!("a migration from {} is under way here", session.peer),
                "wait for its end, then migrate again",
            );
            return self.refuse_carry(link, id, number, &why);
        }
        if let Some(old) = carry.next_offer.replace(offer) {
            let why = failure("superseded", "another migration was offered", "migrate again");
            self.refuse_carry(old.link, old.session, old.number, &why);
        }
        // Its process was started anew before this end noticed that the old one is gone.
        self.fail_carry(failure("superseded", "the source began a new migration", "none needed"));
    }

    /// Whether a host may send.
    fn may_carry(&self, peer: &str) -> Result<(), CarryFailure> {
        let side = self.carry.as_ref().map(|carry| &carry.config.side);
        match side {
            Some(CarrySide::Sink { accept_from, .. })
                if accept_from.is_empty() || accept_from.iter().any(|name| name == peer) =>
            {
                Ok(())
            }
            _ => Err(failure(
                "not_allowed",
                format!("migrations from {peer} are not accepted here"),
                "name the source in --accept-from at the sink",
            )),
        }
    }

    /// Takes an offer as the session: first of all the VMM must be there.
    pub(super) fn take_offer(&mut self, offer: CarryOffer) {
        let now = self.now();
        let Some(entry) = self.links.get(&offer.link) else { return };
        let lane = LaneId(lane_of(offer.number, entry.link.lanes()));
        let resumes = entry.features() & FEATURE_RESUME_CARRIERS != 0;
        let terms = match self.agree_terms(&offer) {
            Ok(terms) => terms,
            Err(error) => {
                let why = failure(error.code.name(), error.message, error.code.cure());
                return self.refuse_carry(offer.link, offer.session, offer.number, &why);
            }
        };
        let answer = u64::try_from(self.config.timeouts.answer.as_nanos()).unwrap_or(u64::MAX);
        let mut session = CarrySession::new(offer.session, Role::Sink, now);
        session.peer = offer.peer;
        session.link = Some(offer.link);
        session.resumes = resumes;
        session.key = Some(SessionKey { link: offer.link, number: offer.number });
        session.lane = lane;
        session.coding = offer.coding;
        session.terms = Some(terms);
        session.deadline = Some(now + Nanos(answer));
        let first = session.add_channel();
        if let Some(carry) = &mut self.carry {
            carry.session = Some(session);
        }
        first.into_iter().for_each(|channel| self.connect_to_vmm(channel));
    }

    /// The offer, or less where this end has less room.
    fn agree_terms(&self, offer: &CarryOffer) -> Result<VmTerms, ApiError> {
        let own = self.carry_terms(offer.coding, Role::Sink);
        let mut terms = offer.terms;
        if let Ok(own) = own {
            terms.window_log = terms.window_log.min(own.window_log);
            terms.pages_max = terms.pages_max.min(own.pages_max);
            terms.base_pages = terms.base_pages.min(own.base_pages).min(terms.pages_max);
            terms.undelivered_bytes_max =
                terms.undelivered_bytes_max.min(own.undelivered_bytes_max);
        }
        self.check_vm_memory(&VmMemory::of(&terms, Role::Sink))?;
        Ok(terms)
    }

    fn vmm_socket(&self) -> Option<PathBuf> {
        match &self.carry.as_ref()?.config.side {
            CarrySide::Sink { connect_unix, .. } => Some(connect_unix.clone()),
            CarrySide::Source { .. } => None,
        }
    }

    fn connect_to_vmm(&mut self, channel: u16) {
        let path = self.vmm_socket();
        let session = self.carried().map(|session| session.id);
        let inputs = self.carry.as_ref().map(|carry| carry.inputs.clone());
        if let (Some(path), Some(session), Some(inputs)) = (path, session, inputs) {
            connect(path, session, channel, inputs);
        }
    }

    /// A connection to the VMM was made, or not.
    pub(super) fn on_connected_to_vmm(
        &mut self,
        id: SessionId,
        channel: u16,
        outcome: io::Result<OwnedFd>,
    ) {
        let path = self.vmm_socket().unwrap_or_default();
        // One of a session that has ended meanwhile is closed again.
        let Some(session) = self.carried().filter(|session| session.id == id) else { return };
        let first = session.phase == CarryPhase::Connecting;
        match outcome {
            Ok(socket) => {
                self.give_channel(channel, socket);
                if first {
                    self.open_carry_lane();
                }
            }
            Err(error) => self.fail_carry(failure(
                "vmm_unreachable",
                format!("no VMM takes the migration on {} ({error})", path.display()),
                &format!(
                    "start the destination VMM first (QEMU: -incoming unix:{0}, or \
                     migrate-incoming with it), then migrate again",
                    path.display()
                ),
            )),
        }
    }

    /// The source's word about the session.
    pub(super) fn on_source_says(&mut self, message: &PeerMessage) {
        let Some(session) = self.carried() else { return };
        match message {
            PeerMessage::ChannelOpen { channel, .. } if *channel == session.channels() => {
                session.deadline = None;
                let added = session.add_channel();
                added.into_iter().for_each(|channel| self.connect_to_vmm(channel));
            }
            // Said again, since the first time may have been lost with its channel.
            PeerMessage::ChannelOpen { channel, .. } if *channel < session.channels() => {}
            PeerMessage::Abort { code, message, .. } => {
                let why = failure(code.as_str(), "it failed at the source", message.as_str());
                self.end_carry(Some(why));
            }
            PeerMessage::Settled { .. } if session.all_ended() => self.end_carry(None),
            other => {
                let name = other.name();
                self.fail_carry(failure(
                    "protocol",
                    format!("the source sent a message that is not allowed now ({name})"),
                    "check that both carriers are of the same version",
                ));
            }
        }
    }
}
