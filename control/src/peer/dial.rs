//! Dialling: a peer's control channel, or one data stream to it.
//!
//! Runs on the control thread, one short task per attempt, always under a timeout.

use super::connection::ConnectionId;
use super::error::PeerError;
use super::handshake::{Established, Identity};
use super::listener::PeerInput;
use crate::api::PeerAddress;
use crate::config::PeerTimeouts;
use dwcp_proto::ids::LinkId;
use dwcp_proto::wire::preface::StreamPreface;
use std::net::SocketAddr;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Dials a peer; the outcome comes back as an input.
pub(crate) fn dial_peer(
    connection: ConnectionId,
    peer: PeerAddress,
    identity: Identity,
    timeouts: PeerTimeouts,
    inputs: mpsc::Sender<PeerInput>,
) {
    tokio::task::spawn_local(async move {
        let outcome = connect_peer(&peer, &identity, timeouts).await.map(Box::new);
        // The core is gone only when the daemon stops.
        let _ = inputs.send(PeerInput::Dialled { connection, outcome }).await;
    });
}

/// Dials a data stream to where the control channel went.
pub(crate) fn dial_stream(
    link: LinkId,
    preface: StreamPreface,
    address: SocketAddr,
    timeouts: PeerTimeouts,
    inputs: mpsc::Sender<PeerInput>,
) {
    tokio::task::spawn_local(async move {
        let outcome = connect_stream(&preface, address, timeouts).await;
        let StreamPreface { stream, incarnation, .. } = preface;
        let input = PeerInput::StreamDialled { link, stream, incarnation, outcome };
        let _ = inputs.send(input).await;
    });
}

async fn connect_peer(
    peer: &PeerAddress,
    identity: &Identity,
    timeouts: PeerTimeouts,
) -> Result<Established, PeerError> {
    let failed = |source| PeerError::Dial { address: peer.address.clone(), source };
    let stream = timeout(timeouts.dial, TcpStream::connect(&peer.address)).await;
    let stream = stream.map_err(|_| PeerError::Timeout { what: "the connection" })?;
    let stream = stream.map_err(failed)?;
    stream.set_nodelay(true).map_err(PeerError::Io)?;
    // Nothing of ours outlives our end of the link. A kernel that goes on sending a yield for a
    // process that has died, or has heard an operator's decision since, would run a guest twice.
    stream.set_zero_linger().map_err(PeerError::Io)?;
    let handshake = identity.connect(stream, peer.expected_name.clone());
    timeout(timeouts.handshake, handshake)
        .await
        .map_err(|_| PeerError::Timeout { what: "the handshake" })?
}

async fn connect_stream(
    preface: &StreamPreface,
    address: SocketAddr,
    timeouts: PeerTimeouts,
) -> Result<TcpStream, PeerError> {
    let failed = |source| PeerError::Dial { address: address.to_string(), source };
    let stream = timeout(timeouts.dial, TcpStream::connect(address)).await;
    let stream = stream.map_err(|_| PeerError::Timeout { what: "the stream's connection" })?;
    let mut stream = stream.map_err(failed)?;
    stream.set_nodelay(true).map_err(PeerError::Io)?;
    stream.write_all(&preface.encode()).await.map_err(PeerError::from_io)?;
    Ok(stream)
}
