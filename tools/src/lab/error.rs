//! Why the lab could not do what it was asked to do.

use std::path::PathBuf;

/// A failure of the lab itself, or of the programs that it drives; every variant says what to look
/// at. A guest that was hurt is not an error but a finding, see [`super::Vm::trouble`].
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A program of the system could not be started.
    #[error("cannot start `{command}`: {source}")]
    Start {
        /// What was started.
        command: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A program of the system failed.
    #[error("`{command}` failed ({status}): {output}")]
    Failed {
        /// What was run.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The last of what it printed.
        output: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something that the lab needs is not here.
    #[error("missing: {what}. {cure}")]
    Missing {
        /// What.
        what: String,
        /// How to get it.
        cure: &'static str,
    },
    /// A description of a link, guest or mode was not understood.
    #[error("`{word}`: {why}")]
    Word {
        /// The word.
        word: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The kernel refused something while a link was made.
    #[error("link device {device} in {namespace}: {source}")]
    Link {
        /// The device's name.
        device: String,
        /// The namespace that it was for.
        namespace: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A namespace could not be entered.
    #[error("namespace {namespace}: {source}")]
    Namespace {
        /// Its name.
        namespace: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A thing did not come about in time.
    #[error("no {what} within {seconds} s: {detail}")]
    TooSlow {
        /// What was waited for.
        what: String,
        /// How long.
        seconds: u64,
        /// What was seen in its place.
        detail: String,
    },
    /// A captured migration stream can't be read.
    #[error("migration stream at byte {at}: {why}")]
    Stream {
        /// Where.
        at: usize,
        /// What is wrong there.
        why: &'static str,
    },
    /// A signal told the program to end.
    #[error("interrupted")]
    Interrupted,
    /// A process ended while it was needed.
    #[error("{what} ended ({status}): {detail}")]
    Ended {
        /// Which one.
        what: String,
        /// How.
        status: String,
        /// What it had said.
        detail: String,
    },
    /// The connection to a monitor broke.
    #[error("monitor, {command}: {source}")]
    Monitor {
        /// The command that was under way.
        command: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// QEMU refused a command.
    #[error("{command}: {class}: {description}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's class of the error.
        class: String,
        /// QEMU's words.
        description: String,
    },
}

impl LabError {
    /// For `map_err` on operations with one file.
    pub(crate) fn file(path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        |source| Self::File { path, source }
    }
}
