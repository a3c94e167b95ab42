//! A link that goes on over another connection: who may take it up, and when new streams may come.
//!
//! Part of [`Link`], pure. Invariants: a token is good once, or again while the answer to it may
//! have been lost; no stream of a new connection comes before the end of the last old one.

use super::{Link, LinkOutput, LinkPhase, Place};
use crate::limits::{REDIAL_WAIT_NS, STREAMS_COME_NS};
use crate::peer::error::PeerError;
use dwcp_proto::ids::SessionId;
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::peer::PeerMessage;
use dwcp_proto::wire::token::{LinkToken, ResumeToken};

/// The secrets by which a link goes on over another connection. The listening end makes them, and
/// takes the one before the newest as well until it is sure that the newest was heard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tokens {
    pub(super) newest: ResumeToken,
    before: Option<ResumeToken>,
    spent: Option<ResumeToken>,
}

impl Tokens {
    pub(super) fn new(newest: ResumeToken) -> Self {
        Self { newest, before: None, spent: None }
    }

    /// The peer has surely heard the newest one.
    pub(super) fn heard(&mut self) {
        self.spent = self.before.take().or(self.spent);
    }
}

impl Link {
    /// Listening end: true while nothing is agreed with the peer, so that its connection may be one
    /// for another link.
    pub fn may_be_another(&self) -> bool {
        !self.dialled && self.phase == LinkPhase::Asking
    }

    /// True for a link that can go on over another connection.
    pub fn may_resume(&self) -> bool {
        self.was_ready && self.tokens.is_some()
    }

    /// Listening end: whether a token is good for going on.
    pub fn check_resume(&self, shown: ResumeToken) -> Result<(), PeerError> {
        match self.tokens.filter(|_| self.was_ready && !self.dialled) {
            Some(tokens) if tokens.newest == shown || tokens.before == Some(shown) => Ok(()),
            Some(tokens) if tokens.spent == Some(shown) => Err(PeerError::ResumeTokenStale),
            Some(_) => Err(PeerError::ResumeTokenWrong),
            None => Err(PeerError::ResumeUnknown),
        }
    }

    pub(super) fn lost(&mut self) -> Vec<LinkOutput> {
        assert!(self.may_resume(), "only a link that can go on is parked");
        self.phase = LinkPhase::Parked;
        self.agreed = false;
        let mut open = false;
        for stream in &mut self.streams {
            stream.wait = Nanos(REDIAL_WAIT_NS.0);
            match stream.place {
                // Their ends are reported one by one.
                Place::Joined | Place::Up => open = true,
                Place::Empty { .. } | Place::Dialling => stream.vacate(),
            }
        }
        if open { vec![LinkOutput::CutStreams] } else { Vec::new() }
    }

    pub(super) fn reconnected(&mut self, sessions: Vec<SessionId>) -> Vec<LinkOutput> {
        assert!(self.dialled && self.phase == LinkPhase::Parked, "it waits for a connection");
        self.phase = LinkPhase::Resuming;
        let token = self.tokens.map(|tokens| tokens.newest);
        let epoch = self.epoch;
        let resume = token.map(|token| PeerMessage::LinkResume { epoch, token, sessions });
        resume.into_iter().map(LinkOutput::Send).collect()
    }

    pub(super) fn resumed(
        &mut self,
        now: Nanos,
        shown: ResumeToken,
        token: LinkToken,
        resume: ResumeToken,
    ) -> Vec<LinkOutput> {
        assert!(!self.dialled && self.phase == LinkPhase::Parked, "it waits for a connection");
        self.phase = LinkPhase::Resuming;
        self.token = token;
        if let Some(tokens) = &mut self.tokens {
            *tokens = Tokens { newest: resume, before: Some(shown), spent: tokens.spent };
        }
        self.agreed = true;
        self.go_on(now)
    }

    /// Lets new streams come once both ends want them and the old ones are gone.
    pub(super) fn go_on(&mut self, now: Nanos) -> Vec<LinkOutput> {
        let closed = self.streams.iter().all(|s| matches!(s.place, Place::Empty { .. }));
        if self.phase != LinkPhase::Resuming || !self.agreed || !closed {
            return Vec::new();
        }
        self.phase = LinkPhase::Joining;
        if self.dialled {
            return self.redial(now);
        }
        self.coming_until = now + STREAMS_COME_NS;
        let token = self.token;
        let resume = self.tokens.map(|tokens| tokens.newest);
        let resumed = resume.map(|resume| PeerMessage::LinkResumed { token, resume });
        resumed.into_iter().map(LinkOutput::Send).collect()
    }
}
