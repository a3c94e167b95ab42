//! One link's life: channel, agreement on lanes and streams, streams coming and going, the end.
//!
//! Pure: `step(now, input)` returns what to do. Owned by the core, one per link. A link is
//! directed: the daemon that dialled sends pages. It is ready while every lane has a stream that
//! proved its keys; a lost stream of a lane that has others is dialled again as its next
//! incarnation, and a lane whose other streams are still on their way waits for them. When its
//! channel ends or a lane has lost all its streams, the core ends the link or parks it: all streams
//! are closed, and the link goes on over another connection on which the dialling end shows the
//! token that the listening end gave last. Streams of old and new connections never mix: new ones
//! come only when both ends have seen the end of the old ones.

mod resuming;
mod wanted;

use super::error::PeerError;
use crate::limits::{REDIAL_WAIT_NS, STREAMS_COME_NS};
use dwcp_dataplane::port::StreamEnd;
use dwcp_proto::ids::{Incarnation, LaneId, LinkEpoch, SessionId, StreamId};
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::WireError;
use dwcp_proto::wire::limits::{LANES_MAX, STREAMS_MAX};
use dwcp_proto::wire::peer::PeerMessage;
use dwcp_proto::wire::preface::StreamPreface;
use dwcp_proto::wire::token::{LinkToken, ResumeToken};
use dwcp_proto::wire::version::WireVersion;
use resuming::Tokens;

/// What happens to a link.
#[derive(Debug)]
pub enum LinkInput {
    /// Dialling end: the channel stands.
    ChannelUp,
    /// A link message came.
    Message(PeerMessage),
    /// Dialling end: a stream's connection stands, or does not.
    Dialled {
        /// The stream.
        stream: StreamId,
        /// Which opening of it.
        incarnation: Incarnation,
        /// Whether it stands.
        joined: bool,
    },
    /// Listening end: a connection with our token came.
    Arrived(StreamPreface),
    /// A stream proved its keys.
    StreamUp(StreamId),
    /// A stream ended.
    StreamDown(StreamId, StreamEnd),
    /// Dialling end: a lane shall have so many streams.
    Want(LaneId, u16),
    /// The connection is gone and the link waits for another one.
    Lost,
    /// Dialling end: another connection stands; these sessions wait.
    Reconnected(Vec<SessionId>),
    /// Listening end: the peer has shown a token that is good; these are the next ones.
    Resumed {
        /// What the peer has shown.
        shown: ResumeToken,
        /// What streams must show from now on.
        token: LinkToken,
        /// What the peer shows the next time.
        resume: ResumeToken,
    },
    /// Time passed.
    Tick,
}

/// What to do for a link.
#[derive(Debug, PartialEq, Eq)]
pub enum LinkOutput {
    /// Say this on the channel.
    Send(PeerMessage),
    /// Make the shards' parts.
    AddLanes {
        /// How many.
        lanes: u16,
    },
    /// Dialling end: the peer has taken the link. Sessions are offered while streams come up.
    Taken,
    /// Close all streams and keep the shards' parts.
    CutStreams,
    /// Connect a stream.
    Dial(StreamPreface),
    /// Take the connection that just came or was made.
    Join,
    /// Every lane works.
    Ready,
    /// A lane has lost its only stream; others are on their way.
    Unready,
}

/// Where a link stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkPhase {
    /// The channel is being made.
    Dialling,
    /// Lanes and streams are being agreed on.
    Asking,
    /// Streams come up.
    Joining,
    /// Every lane works.
    Ready,
    /// It was ready and has no connection.
    Parked,
    /// It has another connection; the peer's word or the end of old streams is awaited.
    Resuming,
}

impl LinkPhase {
    /// The word for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dialling => "dialling",
            Self::Asking => "asking",
            Self::Joining => "joining",
            Self::Ready => "ready",
            Self::Parked => "parked",
            Self::Resuming => "resuming",
        }
    }
}

/// What became of a stream's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nothing is there; the dialling end tries again then, if it wants one. 0 until the first
    /// attempt over the channel that is there.
    Empty { retry_at: Nanos },
    /// Being connected.
    Dialling,
    /// Its shard has it; its keys are not proven.
    Joined,
    /// It works.
    Up,
}

#[derive(Clone, Debug)]
struct Stream {
    incarnation: Incarnation,
    place: Place,
    wait: Nanos,
}

/// One link.
#[derive(Debug)]
pub struct Link {
    dialled: bool,
    version: WireVersion,
    epoch: LinkEpoch,
    lanes: u16,
    lanes_max: u16,
    /// A place for each stream that there may be.
    streams: Vec<Stream>,
    /// Dialling end: places to ask for, and streams to begin with.
    places: u16,
    first: u16,
    /// Dialling end: how many streams each lane shall have.
    wanted: Vec<u16>,
    /// Listening end: so long streams that never came may be on their way.
    coming_until: Nanos,
    streams_max: u16,
    token: LinkToken,
    /// There when both ends know how to resume.
    tokens: Option<Tokens>,
    phase: LinkPhase,
    /// It has been ready.
    was_ready: bool,
    /// Both ends have agreed to go on over the connection that is there.
    agreed: bool,
}

impl Link {
    /// The dialling end. `lanes` is what this host can serve, `streams` what it begins with.
    pub fn dialling(epoch: LinkEpoch, lanes: u16, streams: u16) -> Self {
        let streams = streams.clamp(1, STREAMS_MAX);
        let streams_max = streams;
        Self {
            dialled: true,
            version: WireVersion::LOWEST,
            epoch,
            lanes: 0,
            lanes_max: lanes.min(LANES_MAX).min(streams),
            streams: Vec::new(),
            places: streams,
            first: streams,
            wanted: Vec::new(),
            coming_until: Nanos(0),
            streams_max,
            token: LinkToken([0; 16]),
            tokens: None,
            phase: LinkPhase::Dialling,
            was_ready: false,
            agreed: false,
        }
    }

    /// The listening end, with the token that streams must show, and the one for resuming if the
    /// peer knows how. `lanes` and `streams_max` are what this host serves.
    pub fn accepted(
        token: LinkToken,
        resume: Option<ResumeToken>,
        lanes: u16,
        streams_max: u16,
    ) -> Self {
        Self {
            dialled: false,
            version: WireVersion::LOWEST,
            epoch: LinkEpoch(0),
            lanes: 0,
            lanes_max: lanes.min(LANES_MAX),
            streams: Vec::new(),
            places: 0,
            first: 0,
            wanted: Vec::new(),
            coming_until: Nanos(0),
            streams_max,
            token,
            tokens: resume.map(Tokens::new),
            phase: LinkPhase::Asking,
            was_ready: false,
            agreed: false,
        }
    }

    /// Takes what the HELLOs agreed on, before any stream comes.
    pub fn set_version(&mut self, version: WireVersion) {
        assert!(self.streams.is_empty(), "a link has one version");
        self.version = version;
    }

    /// The version of everything on its streams.
    pub fn version(&self) -> WireVersion {
        self.version
    }

    /// True at the end that dialled.
    pub fn is_dialled(&self) -> bool {
        self.dialled
    }

    /// Where it stands.
    pub fn phase(&self) -> LinkPhase {
        self.phase
    }

    /// Dialling end: true when the peer takes offers of sessions: every lane works, or will for the
    /// first time.
    pub fn takes_offers(&self) -> bool {
        let is_new = self.phase == LinkPhase::Joining && !self.was_ready;
        self.phase == LinkPhase::Ready || is_new
    }

    /// Part of every key's context.
    pub fn epoch(&self) -> LinkEpoch {
        self.epoch
    }

    /// How many lanes were agreed on; 0 before that.
    pub fn lanes(&self) -> u16 {
        self.lanes
    }

    /// The lane that a stream belongs to.
    pub fn lane_of(&self, stream: StreamId) -> LaneId {
        LaneId(stream.0 % self.lanes.max(1))
    }

    /// How many streams belong to a lane, once that is agreed.
    pub fn streams_of(&self, lane: LaneId) -> usize {
        self.streams().filter(|(stream, _)| self.lane_of(*stream) == lane).count()
    }

    /// Whether a connection that shows this token is ours.
    pub fn expects(&self, token: LinkToken) -> bool {
        let welcome = matches!(self.phase, LinkPhase::Joining | LinkPhase::Ready);
        !self.dialled && welcome && self.token == token
    }

    /// The newest incarnation of a stream, if there is such a stream.
    pub fn incarnation(&self, stream: StreamId) -> Option<Incarnation> {
        self.streams.get(usize::from(stream.0)).map(|stream| stream.incarnation)
    }

    /// Each stream that there may be and whether it works.
    pub fn streams(&self) -> impl Iterator<Item = (StreamId, bool)> + '_ {
        (0..).zip(&self.streams).map(|(id, stream)| (StreamId(id), stream.place == Place::Up))
    }

    /// Takes an input; an error ends the link.
    pub fn step(&mut self, now: Nanos, input: LinkInput) -> Result<Vec<LinkOutput>, PeerError> {
        match input {
            LinkInput::ChannelUp => {
                assert!(self.phase == LinkPhase::Dialling, "a channel comes up once");
                self.phase = LinkPhase::Asking;
                Ok(vec![LinkOutput::Send(PeerMessage::LinkOpen {
                    epoch: self.epoch,
                    lanes: self.lanes_max,
                    streams: self.places,
                })])
            }
            LinkInput::Message(message) => self.message(now, message),
            LinkInput::Dialled { stream, incarnation, joined } => {
                Ok(self.dialled(now, stream, incarnation, joined))
            }
            LinkInput::Arrived(preface) => self.arrived(preface),
            LinkInput::StreamUp(stream) => Ok(self.stream_up(stream)),
            LinkInput::StreamDown(stream, cause) => self.stream_down(now, stream, cause),
            LinkInput::Lost => Ok(self.lost()),
            LinkInput::Reconnected(sessions) => Ok(self.reconnected(sessions)),
            LinkInput::Resumed { shown, token, resume } => {
                Ok(self.resumed(now, shown, token, resume))
            }
            LinkInput::Want(lane, streams) => Ok(self.want(now, lane, streams)),
            LinkInput::Tick => Ok(self.redial(now)),
        }
    }

    fn message(&mut self, now: Nanos, message: PeerMessage) -> Result<Vec<LinkOutput>, PeerError> {
        let asking = self.phase == LinkPhase::Asking;
        let resuming = self.phase == LinkPhase::Resuming && self.dialled;
        match message {
            PeerMessage::LinkOpen { streams, .. }
                if asking && !self.dialled && streams > self.streams_max =>
            {
                Err(PeerError::StreamsTooMany { streams, streams_max: self.streams_max })
            }
            PeerMessage::LinkOpen { epoch, lanes, streams } if asking && !self.dialled => {
                self.epoch = epoch;
                self.lanes = lanes.min(self.lanes_max);
                self.set_streams(streams);
                self.coming_until = now + STREAMS_COME_NS;
                self.phase = LinkPhase::Joining;
                let resume = self.tokens.map(|tokens| tokens.newest);
                let (token, lanes) = (self.token, self.lanes);
                let accept = PeerMessage::LinkAccept { token, lanes, resume };
                Ok(vec![LinkOutput::AddLanes { lanes: self.lanes }, LinkOutput::Send(accept)])
            }
            PeerMessage::LinkAccept { token, lanes, resume } if asking && self.dialled => {
                if lanes > self.lanes_max {
                    return Err(PeerError::OutOfPlace { what: "more lanes than asked for" });
                }
                self.token = token;
                self.tokens = resume.map(Tokens::new);
                self.lanes = lanes;
                self.set_streams(self.places);
                self.wanted = vec![self.first.div_ceil(lanes.max(1)); usize::from(lanes)];
                self.phase = LinkPhase::Joining;
                let mut outputs = vec![LinkOutput::AddLanes { lanes }];
                outputs.extend(self.redial(now));
                outputs.push(LinkOutput::Taken);
                Ok(outputs)
            }
            PeerMessage::LinkResumed { token, resume } if resuming && !self.agreed => {
                self.token = token;
                self.tokens = Some(Tokens::new(resume));
                self.agreed = true;
                Ok(self.go_on(now))
            }
            PeerMessage::LinkRefuse { code, message } if (asking && self.dialled) || resuming => {
                Err(PeerError::LinkRefused {
                    code: code.as_str().to_owned(),
                    message: message.as_str().to_owned(),
                })
            }
            _ => Err(PeerError::OutOfPlace { what: "a message about the link" }),
        }
    }

    fn set_streams(&mut self, count: u16) {
        let stream = Stream {
            incarnation: Incarnation(0),
            place: Place::Empty { retry_at: Nanos(0) },
            wait: Nanos(REDIAL_WAIT_NS.0),
        };
        self.streams = vec![stream; usize::from(count)];
    }

    fn dialled(
        &mut self,
        now: Nanos,
        stream: StreamId,
        incarnation: Incarnation,
        joined: bool,
    ) -> Vec<LinkOutput> {
        let Some(stream) = self.streams.get_mut(usize::from(stream.0)) else { return Vec::new() };
        if stream.place != Place::Dialling || stream.incarnation != incarnation {
            return Vec::new();
        }
        if joined {
            stream.place = Place::Joined;
            return vec![LinkOutput::Join];
        }
        stream.back_off(now);
        Vec::new()
    }

    fn arrived(&mut self, preface: StreamPreface) -> Result<Vec<LinkOutput>, PeerError> {
        if preface.version != self.version {
            let found = preface.version.number();
            return Err(WireError::BadVersion { what: "a stream of this link", found }.into());
        }
        let stream = self.streams.get_mut(usize::from(preface.stream.0));
        let stream = stream.ok_or(PeerError::StreamUnknown)?;
        // A stream that works is never pushed aside by a newcomer that proved nothing.
        let is_free = matches!(stream.place, Place::Empty { .. });
        if !is_free || preface.incarnation <= stream.incarnation {
            return Err(PeerError::StreamUnknown);
        }
        stream.incarnation = preface.incarnation;
        stream.place = Place::Joined;
        Ok(vec![LinkOutput::Join])
    }

    fn stream_up(&mut self, stream: StreamId) -> Vec<LinkOutput> {
        if let Some(stream) = self.streams.get_mut(usize::from(stream.0))
            && stream.place == Place::Joined
        {
            stream.place = Place::Up;
            stream.wait = Nanos(REDIAL_WAIT_NS.0);
        }
        if self.phase == LinkPhase::Joining && (0..self.lanes).all(|lane| self.lane_is_up(lane)) {
            self.phase = LinkPhase::Ready;
            self.was_ready = true;
            // Streams with the new connection's keys: the peer has heard the newest token.
            if let Some(tokens) = &mut self.tokens {
                tokens.heard();
            }
            return vec![LinkOutput::Ready];
        }
        Vec::new()
    }

    fn lane_is_up(&self, lane: u16) -> bool {
        self.streams().any(|(id, up)| up && self.lane_of(id).0 == lane)
    }

    fn stream_down(
        &mut self,
        now: Nanos,
        stream: StreamId,
        cause: StreamEnd,
    ) -> Result<Vec<LinkOutput>, PeerError> {
        let lane = self.lane_of(stream).0;
        let Some(stream) = self.streams.get_mut(usize::from(stream.0)) else {
            return Ok(Vec::new());
        };
        if !matches!(stream.place, Place::Joined | Place::Up) {
            return Ok(Vec::new());
        }
        if matches!(self.phase, LinkPhase::Parked | LinkPhase::Resuming) {
            stream.vacate();
            return Ok(self.go_on(now));
        }
        match cause {
            StreamEnd::Retired => stream.vacate(),
            _ => stream.back_off(now),
        }
        if self.phase != LinkPhase::Ready || self.lane_is_up(lane) {
            return Ok(Vec::new());
        }
        if !self.lane_is_coming(now, lane) {
            return Err(PeerError::LaneLost { lane, cause });
        }
        self.phase = LinkPhase::Joining;
        Ok(vec![LinkOutput::Unready])
    }
}

impl Stream {
    /// Nothing is there; what comes next is not to blame for what was.
    fn vacate(&mut self) {
        self.place = Place::Empty { retry_at: Nanos(0) };
    }

    fn back_off(&mut self, now: Nanos) {
        self.place = Place::Empty { retry_at: now + self.wait };
        self.wait = Nanos((self.wait.0 * 2).min(REDIAL_WAIT_NS.1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dwcp_proto::wire::peer::{Code, Message};

    const TOKEN: LinkToken = LinkToken([7; 16]);
    const NEXT: LinkToken = LinkToken([8; 16]);
    const FIRST: ResumeToken = ResumeToken([1; 16]);
    const SECOND: ResumeToken = ResumeToken([2; 16]);
    const THIRD: ResumeToken = ResumeToken([3; 16]);
    const SESSION: SessionId = SessionId([9; 16]);

    /// A dialling link with two lanes and four streams, all up.
    fn ready() -> Link {
        let mut link = Link::dialling(LinkEpoch(1), 2, 4);
        link.step(Nanos(0), LinkInput::ChannelUp).unwrap();
        let accept = PeerMessage::LinkAccept { token: TOKEN, lanes: 2, resume: Some(FIRST) };
        let outputs = link.step(Nanos(0), LinkInput::Message(accept)).unwrap();
        assert_eq!((outputs.len(), outputs.last()), (1 + 4 + 1, Some(&LinkOutput::Taken)));
        assert!(link.takes_offers(), "before its streams are up");
        for id in 0..4 {
            let (stream, incarnation) = (StreamId(id), Incarnation(1));
            let input = LinkInput::Dialled { stream, incarnation, joined: true };
            assert_eq!(link.step(Nanos(0), input).unwrap(), [LinkOutput::Join]);
        }
        assert!(link.step(Nanos(0), LinkInput::StreamUp(StreamId(0))).unwrap().is_empty());
        let outputs = link.step(Nanos(0), LinkInput::StreamUp(StreamId(1))).unwrap();
        assert_eq!(outputs, [LinkOutput::Ready]);
        link.step(Nanos(0), LinkInput::StreamUp(StreamId(2))).unwrap();
        link.step(Nanos(0), LinkInput::StreamUp(StreamId(3))).unwrap();
        link
    }

    #[test]
    fn a_lost_stream_comes_back_as_its_next_incarnation_after_a_wait() {
        let mut link = ready();
        let down = LinkInput::StreamDown(StreamId(2), StreamEnd::ClosedByPeer);
        link.step(Nanos(10), down).unwrap();
        assert!(link.step(Nanos(11), LinkInput::Tick).unwrap().is_empty());
        let later = Nanos(10 + REDIAL_WAIT_NS.0);
        let preface = preface(TOKEN, 2, 2);
        assert_eq!(link.step(later, LinkInput::Tick).unwrap(), [LinkOutput::Dial(preface)]);
    }

    fn preface(token: LinkToken, stream: u16, incarnation: u32) -> StreamPreface {
        let (stream, incarnation) = (StreamId(stream), Incarnation(incarnation));
        StreamPreface { version: WireVersion::V1, token, stream, incarnation }
    }

    fn step(link: &mut Link, input: LinkInput) -> Vec<LinkOutput> {
        link.step(Nanos(0), input).unwrap()
    }

    /// All streams of a parked link end.
    fn close(link: &mut Link, streams: u16) -> Vec<LinkOutput> {
        let down = |id| LinkInput::StreamDown(StreamId(id), StreamEnd::Dropped);
        (0..streams).flat_map(|id| step(link, down(id))).collect()
    }

    #[test]
    fn a_parked_link_goes_on_with_new_streams_once_the_old_ones_are_gone() {
        let mut link = ready();
        assert_eq!(step(&mut link, LinkInput::Lost), [LinkOutput::CutStreams]);
        assert_eq!((link.phase(), link.may_resume()), (LinkPhase::Parked, true));
        assert_eq!(step(&mut link, LinkInput::Tick), [], "no stream without a connection");
        let asks = step(&mut link, LinkInput::Reconnected(vec![SESSION]));
        let (epoch, token, sessions) = (LinkEpoch(1), FIRST, vec![SESSION]);
        let resume = PeerMessage::LinkResume { epoch, token, sessions };
        assert_eq!(asks, [LinkOutput::Send(resume)]);
        assert_eq!(close(&mut link, 3), []);
        let resumed = || PeerMessage::LinkResumed { token: NEXT, resume: SECOND };
        assert_eq!(step(&mut link, LinkInput::Message(resumed())), [], "one is still there");
        let down = LinkInput::StreamDown(StreamId(3), StreamEnd::Dropped);
        let incarnation = Incarnation(2);
        let dials = (0..4).map(|stream| LinkOutput::Dial(preface(NEXT, stream, 2)));
        assert_eq!(step(&mut link, down), dials.collect::<Vec<_>>());
        let again = link.step(Nanos(0), LinkInput::Message(resumed())).unwrap_err();
        assert_eq!(again.code(), "peer_message_out_of_place");
        for stream in [StreamId(0), StreamId(1)] {
            let late = LinkInput::Dialled { stream, incarnation: Incarnation(1), joined: true };
            assert_eq!(step(&mut link, late), [], "of before");
            let input = LinkInput::Dialled { stream, incarnation, joined: true };
            assert_eq!(step(&mut link, input), [LinkOutput::Join]);
        }
        assert_eq!(step(&mut link, LinkInput::StreamUp(StreamId(0))), []);
        assert!(!link.takes_offers(), "what was there before comes first");
        assert_eq!(step(&mut link, LinkInput::StreamUp(StreamId(1))), [LinkOutput::Ready]);
        // The next time it shows the next token.
        step(&mut link, LinkInput::Lost);
        let asks = step(&mut link, LinkInput::Reconnected(Vec::new()));
        let [LinkOutput::Send(PeerMessage::LinkResume { token, .. })] = asks[..] else { panic!() };
        assert_eq!(token, SECOND);
    }

    #[test]
    fn what_does_not_belong_to_going_on_is_out_of_place() {
        let (epoch, sessions) = (LinkEpoch(1), Vec::new());
        let messages = [
            PeerMessage::LinkOpen { epoch, lanes: 1, streams: 1 },
            PeerMessage::LinkAccept { token: NEXT, lanes: 1, resume: Some(SECOND) },
            PeerMessage::LinkResume { epoch, token: FIRST, sessions },
            PeerMessage::LinkResumed { token: NEXT, resume: SECOND },
        ];
        let parked = || {
            let mut link = ready();
            step(&mut link, LinkInput::Lost);
            link
        };
        let resuming = || {
            let mut link = parked();
            step(&mut link, LinkInput::Reconnected(vec![SESSION]));
            link
        };
        let code = |mut link: Link, message: &PeerMessage| {
            let refused = link.step(Nanos(0), LinkInput::Message(message.clone()));
            refused.map(|_| "taken").unwrap_or_else(|error| error.code())
        };
        for message in &messages {
            let expected = match message {
                PeerMessage::LinkResumed { .. } => "taken",
                _ => "peer_message_out_of_place",
            };
            assert_eq!(code(resuming(), message), expected, "{message:?}");
            for link in [ready(), parked()] {
                assert_eq!(code(link, message), "peer_message_out_of_place", "{message:?}");
            }
        }
        let (code_of_peer, message) = (Code::cut("resume_token_wrong"), Message::cut("no"));
        let refuse = PeerMessage::LinkRefuse { code: code_of_peer, message };
        assert_eq!(code(resuming(), &refuse), "link_refused");
        for link in [ready(), parked()] {
            assert_eq!(code(link, &refuse), "peer_message_out_of_place");
        }
    }

    #[test]
    fn a_token_resumes_once_and_the_one_before_until_the_new_one_was_heard() {
        let mut link = Link::accepted(TOKEN, Some(FIRST), 1, 4);
        let open = PeerMessage::LinkOpen { epoch: LinkEpoch(3), lanes: 1, streams: 1 };
        step(&mut link, LinkInput::Message(open));
        assert_eq!(link.check_resume(FIRST).unwrap_err().code(), "resume_unknown", "never ready");
        let arrived = |token, incarnation| LinkInput::Arrived(preface(token, 0, incarnation));
        step(&mut link, arrived(TOKEN, 1));
        step(&mut link, LinkInput::StreamUp(StreamId(0)));
        assert!(link.check_resume(FIRST).is_ok());
        assert_eq!(link.check_resume(SECOND).unwrap_err().code(), "resume_token_wrong");
        // The answer is lost: the peer comes again with what it knows.
        for resume in [SECOND, THIRD] {
            step(&mut link, LinkInput::Lost);
            assert!(!link.expects(TOKEN), "streams of before are not welcome");
            let input = LinkInput::Resumed { shown: FIRST, token: NEXT, resume };
            let mut outputs = step(&mut link, input);
            outputs.extend(close(&mut link, 1));
            let resumed = PeerMessage::LinkResumed { token: NEXT, resume };
            assert_eq!(outputs, [LinkOutput::Send(resumed)]);
            assert!(link.check_resume(FIRST).is_ok() && link.check_resume(resume).is_ok());
        }
        assert!(link.expects(NEXT) && !link.expects(TOKEN));
        step(&mut link, arrived(NEXT, 2));
        assert_eq!(step(&mut link, LinkInput::StreamUp(StreamId(0))), [LinkOutput::Ready]);
        assert_eq!(link.check_resume(FIRST).unwrap_err().code(), "resume_token_stale");
        assert!(link.check_resume(THIRD).is_ok());
        assert_eq!(link.check_resume(SECOND).unwrap_err().code(), "resume_token_wrong");
    }

    #[test]
    fn a_link_whose_peer_knows_no_resuming_is_never_parked() {
        let mut link = Link::dialling(LinkEpoch(1), 1, 1);
        step(&mut link, LinkInput::ChannelUp);
        let accept = PeerMessage::LinkAccept { token: TOKEN, lanes: 1, resume: None };
        step(&mut link, LinkInput::Message(accept));
        let (stream, incarnation) = (StreamId(0), Incarnation(1));
        step(&mut link, LinkInput::Dialled { stream, incarnation, joined: true });
        assert_eq!(step(&mut link, LinkInput::StreamUp(stream)), [LinkOutput::Ready]);
        assert!(!link.may_resume());
    }

    #[test]
    fn a_lane_without_streams_is_an_error() {
        let mut link = ready();
        let down = |id| LinkInput::StreamDown(StreamId(id), StreamEnd::ClosedByPeer);
        link.step(Nanos(0), down(1)).unwrap();
        let error = link.step(Nanos(0), down(3)).unwrap_err();
        assert_eq!(error.code(), "lane_lost");
    }

    #[test]
    fn a_lane_whose_first_stream_ends_waits_for_those_on_their_way() {
        let down = |id| LinkInput::StreamDown(StreamId(id), StreamEnd::ClosedByPeer);
        let mut listening = Link::accepted(TOKEN, None, 1, 4);
        let open = PeerMessage::LinkOpen { epoch: LinkEpoch(3), lanes: 1, streams: 2 };
        step(&mut listening, LinkInput::Message(open));
        let arrived = |id| LinkInput::Arrived(preface(TOKEN, id, 1));
        let mut dialling = Link::dialling(LinkEpoch(3), 1, 2);
        step(&mut dialling, LinkInput::ChannelUp);
        let accept = PeerMessage::LinkAccept { token: TOKEN, lanes: 1, resume: None };
        step(&mut dialling, LinkInput::Message(accept));
        let made = |id| {
            let (stream, incarnation) = (StreamId(id), Incarnation(1));
            LinkInput::Dialled { stream, incarnation, joined: true }
        };
        let ends: [(&mut Link, &dyn Fn(u16) -> LinkInput); 2] =
            [(&mut listening, &arrived), (&mut dialling, &made)];
        for (link, comes) in ends {
            step(link, comes(0));
            assert_eq!(step(link, LinkInput::StreamUp(StreamId(0))), [LinkOutput::Ready]);
            assert_eq!(step(link, down(0)), [LinkOutput::Unready]);
            assert_eq!((link.phase(), link.takes_offers()), (LinkPhase::Joining, false));
            assert_eq!(step(link, comes(1)), [LinkOutput::Join]);
            assert_eq!(step(link, LinkInput::StreamUp(StreamId(1))), [LinkOutput::Ready]);
            let error = link.step(Nanos(0), down(1)).unwrap_err();
            assert_eq!(error.code(), "lane_lost", "nothing is on its way");
        }
    }

    /// A dialling link with two lanes, places for eight streams, and one stream up on each lane.
    fn growing() -> Link {
        let mut link = Link::dialling(LinkEpoch(1), 2, 2);
        link.reserve_places(8);
        let asks = step(&mut link, LinkInput::ChannelUp);
        let (epoch, lanes, streams) = (LinkEpoch(1), 2, 8);
        assert_eq!(asks, [LinkOutput::Send(PeerMessage::LinkOpen { epoch, lanes, streams })]);
        let accept = PeerMessage::LinkAccept { token: TOKEN, lanes: 2, resume: Some(FIRST) };
        let outputs = step(&mut link, LinkInput::Message(accept));
        assert_eq!(dials(&outputs), [(0, 1), (1, 1)], "what it begins with");
        [0, 1].into_iter().for_each(|id| come_up(&mut link, id, 1));
        assert_eq!(link.phase(), LinkPhase::Ready);
        link
    }

    fn dials(outputs: &[LinkOutput]) -> Vec<(u16, u32)> {
        let dial = |output: &LinkOutput| match output {
            LinkOutput::Dial(preface) => Some((preface.stream.0, preface.incarnation.0)),
            _ => None,
        };
        outputs.iter().filter_map(dial).collect()
    }

    fn up(link: &Link) -> Vec<u16> {
        link.streams().filter(|(_, up)| *up).map(|(id, _)| id.0).collect()
    }

    fn come_up(link: &mut Link, id: u16, incarnation: u32) {
        let (stream, incarnation) = (StreamId(id), Incarnation(incarnation));
        step(link, LinkInput::Dialled { stream, incarnation, joined: true });
        step(link, LinkInput::StreamUp(stream));
    }

    #[test]
    fn streams_are_dialled_when_a_lane_wants_more_and_not_again_when_retired() {
        let mut link = growing();
        assert_eq!(step(&mut link, LinkInput::Tick), [], "it has what it wants");
        assert_eq!(dials(&step(&mut link, LinkInput::Want(LaneId(1), 3))), [(3, 1), (5, 1)]);
        assert_eq!(step(&mut link, LinkInput::Want(LaneId(1), 3)), [], "they are on their way");
        [3, 5].into_iter().for_each(|id| come_up(&mut link, id, 1));
        assert_eq!(up(&link), [0, 1, 3, 5]);
        step(&mut link, LinkInput::Want(LaneId(1), 2));
        assert_eq!(step(&mut link, LinkInput::StreamDown(StreamId(3), StreamEnd::Retired)), []);
        assert_eq!(step(&mut link, LinkInput::Tick), []);
        assert_eq!(up(&link), [0, 1, 5]);
        assert_eq!(dials(&step(&mut link, LinkInput::Want(LaneId(1), 64))), [(3, 2), (7, 1)]);
        assert_eq!(dials(&step(&mut link, LinkInput::Want(LaneId(0), 0))), [], "one stays");
    }

    #[test]
    fn a_stream_that_is_lost_is_dialled_again_in_its_own_time_and_no_other_for_it() {
        let mut link = growing();
        step(&mut link, LinkInput::Want(LaneId(0), 2));
        come_up(&mut link, 2, 1);
        let down = LinkInput::StreamDown(StreamId(0), StreamEnd::ClosedByPeer);
        link.step(Nanos(10), down).unwrap();
        assert_eq!(link.step(Nanos(11), LinkInput::Tick).unwrap(), []);
        let later = link.step(Nanos(10 + REDIAL_WAIT_NS.0), LinkInput::Tick).unwrap();
        assert_eq!(dials(&later), [(0, 2)]);
    }

    #[test]
    fn a_link_that_goes_on_dials_what_its_lanes_wanted_last() {
        let mut link = growing();
        step(&mut link, LinkInput::Want(LaneId(0), 3));
        step(&mut link, LinkInput::Lost);
        assert_eq!(step(&mut link, LinkInput::Want(LaneId(1), 2)), [], "not while it is parked");
        step(&mut link, LinkInput::Reconnected(Vec::new()));
        close(&mut link, 8);
        let resumed = PeerMessage::LinkResumed { token: NEXT, resume: SECOND };
        let outputs = step(&mut link, LinkInput::Message(resumed));
        assert_eq!(dials(&outputs), [(0, 2), (1, 2), (2, 2), (3, 1), (4, 2)]);
    }

    #[test]
    fn a_lane_waits_for_streams_that_never_came_only_for_a_time() {
        let lost = |at: Nanos| {
            let mut link = Link::accepted(TOKEN, None, 1, 64);
            let open = PeerMessage::LinkOpen { epoch: LinkEpoch(3), lanes: 1, streams: 64 };
            step(&mut link, LinkInput::Message(open));
            step(&mut link, LinkInput::Arrived(preface(TOKEN, 0, 1)));
            step(&mut link, LinkInput::StreamUp(StreamId(0)));
            link.step(at, LinkInput::StreamDown(StreamId(0), StreamEnd::ClosedByPeer))
        };
        assert_eq!(lost(Nanos(1)).unwrap(), [LinkOutput::Unready]);
        assert_eq!(lost(STREAMS_COME_NS).unwrap_err().code(), "lane_lost");
    }

    #[test]
    fn a_copied_preface_gets_no_stream() {
        let mut link = Link::accepted(TOKEN, None, 1, 4);
        let open = PeerMessage::LinkOpen { epoch: LinkEpoch(3), lanes: 4, streams: 4 };
        let outputs = link.step(Nanos(0), LinkInput::Message(open)).unwrap();
        let accept = PeerMessage::LinkAccept { token: TOKEN, lanes: 1, resume: None };
        assert_eq!(outputs, [LinkOutput::AddLanes { lanes: 1 }, LinkOutput::Send(accept)]);
        let preface = preface(TOKEN, 0, 1);
        assert_eq!(link.step(Nanos(0), LinkInput::Arrived(preface)).unwrap(), [LinkOutput::Join]);
        let again = link.step(Nanos(0), LinkInput::Arrived(preface)).unwrap_err();
        assert_eq!(again.code(), "stream_unknown");
        link.step(Nanos(0), LinkInput::StreamDown(StreamId(0), StreamEnd::Dropped)).unwrap();
        let replayed = link.step(Nanos(0), LinkInput::Arrived(preface)).unwrap_err();
        assert_eq!(replayed.code(), "stream_unknown");
        let outside = StreamPreface { stream: StreamId(4), ..preface };
        assert!(link.step(Nanos(0), LinkInput::Arrived(outside)).is_err());
    }

    #[test]
    fn a_stream_has_the_version_of_its_link() {
        let mut link = Link::accepted(TOKEN, None, 1, 4);
        link.set_version(WireVersion::V2);
        let open = PeerMessage::LinkOpen { epoch: LinkEpoch(3), lanes: 1, streams: 1 };
        step(&mut link, LinkInput::Message(open));
        let first = LinkInput::Arrived(preface(TOKEN, 0, 1));
        assert_eq!(link.step(Nanos(0), first).unwrap_err().code(), "wire_bad_version");
        let second = StreamPreface { version: WireVersion::V2, ..preface(TOKEN, 0, 1) };
        assert_eq!(step(&mut link, LinkInput::Arrived(second)), [LinkOutput::Join]);
    }

    #[test]
    fn more_streams_than_there_is_room_for_are_refused() {
        let open = |streams| PeerMessage::LinkOpen { epoch: LinkEpoch(3), lanes: 2, streams };
        let mut link = Link::accepted(TOKEN, None, 2, 4);
        let error = link.step(Nanos(0), LinkInput::Message(open(5))).unwrap_err();
        assert_eq!(error.code(), "streams_too_many");
        assert!(error.to_string().contains("5 streams"), "{error}");
        let outputs = link.step(Nanos(0), LinkInput::Message(open(4))).unwrap();
        assert_eq!(outputs[0], LinkOutput::AddLanes { lanes: 2 });
        assert_eq!(link.streams_of(LaneId(0)), 2);
    }

    #[test]
    fn messages_at_the_wrong_end_or_time_are_refused() {
        let open = || PeerMessage::LinkOpen { epoch: LinkEpoch(3), lanes: 1, streams: 1 };
        assert!(ready().step(Nanos(0), LinkInput::Message(open())).is_err());
        let mut dialling = Link::dialling(LinkEpoch(1), 1, 1);
        dialling.step(Nanos(0), LinkInput::ChannelUp).unwrap();
        let accept = PeerMessage::LinkAccept { token: TOKEN, lanes: 2, resume: Some(FIRST) };
        assert!(dialling.step(Nanos(0), LinkInput::Message(accept)).is_err());
    }
}
