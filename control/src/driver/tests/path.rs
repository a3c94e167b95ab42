//! A path between two daemons of a test that goes silent, is cut, and heals.

use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Connections are numbered in the order in which they come.
#[derive(Clone, Copy, Debug)]
struct Rules {
    /// Those below are silent.
    silent_below: u64,
    /// Those below are dead.
    dead_below: u64,
    next: u64,
    /// Where those that come lead to.
    target: SocketAddr,
}

/// The path. Ends with the test's tasks.
pub(super) struct Path {
    pub(super) address: SocketAddr,
    rules: watch::Sender<Rules>,
}

impl Path {
    /// A path to where a daemon listens.
    pub(super) async fn to(listen: &serde_json::Value) -> Self {
        let target: SocketAddr = serde_json::from_value(listen.clone()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let begun = Rules { silent_below: 0, dead_below: 0, next: 0, target };
        let (rules, watched) = watch::channel(begun);
        let numbers = rules.clone();
        tokio::task::spawn_local(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let number = numbers.borrow().next;
                numbers.send_modify(|rules| rules.next += 1);
                tokio::task::spawn_local(carry(number, near, watched.clone()));
            }
        });
        Self { address, rules }
    }

    /// Nothing passes, and nobody is told.
    pub(super) fn hold(&self) {
        self.rules.send_modify(|rules| rules.silent_below = u64::MAX);
    }

    /// On the connections of now nothing passes, and nobody is told; others work.
    pub(super) fn hold_old(&self) {
        self.rules.send_modify(|rules| rules.silent_below = rules.next);
    }

    /// What is held passes, and all that follows.
    pub(super) fn heal(&self) {
        self.rules.send_modify(|rules| rules.silent_below = 0);
    }

    /// New connections lead elsewhere.
    pub(super) fn redirect(&self, target: SocketAddr) {
        self.rules.send_modify(|rules| rules.target = target);
    }

    /// All connections of now die.
    pub(super) fn cut(&self) {
        self.rules.send_modify(|rules| rules.dead_below = rules.next);
    }
}

async fn carry(number: u64, near: TcpStream, mut rules: watch::Receiver<Rules>) {
    let passing = rules.clone();
    let pass = async {
        passing.clone().wait_for(|rules| number >= rules.silent_below).await.unwrap();
        let target = passing.borrow().target;
        let Ok(far) = TcpStream::connect(target).await else { return };
        let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
        tokio::select! {
            () = forward(number, near_in, far_out, passing.clone()) => {}
            () = forward(number, far_in, near_out, passing.clone()) => {}
        }
    };
    tokio::select! {
        _ = rules.wait_for(|rules| number < rules.dead_below) => {}
        () = pass => {}
    }
}

async fn forward(
    number: u64,
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut rules: watch::Receiver<Rules>,
) {
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        if rules.wait_for(|rules| number >= rules.silent_below).await.is_err()
            || to.write_all(&bytes[..count]).await.is_err()
        {
            return;
        }
    }
    // An end is held like everything else.
    let _ended = rules.wait_for(|rules| number >= rules.silent_below).await;
}
