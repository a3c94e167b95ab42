//! The source's side of a carrier: VMMs connect, the sink answers.
//!
//! Part of [`Core`], on the control thread.

use super::carry::failure;
use super::core::Core;
use super::vm_opening::lane_of;
use crate::api::{ApiError, Role};
use crate::carry::{CarryEvent, CarryPhase, CarrySession, CarrySide};
use crate::migration::{VmMemory, window_log};
use crate::peer::{LinkPhase, random};
use dwcp_dataplane::port::{STORE_PAGE_BYTES, STORE_SLOT_BYTES};
use dwcp_ffi::hangup::is_at_end;
use dwcp_proto::ids::{LaneId, LinkId, SessionId, SessionKey};
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::hello::{
    FEATURE_PAGES_DELTA, FEATURE_PAGES_ZSTD, FEATURE_RESUME_CARRIERS, FEATURE_STREAM,
};
use dwcp_proto::wire::limits::{
    CHANNELS_MAX, REGION_PAGES_MAX, UNDELIVERED_BYTES_MAX, UNDELIVERED_BYTES_MIN,
};
use dwcp_proto::wire::peer::{PeerCoding, PeerMessage};
use dwcp_proto::wire::vm::VmTerms;
use std::os::fd::{AsFd, OwnedFd};

impl Core {
    /// The VMM connected: a channel of the session, or the beginning of the next one.
    pub(super) fn on_vmm_connected(&mut self, socket: OwnedFd) {
        let Some(carry) = &mut self.carry else { return };
        if is_at_end(socket.as_fd()) {
            // Of a migration that has failed meanwhile: it must not begin another.
            return tracing::debug!("the VMM connected and closed again");
        }
        match &mut carry.session {
            None => self.begin_carry(socket),
            Some(session) if session.takes_channels() => self.add_vmm_channel(socket),
            Some(_) if carry.backlog.len() < usize::from(CHANNELS_MAX) => {
                carry.backlog.push_back(socket);
            }
            Some(_) => tracing::warn!("the VMM opens more connections than one migration has"),
        }
    }

    fn add_vmm_channel(&mut self, socket: OwnedFd) {
        let Some(session) = self.carried() else { return };
        let Some(channel) = session.add_channel() else {
            return self.fail_carry(failure(
                "channels_too_many",
                format!("the VMM opened more than {CHANNELS_MAX} connections"),
                "lower its multifd-channels",
            ));
        };
        match session.vmm.add(&socket) {
            Ok(()) => self.give_channel(channel, socket),
            Err(error) => self.fail_carry(failure(
                "no_descriptors",
                format!("the VMM's connection can't be watched ({error})"),
                "raise the limit of open files (ulimit -n)",
            )),
        }
    }

    /// Opens the link before a VMM comes: its guest would wait for it. One that can't be opened now
    /// is opened for the VMM.
    pub(super) fn open_carry_link(&mut self) {
        let Some(carry) = &self.carry else { return };
        let CarrySide::Source { to, .. } = &carry.config.side else { return };
        let to = to.clone();
        if let Err(error) = self.link_to(&to) {
            tracing::warn!(code = error.code(), %error, "the link is not opened ahead");
        }
    }

    fn begin_carry(&mut self, socket: OwnedFd) {
        let now = self.now();
        let answer = u64::try_from(self.config.timeouts.answer.as_nanos()).unwrap_or(u64::MAX);
        let Some(carry) = &mut self.carry else { return };
        let CarrySide::Source { to, .. } = &carry.config.side else { return };
        let (to, passthrough) = (to.clone(), carry.config.passthrough);
        let mut session = CarrySession::new(SessionId(random()), Role::Source, now);
        if passthrough {
            session.coding = PeerCoding::Passthrough;
        }
        session.deadline = Some(now + Nanos(answer));
        carry.session = Some(session);
        self.add_vmm_channel(socket);
        if self.carried().is_none() {
            return;
        }
        let link = match self.link_to(&to) {
            Ok(link) => link,
            Err(error) => {
                let api = error.to_api();
                return self.fail_carry(failure(error.code(), api.message, api.code.cure()));
            }
        };
        if let Some(session) = self.carried() {
            session.link = Some(link);
        }
        if self.links.get(&link).is_some_and(|entry| entry.link.phase() == LinkPhase::Ready) {
            self.carry_link_ready(link);
        }
    }

    /// The link works: it is reported, and the sink is asked for the session that waits for it.
    pub(super) fn on_carry_link(&mut self, link: LinkId) {
        let Some(entry) = self.links.get(&link) else { return };
        let peer = entry.peer_name.clone();
        self.report_carry(&CarryEvent::Linked { peer });
        self.carry_link_ready(link);
    }

    /// Asks the sink for the session that waits for this link, if one does.
    fn carry_link_ready(&mut self, link: LinkId) {
        let waits = self.carried().is_some_and(|session| {
            let waiting = session.phase == CarryPhase::Connecting && session.link == Some(link);
            waiting && session.role == Role::Source
        });
        let Some(entry) = self.links.get_mut(&link).filter(|_| waits) else { return };
        let (peer, lanes, features) =
            (entry.peer_name.clone(), entry.link.lanes(), entry.features());
        let number = entry.next_number;
        entry.next_number = number.next();
        if features & FEATURE_STREAM == 0 {
            return self.fail_carry(failure(
                "peer_unsupported",
                format!("{peer} can't carry migration streams"),
                "update the peer",
            ));
        }
        let Some(session) = self.carried() else { return };
        session.resumes = features & FEATURE_RESUME_CARRIERS != 0;
        // What the peer can't decode is not sent.
        let full = FEATURE_PAGES_ZSTD | FEATURE_PAGES_DELTA;
        if features & full != full {
            session.coding = PeerCoding::Passthrough;
        }
        let coding = session.coding;
        let terms = match self.carry_terms(coding, Role::Source) {
            Ok(terms) => terms,
            Err(error) => {
                let why = failure(error.code.name(), error.message, error.code.cure());
                return self.fail_carry(why);
            }
        };
        let Some(session) = self.carried() else { return };
        session.peer = peer;
        session.key = Some(SessionKey { link, number });
        session.lane = LaneId(lane_of(number, lanes));
        session.terms = Some(terms);
        session.phase = CarryPhase::Asking;
        let open = PeerMessage::CarryOpen { session: session.id, number, coding, terms };
        self.send_peer(link, open);
    }

    /// What this end can reserve for a guest whose size nobody knows yet: bases as the setting
    /// says, and tables for as many pages as the rest of the budget has room for.
    pub(super) fn carry_terms(&self, coding: PeerCoding, role: Role) -> Result<VmTerms, ApiError> {
        let live = self.live.get();
        let full = coding == PeerCoding::Full;
        let sessions_bytes = self.config.memory.sessions_bytes;
        let mut terms = VmTerms {
            window_log: if full { window_log(u64::MAX, sessions_bytes) } else { 0 },
            pages_max: 1,
            base_pages: 0,
            undelivered_bytes_max: live
                .window_bytes_max
                .clamp(UNDELIVERED_BYTES_MIN, UNDELIVERED_BYTES_MAX),
            before: None,
            held: None,
        };
        let fixed = VmMemory::of(&terms, role);
        self.check_vm_memory(&fixed)?;
        if full {
            let left = sessions_bytes - fixed.total();
            let base_pages = live.base_pages_max.min(left / 2 / STORE_SLOT_BYTES);
            let tables_bytes = left - base_pages * STORE_SLOT_BYTES;
            terms.pages_max = (tables_bytes / STORE_PAGE_BYTES).clamp(1, REGION_PAGES_MAX);
            terms.base_pages = base_pages.min(terms.pages_max);
        }
        Ok(terms)
    }

    /// The sink's word about the session.
    pub(super) fn on_sink_says(&mut self, message: &PeerMessage) {
        let Some(session) = self.carried() else { return };
        let asking = session.phase == CarryPhase::Asking;
        let offered = session.terms;
        match message {
            PeerMessage::SessionAccept { vm: Some(terms), .. } if asking => {
                if !offered.is_some_and(|offered| terms.within(&offered)) {
                    return self.fail_carry(failure(
                        "peer_terms",
                        "the sink accepted more than was offered",
                        "check that both carriers are of the same version",
                    ));
                }
                session.terms = Some(*terms);
                self.open_carry_lane();
            }
            PeerMessage::SessionRefuse { code, message, .. } if asking => {
                let why = failure(code.as_str(), "the sink refuses", message.as_str());
                self.end_carry(Some(why));
            }
            PeerMessage::SessionFailed { code, message, .. } => {
                let why = failure(code.as_str(), "it failed at the sink", message.as_str());
                self.end_carry(Some(why));
            }
            PeerMessage::Carried { channels, frames, digest, .. } => {
                session.carried = Some((*channels, (*frames, digest.0)));
                self.verify_carry();
            }
            other => self.counters.ignored.add(other.name()),
        }
    }
}
