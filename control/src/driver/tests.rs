//! Two whole control planes in one process, with fake shards in place of the data plane: a session
//! from its opening to its commit over a real peer channel, and what is left when a peer vanishes.

use super::core::Core;
use super::run::{Inputs, start};
use crate::config::{
    ControlConfig, DaemonFacts, LiveSettings, MemoryBudget, PeerSecurity, PeerTimeouts,
    SettingRefused, SettingView, SettingsPort, SocketConfig,
};
use dwcp_dataplane::port::{Command, Event, RoundStats, ShardPort};
use dwcp_ffi::counters::{counters, histogram};
use dwcp_ffi::poll::waker;
use dwcp_ffi::region::{HugePages, Region};
use dwcp_ffi::scm::send_with_fds;
use dwcp_ffi::spsc::{Consumer, Producer, ring};
use dwcp_proto::ids::{SessionKey, StreamId};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::os::fd::AsFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

#[derive(Debug)]
struct Settings;

impl SettingsPort for Settings {
    fn list(&self) -> Vec<SettingView> {
        Vec::new()
    }

    fn set(&mut self, name: &str, _value: &Value) -> Result<SettingView, SettingRefused> {
        Err(SettingRefused::Unknown { name: name.to_owned() })
    }

    fn live(&self) -> LiveSettings {
        LiveSettings { streams: 2, ..LiveSettings::default() }
    }
}

/// A shard that moves nothing and says that all went well.
struct FakeShard {
    commands: Consumer<Command>,
    events: Producer<Event>,
    wake: dwcp_ffi::poll::Waker,
    sinks: Vec<SessionKey>,
    /// Sockets stay open as long as the shard has them.
    sockets: Vec<(StreamId, std::os::fd::OwnedFd)>,
    /// Sessions that the sources of all daemons have asked to verify.
    verified: Rc<RefCell<usize>>,
    verified_seen: usize,
}

impl FakeShard {
    fn poll(&mut self) {
        let mut events = Vec::new();
        while let Some(command) = self.commands.pop() {
            match command {
                Command::AddStream(setup) => {
                    let (link, stream) = (setup.link, setup.stream);
                    events.push(Event::StreamUp { link, stream });
                    self.sockets.push((stream, setup.socket));
                }
                Command::OpenSource(setup) => events.push(Event::Opened { session: setup.session }),
                Command::OpenSink(setup) => {
                    self.sinks.push(setup.session);
                    events.push(Event::Opened { session: setup.session });
                }
                Command::StartRound { session, round, .. } => {
                    let stats = RoundStats { pages: 4, pages_sent: 3, wire_bytes: 99, nanos: 7 };
                    events.push(Event::RoundDone { session, round, stats });
                }
                Command::Verify { session } => {
                    *self.verified.borrow_mut() += 1;
                    events.push(Event::Verified { session });
                }
                Command::CloseSession { session } => events.push(Event::Closed { session }),
                Command::DropLink { .. } => self.sockets.clear(),
                Command::Stop => events.push(Event::Stopped),
                Command::AddLane(_) | Command::BreakInvariant => {}
            }
        }
        if *self.verified.borrow() > self.verified_seen && !self.sinks.is_empty() {
            self.verified_seen = *self.verified.borrow();
            events.extend(self.sinks.drain(..).map(|session| Event::Verified { session }));
        }
        let woken = !events.is_empty();
        events.into_iter().for_each(|event| self.events.push(event).unwrap());
        if woken {
            self.wake.wake();
        }
    }
}

/// Starts a daemon's control plane; it runs until the test ends.
async fn daemon(directory: &Path, name: &str, verified: &Rc<RefCell<usize>>) -> Value {
    let (wake, receiver) = waker().unwrap();
    let (commands, shard_commands) = ring(64);
    let (shard_events, events) = ring(64);
    let (wake_shard, _) = waker().unwrap();
    let (_, stats) = counters();
    let (_, encode_ns) = histogram();
    let port = ShardPort { commands, events, wake_shard, stats, encode_ns };
    let mut shard = FakeShard {
        commands: shard_commands,
        events: shard_events,
        wake,
        sinks: Vec::new(),
        sockets: Vec::new(),
        verified: Rc::clone(verified),
        verified_seen: 0,
    };
    let config = ControlConfig {
        socket: SocketConfig::new(directory.join(name)),
        listen: Some(([127, 0, 0, 1], 0).into()),
        security: PeerSecurity::InsecurePlaintext { host_name: name.to_owned() },
        state_dir: directory.join(format!("{name}.state")),
        metrics: None,
        memory: MemoryBudget {
            sessions_bytes: 1 << 30,
            source_bytes_per_page: 64,
            sink_bytes_per_page: 32,
        },
        timeouts: PeerTimeouts::default(),
        facts: DaemonFacts::default(),
        break_invariant: false,
    };
    let mut inputs = Inputs::open(receiver).unwrap();
    let mut core: Core = start(config, Box::new(Settings), vec![port], &mut inputs).await.unwrap();
    let info = core.daemon_info();
    tokio::task::spawn_local(async move { inputs.serve(&mut core).await });
    tokio::task::spawn_local(async move {
        loop {
            shard.poll();
            tokio::task::yield_now().await;
        }
    });
    info
}

struct Client(BufReader<UnixStream>);

impl Client {
    async fn connect(directory: &Path, name: &str) -> Self {
        Self(BufReader::new(UnixStream::connect(directory.join(name)).await.unwrap()))
    }

    async fn ask(&mut self, method: &str, params: Value) -> Value {
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        self.0.write_all(format!("{request}\n").as_bytes()).await.unwrap();
        self.answer().await
    }

    async fn register(&mut self, params: Value) -> Value {
        let region = Region::create("test", 16 << 12, HugePages::Never).unwrap();
        let request = json!({
            "jsonrpc": "2.0", "id": 1, "method": "region.register", "params": params,
        });
        let line = format!("{request}\n");
        send_with_fds(self.0.get_ref().as_fd(), line.as_bytes(), &[region.fd()]).unwrap();
        self.answer().await
    }

    async fn answer(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

fn run<F: Future<Output = ()>>(test: impl FnOnce(tempfile::TempDir) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let test = test(tempfile::tempdir().unwrap());
        tokio::time::timeout(Duration::from_secs(60), test).await.expect("the test hangs");
    });
}

#[test]
fn a_session_goes_from_opening_to_commit_at_both_ends() {
    run(|directory| async move {
        let verified = Rc::new(RefCell::new(0));
        daemon(directory.path(), "a", &verified).await;
        let info = daemon(directory.path(), "b", &verified).await;
        let mut a = Client::connect(directory.path(), "a").await;
        let mut b = Client::connect(directory.path(), "b").await;
        let sink = json!({ "name": "r", "role": "sink", "accept_from": ["a"] });
        assert_eq!(b.register(sink).await["result"]["pages"], 16);
        let source = a.register(json!({ "name": "r", "role": "source" })).await;
        assert_eq!(source["result"]["pages"], 16);
        let open = json!({ "region": "r", "peer": info["listen"] });
        let opened = a.ask("session.open", open.clone()).await;
        let session = opened["result"]["session"].clone();
        assert_eq!(opened["result"]["peer_name"], "b", "{opened}");
        let busy = a.ask("session.open", open).await;
        assert_eq!(busy["error"]["data"]["code"], "region_busy");
        let named = json!({ "session": session });
        let round = a.ask("session.round", named.clone()).await;
        assert_eq!(round["result"]["pages_sent"], 3, "{round}");
        let finished = a.ask("session.finish", named.clone()).await;
        assert_eq!(finished["result"]["state"], "committed", "{finished}");
        assert_eq!(finished["result"]["rounds"], 2);
        let shown = b.ask("session.show", named.clone()).await;
        assert_eq!(shown["result"]["state"], "committed", "{shown}");
        let again = a.ask("session.round", named).await;
        assert_eq!(again["error"]["data"]["code"], "session_state", "{again}");
        // Released: nobody uses the region any more.
        while b.ask("region.release", json!({ "name": "r" })).await["error"].is_object() {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn a_sink_refuses_hosts_that_its_region_does_not_name() {
    run(|directory| async move {
        let verified = Rc::new(RefCell::new(0));
        daemon(directory.path(), "a", &verified).await;
        let info = daemon(directory.path(), "b", &verified).await;
        let mut a = Client::connect(directory.path(), "a").await;
        let mut b = Client::connect(directory.path(), "b").await;
        b.register(json!({ "name": "r", "role": "sink", "accept_from": ["c"] })).await;
        a.register(json!({ "name": "r", "role": "source" })).await;
        for sink_region in ["r", "unknown"] {
            let open = json!({ "region": "r", "peer": info["listen"], "sink_region": sink_region });
            let refused = a.ask("session.open", open).await;
            assert_eq!(refused["error"]["data"]["code"], "peer_refused", "{refused}");
            assert!(refused["error"]["message"].as_str().unwrap().contains("does not accept"));
        }
    });
}

#[test]
fn a_peer_that_is_not_there_is_a_typed_error_and_frees_the_region() {
    run(|directory| async move {
        let verified = Rc::new(RefCell::new(0));
        daemon(directory.path(), "a", &verified).await;
        let mut a = Client::connect(directory.path(), "a").await;
        a.register(json!({ "name": "r", "role": "source" })).await;
        let open = json!({ "region": "r", "peer": "127.0.0.1:1" });
        let refused = a.ask("session.open", open).await;
        assert_eq!(refused["error"]["data"]["code"], "peer_unreachable", "{refused}");
        assert!(a.ask("region.release", json!({ "name": "r" })).await["result"].is_object());
    });
}

#[test]
fn a_scrape_names_every_family_once_and_no_counter_lacks_its_ending() {
    run(|directory| async move {
        let verified = Rc::new(RefCell::new(0));
        let (_, receiver) = waker().unwrap();
        drop(verified);
        let (commands, _shard_commands) = ring(8);
        let (_shard_events, events) = ring(8);
        let (wake_shard, _) = waker().unwrap();
        let port = ShardPort {
            commands,
            events,
            wake_shard,
            stats: counters().1,
            encode_ns: histogram().1,
        };
        let config = ControlConfig {
            socket: SocketConfig::new(directory.path().join("s")),
            listen: None,
            security: PeerSecurity::InsecurePlaintext { host_name: "m".to_owned() },
            state_dir: directory.path().join("state"),
            metrics: None,
            memory: MemoryBudget {
                sessions_bytes: 0,
                source_bytes_per_page: 0,
                sink_bytes_per_page: 0,
            },
            timeouts: PeerTimeouts::default(),
            facts: DaemonFacts::default(),
            break_invariant: false,
        };
        let mut inputs = Inputs::open(receiver).unwrap();
        let core = start(config, Box::new(Settings), vec![port], &mut inputs).await.unwrap();
        let text = core.metrics();
        let families: Vec<&str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let mut names = families.clone();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), families.len());
        assert!(families.len() > 40, "{text}");
        assert!(!text.contains("nanoseconds"), "{text}");
    });
}
