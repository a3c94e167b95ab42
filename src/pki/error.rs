//! Why a certificate can't be made, read or revoked; each text ends with the cure.
//!
//! Made by the modules beside it, printed by the command line. Never holds a key.

use crate::exit::Exit;
use std::io;
use std::path::PathBuf;

/// Why `dwcp pki` failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PkiError {
    /// The authority is there already.
    #[error("{} exists: nothing was changed; give another folder", path.display())]
    Exists { path: PathBuf },
    /// The host's folder is there already.
    #[error("{} exists: move it away, or give another NAME", path.display())]
    HostExists { path: PathBuf },
    /// The folder holds no authority.
    #[error("{0} holds no authority: make one with 'dwcp pki init {0}'", path.display())]
    NoAuthority { path: PathBuf },
    /// A file can't be read.
    #[error("{} can't be read ({source}): give --pki or DIR a folder you may read", path.display())]
    Read { path: PathBuf, source: io::Error },
    /// A file can't be written.
    #[error("{} can't be written ({source}): give a folder you may write to", path.display())]
    Write { path: PathBuf, source: io::Error },
    /// A file is not what its name says.
    #[error("{} is no {what}: put the right file there", path.display())]
    Malformed { path: PathBuf, what: &'static str },
    /// The host's name can't be in a certificate.
    #[error(
        "'{name}' is no host name: give 1 to 63 letters, digits, '-' and '.', \
         a letter or digit first"
    )]
    BadName { name: String },
    /// Nothing to revoke.
    #[error("no certificate of '{name}' is in use: 'dwcp pki show {}' lists them", path.display())]
    UnknownHost { name: String, path: PathBuf },
    /// The authority's certificate has ended.
    #[error("the authority in {} has ended: make a new one in another folder", path.display())]
    AuthorityEnded { path: PathBuf },
    /// The cryptography library refused.
    #[error("the certificate can't be made ({0}): this is a bug of dwcp or of its library")]
    Make(#[from] rcgen::Error),
    /// The machine has no randomness.
    #[error("the machine gives no random numbers: boot it with a random number source")]
    NoRandomness,
}

impl PkiError {
    /// The exit code that belongs to it.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::BadName { .. } => Exit::Usage,
            Self::Read { .. }
            | Self::Write { .. }
            | Self::Malformed { .. }
            | Self::NoAuthority { .. }
            | Self::NoRandomness => Exit::Machine,
            Self::Exists { .. }
            | Self::HostExists { .. }
            | Self::UnknownHost { .. }
            | Self::AuthorityEnded { .. }
            | Self::Make(_) => Exit::Failed,
        }
    }
}
