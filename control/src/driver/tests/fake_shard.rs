//! A shard that moves nothing, as the tests of the driver tell it to.

use dwcp_dataplane::port::{
    ChannelEnd, ChannelId, Command, Event, RoundStats, ShardPort, StreamEnd,
};
use dwcp_ffi::counters::{counters, histogram};
use dwcp_ffi::poll::{Waker, waker};
use dwcp_ffi::spsc::{Consumer, Producer, ring};
use dwcp_proto::ids::{LinkId, SessionKey, StreamId};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::rc::Rc;

/// What a test tells a fake shard to hold back, and what it saw.
#[derive(Debug, Default)]
pub(super) struct Script {
    /// Reports of these kinds wait until this is false again.
    pub(super) hold_opened: Cell<bool>,
    pub(super) hold_closed: Cell<bool>,
    pub(super) hold_rounds: Cell<bool>,
    /// Rounds take until this is false again; other reports don't wait for them.
    pub(super) long_rounds: Cell<bool>,
    /// At a sink: it has not found that all pages match.
    pub(super) hold_verified: Cell<bool>,
    /// At a sink: what its QEMU got is not what was sent.
    pub(super) bad_digest: Cell<bool>,
    /// Reports that all of a migration stream was carried wait until this is false again.
    pub(super) hold_digest: Cell<bool>,
    /// Channels of migration streams that were handed over.
    pub(super) channels: Cell<u16>,
    /// Pages that a sink alone holds, handed over.
    pub(super) held: Cell<usize>,
    /// The VMM at the peer ends its migration socket as soon as there is one here.
    pub(super) peer_ends: Cell<bool>,
    /// Ends of channels of the first migration stream, to be reported.
    pub(super) ends: RefCell<Vec<(u16, ChannelEnd)>>,
    /// The zstd level of the newest session, at a source.
    pub(super) zstd_level: Cell<i32>,
    /// The loop of the control plane is not polled, as if its process were stopped.
    pub(super) stopped: Cell<bool>,
}

/// Shards of each daemon: links have two lanes, or one that may lie on either.
pub(super) const SHARDS: usize = 2;

/// A shard that moves nothing and says that all went well.
pub(super) struct FakeShard {
    commands: Consumer<Command>,
    events: Producer<Event>,
    wake: Waker,
    script: Rc<Script>,
    /// Links that have a lane here.
    links: BTreeSet<LinkId>,
    held: Vec<Event>,
    /// Rounds under way.
    rounds: Vec<Event>,
    sinks: Vec<SessionKey>,
    /// Sessions of virtual machines.
    streams: Vec<SessionKey>,
    /// Sockets stay open as long as the shard has them.
    sockets: Vec<(LinkId, StreamId, OwnedFd)>,
    /// Sessions that the sources of all daemons have asked to verify.
    verified: Rc<RefCell<usize>>,
    verified_seen: usize,
}

impl FakeShard {
    pub(super) fn new(
        wake: Waker,
        script: &Rc<Script>,
        verified: &Rc<RefCell<usize>>,
    ) -> (ShardPort, Self) {
        let (commands, shard_commands) = ring(64);
        let (shard_events, events) = ring(64);
        let (wake_shard, _) = waker().unwrap();
        let (stats, encode_ns) = (counters().1, histogram().1);
        let shard = Self {
            commands: shard_commands,
            events: shard_events,
            wake,
            script: Rc::clone(script),
            links: BTreeSet::new(),
            held: Vec::new(),
            rounds: Vec::new(),
            sinks: Vec::new(),
            streams: Vec::new(),
            sockets: Vec::new(),
            verified: Rc::clone(verified),
            verified_seen: *verified.borrow(),
        };
        (ShardPort { commands, events, wake_shard, stats, encode_ns }, shard)
    }

    pub(super) fn poll(&mut self) {
        while let Some(command) = self.commands.pop() {
            self.obey(command);
        }
        let held = self.script.hold_verified.get();
        if !held && *self.verified.borrow() > self.verified_seen && !self.sinks.is_empty() {
            self.verified_seen = *self.verified.borrow();
            self.held.extend(self.sinks.drain(..).map(|session| Event::Verified { session }));
        }
        if let Some(session) = self.streams.first().copied() {
            let ends = self.script.ends.borrow_mut().split_off(0).into_iter();
            self.held.extend(ends.map(|(channel, end)| {
                let channel = ChannelId(channel);
                Event::ChannelEnded { session, channel, end }
            }));
        }
        if !self.script.long_rounds.get() {
            self.held.append(&mut self.rounds);
        }
        // What is held back holds back what follows it, as a ring does.
        let script = &self.script;
        let ready = self.held.iter().position(|event| match event {
            Event::Opened { .. } => script.hold_opened.get(),
            Event::Closed { .. } => script.hold_closed.get(),
            Event::RoundDone { .. } => script.hold_rounds.get(),
            Event::StreamDigest { .. } => script.hold_digest.get(),
            _ => false,
        });
        let ready: Vec<Event> = self.held.drain(..ready.unwrap_or(self.held.len())).collect();
        if !ready.is_empty() {
            ready.into_iter().for_each(|event| self.events.push(event).unwrap());
            self.wake.wake();
        }
    }

    fn drop_streams(&mut self, link: LinkId) {
        let dropped = |(of, _, _): &mut (LinkId, StreamId, OwnedFd)| *of == link;
        for (link, stream, _) in self.sockets.extract_if(.., dropped) {
            let cause = StreamEnd::Dropped;
            self.held.push(Event::StreamDown { link, stream, cause });
        }
    }

    fn obey(&mut self, command: Command) {
        if let Some(link) = link_of(&command) {
            assert!(self.links.contains(&link), "no lane of this link is here: {command:?}");
        }
        match command {
            Command::AddLane(setup) => {
                assert!(self.links.insert(setup.link), "a link has one lane on a shard");
            }
            Command::AddStream { setup, .. } => {
                let (link, stream) = (setup.link, setup.place.stream);
                self.held.push(Event::StreamUp { link, stream });
                self.sockets.push((link, stream, setup.socket));
            }
            Command::OpenSource(setup) => {
                if let dwcp_dataplane::port::Coding::Full { zstd_level } = setup.coding {
                    self.script.zstd_level.set(zstd_level);
                }
                self.held.push(Event::Opened { session: setup.session });
            }
            Command::OpenSink(setup) => {
                self.sinks.push(setup.session);
                self.held.push(Event::Opened { session: setup.session });
            }
            Command::StartRound { session, round, .. } => {
                let stats = RoundStats { pages: 4, pages_sent: 3, wire_bytes: 99, nanos: 7 };
                self.rounds.push(Event::RoundDone { session, round, stats });
            }
            Command::OpenStreamSource(setup) => {
                self.streams.push(setup.session);
                self.held.push(Event::Opened { session: setup.session });
            }
            Command::OpenStreamSink(setup) => {
                self.streams.push(setup.session);
                self.held.push(Event::Opened { session: setup.session });
            }
            Command::AddChannel(setup) => {
                self.script.channels.set(self.script.channels.get() + 1);
                if self.script.peer_ends.get() {
                    let (session, channel, end) = (setup.session, setup.channel, ChannelEnd::Peer);
                    self.held.push(Event::ChannelEnded { session, channel, end });
                }
            }
            Command::AddHeld { session, chunk } => self.hold(session, chunk.pages()),
            Command::Verify { session } if self.streams.contains(&session) => {
                let digest = [u8::from(self.script.bad_digest.get()); 16];
                self.held.push(Event::StreamDigest { session, frames: 9, digest });
            }
            Command::Verify { session } => {
                *self.verified.borrow_mut() += 1;
                self.held.push(Event::Verified { session });
            }
            Command::CloseSession { session } => {
                self.sinks.retain(|sink| *sink != session);
                self.streams.retain(|stream| *stream != session);
                let of = session;
                self.rounds.clear();
                self.held.retain(
                    |event| !matches!(event, Event::StreamDigest { session, .. } if *session == of),
                );
                self.held.push(Event::Closed { session });
            }
            Command::DropLink { link } | Command::CutStreams { link } => {
                self.drop_streams(link);
            }
            Command::Stop => self.held.push(Event::Stopped),
            Command::BreakInvariant => {}
        }
    }
}

impl FakeShard {
    fn hold(&self, session: SessionKey, pages: usize) {
        assert!(self.streams.contains(&session), "pages come after their session");
        self.script.held.set(self.script.held.get() + pages);
    }
}

/// The link whose lane a command is for.
fn link_of(command: &Command) -> Option<LinkId> {
    match command {
        Command::AddStream { setup, .. } => Some(setup.link),
        Command::DropLink { link } | Command::CutStreams { link } => Some(*link),
        Command::OpenSource(setup) => Some(setup.session.link),
        Command::OpenSink(setup) => Some(setup.session.link),
        Command::OpenStreamSource(setup) => Some(setup.session.link),
        Command::OpenStreamSink(setup) => Some(setup.session.link),
        Command::AddChannel(setup) => Some(setup.session.link),
        Command::AddHeld { session, .. } => Some(session.link),
        Command::StartRound { session, .. }
        | Command::Verify { session }
        | Command::CloseSession { session } => Some(session.link),
        Command::AddLane(_) | Command::BreakInvariant | Command::Stop => None,
    }
}
