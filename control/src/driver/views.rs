//! What clients see of the core, as JSON.
//!
//! Part of [`Core`], on the control thread; reads and never changes.

use super::core::Core;
use super::links::LinkEntry;
use crate::state::{SessionRecord, SessionState};
use dwcp_dataplane::stats::{SHARD_COUNTERS, StreamCounter};
use dwcp_proto::ids::{LinkId, SessionId};
use dwcp_proto::wire::limits::{WIRE_VERSION, WIRE_VERSION_LOWEST};
use serde_json::{Map, Value, json};

impl Core {
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
        let mut live: Vec<_> = self.sessions.values().map(|s| s.fresh_record()).collect();
        live.extend(self.vm_sources.keys().filter_map(|id| self.vm_source_record(*id)));
        live.sort_by_key(|record| std::cmp::Reverse((record.started_unix_ms, record.session)));
        let ended = self.history.newest_first().map(|record| json!(record));
        Value::Array(live.iter().map(|record| json!(record)).chain(ended).collect())
    }

    pub(super) fn status(&self) -> Value {
        let sessions: Vec<_> = self.sessions.values().map(|s| s.fresh_record()).collect();
        let doubt = sessions.iter().any(|record| record.state == SessionState::InDoubt);
        json!({
            "daemon": {
                "version": self.config.facts.version,
                "pid": std::process::id(),
                "uptime_s": self.started.elapsed().as_secs(),
                "host": self.identity.host_name(),
            },
            "health": if doubt { "in doubt" } else { "good" },
            "sessions": sessions,
            "links": self.net_show(),
            "dialling": self.dialling(),
            "shards": self.shards_view(),
        })
    }

    pub(super) fn daemon_info(&self) -> Value {
        let facts = &self.config.facts;
        json!({
            "version": facts.version,
            "wire_versions": { "lowest": WIRE_VERSION_LOWEST, "highest": WIRE_VERSION },
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
        Value::Array(self.links.iter().map(|(id, entry)| link_view(*id, entry)).collect())
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

fn link_view(id: LinkId, entry: &LinkEntry) -> Value {
    let streams: Vec<Value> = entry
        .link
        .streams()
        .map(|(stream, up)| {
            let count = |counter: StreamCounter| {
                entry.streams.get(&stream).map_or(0, |readers| readers.stats.get(counter.index()))
            };
            let copied = count(StreamCounter::CopiedSends);
            let zero_copy = match (count(StreamCounter::ZeroCopySends), copied) {
                (0, 0) => "off",
                (0, _) => "kernel copies",
                _ => "in use",
            };
            json!({
                "stream": stream,
                "lane": entry.link.lane_of(stream),
                "up": up,
                "incarnation": entry.link.incarnation(stream),
                "sent_bytes": count(StreamCounter::SentBytes),
                "received_bytes": count(StreamCounter::ReceivedBytes),
                "in_flight_bytes": count(StreamCounter::InFlightBytes),
                "rtt_ms": count(StreamCounter::RttNanos) / 1_000_000,
                "zero_copy": zero_copy,
            })
        })
        .collect();
    json!({
        "link": id,
        "peer": entry.peer_name,
        "address": entry.address,
        "role": if entry.link.is_dialled() { "source" } else { "sink" },
        "phase": entry.link.phase().name(),
        "epoch": entry.link.epoch(),
        "lanes": entry.link.lanes(),
        "streams": streams,
        "since_unix_ms": entry.since_unix_ms,
    })
}
