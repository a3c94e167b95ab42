//! What a certificate says, and whether a host's folder is sound.
//!
//! Main thread; called by the authority and by the doctor. Reads files, changes nothing, and never
//! shows a key.

use super::PkiError;
use super::files;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, sign::CertifiedKey};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CertificateFacts {
    /// The host's name.
    pub(crate) name: String,
    /// When it ends.
    pub(crate) not_after_unix_s: i64,
}

/// What is wrong with a host's folder, if anything.
#[derive(Debug)]
pub(crate) enum FolderFault {
    /// A file is missing or unreadable.
    File(PkiError),
    /// Others may read the key.
    KeyIsOpen { mode: u32 },
    /// Certificate and key don't belong together.
    KeyMismatch,
    /// The authority, the time or the revocations speak against the certificate.
    Chain(rustls::Error),
    /// The revocation list was not made by this authority, or can't be read.
    Revocations,
}

/// Reads the first certificate of a PEM text.
pub(crate) fn certificate(path: &Path, pem: &str) -> Result<CertificateFacts, PkiError> {
    let malformed = || PkiError::Malformed { path: path.to_owned(), what: "certificate" };
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| malformed())?;
    let (_, parsed) = X509Certificate::from_der(&der).map_err(|_| malformed())?;
    let alternative = parsed.subject_alternative_name().ok().flatten();
    let dns = alternative.and_then(|names| {
        names.value.general_names.iter().find_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        })
    });
    let common = parsed.subject().iter_common_name().next();
    let common = common.and_then(|name| name.as_str().ok()).map(str::to_owned);
    Ok(CertificateFacts {
        name: dns.or(common).ok_or_else(malformed)?,
        not_after_unix_s: parsed.validity().not_after.timestamp(),
    })
}

/// Checks a host's folder as a peer would, at the time given.
pub(crate) fn host_folder(folder: &Path, now: UnixTime) -> Result<CertificateFacts, FolderFault> {
    let read = |name: &str, what| files::read(&folder.join(name), what).map_err(FolderFault::File);
    let host_pem = read("host.pem", "certificate")?;
    let facts = certificate(&folder.join("host.pem"), &host_pem).map_err(FolderFault::File)?;
    let ca_pem = read("ca.pem", "certificate")?;
    let key_pem = read("host.key", "private key")?;
    let revoked_path = folder.join("revoked.pem");
    let revoked_pem =
        if revoked_path.exists() { read("revoked.pem", "list")? } else { String::new() };
    let key_mode = std::fs::metadata(folder.join("host.key")).map(|meta| meta.permissions().mode());
    if let Ok(mode) = key_mode
        && mode & 0o077 != 0
    {
        return Err(FolderFault::KeyIsOpen { mode: mode & 0o777 });
    }
    let malformed =
        |name: &str, what| FolderFault::File(PkiError::Malformed { path: folder.join(name), what });
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(host_pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|_| malformed("host.pem", "certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
        .map_err(|_| malformed("host.key", "private key"))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    CertifiedKey::from_der(chain.clone(), key, &provider).map_err(|_| FolderFault::KeyMismatch)?;
    let mut roots = RootCertStore::empty();
    for authority in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        let authority = authority.map_err(|_| malformed("ca.pem", "certificate"))?;
        roots.add(authority).map_err(FolderFault::Chain)?;
    }
    let revocations: Vec<CertificateRevocationListDer<'static>> =
        CertificateRevocationListDer::pem_slice_iter(revoked_pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|_| FolderFault::Revocations)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
        .with_crls(revocations)
        .only_check_end_entity_revocation()
        .allow_unknown_revocation_status()
        .build()
        .map_err(|_| FolderFault::Revocations)?;
    let [host, between @ ..] = chain.as_slice() else {
        return Err(malformed("host.pem", "certificate"));
    };
    verifier.verify_client_cert(host, between, now).map_err(FolderFault::Chain)?;
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::super::authority::{Authority, Validity, unix_now_s};
    use super::*;
    use rustls::Error;
    use std::time::Duration;

    fn at(unix_s: i64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(unix_s.try_into().expect("after 1970")))
    }

    fn cluster() -> (tempfile::TempDir, Authority) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Authority::init(folder.path()).expect("a new authority");
        let authority = Authority::open(folder.path()).expect("the authority opens");
        (folder, authority)
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).expect("the file exists").permissions().mode() & 0o777
    }

    #[test]
    fn a_host_folder_is_sound_and_ends_with_its_days() {
        let (folder, mut authority) = cluster();
        let issued = authority.issue("host-a.example", Validity::Days(30)).expect("issued");
        let host = folder.path().join("host-a.example");
        let now = unix_now_s();
        let facts = host_folder(&host, at(now)).expect("the folder is sound");
        assert_eq!(facts.name, "host-a.example");
        assert_eq!(facts.not_after_unix_s, issued.not_after_unix_s);
        assert_eq!([mode(&host.join("host.key")), mode(&folder.path().join("ca.key"))], [0o600; 2]);
        let later = at(now + 31 * 86_400);
        assert!(matches!(host_folder(&host, later), Err(FolderFault::Chain(_))));
    }

    #[test]
    fn revocation_reaches_the_folders_and_spares_other_hosts() {
        let (folder, mut authority) = cluster();
        authority.issue("a", Validity::Days(1)).expect("issued");
        authority.issue("b", Validity::Days(1)).expect("issued");
        assert_eq!(authority.revoke("a").expect("revoked"), 1);
        assert!(matches!(authority.revoke("a"), Err(PkiError::UnknownHost { .. })));
        let now = at(unix_now_s());
        let fault = host_folder(&folder.path().join("a"), now).expect_err("a is revoked");
        let revoked = rustls::CertificateError::Revoked;
        assert!(
            matches!(&fault, FolderFault::Chain(Error::InvalidCertificate(e)) if *e == revoked),
            "{fault:?}"
        );
        host_folder(&folder.path().join("b"), now).expect("b is not revoked");
        drop(authority);
        let again = Authority::open(folder.path()).expect("the authority opens");
        let states: Vec<_> = again.records().iter().map(|r| r.state(unix_now_s())).collect();
        assert_eq!(states, ["revoked", "valid"]);
    }

    #[test]
    fn a_foreign_authority_an_open_key_and_a_past_end_are_told() {
        let (folder, mut authority) = cluster();
        let (foreign, _) = cluster();
        authority.issue("a", Validity::Days(1)).expect("issued");
        let host = folder.path().join("a");
        let now = at(unix_now_s());
        let own = std::fs::read(host.join("ca.pem")).expect("ca.pem");
        std::fs::copy(foreign.path().join("ca.pem"), host.join("ca.pem")).expect("copied");
        assert!(matches!(host_folder(&host, now), Err(FolderFault::Chain(_))));
        std::fs::write(host.join("ca.pem"), own).expect("put back");
        let open = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(host.join("host.key"), open).expect("opened");
        assert!(matches!(host_folder(&host, now), Err(FolderFault::KeyIsOpen { mode: 0o644 })));
        let past = Validity::Until { unix_s: unix_now_s() - 3600 };
        authority.issue("old", past).expect("issued");
        let fault = host_folder(&folder.path().join("old"), now).expect_err("it has ended");
        assert!(matches!(fault, FolderFault::Chain(_)), "{fault:?}");
    }

    #[test]
    fn nothing_is_overwritten_and_names_stay_inside_the_folder() {
        let (folder, mut authority) = cluster();
        assert!(matches!(Authority::init(folder.path()), Err(PkiError::Exists { .. })));
        authority.issue("a", Validity::Days(1)).expect("issued");
        assert!(matches!(
            authority.issue("a", Validity::Days(1)),
            Err(PkiError::HostExists { .. })
        ));
        for name in ["", "..", "../x", "a/b", ".x", "a b", "a..b", "x".repeat(64).as_str(), "é"] {
            let result = authority.issue(name, Validity::Days(1));
            assert!(matches!(result, Err(PkiError::BadName { .. })), "{name}");
        }
        let empty = tempfile::tempdir().expect("a temporary folder");
        let result = Authority::open(empty.path());
        assert!(matches!(result, Err(PkiError::NoAuthority { .. })));
    }
}
