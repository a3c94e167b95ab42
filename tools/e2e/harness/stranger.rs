//! A hostile peer: it has good certificates, believes everybody, and says what a test wants.

use super::SOON;
use super::lab::SINK;
use dwcp_proto::ids::{Incarnation, LinkEpoch, StreamId};
use dwcp_proto::wire::frame::Frame;
use dwcp_proto::wire::hello::Hello;
use dwcp_proto::wire::keys::{
    Direction, DirectionKey, EXPORTED_BYTES, STREAM_KEY_LABEL, key_context,
};
use dwcp_proto::wire::limits::RECORD_HEADER_BYTES;
use dwcp_proto::wire::peer::{PeerCodec, PeerMessage};
use dwcp_proto::wire::preface::StreamPreface;
use dwcp_proto::wire::record::{Sealer, StreamPlace};
use dwcp_proto::wire::token::LinkToken;
use dwcp_proto::wire::version::WireVersion;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

/// A control channel to a daemon.
#[derive(Debug)]
pub(crate) struct Stranger {
    tls: StreamOwned<ClientConnection, TcpStream>,
    heard: Vec<u8>,
}

impl Stranger {
    /// Connects with these keys and says these bytes first.
    pub(crate) fn connect(address: SocketAddr, keys: &Path, hello: &[u8]) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let chain = CertificateDer::pem_file_iter(keys.join("host.pem")).expect("a certificate");
        let chain = chain.collect::<Result<Vec<_>, _>>().expect("certificates");
        let key = PrivateKeyDer::from_pem_file(keys.join("host.key")).expect("a key");
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody))
            .with_client_auth_cert(chain, key)
            .expect("a client");
        let name = ServerName::try_from(SINK).expect("a name");
        let connection = ClientConnection::new(Arc::new(config), name).expect("a connection");
        let stream = TcpStream::connect(address).expect("the port is open");
        stream.set_read_timeout(Some(SOON)).expect("a bound");
        stream.set_write_timeout(Some(SOON)).expect("a bound");
        let mut tls = StreamOwned::new(connection, stream);
        tls.write_all(hello).expect("the HELLO leaves");
        Self { tls, heard: Vec::new() }
    }

    /// Says a message.
    pub(crate) fn say(&mut self, message: &PeerMessage) -> io::Result<()> {
        self.tls.write_all(&PeerCodec::encode(message))
    }

    /// Waits for the daemon's HELLO, which comes first.
    pub(crate) fn hear_hello(&mut self) {
        let hello =
            |bytes: &[u8]| Hello::decode(bytes).expect("a HELLO").map(|(_, used)| ((), used));
        self.hear_with(hello);
    }

    /// Waits for the next message.
    pub(crate) fn hear(&mut self) -> PeerMessage {
        self.hear_with(|bytes| PeerCodec::decode(bytes).expect("a message"))
    }

    /// Waits for the next message that is no ping.
    pub(crate) fn answer(&mut self) -> PeerMessage {
        loop {
            match self.hear() {
                PeerMessage::Ping { .. } => {}
                other => return other,
            }
        }
    }

    /// Opens stream 0 of a link of this channel and proves its keys.
    pub(crate) fn open_stream(
        &self,
        address: SocketAddr,
        epoch: LinkEpoch,
        token: LinkToken,
        incarnation: Incarnation,
    ) -> TcpStream {
        let (version, stream) = (WireVersion::HIGHEST, StreamId(0));
        let context = key_context(epoch, stream, incarnation, Direction::SourceToSink);
        let exported = [0; EXPORTED_BYTES];
        let connection = &self.tls.conn;
        let exported =
            connection.export_keying_material(exported, STREAM_KEY_LABEL, Some(&context));
        let key = DirectionKey::from_exported(&exported.expect("a secret of the channel"));
        let mut sealer = Sealer::new(key, StreamPlace { version, stream, incarnation });
        let mut record = vec![0; 256];
        let ping = Frame::Ping { stamp: 1 }.encode_into(&mut record[RECORD_HEADER_BYTES..]);
        let sealed = sealer.seal(&mut record, ping).expect("the first record of a key");
        let preface = StreamPreface { version, token, stream, incarnation };
        let mut stream = TcpStream::connect(address).expect("the port is open");
        stream.write_all(&preface.encode()).expect("it leaves");
        stream.write_all(&record[..sealed]).expect("it leaves");
        stream
    }

    fn hear_with<T>(&mut self, read: impl Fn(&[u8]) -> Option<(T, usize)>) -> T {
        loop {
            if let Some((message, used)) = read(&self.heard) {
                self.heard.drain(..used);
                return message;
            }
            let mut bytes = [0; 4096];
            let count = self.tls.read(&mut bytes).expect("the daemon goes on");
            assert!(count > 0, "the daemon ended it");
            self.heard.extend_from_slice(&bytes[..count]);
        }
    }

    /// Reads until the daemon ends it, by an alert or without.
    pub(crate) fn wait_end(&mut self) {
        let _ = self.tls.read_to_end(&mut Vec::new());
    }
}

/// Believes every certificate.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
