//! Mutual TLS 1.3 from the host's files: both ends show a certificate of the cluster's authority,
//! and neither may be expired or revoked.
//!
//! Runs on the control thread. Peers are addressed by IP and port, which no certificate names, so
//! the dialling end checks the certificate against the DNS name that it carries itself: the
//! authority vouches for names, and every decision on who may send what to whom is made by name
//! afterwards. An operator who wants one certain host writes `NAME@HOST:PORT`; then only that name
//! is accepted. TLS 1.2 is never offered: its exporter does not bind the whole handshake.

use super::pki::{PkiError, PkiFiles, Stamp, host_name_of, provider};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::path::Path;
use std::sync::Arc;

/// The host's TLS identity, kept fresh.
#[derive(Debug)]
pub(crate) struct TlsIdentity {
    files: PkiFiles,
    server: Arc<ServerConfig>,
    verifier: Arc<WebPkiServerVerifier>,
}

impl TlsIdentity {
    /// Reads the directory and builds what both roles need.
    pub(crate) fn load(directory: &Path) -> Result<Self, PkiError> {
        let files = PkiFiles::read(directory)?;
        let bad_verifier = |source| PkiError::Verifier { path: directory.to_owned(), source };
        let unusable = |source| PkiError::Unusable { path: directory.to_owned(), source };
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&files.roots), provider())
                .with_crls(files.revoked.clone())
                .allow_unknown_revocation_status()
                .build()
                .map_err(bad_verifier)?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::clone(&files.roots), provider())
                .with_crls(files.revoked.clone())
                .allow_unknown_revocation_status()
                .build()
                .map_err(bad_verifier)?;
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(clients)
            .with_single_cert(files.chain.clone(), files.key.clone_key())
            .map_err(unusable)?;
        // Every channel proves both certificates anew; a ticket would outlive a revocation.
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Self { files, server: Arc::new(server), verifier })
    }

    /// Reads the files again if they changed. On failure the old ones stay, and a warning says so.
    pub(crate) fn refresh(&mut self) {
        let directory = self.files.directory.clone();
        if Stamp::of(&directory) == self.files.stamp {
            return;
        }
        match Self::load(&directory) {
            Ok(fresh) => {
                tracing::info!(directory = %directory.display(), "certificates read again");
                *self = fresh;
            }
            Err(error) => tracing::warn!(
                code = error.code(), cure = error.cure(), %error,
                "the changed certificates can't be used; the old ones stay"
            ),
        }
    }

    /// The name in our certificate.
    pub(crate) fn host_name(&self) -> &str {
        &self.files.host_name
    }

    /// For connections that peers make.
    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// For a connection that we make, accepting `expected_name` alone if given.
    pub(crate) fn client(
        &self,
        expected_name: Option<String>,
    ) -> Result<Arc<ClientConfig>, rustls::Error> {
        let verifier = HostVerifier { chain: Arc::clone(&self.verifier), expected_name };
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(self.files.chain.clone(), self.files.key.clone_key())?;
        config.resumption = rustls::client::Resumption::disabled();
        config.enable_sni = false;
        Ok(Arc::new(config))
    }
}

/// The library's verifier, with the name taken from the operator or from the certificate itself.
#[derive(Debug)]
struct HostVerifier {
    chain: Arc<WebPkiServerVerifier>,
    expected_name: Option<String>,
}

impl ServerCertVerifier for HostVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let shown = host_name_of(end_entity);
        let name = self.expected_name.clone().or(shown);
        let name = name.and_then(|name| ServerName::try_from(name).ok());
        let name = name.ok_or(CertificateError::NotValidForName)?;
        self.chain.verify_server_cert(end_entity, intermediates, &name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // Never asked for: only TLS 1.3 is offered. Refusing keeps it so.
        Err(rustls::PeerIncompatible::ServerDoesNotSupportTls12Or13.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
