//! From a fresh TCP connection to a peer that is known: TLS, then a HELLO each way.
//!
//! Runs on the control thread, one task per connection, always under the caller's timeout.

use super::channel::{Transport, read_some, write_all};
use super::error::PeerError;
use super::exporter::Exporter;
use super::pki::host_name_of;
use super::tls::TlsIdentity;
use crate::config::PeerSecurity;
use crate::error::ControlError;
use dwcp_proto::negotiate::{Agreed, agree};
use dwcp_proto::wire::hello::{Hello, HostName};
use dwcp_proto::wire::limits::{HELLO_BYTES_MAX, STREAMS_MAX};
use dwcp_proto::wire::version::WireVersion;
use rustls_pki_types::{CertificateDer, ServerName};
use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The first byte of a plaintext control channel, before its HELLO. TLS begins with 0x16 and a data
/// stream with `D`.
pub(crate) const PLAINTEXT_BYTE: u8 = b'P';

/// Who this host is to its peers.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// `None` for a plaintext daemon.
    tls: Option<Rc<RefCell<TlsIdentity>>>,
    host_name: String,
    instance: [u8; 16],
    /// The highest version that it says it speaks.
    version: WireVersion,
    /// The most streams of a link that peers are told.
    streams_max: u16,
}

/// A peer that proved its name and speaks our version.
#[derive(Debug)]
pub(crate) struct Established {
    pub(crate) transport: Rc<RefCell<Transport>>,
    pub(crate) exporter: Exporter,
    /// The name in its certificate, or in its HELLO on a plaintext channel.
    pub(crate) peer_name: String,
    pub(crate) address: SocketAddr,
    pub(crate) agreed: Agreed,
    /// Bytes that came after the HELLO.
    pub(crate) rest: Vec<u8>,
}

impl Identity {
    /// Reads the certificates; `instance` is random, new at every start.
    pub(crate) fn load(security: &PeerSecurity, instance: [u8; 16]) -> Result<Self, ControlError> {
        Ok(match security {
            PeerSecurity::Mutual { pki_dir } => {
                let tls = TlsIdentity::load(pki_dir)?;
                let host_name = tls.host_name().to_owned();
                let tls = Some(Rc::new(RefCell::new(tls)));
                let (streams_max, version) = (STREAMS_MAX, WireVersion::HIGHEST);
                Self { tls, host_name, instance, version, streams_max }
            }
            PeerSecurity::InsecurePlaintext { host_name } => {
                tracing::warn!(
                    "peers are neither authenticated nor is anything encrypted: \
                     this is for comparisons alone"
                );
                let (streams_max, version) = (STREAMS_MAX, WireVersion::HIGHEST);
                let host_name = host_name.clone();
                Self { tls: None, host_name, instance, version, streams_max }
            }
        })
    }

    /// The same for a host that takes no more than so many streams of a link.
    pub(crate) fn with_streams_max(self, streams_max: u16) -> Self {
        Self { streams_max: streams_max.clamp(1, STREAMS_MAX), ..self }
    }

    /// What this host is called.
    pub(crate) fn host_name(&self) -> &str {
        &self.host_name
    }

    /// Whether peers prove their names.
    pub(crate) fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// The same host with a program of an earlier version.
    #[cfg(test)]
    pub(crate) fn of_version(self, version: WireVersion) -> Self {
        Self { version, ..self }
    }

    fn hello(&self) -> Hello {
        let hello = Hello::ours(HostName::cut(&self.host_name), self.instance);
        let mut hello = hello.of_version(self.version);
        hello.streams_max = self.streams_max;
        if self.is_secure() { hello } else { hello.with_plain_records() }
    }

    /// The dialling end. `expected_name` is the only name to accept, if given.
    pub(crate) async fn connect(
        &self,
        stream: TcpStream,
        expected_name: Option<String>,
    ) -> Result<Established, PeerError> {
        let address = stream.peer_addr().map_err(PeerError::Io)?;
        let Some(tls) = &self.tls else {
            let transport = Transport::Plain(stream);
            let transport = Rc::new(RefCell::new(transport));
            write_all(&transport, &[PLAINTEXT_BYTE]).await?;
            return self.exchange(transport, address, None).await;
        };
        let config = {
            let mut tls = tls.borrow_mut();
            tls.refresh();
            tls.client(expected_name).map_err(PeerError::Tls)?
        };
        // Never sent (no SNI) and never checked: the verifier takes the name from elsewhere.
        let unused = ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into());
        let tls = TlsConnector::from(config).connect(unused, stream).await;
        let tls = tls.map_err(PeerError::from_io)?;
        let name = peer_name(tls.get_ref().1.peer_certificates())?;
        let transport = Rc::new(RefCell::new(Transport::Client(Box::new(tls))));
        self.exchange(transport, address, Some(name)).await
    }

    /// The listening end; `first_byte` was seen and not taken.
    pub(crate) async fn accept(
        &self,
        mut stream: TcpStream,
        first_byte: u8,
    ) -> Result<Established, PeerError> {
        let address = stream.peer_addr().map_err(PeerError::Io)?;
        match (&self.tls, first_byte) {
            (Some(tls), 0x16) => {
                let config = {
                    let mut tls = tls.borrow_mut();
                    tls.refresh();
                    tls.server()
                };
                let tls = TlsAcceptor::from(config).accept(stream).await;
                let tls = tls.map_err(PeerError::from_io)?;
                let name = peer_name(tls.get_ref().1.peer_certificates())?;
                let transport = Rc::new(RefCell::new(Transport::Server(Box::new(tls))));
                self.exchange(transport, address, Some(name)).await
            }
            (None, PLAINTEXT_BYTE) => {
                let mut byte = [0];
                tokio::io::AsyncReadExt::read_exact(&mut stream, &mut byte)
                    .await
                    .map_err(PeerError::from_io)?;
                let transport = Rc::new(RefCell::new(Transport::Plain(stream)));
                self.exchange(transport, address, None).await
            }
            (Some(_), PLAINTEXT_BYTE) => Err(PeerError::PlaintextRefused),
            (None, 0x16) => Err(PeerError::TlsRefused),
            (_, byte) => Err(PeerError::FirstByte { byte }),
        }
    }

    async fn exchange(
        &self,
        transport: Rc<RefCell<Transport>>,
        address: SocketAddr,
        proven_name: Option<String>,
    ) -> Result<Established, PeerError> {
        let ours = self.hello();
        write_all(&transport, &ours.encode()).await?;
        let mut bytes = Vec::with_capacity(HELLO_BYTES_MAX);
        let (theirs, length) = loop {
            if let Some(found) = Hello::decode(&bytes)? {
                break found;
            }
            let mut chunk = [0; HELLO_BYTES_MAX];
            match read_some(&transport, &mut chunk).await? {
                0 => return Err(PeerError::Closed),
                read => bytes.extend_from_slice(&chunk[..read]),
            }
        };
        let agreed = agree(&ours, &theirs)?;
        let said_name = || Some(theirs.host.as_str().to_owned());
        let peer_name = proven_name.or_else(said_name).filter(|n| crate::api::name_is_plain(n));
        Ok(Established {
            exporter: Exporter::new(Rc::clone(&transport)),
            transport,
            peer_name: peer_name.ok_or(PeerError::Nameless)?,
            address,
            agreed,
            rest: bytes.split_off(length),
        })
    }
}

fn peer_name(certificates: Option<&[CertificateDer<'_>]>) -> Result<String, PeerError> {
    let first = certificates.and_then(|chain| chain.first());
    first.and_then(host_name_of).ok_or(PeerError::Nameless)
}
