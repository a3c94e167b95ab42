//! The files that say who this host is and whom it believes: read, bounded, checked, read again
//! when they change.
//!
//! Runs on the control thread. The files are small and local; they are looked at for each new peer,
//! so that a revocation holds from the next handshake on without a restart. Secrets never appear in
//! an error or in `Debug`.

use crate::limits::PKI_FILE_BYTES_MAX;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// Why the host's identity can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PkiError {
    /// A file is missing or can't be read.
    #[error("{} can't be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A file is larger than any such file should be.
    #[error("{} has more than {PKI_FILE_BYTES_MAX} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// A file is no PEM or holds nothing of its kind.
    #[error("{} holds no usable {what}: {source}", path.display())]
    BadPem {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
        /// The parser's reason.
        source: pem::Error,
    },
    /// Certificate and key, or certificate and authority, don't work together.
    #[error("the certificates in {} can't be used: {source}", path.display())]
    Unusable {
        /// The directory.
        path: PathBuf,
        /// The TLS library's reason.
        source: rustls::Error,
    },
    /// A verifier can't be built from the authority and the revocation list.
    #[error("{} can't be used to check peers: {source}", path.display())]
    Verifier {
        /// The directory.
        path: PathBuf,
        /// The TLS library's reason.
        source: rustls::server::VerifierBuilderError,
    },
    /// The host certificate names no host.
    #[error("{} names no host", path.display())]
    Nameless {
        /// The file.
        path: PathBuf,
    },
}

impl PkiError {
    /// The stable name of the fault.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "pki_unreadable",
            Self::TooLarge { .. } => "pki_too_large",
            Self::BadPem { .. } => "pki_bad_pem",
            Self::Unusable { .. } => "pki_unusable",
            Self::Verifier { .. } => "pki_verifier",
            Self::Nameless { .. } => "pki_nameless",
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn cure(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => {
                "make the files with dwcp pki init and dwcp pki host, and let the daemon read them"
            }
            Self::TooLarge { .. } | Self::BadPem { .. } => "replace the file by a PEM of its kind",
            Self::Unusable { .. } | Self::Verifier { .. } => {
                "make host.pem and host.key anew with dwcp pki host, from the ca.pem beside them"
            }
            Self::Nameless { .. } => "make the certificate anew with dwcp pki host NAME DIR",
        }
    }
}

/// Everything of one reading of the directory.
pub(crate) struct PkiFiles {
    pub(crate) directory: PathBuf,
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) revoked: Vec<CertificateRevocationListDer<'static>>,
    /// The name in our own certificate.
    pub(crate) host_name: String,
    /// What the files looked like, to notice a change.
    pub(crate) stamp: Stamp,
}

impl std::fmt::Debug for PkiFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PkiFiles").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// Times of change and sizes of the four files; `None` for one that is not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp([Option<(SystemTime, u64)>; 4]);

const CA: &str = "ca.pem";
const CHAIN: &str = "host.pem";
const KEY: &str = "host.key";
const REVOKED: &str = "revoked.pem";

impl Stamp {
    /// Looks at the files without reading them.
    pub(crate) fn of(directory: &Path) -> Self {
        Self([CA, CHAIN, KEY, REVOKED].map(|name| {
            let metadata = std::fs::metadata(directory.join(name)).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        }))
    }
}

impl PkiFiles {
    /// Reads the directory.
    pub(crate) fn read(directory: &Path) -> Result<Self, PkiError> {
        // Taken first: a change while reading is then noticed next time.
        let stamp = Stamp::of(directory);
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&directory.join(CA))? {
            roots
                .add(certificate)
                .map_err(|source| PkiError::Unusable { path: directory.to_owned(), source })?;
        }
        let chain_path = directory.join(CHAIN);
        let chain = certificates(&chain_path)?;
        let host_name =
            chain.first().and_then(host_name_of).ok_or(PkiError::Nameless { path: chain_path })?;
        let key = host_key(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
            roots: Arc::new(roots),
            chain,
            key,
            revoked: revocations(&directory.join(REVOKED))?,
            host_name,
            stamp,
        })
    }
}

/// The one cryptography provider of the control plane.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: std::sync::OnceLock<Arc<CryptoProvider>> = std::sync::OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())))
}

/// Random bytes.
///
/// # Panics
/// When the kernel has no randomness, without which nothing here is safe to go on.
pub(crate) fn random<const BYTES: usize>() -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    let filled = provider().secure_random.fill(&mut bytes);
    assert!(filled.is_ok(), "the source of randomness failed");
    bytes
}

/// The host's private key as it is encoded: for what is derived from it.
///
/// # Errors
/// The file is not there, or is no key.
pub(crate) fn host_key(directory: &Path) -> Result<PrivateKeyDer<'static>, PkiError> {
    let path = directory.join(KEY);
    PrivateKeyDer::from_pem_slice(&read_bounded(&path)?).map_err(|source| PkiError::BadPem {
        path,
        what: "private key",
        source,
    })
}

/// The host name in a certificate: its first DNS name, else its common name.
pub(crate) fn host_name_of(certificate: &CertificateDer<'_>) -> Option<String> {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok().flatten();
    let dns = names.and_then(|names| {
        names.value.general_names.iter().find_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        })
    });
    let common = || Some(parsed.subject().iter_common_name().next()?.as_str().ok()?.to_owned());
    dns.or_else(common).filter(|name| crate::api::name_is_plain(name))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PkiError> {
    let bytes = read_bounded(path)?;
    let bad = |source| PkiError::BadPem { path: path.to_owned(), what: "certificate", source };
    let all: Vec<_> =
        CertificateDer::pem_slice_iter(&bytes).collect::<Result<_, _>>().map_err(bad)?;
    if all.is_empty() { Err(bad(pem::Error::NoItemsFound)) } else { Ok(all) }
}

fn revocations(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, PkiError> {
    let bytes = match read_bounded(path) {
        Err(PkiError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(Vec::new());
        }
        other => other?,
    };
    let bad = |source| PkiError::BadPem { path: path.to_owned(), what: "revocation list", source };
    // A file that is there but holds no list would leave revoked hosts trusted in silence.
    let all: Vec<_> = CertificateRevocationListDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(bad)?;
    if all.is_empty() { Err(bad(pem::Error::NoItemsFound)) } else { Ok(all) }
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, PkiError> {
    let fail = |source| PkiError::Unreadable { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(fail)?;
    let mut bytes = Vec::new();
    file.take(PKI_FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(fail)?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len > PKI_FILE_BYTES_MAX) {
        return Err(PkiError::TooLarge { path: path.to_owned() });
    }
    Ok(bytes)
}
