//! The peer port: takes connections, bounds those that have not said who they are, and tells
//! control channels from data streams by the first byte.
//!
//! Runs on the control thread: one task that accepts, one short task per pending connection. Every
//! refusal is typed, counted and logged at a bounded rate.

use super::connection::ConnectionId;
use super::error::PeerError;
use super::handshake::{Established, Identity};
use super::pending::{Pending, Place};
use crate::config::PeerTimeouts;
use crate::error::ControlError;
use crate::limits::PEERS_PENDING_MAX;
use crate::log_limit::LogLimit;
use crate::network::accept::{Acceptor, bind};
use crate::tally::Tally;
use dwcp_proto::ids::{Incarnation, LinkId, StreamId};
use dwcp_proto::time::Nanos;
use dwcp_proto::wire::peer::PeerMessage;
use dwcp_proto::wire::preface::{PREFACE_BYTES, PREFACE_MAGIC, StreamPreface};
use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

/// What peers tell the core.
#[derive(Debug)]
pub(crate) enum PeerInput {
    /// A peer dialled us and proved its name.
    Accepted(Box<Established>),
    /// A peer opened a data stream; the preface is taken, nothing after it.
    Stream {
        /// Which stream it claims to be.
        preface: StreamPreface,
        /// The connection.
        socket: TcpStream,
        /// Where it comes from.
        address: SocketAddr,
    },
    /// Our dialling of a peer came to an end.
    Dialled {
        /// As which connection.
        connection: ConnectionId,
        /// The peer, or why there is none.
        outcome: Result<Box<Established>, PeerError>,
    },
    /// Our dialling of a data stream came to an end.
    StreamDialled {
        /// Of which link.
        link: LinkId,
        /// Which stream.
        stream: StreamId,
        /// Which opening of it.
        incarnation: Incarnation,
        /// The connection past its preface, or why there is none.
        outcome: Result<TcpStream, PeerError>,
    },
    /// A message came in.
    Message {
        /// On which one.
        connection: ConnectionId,
        /// The message.
        message: PeerMessage,
    },
    /// A channel ended; nothing more comes from it.
    Ended {
        /// Which one.
        connection: ConnectionId,
        /// Why.
        end: PeerError,
    },
}

/// The bound peer port.
#[derive(Debug)]
pub(crate) struct Listener {
    listener: TcpListener,
}

/// What every pending connection needs.
#[derive(Clone, Debug)]
pub(crate) struct Gate {
    pub(crate) identity: Identity,
    pub(crate) timeouts: PeerTimeouts,
    pub(crate) refused: Tally,
    pub(crate) accept_failures: Tally,
    pub(crate) inputs: mpsc::Sender<PeerInput>,
}

impl Listener {
    /// Listens on `address`.
    pub(crate) async fn bind(address: SocketAddr) -> Result<Self, ControlError> {
        Ok(Self { listener: bind(address).await? })
    }

    /// The address, with the port that the kernel chose for port 0.
    pub(crate) fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Accepts until the core no longer listens.
    pub(crate) async fn serve(self, gate: Gate) {
        let pending = Pending::new(PEERS_PENDING_MAX);
        let log = Rc::new(RefCell::new(LogLimit::default()));
        let start = Instant::now();
        let mut acceptor = Acceptor::new("peer_port", gate.accept_failures.clone());
        loop {
            let (stream, address) = tokio::select! {
                accepted = acceptor.next(|| self.listener.accept()) => accepted,
                () = gate.inputs.closed() => return,
            };
            let place = Place::take(&pending, address.ip());
            let (gate, log) = (gate.clone(), Rc::clone(&log));
            tokio::task::spawn_local(async move {
                let outcome = tokio::select! {
                    outcome = gate.check(stream, address) => outcome,
                    () = place.is_taken() => Err(PeerError::PendingTooMany),
                };
                drop(place);
                let Err(error) = outcome else { return };
                gate.refused.add(error.code());
                let now = Nanos(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
                if let Some(suppressed) = log.borrow_mut().allow(now) {
                    let code = error.code();
                    tracing::warn!(%address, code, %error, suppressed, "refused a connection");
                }
            });
        }
    }
}

impl Gate {
    /// Finds out what a connection is and hands it to the core.
    async fn check(&self, stream: TcpStream, address: SocketAddr) -> Result<(), PeerError> {
        stream.set_nodelay(true).map_err(PeerError::Io)?;
        let mut first = [0];
        let peeked = timeout(self.timeouts.preface, stream.peek(&mut first)).await;
        match peeked.map_err(|_| PeerError::Timeout { what: "its first byte" })? {
            Ok(0) => return Err(PeerError::Closed),
            Ok(_) => {}
            Err(error) => return Err(PeerError::from_io(error)),
        }
        let input = if first[0] == PREFACE_MAGIC[0] {
            let preface = timeout(self.timeouts.preface, read_preface(stream)).await;
            let (preface, socket) =
                preface.map_err(|_| PeerError::Timeout { what: "its preface" })??;
            PeerInput::Stream { preface, socket, address }
        } else {
            let accept = self.identity.accept(stream, first[0]);
            let peer = timeout(self.timeouts.handshake, accept).await;
            let peer = peer.map_err(|_| PeerError::Timeout { what: "the handshake" })??;
            PeerInput::Accepted(Box::new(peer))
        };
        self.inputs.send(input).await.map_err(|_| PeerError::Stopping)
    }
}

async fn read_preface(mut stream: TcpStream) -> Result<(StreamPreface, TcpStream), PeerError> {
    let mut bytes = [0; PREFACE_BYTES];
    stream.read_exact(&mut bytes).await.map_err(PeerError::from_io)?;
    let preface = StreamPreface::decode(&bytes)?.ok_or(PeerError::Closed)?;
    Ok((preface, stream))
}
