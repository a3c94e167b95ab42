//! What can be wrong with a configuration: where it stands, what it is, and the cure.
//!
//! Data and its text; made by the modules beside it, printed by the command line.

use crate::settings::value::ValueError;
use std::fmt;
use std::path::PathBuf;

/// Where a wrong value stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// On the command line.
    Flag,
    /// In the configuration file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1; 0 for the file as a whole.
        line: usize,
    },
}

/// One thing that is wrong.
#[derive(Debug)]
pub(crate) struct Problem {
    /// Where it stands.
    pub(crate) place: Place,
    /// The setting's name; empty where the file as a whole is meant.
    pub(crate) setting: String,
    /// What is wrong with it.
    pub(crate) kind: ProblemKind,
}

/// What is wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProblemKind {
    /// The value can't be read or is out of range.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// No such setting.
    #[error("there is no such setting{}", did_you_mean(*near))]
    Unknown { near: Option<&'static str> },
    /// The file is no TOML here.
    #[error("{}", message.trim().replace('\n', ", "))]
    Syntax { message: String },
    /// The file can't be read.
    #[error("the file can't be read ({0}): give --config another path")]
    Unreadable(#[source] std::io::Error),
    /// The file is no configuration.
    #[error("the file has more than {bytes_max} bytes: this is no configuration")]
    TooLong { bytes_max: u64 },
    /// The setting takes one value, not a group of them.
    #[error("a table is no value here: write 'name = value' on the top level")]
    Table,
    /// Neither certificates nor the explicit word that there are none.
    #[error("not given: name the folder that 'dwcp pki host' made, with --pki")]
    NoTrust,
    /// Certificates and plaintext at once.
    #[error("excludes --pki: leave one of the two away")]
    TwoTrusts,
    /// The path doesn't fit into a socket address.
    #[error("the path has {bytes} bytes, a socket's has at most {bytes_max}: give a shorter one")]
    SocketPathTooLong { bytes: usize, bytes_max: usize },
    /// A live link would be taken for dead.
    #[error("must be at most a third of --dead-after: lower it, or raise --dead-after to {cure}")]
    KeepaliveTooSlow { cure: String },
    /// Two listeners want one port.
    #[error("is the address of --listen too: give another port")]
    SameAddress,
}

impl Problem {
    /// The line in the file; flags come last.
    pub(super) const fn line(&self) -> usize {
        match self.place {
            Place::Flag => usize::MAX,
            Place::File { line, .. } => line,
        }
    }
}

fn did_you_mean(near: Option<&str>) -> String {
    near.map_or_else(
        || "; 'dwcp daemon --help' lists them".to_owned(),
        |name| format!(": did you mean '{name}'?"),
    )
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Flag => write!(f, "--{}: {}", self.setting, self.kind),
            Place::File { path, line: 0 } => write!(f, "{}: {}", path.display(), self.kind),
            Place::File { path, line } if self.setting.is_empty() => {
                write!(f, "{}:{line}: {}", path.display(), self.kind)
            }
            Place::File { path, line } => {
                write!(f, "{}:{line}: '{}': {}", path.display(), self.setting, self.kind)
            }
        }
    }
}

/// Everything that is wrong, one line each.
#[derive(Debug)]
pub(crate) struct ConfigErrors(pub(crate) Vec<Problem>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
