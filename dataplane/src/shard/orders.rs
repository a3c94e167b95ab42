//! The control thread's commands, carried out.
//!
//! A command that names nothing known is counted and dropped: the control thread may give an order
//! to a session whose failure it has not read yet.

use super::lane::{Lane, Stream};
use super::{Desk, Shard};
use crate::attach::region::{RegionSink, RegionSource};
use crate::attach::stream::{NoMemory, StreamSink, StreamSource};
use crate::link::{Clock, Link};
use crate::port::{Command, Event, SessionEnd, SinkSetup, SourceSetup, StreamEnd, StreamSetup};
use crate::stats::ShardCounter;
use dwcp_ffi::counters::HistogramWriter;
use dwcp_ffi::memory::PagePool;
use dwcp_proto::ids::{LinkId, SessionKey};
use dwcp_proto::wire::frame::Frame;

/// Commands taken in one turn.
const COMMANDS_PER_POLL: usize = 16;

impl<L: Link> Shard<L> {
    /// Takes commands while the event ring has room for all that they may bring.
    pub(super) fn take_commands(&mut self) -> bool {
        let mut worked = false;
        for _ in 0..COMMANDS_PER_POLL {
            if self.desk.events.room() < self.config.events_reserved() {
                break;
            }
            let Some(command) = self.commands.pop() else { break };
            self.obey(command);
            worked = true;
        }
        worked
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::AddLane(setup) => {
                let known = self.desk.lanes.iter().any(|lane| lane.link == setup.link);
                if known || self.desk.lanes.len() == self.config.links_max {
                    self.desk.refuse();
                } else {
                    let (streams, sessions) = (self.config.streams_max, self.config.sessions_max);
                    self.desk.lanes.push(Lane::new(&setup, streams, sessions));
                }
            }
            Command::AddStream { setup, frame_rtt_ns } => self.add_stream(*setup, frame_rtt_ns),
            Command::DropLink { link } => self.drop_link(link),
            Command::CutStreams { link } => self.cut_streams(link),
            Command::OpenSource(setup) => self.open_source(*setup),
            Command::OpenSink(setup) => self.open_sink(*setup),
            Command::OpenStreamSource(setup) => {
                let session = setup.session;
                self.open_stream(session, |desk, lane, pages| {
                    let added = desk.lanes[lane].flow.add_session(session.number);
                    assert!(added.is_ok(), "the flow's table is as large as the shard's");
                    StreamSource::new(*setup, pages).map(|source| desk.stream_sources.push(source))
                });
            }
            Command::OpenStreamSink(setup) => {
                let session = setup.session;
                self.open_stream(session, |desk, lane, pages| {
                    let added = desk.lanes[lane].sink.add_session(session.number);
                    assert!(added.is_ok(), "the flow's table is as large as the shard's");
                    StreamSink::new(*setup, pages).map(|sink| desk.stream_sinks.push(sink))
                });
            }
            Command::AddChannel(setup) => {
                if !self.desk.add_channel(*setup) {
                    self.desk.refuse();
                }
            }
            Command::AddHeld { session, chunk } => {
                if !self.desk.add_held(session, *chunk) {
                    self.desk.refuse();
                }
            }
            Command::StartRound { session, round, last } => {
                let now = self.desk.now;
                match self.desk.source(session) {
                    Some(source) if source.is_ready() => source.start_round(round, last, now),
                    _ => self.desk.refuse(),
                }
            }
            Command::Verify { session } => match self.desk.source(session) {
                Some(source) if source.is_ready() => source.start_digest(),
                Some(_) => self.desk.refuse(),
                None => {
                    if !self.desk.verify_stream(session) {
                        self.desk.refuse();
                    }
                }
            },
            Command::CloseSession { session } => self.close_session(session),
            Command::BreakInvariant => {
                assert!(self.stopping, "an invariant was broken on purpose (test switch)");
            }
            Command::Stop => self.stopping = true,
        }
    }

    fn open_source(&mut self, setup: SourceSetup) {
        let session = setup.session;
        let Some(lane) = self.lane_for_new(session) else {
            self.desk.refuse_session(session, SessionEnd::TableFull);
            return;
        };
        match RegionSource::new(setup) {
            Ok(source) => {
                let added = self.desk.lanes[lane].flow.add_session(session.number);
                assert!(added.is_ok(), "the flow's table is as large as the shard's");
                self.desk.sources.push(source);
                self.desk.report(Event::Opened { session });
            }
            Err(_) => self.desk.refuse_session(session, SessionEnd::NoMemory),
        }
    }

    fn open_sink(&mut self, setup: SinkSetup) {
        let session = setup.session;
        let Some(lane) = self.lane_for_new(session) else {
            self.desk.refuse_session(session, SessionEnd::TableFull);
            return;
        };
        let added = self.desk.lanes[lane].sink.add_session(session.number);
        assert!(added.is_ok(), "the flow's table is as large as the shard's");
        self.desk.sinks.push(RegionSink::new(setup));
        self.desk.report(Event::Opened { session });
    }

    fn open_stream(
        &mut self,
        session: SessionKey,
        open: impl FnOnce(&mut Desk<L::Clock>, usize, &PagePool) -> Result<(), NoMemory>,
    ) {
        let Some(lane) = self.lane_for_new(session) else {
            self.desk.refuse_session(session, SessionEnd::TableFull);
            return;
        };
        match open(&mut self.desk, lane, &self.config.pages) {
            Ok(()) => self.desk.report(Event::Opened { session }),
            Err(_) => {
                self.desk.lanes[lane].forget(session.number);
                self.desk.refuse_session(session, SessionEnd::NoMemory);
            }
        }
    }

    /// The lane of a session that is not open yet, if the shard has room for it.
    fn lane_for_new(&mut self, session: SessionKey) -> Option<usize> {
        if self.desk.is_open(session) || self.desk.sessions() == self.config.sessions_max {
            return None;
        }
        self.desk.lane_of(session)
    }

    fn add_stream(&mut self, setup: StreamSetup, frame_rtt_ns: HistogramWriter) {
        let (link, place) = (setup.link, setup.place);
        let id = place.stream;
        let Some(lane) = self.desk.lanes.iter().position(|lane| lane.link == link) else {
            self.desk.refuse();
            self.desk.report(Event::StreamDown { link, stream: id, cause: StreamEnd::Dropped });
            return;
        };
        match self.link.add_stream(setup) {
            Ok(slot) => {
                if !self.desk.lanes[lane].add_stream(slot, id, place.incarnation) {
                    self.desk.refuse();
                    self.link.close_stream(slot, StreamEnd::Dropped);
                    let cause = StreamEnd::Dropped;
                    self.desk.report(Event::StreamDown { link, stream: id, cause });
                    return;
                }
                self.desk.streams[slot.index()] = Some(Stream::new(link, place, frame_rtt_ns));
                // The first record of each side proves that it has the keys.
                self.desk.queue(slot, Frame::Ping { stamp: self.desk.now.0 });
                self.desk.ask_again(lane);
            }
            Err(cause) => self.desk.report(Event::StreamDown { link, stream: id, cause }),
        }
    }

    /// Closes the link's streams; its lane goes with the last of them.
    fn drop_link(&mut self, link: LinkId) {
        let Some(lane) = self.desk.lanes.iter_mut().find(|lane| lane.link == link) else {
            self.desk.refuse();
            return;
        };
        lane.dropped = true;
        if lane.is_empty() {
            self.desk.sessions_lost(link, StreamEnd::Dropped);
            self.desk.remove_lane(link);
            return;
        }
        self.cut_streams(link);
    }

    /// Closes the link's streams; its lane stays.
    fn cut_streams(&mut self, link: LinkId) {
        for slot in self.desk.lanes.iter().filter(|l| l.link == link).flat_map(Lane::slots) {
            self.link.close_stream(slot, StreamEnd::Dropped);
        }
    }

    /// Frees the session's memory. Frames of it that are still under way are ignored when they
    /// come.
    fn close_session(&mut self, session: SessionKey) {
        let before = self.desk.sessions();
        self.desk.close_stream_session(session);
        self.desk.sources.retain(|source| source.session != session);
        self.desk.sinks.retain(|sink| sink.session != session);
        if before == self.desk.sessions() {
            self.desk.refuse();
            return;
        }
        if let Some(lane) = self.desk.lane_of(session) {
            self.desk.lanes[lane].forget(session.number);
        }
        if self.desk.sessions() == 0 {
            self.scratch.scrub();
            self.desk.decoder.scrub();
            self.desk.read_back.scrub();
        }
        self.link.scrub();
        self.desk.report(Event::Closed { session });
    }
}

impl<C: Clock> Desk<C> {
    fn is_open(&self, session: SessionKey) -> bool {
        self.sources.iter().any(|source| source.session == session)
            || self.sinks.iter().any(|sink| sink.session == session)
            || self.stream_sources.iter().any(|source| source.session == session)
            || self.stream_sinks.iter().any(|sink| sink.session == session)
    }

    fn sessions(&self) -> usize {
        self.sources.len() + self.sinks.len() + self.stream_sources.len() + self.stream_sinks.len()
    }

    fn refuse(&mut self) {
        self.stats.add(ShardCounter::CommandsRefused.index(), 1);
    }

    fn refuse_session(&mut self, session: SessionKey, cause: SessionEnd) {
        self.refuse();
        self.report(Event::Failed { session, cause });
    }
}
