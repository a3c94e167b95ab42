//! A host's journal: what is on the disk, and what is on its way there.
//!
//! Survives crashes of its host, unlike everything else of it. Writes are done in order; one that
//! fails may have reached the disk all the same, and so may those that a crash finds in the queue.

use dwcp_dataplane::link::sim::Rng;
use dwcp_proto::ids::SessionId;
use dwcp_proto::session::record::{SinkRecord, SourceRecord};
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::token::JournalId;
use std::collections::{BTreeMap, VecDeque};

/// A session's record, of either end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    Source(SourceRecord),
    Sink(SinkRecord),
}

/// A write that the host waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Write {
    pub(crate) session: SessionId,
    pub(crate) record: Record,
    pub(crate) fails: bool,
    reaches: bool,
}

#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) id: JournalId,
    records: BTreeMap<SessionId, Record>,
    queue: VecDeque<(Nanos, Write)>,
    rng: Rng,
    /// The longest that a write takes.
    pub(crate) latency_max: Nanos,
    /// Writes that fail, in a thousand.
    pub(crate) failures: u64,
}

impl Disk {
    pub(crate) fn new(mut rng: Rng) -> Self {
        let id = JournalId(rng.bytes());
        let (records, queue) = (BTreeMap::new(), VecDeque::new());
        Self { id, records, queue, rng, latency_max: Nanos(1_000_000), failures: 0 }
    }

    /// What is surely on the disk.
    pub(crate) fn record(&self, session: SessionId) -> Option<Record> {
        self.records.get(&session).copied()
    }

    pub(crate) fn records(&self) -> impl Iterator<Item = (SessionId, Record)> + '_ {
        self.records.iter().map(|(session, record)| (*session, *record))
    }

    /// Orders a write; tells when it is done.
    pub(crate) fn write(&mut self, now: Nanos, session: SessionId, record: Record) -> Nanos {
        let fails = self.rng.chance(self.failures, 1000);
        let reaches = !fails || self.rng.chance(1, 2);
        let latest = self.queue.back().map_or(now, |(due, _)| *due);
        let due = latest.max(now + Nanos(self.rng.below(self.latency_max.0 + 1)));
        self.queue.push_back((due, Write { session, record, fails, reaches }));
        due
    }

    /// The next write that is done by now.
    pub(crate) fn done(&mut self, now: Nanos) -> Option<Write> {
        self.queue.front().filter(|(due, _)| *due <= now)?;
        let (_, write) = self.queue.pop_front()?;
        self.keep(write);
        Some(write)
    }

    /// The host is gone: some of what waits is on the disk, the elder before the younger.
    pub(crate) fn crash(&mut self) {
        let survive = self.rng.below(self.queue.len() as u64 + 1);
        for at in 0..self.queue.len() as u64 {
            if let Some((_, write)) = self.queue.pop_front()
                && at < survive
            {
                self.keep(write);
            }
        }
    }

    /// The record is not needed any more.
    pub(crate) fn forget(&mut self, session: SessionId) {
        self.records.remove(&session);
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    fn keep(&mut self, write: Write) {
        if write.reaches {
            self.records.insert(write.session, write.record);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_keeps_the_elder_writes_and_drops_the_younger() {
        for seed in 0..50 {
            let mut disk = Disk::new(Rng::new(seed));
            let records = [SinkRecord::Aborted, SinkRecord::Committed].map(Record::Sink);
            let sessions = [1, 2].map(|name| SessionId([name; 16]));
            for (session, record) in sessions.into_iter().zip(records) {
                disk.write(Nanos(0), session, record);
            }
            disk.crash();
            let kept = sessions.map(|session| disk.record(session).is_some());
            assert_ne!(kept, [false, true], "seed {seed}");
            assert!(disk.is_idle() && disk.done(Nanos(u64::MAX)).is_none());
        }
    }

    #[test]
    fn a_write_is_done_after_its_time_and_in_order() {
        let mut disk = Disk::new(Rng::new(3));
        let session = SessionId([1; 16]);
        let due = disk.write(Nanos(5), session, Record::Sink(SinkRecord::Aborted));
        assert!(disk.record(session).is_none());
        assert!(due <= Nanos(5) + disk.latency_max);
        assert!(!disk.done(due).unwrap().fails);
        assert_eq!(disk.record(session), Some(Record::Sink(SinkRecord::Aborted)));
    }
}
