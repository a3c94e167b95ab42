//! Files: this host's certificates and the journals' folder, when they are named.
//!
//! Main thread; puts an empty file into the journals' folder and removes it at once.

use super::check::Check;
use crate::pki::authority::date;
use crate::pki::inspect::{self, FolderFault};
use rustls_pki_types::UnixTime;
use std::path::Path;
use std::time::Duration;

/// A certificate that ends within so many days should be replaced now.
const DAYS_LEFT_WISHED: u64 = 30;

/// The checks of what was named.
pub(super) fn checks(pki: Option<&Path>, state: Option<&Path>) -> Vec<Check> {
    let certificates = pki.map(|folder| certificates(folder, UnixTime::now()));
    certificates.into_iter().chain(state.map(journal_folder)).collect()
}

fn certificates(folder: &Path, now: UnixTime) -> Check {
    const NAME: &str = "certificates";
    const ANEW: &str = "make the folder anew with 'dwcp pki host' and copy it here";
    let facts = match inspect::host_folder(folder, now) {
        Ok(facts) => facts,
        Err(fault) => {
            let (found, cure) = explain(&fault, folder);
            return Check::fail(NAME, found, cure);
        }
    };
    let ends = facts.not_after_unix_s;
    let found = format!("{} holds until {}", facts.name, date(ends));
    let soon = now.as_secs() + Duration::from_hours(24 * DAYS_LEFT_WISHED).as_secs();
    if u64::try_from(ends).is_ok_and(|ends| ends < soon) {
        return Check::warn(NAME, found, ANEW);
    }
    Check::ok(NAME, found)
}

/// What is wrong with the folder, and what to change.
fn explain(fault: &FolderFault, folder: &Path) -> (String, String) {
    use rustls::{CertificateError as Bad, Error};
    let anew = "make the folder anew with 'dwcp pki host' and copy it here".to_owned();
    match fault {
        FolderFault::File(error) => (error.to_string(), anew),
        FolderFault::KeyIsOpen { mode } => {
            let key = folder.join("host.key");
            let cure = format!("'chmod 600 {}'; if others could read it, revoke it", key.display());
            (format!("host.key may be read by others (mode {mode:o})"), cure)
        }
        FolderFault::KeyMismatch => ("host.key is not the key of host.pem".to_owned(), anew),
        FolderFault::Revocations => {
            let cure = "copy the authority's revoked.pem into the folder".to_owned();
            ("revoked.pem can't be used with ca.pem".to_owned(), cure)
        }
        FolderFault::Chain(Error::InvalidCertificate(bad)) => match bad {
            Bad::Expired | Bad::ExpiredContext { .. } => ("host.pem has ended".to_owned(), anew),
            Bad::NotValidYet | Bad::NotValidYetContext { .. } => {
                let cure = "set this machine's clock, and keep it by NTP".to_owned();
                ("host.pem doesn't hold yet".to_owned(), cure)
            }
            Bad::Revoked => ("host.pem is revoked".to_owned(), anew),
            _ => ("host.pem was not made by the authority in ca.pem".to_owned(), anew),
        },
        FolderFault::Chain(error) => (error.to_string(), anew),
    }
}

fn journal_folder(folder: &Path) -> Check {
    const NAME: &str = "state";
    let shown = folder.display();
    match tempfile_in(folder) {
        Ok(()) => Check::ok(NAME, format!("{shown} can be written")),
        Err(error) => {
            let cure = "make it and give it to the daemon's user, or give another --state";
            Check::fail(NAME, format!("{shown} can't be written: {error}"), cure)
        }
    }
}

fn tempfile_in(folder: &Path) -> std::io::Result<()> {
    let path = folder.join(format!(".dwcp-doctor-{}", std::process::id()));
    std::fs::File::create_new(&path)?;
    std::fs::remove_file(&path)
}

#[cfg(test)]
mod tests {
    use super::super::check::Status;
    use super::*;
    use crate::pki::authority::{Authority, Validity, unix_now_s};

    #[test]
    fn certificates_are_judged_by_their_end_and_their_key() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Authority::init(folder.path()).expect("a new authority");
        let mut authority = Authority::open(folder.path()).expect("the authority opens");
        authority.issue("long", Validity::Days(90)).expect("issued");
        authority.issue("short", Validity::Days(5)).expect("issued");
        authority.issue("ended", Validity::Until { unix_s: unix_now_s() - 60 }).expect("issued");
        let status = |name| certificates(&folder.path().join(name), UnixTime::now());
        assert_eq!(status("long").status, Status::Ok);
        assert_eq!(status("short").status, Status::Warn);
        let ended = status("ended");
        assert_eq!((ended.status, ended.found.as_str()), (Status::Fail, "host.pem has ended"));
        assert_eq!(status("none").status, Status::Fail);
        authority.revoke("long").expect("revoked");
        assert_eq!(status("long").found, "host.pem is revoked");
    }

    #[test]
    fn a_folder_that_can_be_written_is_left_as_it_was() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(journal_folder(folder.path()).status, Status::Ok);
        assert_eq!(std::fs::read_dir(folder.path()).expect("it is readable").count(), 0);
        assert_eq!(journal_folder(&folder.path().join("none")).status, Status::Fail);
    }
}
