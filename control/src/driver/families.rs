//! The daemon's Prometheus families, gathered from the core's tables and the shards' counters.
//!
//! Part of [`Core`], on the control thread; reads and never changes. Nanoseconds become seconds and
//! every counter ends in `_total`, as Prometheus wants it.

use super::core::Core;
use crate::carry::CarrySession;
use crate::migration::Session;
use crate::network::metrics::{Kind, TextBuilder, summary_of};
use crate::tally::Tally;
use dwcp_dataplane::stats::{
    CounterInfo, SESSION_COUNTERS, SHARD_COUNTERS, STREAM_COUNTERS, StreamStatsReader,
};
use dwcp_ffi::counters::HistogramReader;
use dwcp_ffi::memory::Taken;

type Labels = Vec<(&'static str, String)>;

/// One source of values for a table of counters, with its labels.
struct Row {
    labels: Labels,
    values: Vec<u64>,
}

/// What is known of one stream: what its shard counts and measures, from its newest opening on.
#[derive(Debug)]
pub(super) struct StreamReaders {
    pub(super) stats: StreamStatsReader,
    /// The congestion control that holds; none when the kernel does not tell.
    pub(super) congestion: Option<String>,
    pub(super) frame_rtt_ns: HistogramReader,
}

impl Core {
    /// The whole text of a scrape.
    pub(crate) fn metrics(&self) -> String {
        let mut text = TextBuilder::default();
        self.daemon_families(&mut text);
        let shards: Vec<Row> = (0..)
            .zip(self.shards.ports())
            .map(|(number, port): (u32, _)| Row {
                labels: vec![("shard", number.to_string())],
                values: port.stats.snapshot().to_vec(),
            })
            .collect();
        table(&mut text, &SHARD_COUNTERS, &shards);
        table(&mut text, &STREAM_COUNTERS, &self.stream_rows());
        let mut sessions: Vec<Row> = self.sessions.values().map(session_row).collect();
        sessions.extend(self.carry.as_ref().and_then(|carry| carried_row(carry.session.as_ref()?)));
        table(&mut text, &SESSION_COUNTERS, &sessions);
        text.family("dwcp_encode_seconds", Kind::Summary, "Time per coded extent.");
        for (number, port) in (0..).zip(self.shards.ports()) {
            let shard = u32::to_string(&number);
            let summary = summary_of(port.encode_ns.cells());
            summary.write(&mut text, "dwcp_encode_seconds", &[("shard", &shard)]);
        }
        let live = self.sessions.values().flat_map(|session| &session.frame_rtt_ns);
        let cells = live.chain(&self.frame_rtt_ended).flat_map(HistogramReader::cells);
        let help = "Round trip of a frame, from posting it to its acknowledgement.";
        text.family("dwcp_frame_rtt_seconds", Kind::Summary, help);
        summary_of(cells).write(&mut text, "dwcp_frame_rtt_seconds", &[]);
        self.stream_rtt_family(&mut text);
        self.tuned_family(&mut text);
        text.finish()
    }

    fn daemon_families(&self, text: &mut TextBuilder) {
        let version = self.config.facts.version.as_str();
        text.family("dwcp_build_info", Kind::Gauge, "The running binary.");
        text.sample("dwcp_build_info", &[("version", version)], 1.0);
        let uptime = self.started.elapsed().as_secs_f64();
        gauge(text, "dwcp_uptime_seconds", "Time since the daemon started.", uptime);
        let clients = float(self.counters.api.clients());
        gauge(text, "dwcp_api_clients", "Clients of the control socket now.", clients);
        let regions = float(self.regions.iter().count());
        gauge(text, "dwcp_regions", "Registered regions.", regions);
        let links = float(self.links.len());
        gauge(text, "dwcp_links", "Links now, ready or not.", links);
        let sessions = float(self.sessions.len());
        gauge(text, "dwcp_sessions", "Sessions that have not ended.", sessions);
        let writes = float(self.tickets.len());
        gauge(text, "dwcp_journal_waiting", "Writes that wait for the disk.", writes);
        self.memory_families(text);
        self.tally_families(text);
    }

    /// The memory of page versions: what is ready for sessions, and what they got.
    fn memory_families(&self, text: &mut TextBuilder) {
        const TAKEN: &str = "dwcp_memory_taken_bytes_total";
        let pages = &self.config.pages;
        let ready = count_float(pages.ready_bytes());
        let help = "Page memory that is zeroed and touched, for the next session.";
        gauge(text, "dwcp_memory_ready_bytes", help, ready);
        let wanted = count_float(pages.wanted_bytes());
        let help = "Page memory that is to be touched, ready or in use, by the attached guests.";
        gauge(text, "dwcp_memory_wanted_bytes", help, wanted);
        let held = count_float(pages.held_bytes());
        gauge(text, "dwcp_memory_held_bytes", "Page memory that sessions hold.", held);
        let help = "Page memory that sessions took, by whether it was ready.";
        text.family(TAKEN, Kind::Counter, help);
        let Taken { ready_bytes, untouched_bytes, used_bytes } = pages.taken();
        for (was, bytes) in
            [("ready", ready_bytes), ("untouched", untouched_bytes), ("used", used_bytes)]
        {
            text.sample(TAKEN, &[("was", was)], count_float(bytes));
        }
    }

    fn tally_families(&self, text: &mut TextBuilder) {
        for (name, help, label, tallies) in self.tallies().into_iter().chain(self.link_tallies()) {
            text.family(name, Kind::Counter, help);
            let mut sums = std::collections::BTreeMap::new();
            for (word, count) in tallies.iter().flat_map(|tally| tally.snapshot()) {
                *sums.entry(word).or_insert(0) += count;
            }
            for (word, count) in sums {
                text.sample(name, &[(label, word)], count_float(count));
            }
        }
    }

    /// What is counted by a word: name, help, label, and the tallies that are added up.
    fn tallies(&self) -> [(&'static str, &'static str, &'static str, Vec<&Tally>); 10] {
        let counters = &self.counters;
        [
            (
                "dwcp_api_requests_total",
                "Valid requests by method.",
                "method",
                vec![&counters.api.requests],
            ),
            (
                "dwcp_api_errors_total",
                "Error answers by code.",
                "code",
                vec![&counters.api.errors, &counters.api_errors],
            ),
            (
                "dwcp_api_dropped_total",
                "Clients refused or dropped, by reason.",
                "reason",
                vec![&counters.api.dropped],
            ),
            (
                "dwcp_peer_refused_total",
                "Connections and handshakes refused, by reason.",
                "reason",
                vec![&counters.refused],
            ),
            (
                "dwcp_accept_failures_total",
                "Connections that were not accepted, as without a descriptor left, by listener.",
                "listener",
                vec![&counters.accept_failures],
            ),
            (
                "dwcp_sessions_refused_total",
                "Sessions that peers asked for and did not get, by code.",
                "code",
                vec![&counters.sessions_refused],
            ),
            (
                "dwcp_stream_options_refused_total",
                "Socket options that a stream goes without, or has less of than it wants.",
                "option",
                vec![&counters.stream_options],
            ),
            (
                "dwcp_sessions_ended_total",
                "Sessions that ended, by state.",
                "state",
                vec![&counters.sessions_ended],
            ),
            (
                "dwcp_session_conflicts_total",
                "Operators' decisions that the other end's journal contradicts.",
                "kind",
                vec![&counters.conflicts],
            ),
            (
                "dwcp_peer_messages_ignored_total",
                "Peer messages that came too late or named nothing known.",
                "message",
                vec![&counters.ignored],
            ),
        ]
    }

    /// The same of links and their streams, and of what is kept.
    fn link_tallies(&self) -> [(&'static str, &'static str, &'static str, Vec<&Tally>); 5] {
        let counters = &self.counters;
        [
            (
                "dwcp_kept_total",
                "Pages of guests that were to be kept or read again, by what became of them.",
                "outcome",
                vec![&counters.kept],
            ),
            (
                "dwcp_links_ended_total",
                "Links that ended, by reason.",
                "reason",
                vec![&counters.links_ended],
            ),
            (
                "dwcp_links_parked_total",
                "Connections of links that were lost while sessions wait for another, by reason.",
                "reason",
                vec![&counters.links_parked],
            ),
            (
                "dwcp_links_resumed_total",
                "Links that went on over another connection, by this end's role.",
                "role",
                vec![&counters.links_resumed],
            ),
            (
                "dwcp_streams_ended_total",
                "Streams that ended, by reason.",
                "reason",
                vec![&counters.streams_ended],
            ),
        ]
    }

    fn stream_rows(&self) -> Vec<Row> {
        let row = |(labels, readers): (Labels, &StreamReaders)| Row {
            labels,
            values: readers.stats.snapshot().to_vec(),
        };
        self.streams().map(row).collect()
    }

    /// One summary for each stream of the links; their number is bounded as the streams are.
    fn stream_rtt_family(&self, text: &mut TextBuilder) {
        const NAME: &str = "dwcp_stream_frame_rtt_seconds";
        let help = "Round trip of a frame on one stream, since the stream was last opened.";
        text.family(NAME, Kind::Summary, help);
        for (labels, readers) in self.streams() {
            let labels: Vec<_> = labels.iter().map(|(n, v)| (*n, v.as_str())).collect();
            summary_of(readers.frame_rtt_ns.cells()).write(text, NAME, &labels);
        }
    }

    /// How many streams carry pages, of lanes on which that is found out.
    fn tuned_family(&self, text: &mut TextBuilder) {
        const NAME: &str = "dwcp_lane_streams";
        let help = "Streams of a lane that carry pages (carrying), and that are kept open (open).";
        text.family(NAME, Kind::Gauge, help);
        for (link, entry) in &self.links {
            let (link, peer) = (link.to_string(), entry.peer_name.as_str());
            for (lane, tuned) in &entry.tuned {
                let lane = lane.to_string();
                for (kind, count) in [("carrying", tuned.carrying()), ("open", tuned.open)] {
                    let labels =
                        [("link", &*link), ("peer", peer), ("lane", &*lane), ("kind", kind)];
                    text.sample(NAME, &labels, f64::from(count));
                }
            }
        }
    }

    /// All streams with the labels that name them.
    fn streams(&self) -> impl Iterator<Item = (Labels, &StreamReaders)> {
        self.links.iter().flat_map(|(link, entry)| {
            entry.streams.iter().map(move |(stream, readers)| {
                let labels = vec![
                    ("link", link.to_string()),
                    ("peer", entry.peer_name.clone()),
                    ("stream", stream.to_string()),
                ];
                (labels, readers)
            })
        })
    }
}

fn session_row(session: &Session) -> Row {
    Row {
        labels: vec![
            ("session", session.id().to_string()),
            ("role", session.role().name().to_owned()),
            ("peer", session.record.peer.clone()),
        ],
        values: (0..SESSION_COUNTERS.len()).map(|index| session.count(index)).collect(),
    }
}

/// A carrier's session; its shard counts from the time that it takes part.
fn carried_row(session: &CarrySession) -> Option<Row> {
    let labels = vec![
        ("session", session.id.to_string()),
        ("role", session.role.name().to_owned()),
        ("peer", session.peer.clone()),
    ];
    Some(Row { labels, values: session.stats.as_ref()?.snapshot().to_vec() })
}

/// Writes one family for each counter of a table.
fn table(text: &mut TextBuilder, infos: &[CounterInfo], rows: &[Row]) {
    for (index, info) in infos.iter().enumerate() {
        let in_nanos = info.name.contains("_nanoseconds");
        let name = format!("dwcp_{}", info.name.replace("_nanoseconds", "_seconds"));
        let kind = if name.ends_with("_total") { Kind::Counter } else { Kind::Gauge };
        text.family(&name, kind, info.help);
        for row in rows {
            let labels: Vec<_> = row.labels.iter().map(|(n, v)| (*n, v.as_str())).collect();
            let value = count_float(row.values[index]);
            text.sample(&name, &labels, if in_nanos { value / 1e9 } else { value });
        }
    }
}

fn gauge(text: &mut TextBuilder, name: &str, help: &str, value: f64) {
    text.family(name, Kind::Gauge, help);
    text.sample(name, &[], value);
}

fn float(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::MAX, f64::from)
}

#[allow(clippy::cast_precision_loss, reason = "Prometheus values are floats")]
fn count_float(count: u64) -> f64 {
    count as f64
}
