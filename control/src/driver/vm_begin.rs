//! The core's lane of a virtual machine's session: opening it, telling the QEMU to begin.
//!
//! Part of [`Core`], on the control thread. The machine knows one lane; which shard serves it both
//! ends compute from the session's number.

use super::core::Core;
use crate::kept::ReadBefore;
use crate::limits::SOCKET_PATH_BYTES_MAX;
use crate::migration::{Machine, Session};
use crate::state::SessionRecord;
use crate::vm::VmOrder;
use dwcp_dataplane::port::{Command, HashKey, StreamCoding, StreamSinkSetup, StreamSourceSetup};
use dwcp_ffi::counters::{counters, histogram};
use dwcp_proto::ids::{LaneId, SessionId};
use dwcp_proto::session::sink::SinkInput;
use dwcp_proto::session::source::SourceInput;
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::limits::{BACKLOG_DEFAULT, CHANNELS_MAX};
use dwcp_proto::wire::peer::Message;
use dwcp_proto::wire::vm::VmTerms;
use std::path::PathBuf;

/// The lane as the machine knows it.
const ONLY_LANE: LaneId = LaneId(0);

impl Core {
    /// Orders the session's lane open, and at the sink its QEMU to listen; false for a region's.
    pub(super) fn open_vm_lane(&mut self, id: SessionId) -> bool {
        let keeps = self.keeper.is_some();
        let Some(session) = self.sessions.get_mut(&id).filter(|session| session.is_vm()) else {
            return false;
        };
        let Some((link, command)) = session.key.and_then(|key| {
            let link = self.links.get(&key.link)?;
            Some((key.link, stream_setup(session, link.hash_key.clone(), keeps)?))
        }) else {
            return true;
        };
        let lane = session.vm.as_ref().map_or(ONLY_LANE, |part| part.lane);
        session.lanes_held |= 1 << lane.0;
        let is_sink = matches!(session.machine, Machine::Sink(_));
        self.shards.send(link, lane, command);
        if is_sink {
            self.hold_for(id);
            match self.vm_socket(id) {
                Ok(socket_path) => {
                    self.order_vm(id, VmOrder::Prepare { socket_path, channels_max: CHANNELS_MAX })
                }
                Err(message) => self.vm_failed(id, "vm_socket", &message),
            }
        }
        true
    }

    pub(super) fn order_vm(&self, id: SessionId, order: VmOrder) {
        if let Some(part) = self.sessions.get(&id).and_then(|session| session.vm.as_ref()) {
            part.order(order);
        }
    }

    /// Where the QEMU at this end and the daemon meet for one migration.
    fn vm_socket(&self, id: SessionId) -> Result<PathBuf, String> {
        let directory = self.vm_directory().map_err(|error| error.message)?;
        let path = directory.join(format!("{}.mig", &id.to_string()[..16]));
        match path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
            true => Ok(path),
            false => Err(format!("the socket path {} is too long", path.display())),
        }
    }

    /// Both ends are open: the source's QEMU may migrate.
    pub(super) fn begin_vm(&mut self, id: SessionId) {
        let socket = self.vm_socket(id);
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let Some(part) = &mut session.vm else { return };
        let options = part.options.clone();
        match socket {
            Ok(socket_path) => part.order(VmOrder::Begin { options, socket_path }),
            Err(message) => self.vm_failed(id, "vm_socket", &message),
        }
    }

    /// The shard has reserved the session's memory.
    pub(super) fn vm_lane_opened(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let is_source = matches!(session.machine, Machine::Source(_));
        if let Some(part) = &mut session.vm {
            part.lane_open = true;
        }
        match is_source {
            true => self.source_step(id, SourceInput::LaneOpened(ONLY_LANE)),
            false => self.vm_sink_open(id),
        }
    }

    /// The sink is open when its shard has memory and its QEMU listens.
    pub(super) fn vm_sink_open(&mut self, id: SessionId) {
        let part = self.sessions.get(&id).and_then(|session| session.vm.as_ref());
        if part.is_some_and(|part| part.lane_open && part.prepared) {
            self.sink_step(id, SinkInput::LaneOpened(ONLY_LANE));
        }
    }

    /// The virtual machine at this end can't go on.
    pub(super) fn vm_failed(&mut self, id: SessionId, code: &'static str, message: &str) {
        let message = Message::cut(message);
        match self.sessions.get(&id).map(|session| &session.machine) {
            Some(Machine::Source(_)) => {
                self.source_step(id, SourceInput::VmFailed { code, message });
            }
            Some(Machine::Sink(_)) => self.sink_step(id, SinkInput::VmFailed { code, message }),
            None => {}
        }
    }
}

/// The order to open the session's lane.
fn stream_setup(session: &mut Session, hash_key: HashKey, keeps: bool) -> Option<Command> {
    let key = session.key?;
    let part = session.vm.as_mut()?;
    let (lane, coding) = (part.lane, part.coding);
    let limit_ms = part.options.downtime_limit_ms;
    let backlog =
        limit_ms.map_or(BACKLOG_DEFAULT, |ms| BACKLOG_DEFAULT.min(Nanos::from_millis(ms)));
    let (stats, reader) = counters();
    let agreed = match &session.machine {
        Machine::Source(machine) => machine.terms().and_then(|terms| terms.before),
        Machine::Sink(_) => part.terms.and_then(|terms| terms.before),
    };
    let read = part.before.take().filter(|read| agreed == Some(read.before));
    let (before, hash_key) = match read {
        Some(ReadBefore { pages, hash_key, .. }) => (Some(pages), hash_key),
        None => (None, hash_key),
    };
    let heir = keeps.then(|| part.heir(&hash_key));
    let command = match &session.machine {
        Machine::Source(machine) => {
            let terms = machine.terms()?;
            let (frame_rtt_ns, rtt) = histogram();
            session.frame_rtt_ns.push(rtt);
            let coding = match coding {
                StreamCoding::Pages { level, .. } => {
                    StreamCoding::Pages { level, window_log: terms.window_log }
                }
                StreamCoding::Passthrough => StreamCoding::Passthrough,
            };
            note_before(&mut session.record, terms);
            Command::OpenStreamSource(Box::new(StreamSourceSetup {
                session: key,
                lane,
                coding,
                pages_max: terms.pages_max,
                base_pages: terms.base_pages,
                undelivered_bytes_max: terms.undelivered_bytes_max,
                backlog,
                hash_key,
                before,
                held_pages: terms.held.unwrap_or(0),
                heir,
                stats,
                frame_rtt_ns,
            }))
        }
        Machine::Sink(_) => {
            let terms = part.terms?;
            note_before(&mut session.record, terms);
            Command::OpenStreamSink(Box::new(StreamSinkSetup {
                session: key,
                lane,
                window_log: terms.window_log,
                pages_max: terms.pages_max,
                base_pages: terms.base_pages,
                undelivered_bytes_max: terms.undelivered_bytes_max,
                hash_key,
                before,
                held_pages: terms.held.unwrap_or(0),
                heir,
                stats,
            }))
        }
    };
    session.stats.push(reader);
    Some(command)
}

fn note_before(record: &mut SessionRecord, terms: VmTerms) {
    if let Some(vm) = &mut record.vm {
        vm.before_pages = terms.before.map(|before| before.pages);
    }
}
