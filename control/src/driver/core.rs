//! The core: all state of the control plane, changed by one input at a time.
//!
//! Runs on the control thread; the loop in [`mod@super::run`] feeds it. It never waits: what takes
//! time is started as a task or handed to the journal, and comes back as an input. The parts of its
//! work are in the modules beside this one, each an `impl` of [`Core`].

use super::carry::Carry;
use super::draining::Drain;
use super::kept::Keeping;
use super::links::LinkEntry;
use super::placement::ShardIndex;
use super::reconnect::Errands;
use super::room::StreamsHeld;
use super::shards::Shards;
use super::vm_host::VmHost;
use super::vm_opening::{VmSinks, VmSources};
use super::vm_recover::VmSettling;
use super::vms::Probed;
use crate::api::{
    ApiCounters, ApiInput, ClientHandle, ClientId, Subscription, Topic, notification_line,
};
use crate::config::{ControlConfig, LiveSettings, SettingsPort};
use crate::kept::Keeper;
use crate::limits::{JOURNAL_NOTES_MAX, KEPT_EXPIRE_NS};
use crate::log_limit::LogLimit;
use crate::migration::{History, Machine, Regions, Session, Vms};
use crate::peer::{ConnectionId, Identity, PeerError, PeerInput};
use crate::state::{Change, Journal, JournalDone, SessionRecord, Stored, Ticket};
use crate::tally::Tally;
use dwcp_dataplane::port::{Command, Event};
use dwcp_ffi::counters::HistogramReader;
use dwcp_proto::ids::{LinkId, SessionId, SessionKey};
use dwcp_proto::session::record::{SinkRecord, SourceRecord};
use dwcp_proto::session::sink::SinkInput;
use dwcp_proto::session::source::SourceInput;
use dwcp_proto::time::Nanos;
use serde_json::Value;
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// What a write to the journal was for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Written {
    /// A step of the source's commit.
    Source(SessionId, SourceRecord),
    /// A step of the sink's commit.
    Sink(SessionId, SinkRecord),
    /// A record that nothing waits for.
    Note,
}

/// What the control plane counts of itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) api: ApiCounters,
    /// Error answers of the core, by code.
    pub(crate) api_errors: Tally,
    /// Connections and handshakes refused, by reason.
    pub(crate) refused: Tally,
    /// What became of pages that guests left: kept, read, or why not.
    pub(crate) kept: Tally,
    /// Connections that could not be accepted, by listener.
    pub(crate) accept_failures: Tally,
    /// Sessions that peers asked for and did not get, by code.
    pub(crate) sessions_refused: Tally,
    /// Channels that ended, by reason.
    pub(crate) links_ended: Tally,
    /// Links that lost their connection while sessions waited for another one, by reason.
    pub(crate) links_parked: Tally,
    /// Links that went on over another connection, by this end's role.
    pub(crate) links_resumed: Tally,
    /// Streams that ended, by reason.
    pub(crate) streams_ended: Tally,
    /// Streams whose socket did not take an option as asked, by which.
    pub(crate) stream_options: Tally,
    /// Operators' decisions that the other end's journal contradicts, by what they make.
    pub(crate) conflicts: Tally,
    /// Sessions that ended, by state.
    pub(crate) sessions_ended: Tally,
    /// Peer messages that came too late or named nothing known.
    pub(crate) ignored: Tally,
}

/// Everything that the control plane knows.
pub(crate) struct Core {
    pub(super) config: ControlConfig,
    pub(super) settings: Box<dyn SettingsPort>,
    pub(super) live: Rc<Cell<LiveSettings>>,
    pub(super) identity: Identity,
    pub(super) listen: Option<SocketAddr>,
    pub(super) shards: Shards,
    pub(super) journal: Journal,
    pub(super) tickets: BTreeMap<Ticket, Written>,
    pub(super) next_ticket: u64,
    pub(super) regions: Regions,
    pub(super) vms: Vms,
    pub(super) vm_host: Box<dyn VmHost>,
    pub(super) probes: mpsc::Sender<Probed>,
    /// Machines whose sessions wait for their facts or their link.
    pub(super) vm_sources: VmSources,
    pub(super) vm_sinks: VmSinks,
    /// What guests leave here; none where nothing is kept.
    pub(super) keeper: Option<Keeper>,
    /// Memory of ended sessions whose pages are on their way to the disk.
    pub(super) keeping: BTreeMap<SessionId, Keeping>,
    pub(super) next_expiry: Nanos,
    /// Tasks that bring guests of ended sessions to where they belong.
    pub(super) vm_settling: VmSettling,
    pub(super) errands: Errands,
    /// Source: sessions of regions that ended while their sinks could not hear of it, and whose
    /// peers those are.
    pub(super) untold: BTreeMap<SessionId, String>,
    pub(super) sessions: BTreeMap<SessionId, Session>,
    pub(super) keys: BTreeMap<SessionKey, SessionId>,
    pub(super) history: History,
    pub(super) links: BTreeMap<LinkId, LinkEntry>,
    /// Links that are gone here and whose streams shards still close.
    pub(super) closing_links: BTreeMap<LinkId, StreamsHeld>,
    pub(super) next_link: LinkId,
    /// Which link a connection belongs to, or is dialled for.
    pub(super) connections: BTreeMap<ConnectionId, LinkId>,
    pub(super) next_connection: ConnectionId,
    pub(super) subscribers: BTreeMap<ClientId, (ClientHandle, Subscription)>,
    pub(super) peers: mpsc::Sender<PeerInput>,
    pub(super) counters: Counters,
    /// Frame round trips of sessions that are gone stay in the daemon's totals through these.
    pub(super) frame_rtt_ended: VecDeque<HistogramReader>,
    pub(super) peer_log: LogLimit,
    pub(super) option_log: LogLimit,
    pub(super) started: Instant,
    pub(super) stopping: bool,
    pub(super) drain: Option<Drain>,
    /// In a carrier's process.
    pub(super) carry: Option<Box<Carry>>,
}

/// What the core is made from.
pub(crate) struct CoreParts {
    pub(crate) config: ControlConfig,
    pub(crate) settings: Box<dyn SettingsPort>,
    pub(crate) live: Rc<Cell<LiveSettings>>,
    pub(crate) identity: Identity,
    pub(crate) listen: Option<SocketAddr>,
    pub(crate) shards: Shards,
    pub(crate) journal: Journal,
    pub(crate) stored: Stored,
    pub(crate) vm_host: Box<dyn VmHost>,
    pub(crate) keeper: Option<Keeper>,
    pub(crate) probes: mpsc::Sender<Probed>,
    pub(crate) peers: mpsc::Sender<PeerInput>,
    pub(crate) counters: Counters,
}

impl Core {
    /// Takes everything over and settles what the journal left open.
    pub(crate) fn new(parts: CoreParts) -> Self {
        let mut core = Self {
            config: parts.config,
            settings: parts.settings,
            live: parts.live,
            identity: parts.identity,
            listen: parts.listen,
            shards: parts.shards,
            journal: parts.journal,
            tickets: BTreeMap::new(),
            next_ticket: 0,
            regions: Regions::default(),
            vms: Vms::restore(parts.stored.vms),
            vm_host: parts.vm_host,
            probes: parts.probes,
            vm_sources: VmSources::new(),
            vm_sinks: VmSinks::new(),
            keeper: parts.keeper,
            keeping: BTreeMap::new(),
            next_expiry: Nanos(KEPT_EXPIRE_NS),
            vm_settling: VmSettling::new(),
            errands: Errands::new(),
            untold: BTreeMap::new(),
            sessions: BTreeMap::new(),
            keys: BTreeMap::new(),
            history: History::default(),
            links: BTreeMap::new(),
            closing_links: BTreeMap::new(),
            next_link: LinkId(0),
            connections: BTreeMap::new(),
            next_connection: ConnectionId::default(),
            subscribers: BTreeMap::new(),
            peers: parts.peers,
            counters: parts.counters,
            frame_rtt_ended: VecDeque::new(),
            peer_log: LogLimit::default(),
            option_log: LogLimit::default(),
            started: Instant::now(),
            stopping: false,
            drain: None,
            carry: None,
        };
        core.recover_all(parts.stored.sessions);
        core.want_memory();
        core
    }

    /// The monotonic time since the core began.
    pub(super) fn now(&self) -> Nanos {
        Nanos(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// A client asks, or is gone.
    pub(crate) fn on_api(&mut self, input: ApiInput) {
        match input {
            ApiInput::Call(call) => self.on_call(call),
            ApiInput::Gone(client) => {
                self.subscribers.remove(&client);
            }
        }
    }

    /// A write to the journal is done.
    pub(crate) fn on_journal(&mut self, done: JournalDone) {
        let Some(written) = self.tickets.remove(&done.ticket) else { return };
        if let Err(error) = &done.outcome {
            tracing::error!(code = error.code(), cure = error.cure(), %error, "journal");
        }
        let good = done.outcome.is_ok();
        match written {
            // Only what is surely on disk may back an answer: see the rules of `proto::session`.
            Written::Source(id, record) if good => {
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.record.source_record = Some(record);
                }
                self.source_step(id, SourceInput::JournalWritten(record));
            }
            Written::Source(id, record) => {
                self.source_step(id, SourceInput::JournalFailed(record));
            }
            Written::Sink(id, record) if good => {
                if let Some(session) = self.sessions.get_mut(&id) {
                    session.record.sink_record = Some(record);
                }
                self.sink_step(id, SinkInput::JournalWritten(record));
            }
            Written::Sink(id, record) => self.sink_step(id, SinkInput::JournalFailed(record)),
            Written::Note => {}
        }
    }

    /// Hands a record to the journal. A full queue counts as a failed write.
    pub(super) fn write(
        &mut self,
        record: SessionRecord,
        forget: Vec<SessionId>,
        written: Written,
    ) {
        self.change(Change::Session { record: Box::new(record), forget }, written);
    }

    /// Hands something over that nothing waits for.
    pub(super) fn note(&mut self, change: Change) {
        self.change(change, Written::Note);
    }

    fn change(&mut self, change: Change, written: Written) {
        if matches!(written, Written::Note) && self.tickets.len() >= JOURNAL_NOTES_MAX {
            // The rest of the queue belongs to the records that a commit waits for.
            self.counters.ignored.add("journal_note");
            return;
        }
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        self.tickets.insert(ticket, written);
        if let Err(error) = self.journal.write(ticket, change) {
            self.on_journal(JournalDone { ticket, outcome: Err(error) });
        }
    }

    /// Takes what the shards report; true if there may be more at once.
    pub(crate) fn on_wake(&mut self) -> bool {
        let mut events = Vec::new();
        let more = self.shards.take_events(&mut events);
        self.shards.flush();
        for (shard, event) in events {
            self.on_event(shard, event);
        }
        more
    }

    fn on_event(&mut self, shard: ShardIndex, event: Event) {
        if self.on_carry_event(&event) {
            return;
        }
        let placement = self.shards.placement();
        let lane = |link| placement.lane_on(link, shard);
        match event {
            Event::StreamUp { link, stream } => self.on_stream_up(link, stream),
            Event::StreamDown { link, stream, cause } => {
                self.stream_left(link, lane(link));
                self.on_stream_down(link, stream, cause);
            }
            Event::Streams { link, decision, open } => {
                self.on_streams_decided(link, lane(link), decision, open);
            }
            Event::Opened { session } => self.on_lane_opened(session, lane(session.link)),
            Event::RoundDone { session, round, stats } => {
                self.on_lane_round(session, lane(session.link), round, stats);
            }
            Event::Verified { session } => self.on_lane_verified(session, lane(session.link)),
            Event::Stream { session, note } => self.on_stream_note(session, note),
            Event::ChannelEnded { session, channel, end } => {
                self.on_channel_ended(session, channel, end);
            }
            Event::StreamDigest { session, frames, digest } => {
                self.on_stream_digest(session, (frames, digest));
            }
            Event::Failed { session, cause } => {
                self.on_lane_failed(session, lane(session.link), cause)
            }
            Event::Closed { session } => self.on_lane_closed(session, lane(session.link)),
            Event::Stopped => self.on_shard_stopped(shard),
        }
    }

    /// Does what is due.
    pub(crate) fn on_tick(&mut self) {
        let now = self.now();
        self.shards.flush();
        self.tick_links(now);
        let due: Vec<SessionId> = self
            .sessions
            .values()
            .filter(|session| session.deadline().is_some_and(|deadline| deadline <= now))
            .map(Session::id)
            .collect();
        for session in due {
            match self.sessions.get(&session).map(|s| &s.machine) {
                Some(Machine::Source(_)) => self.source_step(session, SourceInput::Tick),
                Some(Machine::Sink(_)) => self.sink_step(session, SinkInput::Tick),
                None => {}
            }
        }
        self.reconnect_due(now);
        self.tick_vms(now);
        self.tick_carry(now);
        self.tick_kept(now);
        self.send_progress(now);
    }

    /// Tells everyone who wants to know.
    pub(super) fn notify(&self, topic: Topic, session: SessionId, params: &Value) {
        let mut line = None;
        for (client, subscription) in self.subscribers.values() {
            if subscription.wants(topic, session) {
                let line = line.get_or_insert_with(|| notification_line(topic.name(), params));
                client.send(line.clone());
            }
        }
    }

    /// Gives up what may be given up, says goodbye and stops the shards. What the journal was
    /// asked for still arrives.
    pub(crate) fn begin_stop(&mut self) {
        self.stopping = true;
        self.stop_carry();
        let links: Vec<LinkId> = self.links.keys().copied().collect();
        links.into_iter().for_each(|link| self.drop_link(link, &PeerError::Stopping));
        // A shard that died without a word reports nothing any more.
        let lost: Vec<ShardIndex> = self.shards.lost().collect();
        lost.into_iter().for_each(|shard| self.on_shard_stopped(shard));
        self.shards.send_all(|| Command::Stop);
    }

    /// Whether the journal still owes an answer.
    pub(crate) fn journal_is_idle(&self) -> bool {
        self.tickets.is_empty()
    }

    /// The shards, for the loop.
    pub(crate) fn shards(&self) -> &Shards {
        &self.shards
    }
}

/// The wall clock, for people only.
pub(super) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
