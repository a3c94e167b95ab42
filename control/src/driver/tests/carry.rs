//! A link that is lost under a carrier's session: what was said meanwhile is said again.

use super::fake::{Daemon, config, run};
use super::path::Path;
use crate::api::PeerAddress;
use crate::carry::{CarryConfig, CarryEvent, CarryInput, CarryReport, CarrySide};
use crate::config::ControlConfig;
use dwcp_dataplane::port::ChannelEnd;
use std::cell::RefCell;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use tokio::net::UnixListener;

/// What a carrier has said and nobody has asked for yet.
#[derive(Clone, Debug, Default)]
struct Said(Rc<RefCell<Vec<CarryEvent>>>);

impl CarryReport for Said {
    fn report(&mut self, event: &CarryEvent) {
        self.0.borrow_mut().push(event.clone());
    }
}

impl Said {
    /// Waits for such an event; those before it are forgotten.
    async fn wait(&self, is_it: impl Fn(&CarryEvent) -> bool) -> CarryEvent {
        loop {
            let at = self.0.borrow().iter().position(&is_it);
            if let Some(at) = at {
                return self.0.borrow_mut().drain(..=at).next_back().unwrap();
            }
            tokio::task::yield_now().await;
        }
    }

    async fn ended(&self) -> CarryEvent {
        self.wait(|event| matches!(event, CarryEvent::Ended { .. })).await
    }
}

/// A session from `a` to `b` over a path of the test's.
struct Carriers {
    a: Daemon,
    b: Daemon,
    said: [Said; 2],
    path: Path,
    /// The source VMM's ends of its connections.
    near: Vec<UnixStream>,
    _far: UnixListener,
}

impl Carriers {
    async fn start(directory: &std::path::Path) -> Self {
        let said = [Said::default(), Said::default()];
        let connect_unix = directory.join("in");
        let far = UnixListener::bind(&connect_unix).unwrap();
        let side = CarrySide::Sink { connect_unix, accept_from: Vec::new() };
        let b = Self::carrier(config(directory, "b"), side, &said[1]).await;
        let path = Path::to(&b.info["listen"]).await;
        let to = PeerAddress::try_from(path.address.to_string()).unwrap();
        let side = CarrySide::Source { listen_unix: directory.join("out"), to };
        let own = ControlConfig { listen: None, ..config(directory, "a") };
        let a = Self::carrier(own, side, &said[0]).await;
        let mut carriers = Self { a, b, said, path, near: Vec::new(), _far: far };
        carriers.connect().await;
        for said in &carriers.said {
            said.wait(|event| matches!(event, CarryEvent::Opened { .. })).await;
        }
        carriers
    }

    async fn carrier(config: ControlConfig, side: CarrySide, said: &Said) -> Daemon {
        let carry = CarryConfig { side, passthrough: false };
        Daemon::start_carrier(config, carry, Box::new(said.clone())).await
    }

    /// The source's VMM opens one more connection.
    async fn connect(&mut self) {
        let (near, far) = UnixStream::pair().unwrap();
        self.near.push(near);
        self.a.vmms.send(CarryInput::Accepted(far.into())).await.unwrap();
    }

    async fn lose(&self) {
        self.path.hold();
        self.path.cut();
        for said in &self.said {
            said.wait(|event| matches!(event, CarryEvent::Parked { .. })).await;
        }
    }

    async fn heal(&self) {
        self.path.heal();
        for said in &self.said {
            said.wait(|event| matches!(event, CarryEvent::Resumed { .. })).await;
        }
    }

    /// Every channel ends at both ends, in both directions.
    fn end(&self) {
        for daemon in [&self.a, &self.b] {
            let ends = (0..).zip(&self.near).flat_map(|(channel, _)| {
                [ChannelEnd::Peer, ChannelEnd::Closed].map(|end| (channel, end))
            });
            daemon.script.ends.borrow_mut().extend(ends);
        }
    }

    async fn end_well(&self) {
        for said in &self.said {
            let ended = said.ended().await;
            let well = matches!(&ended, CarryEvent::Ended { failure: None, .. });
            assert!(well, "{ended:?}");
        }
    }
}

#[test]
fn a_channel_that_opens_while_the_link_is_lost_is_announced_later() {
    run(|directory| async move {
        let mut carriers = Carriers::start(directory.path()).await;
        carriers.lose().await;
        carriers.connect().await;
        while carriers.a.script.channels.get() < 2 {
            tokio::task::yield_now().await;
        }
        carriers.heal().await;
        while carriers.b.script.channels.get() < 2 {
            tokio::task::yield_now().await;
        }
        // What was heard before is no news.
        carriers.lose().await;
        carriers.heal().await;
        assert_eq!(carriers.b.script.channels.get(), 2);
        assert_eq!(carriers.a.counters.links_resumed.count("source"), 2);
        assert_eq!(carriers.b.counters.links_resumed.count("sink"), 2);
        carriers.end();
        carriers.end_well().await;
    });
}

#[test]
fn an_end_that_is_counted_while_the_link_is_lost_is_told_later() {
    run(|directory| async move {
        let carriers = Carriers::start(directory.path()).await;
        carriers.lose().await;
        carriers.end();
        carriers.heal().await;
        carriers.end_well().await;
    });
}

#[test]
fn a_sink_that_was_ended_is_not_waited_for() {
    run(|directory| async move {
        let carriers = Carriers::start(directory.path()).await;
        carriers.lose().await;
        carriers.b.script.ends.borrow_mut().push((0, ChannelEnd::Broken));
        let ended = carriers.said[1].ended().await;
        assert!(format!("{ended:?}").contains("vmm_closed"), "{ended:?}");
        carriers.path.heal();
        let ended = carriers.said[0].ended().await;
        assert!(format!("{ended:?}").contains("link_lost"), "{ended:?}");
    });
}
