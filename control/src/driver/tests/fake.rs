//! What the tests of the driver run on: whole control planes in one process, each with a fake shard
//! that moves nothing, and clients of their sockets.

use super::super::carry::Carry;
use super::super::core::{Core, Counters};
use super::super::run::{Inputs, start};
use super::fake_shard::{FakeShard, SHARDS, Script};
use super::qemus::{FakeHost, Qemus};
use crate::carry::{CarryConfig, CarryInput, CarryReport};
use crate::config::{
    ControlConfig, DaemonFacts, LiveSettings, MemoryBudget, PeerSecurity, PeerTimeouts,
    SettingRefused, SettingView, SettingsPort, SocketConfig, StoreConfig,
};
use crate::kept::Keeper;
use dwcp_dataplane::port::{Level, ShardPort};
use dwcp_ffi::memory::PagePool;
use dwcp_ffi::poll::waker;
use dwcp_ffi::region::{HugePages, Region};
use dwcp_ffi::scm::send_with_fds;
use dwcp_store::{StoreKey, StoreLimits};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Two live settings and one that is fixed.
#[derive(Debug)]
struct Settings {
    zstd_level: i32,
    resume_window_s: u64,
}

impl Settings {
    fn view(name: &str, value: &Value, live: bool) -> SettingView {
        let (unit, from, default) = (String::new(), "default".to_owned(), json!(1));
        SettingView { name: name.to_owned(), value: value.clone(), unit, default, live, from }
    }
}

impl SettingsPort for Settings {
    fn list(&self) -> Vec<SettingView> {
        let level = json!(self.zstd_level);
        vec![Self::view("zstd-level", &level, true), Self::view("listen", &json!(1), false)]
    }

    fn set(&mut self, name: &str, value: &Value) -> Result<SettingView, SettingRefused> {
        let name = name.to_owned();
        match name.as_str() {
            "zstd-level" => {
                let level = value.as_i64().filter(|level| (1..=19).contains(level));
                let Some(level) = level else {
                    return Err(SettingRefused::Invalid { name, expected: "1 to 19".to_owned() });
                };
                self.zstd_level = i32::try_from(level).unwrap();
                Ok(Self::view(&name, value, true))
            }
            "resume-window" => {
                self.resume_window_s = value.as_u64().unwrap();
                Ok(Self::view(&name, value, true))
            }
            "listen" => Err(SettingRefused::Fixed { name }),
            _ => Err(SettingRefused::Unknown { name }),
        }
    }

    fn live(&self) -> LiveSettings {
        let resume_window = Duration::from_secs(self.resume_window_s);
        let zstd_level = Level::Fixed(self.zstd_level);
        LiveSettings { streams: 2, zstd_level, resume_window, ..LiveSettings::default() }
    }
}

/// The configuration of a daemon named `name`.
pub(super) fn config(directory: &Path, name: &str) -> ControlConfig {
    ControlConfig {
        socket: Some(SocketConfig::new(directory.join(name))),
        listen: Some(([127, 0, 0, 1], 0).into()),
        security: PeerSecurity::InsecurePlaintext { host_name: name.to_owned() },
        state_dir: Some(directory.join(format!("{name}.state"))),
        store: None,
        metrics: None,
        memory: MemoryBudget {
            sessions_bytes: 1 << 30,
            source_bytes_per_page: 64,
            sink_bytes_per_page: 32,
        },
        pages: PagePool::new(1 << 30).unwrap(),
        links_max: 8,
        streams_per_link_max: 16,
        timeouts: PeerTimeouts::default(),
        facts: DaemonFacts::default(),
        break_invariant: false,
    }
}

/// A running control plane.
pub(super) struct Daemon {
    pub(super) script: Rc<Script>,
    pub(super) info: Value,
    pub(super) metrics: String,
    pub(super) counters: Counters,
    /// Of a carrier: its VMM's connections.
    pub(super) vmms: mpsc::Sender<CarryInput>,
    config: ControlConfig,
    verified: Rc<RefCell<usize>>,
    qemus: Rc<Qemus>,
    tasks: [JoinHandle<()>; 2],
}

impl Daemon {
    /// Starts one with the defaults of [`config`].
    pub(super) async fn start(directory: &Path, name: &str, verified: &Rc<RefCell<usize>>) -> Self {
        Self::start_with(config(directory, name), verified).await
    }

    pub(super) async fn start_with(config: ControlConfig, verified: &Rc<RefCell<usize>>) -> Self {
        Self::start_vm(config, verified, Qemus::start()).await
    }

    /// Starts one whose virtual machines are these.
    pub(super) async fn start_vm(
        config: ControlConfig,
        verified: &Rc<RefCell<usize>>,
        qemus: Rc<Qemus>,
    ) -> Self {
        Self::start_any(config, verified, qemus, None).await
    }

    /// Starts a carrier.
    pub(super) async fn start_carrier(
        config: ControlConfig,
        carry: CarryConfig,
        report: Box<dyn CarryReport>,
    ) -> Self {
        let config = ControlConfig { socket: None, state_dir: None, ..config };
        let carry = Some((carry, report));
        Self::start_any(config, &Rc::new(RefCell::new(0)), Qemus::start(), carry).await
    }

    async fn start_any(
        config: ControlConfig,
        verified: &Rc<RefCell<usize>>,
        qemus: Rc<Qemus>,
        carry: Option<(CarryConfig, Box<dyn CarryReport>)>,
    ) -> Self {
        let (wake, receiver) = waker().unwrap();
        let script = Rc::new(Script::default());
        let (ports, mut shards): (Vec<ShardPort>, Vec<FakeShard>) =
            (0..SHARDS).map(|_| FakeShard::new(wake.clone(), &script, verified)).unzip();
        let mut inputs = Inputs::open(receiver).unwrap();
        let settings = Box::new(Settings { zstd_level: 1, resume_window_s: 600 });
        let host = FakeHost { qemus: Rc::clone(&qemus), reports: inputs.vms.0.clone() };
        let host = Box::new(host);
        let mut core: Core =
            start(config.clone(), settings, ports, host, &mut inputs).await.unwrap();
        if let (Some(store), Some(state)) = (&config.store, &config.state_dir) {
            // A host without certificates keeps nothing; these have a key all the same.
            let StoreConfig { bytes_max, pages_max, ttl } = *store;
            let limits = StoreLimits { bytes_max, pages_max, ttl };
            let key = StoreKey::new([7; 32]);
            let (keeper, news, _) =
                Keeper::open(&state.join("store"), key, limits, config.pages.clone()).unwrap();
            (core.keeper, inputs.kept) = (Some(keeper), Some(news));
        }
        let vmms = inputs.carry.0.clone();
        if let Some((carry, report)) = carry {
            core.carry = Some(Box::new(Carry::new(carry, report, vmms.clone())));
        }
        let (info, metrics) = (core.daemon_info(), core.metrics());
        let counters = core.counters.clone();
        let stopped = Rc::clone(&script);
        let serve = tokio::task::spawn_local(async move {
            let mut serve = Box::pin(inputs.serve(&mut core));
            std::future::poll_fn(|context| {
                if stopped.stopped.get() {
                    return std::task::Poll::Pending;
                }
                serve.as_mut().poll(context)
            })
            .await
            .unwrap();
        });
        let shard = tokio::task::spawn_local(async move {
            loop {
                shards.iter_mut().for_each(FakeShard::poll);
                tokio::task::yield_now().await;
            }
        });
        let verified = Rc::clone(verified);
        let tasks = [serve, shard];
        Self { script, info, metrics, counters, vmms, config, verified, qemus, tasks }
    }

    /// Ends it as a kill does: nobody is told, only what the kernel closes is closed.
    pub(super) async fn kill(self) -> Killed {
        for task in self.tasks {
            task.abort();
            assert!(task.await.unwrap_err().is_cancelled());
        }
        // The tasks that hold its sockets end with the core.
        while self.config.socket.as_ref().is_some_and(|socket| socket.path.exists()) {
            tokio::task::yield_now().await;
        }
        let mut config = self.config;
        config.listen = serde_json::from_value(self.info["listen"].clone()).unwrap();
        Killed { config, verified: self.verified, qemus: self.qemus }
    }
}

/// What a killed daemon leaves behind.
pub(super) struct Killed {
    config: ControlConfig,
    verified: Rc<RefCell<usize>>,
    qemus: Rc<Qemus>,
}

impl Killed {
    /// Starts it again with its state directory and its port.
    pub(super) async fn restart(self) -> Daemon {
        while let Err(error) = tokio::net::TcpListener::bind(self.config.listen.unwrap()).await {
            assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
            tokio::task::yield_now().await;
        }
        Daemon::start_vm(self.config, &self.verified, self.qemus).await
    }
}

/// A client of a daemon's control socket.
pub(super) struct Client(BufReader<UnixStream>);

impl Client {
    pub(super) async fn connect(directory: &Path, name: &str) -> Self {
        Self(BufReader::new(UnixStream::connect(directory.join(name)).await.unwrap()))
    }

    /// Asks and waits for the answer.
    pub(super) async fn ask(&mut self, method: &str, params: Value) -> Value {
        self.send(method, params).await;
        self.next().await
    }

    /// Asks; the answer is the next line that is no notification.
    pub(super) async fn send(&mut self, method: &str, params: Value) {
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        self.0.write_all(format!("{request}\n").as_bytes()).await.unwrap();
    }

    /// Registers a region of 16 pages.
    pub(super) async fn register(&mut self, params: Value) -> Value {
        let region = Region::create("test", 16 << 12, HugePages::Never).unwrap();
        let request = json!({
            "jsonrpc": "2.0", "id": 1, "method": "region.register", "params": params,
        });
        let line = format!("{request}\n");
        send_with_fds(self.0.get_ref().as_fd(), line.as_bytes(), &[region.fd()]).unwrap();
        self.next().await
    }

    /// Adds a file to what the daemon keeps.
    pub(super) async fn add(&mut self, file: &File, params: Value) -> Value {
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": "store.add", "params": params });
        let line = format!("{request}\n");
        send_with_fds(self.0.get_ref().as_fd(), line.as_bytes(), &[file.as_fd()]).unwrap();
        self.next().await
    }

    /// The next line of the daemon.
    pub(super) async fn next(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// Waits until `session.show` tells this state; returns the record.
    pub(super) async fn wait_for(&mut self, session: &Value, state: &str) -> Value {
        loop {
            let shown = self.ask("session.show", json!({ "session": session })).await;
            if shown["result"]["state"] == state {
                return shown["result"].clone();
            }
            tokio::task::yield_now().await;
        }
    }

    /// Waits until there is one session and it is in this state; returns its name.
    pub(super) async fn wait_state_of_only_session(&mut self, state: &str) -> Value {
        loop {
            let list = self.ask("session.list", json!({})).await;
            if list["result"][0]["state"] == state {
                return list["result"][0]["session"].clone();
            }
            tokio::task::yield_now().await;
        }
    }

    /// The code of the error of an answer.
    pub(super) async fn refusal(&mut self, method: &str, params: Value) -> Value {
        self.ask(method, params).await["error"]["data"]["code"].clone()
    }
}

/// Two daemons, `a` with a source region and `b` with a sink region, both named `r`.
pub(super) struct Pair {
    pub(super) directory: tempfile::TempDir,
    pub(super) a: Daemon,
    pub(super) b: Daemon,
    pub(super) at_a: Client,
    pub(super) at_b: Client,
}

impl Pair {
    pub(super) async fn start(directory: tempfile::TempDir) -> Self {
        let verified = Rc::new(RefCell::new(0));
        let a = Daemon::start(directory.path(), "a", &verified).await;
        let b = Daemon::start(directory.path(), "b", &verified).await;
        let mut at_a = Client::connect(directory.path(), "a").await;
        let mut at_b = Client::connect(directory.path(), "b").await;
        let sink = json!({ "name": "r", "role": "sink", "accept_from": ["a"] });
        assert_eq!(at_b.register(sink).await["result"]["pages"], 16);
        let source = at_a.register(json!({ "name": "r", "role": "source" })).await;
        assert_eq!(source["result"]["pages"], 16);
        Self { directory, a, b, at_a, at_b }
    }

    /// What opens a session from `a` to `b`.
    pub(super) fn open_params(&self) -> Value {
        json!({ "region": "r", "peer": self.b.info["listen"] })
    }

    /// Opens a session from `a` to `b` and returns its name.
    pub(super) async fn open(&mut self) -> Value {
        let params = self.open_params();
        let opened = self.at_a.ask("session.open", params).await;
        assert_eq!(opened["result"]["peer_name"], "b", "{opened}");
        opened["result"]["session"].clone()
    }
}

/// Runs a test of the control plane, with a bound.
pub(super) fn run<F: Future<Output = ()>>(test: impl FnOnce(tempfile::TempDir) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let test = test(tempfile::tempdir().unwrap());
        tokio::time::timeout(Duration::from_secs(60), test).await.expect("the test hangs");
    });
}
