//! One link's life: channel, agreement on lanes and streams, streams coming and going, the end.
//!
//! Pure: `step(now, input)` returns what to do. Owned by the core, one per link. A link is
//! directed: the daemon that dialled sends pages. It is ready while every lane has a stream that
//! proved its keys; it ends when its channel ends or a lane has lost all its streams. A lost stream
//! of a lane that has others is dialled again as its next incarnation.

use super::error::PeerError;
use crate::limits::REDIAL_WAIT_NS;
use dwcp_dataplane::port::StreamEnd;
use dwcp_proto::ids::{Incarnation, LaneId, LinkEpoch, StreamId};
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::limits::{LANES_MAX, STREAMS_MAX};
use dwcp_proto::wire::peer::PeerMessage;
use dwcp_proto::wire::preface::StreamPreface;
use dwcp_proto::wire::token::LinkToken;

/// What happens to a link.
#[derive(Debug)]
pub(crate) enum LinkInput {
    /// Dialling end: the channel stands.
    ChannelUp,
    /// A link message came.
    Message(PeerMessage),
    /// Dialling end: a stream's connection stands, or does not.
    Dialled { stream: StreamId, incarnation: Incarnation, joined: bool },
    /// Listening end: a connection with our token came.
    Arrived(StreamPreface),
    /// A stream proved its keys.
    StreamUp(StreamId),
    /// A stream ended.
    StreamDown(StreamId, StreamEnd),
    /// Time passed.
    Tick,
}

/// What to do for a link.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LinkOutput {
    /// Say this on the channel.
    Send(PeerMessage),
    /// Make the shards' parts.
    AddLanes { lanes: u16 },
    /// Connect a stream.
    Dial(StreamPreface),
    /// Take the connection that just came or was made.
    Join,
    /// Every lane works.
    Ready,
}

/// Where a link stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkPhase {
    /// The channel is being made.
    Dialling,
    /// Lanes and streams are being agreed on.
    Asking,
    /// Streams come up.
    Joining,
    /// Every lane works.
    Ready,
}

impl LinkPhase {
    /// The word for people.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Dialling => "dialling",
            Self::Asking => "asking",
            Self::Joining => "joining",
            Self::Ready => "ready",
        }
    }
}

/// What became of a stream's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nothing is there; the dialling end tries again then.
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
pub(crate) struct Link {
    dialled: bool,
    epoch: LinkEpoch,
    lanes: u16,
    lanes_max: u16,
    streams: Vec<Stream>,
    streams_wanted: u16,
    streams_max: u16,
    token: LinkToken,
    phase: LinkPhase,
}

impl Link {
    /// The dialling end. `lanes` is what this host can serve, `streams` what it wants.
    pub(crate) fn dialling(epoch: LinkEpoch, lanes: u16, streams: u16) -> Self {
        let streams = streams.clamp(1, STREAMS_MAX);
        let streams_max = streams;
        Self {
            dialled: true,
            epoch,
            lanes: 0,
            lanes_max: lanes.min(LANES_MAX).min(streams),
            streams: Vec::new(),
            streams_wanted: streams,
            streams_max,
            token: LinkToken([0; 16]),
            phase: LinkPhase::Dialling,
        }
    }

    /// The listening end, with the token that streams must show. `lanes` and `streams_max` are what
    /// this host serves.
    pub(crate) fn accepted(token: LinkToken, lanes: u16, streams_max: u16) -> Self {
        Self {
            dialled: false,
            epoch: LinkEpoch(0),
            lanes: 0,
            lanes_max: lanes.min(LANES_MAX),
            streams: Vec::new(),
            streams_wanted: 0,
            streams_max,
            token,
            phase: LinkPhase::Asking,
        }
    }

    /// True at the end that dialled.
    pub(crate) fn is_dialled(&self) -> bool {
        self.dialled
    }

    /// Where it stands.
    pub(crate) fn phase(&self) -> LinkPhase {
        self.phase
    }

    /// Part of every key's context.
    pub(crate) fn epoch(&self) -> LinkEpoch {
        self.epoch
    }

    /// How many lanes were agreed on; 0 before that.
    pub(crate) fn lanes(&self) -> u16 {
        self.lanes
    }

    /// The lane that a stream belongs to.
    pub(crate) fn lane_of(&self, stream: StreamId) -> LaneId {
        LaneId(stream.0 % self.lanes.max(1))
    }

    /// How many streams belong to a lane, once that is agreed.
    pub(crate) fn streams_of(&self, lane: LaneId) -> usize {
        self.streams().filter(|(stream, _)| self.lane_of(*stream) == lane).count()
    }

    /// Whether a connection that shows this token is ours.
    pub(crate) fn expects(&self, token: LinkToken) -> bool {
        !self.dialled && self.phase != LinkPhase::Asking && self.token == token
    }

    /// The newest incarnation of a stream, if there is such a stream.
    pub(crate) fn incarnation(&self, stream: StreamId) -> Option<Incarnation> {
        self.streams.get(usize::from(stream.0)).map(|stream| stream.incarnation)
    }

    /// Each stream and whether it works.
    pub(crate) fn streams(&self) -> impl Iterator<Item = (StreamId, bool)> + '_ {
        (0..).zip(&self.streams).map(|(id, stream)| (StreamId(id), stream.place == Place::Up))
    }

    /// Takes an input; an error ends the link.
    pub(crate) fn step(
        &mut self,
        now: Nanos,
        input: LinkInput,
    ) -> Result<Vec<LinkOutput>, PeerError> {
        match input {
            LinkInput::ChannelUp => {
                assert!(self.phase == LinkPhase::Dialling, "a channel comes up once");
                self.phase = LinkPhase::Asking;
                Ok(vec![LinkOutput::Send(PeerMessage::LinkOpen {
                    epoch: self.epoch,
                    lanes: self.lanes_max,
                    streams: self.streams_wanted,
                })])
            }
            LinkInput::Message(message) => self.message(message),
            LinkInput::Dialled { stream, incarnation, joined } => {
                Ok(self.dialled(now, stream, incarnation, joined))
            }
            LinkInput::Arrived(preface) => self.arrived(preface),
            LinkInput::StreamUp(stream) => Ok(self.stream_up(stream)),
            LinkInput::StreamDown(stream, cause) => {
                self.stream_down(now, stream, cause).map(|()| Vec::new())
            }
            LinkInput::Tick => Ok(self.redial(now)),
        }
    }

    fn message(&mut self, message: PeerMessage) -> Result<Vec<LinkOutput>, PeerError> {
        let asking = self.phase == LinkPhase::Asking;
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
                self.phase = LinkPhase::Joining;
                let accept = PeerMessage::LinkAccept { token: self.token, lanes: self.lanes };
                Ok(vec![LinkOutput::AddLanes { lanes: self.lanes }, LinkOutput::Send(accept)])
            }
            PeerMessage::LinkAccept { token, lanes } if asking && self.dialled => {
                if lanes > self.lanes_max {
                    return Err(PeerError::OutOfPlace { what: "more lanes than asked for" });
                }
                self.token = token;
                self.lanes = lanes;
                self.set_streams(self.streams_wanted);
                self.phase = LinkPhase::Joining;
                let mut outputs = vec![LinkOutput::AddLanes { lanes }];
                outputs.extend(self.redial(Nanos(0)));
                Ok(outputs)
            }
            PeerMessage::LinkRefuse { code, message } if asking && self.dialled => {
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

    /// Dials every empty place whose time has come.
    fn redial(&mut self, now: Nanos) -> Vec<LinkOutput> {
        let token = self.token;
        let mut outputs = Vec::new();
        if !self.dialled {
            return outputs;
        }
        for (id, stream) in (0..).zip(&mut self.streams) {
            if matches!(stream.place, Place::Empty { retry_at } if retry_at <= now) {
                stream.place = Place::Dialling;
                stream.incarnation = stream.incarnation.next();
                let incarnation = stream.incarnation;
                let preface = StreamPreface { token, stream: StreamId(id), incarnation };
                outputs.push(LinkOutput::Dial(preface));
            }
        }
        outputs
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
    ) -> Result<(), PeerError> {
        let lane = self.lane_of(stream).0;
        let Some(stream) = self.streams.get_mut(usize::from(stream.0)) else { return Ok(()) };
        if !matches!(stream.place, Place::Joined | Place::Up) {
            return Ok(());
        }
        stream.back_off(now);
        if self.phase == LinkPhase::Ready && !self.lane_is_up(lane) {
            return Err(PeerError::LaneLost { lane, cause });
        }
        Ok(())
    }
}

impl Stream {
    fn back_off(&mut self, now: Nanos) {
        self.place = Place::Empty { retry_at: now + self.wait };
        self.wait = Nanos((self.wait.0 * 2).min(REDIAL_WAIT_NS.1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: LinkToken = LinkToken([7; 16]);

    /// A dialling link with two lanes and four streams, all up.
    fn ready() -> Link {
        let mut link = Link::dialling(LinkEpoch(1), 2, 4);
        link.step(Nanos(0), LinkInput::ChannelUp).unwrap();
        let accept = PeerMessage::LinkAccept { token: TOKEN, lanes: 2 };
        let outputs = link.step(Nanos(0), LinkInput::Message(accept)).unwrap();
        assert_eq!(outputs.len(), 1 + 4);
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
        let preface =
            StreamPreface { token: TOKEN, stream: StreamId(2), incarnation: Incarnation(2) };
        assert_eq!(link.step(later, LinkInput::Tick).unwrap(), [LinkOutput::Dial(preface)]);
    }

    #[test]
    fn a_lane_without_streams_ends_the_link() {
        let mut link = ready();
        let down = |id| LinkInput::StreamDown(StreamId(id), StreamEnd::ClosedByPeer);
        link.step(Nanos(0), down(1)).unwrap();
        let error = link.step(Nanos(0), down(3)).unwrap_err();
        assert_eq!(error.code(), "lane_lost");
    }

    #[test]
    fn a_copied_preface_gets_no_stream() {
        let mut link = Link::accepted(TOKEN, 1, 4);
        let open = PeerMessage::LinkOpen { epoch: LinkEpoch(3), lanes: 4, streams: 4 };
        let outputs = link.step(Nanos(0), LinkInput::Message(open)).unwrap();
        let accept = PeerMessage::LinkAccept { token: TOKEN, lanes: 1 };
        assert_eq!(outputs, [LinkOutput::AddLanes { lanes: 1 }, LinkOutput::Send(accept)]);
        let preface =
            StreamPreface { token: TOKEN, stream: StreamId(0), incarnation: Incarnation(1) };
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
    fn more_streams_than_there_is_room_for_are_refused() {
        let open = |streams| PeerMessage::LinkOpen { epoch: LinkEpoch(3), lanes: 2, streams };
        let mut link = Link::accepted(TOKEN, 2, 4);
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
        let accept = PeerMessage::LinkAccept { token: TOKEN, lanes: 2 };
        assert!(dialling.step(Nanos(0), LinkInput::Message(accept)).is_err());
    }
}
