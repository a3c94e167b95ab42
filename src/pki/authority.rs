//! The certificate authority of a cluster: it makes host certificates and revokes them.
//!
//! Main thread. An open authority holds a lock on its key, so that two commands at a time can't
//! lose a record. The order of writes keeps it honest: a certificate is recorded before its files
//! exist, so that everything that exists can be revoked.

use super::PkiError;
use super::files::{self, PRIVATE, PUBLIC};
use super::inspect;
use super::record::Issued;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, RevocationReason, RevokedCertParams, SerialNumber,
};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use time::OffsetDateTime;

const DAY_S: i64 = 86_400;
/// An authority is replaced by hand, so it holds long.
const AUTHORITY_DAYS: i64 = 3650;
/// Certificates begin a little earlier than now, for hosts whose clock is late.
const CLOCK_SLACK_S: i64 = 3_600;
/// 127 random bits: serials never meet by chance.
const SERIAL_BYTES: usize = 16;
/// A common name has at most 64 letters; a label of a DNS name 63.
const NAME_BYTES_MAX: usize = 63;

/// How long a host's certificate holds.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Validity {
    /// From now on.
    Days(i64),
    /// To this point in time, past ones included.
    Until { unix_s: i64 },
}

/// An authority, open and locked.
pub(crate) struct Authority {
    folder: PathBuf,
    certificate_pem: String,
    not_after_unix_s: i64,
    issuer: Issuer<'static, KeyPair>,
    records: Vec<Issued>,
    /// Holds the lock.
    _key_file: File,
}

impl Authority {
    /// Makes a new authority.
    pub(crate) fn init(folder: &Path) -> Result<(), PkiError> {
        let paths = ["ca.key", "ca.pem", "revoked.pem", "issued.json"].map(|n| folder.join(n));
        if let Some(path) = paths.iter().find(|path| path.exists()) {
            return Err(PkiError::Exists { path: path.clone() });
        }
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let now = unix_now_s();
        let serial = random_serial()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, authority_name(&serial));
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = date_time(now - CLOCK_SLACK_S);
        params.not_after = date_time(now + AUTHORITY_DAYS * DAY_S);
        let certificate = params.self_signed(&key)?;
        let key_pem = key.serialize_pem();
        let issuer = Issuer::new(params, key);
        let revoked = revocation_list(&issuer, &[], now + AUTHORITY_DAYS * DAY_S)?;
        files::make_folder(folder)?;
        let [key_path, certificate_path, revoked_path, records_path] = &paths;
        files::create(key_path, PRIVATE, &key_pem)?;
        files::create(certificate_path, PUBLIC, &certificate.pem())?;
        files::create(revoked_path, PUBLIC, &revoked)?;
        files::create(records_path, PUBLIC, "[]\n")
    }

    /// Opens an authority and locks it until it is dropped.
    pub(crate) fn open(folder: &Path) -> Result<Self, PkiError> {
        let key_path = folder.join("ca.key");
        if !key_path.exists() {
            return Err(PkiError::NoAuthority { path: folder.to_owned() });
        }
        let read_failed = |source| PkiError::Read { path: key_path.clone(), source };
        let key_file = File::open(&key_path).map_err(read_failed)?;
        key_file.lock().map_err(read_failed)?;
        let malformed = |path: &Path, what| PkiError::Malformed { path: path.to_owned(), what };
        let key = KeyPair::from_pem(&files::read(&key_path, "private key")?)
            .map_err(|_| malformed(&key_path, "private key"))?;
        let certificate_path = folder.join("ca.pem");
        let certificate_pem = files::read(&certificate_path, "certificate")?;
        let facts = inspect::certificate(&certificate_path, &certificate_pem)?;
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key)
            .map_err(|_| malformed(&certificate_path, "certificate"))?;
        let records_path = folder.join("issued.json");
        let records = serde_json::from_str(&files::read(&records_path, "list of certificates")?)
            .map_err(|_| malformed(&records_path, "list of certificates"))?;
        Ok(Self {
            folder: folder.to_owned(),
            certificate_pem,
            not_after_unix_s: facts.not_after_unix_s,
            issuer,
            records,
            _key_file: key_file,
        })
    }

    /// What was made so far.
    pub(crate) fn records(&self) -> &[Issued] {
        &self.records
    }

    /// Makes a host's folder with certificate, key, authority and revocations.
    pub(crate) fn issue(&mut self, name: &str, validity: Validity) -> Result<Issued, PkiError> {
        if !name_is_good(name) {
            return Err(PkiError::BadName { name: name.to_owned() });
        }
        let host_folder = self.folder.join(name);
        if host_folder.exists() {
            return Err(PkiError::HostExists { path: host_folder });
        }
        let now = unix_now_s();
        if now > self.not_after_unix_s {
            return Err(PkiError::AuthorityEnded { path: self.folder.clone() });
        }
        let not_after = match validity {
            Validity::Days(days) => now + days * DAY_S,
            Validity::Until { unix_s } => unix_s,
        };
        // A certificate that outlives its authority would be refused on a day nobody expects.
        let not_after = not_after.min(self.not_after_unix_s);
        let not_before = (now - CLOCK_SLACK_S).min(not_after - DAY_S);
        let serial = random_serial()?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let params = host_params(name, &serial, not_before, not_after)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let record = Issued {
            name: name.to_owned(),
            serial: hex(&serial),
            not_before_unix_s: not_before,
            not_after_unix_s: not_after,
            revoked_unix_s: None,
        };
        self.records.push(record.clone());
        self.write_records()?;
        files::make_folder(&host_folder)?;
        files::create(&host_folder.join("host.key"), PRIVATE, &key.serialize_pem())?;
        files::create(&host_folder.join("host.pem"), PUBLIC, &certificate.pem())?;
        files::create(&host_folder.join("ca.pem"), PUBLIC, &self.certificate_pem)?;
        let revoked = files::read(&self.folder.join("revoked.pem"), "revocation list")?;
        files::create(&host_folder.join("revoked.pem"), PUBLIC, &revoked)?;
        Ok(record)
    }

    /// Revokes all certificates of a host; returns how many.
    pub(crate) fn revoke(&mut self, name: &str) -> Result<usize, PkiError> {
        let now = unix_now_s();
        let mut count = 0;
        for record in self.records.iter_mut().filter(|record| record.name == name) {
            if record.revoked_unix_s.is_none() {
                record.revoked_unix_s = Some(now);
                count += 1;
            }
        }
        if count == 0 {
            let (name, path) = (name.to_owned(), self.folder.clone());
            return Err(PkiError::UnknownHost { name, path });
        }
        let list = revocation_list(&self.issuer, &self.records, self.not_after_unix_s)?;
        self.write_records()?;
        files::replace(&self.folder.join("revoked.pem"), PUBLIC, &list)?;
        for record in &self.records {
            let copy = self.folder.join(&record.name).join("revoked.pem");
            if copy.exists() {
                files::replace(&copy, PUBLIC, &list)?;
            }
        }
        Ok(count)
    }

    fn write_records(&self) -> Result<(), PkiError> {
        let text = format!("{:#}\n", serde_json::json!(self.records));
        files::replace(&self.folder.join("issued.json"), PUBLIC, &text)
    }
}

fn host_params(
    name: &str,
    serial: &[u8],
    not_before_unix_s: i64,
    not_after_unix_s: i64,
) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from_slice(serial));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // Every host dials and is dialled.
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.not_before = date_time(not_before_unix_s);
    params.not_after = date_time(not_after_unix_s);
    Ok(params)
}

fn revocation_list(
    issuer: &Issuer<'_, KeyPair>,
    records: &[Issued],
    next_update_unix_s: i64,
) -> Result<String, PkiError> {
    let revoked = records.iter().filter_map(|record| {
        Some(RevokedCertParams {
            serial_number: SerialNumber::from_slice(&record.serial_bytes()?),
            revocation_time: date_time(record.revoked_unix_s?),
            reason_code: Some(RevocationReason::Unspecified),
            invalidity_date: None,
        })
    });
    let revoked_certs: Vec<_> = revoked.collect();
    let now = unix_now_s();
    // Each list is numbered higher than the one before: revocations are never taken back.
    let number = u64::try_from(revoked_certs.len()).unwrap_or(u64::MAX).saturating_add(1);
    let list = CertificateRevocationListParams {
        this_update: date_time(now - CLOCK_SLACK_S),
        next_update: date_time(next_update_unix_s.max(now + DAY_S)),
        crl_number: SerialNumber::from_slice(&number.to_be_bytes()),
        issuing_distribution_point: None,
        revoked_certs,
        key_identifier_method: KeyIdMethod::Sha256,
    };
    Ok(list.signed_by(issuer)?.pem()?)
}

/// Two authorities never have the same name, so that a foreign one is told apart by it.
fn authority_name(serial: &[u8]) -> String {
    format!("dwcp cluster {}", hex(&serial[..4]))
}

fn name_is_good(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(good)
        && name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
        && !name.ends_with('.')
        && !name.contains("..")
}

fn random_serial() -> Result<[u8; SERIAL_BYTES], PkiError> {
    let mut serial = [0; SERIAL_BYTES];
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.secure_random.fill(&mut serial).map_err(|_| PkiError::NoRandomness)?;
    // Positive, and of full length as DER writes it.
    serial[0] = (serial[0] & 0x7f) | 0x40;
    Ok(serial)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Seconds since 1970; 0 on a clock that stands before it.
pub(crate) fn unix_now_s() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

/// A point in time as rcgen takes it; times that no calendar has become 1970.
fn date_time(unix_s: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(unix_s).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// The day, as people read it.
pub(crate) fn date(unix_s: i64) -> String {
    date_time(unix_s).date().to_string()
}
