//! A source and a sink daemon, usually with the proxy between them, and transfers over them.

use super::client::{Answer, Client, Pending};
use super::daemon::{Daemon, DaemonSpec};
use super::memory::{MIB, Memory};
use super::pki::Pki;
use super::proxy::{Channel, Proxy, Way};
use dwcp_tools::lab::Net;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;
use tempfile::TempDir;

/// The source's name in its certificate.
pub(crate) const SOURCE: &str = "host-a";
/// The sink's name in its certificate.
pub(crate) const SINK: &str = "host-b";

/// Two daemons.
#[derive(Debug)]
pub(crate) struct Lab {
    pub(crate) source: Daemon,
    pub(crate) sink: Daemon,
    pub(crate) proxy: Proxy,
    /// On hosts of a network there is no proxy between them.
    is_direct: bool,
    // Last, so that the daemons have ended when it goes.
    _folder: TempDir,
}

impl Lab {
    /// Starts both with the same further flags and fresh certificates.
    pub(crate) fn start(flags: &[&str]) -> Self {
        Self::start_with(flags, flags)
    }

    /// Starts both with fresh certificates.
    pub(crate) fn start_with(source_flags: &[&str], sink_flags: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let pki = Pki::init(folder.path().join("pki"));
        let (source, sink) = (pki.host(SOURCE), pki.host(SINK));
        Self::start_in(folder, (Some(source), source_flags), (Some(sink), sink_flags))
    }

    /// Starts both with the given certificates.
    pub(crate) fn start_in(
        folder: TempDir,
        (source_pki, source_flags): (Option<PathBuf>, &[&str]),
        (sink_pki, sink_flags): (Option<PathBuf>, &[&str]),
    ) -> Self {
        let spec = |name, pki, flags| spec_of(&folder, name, pki, flags);
        let source = spec("source", source_pki, source_flags);
        let sink = spec("sink", sink_pki, sink_flags);
        Self::start_specs(folder, source, sink)
    }

    /// Starts source and sink of these binaries, with the same flags and fresh certificates.
    pub(crate) fn start_of([source, sink]: &[PathBuf; 2], flags: &[&str]) -> Self {
        let (folder, [near, far]) = Self::specs(flags);
        Self::start_specs(folder, near.of(source), far.of(sink))
    }

    /// Starts both on the two hosts of a network, with the same flags and fresh certificates.
    pub(crate) fn start_on(net: &Arc<Net>, flags: &[&str]) -> Self {
        let (folder, [source, sink]) = Self::specs(flags);
        let lab = Self::start_specs(folder, source.on(net, "a"), sink.on(net, "b"));
        Self { is_direct: true, ..lab }
    }

    fn specs(flags: &[&str]) -> (TempDir, [DaemonSpec; 2]) {
        let folder = tempfile::tempdir().expect("a folder");
        let pki = Pki::init(folder.path().join("pki"));
        let spec = |name, host| spec_of(&folder, name, Some(pki.host(host)), flags);
        let specs = [spec("source", SOURCE), spec("sink", SINK)];
        (folder, specs)
    }

    fn start_specs(folder: TempDir, source: DaemonSpec, sink: DaemonSpec) -> Self {
        let (source, sink) = (Daemon::start(source), Daemon::start(sink));
        let proxy = Proxy::start(sink.listen);
        Self { source, sink, proxy, is_direct: false, _folder: folder }
    }

    /// Where the source finds the sink: behind the proxy, where there is one.
    pub(crate) fn peer(&self) -> String {
        let address = if self.is_direct { self.sink.listen } else { self.proxy.address() };
        address.to_string()
    }

    /// Starts a dead sink again and tells the proxy.
    pub(crate) fn restart_sink(&mut self) {
        self.sink.restart();
        self.proxy.set_target(self.sink.listen);
    }

    /// Registers memory at both ends under one name.
    pub(crate) fn register(&self, name: &str, memory: Memory) -> Transfer {
        let dirty = if memory.has_bitmap() { "bitmap" } else { "compare" };
        let params = json!({"name": name, "role": "source", "dirty": dirty});
        let sink = Memory::empty(memory.pages() * 4096);
        register(&self.source, params, &memory);
        let params = json!({"name": name, "role": "sink", "accept_from": [SOURCE]});
        register(&self.sink, params, &sink);
        Transfer { name: name.to_owned(), source: memory, sink }
    }

    /// The parameters of `session.open` for a transfer.
    pub(crate) fn open_params(&self, transfer: &Transfer) -> Value {
        json!({"region": transfer.name, "peer": self.peer()})
    }

    /// Opens a session.
    pub(crate) fn open(&self, transfer: &Transfer) -> Result<Session, super::client::CallError> {
        let mut client = self.source.client();
        let answer = client.call("session.open", self.open_params(transfer))?;
        let id = answer["session"].as_str().expect("a session").to_owned();
        Ok(Session { client, id })
    }

    /// A round that stands still: its first MiB is under way, and the rest waits in the proxy.
    pub(crate) fn hold_round(&self, session: &Session) -> Pending {
        self.proxy.hold_after(Channel::Data, Way::Forth, MIB);
        let round = self.source.pending("session.round", session.params());
        self.proxy.wait_held(Channel::Data, Way::Forth);
        round
    }

    /// Opens a session that must open.
    pub(crate) fn must_open(&self, transfer: &Transfer) -> Session {
        self.open(transfer).unwrap_or_else(|error| panic!("session.open: {error:?}"))
    }

    /// Shows that all is well: a small session from beginning to end.
    pub(crate) fn good_session(&self, name: &str) {
        let transfer = self.register(name, Memory::filled(7, 2 << 20, false));
        let mut session = self.must_open(&transfer);
        session.round().expect("a good round");
        session.finish_committed();
        transfer.assert_equal();
    }
}

/// A lost link ends its sessions at once, so that what a cut leaves behind is seen; tests of links
/// that come back ask for more.
fn spec_of(folder: &TempDir, name: &str, pki: Option<PathBuf>, flags: &[&str]) -> DaemonSpec {
    let at_once = ["--resume-window", "0s"];
    let waits = flags.contains(&at_once[0]);
    let spec = DaemonSpec::new(&folder.path().join(name), pki);
    spec.with(if waits { &[] } else { &at_once }).with(flags)
}

fn register(daemon: &Daemon, params: Value, memory: &Memory) {
    let answer =
        daemon.client().call_with_fds("region.register", params.clone(), &memory.descriptors());
    let answer = answer.unwrap_or_else(|error| panic!("region.register {params}: {error:?}"));
    assert_eq!(answer["pages"], json!(memory.pages()));
}

/// Memory that is registered at both ends.
#[derive(Debug)]
pub(crate) struct Transfer {
    pub(crate) name: String,
    pub(crate) source: Memory,
    pub(crate) sink: Memory,
}

impl Transfer {
    /// Both ends hold the same bytes.
    pub(crate) fn assert_equal(&self) {
        let differing = self.source.differing_pages(&self.sink);
        assert!(differing.is_empty(), "{} pages differ: {:?}", differing.len(), first(&differing));
    }

    /// Nobody but the writer has touched the source.
    pub(crate) fn assert_source_intact(&self) {
        let foreign = self.source.foreign_pages();
        assert!(foreign.is_empty(), "pages of the source changed: {:?}", first(&foreign));
    }

    /// Nobody has touched the sink.
    pub(crate) fn assert_sink_untouched(&self) {
        let written = self.sink.written_pages();
        assert!(written.is_empty(), "pages of the sink were written: {:?}", first(&written));
    }
}

fn first(pages: &[u64]) -> &[u64] {
    &pages[..pages.len().min(20)]
}

/// An open session, seen from its source.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) id: String,
}

impl Session {
    /// The parameters that name it.
    pub(crate) fn params(&self) -> Value {
        json!({"session": self.id})
    }

    /// Runs a round.
    pub(crate) fn round(&mut self) -> Answer {
        self.client.call("session.round", json!({"session": self.id}))
    }

    /// Finishes it.
    pub(crate) fn finish(&mut self) -> Answer {
        self.client.call("session.finish", json!({"session": self.id}))
    }

    /// Finishes it; it must commit.
    pub(crate) fn finish_committed(&mut self) -> Value {
        let answer = self.finish().unwrap_or_else(|error| panic!("session.finish: {error:?}"));
        assert_eq!(answer["state"], "committed", "{answer}");
        answer
    }

    /// One of its counters, summed over the lanes.
    pub(crate) fn counter(&mut self, name: &str) -> u64 {
        let record = self.client.must("session.show", json!({"session": self.id}));
        record["counters"][name].as_u64().unwrap_or_else(|| panic!("no {name} in {record}"))
    }
}
