//! The journal: records handed over by the control thread, written and synced by one thread.
//!
//! The thread is named `dwcp-journal`, takes records from a bounded queue, writes those that wait
//! together in one transaction, and reports each one only after the disk has it. The control thread
//! never waits for a disk. The database file is locked, so that two daemons can't share a state.

use super::attached::AttachedVm;
use super::record::SessionRecord;
use crate::limits::JOURNAL_QUEUE;
use dwcp_proto::ids::SessionId;
use dwcp_proto::wire::token::JournalId;
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
};
use serde::de::DeserializeOwned;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use tokio::sync::mpsc;

const SESSIONS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("sessions");
const VMS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("vms");
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// The version of what is written; an older daemon must not misread a newer one's records. 1:
/// regions alone. 2: virtual machines and operators' decisions too; 1 is read and becomes 2.
const FORMAT: u64 = 2;
const FILE_NAME: &str = "dwcp.redb";

/// Why the journal can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The state directory can't be made or written to.
    #[error("the state directory {} can't be used: {source}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Another daemon uses the directory.
    #[error("another daemon uses the state directory {}", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The database does not open.
    #[error("the journal {} is damaged or no journal: {detail}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The database's words.
        detail: String,
    },
    /// A newer daemon wrote it.
    #[error("the journal {} has format {found}, this binary knows {FORMAT}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The format found.
        found: u64,
    },
    /// The disk failed while writing.
    #[error("the journal can't be written: {detail}")]
    Write {
        /// The database's words.
        detail: String,
    },
    /// The journal's thread can't start.
    #[error("the journal's thread can't start: {source}")]
    Thread {
        /// The kernel's reason.
        source: io::Error,
    },
}

impl JournalError {
    /// The stable name of the fault.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Directory { .. } => "state_directory",
            Self::Locked { .. } => "state_locked",
            Self::Damaged { .. } => "journal_damaged",
            Self::Format { .. } => "journal_format",
            Self::Write { .. } => "journal_write",
            Self::Thread { .. } => "journal_thread",
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn cure(&self) -> &'static str {
        match self {
            Self::Directory { .. } => "give a --state directory that the daemon may write to",
            Self::Locked { .. } => "stop the other daemon or give another --state directory",
            Self::Damaged { .. } => {
                "move dwcp.redb away; never put an older copy in its place: it would deny \
                 commits made since, and two hosts could own one region"
            }
            Self::Format { .. } => "start the newer binary, or give another --state directory",
            Self::Write { .. } => "check the disk and its free space",
            Self::Thread { .. } => "raise the limit on threads (ulimit -u)",
        }
    }
}

/// Names one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(pub(crate) u64);

/// A write is on disk, or never will be.
#[derive(Debug)]
pub(crate) struct JournalDone {
    pub(crate) ticket: Ticket,
    pub(crate) outcome: Result<(), JournalError>,
}

/// What is to be written in one transaction.
#[derive(Debug)]
pub(crate) enum Change {
    /// A session's record; the records in `forget` are deleted.
    Session {
        /// The record.
        record: Box<SessionRecord>,
        /// What goes.
        forget: Vec<SessionId>,
    },
    /// A virtual machine, or that it is not attached any more.
    Vm {
        /// Its name.
        name: String,
        /// What is kept of it.
        vm: Option<AttachedVm>,
    },
}

/// What a journal held when it was opened.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Every session, the oldest first.
    pub(crate) sessions: Vec<SessionRecord>,
    /// Every attached virtual machine.
    pub(crate) vms: Vec<AttachedVm>,
}

#[derive(Debug)]
struct Write {
    ticket: Ticket,
    change: Change,
}

/// The control thread's end of the journal. Dropping it ends the thread after its last write.
#[derive(Debug)]
pub(crate) struct Journal {
    id: JournalId,
    queue: Option<SyncSender<Write>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Journal {
    /// Opens or makes the journal and reads everything.
    ///
    /// A new journal is named `fresh`; an old one keeps its name.
    ///
    /// # Errors
    /// The directory or the file can't be used.
    pub(crate) fn open(
        directory: &Path,
        fresh: JournalId,
    ) -> Result<(Self, mpsc::Receiver<JournalDone>, Stored), JournalError> {
        let (database, id, stored) = open_database(directory, fresh)?;
        Self::start(database, id, stored)
    }

    /// A journal that nothing survives, for a process that commits nothing.
    ///
    /// # Errors
    /// Its thread can't start.
    pub(crate) fn in_memory(
        fresh: JournalId,
    ) -> Result<(Self, mpsc::Receiver<JournalDone>, Stored), JournalError> {
        let failed = |detail: String| JournalError::Write { detail };
        let backend = redb::backends::InMemoryBackend::new();
        let database = Database::builder().create_with_backend(backend);
        let database = database.map_err(|error| failed(error.to_string()))?;
        let (_, id) = prepare(&database, fresh).map_err(|error| failed(error.to_string()))?;
        Self::start(database, id, Stored::default())
    }

    fn start(
        database: Database,
        id: JournalId,
        stored: Stored,
    ) -> Result<(Self, mpsc::Receiver<JournalDone>, Stored), JournalError> {
        let (queue, writes) = sync_channel(JOURNAL_QUEUE);
        let (done, reports) = mpsc::channel(JOURNAL_QUEUE);
        let thread = std::thread::Builder::new()
            .name("dwcp-journal".to_owned())
            .spawn(move || write_until_closed(&database, &writes, &done))
            .map_err(|source| JournalError::Thread { source })?;
        Ok((Self { id, queue: Some(queue), thread: Some(thread) }, reports, stored))
    }

    /// The journal's name, which tells peers whether it is the one that they knew.
    pub(crate) fn id(&self) -> JournalId {
        self.id
    }

    /// Hands a change over.
    ///
    /// # Errors
    /// The queue is full or the thread is gone: nothing will be written and no report comes.
    pub(crate) fn write(&self, ticket: Ticket, change: Change) -> Result<(), JournalError> {
        let write = Write { ticket, change };
        let queue =
            self.queue.as_ref().ok_or(JournalError::Write { detail: "closed".to_owned() })?;
        queue.try_send(write).map_err(|error| JournalError::Write {
            detail: match error {
                TrySendError::Full(_) => "too many writes wait for the disk".to_owned(),
                TrySendError::Disconnected(_) => "its thread ended".to_owned(),
            },
        })
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was reported there; here only the end matters.
            let _ = thread.join();
        }
    }
}

fn open_database(
    directory: &Path,
    fresh: JournalId,
) -> Result<(Database, JournalId, Stored), JournalError> {
    let unusable = |source| JournalError::Directory { path: directory.to_owned(), source };
    std::fs::create_dir_all(directory).map_err(unusable)?;
    let path = directory.join(FILE_NAME);
    let database = Database::create(&path).map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => JournalError::Locked { path: directory.to_owned() },
        DatabaseError::Storage(StorageError::Io(source))
            if source.kind() != io::ErrorKind::InvalidData =>
        {
            unusable(source)
        }
        other => JournalError::Damaged { path: path.clone(), detail: other.to_string() },
    })?;
    // The file's name must be as durable as its content.
    std::fs::File::open(directory).and_then(|d| d.sync_all()).map_err(unusable)?;
    let damaged = |detail: String| JournalError::Damaged { path: path.clone(), detail };
    let (format, id) = prepare(&database, fresh).map_err(|e| damaged(e.to_string()))?;
    if format != FORMAT {
        return Err(JournalError::Format { path, found: format });
    }
    let mut sessions: Vec<SessionRecord> =
        read_all(&database, SESSIONS).map_err(|e| damaged(e.to_string()))?;
    sessions.sort_by_key(|r| (r.started_unix_ms, r.session));
    let vms = read_all(&database, VMS).map_err(|e| damaged(e.to_string()))?;
    Ok((database, id, Stored { sessions, vms }))
}

/// Makes the tables if they are missing; returns the format and the name of what is there.
fn prepare(database: &Database, fresh: JournalId) -> Result<(u64, JournalId), redb::Error> {
    let transaction = database.begin_write()?;
    let found = {
        transaction.open_table(SESSIONS)?;
        transaction.open_table(VMS)?;
        let mut meta = transaction.open_table(META)?;
        if meta.get("format")?.is_none() {
            let [high, low] = halves(fresh);
            for (name, value) in [("format", FORMAT), ("id_high", high), ("id_low", low)] {
                meta.insert(name, value)?;
            }
        }
        if meta.get("format")?.is_some_and(|format| format.value() == 1) {
            // Every record of a region is one of format 2 as well.
            meta.insert("format", FORMAT)?;
        }
        let value = |name| Ok::<_, redb::Error>(meta.get(name)?.map_or(0, |v| v.value()));
        let (format, high, low) = (value("format")?, value("id_high")?, value("id_low")?);
        let id = (u128::from(high) << 64) | u128::from(low);
        (format, JournalId(id.to_be_bytes()))
    };
    transaction.commit()?;
    Ok(found)
}

/// A name as the two numbers that the table holds.
fn halves(id: JournalId) -> [u64; 2] {
    let number = u128::from_be_bytes(id.0);
    // The casts keep the halves apart on purpose.
    [(number >> 64) as u64, number as u64]
}

fn read_all<T: DeserializeOwned>(
    database: &Database,
    table: TableDefinition<'_, &str, &[u8]>,
) -> Result<Vec<T>, redb::Error> {
    let transaction = database.begin_read()?;
    let table = transaction.open_table(table)?;
    let mut all = Vec::new();
    for row in table.iter()? {
        all.push(serde_json::from_slice(row?.1.value()).map_err(as_database_error)?);
    }
    Ok(all)
}

fn as_database_error(error: serde_json::Error) -> redb::Error {
    redb::Error::Io(io::Error::other(error))
}

fn write_until_closed(
    database: &Database,
    writes: &Receiver<Write>,
    done: &mpsc::Sender<JournalDone>,
) {
    while let Ok(first) = writes.recv() {
        let mut batch = vec![first];
        batch.extend(writes.try_iter().take(JOURNAL_QUEUE));
        let outcome = commit(database, &batch).map_err(|e| e.to_string());
        for write in batch {
            let outcome = outcome.clone().map_err(|detail| JournalError::Write { detail });
            // A report that nobody waits for belongs to a daemon that stops.
            let _ = done.blocking_send(JournalDone { ticket: write.ticket, outcome });
        }
    }
}

/// One transaction; returns after the disk has it (redb's default durability syncs on commit).
fn commit(database: &Database, batch: &[Write]) -> Result<(), redb::Error> {
    let transaction = database.begin_write()?;
    {
        let mut sessions = transaction.open_table(SESSIONS)?;
        let mut vms = transaction.open_table(VMS)?;
        for write in batch {
            match &write.change {
                Change::Session { record, forget } => {
                    let bytes = serde_json::to_vec(record).map_err(as_database_error)?;
                    sessions.insert(record.session.to_string().as_str(), bytes.as_slice())?;
                    for session in forget {
                        sessions.remove(session.to_string().as_str())?;
                    }
                }
                Change::Vm { name, vm: Some(vm) } => {
                    let bytes = serde_json::to_vec(vm).map_err(as_database_error)?;
                    vms.insert(name.as_str(), bytes.as_slice())?;
                }
                Change::Vm { name, vm: None } => {
                    vms.remove(name.as_str())?;
                }
            }
        }
    }
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::record::{SessionState, sample};
    use super::*;
    use crate::api::Role;

    #[test]
    fn a_reported_record_is_there_after_reopening() {
        let directory = tempfile::tempdir().unwrap();
        let (journal, mut reports, records) =
            Journal::open(directory.path(), JournalId([3; 16])).unwrap();
        assert_eq!(records, Stored::default());
        let first = sample(1, Role::Source, SessionState::Opening);
        let second = sample(2, Role::Sink, SessionState::Receiving);
        let change = |record, forget| Change::Session { record: Box::new(record), forget };
        journal.write(Ticket(1), change(first, vec![])).unwrap();
        journal.write(Ticket(2), change(second.clone(), vec![SessionId([1; 16])])).unwrap();
        let vm = AttachedVm {
            name: "vm".to_owned(),
            qmp: "/run/vm.qmp".into(),
            incoming: true,
            spawn: None,
            accept_from: vec!["a".to_owned()],
            trust_domain: None,
            ram_bytes: Some(1 << 30),
            left: false,
        };
        let attached = |name: &str, vm| Change::Vm { name: name.to_owned(), vm };
        journal.write(Ticket(3), attached("gone", Some(vm.clone()))).unwrap();
        journal.write(Ticket(4), attached("vm", Some(vm.clone()))).unwrap();
        journal.write(Ticket(5), attached("gone", None)).unwrap();
        for ticket in 1..=5 {
            let done = reports.blocking_recv().unwrap();
            assert_eq!(done.ticket, Ticket(ticket));
            done.outcome.unwrap();
        }
        drop((journal, reports));
        let (journal, _reports, records) =
            Journal::open(directory.path(), JournalId([4; 16])).unwrap();
        assert_eq!(records, Stored { sessions: vec![second], vms: vec![vm] });
        assert_eq!(journal.id(), JournalId([3; 16]), "a journal keeps its name");
    }

    #[test]
    fn two_daemons_never_share_a_state_directory() {
        let directory = tempfile::tempdir().unwrap();
        let _first = Journal::open(directory.path(), JournalId([3; 16])).unwrap();
        let error = Journal::open(directory.path(), JournalId([3; 16])).unwrap_err();
        assert_eq!(error.code(), "state_locked");
    }

    #[test]
    fn a_damaged_file_is_a_typed_error_with_a_cure() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join(FILE_NAME), vec![7; 4096]).unwrap();
        let error = Journal::open(directory.path(), JournalId([3; 16])).unwrap_err();
        assert_eq!(error.code(), "journal_damaged", "{error}");
        assert!(!error.cure().is_empty());
    }

    #[test]
    fn a_directory_that_is_a_file_is_a_typed_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(
            Journal::open(file.path(), JournalId([3; 16])).unwrap_err().code(),
            "state_directory"
        );
    }

    #[test]
    fn a_crash_at_any_moment_leaves_the_last_reported_record() {
        // A copy of the file while the journal is open is what a crash would leave behind.
        let directory = tempfile::tempdir().unwrap();
        let (journal, mut reports, _) =
            Journal::open(directory.path(), JournalId([3; 16])).unwrap();
        for (ticket, state) in
            [SessionState::Opening, SessionState::Verifying, SessionState::Yielded]
                .into_iter()
                .enumerate()
        {
            let record = sample(1, Role::Source, state);
            let change = Change::Session { record: Box::new(record), forget: vec![] };
            journal.write(Ticket(u64::try_from(ticket).unwrap()), change).unwrap();
            reports.blocking_recv().unwrap().outcome.unwrap();
            let crashed = tempfile::tempdir().unwrap();
            let file = directory.path().join(FILE_NAME);
            std::fs::copy(file, crashed.path().join(FILE_NAME)).unwrap();
            let (_journal, _reports, records) =
                Journal::open(crashed.path(), JournalId([4; 16])).unwrap();
            assert_eq!(records.sessions.iter().map(|r| r.state).collect::<Vec<_>>(), [state]);
        }
    }
}
