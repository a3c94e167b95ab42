//! A host: a daemon's shards and tables while it is up, and what outlives the daemon.
//!
//! The daemon's end is sudden: shards, links and machines are dropped as they are; the disk keeps
//! what it has. Commands wait here while a shard's ring is full, as with the product's driver.

use super::agenda::Task;
use super::disk::Disk;
use super::links::LinkEntry;
use super::sink::SinkSide;
use super::source::SourceSide;
use super::{Record, World, WorldError};
use crate::fact::{Fact, Order};
use dwcp_control::link::LinkInput;
use dwcp_dataplane::link::sim::{Rng, Side, SimClock, SimConfig, SimLink};
use dwcp_dataplane::port::{Command, Event, ShardPort};
use dwcp_dataplane::shard::{PollMode, Shard, ShardConfig, ShardEnds};
use dwcp_ffi::memory::PagePool;
use dwcp_ffi::poll::{WakeReceiver, waker};
use dwcp_ffi::uring::Wait;
use dwcp_proto::ids::{LaneId, LinkId, SessionId};
use dwcp_proto::time::Nanos;
use std::collections::{BTreeMap, VecDeque};

/// Room for records on their way into a connection.
const SEND_SLOTS: usize = 10;
const STREAMS_MAX: usize = 8;
const SESSIONS_MAX: usize = 4;
/// Sessions of regions take none of it.
const POOL_BYTES: u64 = 1;

/// The longest sleep of a shard.
const PARK_MAX: Nanos = Nanos(200_000_000);

pub(crate) struct SimShard {
    shard: Shard<SimLink>,
    port: ShardPort,
    waiting: VecDeque<Command>,
    /// When its next turn is, and until when the last one takes.
    next_poll: Nanos,
    busy_until: Nanos,
    // The shard's ends wake these.
    _woken: [WakeReceiver; 2],
}

pub(crate) struct Host {
    pub(crate) clock: SimClock,
    pub(crate) disk: Disk,
    rng: Rng,
    /// How many daemons there were.
    pub(crate) life: u32,
    pub(crate) shards: Vec<SimShard>,
    pub(crate) links: BTreeMap<LinkId, LinkEntry>,
    pub(crate) next_link: LinkId,
    pub(crate) sources: BTreeMap<SessionId, SourceSide>,
    pub(crate) sinks: BTreeMap<SessionId, SinkSide>,
    /// When a control channel may be dialled, and whether one is.
    pub(crate) dial_at: Nanos,
    pub(crate) dial_wait: Nanos,
    pub(crate) is_dialling: bool,
    /// When the control thread looks at its shards' events, if it is to.
    next_look: Nanos,
    /// Turns take long.
    pub(crate) is_slow: bool,
}

impl Host {
    pub(super) fn new(clock: SimClock, mut rng: Rng) -> Self {
        Self {
            clock,
            disk: Disk::new(rng.fork()),
            rng,
            life: 0,
            shards: Vec::new(),
            links: BTreeMap::new(),
            next_link: LinkId(0),
            sources: BTreeMap::new(),
            sinks: BTreeMap::new(),
            dial_at: Nanos(0),
            dial_wait: Nanos(0),
            is_dialling: false,
            next_look: Nanos(0),
            is_slow: false,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        !self.shards.is_empty()
    }

    /// Nothing of any session is left but what the disk says.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.is_up() && self.sources.is_empty() && self.sinks.is_empty() && self.disk.is_idle()
    }

    /// The most orders that wait for one of its shards.
    pub(crate) fn orders_waiting(&self) -> Option<usize> {
        self.shards.iter().map(|shard| shard.waiting.len()).max()
    }

    /// The host's own time.
    pub(crate) fn now(&self) -> Nanos {
        dwcp_dataplane::link::Clock::now(&self.clock)
    }

    /// How long a turn of a shard takes.
    fn turn_nanos(&mut self) -> Nanos {
        let longest = if self.is_slow { 20_000_000 } else { 300_000 };
        Nanos(self.rng.within(5_000, longest))
    }
}

impl World {
    pub(super) fn start_host(&mut self, side: Side) -> Result<(), WorldError> {
        let lanes = self.plan.lanes[super::index(side)];
        let (fabric, clock) = (self.fabric.clone(), self.host(side).clock.clone());
        let mut shards = Vec::new();
        for index in 0..usize::from(lanes) {
            let config = ShardConfig {
                index,
                core: None,
                poll: PollMode::Park,
                send_slots: SEND_SLOTS,
                lock_memory: false,
                zero_copy: false,
                sessions_max: SESSIONS_MAX,
                streams_max: STREAMS_MAX,
                links_max: 3,
                pages: PagePool::new(POOL_BYTES)?,
            };
            let (control, woken_control) = waker()?;
            let (ends, port, woken) = ShardEnds::new(&config, control)?;
            let sizes = SimConfig {
                streams_max: STREAMS_MAX,
                send_slots: SEND_SLOTS,
                watches_max: config.pipes_max() * 2,
            };
            let link = SimLink::new(sizes, fabric.clone(), clock.clone(), side)?;
            shards.push(SimShard {
                shard: Shard::new(config, link, ends)?,
                port,
                waiting: VecDeque::new(),
                next_poll: Nanos(u64::MAX),
                busy_until: Nanos(0),
                _woken: [woken_control, woken],
            });
        }
        let now = self.now();
        let host = self.host_mut(side);
        host.life += 1;
        host.shards = shards;
        let life = host.life;
        self.agenda.add(now, Task::Tick { side, life });
        Ok(())
    }

    /// The daemon ends at once.
    pub(super) fn crash(&mut self, side: Side) {
        if !self.host(side).is_up() {
            return;
        }
        self.note(Fact::Crashed(side));
        let due = self.now() + self.fabric.conditions(side).delay;
        for entry in std::mem::take(&mut self.host_mut(side).links).into_values() {
            if let Some(channel) = entry.channel {
                self.channels.close(channel, side, due);
            }
        }
        let host = self.host_mut(side);
        host.life += 1;
        host.shards.clear();
        host.sources.clear();
        host.sinks.clear();
        host.disk.crash();
        host.is_dialling = false;
        host.next_look = Nanos(0);
        // Connections that no shard had yet end as well.
        for connection in self.fabric.connections() {
            self.fabric.close(connection, side);
        }
        self.agenda.add(due, Task::Channel { side: side.across() });
    }

    /// The daemon starts again and reads its journal.
    pub(super) fn restart(&mut self, side: Side) -> Result<(), WorldError> {
        if self.host(side).is_up() {
            return Ok(());
        }
        self.start_host(side)?;
        self.note(Fact::Restarted(side));
        let now = self.now();
        let host = self.host_mut(side);
        (host.dial_at, host.dial_wait) = (now, Nanos(0));
        if side == Side::Near {
            let records: Vec<_> = self.host(side).disk.records().collect();
            for (session, record) in records {
                if let Record::Source(record) = record {
                    self.restore_source(session, record);
                }
            }
            self.restart_clients();
        }
        Ok(())
    }

    /// Gives a shard an order.
    pub(super) fn send(&mut self, side: Side, lane: LaneId, command: Command) {
        let (session, order) = match &command {
            Command::OpenSource(setup) => (Some(setup.session), Order::Open),
            Command::OpenSink(setup) => (Some(setup.session), Order::Open),
            Command::StartRound { session, round, .. } => (Some(*session), Order::Round(round.0)),
            Command::Verify { session } => (Some(*session), Order::Verify),
            Command::CloseSession { session } => (Some(*session), Order::Close),
            _ => (None, Order::Close),
        };
        if let Some(session) = session {
            self.note(Fact::Ordered { side, lane, session, order });
        }
        let Some(shard) = self.host_mut(side).shards.get_mut(usize::from(lane.0)) else { return };
        shard.waiting.push_back(command);
        let due = self.now() + Nanos(1000);
        self.wake_shard(side, lane, due);
    }

    /// Wakes all shards of a host.
    pub(super) fn wake_shards(&mut self, side: Side, due: Nanos) {
        for lane in 0..self.host(side).shards.len() {
            self.wake_shard(side, LaneId(lane as u16), due);
        }
    }

    fn wake_shard(&mut self, side: Side, lane: LaneId, due: Nanos) {
        let host = self.host_mut(side);
        let life = host.life;
        let Some(shard) = host.shards.get_mut(usize::from(lane.0)) else { return };
        let due = due.max(shard.busy_until);
        if due < shard.next_poll {
            shard.next_poll = due;
            self.agenda.add(due, Task::Poll { side, lane, life });
        }
    }

    /// One turn of a shard, then what it reports.
    pub(super) fn poll_shard(&mut self, side: Side, lane: LaneId, life: u32) {
        let now = self.now();
        let host = self.host_mut(side);
        if host.life != life {
            return;
        }
        let turn = host.turn_nanos();
        let Some(shard) = host.shards.get_mut(usize::from(lane.0)) else { return };
        if shard.next_poll > now {
            // It was woken earlier than this turn was meant for, and has slept again since.
            return;
        }
        while let Some(command) = shard.waiting.pop_front() {
            if let Err(full) = shard.port.send(command) {
                shard.waiting.push_front(full.0);
                break;
            }
        }
        let worked = shard.shard.poll(Wait::No) || !shard.waiting.is_empty();
        shard.busy_until = now + turn;
        let next = if worked { shard.busy_until } else { now + PARK_MAX };
        shard.next_poll = next;
        self.agenda.add(next, Task::Poll { side, lane, life });
        let host = self.host_mut(side);
        let heard = now + host.turn_nanos();
        if host.next_look == Nanos(0) {
            host.next_look = heard;
            self.agenda.add(heard, Task::Events { side, life });
        }
    }

    /// The control thread looks at what its shards report.
    pub(super) fn take_events(&mut self, side: Side, life: u32) {
        if self.host(side).life != life {
            return;
        }
        self.host_mut(side).next_look = Nanos(0);
        for lane in 0..self.host(side).shards.len() {
            while let Some(shard) = self.host_mut(side).shards.get_mut(lane)
                && let Some(event) = shard.port.events.pop()
            {
                self.on_event(side, LaneId(lane as u16), event);
            }
        }
    }

    fn on_event(&mut self, side: Side, lane: LaneId, event: Event) {
        self.note(Fact::Reported { side, lane, event });
        match event {
            Event::StreamUp { link, stream } => self.stream_up(side, link, stream),
            Event::StreamDown { link, stream, cause } => {
                self.stream_down(side, link, stream, cause);
            }
            Event::Streams { link, open, .. } => {
                self.link_step(side, link, LinkInput::Want(lane, open));
            }
            Event::Opened { session }
            | Event::RoundDone { session, .. }
            | Event::Verified { session }
            | Event::Failed { session, .. }
            | Event::Closed { session } => match side {
                Side::Near => self.source_event(session, lane, event),
                Side::Far => self.sink_event(session, lane, event),
            },
            Event::Stream { .. }
            | Event::ChannelEnded { .. }
            | Event::StreamDigest { .. }
            | Event::Stopped => {}
        }
    }
}
