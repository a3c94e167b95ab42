//! A simulated world: two hosts with real shards and real machines, a network, disks, clients, and
//! a clock that jumps from one event to the next.
//!
//! One thread owns all of it. Nothing in here reads a clock, a file or a random device of the
//! machine, so a seed gives the same run. What is done in place of the product's driver (whose work
//! is I/O) is in `links`, `source` and `sink`, and follows the rules that the machines state.

mod agenda;
mod channel;
mod disk;
mod faults;
mod host;
mod job;
mod links;
mod sink;
mod source;

pub(crate) use agenda::Task;
pub(crate) use disk::Record;
pub(crate) use host::Host;
pub(crate) use job::{ClientState, Job};

use crate::fact::{Fact, Trace};
use crate::plan::Plan;
use agenda::Agenda;
use channel::{Came, Channels};
use dwcp_dataplane::link::sim::{Fabric, Rng, Side, SimClock};
use dwcp_proto::ids::SessionId;
use dwcp_proto::time::Nanos;

/// Both sides, for loops.
pub(crate) const SIDES: [Side; 2] = [Side::Near, Side::Far];

/// How often machines are asked what is due.
const TICK_EVERY: Nanos = Nanos(50_000_000);

/// When a healed world must be at rest: several of the longest waits of the product.
pub(crate) const PATIENCE: Nanos = Nanos(120_000_000_000);

pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) clock: SimClock,
    pub(crate) fabric: Fabric,
    pub(crate) hosts: [Host; 2],
    pub(crate) jobs: Vec<Job>,
    /// All sessions that ever were, with their jobs.
    pub(crate) sessions: Vec<(SessionId, usize)>,
    pub(crate) trace: Trace,
    /// What happened since the invariants looked last.
    pub(crate) facts: Vec<Fact>,
    /// When all harm was over.
    pub(crate) healed_at: Option<Nanos>,
    channels: Channels,
    agenda: Agenda,
    rng: Rng,
    next_epoch: u64,
}

impl World {
    /// The world of a seed, before its first event.
    pub(crate) fn new(seed: u64, prints: bool) -> Result<Self, WorldError> {
        let mut rng = Rng::new(seed);
        let plan = Plan::draw(&mut rng);
        let clock = SimClock::default();
        let fabric = Fabric::new(clock.clone(), rng.fork());
        for (side, conditions) in SIDES.into_iter().zip(plan.conditions) {
            fabric.set_conditions(side, conditions);
        }
        let hosts = SIDES.map(|_| Host::new(clock.sibling(), rng.fork()));
        let mut jobs = Vec::new();
        for job in &plan.jobs {
            jobs.push(Job::new(*job, rng.fork())?);
        }
        let mut world = Self {
            clock,
            fabric,
            hosts,
            jobs,
            sessions: Vec::new(),
            trace: Trace::new(prints),
            facts: Vec::new(),
            healed_at: None,
            channels: Channels::default(),
            agenda: Agenda::default(),
            rng,
            next_epoch: 1,
            plan,
        };
        world.begin()?;
        Ok(world)
    }

    fn begin(&mut self) -> Result<(), WorldError> {
        for side in SIDES {
            self.start_host(side)?;
        }
        for job in 0..self.jobs.len() {
            self.agenda.add(self.plan.jobs[job].every, Task::Write { job });
        }
        for at in 0..self.plan.faults.len() {
            self.agenda.add(self.plan.faults[at].0, Task::Harm { at });
        }
        if self.plan.faults.is_empty() {
            self.agenda.add(Nanos(0), Task::Heal);
        }
        Ok(())
    }

    pub(crate) fn now(&self) -> Nanos {
        self.clock.world()
    }

    pub(crate) fn host(&self, side: Side) -> &Host {
        &self.hosts[index(side)]
    }

    pub(crate) fn host_mut(&mut self, side: Side) -> &mut Host {
        &mut self.hosts[index(side)]
    }

    /// Writes down what happened.
    pub(crate) fn note(&mut self, fact: Fact) {
        self.trace.add(self.clock.world(), &fact);
        self.facts.push(fact);
    }

    /// True when every job is done and nothing of any session is left.
    pub(crate) fn is_at_rest(&self) -> bool {
        let done = |job: &Job| matches!(job.client, ClientState::Done(_));
        self.jobs.iter().all(done) && self.hosts.iter().all(Host::is_at_rest)
    }

    /// The next event.
    pub(crate) fn step(&mut self) -> Result<(), WorldError> {
        self.wake_readers();
        let Some((due, task)) = self.agenda.next() else { unreachable!("a world always ticks") };
        self.clock.set(due.max(self.now()));
        self.do_task(task)
    }

    /// Shards that sleep are woken by what arrives before anything else happens.
    fn wake_readers(&mut self) {
        let next = self.agenda.next_due();
        for side in SIDES {
            let Some(due) = self.fabric.next_due(side) else { continue };
            if next.is_none_or(|next| due <= next) && self.hosts[index(side)].is_up() {
                self.fabric.take_news(side);
                let due = due.max(self.now());
                self.wake_shards(side, due);
            }
        }
    }

    fn do_task(&mut self, task: Task) -> Result<(), WorldError> {
        match task {
            Task::Poll { side, lane, life } => self.poll_shard(side, lane, life),
            Task::Events { side, life } => self.take_events(side, life),
            Task::Tick { side, life } if self.host(side).life == life => {
                self.agenda.add(self.now() + TICK_EVERY, Task::Tick { side, life });
                self.tick(side);
                self.restart_if_in_doubt()?;
            }
            Task::Tick { .. } => {}
            Task::Channel { side } => self.read_channels(side),
            Task::Disk { side, life } => self.finish_writes(side, life),
            Task::Knock { life } => self.knock(life),
            Task::Dialled { life, channel } => self.dialled(life, channel),
            Task::StreamArrives(dial) => self.stream_arrives(dial)?,
            Task::StreamDialled { dial, near } => self.stream_dialled(dial, near),
            Task::Write { job } => {
                self.jobs[job].write();
                let every = self.jobs[job].plan.every;
                if !matches!(self.jobs[job].client, ClientState::Done(_)) {
                    self.agenda.add(self.now() + every, Task::Write { job });
                }
            }
            Task::Harm { at } => self.harm(self.plan.faults[at].1)?,
            Task::EndHarm(fault) => self.end_harm(fault),
            Task::Restart { side } => self.restart(side)?,
            Task::Heal => self.heal()?,
        }
        Ok(())
    }

    fn tick(&mut self, side: Side) {
        self.tick_links(side);
        match side {
            Side::Near => self.tick_sources(),
            Side::Far => self.tick_sinks(),
        }
    }

    /// Hands over what arrived on the control channels.
    fn read_channels(&mut self, side: Side) {
        if !self.host(side).is_up() || !self.fabric.conditions(side.across()).is_up {
            return;
        }
        for channel in self.channels.ids() {
            while let Some(came) = self.channels.take(channel, side, self.now()) {
                match came {
                    Came::Message(bytes) => self.on_message(side, channel, &bytes),
                    Came::Ended => self.channel_ended(side, channel),
                }
            }
        }
    }

    fn finish_writes(&mut self, side: Side, life: u32) {
        while self.host(side).life == life
            && let Some(write) = {
                let now = self.now();
                self.host_mut(side).disk.done(now)
            }
        {
            let disk::Write { session, record, fails, .. } = write;
            self.note(Fact::Written { side, session, record, fails });
            match record {
                Record::Source(record) => self.source_written(session, record, fails),
                Record::Sink(record) => self.sink_written(session, record, fails),
            }
        }
    }

    /// Orders a write of a session's record.
    fn write_record(&mut self, side: Side, session: SessionId, record: Record) {
        self.note(Fact::Journal { side, session, record });
        let now = self.now();
        let host = self.host_mut(side);
        let due = host.disk.write(now, session, record);
        let life = host.life;
        self.agenda.add(due, Task::Disk { side, life });
    }

    pub(crate) fn job_of(&self, session: SessionId) -> Option<usize> {
        self.sessions.iter().find(|(id, _)| *id == session).map(|(_, job)| *job)
    }
}

pub(crate) const fn index(side: Side) -> usize {
    match side {
        Side::Near => 0,
        Side::Far => 1,
    }
}

/// The machine that runs the simulation lacks something.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorldError {
    #[error(transparent)]
    Region(#[from] dwcp_ffi::region::RegionError),
    #[error(transparent)]
    Arena(#[from] dwcp_ffi::arena::ArenaError),
    #[error(transparent)]
    Shard(#[from] dwcp_dataplane::shard::ShardError),
    #[error("no descriptor is left: {0}")]
    Descriptor(#[from] std::io::Error),
}
