//! What arrives on a stream, and what the end of a stream means.
//!
//! Called by the transport while it is polled, on the shard's thread. A peer's fault ends its
//! stream or its session with a stable code, never the shard.

use super::Desk;
use crate::attach::region::{Answer, Applied, Check};
use crate::link::{Clock, StreamSlot};
use crate::port::{Event, SessionEnd, StreamEnd};
use crate::stats::{SessionCounter, ShardCounter};
use dwcp_proto::flow::FlowError;
use dwcp_proto::ids::{LinkId, Sequence, SessionKey, SessionNumber, StreamId};
use dwcp_proto::source::{Cargo, InFlight};
use dwcp_proto::wire::frame::Frame;
use dwcp_proto::wire::reader::FrameIter;

/// Abort code: the other side broke the session's protocol.
const ABORT_PROTOCOL: u16 = 1;

/// What is said to a peer that broke the session's protocol.
pub(super) const fn abort(session: SessionNumber) -> Frame<'static> {
    Frame::Abort { session, code: ABORT_PROTOCOL }
}

/// The stream that a record came on.
#[derive(Clone, Copy)]
pub(super) struct Origin {
    pub(super) slot: StreamSlot,
    link: LinkId,
    pub(super) id: StreamId,
    pub(super) lane: usize,
}

impl Origin {
    pub(super) const fn session(&self, number: SessionNumber) -> SessionKey {
        SessionKey { link: self.link, number }
    }
}

impl<C: Clock> Desk<C> {
    /// Takes the frames of an opened record.
    pub(super) fn record(&mut self, slot: StreamSlot, plain: &[u8]) {
        let Some(stream) = &mut self.streams[slot.index()] else { return };
        if stream.over.is_some() {
            return;
        }
        let (link, id, version) = (stream.link, stream.id, stream.version);
        if !std::mem::replace(&mut stream.up, true) {
            self.report(Event::StreamUp { link, stream: id });
        }
        let Some(lane) = self.lanes.iter().position(|lane| lane.link == link) else { return };
        let origin = Origin { slot, link, id, lane };
        match FrameIter::new(version, plain) {
            Ok(frames) => frames.for_each(|frame| self.frame(origin, frame)),
            Err(error) => self.violation(slot, error.code()),
        }
    }

    fn frame(&mut self, origin: Origin, frame: Frame<'_>) {
        match frame {
            Frame::Pages { session, sequence, payload, .. } => {
                self.pages(origin, session, sequence, payload);
            }
            Frame::Ack { session, through } => self.ack(origin, session, through),
            Frame::Nack { session, sequence, .. } => self.nack(origin, session, sequence),
            Frame::Verify { session, digest, pages } => {
                let key = origin.session(session);
                if let Some(Err(error)) = self.sink(key).map(|s| s.start_verify(digest, pages)) {
                    self.refuse_peer(origin, session, Sequence(0), error.code());
                }
            }
            Frame::Verified { session } => {
                let key = origin.session(session);
                match self.source(key).map(|source| source.verified()) {
                    Some(Answer::First) => self.report(Event::Verified { session: key }),
                    Some(Answer::Unasked) => {
                        self.refuse_peer(origin, session, Sequence(0), "verified_unasked");
                    }
                    Some(Answer::Again) | None => {}
                }
            }
            Frame::VerifyFailed { session, .. } => {
                self.fail(origin.session(session), SessionEnd::PageMismatch);
            }
            Frame::Abort { session, code } => {
                self.fail(origin.session(session), SessionEnd::Peer { code });
            }
            Frame::Stream { part, payload } => self.part(origin, &part, payload),
            Frame::Delivered { session, channel, position } => {
                self.delivered(origin, session, channel, position);
            }
            Frame::Reply { session, channel, offset, payload } => {
                self.reply(origin, session, (channel, offset), payload);
            }
            Frame::ReplyAck { session, channel, offset } => {
                self.reply_ack(origin, session, channel, offset);
            }
            Frame::Held { session, chunk, hashes } => self.held(origin, session, (chunk, &hashes)),
            Frame::Ping { stamp } => self.queue(origin.slot, Frame::Pong { stamp }),
            Frame::Pong { .. } => {}
            Frame::Retire => self.retire(origin.slot),
        }
    }

    fn pages(&mut self, at: Origin, number: SessionNumber, sequence: Sequence, payload: &[u8]) {
        if !self.admit(at, number, sequence) {
            return;
        }
        let key = at.session(number);
        let Some(sink) = self.sinks.iter_mut().find(|sink| sink.session == key) else {
            return self.refuse_peer(at, number, sequence, "pages_for_a_stream");
        };
        let started = self.clock.now();
        let outcome = sink.apply(&mut self.decoder, sequence, payload);
        let nanos = self.clock.now().since(started).0;
        self.stats.add(ShardCounter::DecodeNanos.index(), nanos);
        let flow = &mut self.lanes[at.lane].sink;
        let settled = match outcome {
            Ok(Applied::Held) => flow.applied(at.id, number, sequence),
            Ok(Applied::Refused(reason)) => flow.refused(at.id, number, sequence, reason),
            Err(error) => {
                self.refuse_peer(at, number, sequence, error.code());
                return;
            }
        };
        self.settled(at, settled);
    }

    /// True when a frame is the next one on its stream, of a session that is open here.
    pub(super) fn admit(&mut self, at: Origin, number: SessionNumber, sequence: Sequence) -> bool {
        match self.lanes[at.lane].sink.accept(at.id, number, sequence) {
            Ok(()) => return true,
            Err(error) if error.is_violation() => self.violation(at.slot, error.code()),
            Err(_) => self.stats.add(ShardCounter::FramesDropped.index(), 1),
        }
        false
    }

    pub(super) fn settled(&mut self, at: Origin, settled: Result<(), FlowError>) {
        match settled {
            Ok(()) => self.answer_due(at.slot),
            Err(error) if error.is_violation() => self.violation(at.slot, error.code()),
            Err(_) => {}
        }
    }

    fn ack(&mut self, at: Origin, number: SessionNumber, through: Sequence) {
        let key = at.session(number);
        let Self { sources, stream_sources, .. } = self;
        let mut region = sources.iter_mut().find(|source| source.session == key);
        let mut stream = stream_sources.iter_mut().find(|source| source.session == key);
        let flow = &mut self.lanes[at.lane].flow;
        let taken = flow.on_ack(at.id, number, through, self.now, |frame| {
            match (frame.cargo, &mut region, &mut stream) {
                (Cargo::Extent { first_page, mask }, Some(source), _) => {
                    source.acked(frame.sequence, first_page, mask);
                }
                (Cargo::Kept(name), _, Some(source)) => source.acked(name),
                _ => panic!("a frame in flight belongs to a session that is open here"),
            }
        });
        match taken {
            Ok(summary) => {
                if let Some(source) = &mut region {
                    source.stats.set(SessionCounter::BacklogBytes.index(), flow.backlog_bytes());
                }
                if let Some(rtt) = summary.rtt {
                    let region = region.map(|source| &mut source.frame_rtt_ns);
                    let rtts = region.or(stream.map(|source| &mut source.frame_rtt_ns));
                    rtts.into_iter().for_each(|rtts| rtts.record(rtt.0));
                    if let Some(stream) = &mut self.streams[at.slot.index()] {
                        stream.rtt = rtt;
                        stream.frame_rtt_ns.record(rtt.0);
                    }
                }
            }
            Err(error) if error.is_violation() => self.violation(at.slot, error.code()),
            Err(_) => {}
        }
    }

    fn nack(&mut self, at: Origin, number: SessionNumber, sequence: Sequence) {
        let key = at.session(number);
        match self.lanes[at.lane].flow.on_nack(at.id, number, sequence) {
            Ok(InFlight { cargo: Cargo::Extent { first_page, mask }, .. }) => {
                if let Some(source) = self.source(key) {
                    source.stats.add(SessionCounter::Nacks.index(), 1);
                    source.lost(sequence, first_page, mask);
                }
            }
            Ok(InFlight { cargo: Cargo::Kept(_), .. }) => {
                self.refuse_peer(at, number, sequence, "nack_of_a_stream");
            }
            Err(error) if error.is_violation() => self.violation(at.slot, error.code()),
            Err(_) => {}
        }
    }

    /// The peer needs the stream no more: it ends after this turn.
    fn retire(&mut self, slot: StreamSlot) {
        if let Some(stream) = &mut self.streams[slot.index()] {
            (stream.retired, stream.over) = (true, Some(StreamEnd::Retired));
        }
    }

    fn answer_due(&mut self, slot: StreamSlot) {
        if let Some(stream) = &mut self.streams[slot.index()] {
            stream.due = true;
        }
    }

    /// The peer broke the stream's protocol: the stream ends after this turn.
    fn violation(&mut self, slot: StreamSlot, code: &'static str) {
        if let Some(stream) = &mut self.streams[slot.index()] {
            stream.over = Some(StreamEnd::Protocol { code });
        }
    }

    /// The peer broke the session's protocol: the session ends, the link stays.
    pub(super) fn refuse_peer(
        &mut self,
        at: Origin,
        session: SessionNumber,
        sequence: Sequence,
        code: &'static str,
    ) {
        // Frames that were under way when the session failed get no second answer.
        if self.fail(at.session(session), SessionEnd::Protocol { code, sequence }) {
            self.queue(at.slot, abort(session));
        } else {
            self.stats.add(ShardCounter::FramesDropped.index(), 1);
        }
    }

    /// A stream is gone: what was in flight on it goes out again on the others; with the last one
    /// its lane's sessions wait for the next one, unless the link was dropped.
    pub(super) fn stream_down(&mut self, slot: StreamSlot, cause: StreamEnd) {
        let Some(mut stream) = self.streams[slot.index()].take() else { return };
        let link = stream.link;
        let cause = if stream.retired { StreamEnd::Retired } else { cause };
        self.report(Event::StreamDown { link, stream: stream.id, cause });
        let Some(lane) = self.lanes.iter().position(|lane| lane.link == link) else { return };
        let Self { sources, stream_sources, .. } = self;
        self.lanes[lane].remove_stream(stream.id, |frame| {
            let key = SessionKey { link, number: frame.session };
            match frame.cargo {
                Cargo::Extent { first_page, mask } => {
                    let source = sources.iter_mut().find(|source| source.session == key);
                    source.into_iter().for_each(|s| s.lost(frame.sequence, first_page, mask));
                }
                Cargo::Kept(name) => {
                    let source = stream_sources.iter_mut().find(|source| source.session == key);
                    source.into_iter().for_each(|source| source.lost(name));
                }
            }
        });
        if self.lanes[lane].is_empty() {
            if self.lanes[lane].dropped {
                self.sessions_lost(link, cause);
                self.remove_lane(link);
            } else {
                self.say_again(link);
            }
            return;
        }
        while let Some(frame) = stream.outbox.pop() {
            // A ping asks for this very stream; everything else is for its session.
            if frame.session().is_some() {
                self.send_on_lane(lane, frame);
            }
        }
        self.ask_again(lane);
        self.say_again(link);
    }

    /// A request for proof may have died with its stream; the sink answers the same one twice.
    pub(super) fn ask_again(&mut self, lane: usize) {
        let link = self.lanes[lane].link;
        for index in 0..self.sources.len() {
            let source = &mut self.sources[index];
            if source.session.link != link {
                continue;
            }
            if let Some((digest, pages)) = source.ask_again() {
                let session = source.session.number;
                self.send_on_lane(lane, Frame::Verify { session, digest: digest.0, pages });
            }
        }
    }

    /// The link was dropped, and the last stream of its lane is gone.
    pub(super) fn sessions_lost(&mut self, link: LinkId, cause: StreamEnd) {
        for index in 0..self.sources.len() {
            self.lose(self.sources[index].session, link, cause);
        }
        for index in 0..self.sinks.len() {
            self.lose(self.sinks[index].session, link, cause);
        }
        for index in 0..self.stream_sources.len() {
            self.lose(self.stream_sources[index].session, link, cause);
        }
        for index in 0..self.stream_sinks.len() {
            self.lose(self.stream_sinks[index].session, link, cause);
        }
    }

    fn lose(&mut self, session: SessionKey, link: LinkId, cause: StreamEnd) {
        if session.link == link {
            self.fail(session, SessionEnd::LinkLost(cause));
        }
    }

    /// Forgets a lane without streams.
    pub(super) fn remove_lane(&mut self, link: LinkId) {
        self.lanes.retain(|lane| lane.link != link);
    }

    /// One bounded piece of reading back or comparing at one sink.
    pub(super) fn check_sink(&mut self, index: usize, idle: bool) -> bool {
        let sink = &mut self.sinks[index];
        let session = sink.session;
        let number = session.number;
        match sink.check(idle, &mut self.read_back) {
            Check::Idle => return false,
            Check::Worked => return true,
            Check::Matches { first_time } => {
                if first_time {
                    self.report(Event::Verified { session });
                }
                self.tell(session, Frame::Verified { session: number });
            }
            Check::Differs(page) => {
                self.tell(session, Frame::VerifyFailed { session: number, page });
                self.fail(session, SessionEnd::PageMismatch);
            }
        }
        true
    }

    fn tell(&mut self, session: SessionKey, frame: Frame<'static>) {
        if let Some(lane) = self.lane_of(session) {
            self.send_on_lane(lane, frame);
        }
    }
}
