//! The core's figures of virtual machines' sessions: from the shards to the tasks, from the tasks
//! to clients.
//!
//! Part of [`Core`], on the control thread.

use super::core::Core;
use crate::limits::VM_FIGURES_PERIOD_NS;
use crate::migration::{CoderCounters, Machine, Session};
use crate::vm::VmOrder;
use dwcp_dataplane::stats::{SessionCounter, StreamCounter};
use dwcp_proto::ids::{LaneId, LinkId, SessionId};
use dwcp_proto::time::Nanos;
use serde_json::{Value, json};

impl Core {
    /// Does what is due for virtual machines.
    pub(super) fn tick_vms(&mut self, now: Nanos) {
        self.tick_vm_openings(now);
        self.tick_vm_ends(now);
        self.tick_vm_settling(now);
        self.tick_vm_failed(now);
        self.tick_blackouts();
        let due: Vec<SessionId> = self
            .sessions
            .values()
            .filter(|session| matches!(session.machine, Machine::Source(_)))
            .filter(|session| {
                session.vm.as_ref().is_some_and(|part| {
                    part.lane_open && now.since(part.figures.at).0 >= VM_FIGURES_PERIOD_NS
                })
            })
            .map(Session::id)
            .collect();
        due.into_iter().for_each(|id| self.tell_figures(id, now));
    }

    fn tell_figures(&mut self, id: SessionId, now: Nanos) {
        let Some(session) = self.sessions.get(&id) else { return };
        let (Some(link), Some(part)) = (session.link, &session.vm) else { return };
        let count = |counter: SessionCounter| session.count(counter.index());
        // A frame's way to the VMM when it was measured, else a record's way to the peer.
        let rtt_ns = match count(SessionCounter::RttMinNanos) {
            0 => self.rtt_ns(link, part.lane),
            measured => measured,
        };
        let coded_bytes = count(SessionCounter::CodedBytes);
        let raw_bytes = count(SessionCounter::VmmInBytes);
        let backlog_bytes = count(SessionCounter::UndeliveredBytes);
        let coder = CoderCounters {
            level: count(SessionCounter::ZstdLevel),
            coding_ns: count(SessionCounter::CodingNanos),
            held_ns: count(SessionCounter::HeldNanos),
            coded_bytes,
        };
        let delivery_rate = count(SessionCounter::DeliveryRate);
        let Some(part) = self.sessions.get_mut(&id).and_then(|s| s.vm.as_mut()) else { return };
        part.coder.advance(now, coder);
        let sent_rate = part.figures.advance(now, coded_bytes, raw_bytes);
        let rate_bytes_per_second = if delivery_rate > 0 { delivery_rate } else { sent_rate };
        let ratio_milli = part.figures.ratio_milli;
        part.order(VmOrder::Links { rate_bytes_per_second, ratio_milli, rtt_ns, backlog_bytes });
    }

    /// The newest round trip on a lane: the least of its streams, since a queue adds to the others.
    fn rtt_ns(&self, link: LinkId, lane: LaneId) -> u64 {
        let Some(entry) = self.links.get(&link) else { return 0 };
        let on_lane = entry.streams.iter().filter(|(id, _)| entry.link.lane_of(**id) == lane);
        let measured =
            on_lane.map(|(_, readers)| readers.stats.get(StreamCounter::RttNanos.index()));
        measured.filter(|nanos| *nanos > 0).min().unwrap_or(0)
    }
}

/// What a progress notification says of a virtual machine.
pub(super) fn progress_value(session: &Session, now: Nanos) -> Value {
    let Some(part) = &session.vm else { return Value::Null };
    let vm = session.record.vm.as_ref();
    let mut value = match &part.progress {
        Some(progress) => {
            let mut value = json!(progress);
            value["because"] = json!(progress.verdict.because());
            value
        }
        None => json!({}),
    };
    value["name"] = json!(vm.map(|vm| &vm.name));
    value["opaque"] = json!(vm.and_then(|vm| vm.opaque.as_ref()));
    value["ratio_milli"] = json!(part.figures.ratio_milli);
    value["zstd_level"] = json!(session.count(SessionCounter::ZstdLevel.index()));
    value["coding"] = part.coder.view(now);
    value
}
