//! What clients see of the core, as JSON.
//!
//! Part of [`Core`], on the control thread; reads and never changes.

use super::core::Core;
use super::links::LinkEntry;
use super::placement::Placement;
use super::tuned::tuned_view;
use crate::state::{SessionRecord, SessionState};
use dwcp_dataplane::stats::{SHARD_COUNTERS, StreamCounter};
use dwcp_proto::ids::{LinkId, SessionId};
use dwcp_proto::wire::hello::feature_names;
use dwcp_proto::wire::version::WireVersion;
use serde_json::{Map, Value, json};

/// The state of a session whose link is lost and may come back, in place of its machine's.
pub(super) const PARKED: &str = "parked";

impl Core {
    /// A session as clients see it: its record, why it is coded as it is, and that it is parked.
    pub(super) fn session_view(&self, id: SessionId) -> Option<Value> {
        let record = self.record_of(id)?;
        let mut view = json!(record);
        if let Some(part) = self.sessions.get(&id).and_then(|session| session.vm.as_ref()) {
            view["vm"]["coding"] = part.coder.view(self.now());
        }
        let parked = self.sessions.get(&id).and_then(|session| self.parked_view(session));
        if let Some(parked) = parked {
            view["state"] = json!(PARKED);
            view["parked"] = parked;
        }
        Some(view)
    }

    /// A session's record, live or ended, with the counters of now.
    pub(super) fn record_of(&self, id: SessionId) -> Option<SessionRecord> {
        let live = self.sessions.get(&id).map(|session| session.fresh_record());
        let live = live.or_else(|| self.vm_source_record(id));
        live.or_else(|| self.history.find(id).cloned())
    }

    pub(super) fn region_list(&self) -> Value {
        let regions = self.regions.iter().map(|(name, entry)| {
            let region = &entry.memory.region;
            let mut view = json!({
                "name": name, "role": entry.role, "pages": region.page_count(),
                "bytes": region.bytes(), "accept_from": entry.accept_from,
            });
            if let Some(session) = entry.used_by {
                view["session"] = json!(session);
            }
            view
        });
        Value::Array(regions.collect())
    }

    /// Live sessions and the ended ones after them, each the newest first.
    pub(super) fn session_list(&self) -> Value {
        let started = |id: SessionId| self.record_of(id).map(|record| record.started_unix_ms);
        let mut live: Vec<SessionId> = self.sessions.keys().copied().collect();
        live.extend(self.vm_sources.keys());
        live.sort_by_key(|id| std::cmp::Reverse((started(*id), *id)));
        let ended = self.history.newest_first().map(|record| json!(record));
        let live = live.into_iter().filter_map(|id| self.session_view(id));
        Value::Array(live.chain(ended).collect())
    }

    pub(super) fn status(&self) -> Value {
        let doubt = self.sessions.values().any(|s| s.state() == SessionState::InDoubt);
        let live = self.sessions.keys();
        let sessions: Vec<Value> = live.filter_map(|id| self.session_view(*id)).collect();
        json!({
            "daemon": {
                "version": self.config.facts.version,
                "pid": std::process::id(),
                "uptime_s": self.started.elapsed().as_secs(),
                "host": self.identity.host_name(),
            },
            "health": match (doubt, &self.drain) {
                (true, _) => "in doubt",
                (false, Some(_)) => "draining",
                (false, None) => "good",
            },
            "drains_until_unix_ms": self.drain.map(|drain| drain.until_unix_ms),
            "sessions": sessions,
            "links": self.net_show(),
            "dialling": self.dialling(),
            "memory": self.memory_view(),
            "shards": self.shards_view(),
        })
    }

    /// Page memory for sessions.
    fn memory_view(&self) -> Value {
        let pages = &self.config.pages;
        json!({
            "ready_bytes": pages.ready_bytes(), "wanted_bytes": pages.wanted_bytes(),
            "held_bytes": pages.held_bytes(),
        })
    }

    pub(super) fn daemon_info(&self) -> Value {
        let facts = &self.config.facts;
        json!({
            "version": facts.version,
            "wire_versions": {
                "lowest": WireVersion::LOWEST.number(), "highest": WireVersion::HIGHEST.number(),
            },
            "pid": std::process::id(),
            "host": self.identity.host_name(),
            "listen": self.listen,
            "secure": self.identity.is_secure(),
            "journal": self.journal.id().to_string(),
            "kernel": facts.kernel,
            "budget": facts.budget,
        })
    }

    pub(super) fn net_show(&self) -> Value {
        let placement = self.shards.placement();
        let view = |(id, entry): (&LinkId, _)| link_view(*id, entry, placement);
        Value::Array(self.links.iter().map(view).collect())
    }

    fn shards_view(&self) -> Value {
        let shards = self.shards.ports().enumerate().map(|(number, port)| {
            let mut view = Map::from_iter([("shard".to_owned(), json!(number))]);
            for (index, info) in SHARD_COUNTERS.iter().enumerate() {
                let name = info.name.strip_prefix("shard_").unwrap_or(info.name);
                let name = name.strip_suffix("_total").unwrap_or(name);
                view.insert(name.to_owned(), json!(port.stats.get(index)));
            }
            Value::Object(view)
        });
        Value::Array(shards.collect())
    }
}

fn link_view(id: LinkId, entry: &LinkEntry, placement: Placement) -> Value {
    let streams: Vec<Value> = entry
        .link
        .streams()
        .filter(|(stream, _)| entry.streams.contains_key(stream))
        .map(|(stream, up)| {
            let count = |counter: StreamCounter| {
                entry.streams.get(&stream).map_or(0, |readers| readers.stats.get(counter.index()))
            };
            let lane = entry.link.lane_of(stream);
            let copied = count(StreamCounter::CopiedSends);
            let zero_copy = match (count(StreamCounter::ZeroCopySends), copied) {
                (0, 0) => "off",
                (0, _) => "kernel copies",
                _ => "in use",
            };
            json!({
                "stream": stream,
                "lane": lane,
                "shard": placement.shard_of(id, lane).0,
                "up": up,
                "incarnation": entry.link.incarnation(stream),
                "sent_bytes": count(StreamCounter::SentBytes),
                "received_bytes": count(StreamCounter::ReceivedBytes),
                "in_flight_bytes": count(StreamCounter::InFlightBytes),
                "rtt_ms": count(StreamCounter::RttNanos) / 1_000_000,
                "zero_copy": zero_copy,
                "congestion": entry.streams.get(&stream).and_then(|it| it.congestion.as_ref()),
                "tcp": tcp_view(count),
            })
        })
        .collect();
    json!({
        "link": id,
        "peer": entry.peer_name,
        "address": entry.address,
        "role": if entry.link.is_dialled() { "source" } else { "sink" },
        "phase": entry.link.phase().name(),
        "wire_version": entry.link.version().number(),
        "features": feature_names(entry.features()).collect::<Vec<_>>(),
        "epoch": entry.link.epoch(),
        "lanes": entry.link.lanes(),
        "streams": streams,
        "tuned": tuned_view(entry),
        "since_unix_ms": entry.since_unix_ms,
    })
}

/// What the kernel said of a stream's connection last.
fn tcp_view(count: impl Fn(StreamCounter) -> u64) -> Value {
    let share = |part| count(part) as f64 / count(StreamCounter::TcpBusyNanos).max(1) as f64;
    json!({
        "rtt_us": count(StreamCounter::TcpRttNanos) / 1000,
        "rtt_min_us": count(StreamCounter::TcpRttMinNanos) / 1000,
        "window_bytes": count(StreamCounter::TcpWindowBytes),
        "unsent_bytes": count(StreamCounter::TcpUnsentBytes),
        "delivery_bytes_per_second": count(StreamCounter::TcpDeliveryRate),
        "app_limited": count(StreamCounter::TcpAppLimited) != 0,
        "in_startup": count(StreamCounter::TcpInStartup) != 0,
        "retransmitted_segments": count(StreamCounter::TcpRetransmittedSegments),
        "retransmitted_bytes": count(StreamCounter::TcpRetransmittedBytes),
        "busy_ms": count(StreamCounter::TcpBusyNanos) / 1_000_000,
        "receive_window_limited": share(StreamCounter::TcpReceiveWindowNanos),
        "send_buffer_limited": share(StreamCounter::TcpSendBufferNanos),
    })
}
