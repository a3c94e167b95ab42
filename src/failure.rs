//! Why a subcommand could not do what was asked, as one enum at the border to the shell.
//!
//! Every variant keeps its source; its text is one line that names the fault and the cure (one line
//! per fault for a configuration). [`crate::cli`] prints it and ends with its exit code.

use crate::budget::BudgetErrors;
use crate::client::ClientError;
use crate::config::ConfigErrors;
use crate::daemon::DaemonError;
use crate::exit::Exit;
use crate::pki::PkiError;
use std::path::PathBuf;

/// Why a subcommand failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// The configuration asks for more than there is.
    #[error(transparent)]
    Budget(#[from] BudgetErrors),
    /// The daemon could not be asked, or refused.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Certificates could not be made or read.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The daemon could not start or go on.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// A file that was named can't be read.
    #[error("{} can't be read: {source}", path.display())]
    Image { path: PathBuf, source: std::io::Error },
    /// Standard output is gone.
    #[error("standard output can't be written: {0}")]
    Output(#[from] std::io::Error),
}

impl Failure {
    /// The exit code that belongs to it.
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Config(_) => Exit::Usage,
            Self::Budget(errors) => errors.exit(),
            Self::Client(error) if error.code() == Some("session_in_doubt") => Exit::InDoubt,
            Self::Client(error) if error.is_refusal() => Exit::Failed,
            Self::Client(_) => Exit::Unreachable,
            Self::Pki(error) => error.exit(),
            Self::Daemon(error) => error.exit(),
            Self::Image { .. } => Exit::Usage,
            Self::Output(_) => Exit::Failed,
        }
    }
}
